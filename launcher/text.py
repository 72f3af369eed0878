"""Text from a Job, made safe to show and to keep."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from launcher import masks

LONGEST = 1 << 18
"""Characters of a line that are kept; a RESULT with all its samples is a tenth of that."""

# Each alternative stops at the next escape, so that a line of nothing but escapes still takes linear time.
_ESCAPE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*+[ -/]*+[@-~]?"  # CSI, in two bytes or one: colours, cursor
    r"|\x1b[\]PX^_][^\x07\x1b\x9c]*+(?:\x07|\x9c|\x1b\\)?"  # OSC, DCS, SOS, PM, APC: titles, links, clipboard
    # The same in one byte: also what a wrong encoding makes of a quotation mark, so only with its end.
    r"|[\x90\x98\x9d-\x9f][^\x07\x1b\x90\x98\x9c-\x9f]*+(?:\x07|\x9c|\x1b\\)"
    r"|\x1b(?:[ -/]++[0-~]?|[0-~])?"  # charset and other two-byte ones
)
# What is left of the control characters, what would end a line of the transcript, and the marks that turn the
# direction of text or tag it unseen.
_CONTROL = re.compile(
    "[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)


def plain(line: str) -> str:
    """One line as a terminal would leave it standing: no escapes, no control characters, the last of any overwrites."""
    if not line.isascii():
        line = line.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate can be printed nowhere
    if line.isprintable():
        return line
    line = _ESCAPE.sub("", line).rstrip("\r\n")
    return _CONTROL.sub("", line.rsplit("\r", 1)[-1]) if "\r" in line else _CONTROL.sub("", line)


def cut(line: str) -> str:
    """The line, or its beginning and a note that says how many characters there were: LONGEST at most, in all."""
    note = f" … [cut: {len(line):,} characters]"
    return line if len(line) <= LONGEST else line[: LONGEST - len(note)] + note


def safe(line: str, secrets: Iterable[str]) -> str:
    """One line as it may be shown and kept: `plain`, without secrets, and not longer than anyone reads."""
    return cut(redact(plain(line), secrets))


def clean(value: Any, secrets: Iterable[str]) -> Any:
    """A value out of JSON with each text in it, keys too, `safe`: decoding makes escapes that no line had.

    A text keeps its line ends. Raises `RecursionError` for one that is nested too deep.
    """
    if isinstance(value, str):
        return "\n".join(safe(line, secrets) for line in value.replace("\r\n", "\n").split("\n"))
    if isinstance(value, dict):
        return {clean(key, secrets): clean(item, secrets) for key, item in value.items()}
    return [clean(item, secrets) for item in value] if isinstance(value, list) else value


class Redactor:
    """Replaces secrets in a stream of bytes, wherever the stream is cut; ones shorter than 6 bytes are left alone."""

    MASK = b"***"

    def __init__(self, secrets: Iterable[str]) -> None:
        values = {secret.encode("utf-8", "surrogateescape") for secret in secrets}
        self._secrets = sorted((value for value in values if len(value) >= 6), key=len, reverse=True)
        self._held = b""

    def feed(self, chunk: bytes) -> bytes:
        """What may be written now; the start of what could become a secret is held back."""
        data = self._held + chunk
        for secret in self._secrets:
            data = data.replace(secret, self.MASK)
        held = max((self._overlap(data, secret) for secret in self._secrets), default=0)
        self._held = data[len(data) - held :]
        return data[: len(data) - held]

    def flush(self) -> bytes:
        """What was held back, at the end of the stream."""
        held, self._held = self._held, b""
        return held

    @staticmethod
    def _overlap(data: bytes, secret: bytes) -> int:
        longest = min(len(secret) - 1, len(data))
        return next((size for size in range(longest, 0, -1) if data.endswith(secret[:size])), 0)


class Transcript:
    """Turns a stream of bytes into the lines of a transcript, each of them `safe`, however long one is."""

    _HELD = LONGEST * 4

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets = tuple(secrets)
        self._rest, self._dropped = b"", 0

    def feed(self, chunk: bytes) -> bytes:
        """The lines that this chunk ends; what it begins is held back."""
        *lines, rest = (self._rest + chunk).split(b"\n") if b"\n" in chunk else [self._rest + chunk]
        written = b"".join(self._line(line) for line in lines)
        if len(rest) > self._HELD:
            rest = rest[rest.rfind(b"\r") + 1 :]  # a progress bar of hours: the earlier ones are overwritten
        self._rest = rest[: self._HELD]
        self._dropped += len(rest) - len(self._rest)
        return written

    def flush(self) -> bytes:
        """A last line that was never ended."""
        return self._line(self._rest) if self._rest else b""

    def _line(self, line: bytes) -> bytes:
        text = safe(line.decode("utf-8", "replace"), self._secrets)
        note = f" [{self._dropped:,} bytes left out]" if self._dropped else ""
        self._dropped = 0
        return f"{text}{note}\n".encode()


def redact(text: str, secrets: Iterable[str]) -> str:
    """The text without the given secrets, and without anything that looks like a token."""
    return masks.mask(text, secrets)
