"""HTTP as a handler sees it: a parsed request goes in, a response or a HubError comes out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from tests.emulator.state import User


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    """Percent-encoded, as it came."""
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes
    user: User | None = None
    params: Mapping[str, str] = field(default_factory=dict)
    """What the route's `{names}` matched, decoded."""

    def one(self, name: str, default: str = "") -> str:
        """The first value of a query parameter."""
        return self.query.get(name, [default])[0]

    def flag(self, name: str) -> bool:
        return self.one(name).lower() in ("1", "true")

    def form(self) -> dict[str, Any]:
        """The body as a mapping, from JSON or from a form; 400 where it is neither."""
        if self.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
            return parse_qs(self.body.decode())
        return _object(self.body or b"{}")

    def lines(self) -> list[dict[str, Any]]:
        """The objects of a body in NDJSON."""
        return [_object(line) for line in self.body.splitlines() if line.strip()]


@dataclass(slots=True)
class Response:
    body: bytes | Iterator[bytes] = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class HubError(Exception):
    """An answer other than success, with the headers from which the client makes its own exceptions."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code

    def response(self) -> Response:
        response = reply({"error": self.message}, self.status)
        # A header holds one line of Latin-1; the body keeps the message whole.
        line = " ".join(self.message.split()).encode("latin-1", "replace").decode("latin-1")
        response.headers["X-Error-Message"] = line
        if self.code:
            response.headers["X-Error-Code"] = self.code
        return response


class Moved(HubError):
    """The answer for a repo that has another name now: the same request, there."""

    def __init__(self, location: str) -> None:
        super().__init__(307, "Temporary Redirect. Redirecting to the repo's new name")
        self.location = location

    def response(self) -> Response:
        response = super().response()
        response.headers["Location"] = self.location
        return response


def reply(value: object, status: int = 200, **headers: str) -> Response:
    """A JSON response."""
    names = {name.replace("_", "-"): text for name, text in headers.items()}
    return Response(json.dumps(value).encode(), status, {"Content-Type": "application/json; charset=utf-8", **names})


def download(data: bytes, request: Request, headers: Mapping[str, str]) -> Response:
    """`data`, or the part that the request's Range asks for; 416 beyond the end."""
    common = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", **headers}
    asked = byte_range(request, len(data))
    if asked is None:
        return Response(data, 200, common)
    first, last = asked
    return Response(data[first : last + 1], 206, {**common, "Content-Range": f"bytes {first}-{last}/{len(data)}"})


def byte_range(request: Request, size: int) -> tuple[int, int] | None:
    """The first and last byte that the Range header asks for; none without one."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
    if match is None:
        return None
    start, end = match.groups()
    first = int(start) if start else max(size - int(end or 0), 0)
    if first >= size:
        raise HubError(416, f"range starts at {first} of {size} bytes")
    return first, min(int(end), size - 1) if start and end else size - 1


def _object(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise HubError(400, f"Invalid JSON: {error}") from error
    if not isinstance(value, dict):
        raise HubError(400, "Invalid JSON: an object was expected")
    return value
