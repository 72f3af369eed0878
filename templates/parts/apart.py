"""A step in a process of its own: what a library patched, and every byte of memory, is gone with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from parts.clock import CLOCK
from parts.compare import DifferentError
from parts.say import UserError, reason

# Left for the RESULT line and the card when the time is up.
CLOSING_S = 20


class TimeUpError(Exception):
    """What is being made is left as it is: the time is up, or a signal asked to stop."""


def apart(function: Callable[..., Any], *words: Any) -> Any:
    """What that function of this script returns in a process of its own.

    Raises what it raised where that is this script's own error, else `RuntimeError` with the first line of what was
    said or the signal that killed it; `TimeUpError`, with the process and its children ended, when the time is up.
    """
    context = multiprocessing.get_context("spawn")
    heard, told = context.Pipe(duplex=False)
    process = context.Process(target=answer, args=(told, function, words))
    process.start()
    told.close()
    try:
        while not heard.poll(0.5):
            require_time(0)
        found, error = heard.recv()
    except EOFError:
        process.join()
        code = process.exitcode or 0
        died = f"was killed by signal {-code}, as where memory does not suffice" if code < 0 else f"ended with {code}"
        raise RuntimeError(f"it {died}") from None
    except BaseException:
        end_group(process)
        raise
    process.join()
    if error:
        raise error
    return found


def end_group(process: BaseProcess) -> None:
    """End the process with its children."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid or 0, signal.SIGKILL)
    # It may not have had its group yet.
    process.kill()


def require_time(needed_s: float) -> None:
    """Raise `TimeUpError` where so many seconds are not left, or a signal asked to stop."""
    left_s = CLOCK.left_s() - CLOSING_S
    if CLOCK.signalled:
        raise TimeUpError("asked to stop")
    if left_s < needed_s:
        needs = f"{max(left_s, 0):.0f} s are left, and about {needed_s:.0f} s are needed"
        raise TimeUpError(needs if needed_s else "the time is up")


def answer(told: Connection, function: Callable[..., Any], words: tuple[Any, ...]) -> None:
    """In the new process: send what the function returns, or why it does not."""
    # A group of its own, so that a terminal's Ctrl-C reaches it through the parent only, and its children end with it.
    os.setpgrp()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow_parent() -> None:
        parent.join()
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=follow_parent, daemon=True).start()
    try:
        told.send((function(*words), None))
    except Exception as error:
        if not isinstance(error, UserError | DifferentError):
            traceback.print_exc()
            error = RuntimeError(reason(error))
        told.send((None, error))
