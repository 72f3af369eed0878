"""What a script says of itself: the plan whose script it is, and whether nothing else is in it.

A script that a stranger wrote is Python that would run with the user's token. One that is, byte for byte, what this
launcher renders from the values that stand in it holds the launcher's own code and those values.
"""

from __future__ import annotations

import ast
import re
import tomllib
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import ValidationError

from launcher import spec
from launcher.catalog import Catalog
from launcher.errors import RefusedError, RequestError
from launcher.plan.record import Plan
from launcher.render import render

_HEADER = re.compile(r"^# /// script$\s(?P<content>(?:^#(?:| .*)$\s)+)^# ///$", re.MULTILINE)
# What stands there of the model, beside the options.
_OF_MODEL = ("generation", "generation_source", "licence", "licence_name", "licence_link")
_STOPS = {"max_steps": "num_train_epochs", "num_train_epochs": "max_steps"}
_SWITCHES = frozenset(name for name, field in Plan.model_fields.items() if field.annotation is bool)


def read_plan(script: str, name: str, tables: Catalog, known: Plan | None = None) -> Plan:
    """The plan that the script was rendered from, as far as that can be read in it; the rest from the plan `known`.

    Raises `RefusedError` for a script that is not of this launcher.
    """
    try:
        header, (chosen, planned) = _header(script), _literals(script)
        values = {field: value for field, value in chosen.items() if field in Plan.model_fields}
        if known is None or known.repo != chosen["model"]:
            values["repo"] = chosen["model"]
        else:
            del values["model"]
        if "lora_targets" in values:
            values["lora_targets"] = tuple(values["lora_targets"].split(","))
        values |= {name: planned[name] for name in _OF_MODEL}
        values |= {"secrets": header["secrets"], "flavor": header["flavor"]}
        values["timeout_s"] = spec.seconds(str(header["timeout"]))
        base = known.model_dump() if known else _blank(name, str(header["flavor"]), tables)
        vram = base["vram"] | {"peak_gib": planned["peak_gib"]}
        parts = base["duration"].get("parts", {}) | {"compile": planned["compile_s"]}
        return Plan.model_validate(base | values | {"vram": vram, "duration": base["duration"] | {"parts": parts}})
    except (ValidationError, ValueError, TypeError, KeyError, AttributeError, RecursionError, MemoryError) as error:
        raise RefusedError(
            f"{name} is not a script of this launcher, or of another version: what was chosen can't be read in it.",
            "Read it; `hf jobs uv run` takes any script.",
        ) from error


def is_rendered(script: bytes, plan: Plan, tables: Catalog) -> bool:
    """Whether the script is exactly what this launcher makes of the plan."""
    try:
        return render(plan, tables.stack).encode() == script
    except (TypeError, ValueError):  # values that the launcher would never have chosen
        return False


def with_args(plan: Plan, args: Iterable[str]) -> Plan:
    """The plan as the script's arguments change it; `RequestError` for values that can't be meant."""
    values: dict[str, Any] = {}
    for name, value in flags(args):
        field = name.removeprefix("no_") if value is None else name
        if field not in Plan.model_fields:
            continue
        if value is None and field in _SWITCHES:
            values[field] = not name.startswith("no_")
        elif value is None:
            raise RequestError(f"--{name} of the script has no value.", "The record was changed, or is torn.")
        elif field == "gguf":
            values[field] = (*values.get(field, ()), value)
        elif field == "lora_targets":
            values[field] = tuple(value.split(","))
        else:
            values[field] = None if field == "merged_repo" and not value else value
            values |= {"repo": value} if field == "model" else {}
            values |= {_STOPS[field]: None} if field in _STOPS else {}
    try:
        return Plan.model_validate(plan.model_dump() | values)
    except ValidationError as error:
        wrong = ", ".join(f"--{item['loc'][0]} {item['msg']}" for item in error.errors())
        raise RequestError(f"the script's arguments can't be read: {wrong}.", "The record was changed.") from error


def flags(args: Iterable[str]) -> Iterator[tuple[str, str | None]]:
    """Each flag of the script's arguments, in Python's spelling, with its value or none."""
    words = list(args)
    for place, word in enumerate(words):
        if not word.startswith("--"):
            continue
        name, sign, value = word[2:].partition("=")
        following = words[place + 1] if place + 1 < len(words) else "--"
        yield name.replace("-", "_"), value if sign else None if following.startswith("--") else following


def without(args: Iterable[str], names: Iterable[str]) -> tuple[str, ...]:
    """The arguments without those flags and their values."""
    kept: list[str] = []
    dropped, drops = set(names), False
    for word in args:
        if word.startswith("--"):
            drops = word[2:].partition("=")[0].replace("-", "_") in dropped
        if not drops:
            kept.append(word)
    return tuple(kept)


def _header(script: str) -> dict[str, Any]:
    """The table that says where the script runs."""
    [found] = _HEADER.finditer(script)
    lines = (line[2:] if line.startswith("# ") else line[1:] for line in found["content"].splitlines(keepends=True))
    table: dict[str, Any] = tomllib.loads("".join(lines))["tool"]["hf-jobs"]
    return table


def _literals(script: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options and what was planned, as they stand at the script's top. It is read, never run."""
    chosen: dict[str, Any] = {}
    planned: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of another's code
        tree = ast.parse(script)
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == "Options":
            chosen |= {_name(field): _value(field) for field in node.body if isinstance(field, ast.AnnAssign)}
        elif isinstance(node, ast.AnnAssign) and _name(node) == "PLANNED":
            planned = _value(node)
    return chosen, planned


def _name(node: ast.AnnAssign) -> str:
    return node.target.id if isinstance(node.target, ast.Name) else ""


def _value(node: ast.AnnAssign) -> Any:
    return ast.literal_eval(node.value) if node.value else None


def _blank(name: str, flavor: str, tables: Catalog) -> dict[str, Any]:
    """What a script does not say of its plan: nothing that decides what it does."""
    machine = tables.flavors.get(flavor)
    return {
        "modality": "vision" if name == "sft_vlm.py" else "text", "engine": "unsloth", "packing": False,
        "lora_targets": (), "num_gpus": machine.num_gpus if machine else 1, "image": None, "namespace": None,
        "labels": {}, "env": {}, "attempts": 1,
        "vram": {"weights_gib": 0, "peak_gib": 0, "available_gib": 0, "fits": True},
        "duration": {"startup_s": 0, "train_s": 0, "total_s": 0},
        "cost": {"usd_per_hour": machine.usd_per_hour if machine else 0, "expected_usd": 0, "max_usd": 0},
        "reasons": {}, "warnings": (), "offers": (),
    }  # fmt: skip
