"""A Job's log, followed and kept: the stream breaks off, repeats itself and lies about the end; the stage does not."""

from __future__ import annotations

import fcntl
import io
import os
import time
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path

from launcher import home
from launcher.errors import RequestError, ServiceError
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
            gone = isinstance(error, Gone)
            if failures >= (READ_ATTEMPTS if last and gone else LAST_ATTEMPTS if last else ATTEMPTS):
                goes_on = "The Job has ended" if last else "The Job may well go on"
                hint = f"{goes_on}: `launch logs -f {namespace}/{job_id}` follows it again."
                raise ServiceError(error.message, hint) from error
            if gone and not last:  # no stream would end
                with suppress(ServiceError):
                    last = has_ended()
                    failures = 0 if last else failures
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

    One follower at a time writes; what it kept replaces an earlier transcript unless that one holds more, or there was
    no room for all of it.
    """
    if run is None:
        yield _forget
        return
    part = _Part(run.folder / PART)
    try:
        yield part.write
    finally:
        part.become(run.log)


def _forget(_line: str) -> None:
    """Keep nothing."""


class _Part:
    """A transcript on its way; what can't be written is left out, and so is then the whole of it."""

    def __init__(self, path: Path) -> None:
        self._path, self._whole = path, False
        self._file: io.FileIO | None = None
        with home.spared():
            self._file = io.FileIO(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+")
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # another follower writes, or nothing can be locked there
                return
            self._file.truncate(0)
            self._whole = True

    def write(self, line: str) -> None:
        """Keep one line."""
        if self._file and self._whole:
            self._whole = False
            with home.spared():
                self._file.write(f"{line}\n".encode())
                self._whole = True

    def become(self, log: Path) -> None:
        """Put it in the place of the transcript."""
        with self._file or nullcontext(), home.spared():
            if self._whole:
                longer = log.exists() and log.stat().st_size > self._path.stat().st_size
                self._path.unlink() if longer else self._path.replace(log)


class Gone(ServiceError):
    """The service has no log of the Job, not yet or not any more."""


class Seen:
    """What has been read, so that a log which is sent from its start again gives only what is new.

    Entries are told apart by time and text, and equal ones are counted; their order says nothing, since the clock of a
    container may step back, nor does their number, since the service may drop the start of a log. An entry takes twelve
    bytes.
    """

    def __init__(self) -> None:
        self.count = 0
        # What earlier streams held, in order, with how many of each the present one has repeated; what came since.
        self._before, self._repeated, self._since = array("q"), array("I"), array("q")

    def start_over(self) -> None:
        """The service sends the log from its start."""
        if self._since:
            self._before = array("q", sorted(self._before + self._since))
            self._since = array("q")
        self._repeated = array("I", bytes(4 * len(self._before)))

    def is_new(self, entry: Entry) -> bool:
        """Whether this entry was not there before; it is from now on."""
        key = hash(entry)
        first = bisect_left(self._before, key)
        if first < len(self._before) and self._before[first] == key:
            next_ = first + self._repeated[first]
            if next_ < len(self._before) and self._before[next_] == key:
                self._repeated[first] += 1
                return False
        self._since.append(key)
        self.count += 1
        return True


def _fresh(
    hub: Hub, namespace: str, job_id: str, seen: Seen, has_ended: Callable[[], bool] | None, ended: bool
) -> Iterator[Entry]:
    """What is new in one stream; `has_ended` is asked, where given, when the stream only keeps itself alive."""
    seen.start_over()
    looked = time.monotonic()
    with (
        _told(),
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


@contextmanager
def _told() -> Iterator[None]:
    """The client's errors in words: whether there is such a Job is not the log's to say."""
    try:
        with told("reading the Job's log"):
            yield
    except RequestError as error:
        raise Gone("reading the Job's log failed: the service has none of it.") from error


def _lines(entry: Entry, secrets: tuple[str, ...]) -> Iterator[str]:
    for line in entry.text.split("\n"):
        yield safe(line, secrets)


def _secrets(job_id: str) -> tuple[str, ...]:
    """The values that this machine knows of what the Job was given, and whatever else it holds itself."""
    run = folder.find(job_id)
    names = run.read(REQUEST).get("secrets") if run else None
    known = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    return (read_token() or "", *held(), *(os.environ.get(name, "") for name in known))
