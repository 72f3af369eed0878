"""How a run ended: by the service's stage, which is the truth; the log only tells why, and the result."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from launcher.jobs.base import WAITING, Job, Left
from launcher.jobs.events import Progress

_SHOWN = 10
_EXIT = re.compile(r"exit(?:ed)?(?: with)?(?: (?:code|status))?:? *(-?\d{1,3})\b", re.IGNORECASE)
_SIGNALS = {"SIGKILL": -9, "SIGTERM": -15, "SIGSEGV": -11}
# How the script says that a failure was none yet.
_TRIED_AGAIN = re.compile(r"trying again in [\d.]+ s$")
# An error of the script that quotes a row, a column or a template: what is quoted is no cause.
_QUOTES = re.compile(r"error: (rows? \d|no usable column|the dataset .{1,200} names )")
_NEAR_TIMEOUT = 0.98
_VALUE = re.compile(r"\{(\w+)\}")

Status = Literal["completed", "stopped", "failed", "canceled", "running", "unknown"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended, in the words and the exit status for whoever asked for it.

    `cause` is a name of `causes()` for a run that did not end well; `next` are the commands to try, best first;
    `job` is the run as it was then, where it was followed.
    """

    status: Status
    exit_code: int
    message: str
    hint: str
    result: dict[str, Any] | None
    cause: str | None = None
    next: tuple[str, ...] = ()
    job: Job | None = None


def outcome(
    job: Job | None,
    progress: Progress,
    *,
    timeout_s: float | None = None,
    values: Mapping[str, object] | None = None,
    left: Left | None = None,
) -> Outcome:
    """The end of a run. `values` fill the commands of the causes' table; without them they are fewer."""
    if job is None:
        message = "how the Job ended can't be known now."
        return Outcome("unknown", 4, message, "`launch ps --all` shows it.", progress.result)
    name = f"Job {job.id}"
    filled = {"id": job.address, "again": f"launch resume {job.address}", **(values or {})}
    if job.succeeded:
        return _succeeded(job, progress, filled, left or Left())
    if job.ended:
        return _failed(job, progress, timeout_s, filled, left or Left())
    if job.live:
        hint = f"`launch logs -f {job.address}` follows it, `launch cancel {job.address}` stops it."
        does = "waits for its machine, and nothing is billed" if job.stage == WAITING else "still runs"
        return Outcome("running", 4, f"{name} {does} (stage {job.stage}).", hint, progress.result)
    message = f"{name} is in stage '{job.stage}', which this version does not know: it may go on, and cost."
    return Outcome("unknown", 4, message, f"Look at {job.url}.", progress.result)


def _succeeded(job: Job, progress: Progress, values: Mapping[str, object], left: Left) -> Outcome:
    name, result = f"Job {job.id}", progress.result
    if result is None:
        found = left.model or left.problem.rstrip(".") or "no model of it was found"
        hint = f"`launch logs {job.address}` shows what there is of its log."
        return Outcome("completed", 0, f"{name} is done; its log has no RESULT line, and {found}.", hint, None)
    stopped = result.get("stopped")
    if not stopped:
        return Outcome("completed", 0, f"{name} is done.", "", result)
    reason = "before its deadline" if stopped == "deadline" else "because it was asked to"
    step = result.get("steps", progress.step)
    of = f" of {progress.total}" if progress.total else ""
    kept = "What it learned is saved." if step else "Nothing was learned yet."
    message = f"{name} stopped {reason}, at step {step}{of}. {kept}"
    command, what = f"launch resume {job.address}", "goes on"
    if _made_no_step(result) and values.get("longer"):
        command, what = f"{command} --timeout {values['longer']}", "gives it time for one: the same would not"
        message += " This Job made no step." if step else ""
    return Outcome("stopped", 0, message, f"`{command}` {what}.", result, None, (command,))


def _made_no_step(result: Mapping[str, Any]) -> bool:
    """Whether a run that its deadline stopped learned nothing in all its time."""
    return result.get("stopped") == "deadline" and result.get("steps") in (0, result.get("resumed_from"))


def _failed(job: Job, progress: Progress, timeout_s: float | None, values: Mapping[str, object], left: Left) -> Outcome:
    cause = cause_of(_evidence(job, progress, timeout_s))
    commands = tuple(cause.commands(values))
    canceled = cause.name == "canceled"
    message = f"Job {job.id} {'was ' + job.stage.lower() if canceled else 'failed: ' + cause.says}."
    said = "" if canceled else _words(job, progress, cause.name)
    message += f" It says: {said}" if said else ""
    kept = _kept(progress, left)
    message += f"\n{kept}" if kept else ""
    if cause.name == "unknown" and not progress.error:
        last = "\n".join(f"  {line}" for line in list(progress.tail)[-_SHOWN:])
        message += f"\nThe last lines of its log:\n{last}" if last else ""
    hint = f"Next: {commands[0]}" if commands else ""
    hint += f"\n`launch logs {job.address}` shows the whole log." if f"launch logs {job.address}" not in hint else ""
    return Outcome("canceled" if canceled else "failed", 1, message, hint, progress.result, cause.name, commands)


def _evidence(job: Job, progress: Progress, timeout_s: float | None) -> Evidence:
    began, ended = job.started_at, job.finished_at
    return Evidence(
        stage=job.stage,
        message=job.message or "",
        lines=progress.last_words,
        phase=progress.phase or "",
        result=progress.result,
        ran_s=(ended - began).total_seconds() if began and ended else None,
        timeout_s=timeout_s,
    )


def _words(job: Job, progress: Progress, cause: str) -> str:
    """The script's own words, else the line of the log that the cause was told by, else the service's."""
    if progress.error and cause != "timeout":
        return progress.error
    pattern = causes()[cause].log
    lines = reversed(progress.last_words) if pattern and cause != "timeout" else ()
    told = next((line.strip() for line in lines if pattern and pattern.search(line)), "")
    return told[:300] or (f"{job.message}." if job.message else "")


def _kept(progress: Progress, left: Left) -> str:
    """What was not lost."""
    if progress.result is not None:
        url, step = progress.result.get("url") or left.model, progress.result.get("steps", progress.step)
        of = f" of {progress.total}" if progress.total else ""
        end = f"stopped at step {step}{of}" if progress.result.get("stopped") else "come to its end"
        return f"It had {end} before that{f': {url}' if url else ''}."
    if left.model:
        return f"What it had learned was saved before that: {left.model}."
    step = max(left.checkpoint or 0, progress.checkpoint or 0)
    return f"The checkpoint of step {step} is kept." if step else ""


# ---- Why it failed ---------------------------------------------------------------------------------------------------


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
def causes() -> dict[str, Cause]:
    """Every cause by its name, in the order in which they are tried."""
    return {name: _read(name, row) for name, row in tomllib.loads(_text()).items()}


def cause_of(evidence: Evidence) -> Cause:
    """The cause of the failure: by the result, the service's words, the time, the exit status, then the log."""
    known = causes()
    for cause in known.values():
        if cause.result and evidence.result and evidence.result.get(cause.result):
            return cause
        if cause.message and cause.message.search(evidence.message):
            return cause
    if evidence.stage in known["canceled"].stage:
        return known["canceled"]
    if _ran_out_of_time(evidence):
        return known["timeout"]
    for cause in known.values():
        if evidence.exit_code in cause.exit:
            return cause
    return _by_log(known.values(), evidence) or known["unknown"]


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
        if _QUOTES.match(line):
            return next(cause for cause in fitting if cause.name == "input")
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
