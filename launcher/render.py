"""From a plan to the text of the script that carries it out."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from launcher.bundle import bundle
from launcher.spec import (
    DATA,
    EXPORT,
    LORA,
    MACHINE,
    MODEL,
    OUTPUT,
    SCRIPTS,
    TEXT,
    TRAINING,
    TRAINING_SCRIPTS,
    VISION,
    RunSpec,
)  # fmt: skip

if TYPE_CHECKING:
    from jinja2 import Environment

    from launcher.catalog import Stack
    from launcher.plan.record import AnyPlan

RECIPES = {TEXT: "sft_text.py.j2", VISION: "sft_vlm.py.j2", EXPORT: "export.py.j2"}


@dataclass(frozen=True, slots=True)
class ScriptOption:
    """A flag of a script: its name, Python type, help, and in which scripts it is."""

    name: str
    kind: str
    help: str
    panel: str
    scripts: tuple[str, ...] = TRAINING_SCRIPTS


# Those that nobody asks the launcher for: the plan has the value, or only who runs the script by hand does.
_SCRIPTS_OWN = (
    ScriptOption("adapter", "str | None", "Hub repo id or local folder of the adapter.", MODEL, (EXPORT,)),
    ScriptOption("adapter_revision", "str | None", "Branch, tag or commit of the adapter.", MODEL, (EXPORT,)),
    ScriptOption("modality", 'Literal["text", "vision"] | None', "Else as its run.json says.", MODEL, (EXPORT,)),
    ScriptOption("dry_run", "bool", "Only say whether the copies can be made.", OUTPUT, (EXPORT,)),
    ScriptOption("lora_targets", "str", "Names of the adapted layers, with commas between them.", LORA, (TEXT,)),
    ScriptOption("output_dir", "str | None", "Else output/ on the Job's volume, or outputs/RUN_NAME.", OUTPUT, SCRIPTS),
    ScriptOption("resume", 'Literal["auto", "never"]', "never: start over, checkpoints are removed.", MACHINE),
    ScriptOption("timeout_s", "int", "Seconds until the Job is killed (0: never).", MACHINE, SCRIPTS),
    ScriptOption("device", 'Literal["auto", "cpu"]', "cpu: without a GPU.", MACHINE, SCRIPTS),
)
_DEFAULTS: dict[str, Any] = {"output_dir": None, "resume": "auto", "device": "auto", "dry_run": False}


def script_options(script: str) -> tuple[ScriptOption, ...]:
    """The flags of that script, each with the type that it has there, panel by panel."""
    found = list[ScriptOption]()
    for name, field in RunSpec.model_fields.items():
        extra = field.json_schema_extra
        assert isinstance(extra, dict)
        if script in extra["scripts"]:  # type: ignore[operator]
            kind = _written(field.annotation) + (" | None" if extra["open"] else "")
            found.append(ScriptOption(name, kind, str(field.description), str(extra["panel"])))
    found += [option for option in _SCRIPTS_OWN if script in option.scripts]
    panels = [MODEL, DATA, TRAINING, LORA, OUTPUT, MACHINE]
    return tuple(sorted(found, key=lambda option: panels.index(option.panel)))


def _written(kind: Any) -> str:
    """A field's type as a script has it: what is decided is neither None nor `auto`."""
    if get_origin(kind) is Annotated:
        return _written(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        [kind] = [one for one in get_args(kind) if one is not type(None)]
        return _written(kind)
    if get_origin(kind) is Literal:
        return f"Literal[{', '.join(json.dumps(one) for one in get_args(kind) if one != 'auto')}]"
    if get_origin(kind) is tuple:
        return f"tuple[{_written(get_args(kind)[0])}, ...]"
    return str(kind.__name__)


def render(plan: AnyPlan, stack: Stack) -> str:
    """The script of a plan: text that runs by itself with `uv run`."""
    return _script(_script_of(plan), facts(plan), stack)


def script_name(plan: AnyPlan) -> str:
    """What the script of a plan is called: as its recipe."""
    return _name_of(_script_of(plan))


def options_of(plan: AnyPlan) -> tuple[ScriptOption, ...]:
    """The options that the plan's script takes."""
    return script_options(_script_of(plan))


def _script_of(plan: AnyPlan) -> str:
    return EXPORT if plan.task == "export" else plan.decisions.modality.value


def _name_of(script: str) -> str:
    return RECIPES[script].removesuffix(".j2")


COPIES = _name_of(EXPORT)
"""The name of the script that makes copies."""


def render_copies(plan: AnyPlan, stack: Stack) -> str:
    """The script that makes the copies of what a training of this plan learned, which names the adapter by a flag."""
    return _script(EXPORT, facts(plan) | {"adapter": None, "adapter_revision": None}, stack)


def facts(plan: AnyPlan) -> dict[str, Any]:
    """All that a script is told of a plan: its options by name, and what else stands at its top."""
    told = plan.values | plan.facts.model_dump()
    names = {option.name for script in RECIPES for option in script_options(script)}
    return {name: told.get(name) for name in names} | _DEFAULTS | {
        "model": plan.facts.repo,
        "trust_remote_code": told.get("trust_remote_code", False),
        "lora_targets": ",".join(plan.facts.lora_targets),
        "flavor": plan.decisions.flavor.value,
        "secrets": plan.decisions.secrets.value,
        "planned": {
            "peak_gib": plan.vram.peak_gib,
            "compile_s": plan.duration.parts.get("compile", 0),
            "generation": {
                name: int(value) if name == "top_k" else value for name, value in plan.facts.generation.items()
            },
            "generation_source": plan.facts.generation_source,
            "licence": {
                f"license{part}": told[f"licence{part}"]
                for part in ("", "_name", "_link")
                if told["licence"] and told[f"licence{part}"]
            },
        },
    }  # fmt: skip


def _script(name: str, known: dict[str, Any], stack: Stack) -> str:
    values = {"facts": known, "options": script_options(name), "stack": stack}
    return bundle(_environment().get_template(RECIPES[name]).render(values), _read_part)


def _read_part(name: str) -> str:
    return (templates() / "parts" / f"{name}.py").read_text(encoding="utf-8")


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
    if isinstance(value, dict):
        return "{" + ", ".join(f"{py(key)}: {py(item)}" for key, item in value.items()) + "}"
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


def templates() -> Path:
    """Where the templates lie: inside an installed package, beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "templates"
    return installed if installed.is_dir() else package.parent / "templates"


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    filters: dict[str, Any] = {"py": py, "toml": toml}
    environment = Environment(
        loader=FileSystemLoader(templates()),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters.update(filters)
    return environment
