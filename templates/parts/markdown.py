"""What cards are made of: their head, code that asks a model, and what anybody named as Markdown that means no more."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from parts.places import is_hub_id

SNIPPET = """\
# pip install transformers accelerate{packages}
{imports}from transformers import {model_class}, {reader_class}, GenerationConfig

place = {place}
reader = {reader_class}.from_pretrained(place)
model = {model_class}.from_pretrained({base}, dtype="auto", device_map="auto"{code})
{adapt}{ask}
settings = GenerationConfig.from_pretrained(place)
output = model.generate(**inputs.to(model.device), generation_config=settings, max_new_tokens=200)
print(reader.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))"""
ASK_CHAT = """\
messages = [{"role": "user", "content": CONTENT}]
inputs = reader.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)"""
CONTENTS = {
    "chat": '"What can you do?"',
    "picture": '[{"type": "image", "image": "picture.jpg"}, {"type": "text", "text": "What is shown here?"}]',
}


def card_head(
    title: str, about: str, model: str, relation: str, sees: bool, datasets: Sequence[str], licence: dict[str, Any],
    **more: Any,
) -> str:  # fmt: skip
    """A card's metadata, title and first words; `licence` are the fields of the `model` that it builds on."""
    from huggingface_hub import ModelCardData

    if is_hub_id(model):
        more |= {"base_model": model, "base_model_relation": relation}
    data = ModelCardData(
        datasets=[name for name in datasets if is_hub_id(name)] or None,
        pipeline_tag="image-text-to-text" if sees else "text-generation", **licence, **more,
    )  # fmt: skip
    if licence:
        name = licence.get("license_name") if licence["license"] == "other" else licence["license"]
        about += f" The base model's licence holds for it too{f': {code(name)}' if name else ''}."
    return f"---\n{data}\n---\n\n# {title}\n\n{about}"


def snippet(place: str, ask: str, trusted: bool, **how: str) -> str:
    """Code that runs as it stands: loads the model of that place, asks it as `ask` says, prints its answer.

    `how` may say `packages`, `imports`, the `base` that is loaded, and how that is `adapt`ed.
    """
    content = CONTENTS.get(ask)
    return SNIPPET.format_map(
        {"packages": "", "imports": "", "base": "place", "adapt": ""} | how | {
            "place": place,
            "code": ", trust_remote_code=True" if trusted else "",
            "model_class": "AutoModelForImageTextToText" if ask == "picture" else "AutoModelForCausalLM",
            "reader_class": "AutoProcessor" if ask == "picture" else "AutoTokenizer",
            "ask": ASK_CHAT.replace("CONTENT", content) if content
                   else 'inputs = reader("Once upon a time", return_tensors="pt")',
        }
    )  # fmt: skip


def linked(name: str, commit: str | None = None, kind: str = "") -> str:
    """A Hub repo with its address and commit, or the name of what lay on the machine."""
    if not is_hub_id(name):
        return f"{code(Path(name).name)} (not on the Hub)"
    return f"[{code(name)}](https://huggingface.co/{kind}{name})" + (f" at {code(commit[:12])}" if commit else "")


def code(text: object) -> str:
    """The text as code, on one line, that ends neither a table's cell nor the code."""
    text = re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", str(text)).replace("|", "¦").replace("`", "ˋ")
    return f"`{text}`"


def plain(text: object) -> str:
    """The text as text on one line, whatever it holds."""
    return re.sub(r"([\\`*_~|<>\[\]#$])", r"\\\1", " ".join(str(text).split()))
