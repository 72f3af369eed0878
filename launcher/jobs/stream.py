"""One connection to a Job's log: server-sent events as they come, until the stream ends, falls silent or is cut.

The client's own `fetch_job_logs` reads the stream as text and breaks lines wherever Unicode does (U+2028, U+0085): a
Job that prints one of those ends it with a JSON error. It also hands out no timestamps, and without them nothing can
go on after the last line seen.
"""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from launcher.hub.client import Hub, library
from launcher.hub.session import ENDLESS

SILENCE_S = 75.0
"""Seconds without a byte after which a stream is taken for dead: the service sends a keep-alive every 30."""

DRAINED_S = 5.0
"""Seconds without a byte after which the log of a Job that goes on has been read: the service goes on waiting."""

STALLED_S = 40.0
"""Seconds without a byte after which the log of an ended Job was not read: a keep-alive would have come by then."""

_ASLEEP_S = 20.0
_TICK_S = 2.0
_LONGEST = 1 << 26
_HEADER = "===== Job started"


class Entry(NamedTuple):
    """One entry of the log; of equal format, so that `time` can be compared as text."""

    time: str
    text: str


def read(hub: Hub, namespace: str, job_id: str, *, follow: bool, ended: bool = False) -> Generator[Entry | None]:
    """The entries from the first, and none for each keep-alive; ends with the stream, or in silence.

    Without `follow` it ends at the first keep-alive, or after some seconds at an entry later than the question, since a
    container's clock may be ahead. The stream of a Job that has `ended` closes by itself, so that silence is a failure
    there: the end of the log would be lost in it. What the client raises for a status, a broken connection or such a
    silence is raised here too.
    """
    from httpx2 import ReadTimeout
    from huggingface_hub.utils._http import hf_raise_for_status

    url = f"{hub.api.endpoint}/api/jobs/{namespace}/{job_id}/logs"
    timeout_s = SILENCE_S if follow else STALLED_S if ended else DRAINED_S
    ask = (
        library()
        .get_session()
        .stream("GET", url, headers=hub.api._build_hf_headers(), timeout=timeout_s, extensions={ENDLESS: True})
    )
    with nullcontext() if ended else suppress(ReadTimeout), ask as response, _watched(response):
        hf_raise_for_status(response)
        until = None if follow or ended else _until(response.headers.get("date"))
        moment, asked = "", time.monotonic()
        for line in _lines(response.iter_bytes(), STALLED_S if follow else timeout_s):
            if line is None and ended:
                raise TimeoutError
            if line is None and not follow:
                return
            if line is None:
                yield None
                continue
            entry = _entry(line, moment) if line.startswith(b"data: {") else None
            moment = entry.time if entry else moment
            if entry is None:
                if line.startswith(b":") and not follow:
                    return
                if line.startswith(b":"):
                    yield None
            elif until and entry.time > until and time.monotonic() - asked > DRAINED_S:
                return
            elif not entry.text.startswith(_HEADER):
                yield entry


def _lines(chunks: Iterator[bytes], longest_s: float = math.inf) -> Iterator[bytes | None]:
    """Lines that end in a newline and no other character; one beyond all measure is dropped but for its start.

    None, where bytes come and no line ends for so many seconds.
    """
    parts: list[bytes] = []
    size, since = 0, time.monotonic()
    for chunk in chunks:
        *whole, rest = chunk.split(b"\n")
        if whole:
            since = time.monotonic()
        elif time.monotonic() - since > longest_s:
            since = time.monotonic()
            yield None
        for line in whole:
            yield b"".join([*parts, line]).rstrip(b"\r")
            parts, size = [], 0
        if rest and size < _LONGEST:
            parts.append(rest)
            size += len(rest)


def _entry(line: bytes, moment: str) -> Entry:
    """The entry of a line; one that does not say when it was written counts as of `moment`, as the one before it."""
    text = line[len(b"data: ") :].decode("utf-8", "replace")
    try:
        values = json.loads(text, strict=False)
    except (ValueError, RecursionError):  # not of the service's form: shown as it came, or lost
        return Entry(moment, text if len(line) < _LONGEST else "[a line of more than 64 MB is left out]")
    # As text that sorts: `31.1` stands before `31.12`, which `31.1Z` would not.
    time_ = str(values.get("timestamp") or moment).removesuffix("Z").removesuffix("+00:00")
    return Entry(time_, str(values.get("data", "")))


def _until(date: str | None) -> str | None:
    """The last moment that a question of that Date header can have asked for; the header counts whole seconds."""
    with suppress(TypeError, ValueError):
        if date:
            return (parsedate_to_datetime(date).astimezone(UTC) + timedelta(seconds=1)).strftime("%Y-%m-%dT%H:%M:%S.9")
    return None


@contextmanager
def _watched(response: Any) -> Iterator[None]:
    """Break the connection when this machine has slept: the other end has long hung up, and nothing would say so."""
    stream = response.extensions.get("network_stream")
    connection = stream.get_extra_info("socket") if stream else None
    over = threading.Event()
    if connection is not None:
        threading.Thread(target=_guard, args=(connection, over), daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _guard(connection: socket.socket, over: threading.Event) -> None:
    # While a machine sleeps, its monotonic clock stands still and its wall clock goes on.
    gap = _wall() - time.monotonic()
    while not over.wait(_TICK_S):
        now = _wall() - time.monotonic()
        if now - gap > _ASLEEP_S:
            with suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
            return
        gap = now


_wall = time.time
