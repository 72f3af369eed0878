"""`run.json`, the record that lies beside a trained model: read and checked, since anybody may have written it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from launcher.catalog import Catalog
from launcher.errors import RefusedError, RequestError, from_validation
from launcher.jobs.events import sound
from launcher.plan.record import Plan
from launcher.render import render
from launcher.runs import arguments
from launcher.text import plain

LARGEST = 4_000_000
"""Bytes of a record or a script that are read; a real one is a twentieth of that."""


_STOPS = {"max_steps": "num_train_epochs", "num_train_epochs": "max_steps"}


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Script(_Value):
    """The script's name and the SHA-256 of its bytes."""

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]{0,95}\.py$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Revisions(_Value):
    """The commits that were read, where they are known."""

    model: str | None = None
    dataset: str | None = None


class Record(_Value):
    """One run as its script recorded it; `plan` is none where the script was run by hand."""

    version: Literal[1]
    launcher: str | None = None
    plan: Plan | None = None
    script: Script
    args: tuple[str, ...] = ()
    inputs: dict[str, str] = {}
    """The SHA-256 of the dataset's file, by the path that the user gave."""
    env: tuple[str, ...] = ()
    """Names only of the variables that were set for the run."""
    files: dict[str, str] = {}
    """The SHA-256 of each file of the model that it wrote beside this record."""
    flavor: str | None = None
    revisions: Revisions = Revisions()
    packages: dict[str, str | None] = {}
    python: str | None = None
    platform: str | None = None
    device: str | None = None
    result: dict[str, Any] = {}

    @field_validator("result")
    @classmethod
    def _sound(cls, value: dict[str, Any]) -> Any:
        return sound(value)


@dataclass(frozen=True, slots=True)
class Kept:
    """A record and the script beside it; `where` and `page` say for people where they are, and where to read it."""

    record: Record
    script: bytes
    where: str
    page: str
    repo: str | None = None
    """The repo of the Hub that it lies in."""

    @property
    def text(self) -> str:
        """The script as text."""
        return self.script.decode()


def read(path: Path) -> Kept:
    """The record in a file, with the script beside it; `RequestError` for what can't be read."""
    record = parse(_bytes(path, "Give the path of a run.json."), str(path))
    script = path.with_name(record.script.name)
    return pair(record, _bytes(script, "The script has to lie beside its run.json."), str(path), str(script))


def parse(content: bytes, where: str) -> Record:
    """The record in these bytes; `RequestError` for anything else, and for text that a terminal would act on."""
    try:
        found = json.loads(content)
        _require_this_version(found, where)
        record = Record.model_validate(found)
    except (ValidationError, ValueError, RecursionError) as error:
        raise RequestError(
            f"{where} is not the record of a run{_reason(error)}.", "launch writes one, run.json, beside each model."
        ) from error
    require_seen(_shown(record), where)
    return record


def _require_this_version(found: object, where: str) -> None:
    """Raise for a plan in the form that version 0.1 wrote."""
    plan = found.get("plan") if isinstance(found, dict) else None
    if isinstance(plan, dict) and "asked" not in plan:
        raise RequestError(
            f"the plan in {where} can't be read: another version of launch wrote it.",
            "Start the run anew with its options; `hf jobs uv run` takes its script.",
        )


def require_seen(value: object, where: str) -> None:
    """Raise `RequestError` where a text in it, keys too, is one that a terminal would act on."""
    if any(plain(text) != text for text in _texts(value)):
        raise RequestError(
            f"{where} holds control characters, which no record of this launcher does.", "Look at it in an editor."
        )


def pair(record: Record, script: bytes, where: str, page: str, repo: str | None = None) -> Kept:
    """The record with its script; `RefusedError` where it is not the script that was recorded."""
    digest = hashlib.sha256(script).hexdigest()
    if digest != record.script.sha256:
        raise RefusedError(
            f"{where}: {record.script.name} is not the script that ran: its SHA-256 is {digest}, and the record says "
            f"{record.script.sha256}.",
            "Restore the one that ran, from the history of the repo or the folder.",
        )
    try:
        script.decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"{where}: {record.script.name} is not UTF-8.", "It is not a script of launch.") from error
    return Kept(record, script, where, page, repo)


def plan_of(kept: Kept) -> Plan:
    """The plan that the script was rendered from, on the machine that the run had; without what its arguments change.

    What the record says of those changes is nobody's word: they are in the arguments. Raises `RequestError` for a
    script that was run by hand, without a plan.
    """
    recorded = kept.record.plan
    if recorded is None:
        raise RequestError(
            f"{kept.where} has no plan: {kept.record.script.name} was run by hand, not by launch.",
            "`hf jobs uv run` takes any script, with its arguments behind it.",
        )
    try:
        plan = Plan.model_validate(recorded.as_rendered.model_dump(mode="json", warnings=False))
    except (ValueError, TypeError) as error:
        raise RequestError(
            f"the plan in {kept.where} can't be read{_reason(error)}.", "The record was changed, or is torn."
        ) from error
    return plan.changed({"flavor": recorded.decisions.flavor.value})


def is_rendered(script: bytes, plan: Plan, tables: Catalog) -> bool:
    """Whether the script is exactly what this launcher makes of the plan."""
    try:
        return render(plan.as_rendered, tables.stack).encode() == script
    except (TypeError, ValueError):  # values that the launcher would never have chosen
        return False


def with_args(plan: Plan, args: Iterable[str]) -> Plan:
    """The plan as the script's arguments change it; `RequestError` for what the script would refuse."""
    values_of = plan.values | dict(plan.facts)
    values: dict[str, Any] = {}
    for name, value in arguments.read(plan, args).items():
        if name not in values_of or name == "timeout_s":  # the Job's own limit is what counts
            continue
        if name == "lora_targets":
            values[name] = tuple(str(value).split(","))
        else:
            values[name] = None if name == "merged_repo" and not value else value
            values |= {"repo": value} if name == "model" else {}
            values |= {_STOPS[name]: None} if name in _STOPS else {}
    try:
        return plan.changed(values)
    except ValidationError as error:
        said = from_validation(error)
        raise RequestError(
            f"the script's arguments can't be read: {said.message}", "The record was changed."
        ) from error


def recorded(files: Mapping[str, str], name: str) -> str | None:
    """The hash of a data file, which is recorded under the path that the user gave or the whole one."""
    return next((files[item] for item in (name, str(Path(name).expanduser().resolve())) if item in files), None)


def shown(plan: Plan) -> dict[str, Any]:
    """What of a plan may be shown: of variables the names."""
    return plan.model_dump(mode="json") | {"env": list(plan.env)}


def _bytes(path: Path, hint: str) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise RequestError(f"{path}: {error.strerror or error}.", hint) from error
    if len(content) > LARGEST:
        raise RequestError(f"{path} is larger than {LARGEST // 10**6} MB.", hint)
    return content


def _reason(error: Exception) -> str:
    """What is wrong, without the values."""
    if not isinstance(error, ValidationError):
        return ": it is not JSON"
    item = error.errors()[0]
    place = ".".join(str(part) for part in item["loc"])
    return plain(f": {place}: {item['msg'].removeprefix('Value error, ')}"[:200])


def _shown(record: Record) -> list[object]:
    """What of the record may be shown; what a model answered is cleaned where it is."""
    plan = shown(record.plan) if record.plan else None
    values = record.model_dump(
        include={"launcher", "args", "env", "flavor", "packages", "python", "platform", "device"}
    )
    return [plan, values, record.revisions.model, record.revisions.dataset]


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            yield from _texts(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _texts(item)
