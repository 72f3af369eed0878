"""The time that a run has: until its deadline, and after a signal until it is killed."""

from __future__ import annotations

import faulthandler
import hashlib
import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from parts.places import volume
from parts.say import UserError, note, reason, tell

# Kept where the process begins again (`os.execv`).
STARTED = float(os.environ.get("LAUNCH_STARTED") or time.monotonic())
# Seconds between SIGTERM and the end, within which the work is saved.
GRACE_S = 25.0
SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
# Of the time that is left, what the script's own end takes: its RESULT, Python's exit.
LAST_S = 5.0


def deadline(timeout_s: float, folder: Path) -> float:
    """When a Job is killed, on the clock of `time.monotonic`: all its attempts together have `timeout_s` seconds.

    The first attempt notes in the folder when its container began, which is when the first process there did.
    """
    now, today, job = time.monotonic(), time.time(), os.environ.get("JOB_ID")
    if not timeout_s:
        return math.inf
    lived = now - STARTED
    if job and not os.environ.get("LAUNCH_DATA_DIR"):
        ticks = int(Path("/proc/1/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
        container = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        # Older than its timeout it would not live: then the first process is another machine's.
        lived = container if lived < container < timeout_s else lived
    began = today - lived
    if job:
        # A Job that resumes this one has a timeout of its own.
        noted = folder / f"began-{hashlib.sha256(job.encode()).hexdigest()[:12]}"
        try:
            if not noted.exists():
                noted.write_text(str(began), encoding="utf-8")
            earlier = float(noted.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            note(f"{noted} does not say when this Job began: counted from now ({reason(error)})")
        else:
            # A Job that is older than its timeout by a day is none: that is no beginning.
            began = min(began, earlier) if earlier > today - timeout_s - 86400 else began
    return now + timeout_s - (today - began)


class Clock:
    """Says how much time is left, and ends the process where a library does not come back in time.

    A library may wait for as long as it likes, and need not return to Python: `last_s` before the end, or with
    `at_once` at a signal, a thread of this clock says the last words and ends the process with the status that they
    return. It also ends one that has not been `heard` of for longer than its `patience_s`.
    """

    def __init__(self) -> None:
        self.deadline, self.signalled = math.inf, 0.0
        self.heard, self.patience_s = 0.0, math.inf
        self.last_words: Callable[[], int] | None = None
        self.at_once, self.last_s, self.lock = False, LAST_S, threading.Lock()

    def start(self, ends: float, last_words: Callable[[], int]) -> None:
        """Begin: from now on a signal asks to stop, at once as long as there is nothing to save."""
        self.deadline, self.last_words, self.at_once = ends, last_words, True
        heard, told = os.pipe()
        os.set_blocking(told, False)
        # It is written to although the main thread is deep in a library, where no handler of Python's is called.
        signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, self.on_signal)
        # What ends a child is not meant for this process.
        os.register_at_fork(after_in_child=self.forget)
        threading.Thread(target=self.watch, args=(heard,), daemon=True).start()

    def rest(self) -> None:
        """Leave the last words to whoever calls this, unless they are being said."""
        with self.lock:
            self.last_words, self.patience_s = None, math.inf

    def forget(self) -> None:
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        # A terminal and uv may both pass the first one on.
        if number == signal.SIGINT and self.signalled and time.monotonic() > self.signalled + 1:
            raise KeyboardInterrupt
        self.signalled = self.signalled or time.monotonic()

    def left_s(self) -> float:
        """Seconds until the end, as far as it is known."""
        return min(self.deadline, self.signalled + GRACE_S if self.signalled else math.inf) - time.monotonic()

    def watch(self, heard: int) -> None:
        while True:
            if select.select([heard], [], [], 0.5)[0] and SIGNALS & {*os.read(heard, 512)}:
                self.signalled = self.signalled or time.monotonic()
            with self.lock:
                if time.monotonic() - self.heard > self.patience_s:
                    self.end(self.stalled)
                if self.last_words and (self.left_s() < self.last_s or (self.at_once and self.signalled)):
                    self.end(self.last_words)

    def end(self, last_words: Callable[[], int]) -> None:
        status = 1
        try:
            status = last_words()
        finally:
            sys.stdout.flush()
            os._exit(status)

    def stalled(self) -> int:
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        told = f"error: stalled: no step has ended for {time.monotonic() - self.heard:.0f} s."
        tell(f"{told} The stacks above show where; run this again: it goes on from the last checkpoint.", sys.stderr)
        return 1


CLOCK = Clock()


def refusal() -> Path | None:
    """Where an attempt of this Job notes for the next one what this script refused; none outside of a Job."""
    place, job = volume(), os.environ.get("JOB_ID", "")
    whose = hashlib.sha256(f"{job} {Path(__file__).name}".encode()).hexdigest()[:12]
    return place / f"refused-{whose}" if place and job else None


@contextmanager
def errors_told() -> Iterator[None]:
    """End with one line and a status, and without a traceback, where a user can do something about it.

    What is asked for does not change from one attempt of a Job to the next: what was refused once, with status 2, is
    refused at once by those that follow.
    """
    for stream in (sys.stdout, sys.stderr):
        # A row is shown, as far as may be, on a terminal that knows ASCII only.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    noted = refusal()
    try:
        if noted and noted.is_file():
            note("an earlier attempt of this Job refused what is asked for, and so does this one")
            raise UserError(noted.read_text(encoding="utf-8", errors="replace"), status=2)
        yield
    except BaseException as end:
        CLOCK.rest()
        if not isinstance(end, UserError | KeyboardInterrupt):
            raise
        problem = end if isinstance(end, UserError) else UserError("interrupted.", status=130)
        problem.tell()
        if noted and problem.status == 2:
            with suppress(OSError):
                noted.write_text(problem.paragraph, encoding="utf-8", errors="replace")
        sys.exit(problem.status)
