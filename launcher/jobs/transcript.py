"""The transcript of a Job that runs elsewhere, written by whoever follows it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from launcher.jobs.folder import Run


@contextmanager
def keep(run: Run | None) -> Iterator[Callable[[str], None]]:
    """A function that keeps each line, all of them from the first.

    One follower at a time writes; what it kept replaces an earlier transcript unless that one holds more.
    """
    if run is None:
        yield _forget
        return
    part = run.folder / "log.part"
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
