"""huggingface_hub as this launcher uses it: loaded late, quiet, never waiting for ever, its errors translated."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from launcher import __version__
from launcher.hub import errors as _hub_errors

if TYPE_CHECKING:
    import httpx2
    from huggingface_hub import HfApi

    from launcher.errors import LauncherError

TIMEOUT_S = 60.0
"""Seconds until a request is given up; the client alone would wait for ever."""
LONGEST_WAIT_S = 60.0
"""Seconds that a `Retry-After` may ask for; the client alone would wait for hours."""


@cache
def library() -> Any:
    """The package, set up once for this process."""
    import huggingface_hub
    from huggingface_hub.utils._http import default_client_factory
    from huggingface_hub.utils.tqdm import disable_progress_bars

    def make_client() -> Any:
        client = default_client_factory()
        client.timeout = TIMEOUT_S
        client.event_hooks["response"].append(_bound_wait)
        return client

    huggingface_hub.set_client_factory(make_client)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        disable_progress_bars()
    return huggingface_hub


def _bound_wait(response: httpx2.Response) -> None:
    """Shorten what an answer asks the client to wait before it tries again by itself; raise what it would raise in the
    end where that is too long to wait for at all.
    """
    if response.status_code in (429, 503) and _hub_errors.asked_wait(response) > _hub_errors.LONGEST_ASKED_S:
        response.read()
        library().utils.hf_raise_for_status(response)
    for name, pattern in (("Retry-After", r"(\d+)"), ("RateLimit", r".*;t=(\d+)")):
        asked = re.fullmatch(pattern, response.headers.get(name, "").strip())
        if asked and int(asked[1]) > LONGEST_WAIT_S:
            del response.headers[name]
            response.headers["Retry-After"] = f"{LONGEST_WAIT_S:.0f}"


def make_api() -> HfApi:
    """A client of the Hub that HF_ENDPOINT names now, not when the package was imported."""
    api: HfApi = library().HfApi(
        endpoint=os.environ.get("HF_ENDPOINT") or None, library_name="launch", library_version=__version__
    )
    return api


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
        known = translated(error, action, what)
        if known is None:
            raise
        raise known from error


def translated(error: Exception, action: str, what: str = "") -> LauncherError | None:
    """What a user is told of an error of the client; none for a bug."""
    return _hub_errors.translate(error, action, what=what, secrets=(read_token() or "",))
