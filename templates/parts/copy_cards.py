"""The card beside the copies: the adapter's own tells of them too, a repo of copies alone gets one of theirs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parts.card import card_head, code, linked, plain, snippet
from parts.copies import Copy
from parts.llama_cpp import GGUF_BITS, MMPROJ
from parts.push import persist, push
from parts.say import note, reason

LICENCE_FIELDS = ("license", "license_name", "license_link")


@dataclass(frozen=True)
class Origin:
    """What a card says of where the copies come from; `ask` is how the model is asked, a key of `ASK`."""

    adapter: str
    model: str
    commit: str | None
    ask: str
    trust_remote_code: bool
    run_name: str


def put_card(folder: Path, repo: str | None, make: Callable[[], str | None]) -> None:
    """Write README.md in the folder, and push it to the repo if there is one; raises nothing."""
    try:
        text = make()
        if text:
            (folder / "README.md").write_text(text, encoding="utf-8")
            if repo:
                push(folder, repo, ["README.md"])
    except Exception as error:
        note(f"no card in {repo or folder} tells of the copies ({reason(error)})")


def card_beside(origin: Origin, adapter: Path, folder: Path, repo: str | None, copies: Sequence[Copy]) -> str | None:
    """The adapter's card with the copies that lie in folder or repo, or one of their own; none where neither fits."""
    own = find_card(adapter, repo)
    told = [*copies, *other_ggufs(folder, repo, copies)]
    if own:
        return amend_card(own.read_text(encoding="utf-8"), origin, repo, told)
    if repo and any(copy.repo == repo and not copy.error for copy in copies):
        return copies_card(origin, adapter, repo, told)
    return None


def find_card(folder: Path, repo: str | None) -> Path | None:
    """The adapter's card, else the one that the copies' repo has; none where neither has one."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    if (folder / "README.md").is_file():
        return folder / "README.md"
    try:
        return Path(persist("reading the card", lambda: hf_hub_download(repo, "README.md"))) if repo else None
    except EntryNotFoundError:
        return None


def other_ggufs(folder: Path, repo: str | None, copies: Sequence[Copy]) -> list[Copy]:
    """The GGUF files of earlier exports that lie beside these."""
    from huggingface_hub import HfApi

    if repo:
        held = persist(f"looking at {repo}", lambda: list(HfApi().list_repo_tree(repo)))
        sizes = {entry.path: entry.size for entry in held if hasattr(entry, "size")}
    else:
        sizes = {path.name: path.stat().st_size for path in folder.glob("*.gguf")}
    named = {path: re.fullmatch(r"[^/]+\.(\w+)\.gguf", path) for path in sizes}
    kinds = {path: found[1].lower() for path, found in named.items() if found}
    return [
        Copy("gguf", kind, path, repo, sizes[path] / 2**30, None, None)
        for path, kind in kinds.items()
        if kind in GGUF_BITS and path not in [copy.path for copy in copies]
    ]


def copies_card(origin: Origin, adapter: Path, repo: str, copies: Sequence[Copy]) -> str:
    """The text of a card for a repo of these copies; `adapter` is the folder of what they were made of."""
    base, more = linked(origin.model, origin.commit), dict[str, Any]()
    about, relation, tags = f"{base} with the adapter {linked(origin.adapter)} merged into it.", "finetune", list[str]()
    if repo == origin.adapter:
        about, relation, tags = f"A LoRA adapter for {base}, and copies of the model with it.", "adapter", ["lora"]
        more["library_name"] = "peft"
    elif any(copy.kind == "merged" and not copy.error for copy in copies):
        more["library_name"] = "transformers"
    else:
        about, relation = f"GGUF files of {about}", "quantized"
    head = card_head(
        repo.split("/")[-1], about, origin.model, relation, origin.ask == "picture", *learned_from(adapter),
        tags=[*tags, "unsloth", "launch"], **more,
    )  # fmt: skip
    return amend_card(head, origin, repo, copies)


def amend_card(text: str, origin: Origin, repo: str | None, copies: Sequence[Copy]) -> str:
    """The card with a section on the copies and how to use them, in the place of that on earlier ones."""
    made = [copy for copy in copies if not copy.error]
    text = text.rstrip() + "\n"
    place = re.search(r"\n## Copies\n.*?(?=\n## |\Z)", text, re.DOTALL)
    place = place or re.search(r"(?=\n## How to use it\n)|\Z", text)
    assert place
    rows: dict[str, str] = dict(re.findall(r"^\| (`[^`]*`) \| (.*) \|$", place[0], re.MULTILINE))
    uses: dict[str, str] = dict(re.findall(r"^### ([^\n]*)\n\n(```.*?\n```)$", place[0], re.MULTILINE | re.DOTALL))
    paths = [code(copy.path) for copy in made]
    rows = {name: told for name, told in rows.items() if name in paths or ".gguf" not in name}
    # Of what was there before, more was told then.
    fresh = {code(copy.path) for copy in made if copy.checked}
    rows |= {name: told for name, told in copy_rows(made) if name in fresh or name not in rows}
    shown = {name: f"```{language}\n{told}\n```" for name, language, told in usage(origin, repo, made)}
    # Of merged copies there is one, of whichever kind.
    replaced = ("Merged, ",) if any(copy.kind == "merged" for copy in made) else ()
    shown |= {name: use for name, use in uses.items() if name not in shown and not name.startswith(replaced)}
    table = "".join(f"| {name} | {told} |\n" for name, told in rows.items())
    section = f"\n## Copies\n\n| | |\n| --- | --- |\n{table}"
    section += "".join(f"\n### {name}\n\n{use}\n" for name, use in shown.items())
    return text[: place.start()] + section + text[place.end() :]


def copy_rows(copies: Sequence[Copy]) -> list[tuple[str, str]]:
    """What is called how, and what was seen of it."""
    told = [[f"{copy.gib:.2f} GiB"] * bool(copy.gib) + [plain(copy.checked)] * bool(copy.checked) for copy in copies]
    return [(code(copy.path or copy.name), ", ".join(words)) for copy, words in zip(copies, told, strict=True)]


def usage(origin: Origin, repo: str | None, made: Sequence[Copy]) -> list[tuple[str, str, str]]:
    """How to use the copies, as (heading, language, text): each runs as it stands, in the folder if not pushed."""
    shown, sees = [], origin.ask == "picture"
    for copy in made:
        if copy.kind == "merged":
            place, how = repr(copy.repo or copy.path), dict[str, str]()
            if copy.path and copy.repo and copy.repo == repo:
                # A folder: with PEFT installed, transformers would take the adapter at the repo's root for the model.
                place = f'snapshot_download({place}, allow_patterns="{copy.path}/*") + "/{copy.path}"'
                how["imports"] = "from huggingface_hub import snapshot_download\n"
            if copy.name == "4bit":
                how["packages"] = " bitsandbytes"
            text = snippet(place, origin.ask, origin.trust_remote_code, **how)
            shown.append((f"Merged, {copy.name}", "python", text))
    files = [copy for copy in made if copy.kind == "gguf"]
    if files:
        asked = '--image picture.jpg -p "What is shown here?"' if sees else '-p "What can you do?"'
        lines = [f"llama-cli {called(file, files, sees)} {asked}" for file in files]
        shown.append(("llama.cpp", "sh", "\n".join(lines)))
        name = re.sub("[^a-z0-9._-]+", "-", origin.run_name.lower()).strip("-._") or "mine"
        pulled = [f"ollama run hf.co/{file.repo}:{tag(file, files)}" for file in files if file.repo]
        local = [f"ollama create {name} -f Modelfile", f"ollama run {name}"]
        shown.append(("Ollama", "sh", "\n".join(pulled or local)))
    return shown


def called(copy: Copy, files: Sequence[Copy], sees: bool) -> str:
    """A GGUF file as llama.cpp is told of it; `files` are all of them."""
    path = str(copy.path)
    if not copy.repo:
        sight = path.removesuffix(f"{copy.name.upper()}.gguf") + f"{MMPROJ}.gguf"
        return f"-m {shlex.quote(path)}" + (f" --mmproj {shlex.quote(sight)}" if sees else "")
    name = tag(copy, files)
    return f"-hf {copy.repo} -hff {name}" if name == path else f"-hf {copy.repo}:{name}"


def tag(copy: Copy, files: Sequence[Copy]) -> str:
    """The type of a repo's GGUF file; its whole name where llama.cpp, which takes the first match, finds another."""
    kind, path = copy.name.upper(), str(copy.path)
    held = sorted(str(file.path) for file in files if file.repo == copy.repo)
    first = next((path for path in held if re.search(f"{kind}[.-]", path, re.IGNORECASE)), None)
    return kind if first == path else path


def learned_from(adapter: Path) -> tuple[list[str], dict[str, Any]]:
    """The datasets that the adapter's card names, and the licence, as a card's fields."""
    from huggingface_hub import ModelCard

    told: dict[str, Any] = {}
    try:
        if (adapter / "README.md").is_file():
            told = ModelCard.load(adapter / "README.md").data.to_dict()
    except Exception as error:
        note(f"what the adapter was trained on can't be read ({reason(error)})")
    datasets = told.get("datasets") or []
    datasets = [name for name in (datasets if isinstance(datasets, list) else [datasets]) if isinstance(name, str)]
    licence = {name: told[name] for name in LICENCE_FIELDS if isinstance(told.get(name), str)}
    return datasets, licence if re.fullmatch("[a-z0-9][a-z0-9.-]*", licence.get("license", "")) else {}
