"""A Job: what was asked for, how far it is, and its log. With `Hub(run=False)` a test plays the machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tests.emulator.state import now

TERMINAL = ("COMPLETED", "ERROR", "CANCELED", "DELETED")
DEFAULT_TIMEOUT_S = 30 * 60


@dataclass
class Job:
    id: str
    namespace: str
    owner: dict[str, str]
    spec: dict[str, Any]
    """As submitted, without its secrets."""
    secrets: dict[str, str] = field(default_factory=dict, repr=False)
    initiator: dict[str, str] = field(default_factory=dict)
    stage: str = "SCHEDULING"
    message: str | None = None
    created_at: str = field(default_factory=now)
    started_at: str | None = None
    finished_at: str | None = None
    attempts_made: int = 0
    events: list[dict[str, str]] = field(default_factory=list, repr=False)
    canceled: threading.Event = field(default_factory=threading.Event, repr=False)
    changed: threading.Condition = field(default_factory=threading.Condition, repr=False)

    @property
    def labels(self) -> dict[str, str]:
        return dict(self.spec.get("labels", {}))

    @property
    def logs(self) -> list[str]:
        """The lines of the log, without the service's own."""
        return [event["data"] for event in self.events if not event["data"].startswith("===== Job started")]

    @property
    def ended(self) -> bool:
        return self.stage in TERMINAL

    def start(self) -> None:
        """The machine is there, and an attempt begins, unless the Job was cancelled in the meantime."""
        with self.changed:
            if self.ended:
                return
            self.stage, self.started_at = "RUNNING", self.started_at or now()
            self.attempts_made += 1
            self._write(f"===== Job started at {self.started_at[:19].replace('T', ' ')} =====")

    def log(self, *lines: str) -> None:
        """Adds lines to the log, starting the Job if need be."""
        if self.started_at is None:
            self.start()
        with self.changed:
            for line in lines:
                self._write(line)

    def say(self, *lines: str) -> None:
        """The same with each line as a script says it for the launcher: with the mark that the Job was given."""
        mark = self.spec.get("environment", {}).get("LAUNCH_MARK")
        self.log(*(f"{line} #{mark}" if mark else line for line in lines))

    def finish(self, stage: str, message: str | None = None) -> None:
        """Ends the Job; the first end counts."""
        if stage not in TERMINAL:
            raise ValueError(f"unknown last stage {stage!r}: choose one of {', '.join(TERMINAL)}")
        with self.changed:
            if not self.ended:
                self.stage, self.message, self.finished_at = stage, message, now()
            self.changed.notify_all()

    def wait(self, timeout: float = 60) -> str:
        """The last stage, once the Job has ended; TimeoutError where it has not in time."""
        with self.changed:
            if not self.changed.wait_for(lambda: self.ended, timeout):
                raise TimeoutError(f"the Job is still {self.stage} after {timeout:g} s; its log: {self.logs[-20:]}")
        return self.stage

    def follow(
        self, tail: int | None, keep_alive_s: float, closing: threading.Event
    ) -> Iterator[dict[str, str] | None]:
        """Each event of the log until the Job ends; none where there was nothing for a while."""
        position = max(len(self.events) - tail, 0) if tail is not None else 0
        while not closing.is_set():
            with self.changed:
                # A short wait, so that the server can close.
                deadline = time.monotonic() + keep_alive_s
                while position >= len(self.events) and not self.ended and not closing.is_set():
                    if not self.changed.wait(min(0.5, keep_alive_s)) and time.monotonic() > deadline:
                        break
                fresh: list[dict[str, str] | None] = [*self.events[position:]]
                done = self.ended
            yield from fresh or [None]
            position += len(fresh)
            if done and position >= len(self.events):
                return

    def info(self) -> dict[str, Any]:
        """The Job as the Hub tells it: secrets by name only."""
        spec = self.spec
        answer = {
            "id": self.id,
            "createdAt": self.created_at,
            "startedAt": self.started_at,
            "finishedAt": self.finished_at,
            "dockerImage": spec.get("dockerImage"),
            "spaceId": spec.get("spaceId"),
            "command": spec.get("command", []),
            "arguments": spec.get("arguments", []),
            "environment": spec.get("environment", {}),
            "secrets": dict.fromkeys(self.secrets, "(encrypted)"),
            "flavor": spec["flavor"],
            "labels": self.labels,
            "volumes": spec.get("volumes", []),
            "timeout": spec.get("timeoutSeconds", DEFAULT_TIMEOUT_S),
            "retry": spec.get("attempts", 1) - 1,
            "status": {"stage": self.stage, "message": self.message},
            "durations": self._durations(),
            "owner": self.owner,
            "initiator": self.initiator,
        }
        return {**answer, **{key: spec[key] for key in ("expose", "network") if key in spec}}

    def _durations(self) -> dict[str, int | None]:
        created, end = _seconds(self.created_at), _seconds(self.finished_at or now())
        started = _seconds(self.started_at) if self.started_at else None
        return {
            "schedulingSecs": None if started is None else int(started - created),
            "runningSecs": None if started is None else int(end - started),
            "totalSecs": int(end - created),
        }

    def _write(self, line: str) -> None:
        self.events.append({"data": line, "timestamp": now()})
        self.changed.notify_all()


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()
