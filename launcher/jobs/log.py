"""A Job's log, followed and kept: the stream breaks off, repeats itself and lies about the end; the stage does not."""

from __future__ import annotations

import fcntl
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from launcher.errors import ServiceError
from launcher.hub.client import Hub, read_token, told
from launcher.jobs import folder, stream
from launcher.jobs.folder import PART, REQUEST, Run
from launcher.jobs.stream import Entry
from launcher.text import held, safe

ATTEMPTS = 40
"""Failures in a row, with nothing new between them, after which following gives up: 18 minutes at a pause of 1 s."""

LAST_ATTEMPTS = 12
"""The same once the Job has ended and only the rest of its log is wanted."""

READ_ATTEMPTS = 3
"""Failures after which a log that is only looked at is given up: somebody waits for the answer."""

_LONGEST_PAUSE = 30
"""Times the first pause."""

_LOOK_S = 60.0
"""Seconds without a line after which the stage is asked for, although the stream lives."""

_REMEMBERED = 20_000


def follow(hub: Hub, namespace: str, job_id: str, has_ended: Callable[[], bool]) -> Iterator[str]:
    """Each line once, from the first, until the Job has ended and what was left has been read too.

    Raises `ServiceError` when the service has been away for long.
    """
    secrets, seen, pause_s = _secrets(job_id), Seen(), hub.patient.pause_s
    failures, wait_s, last = 0, pause_s, False
    while True:
        before = seen.count
        try:
            for entry in _fresh(hub, namespace, job_id, seen, None if last else has_ended, ended=last):
                yield from _lines(entry, secrets)
            if last:
                return
            last, failures = has_ended(), 0
        except ServiceError as error:
            failures = 1 if seen.count > before else failures + 1
            if failures == (LAST_ATTEMPTS if last else ATTEMPTS):
                goes_on = "The Job has ended" if last else "The Job may well go on"
                hint = f"{goes_on}: `launch logs -f {job_id}` follows it again."
                raise ServiceError(error.message, hint) from error
        if failures or not last:
            wait_s = pause_s if seen.count > before else min(wait_s * 2, _LONGEST_PAUSE * pause_s)
            time.sleep(wait_s)


def read(hub: Hub, namespace: str, job_id: str, ended: bool, pause_s: float = 0.25) -> Iterator[str]:
    """The lines so far, all of them of a Job that has `ended`; `ServiceError` when the service fails repeatedly."""
    secrets, seen, failures = _secrets(job_id), Seen(), 0
    while True:
        try:
            for entry in _fresh(hub, namespace, job_id, seen, None, ended=ended):
                yield from _lines(entry, secrets)
            return
        except ServiceError:
            failures += 1
            if failures == READ_ATTEMPTS:
                raise
            time.sleep(pause_s * 2**failures)


@contextmanager
def keep(run: Run | None) -> Iterator[Callable[[str], None]]:
    """A function that keeps each line in the transcript, all of them from the first.

    One follower at a time writes; what it kept replaces an earlier transcript unless that one holds more.
    """
    if run is None:
        yield _forget
        return
    part = run.folder / PART
    with os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT, 0o600), "r+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield _forget
            return
        file.truncate(0)

        def write(line: str) -> None:
            file.write(line + "\n")

        try:
            yield write
        finally:
            file.flush()
            if not run.log.exists() or part.stat().st_size >= run.log.stat().st_size:
                part.replace(run.log)
            else:
                part.unlink()


def _forget(_line: str) -> None:
    """Keep nothing."""


class Seen:
    """What has been read, so that a log which is sent from its start again gives only what is new.

    Entries are told apart by time and text, and equal ones are counted. The last ones are remembered singly, which
    bears entries out of order and a log whose start the service has dropped; of those before them, only up to when.
    """

    def __init__(self, remembered: int = _REMEMBERED) -> None:
        self.count = 0
        self._last: deque[tuple[str, int]] = deque()
        self._remembered = remembered
        self._floor, self._at_floor = "", 0
        self._passing, self._passing_floor = Counter[tuple[str, int]](), 0

    def start_over(self) -> None:
        """The service sends the log from its start."""
        self._passing, self._passing_floor = Counter(self._last), self._at_floor

    def is_new(self, entry: Entry) -> bool:
        """Whether this entry was not there before; it is from now on."""
        key = (entry.time, hash(entry.text))
        if entry.time < self._floor:
            return False
        if entry.time == self._floor and self._passing_floor:
            self._passing_floor -= 1
            return False
        if self._passing.get(key):
            self._passing[key] -= 1
            return False
        self.count += 1
        self._last.append(key)
        if len(self._last) > self._remembered:
            self._forget(self._last.popleft()[0])
        return True

    def _forget(self, moment: str) -> None:
        if moment > self._floor:
            self._floor, self._at_floor = moment, 1
        elif moment == self._floor:
            self._at_floor += 1


def _fresh(
    hub: Hub, namespace: str, job_id: str, seen: Seen, has_ended: Callable[[], bool] | None, ended: bool
) -> Iterator[Entry]:
    """What is new in one stream; `has_ended` is asked, where given, when the stream only keeps itself alive."""
    seen.start_over()
    looked = time.monotonic()
    with (
        told("reading the Job's log"),
        closing(stream.read(hub, namespace, job_id, follow=has_ended is not None, ended=ended)) as entries,
    ):
        for entry in entries:
            if entry:
                looked = time.monotonic()
                if seen.is_new(entry):
                    yield entry
            elif has_ended and time.monotonic() - looked > _LOOK_S:
                if has_ended():
                    return
                looked = time.monotonic()


def _lines(entry: Entry, secrets: tuple[str, ...]) -> Iterator[str]:
    for line in entry.text.split("\n"):
        yield safe(line, secrets)


def _secrets(job_id: str) -> tuple[str, ...]:
    """The values that this machine knows of what the Job was given, and whatever else it holds itself."""
    run = folder.find(job_id)
    names = run.read(REQUEST).get("secrets", []) if run else []
    return (read_token() or "", *held(), *(os.environ.get(name, "") for name in names))
