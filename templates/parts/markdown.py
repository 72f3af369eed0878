"""What a user or the Hub named, as Markdown that means nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path

from parts.places import is_hub_id


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


def literal(text: str) -> str:
    """The text as Python writes it."""
    return json.dumps(text) if text.isascii() else repr(text)
