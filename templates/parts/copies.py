"""The copies of a model: what they take, how they are merged and converted, where they land, what they replace."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parts.apart import apart
from parts.compare import Seen, check_gguf, probe
from parts.llama_cpp import CONVERTED, GGUF_BITS, MMPROJ, convert, quantize, sight_of
from parts.ollama import FOR_OLLAMA, ChatForm, chat_form, end_of_answer
from parts.options import ADAPTER_THERE
from parts.push import open_repo, persist, push
from parts.saving import SAMPLING, generation_of
from parts.say import UserError, note, reason

MERGED, NOT_MADE = "merged", "not made"
# The names that transformers gives to a model's weights.
WEIGHTS = r"(pytorch_)?model(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?"


@dataclass
class Copy:
    """One copy that was asked for, and what became of it: an entry of RESULT's `exports`.

    `kind` is merged or gguf, `name` 16bit, 4bit or the type of the file; `error` is none once it is made and checked.
    """

    kind: str
    name: str
    path: str | None = None
    repo: str | None = None
    gib: float | None = None
    checked: str | None = None
    error: str | None = NOT_MADE

    @property
    def source(self) -> str:
        """The merged copy that it is, or is made of."""
        return "16bit" if self.kind == "gguf" else self.name

    @property
    def bits(self) -> float:
        """What a weight takes in it."""
        return GGUF_BITS[self.name] if self.kind == "gguf" else {"16bit": 16, "4bit": 6.4}[self.name]


def asked_copies(merge: str | None, gguf: Sequence[str]) -> list[Copy]:
    """What was asked for, in the order in which it is made."""
    return [Copy("merged", kind) for kind in (merge,) if kind] + [Copy("gguf", kind) for kind in dict.fromkeys(gguf)]


def copy_bytes(copies: Sequence[Copy], whole: float) -> dict[str, float]:
    """What the copies take on the disk at most, by what it is, of a model of that size in 16 bits."""
    parts = {f"{MERGED}/": whole * copy.bits / 16 for copy in copies if copy.kind == "merged"}
    ggufs = [copy for copy in copies if copy.kind == "gguf"]
    if ggufs and not any(copy.kind == "merged" and copy.name == "16bit" for copy in copies):
        parts["a 16-bit copy to convert"] = whole
    if any(copy.name not in CONVERTED for copy in ggufs):
        parts["a 16-bit GGUF file to quantise"] = whole
    return parts | {f"{copy.name}.gguf": whole * copy.bits / 16 for copy in ggufs}


# ---- Merging, in a process of its own --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """What is known of the adapter on its model once the merged copies are written; `errors` by the kind of copy.

    `settings` are how Ollama is to sample.
    """

    seen: Seen
    form: ChatForm
    settings: dict[str, float]
    errors: dict[str, str]
    device: str
    peak_gib: float | None


def merge_adapter(
    adapter: Path, base: Path, whole: Path, kinds: Sequence[str], work: Path, settings: dict[str, float], sees: bool,
    four_bits: bool, trust_remote_code: bool,
) -> Trained:  # fmt: skip
    """Load the adapter on its model with Unsloth, see what it answers, and write the merged copies into `work`.

    `base` is the folder of what it was trained on, `whole` that of the same in 16 bits. The 4-bit copy has to come
    last: merging it changes the weights that are loaded.
    """
    model, reader = load_adapter(adapter, base, sees, four_bits, trust_remote_code)
    import torch
    from transformers import GenerationConfig

    stop, errors = end_of_answer(reader, sees), {}
    if (adapter / "generation_config.json").is_file():
        generation = GenerationConfig.from_pretrained(adapter)
    else:
        generation = generation_of(getattr(model, "generation_config", None), settings, stop)
    model.get_base_model().generation_config = generation
    seen = probe(model, reader, stop, sees)
    for kind in kinds:
        try:
            merge(model, reader, kind, work / kind, whole)
        except Exception as error:
            errors[kind] = reason(error)
            note(f"merging {kind} failed: {errors[kind]}")
    on_gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if on_gpu else "cpu"
    peak_gib = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None
    if not settings:
        told = generation.to_dict()
        settings = {name: told[name] for name in (*SAMPLING, "repetition_penalty") if told.get(name) is not None}
    return Trained(seen, chat_form(reader, sees), settings, errors, device, peak_gib)


def load_adapter(adapter: Path, base: Path, sees: bool, four_bits: bool, trust_remote_code: bool) -> tuple[Any, Any]:
    """The adapter on its model, and its tokenizer or processor as it was trained."""
    # Unsloth goes first: it patches the libraries that are imported after it.
    import unsloth  # isort: skip
    from peft import PeftModel

    fast: Any = unsloth.FastVisionModel if sees else unsloth.FastLanguageModel
    with tempfile.TemporaryDirectory() as place:
        # It names the model as it was called where it was trained, and at no commit: here, the folder of its files.
        for path in adapter.glob("adapter_*"):
            shutil.copy(path, place)
        config = Path(place, "adapter_config.json")
        settings = json.loads(config.read_text(encoding="utf-8"))
        config.write_text(json.dumps(settings | {"base_model_name_or_path": str(base), "revision": None}))
        model, reader = fast.from_pretrained(
            place, max_seq_length=2048, load_in_4bit=four_bits, use_exact_model_name=True,
            trust_remote_code=trust_remote_code,
        )  # fmt: skip
    if not isinstance(model, PeftModel):
        hint = "Its adapter_config.json says of what kind it is."
        raise UserError(f"Unsloth did not load {adapter} as an adapter.", hint)
    fast.for_inference(model)
    return model, reader_of(adapter, reader, sees, trust_remote_code)


def reader_of(adapter: Path, own: Any, sees: bool, trust_remote_code: bool) -> Any:
    """The tokenizer, or the processor where the model `sees`, in the adapter's folder, else the model's own."""
    from transformers import AutoProcessor, AutoTokenizer

    if not sees:
        if (adapter / "tokenizer_config.json").is_file():
            own = AutoTokenizer.from_pretrained(adapter, trust_remote_code=trust_remote_code)
        return getattr(own, "tokenizer", own)
    found = [own]
    if any((adapter / name).is_file() for name in ("processor_config.json", "preprocessor_config.json")):
        found.insert(0, AutoProcessor.from_pretrained(adapter, trust_remote_code=trust_remote_code))
    # Where it finds a tokenizer alone, transformers gives that, which drops every picture without a word.
    seeing = [reader for reader in found if getattr(reader, "image_processor", None)]
    if not seeing:
        hint = "Copy processor_config.json and preprocessor_config.json there from the model that it was trained on."
        raise UserError(f"the processor of {adapter} takes no pictures.", hint)
    return seeing[0]


def merge(model: Any, reader: Any, kind: str, folder: Path, whole: Path) -> None:
    """Merge the adapter into a copy of the model, with all that it takes to use it, through Unsloth."""
    named = model.config._name_or_path
    try:
        if kind == "16bit":
            # Unsloth reads the 16-bit weights anew, and would take the newest of the repo that it thinks the best.
            model.config._name_or_path = str(whole)
        method = {"16bit": "merged_16bit", "4bit": "merged_4bit_forced"}[kind]
        model.save_pretrained_merged(str(folder), reader, save_method=method)
    finally:
        model.config._name_or_path = named
    reader.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    if not any(folder.glob("*.safetensors")):
        raise RuntimeError("Unsloth wrote no weights")


# ---- Where they land, and what they replace --------------------------------------------------------------------------


def open_places(folder: Path, in_bucket: bool, all_pushed: bool) -> tuple[Path, Path]:
    """Where copies are put, and where they are made: new folders, or for the first the adapter's.

    A Job's volume is a bucket behind a file system, on which no file is mapped or changed in place, and to which what
    is pushed anyway would travel a second time. What is not pushed belongs there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / ".exporting", ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix="exporting-")) if in_bucket else folder / ".exporting"
    work.mkdir(exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="exports-")) if in_bucket and all_pushed else folder, work


def gguf_stem(name: str) -> str:
    """What GGUF files are called before their type: as the repo that they go to, so that later ones replace them."""
    return re.sub(r"[^\w.-]+|\.gguf$", "-", name.split("/")[-1], flags=re.ASCII).strip(".-") or "model"


def make_gguf(
    kind: str, stem: str, merged: Path, seen: Seen, sees: bool, work: Path, place: Path, llama_cpp: Path
) -> tuple[Path, str]:
    """The GGUF file of the 16-bit merged copy, in its place once it is checked, and what was found of it."""
    files = {other: work / f"{stem}.{other.upper()}.gguf" for other in (kind, "bf16", "f16")}
    written = next((other for other in ("bf16", "f16") if files[other].exists()), None)
    source = kind if kind in CONVERTED else written or "bf16"
    if not files[source].exists():
        # What sees is a file of its own, and made once.
        apart(convert, merged, files[source], source, sees and not sight_of(files[source]), llama_cpp)
    if source != kind:
        apart(quantize, files[source], files[kind], kind, llama_cpp)
    checked = apart(check_gguf, files[kind], kind, seen, sees, llama_cpp)
    sight = sight_of(files[kind])
    # Others are quantised from a 16-bit file, and what sees is not made again.
    landed = land(files[kind], place / files[kind].name, keep=kind in ("bf16", "f16"))
    if sight:
        land(sight, place / sight.name, keep=True)
    return landed, checked


def land(source: Path, target: Path, keep: bool = False) -> Path:
    """The new path of a whole file or folder, which appears there at once; with `keep` a file stays here too."""
    draft = target.with_name(f".{target.name}.new")
    for old in (draft, target):
        if old.is_dir():
            shutil.rmtree(old)
    if keep:
        # Of two names of one file neither would replace the other.
        target.unlink(missing_ok=True)
        try:
            os.link(source, draft)
        except OSError:
            shutil.copy(source, draft)
    else:
        shutil.move(source, draft)
    draft.replace(target)
    return target


def open_merged_repo(name: str, output_repo: str | None, private: bool, create: bool) -> str:
    """The full name of the repo of the merged model, opened as the output repo was.

    Raises `UserError` of status 3 where it holds an adapter, or will.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    name = open_repo(name, private, create)
    try:
        held = persist(f"looking at {name}", lambda: HfApi().list_repo_files(name))
    except RepositoryNotFoundError:
        held = []
    if name == output_repo or "adapter_config.json" in held:
        raise UserError(f"--merged-repo {name}: {ADAPTER_THERE}.", "Name another repo.", status=3)
    return name


def every_file(folder: Path) -> list[str]:
    """The paths of the folder's files in it."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def push_merged(folder: Path, repo: str, alone: bool) -> None:
    """Push the merged copy in the place of an earlier one, to a repo where it is `alone`, or beside the adapter."""
    files = [path for path in every_file(folder) if path != "README.md"]
    if alone:
        push(folder, repo, files, stale_files(repo, files, WEIGHTS))
    else:
        paths = [f"{folder.name}/{path}" for path in files]
        push(folder.parent, repo, paths, stale_files(repo, paths, f"{folder.name}/.*"))


def push_gguf(path: Path, kind: str, repo: str) -> None:
    """Push the file, with what sees and what Ollama needs, in the place of earlier ones of its type."""
    sight, beside = sight_of(path), [name for name in FOR_OLLAMA if path.with_name(name).is_file()]
    paths = [path.name, *([sight.name] if sight else []), *beside]
    # llama.cpp takes the first file of a type.
    kinds = [kind.upper()] + [MMPROJ] * bool(sight)
    push(path.parent, repo, paths, stale_files(repo, paths, rf"[^/]+\.({'|'.join(kinds)})\.gguf"))


def stale_files(repo: str, fresh: Iterable[str], pattern: str) -> list[str]:
    """What of the repo an earlier export left: files of such names that are not among the fresh ones."""
    from huggingface_hub import HfApi

    held = persist(f"looking at {repo}", lambda: HfApi().list_repo_files(repo))
    found = [path for path in held if path not in fresh and re.fullmatch(pattern, path)]
    if found:
        note(f"of an earlier export, and deleted from {repo} with this push: {', '.join(found)}")
    return found


def failed_copies(copies: Sequence[Copy], where: str, merged_repo: str | None) -> UserError | None:
    """The error of a run whose copies are not all there, or none; its last words say how to try again."""
    failed = [copy for copy in copies if copy.error]
    if not failed:
        return None
    told = "; ".join(f"{copy.kind} {copy.name}: {copy.error}" for copy in failed)
    words = [f"--{'merge' if copy.kind == 'merged' else 'gguf'} {copy.name}" for copy in failed]
    if merged_repo and failed[0].kind == "merged":
        words.append(f"--merged-repo {merged_repo}")
    message = f"the adapter is whole; {len(failed)} of {len(copies)} exports failed ({told})"
    return UserError(f"{message}.", f"Try again with: launch export {shlex.quote(where)} {' '.join(words)}")
