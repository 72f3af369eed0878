"""Failures that a test orders in advance, and the requests that they are for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from tests.emulator.http import HubError, Response

KINDS = ("after_commit", "reset", "cut", "slow", "stall", "drip", "odd")


@dataclass
class Failure:
    """What happens to a request: an HTTP status before it has an effect, or one of KINDS.

    `after_commit` answers 502 although the request took effect; `reset` breaks the connection before it does; `cut`
    breaks it in the middle of the answer; `stall` falls silent there and keeps the connection; `slow` waits first;
    `odd` answers with what `change` makes of the answer;
    `drip` sends the answer byte by byte, with `seconds` between two, and for a stream a line without
    end. A redirection leads to `location`.
    """

    kind: int | str
    route: str | None
    times: int
    retry_after: int | str | None
    """Seconds, or an HTTP date."""
    message: str
    seconds: float
    events: int = 1
    """How much of a stream arrives before it is `cut` or it stalls."""
    location: str = ""
    change: Callable[[bytes], bytes] = bytes

    def refusal(self) -> Response:
        status = self.kind if isinstance(self.kind, int) else 502
        response = HubError(status, self.message).response()
        if self.location:
            response.headers["Location"] = self.location
        if self.retry_after is not None:
            response.headers["Retry-After"] = str(self.retry_after)
            if status == 429 and isinstance(self.retry_after, int):
                response.headers["RateLimit"] = f'"api";r=0;t={self.retry_after}'
                response.headers["RateLimit-Policy"] = '"fixed window";"api";q=500;w=300'
        return response


@dataclass
class Failures:
    queue: list[Failure] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, failure: Failure) -> None:
        if not isinstance(failure.kind, int) and failure.kind not in KINDS:
            raise ValueError(f"unknown failure {failure.kind!r}: choose an HTTP status or one of {', '.join(KINDS)}")
        with self.lock:
            self.queue.append(failure)

    def take(self, method: str, path: str, template: str) -> Failure | None:
        """The first failure ordered for this request, used up once."""
        with self.lock:
            for failure in self.queue:
                if failure.route in (None, template) or f"{method} {path}".startswith(failure.route or ""):
                    failure.times -= 1
                    if not failure.times:
                        self.queue.remove(failure)
                    return failure
        return None


def halves(body: bytes | Iterator[bytes], events: int) -> bytes:
    """What of an answer arrives before the connection breaks: half of it, or the first events of a stream."""
    return body[: len(body) // 2] if isinstance(body, bytes) else b"".join(islice(body, events))
