"""Asking the Hub again: only what may pass, less and less often, and for a bounded time."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from launcher.hub.client import translated
from launcher.hub.errors import asked_wait, status_of

Answer = TypeVar("Answer")
log = logging.getLogger("launcher.hub")

_PASSING = {"TransportError", "ConnectionError", "TimeoutError", "JSONDecodeError"}
# These name what was asked for, or this machine: asking again changes nothing.
_LASTING = {"UnsupportedProtocol", "LocalProtocolError", "OfflineModeIsEnabled"}
_UNSENT = {"ConnectError", "ConnectTimeout", "PoolTimeout"}


@dataclass(frozen=True, slots=True)
class Pace:
    """How patient a call is: at most `tries`, the first pause doubled each time, and no new try after `total_s`.

    One try is bounded by the client's own timeout (`_hub_client.TIMEOUT_S`) and, for an upload, by hf_xet's own
    retries, which take up to four minutes.
    """

    pause_s: float = 1.0
    tries: int = 6
    total_s: float = 180.0

    def pause(self, number: int) -> float:
        """Seconds after the `number`th failure, up to a quarter more or less so that clients don't come together."""
        return min(self.pause_s * 2.0 ** (number - 1), 30.0) * random.uniform(0.75, 1.25)


def persist(
    action: str,
    call: Callable[[], Answer],
    pace: Pace,
    *,
    what: str = "",
    recover: Callable[[], Answer | None] | None = None,
) -> Answer:
    """What `call` returns, in the end; else the `LauncherError` of its last failure, which says what was tried.

    After a failure that leaves open whether the request took effect, `recover` looks for its effect before anything
    is asked again: what it finds is the answer, and what it raises ends it all.
    """
    began, number = time.monotonic(), 0
    while True:
        number += 1
        try:
            return call()
        except Exception as error:
            known = translated(error, action, what)
            if known is None:
                raise
            if not may_pass(error):
                raise known from error
            if recover and may_have_worked(error) and (found := recover()) is not None:
                return found
            took, wait = time.monotonic() - began, max(pace.pause(number), asked_wait(getattr(error, "response", None)))
            if number == pace.tries or took + wait > pace.total_s:
                tried = f" It was tried {number} times in {took:.0f} s." if number > 1 else ""
                raise type(known)(known.message + tried, known.hint) from error
        log.warning("%s Trying again in %.0f s (%d of %d).", known.message, wait, number + 1, pace.tries)
        time.sleep(wait)


def may_pass(error: Exception) -> bool:
    """True for a failure of the network or the service, not of the request: 408, 429, 5xx, no answer or half of one."""
    if (status := status_of(error)) is not None:
        return status in (408, 429) or status >= 500
    names = {base.__name__ for base in type(error).__mro__}
    return bool(names & _PASSING) and not names & _LASTING


def may_have_worked(error: Exception) -> bool:
    """False only where it is certain that the service did not act on the request."""
    return type(error).__name__ not in _UNSENT and status_of(error) != 429
