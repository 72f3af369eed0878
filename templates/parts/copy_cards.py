"""The card beside the copies: the adapter's own tells of them too, a repo of copies alone gets one of theirs."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parts.copies import Copy
from parts.llama_cpp import GGUF_BITS, MMPROJ
from parts.markdown import code, linked, literal, plain
from parts.places import is_hub_id
from parts.push import persist
from parts.say import note, reason

LICENCE_FIELDS = ("license", "license_name", "license_link")
MERGED_SNIPPET = """\
# pip install transformers accelerate{quantizer}
{fetch}from transformers import {auto_model}, {auto_tokenizer}, GenerationConfig

place = {whole}
tokenizer = {auto_tokenizer}.from_pretrained(place)
model = {auto_model}.from_pretrained(place, dtype="auto", device_map="auto"{code})
{ask}
settings = GenerationConfig.from_pretrained(place)
output = model.generate(**inputs.to(model.device), generation_config=settings, max_new_tokens=200)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))"""
ASK = {
    "chat": """\
messages = [{"role": "user", "content": "What can you do?"}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")""",
    "picture": """\
content = [{"type": "image", "image": "picture.jpg"}, {"type": "text", "text": "What is shown here?"}]
messages = [{"role": "user", "content": content}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)""",
    "text": 'inputs = tokenizer("Once upon a time", return_tensors="pt")',
}


@dataclass(frozen=True)
class Origin:
    """What a card says of where the copies come from; `ask` is how the model is asked, a key of `ASK`."""

    adapter: str
    model: str
    commit: str | None
    ask: str
    trust_remote_code: bool
    run_name: str


def tell_of_copies(origin: Origin, adapter: Path, folder: Path, repo: str | None, copies: Sequence[Copy]) -> str | None:
    """Write README.md in the folder, the adapter's with the copies in it or one of their own; its text, or none."""
    own = find_card(adapter, repo)
    told = [*copies, *other_ggufs(folder, repo, copies)]
    if own:
        text = amend_card(own.read_text(encoding="utf-8"), origin, repo, told)
    elif repo and any(copy.repo == repo and not copy.error for copy in copies):
        text = copies_card(origin, adapter, repo, told)
    else:
        return None
    (folder / "README.md").write_text(text, encoding="utf-8")
    return text


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
    from huggingface_hub import ModelCardData

    made = [copy for copy in copies if not copy.error]
    datasets, licence = learned_from(adapter)
    base = linked(origin.model, origin.commit)
    relation, library, tags = "quantized", None, ["unsloth", "launch"]
    about = f"GGUF files of {base} with the adapter {linked(origin.adapter)} merged into it."
    if any(copy.kind == "merged" for copy in made):
        relation, library = "finetune", "transformers"
        about = about.removeprefix("GGUF files of ")
    if repo == origin.adapter:
        relation, library, tags = "adapter", "peft", ["lora", *tags]
        about = f"A LoRA adapter for {base}, and copies of the model with it."
    data = ModelCardData(
        library_name=library,
        base_model=origin.model if is_hub_id(origin.model) else None,
        base_model_relation=relation if is_hub_id(origin.model) else None,
        datasets=datasets or None,
        pipeline_tag="image-text-to-text" if origin.ask == "picture" else "text-generation",
        tags=tags,
        **licence,  # type: ignore[arg-type]
    )
    if licence:
        name = licence.get("license_name") if licence["license"] == "other" else licence["license"]
        about += f" The base model's licence holds for it too{f': {code(name)}' if name else ''}."
    head = f"---\n{data.to_yaml()}\n---\n\n# {plain(repo.split('/')[-1])}\n\n{about}\n"
    return amend_card(head, origin, repo, copies)


def amend_card(text: str, origin: Origin, repo: str | None, copies: Sequence[Copy]) -> str:
    """The card with the copies in its table and how to use them, in place of what it said of earlier ones."""
    made = [copy for copy in copies if not copy.error]
    text = amend_table(text, made)
    for copy in made:
        if copy.kind == "merged":
            # In that place lies one, of whichever kind.
            there = re.escape(literal(copy.repo or copy.path or ""))
            text = re.sub(rf"### Merged, \w+\n\n```python\n((?!```).)*{there}.*?\n```\n+", "", text, flags=re.DOTALL)
    for name, language, snippet in usage(origin, repo, made):
        text = re.sub(rf"### {re.escape(name)}\n\n```.*?\n```\n+", "", text, flags=re.DOTALL)
        before, heading, after = text.partition("\n## How to use it\n")
        if not heading:
            before, heading, after = text.rstrip() + "\n", "\n## How to use it\n", ""
        own, *rest = re.split(r"(?=\n## )", after, maxsplit=1)
        text = f"{before}{heading}{own.rstrip()}\n\n### {name}\n\n```{language}\n{snippet}\n```\n{''.join(rest)}"
    return text


def amend_table(text: str, made: Sequence[Copy]) -> str:
    """The text with these copies in its table, and without the GGUF files that are gone."""
    before, heading, after = text.partition("\n## Copies\n")
    if not heading:
        before, use, rest = text.partition("\n## How to use it\n")
        before, after = before.rstrip() + "\n", use + rest
    table, after = re.split(r"(?=\n## )|\Z", after, maxsplit=1) if heading else ("", after)
    rows = dict(re.findall(r"^\| (`[^`]*`) \| (.*) \|$", table, re.MULTILINE))
    paths = [code(copy.path) for copy in made]
    # What could not be made before is called by its kind alone.
    dropped = {code(copy.name) for copy in made}
    rows = {name: told for name, told in rows.items() if name not in dropped and (name in paths or ".gguf" not in name)}
    # Of what was there before, more was told then.
    fresh = {code(copy.path) for copy in made if copy.checked}
    rows |= {name: told for name, told in copy_rows(made) if name in fresh or name not in rows}
    lines = "\n".join(f"| {name} | {told} |" for name, told in rows.items())
    return f"{before}\n## Copies\n\n| | |\n| --- | --- |\n{lines}\n{after}"


def copy_rows(copies: Sequence[Copy]) -> list[tuple[str, str]]:
    """What is called how, and what was seen of it."""
    told = [[f"{copy.gib:.2f} GiB"] * bool(copy.gib) + [plain(copy.checked)] * bool(copy.checked) for copy in copies]
    return [(code(copy.path or copy.name), ", ".join(words)) for copy, words in zip(copies, told, strict=True)]


def usage(origin: Origin, repo: str | None, made: Sequence[Copy]) -> list[tuple[str, str, str]]:
    """How to use the copies, as (heading, language, text): each runs as it stands, in the folder if not pushed."""
    shown, sees = [], origin.ask == "picture"
    for copy in made:
        if copy.kind == "merged":
            whole, fetch = literal(copy.repo or copy.path or ""), ""
            if copy.path and copy.repo and copy.repo == repo:
                # A folder: with PEFT installed, transformers would take the adapter at the repo's root for the model.
                whole = f'snapshot_download({whole}, allow_patterns="{copy.path}/*") + "/{copy.path}"'
                fetch = "from huggingface_hub import snapshot_download\n"
            text = MERGED_SNIPPET.format(
                quantizer=" bitsandbytes" if copy.name == "4bit" else "",
                fetch=fetch, whole=whole, ask=ASK[origin.ask],
                code=", trust_remote_code=True" if origin.trust_remote_code else "",
                auto_model="AutoModelForImageTextToText" if sees else "AutoModelForCausalLM",
                auto_tokenizer="AutoProcessor" if sees else "AutoTokenizer",
            )  # fmt: skip
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


def learned_from(adapter: Path) -> tuple[list[str], dict[str, str]]:
    """The datasets that the adapter was trained on, by their names on the Hub, and the licence as a card's fields."""
    from huggingface_hub import ModelCard

    datasets: Any = None
    told: dict[str, Any] = {}
    try:
        if (adapter / "run.json").is_file():
            plan = json.loads((adapter / "run.json").read_text(encoding="utf-8")).get("plan") or {}
            datasets = plan.get("dataset")
            told = {name: plan.get(name.replace("license", "licence")) for name in LICENCE_FIELDS}
        if (adapter / "README.md").is_file():
            card = ModelCard.load(adapter / "README.md").data.to_dict()
            datasets, told = card.get("datasets") or datasets, card if card.get("license") else told
    except Exception as error:
        note(f"what the adapter was trained on can't be read ({reason(error)})")
    datasets = [name for name in (datasets if isinstance(datasets, list) else [datasets]) if isinstance(name, str)]
    licence = {name: told[name] for name in LICENCE_FIELDS if isinstance(told.get(name), str)}
    known = re.fullmatch("[a-z0-9][a-z0-9.-]*", licence.get("license", ""))
    return [name for name in datasets if is_hub_id(name)], licence if known else {}
