"""What the Hub asks of the metadata at the head of a README.md, as far as its error messages tell."""

from __future__ import annotations

import re
from typing import Any

import yaml  # type: ignore[import-untyped]

# The Hub's own expression, of which huggingface_hub.repocard has a copy.
BLOCK = re.compile(r"^(\s*---(?:\r\n|\r|\n))([\S\s]*?)((?:\r\n|\r|\n)---[ \t]*(\r\n|\n|$))")
ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
# Those of the catalog, the usual ones, and the names for all others: the Hub knows some eighty.
LICENCES = (
    "apache-2.0", "bigcode-openrail-m", "bsd", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0",
    "cc-by-sa-4.0", "cc0-1.0", "gemma", "gpl-3.0", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3",
    "mit", "mpl-2.0", "openrail", "other", "unknown", "unlicense",
)  # fmt: skip
RELATIONS = ("adapter", "finetune", "merge", "quantized")


def metadata(text: str) -> dict[str, Any] | None:
    """What stands at the card's head; none where that is no mapping."""
    block = BLOCK.match(text)
    try:
        data = yaml.safe_load(block[2]) if block else None
    except yaml.YAMLError:
        return None
    return data if isinstance(data, dict) else None


def problems(text: str) -> tuple[list[str], list[str]]:
    """The errors and the warnings that the Hub would answer to this card."""
    block = BLOCK.match(text)
    if not block:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        data = yaml.safe_load(block[2])
    except yaml.YAMLError as error:
        return [f"YAML metadata: {error}"], []
    if not isinstance(data, dict):
        return ["YAML metadata should be a mapping"], []
    return [*_named(data), *_typed(data)], []


def _named(data: dict[str, Any]) -> list[str]:
    """What should be one of the names that the Hub knows."""
    errors = []
    if "license" in data and any(name not in LICENCES for name in _listed(data["license"])):
        errors.append(f'"license" must be one of [{", ".join(LICENCES)}]')
    if data.get("base_model_relation", "adapter") not in RELATIONS:
        errors.append(f'"base_model_relation" must be one of [{", ".join(RELATIONS)}]')
    for value in _listed(data.get("base_model", [])):
        if not _is_id(value):
            errors.append(f'"base_model" with value "{value}" is not valid. Use a model id from https://hf.co/models.')
    for number, value in enumerate(_listed(data.get("datasets", []))):
        if not _is_id(value):
            hint = "If possible, use a dataset id from https://hf.co/datasets."
            errors.append(f'"datasets[{number}]" with value "{value}" is not valid. {hint}')
    return errors


def _typed(data: dict[str, Any]) -> list[str]:
    """What should be a text, or a list of texts."""
    errors = [
        f'"{name}" must be a string'
        for name in ("library_name", "pipeline_tag")
        if name in data and not (isinstance(data[name], str) and data[name])
    ]
    tags = data.get("tags", [])
    if not isinstance(tags, list):
        errors.append('"tags" must be an array')
    elif not all(isinstance(tag, str) for tag in tags):
        errors.append('"tags" must be an array of strings')
    return errors


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and bool(ID.fullmatch(value))
