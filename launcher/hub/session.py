"""The client's one HTTP session: whom it sends a token or a secret, whatever an answer or a variable says.

Loaded with the client, since httpx2 takes a while to import.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx2

from launcher.errors import RefusedError
from launcher.hub.endpoint import require_encrypted

Hook = Callable[[httpx2.Response], None]


def make(of: httpx2.Client, timeout_s: float, on_response: Hook) -> httpx2.Client:
    """A session with the hooks of that one, which lets nothing out but to where it was meant to go."""
    hooks: dict[str, list[Any]] = {
        "request": [*of.event_hooks["request"], _require_encrypted],
        "response": [*of.event_hooks["response"], _require_same_origin, on_response],
    }
    return httpx2.Client(event_hooks=hooks, follow_redirects=of.follow_redirects, timeout=timeout_s)


def _require_encrypted(request: httpx2.Request) -> None:
    """Of every request, one that a redirect asks for too."""
    require_encrypted(str(request.url), "the address that was asked for")


def _require_same_origin(response: httpx2.Response) -> None:
    """Refuse a redirect that would send a request's body to another host: secrets may be in it.

    A download is led to a storage server; httpx2 takes the token out of such a request.
    """
    request = response.request
    if not response.has_redirect_location or request.method in ("GET", "HEAD"):
        return
    target = request.url.join(response.headers["location"])
    if target.origin != request.url.origin:
        raise RefusedError(
            f"{request.url.host} wants what was sent to it to be sent to {target.host or 'nowhere'}, and a token or a "
            "secret may be in it.",
            "Nothing was sent there. Look at HF_ENDPOINT and at proxies between here and the Hub.",
        )
