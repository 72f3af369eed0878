"""What the lines of a run's log add up to."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from launcher.jobs.events import (
    SHORT,
    Checkpoint,
    Evaluation,
    Event,
    Failure,
    Phase,
    Result,
    Resumed,
    SmallerBatch,
    Step,
    Stopping,
    parse,
)
from launcher.text import plain

KEPT = 1000
"""Losses that are kept of each kind."""

TAIL = 200
"""Last lines that are kept: a traceback of the training stack is about half as long."""


@dataclass(slots=True)
class Progress:
    """What the lines so far add up to. Losses are pairs of step and loss, the last ones; `tail` holds the last lines.

    Its size does not grow with the log.
    """

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

    def add(self, line: str) -> Event | None:
        """Take one line in, and return its event."""
        whole = plain(line)
        event, shown = parse(whole), whole[:SHORT]
        if shown.strip():
            self.tail.append(shown)
        if self._in_error and event is None and shown.startswith("  ") and shown.strip():
            # An indented line goes on with the paragraph.
            self.error = f"{self.error} {shown.strip()}"[:SHORT]
        self._in_error = isinstance(event, Failure) or (self._in_error and event is None and shown.startswith("  "))
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
        return event

    def _advance(self, event: Step) -> None:
        self.step, self.total = event.step, event.total or self.total
        if event.loss is not None:
            self.losses.append((event.step, event.loss))
        self.learning_rate = event.learning_rate
        self.tokens_per_s = event.tokens_per_s
        self.eta_s = event.eta_s


def summarize(lines: Iterable[str]) -> Progress:
    """What all these lines add up to."""
    progress = Progress()
    for line in lines:
        progress.add(line)
    return progress


def watch(lines: Iterable[str], progress: Progress) -> Iterator[tuple[str, Event | None]]:
    """Each line with its event, once `progress` has taken it in: hold on to that for when the lines break off."""
    for line in lines:
        yield line, progress.add(line)
