"""One client of the Hub: loaded late, quiet, asked again only while it may help, its errors translated once."""

from __future__ import annotations

import logging
import os
import random
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from launcher import __version__
from launcher.hub import answers, session
from launcher.hub.errors import LONGEST_ASKED_S, asked_wait, may_have_worked, may_pass, translate

if TYPE_CHECKING:
    import httpx2
    from huggingface_hub import HfApi

    from launcher.errors import LauncherError

TIMEOUT_S = 60.0
"""Seconds until a call is given up; the client alone would wait for ever."""
LONGEST_WAIT_S = 60.0
"""Seconds that a `Retry-After` may ask for; the client alone would wait for hours."""

Answer = TypeVar("Answer")
log = logging.getLogger("launcher.hub")


@dataclass(frozen=True, slots=True)
class Pace:
    """How patient a call is: at most `tries`, the first pause doubled each time, and no new try after `total_s`.

    One try is bounded by the client's deadlines and, for an upload, by hf_xet's own retries, which take up to four
    minutes.
    """

    pause_s: float = 1.0
    tries: int = 6
    total_s: float = 180.0

    def pause(self, number: int) -> float:
        """Seconds after the `number`th failure, up to a quarter more or less so that clients don't come together."""
        return min(self.pause_s * 2.0 ** (number - 1), 30.0) * random.uniform(0.75, 1.25)


class Hub:
    """The Hub that HF_ENDPOINT names, as one account sees it. `pause_s` is the first wait before it is asked again."""

    def __init__(self, pause_s: float = 1.0) -> None:
        self.patient = Pace(pause_s)
        self.brief = Pace(pause_s, tries=3)

    @cached_property
    def api(self) -> HfApi:
        """The client, of the endpoint that is set now and not when the package was imported."""
        api: HfApi = library().HfApi(
            endpoint=os.environ.get("HF_ENDPOINT") or None, library_name="launch", library_version=__version__
        )
        return api

    @cached_property
    def account(self) -> dict[str, Any]:
        """What the Hub says of the account and its token; raises where there is none, or it is not accepted."""
        # Kept: the Hub limits this question strictly, and the client would ask it before each of its calls.
        return self.ask("checking your account", lambda: answers.account(self.api.whoami()))

    @property
    def user(self) -> str:
        """The name of the account."""
        return str(self.account["name"])

    def ask(self, action: str, call: Callable[[], Answer], what: str = "") -> Answer:
        """What the call of the client returns, tried three times; for somebody who waits for the answer."""
        return persist(action, call, self.brief, what=what)


@cache
def library() -> Any:
    """The package, set up once for this process."""
    import huggingface_hub
    from huggingface_hub.utils.tqdm import disable_progress_bars

    huggingface_hub.set_client_factory(lambda: session.make(TIMEOUT_S, _bound_wait))
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        disable_progress_bars()
    return huggingface_hub


def _bound_wait(response: httpx2.Response) -> None:
    """Shorten what an answer asks the client to wait before it tries again by itself; raise what it would raise in the
    end where that is too long to wait for at all.
    """
    if response.status_code in (429, 503) and asked_wait(response) > LONGEST_ASKED_S:
        response.read()
        library().utils.hf_raise_for_status(response)
    for name, pattern in (("Retry-After", r"(\d+)"), ("RateLimit", r".*;t=(\d+)")):
        asked = re.fullmatch(pattern, response.headers.get(name, "").strip())
        if asked and int(asked[1]) > LONGEST_WAIT_S:
            del response.headers[name]
            response.headers["Retry-After"] = f"{LONGEST_WAIT_S:.0f}"


def read_token() -> str | None:
    """The token that the client would use, if there is one."""
    token: str | None = library().get_token()
    return token


@contextmanager
def told(action: str, what: str = "") -> Iterator[None]:
    """Turn what the client raises into what a user is told; a bug stays a bug."""
    try:
        yield
    except Exception as error:
        known = _translated(error, action, what)
        if known is None:
            raise
        raise known from error


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
            known = _translated(error, action, what)
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


def _translated(error: Exception, action: str, what: str = "") -> LauncherError | None:
    """What a user is told of an error of the client; none for a bug."""
    return translate(error, action, what=what, secrets=(read_token() or "",))
