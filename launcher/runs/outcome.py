"""How a run ended: by the service's stage, which is the truth; the log only tells why, and the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from launcher.jobs.base import Job, Left
from launcher.jobs.events import Progress
from launcher.runs import causes
from launcher.runs.causes import Evidence

_SHOWN = 10

Status = Literal["completed", "stopped", "failed", "canceled", "running", "unknown"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended, in the words and the exit status for whoever asked for it.

    `cause` is a name of `causes.table()` for a run that did not end well; `next` are the commands to try, best first;
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
    filled = {"id": job.id, "again": f"launch resume {job.id}", **(values or {})}
    if job.succeeded:
        return _succeeded(job, progress, filled, left or Left())
    if job.ended:
        return _failed(job, progress, timeout_s, filled, left or Left())
    if job.stage in ("SCHEDULING", "RUNNING"):
        hint = f"`launch logs -f {job.id}` follows it, `launch cancel {job.id}` stops it."
        return Outcome("running", 4, f"{name} still runs (stage {job.stage}).", hint, progress.result)
    message = f"{name} is in stage '{job.stage}', which this version does not know."
    return Outcome("unknown", 4, message, f"Look at {job.url}.", progress.result)


def _succeeded(job: Job, progress: Progress, values: Mapping[str, object], left: Left) -> Outcome:
    name, result = f"Job {job.id}", progress.result
    if result is None:
        found = left.model or left.problem.rstrip(".") or "no model of it was found"
        hint = f"`launch logs {job.id}` shows what there is of its log."
        return Outcome("completed", 0, f"{name} is done; its log has no RESULT line, and {found}.", hint, None)
    stopped = result.get("stopped")
    if not stopped:
        return Outcome("completed", 0, f"{name} is done.", "", result)
    reason = "before its deadline" if stopped == "deadline" else "because it was asked to"
    step = result.get("steps", progress.step)
    of = f" of {progress.total}" if progress.total else ""
    kept = "What it learned is saved." if step else "Nothing was learned yet."
    message = f"{name} stopped {reason}, at step {step}{of}. {kept}"
    command, what = f"launch resume {job.id}", "goes on"
    if _made_no_step(result) and values.get("longer"):
        command, what = f"{command} --timeout {values['longer']}", "gives it time for one: the same would not"
        message += " This Job made no step." if step else ""
    return Outcome("stopped", 0, message, f"`{command}` {what}.", result, None, (command,))


def _made_no_step(result: Mapping[str, Any]) -> bool:
    """Whether a run that its deadline stopped learned nothing in all its time."""
    return result.get("stopped") == "deadline" and result.get("steps") in (0, result.get("resumed_from"))


def _failed(job: Job, progress: Progress, timeout_s: float | None, values: Mapping[str, object], left: Left) -> Outcome:
    cause = causes.find(_evidence(job, progress, timeout_s))
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
    hint += f"\n`launch logs {job.id}` shows the whole log." if f"launch logs {job.id}" not in hint else ""
    return Outcome("canceled" if canceled else "failed", 1, message, hint, progress.result, cause.name, commands)


def _evidence(job: Job, progress: Progress, timeout_s: float | None) -> Evidence:
    began, ended = job.started_at, job.finished_at
    return Evidence(
        stage=job.stage,
        message=job.message or "",
        lines=tuple(progress.tail),
        phase=progress.phase or "",
        result=progress.result,
        ran_s=(ended - began).total_seconds() if began and ended else None,
        timeout_s=timeout_s,
    )


def _words(job: Job, progress: Progress, cause: str) -> str:
    """The script's own words, else the line of the log that the cause was told by, else the service's."""
    if progress.error and cause != "timeout":
        return progress.error
    pattern = causes.table()[cause].log
    lines = reversed(progress.tail) if pattern and cause != "timeout" else ()
    told = next((line.strip() for line in lines if pattern and pattern.search(line)), "")
    return told[:300] or (f"{job.message}." if job.message else "")


def _kept(progress: Progress, left: Left) -> str:
    """What was not lost."""
    if progress.result is not None:
        url = progress.result.get("url") or left.model
        return f"It had come to its end before that: {url}." if url else "It had come to its end before that."
    if left.model:
        return f"It had come to its end before that: {left.model}."
    step = max(left.checkpoint or 0, progress.checkpoint or 0)
    return f"The checkpoint of step {step} is kept." if step else ""
