"""Text from a Job, made safe to show and to keep."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Each alternative stops at the next escape, so that a line of nothing but escapes still takes linear time.
_ESCAPE = re.compile(
    r"[\x1b\x9b](?:"
    r"(?<=\x9b)[0-?]*[ -/]*[@-~]?"  # CSI in its one-byte form
    r"|\[[0-?]*[ -/]*[@-~]?"  # CSI: colours, cursor
    r"|[\]PX^_][^\x07\x1b\x9c]*(?:\x07|\x9c|\x1b\\)?"  # OSC, DCS, SOS, PM, APC: titles, links, clipboard
    r"|[ -/]+[0-~]?|[0-~])?"  # charset and other two-byte ones
)
# What is left of the control characters, and the marks that turn the direction of text.
_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def plain(line: str) -> str:
    """One line as a terminal would leave it standing: no escapes, no control characters, the last of any overwrites."""
    if not line.isascii():
        line = line.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate can be printed nowhere
    if line.isprintable():
        return line
    line = _ESCAPE.sub("", line).rstrip("\r\n")
    return _CONTROL.sub("", line.rsplit("\r", 1)[-1]) if "\r" in line else _CONTROL.sub("", line)


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


def redact(text: str, secrets: Iterable[str]) -> str:
    """The text without the given secrets, and without anything that looks like a token of the Hub."""
    for secret in sorted((value for value in secrets if len(value) >= 6), key=len, reverse=True):
        text = text.replace(secret, "***")
    return re.sub(r"\bhf_[A-Za-z0-9]{16,}", "hf_***", text)
