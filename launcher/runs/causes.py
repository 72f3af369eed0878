"""Why a run failed: one name out of a short table, from what the service and the log say."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

_EXIT = re.compile(r"exit(?:ed)?(?: with)?(?: (?:code|status))?:? *(-?\d{1,3})\b", re.IGNORECASE)
_SIGNALS = {"SIGKILL": -9, "SIGTERM": -15, "SIGSEGV": -11}
# How the script says that a failure was none yet.
_TRIED_AGAIN = re.compile(r"trying again in [\d.]+ s$")
_NEAR_TIMEOUT = 0.98
_VALUE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is known of a run that did not end well; `lines` are the log's last ones, times are seconds."""

    stage: str
    message: str = ""
    lines: tuple[str, ...] = ()
    phase: str = ""
    result: Mapping[str, Any] | None = None
    ran_s: float | None = None
    timeout_s: float | None = None

    @property
    def exit_code(self) -> int | None:
        """The command's exit status, below 0 for a signal; none where the service's sentence does not hold it."""
        for name, code in _SIGNALS.items():
            if name in self.message:
                return code
        found = _EXIT.search(self.message)
        return int(found[1]) if found else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """One row of `data/causes.toml`, where the keys are explained."""

    name: str
    says: str
    next: tuple[str, ...]
    stage: tuple[str, ...] = ()
    message: re.Pattern[str] | None = None
    result: str | None = None
    exit: tuple[int, ...] = ()
    log: re.Pattern[str] | None = None
    also: re.Pattern[str] | None = None

    def commands(self, values: Mapping[str, object]) -> list[str]:
        """What to try next, best first: what of `next` has all its values."""
        return [
            _VALUE.sub(lambda match: str(values[match[1]]), text)
            for text in self.next
            if all(values.get(name) for name in _VALUE.findall(text))
        ]


@cache
def table() -> dict[str, Cause]:
    """Every cause by its name, in the order in which they are tried."""
    return {name: _read(name, row) for name, row in tomllib.loads(_text()).items()}


def find(evidence: Evidence) -> Cause:
    """The cause of the failure: by the result, the service's words, the time, the exit status, then the log."""
    causes = table()
    for cause in causes.values():
        if cause.result and evidence.result and evidence.result.get(cause.result):
            return cause
        if cause.message and cause.message.search(evidence.message):
            return cause
    if evidence.stage in causes["canceled"].stage:
        return causes["canceled"]
    if _ran_out_of_time(evidence):
        return causes["timeout"]
    for cause in causes.values():
        if evidence.exit_code in cause.exit:
            return cause
    return _by_log(causes.values(), evidence) or causes["unknown"]


def _ran_out_of_time(evidence: Evidence) -> bool:
    """A Job that is killed at its timeout may say nothing at all; one that ends by itself has another exit status."""
    if not evidence.ran_s or not evidence.timeout_s or evidence.exit_code not in (None, 137, 143, -9, -15):
        return False
    return evidence.ran_s >= evidence.timeout_s * _NEAR_TIMEOUT


def _by_log(causes: Iterable[Cause], evidence: Evidence) -> Cause | None:
    around = (*evidence.lines, evidence.phase)
    fitting = [
        cause for cause in causes if cause.log and (not cause.also or any(cause.also.search(line) for line in around))
    ]
    for line in reversed([line for line in evidence.lines if not _TRIED_AGAIN.search(line)]):
        for cause in fitting:
            if cause.log and cause.log.search(line):
                return cause
    return None


def _read(name: str, row: dict[str, Any]) -> Cause:
    row = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
    patterns: dict[str, Any] = {
        key: re.compile(row[key], re.IGNORECASE) for key in ("message", "log", "also") if key in row
    }
    return Cause(**{"name": name, **row, **patterns})


def _text() -> str:
    return (files("launcher") / "data" / "causes.toml").read_text(encoding="utf-8")
