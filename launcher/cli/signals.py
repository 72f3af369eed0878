"""Signals that end a command: each is met wherever Ctrl-C is."""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import NoReturn


class Terminated(KeyboardInterrupt):
    """SIGTERM, or SIGHUP of a terminal that was closed."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


def catch() -> None:
    """Raise `Terminated` for each of them from now on."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores one of them
            signal.signal(number, _end)


def tell(stop: KeyboardInterrupt) -> int:
    """Say in one line that the command was ended; its exit status."""
    with suppress(OSError):  # the terminal may be gone
        sys.stderr.write("interrupted.\n")
    return exit_code(stop)


def exit_code(stop: KeyboardInterrupt) -> int:
    """The exit status that a shell gives to what was ended so."""
    return stop.exit_code if isinstance(stop, Terminated) else 130


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    raise Terminated(number)
