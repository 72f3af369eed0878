"""What a run's log says, as values: lines become events, events add up to progress, progress and stage to an outcome.

Pure. The scripts print `== PHASE`, `step 12/500 | loss 1.2345 | lr 1.90e-04 | 3210 tok/s | eta 312s`,
`eval step 0/500 | loss 3.2100`, `error: …` and at last `RESULT {json}`; every other line is only a line.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from launcher.backends._text import plain
from launcher.backends.base import Job

_STEP = re.compile(r"(eval )?step (\d{1,12})/(\d{1,12}|\?)(?: \| (.*))?", re.DOTALL)
# A progress bar that has not ended its line stands before ours: `  3/10 [00:01<00:02, 3.1it/s]step 3/10 | …`.
_AFTER_BAR = re.compile(r"^.{0,400}?\](?=(?:eval )?step \d|RESULT \{|== )", re.DOTALL)
_FIELD = re.compile(r"(?P<name>loss|lr|eta) (?P<value>\S+?)s?|(?P<speed>\S+) tok/s")
_SHORT = 4096


@dataclass(frozen=True, slots=True)
class Phase:
    """The run has come to another part of its work."""

    name: str


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step, of `total` where that is known; what the line does not say is none."""

    step: int
    total: int | None
    loss: float | None
    learning_rate: float | None = None
    tokens_per_s: float | None = None
    eta_s: float | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The loss on rows that are not trained on, at a step."""

    step: int
    total: int | None
    loss: float | None


@dataclass(frozen=True, slots=True)
class Failure:
    """The script, or uv before it, says why it gives up."""

    message: str


@dataclass(frozen=True, slots=True)
class Result:
    """What the script reports at its end."""

    values: dict[str, Any]


Event = Phase | Step | Evaluation | Failure | Result


def parse(line: str) -> Event | None:
    """The event of a line; none for every line that is not exactly of one of the forms above."""
    line = plain(line).strip()
    start = line[:_SHORT]
    if found := _AFTER_BAR.match(start):
        line, start = line[found.end() :], start[found.end() :]
    if start.startswith("RESULT {"):
        return _result(line[len("RESULT ") :])
    if len(line) > _SHORT:
        return Failure(line[len("error: ") : _SHORT]) if line.startswith("error: ") else None
    if line.startswith("== ") and line[3:].strip():
        return Phase(line[3:].strip())
    if line.startswith("error: ") and line[len("error: ") :].strip():
        return Failure(line[len("error: ") :].strip())
    match = _STEP.fullmatch(line)
    return _step(match) if match else None


def _step(match: re.Match[str]) -> Event:
    step, total = int(match[2]), None if match[3] == "?" else int(match[3])
    values: dict[str, float | None] = {}
    for part in (match[4] or "").split(" | "):
        if found := _FIELD.fullmatch(part.strip()):
            values[found["name"] or "speed"] = _number(found["value"] or found["speed"])
    if match[1]:
        return Evaluation(step, total, values.get("loss"))
    return Step(step, total, values.get("loss"), values.get("lr"), values.get("speed"), values.get("eta"))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _result(text: str) -> Result | None:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return Result(values) if isinstance(values, dict) else None


@dataclass(slots=True)
class Progress:
    """What the lines so far add up to. Losses are pairs of step and loss; `tail` holds the last lines."""

    phase: str | None = None
    step: int = 0
    total: int | None = None
    losses: list[tuple[int, float]] = field(default_factory=list)
    eval_losses: list[tuple[int, float]] = field(default_factory=list)
    learning_rate: float | None = None
    tokens_per_s: float | None = None
    eta_s: float | None = None
    result: dict[str, Any] | None = None
    error: str | None = None
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=20))
    _in_error: bool = False

    def add(self, line: str) -> Event | None:
        """Take one line in, and return its event."""
        event = parse(line)
        shown = plain(line)[:_SHORT]
        if shown.strip():
            self.tail.append(shown)
        if self._in_error and event is None and shown.startswith("  ") and shown.strip():
            self.error = f"{self.error} {shown.strip()}"  # an indented line goes on with the paragraph
        self._in_error = isinstance(event, Failure) or (self._in_error and event is None and shown.startswith("  "))
        match event:
            case Phase():
                self.phase = event.name
            case Step():
                self._advance(event)
            case Evaluation():
                self.total = event.total or self.total
                if event.loss is not None:
                    self.eval_losses.append((event.step, event.loss))
            case Failure():
                self.error = event.message
            case Result():
                self.result = event.values
        return event

    def _advance(self, event: Step) -> None:
        self.step, self.total = event.step, event.total or self.total
        if event.loss is not None:
            self.losses.append((event.step, event.loss))
        self.learning_rate = event.learning_rate
        self.tokens_per_s = event.tokens_per_s
        self.eta_s = event.eta_s


def watch(lines: Iterable[str], progress: Progress | None = None) -> Iterator[tuple[str, Progress]]:
    """Each line with the progress after it: one object, which grows; pass it in to hold it when the lines break off."""
    progress = Progress() if progress is None else progress
    for line in lines:
        progress.add(line)
        yield line, progress


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended, in the words and the exit status for whoever asked for it."""

    status: Literal["completed", "failed", "canceled", "running", "unknown"]
    exit_code: int
    message: str
    hint: str
    result: dict[str, Any] | None


def outcome(job: Job | None, progress: Progress) -> Outcome:
    """The end by the service's stage, which is the truth; the log only tells what went wrong, and the result."""
    if job is None:
        message = "how the Job ended can't be known now."
        return Outcome("unknown", 4, message, "`launch ps --all` shows it.", progress.result)
    logs, name = f"`launch logs {job.id}` shows the whole log.", f"Job {job.id}"
    if job.succeeded:
        return Outcome("completed", 0, f"{name} is done.", "", progress.result)
    if job.stage == "ERROR":
        return Outcome("failed", 1, f"{name} failed: {_cause(job, progress)}", logs, progress.result)
    if job.ended:
        return Outcome("canceled", 1, f"{name} was {job.stage.lower()}.", logs, progress.result)
    if job.stage in ("SCHEDULING", "RUNNING"):
        hint = f"`launch logs -f {job.id}` follows it, `launch cancel {job.id}` stops it."
        return Outcome("running", 4, f"{name} still runs (stage {job.stage}).", hint, progress.result)
    message = f"{name} is in stage '{job.stage}', which this version does not know."
    return Outcome("unknown", 4, message, f"Look at {job.url}.", progress.result)


def _cause(job: Job, progress: Progress) -> str:
    """The script's own words, else the service's with the last lines of the log."""
    if job.message and "timeout" in job.message.lower():
        return f"{job.message}."
    if progress.error:
        return progress.error
    last = "\n".join(f"  {line}" for line in list(progress.tail)[-10:])
    return (job.message or "it gave no reason") + (f". The last lines of its log:\n{last}" if last else ".")
