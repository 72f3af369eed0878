"""The HTTP client of all calls to the Hub: not in clear, no secret to another host, not for ever."""

from __future__ import annotations

import ipaddress
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from launcher.errors import RefusedError, RequestError
from launcher.text import plain

if TYPE_CHECKING:
    import httpx2

ENDLESS = "launch_endless"
"""The extension of a request whose answer may go on for ever; its caller looks after its silence."""

_SLOWEST = 100_000
"""Bytes a second with which a large body is sent at least."""

Answer = TypeVar("Answer")


def make(timeout_s: float, on_response: Callable[[httpx2.Response], None]) -> httpx2.Client:
    """A client for the Hub's package, with its own hook and `on_response`; a call is given up after `timeout_s`.

    The client's own timeouts count from each byte anew: an answer of a byte a second would never end.
    """
    import httpx2
    from huggingface_hub.utils._http import hf_request_event_hook

    class Client(httpx2.Client):
        """Gives each call a deadline."""

        def send(self, request: httpx2.Request, *, stream: bool = False, **options: Any) -> httpx2.Response:
            """The answer; `TimeoutError` where it is not whole in time."""
            send = partial(super().send, request, stream=stream, **options)
            if ENDLESS in request.extensions:
                return send()
            # A download's own timeout is a few seconds of silence, and says nothing of the whole.
            asked_s = None if stream else request.extensions["timeout"]["read"]
            limit_s = min(asked_s or timeout_s, timeout_s)
            limit_s += int(request.headers.get("content-length", 0)) / _SLOWEST
            until = time.monotonic() + limit_s
            response = within(limit_s, send)
            if stream:
                response.stream = Bounded(response.stream, until)
            return response

    class Bounded(httpx2.SyncByteStream):
        """A stream that has to be read by then."""

        def __init__(self, stream: Any, until: float) -> None:
            self._stream, self._until = stream, until

        def __iter__(self) -> Iterator[bytes]:
            for chunk in self._stream:
                if time.monotonic() > self._until:
                    raise TimeoutError
                yield chunk

        def close(self) -> None:
            self._stream.close()

    hooks: dict[str, list[Callable[..., Any]]] = {
        "request": [hf_request_event_hook, lambda request: _require_encrypted(request.url)],
        "response": [on_response, _require_same_host],
    }
    try:
        return Client(event_hooks=hooks, follow_redirects=True, timeout=timeout_s)
    except ImportError as error:  # of what speaks SOCKS, which few need
        raise RequestError(
            "a SOCKS proxy is set (ALL_PROXY, HTTPS_PROXY or HTTP_PROXY), and the package that speaks to one is not "
            "there.",
            "Install it where launch is: `pip install socksio` (the extra httpx2[socks]), or unset the variable.",
        ) from error


def within(limit_s: float, call: Callable[[], Answer]) -> Answer:
    """What the call returns in so many seconds; else `TimeoutError`, and it may go on in vain."""
    future: Future[Answer] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result(limit_s)


def require_endpoint(address: str | None) -> None:
    """Refuse an HF_ENDPOINT that a token would go to in clear; what is no address at all is found out later."""
    import httpx2

    with suppress(httpx2.InvalidURL):
        _require_encrypted(httpx2.URL(address or ""))


def _require_encrypted(url: httpx2.URL) -> None:
    if url.scheme == "http" and not _is_here(url.host):
        raise RefusedError(
            f"http://{plain(url.host)} would get your token and all secrets in clear: nothing was sent.",
            "Set HF_ENDPOINT to an address that begins with https, or unset it; http is for this machine only.",
        )


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _require_same_host(response: httpx2.Response) -> None:
    """Refuse to be sent on to another host, but for a file's download, which the client begins there without the token.

    The client would send the body there, in which the secrets of a Job are.
    """
    import httpx2

    request = response.request
    downloads = "/resolve/" in request.url.path or "authorization" not in request.headers
    if not response.has_redirect_location or (downloads and request.method in ("GET", "HEAD")):
        return
    with suppress(httpx2.InvalidURL):  # the client refuses that itself
        target = request.url.join(response.headers["location"])
        if target.origin != request.url.origin:
            raise RefusedError(
                f"{request.url.host} wants this request sent to another host, {plain(target.host)}: it was not.",
                "Check HF_ENDPOINT, and whether this network asks for a login first.",
            )
