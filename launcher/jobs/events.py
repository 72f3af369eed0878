"""What the lines of a run's log say, as events, and what those add up to.

The scripts print `== PHASE`, `step 12/500 | loss 1.2345 | lr 1.90e-04 | 3210 tok/s | eta 312s`,
`eval step 0/500 | loss 3.2100`, `checkpoint step 12 | 1.2s | 35 MB`, `resumed from step 12`,
`deadline in 60s: stopping`, `out of memory: batch 4 -> 2`, `error: …` and at last `RESULT {json}`; every other line is
only a line.

A run that was given a mark ends each of these lines with ` #MARK`, and then no other line is an event: a row of a
dataset may look like any of them, and can't know the mark.
"""

from __future__ import annotations

import json
import math
import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from launcher.text import clean, held, plain

_STEP = re.compile(r"(eval )?step (\d{1,12})/(\d{1,12}|\?)(?: \| (.*))?", re.DOTALL)
# A progress bar that has not ended its line stands before ours: `  3/10 [00:01<00:02, 3.1it/s]step 3/10 | …`.
_AFTER_BAR = re.compile(r"^.{0,400}?\](?=(?:eval |checkpoint )?step \d|RESULT \{|== )", re.DOTALL)
_CHECKPOINT = re.compile(r"checkpoint step (\d{1,12})(?: \| .*)?", re.DOTALL)
_RESUMED = re.compile(r"resumed from step (\d{1,12})\b.*", re.DOTALL)
_STOPPING = re.compile(r"deadline in (-?[\d.]{1,12}) ?s: stopping\b.*", re.DOTALL)
_SMALLER = re.compile(r"out of memory: batch (\d{1,9}) -> (\d{1,9})\b.*", re.DOTALL)
_FIELD = re.compile(r"(?P<name>loss|lr|eta) (?P<value>\S+?)s?|(?P<speed>\S+) tok/s")
# What of a RESULT is read, by its type.
_NUMBERS = frozenset({
    "steps", "resumed_from", "eval_loss", "eval_loss_before", "tokens_per_second", "train_s", "peak_gib",
    "predicted_peak_gib", "largest_batch_tokens", "tokens_seen", "step_s", "card_gib", "gib",
})  # fmt: skip
_TEXTS = frozenset({
    "url", "output_dir", "device", "kind", "name", "error", "path", "repo", "checked", "prompt", "expected", "before",
    "after",
})  # fmt: skip
_LISTS = frozenset({"samples", "exports"})
_LARGEST = 1e15
SHORT = 4096
"""Characters beyond which a line is no event, but for an error (cut) and the result."""

KEPT = 1000
"""Losses that are kept of each kind."""

TAIL = 200
"""Last lines that are kept: a traceback of the training stack is about half as long."""


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
class Checkpoint:
    """What was learned until this step is kept, and outlives the container."""

    step: int


@dataclass(frozen=True, slots=True)
class Resumed:
    """The run goes on from the checkpoint of this step."""

    step: int


@dataclass(frozen=True, slots=True)
class Stopping:
    """The run stops before its deadline, this many seconds away, cuts it off."""

    left_s: float


@dataclass(frozen=True, slots=True)
class SmallerBatch:
    """The GPU's memory ran out, and the run goes on with fewer rows at once."""

    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Failure:
    """The script, or uv before it, says why it gives up."""

    message: str


@dataclass(frozen=True, slots=True)
class Result:
    """What the script reports at its end."""

    values: dict[str, Any]


Event = Phase | Step | Evaluation | Checkpoint | Resumed | Stopping | SmallerBatch | Failure | Result


def unmarked(line: str, mark: str | None) -> tuple[str, bool]:
    """The line as a terminal would leave it, without its mark, and whether the run says it for the launcher."""
    line = plain(line)
    if mark is None:
        return line, True
    text = line.rstrip()
    return (text.removesuffix(f" #{mark}"), True) if text.endswith(f" #{mark}") else (line, False)


def parse(line: str) -> Event | None:
    """The event of a line, its mark cut off; none for every line that is not exactly of one of the forms above."""
    line = plain(line).strip()
    start = line[:SHORT]
    if found := _AFTER_BAR.match(start):
        line, start = line[found.end() :], start[found.end() :]
    if start.startswith("RESULT {"):
        return _result(line[len("RESULT ") :])
    if len(line) > SHORT:
        return Failure(line[len("error: ") : SHORT]) if line.startswith("error: ") else None
    if line.startswith("== ") and line[3:].strip():
        return Phase(line[3:].strip())
    if line.startswith("error: ") and line[len("error: ") :].strip():
        return Failure(line[len("error: ") :].strip())
    if match := _STEP.fullmatch(line):
        return _step(match)
    return _notice(line)


def _notice(line: str) -> Event | None:
    if match := _CHECKPOINT.fullmatch(line):
        return Checkpoint(int(match[1]))
    if match := _RESUMED.fullmatch(line):
        return Resumed(int(match[1]))
    if match := _SMALLER.fullmatch(line):
        return SmallerBatch(int(match[1]), int(match[2]))
    match = _STOPPING.fullmatch(line)
    return Stopping(_number(match[1]) or 0.0) if match else None


def _step(match: re.Match[str]) -> Event | None:
    step, total = int(match[2]), None if match[3] == "?" else int(match[3])
    if total is not None and step > total:
        return None
    values: dict[str, float | None] = {}
    for part in (match[4] or "").split(" | "):
        if found := _FIELD.fullmatch(part.strip()):
            values[found["name"] or "speed"] = _number(found["value"] or found["speed"])
    if match[1]:
        return Evaluation(step, total, values.get("loss"))
    eta_s = values.get("eta")
    if eta_s is not None and not abs(eta_s) < _LARGEST:
        eta_s = None
    return Step(step, total, values.get("loss"), values.get("lr"), values.get("speed"), eta_s)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _result(text: str) -> Result | None:
    try:
        values = json.loads(text)
        return Result(sound(clean(values, held()))) if isinstance(values, dict) else None
    except (ValueError, RecursionError):
        return None


def sound(value: Any) -> Any:
    """A RESULT, or a part of it, without what is of another type than its name has; a number is finite."""
    if isinstance(value, dict):
        return {key: sound(item) for key, item in value.items() if _fits(key, item)}
    if isinstance(value, list):
        return [sound(item) for item in value]
    return value if not isinstance(value, float) or math.isfinite(value) else None


def _fits(name: str, value: Any) -> bool:
    if value is None:
        return True
    if name in _LISTS:
        return isinstance(value, list) and all(isinstance(item, dict) for item in value)
    if name in _NUMBERS:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST
    return name not in _TEXTS or isinstance(value, str)


@dataclass(slots=True)
class Progress:
    """What the lines so far add up to. Losses are pairs of step and loss, the last ones; `tail` holds the last lines.

    `mark` is how the lines end that count; where the run has none, all do. Its size does not grow with the log.
    """

    mark: str | None = None
    phase: str | None = None
    step: int = 0
    total: int | None = None
    losses: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=KEPT))
    eval_losses: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=KEPT))
    learning_rate: float | None = None
    tokens_per_s: float | None = None
    eta_s: float | None = None
    checkpoint: int | None = None
    resumed_from: int | None = None
    stopping: bool = False
    batch_size: int | None = None
    result: dict[str, Any] | None = None
    error: str | None = None
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL))
    _in_error: bool = False
    _since: int = 0

    def add(self, line: str) -> Line:
        """Take one line in, and return it with its event."""
        whole, said = unmarked(line, self.mark)
        event, shown = parse(whole) if said else None, whole[:SHORT]
        if isinstance(event, Checkpoint | Resumed) and self.total is not None and event.step > self.total:
            event = None
        if shown.strip():
            # Set in where it only looks like an event: nobody who reads the last lines may take it for one.
            self.tail.append(shown if said or parse(whole) is None else f"  {shown.strip()}")
            self._since += 1
        if self.mark and event and not isinstance(event, Failure):
            self._since = 0
        # An indented line goes on with the paragraph; where there is a mark, that is all in the one line.
        goes_on = self._in_error and self.mark is None and event is None and shown.startswith("  ")
        if goes_on and shown.strip():
            self.error = f"{self.error} {shown.strip()}"[:SHORT]
        self._in_error = isinstance(event, Failure) or goes_on
        match event:
            case Phase():
                self.phase = event.name
                self.result = self.error = None  # they end an attempt, and this is another one
            case Step():
                self._advance(event)
            case Evaluation():
                self.total = event.total or self.total
                if event.loss is not None:
                    self.eval_losses.append((event.step, event.loss))
            case Checkpoint():
                self.checkpoint = event.step
            case Resumed():
                self.checkpoint = self.resumed_from = event.step
            case Stopping():
                self.stopping = True
            case SmallerBatch():
                self.batch_size = event.after
            case Failure():
                self.error = event.message
            case Result():
                self.result = event.values
        return Line(whole, event, self)

    @property
    def last_words(self) -> tuple[str, ...]:
        """The lines that may tell why it failed: what ends a run comes behind the last that it said for the launcher,
        and rows of its dataset were shown before.
        """
        return tuple(self.tail)[-self._since :] if self._since else ()

    def _advance(self, event: Step) -> None:
        self.step, self.total = event.step, event.total or self.total
        if event.loss is not None:
            self.losses.append((event.step, event.loss))
        self.learning_rate = event.learning_rate
        self.tokens_per_s = event.tokens_per_s
        self.eta_s = event.eta_s


def summarize(lines: Iterable[str], mark: str | None = None) -> Progress:
    """What all these lines add up to, of a run with that mark."""
    progress = Progress(mark)
    for line in lines:
        progress.add(line)
    return progress


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a log without its mark, its event, and what all until now add up to, which grows with the next ones."""

    text: str
    event: Event | None
    progress: Progress


def watch(lines: Iterable[str], mark: str | None = None) -> Iterator[Line]:
    """Each line of a run with that mark once it has been taken in."""
    progress = Progress(mark)
    for line in lines:
        yield progress.add(line)
