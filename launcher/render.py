"""From a plan to the text of the script that carries it out."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

    from launcher.catalog import Stack
    from launcher.plan.record import AnyPlan

TEMPLATES = {"text": "sft_text.py.j2", "vision": "sft_vlm.py.j2"}
EXPORT_TEMPLATE = "export.py.j2"
# The plan's fields that are a flag of the script, in the order in which they stand at its top.
_SHARED = (
    "revision", "trust_remote_code", "load_in", "chat_template", "dataset", "dataset_config", "dataset_split",
    "dataset_revision", "eval_split", "eval_rows", "streaming", "train_on", "max_steps", "num_train_epochs",
    "max_length", "batch_size", "gradient_accumulation", "learning_rate", "lr_scheduler_type", "warmup_ratio",
    "weight_decay", "optim", "seed", "logging_steps", "eval_steps", "lora_r", "lora_alpha", "lora_dropout",
    "output_repo", "private", "merge", "merged_repo", "gguf", "run_name", "sample_rows",
    "trackio_project", "trackio_space", "checkpoint_minutes", "timeout_s",
)  # fmt: skip
FLAGS = {
    "text": (*_SHARED, "packing", "lora_targets"),
    "vision": (
        *_SHARED, "image_size", "finetune_vision_layers", "finetune_language_layers", "finetune_attention_modules",
        "finetune_mlp_modules",
    ),
}  # fmt: skip
EXPORT_FLAGS = (
    "adapter", "adapter_revision", "revision", "trust_remote_code", "load_in", "output_repo", "private", "merge",
    "merged_repo", "gguf", "run_name", "timeout_s",
)  # fmt: skip

# The prediction holds while these are as planned.
_DECIDES_MEMORY = ("model", "load_in", "max_length", "batch_size", "lora_r", "optim", "image_size")


def render(plan: AnyPlan, stack: Stack) -> str:
    """The script of a plan: text that runs by itself with `uv run`."""
    told = _told(plan)
    exports = plan.task == "export"
    flags = EXPORT_FLAGS if exports else FLAGS[told["modality"]]
    chosen = {"model": told["repo"]} | {name: told[name] for name in flags}
    template = _environment().get_template(EXPORT_TEMPLATE if exports else TEMPLATES[told["modality"]])
    decides = tuple(name for name in _DECIDES_MEMORY if name in chosen)
    return template.render(plan=told, stack=stack, chosen=chosen, decides_memory=decides)


def options_of(plan: AnyPlan) -> tuple[str, ...]:
    """The names of the options that the plan's script takes, in Python's spelling."""
    return ("model", *(EXPORT_FLAGS if plan.task == "export" else FLAGS[plan.decisions.modality.value]))


def _told(plan: AnyPlan) -> dict[str, Any]:
    """All that a script is told of a plan, by name."""
    told = {"task": plan.task, "trust_remote_code": False} | plan.values | dict(plan.facts)
    return told | {"vram": plan.vram, "lora_targets": ",".join(plan.facts.lora_targets)}


def py(value: object) -> str:
    """A Python literal as ruff would write it, in ASCII on one line; `TypeError` or `ValueError` for what has none."""
    if value is None or isinstance(value, bool | int):
        return repr(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} has no literal")
        return repr(value)
    if isinstance(value, str):
        quote = "'" if value.count('"') > value.count("'") else '"'
        return quote + "".join(_escape(char, quote) for char in value) + quote
    if isinstance(value, tuple) and len(value) == 1:
        return f"({py(value[0])},)"
    if isinstance(value, tuple | list):
        opening, closing = "()" if isinstance(value, tuple) else "[]"
        return opening + ", ".join(py(item) for item in value) + closing
    raise TypeError(f"{type(value).__name__} has no place in a script")


def toml(value: object) -> str:
    """A TOML value in ASCII on one line, for the header, which is a comment to Python."""
    if isinstance(value, str):
        if any("\ud800" <= char <= "\udfff" for char in value):
            raise ValueError("TOML has no lone surrogates")
        return '"' + "".join(_toml_escape(char) for char in value) + '"'
    if isinstance(value, tuple | list):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    raise TypeError(f"{type(value).__name__} has no place in a script's header")


def _escape(char: str, quote: str) -> str:
    if char in (quote, "\\"):
        return "\\" + char
    if char in "\n\r\t":
        return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}[char]
    if " " <= char <= "~":
        return char
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _toml_escape(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    if " " <= char <= "~":
        return char
    code = ord(char)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _templates() -> Path:
    """Where the templates lie: inside an installed package, beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "templates"
    return installed if installed.is_dir() else package.parent / "templates"


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    filters: dict[str, Any] = {"py": py, "toml": toml}
    environment = Environment(
        loader=FileSystemLoader(_templates()),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters.update(filters)
    return environment
