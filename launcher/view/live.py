"""The picture of a run while it goes on: its lines, and on a terminal a bar with step, loss, time left and cost."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from launcher.jobs.base import Job
from launcher.jobs.events import Checkpoint, Line, Phase, Result, Step
from launcher.jobs.events import Progress as Seen
from launcher.view import tables


class _State(ProgressColumn):
    """Words that are asked for anew at every refresh: the cost grows while no line comes."""

    def __init__(self, words: Callable[[], str]) -> None:
        super().__init__()
        self._words = words

    def render(self, task: Task) -> Text:
        return Text(self._words())


class Live:
    """Shows each line as it comes; `terse` leaves out what is neither a phase nor a loss, `quiet` leaves out all.

    The bar is drawn on a terminal only. `usd_per_hour` 0 shows no cost.
    """

    def __init__(self, console: Console, job: Job, usd_per_hour: float, *, quiet: bool, terse: bool) -> None:
        self._console, self._job, self._rate = console, job, usd_per_hour
        self._quiet, self._terse = quiet, terse
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            _State(self._state),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=None)
        self._seen, self._next_s = Seen(), 0.0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, line: Line) -> None:
        """Take in one line."""
        if self._quiet:
            return
        event, seen = line.event, line.progress
        if isinstance(event, Phase):
            self._console.print(Text(line.text, style="bold cyan"))
        elif isinstance(event, Step | Checkpoint) and not self._bar.disable:
            pass  # the bar says it
        elif not isinstance(event, Result) and (event is not None or not self._terse):
            self._console.print(Text(line.text), soft_wrap=True)
        self._seen = seen
        self._bar.update(
            self._task, description=seen.phase or "starting", completed=seen.step, total=seen.total or None
        )

    def see(self, job: Job) -> None:
        """Take in how the Job stands; where nothing is drawn, that it waits is said now and then."""
        waits = job.started_at is None and job.live
        waited_s = self._waited_s(job)
        self._job = job
        if self._quiet or job.backend != "hub" or (waits and waited_s < self._next_s):
            return
        if waits:
            self._next_s = max(2 * waited_s, 60.0)
            if self._bar.disable:
                self._console.print(f"queued for {tables.minutes(waited_s)}, nothing billed", style="dim")
        elif job.started_at and self._next_s:
            self._console.print(f"started after {tables.minutes(waited_s)} in the queue", style="dim")

    @staticmethod
    def _waited_s(job: Job) -> float:
        return max(((job.started_at or datetime.now(UTC)) - job.created_at).total_seconds(), 0)

    def _state(self) -> str:
        seen, words = self._seen, []
        if seen.total:
            words.append(f"step {seen.step}/{seen.total}")
        if seen.losses:
            words.append(f"loss {seen.losses[-1][1]:.3f}")
        if seen.eta_s is not None:
            words.append(f"{tables.minutes(seen.eta_s)} left")
        if seen.checkpoint is not None:
            words.append(f"kept at {seen.checkpoint}")
        if self._rate and self._job.started_at:
            running = max((datetime.now(UTC) - self._job.started_at).total_seconds(), 0)
            words.append(f"${self._rate * running / 3600:.2f} so far")
        elif self._rate:
            words.append(f"queued for {tables.minutes(self._waited_s(self._job))}, nothing billed")
        return " · ".join(words)
