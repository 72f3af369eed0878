"""Text from anybody, made safe to show and to keep: no secrets, and nothing that a terminal would act on."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

MASK = "***"
SHORTEST = 6
"""Characters below which a value is too common a word to be looked for."""

# The Hub's tokens, those of its logins too, and those of the services that a training script talks to: what follows the
# prefix is random. With a dash where the command line has read a token as an option.
_TOKEN = re.compile(
    r"(?<![A-Za-z0-9])(?:(?:hf|api_org)_[A-Za-z0-9]{16,}|(?:hf-|gh[opsur][_-])[A-Za-z0-9]{30,}|github_pat_\w{30,}"
    r"|hf[_-](?:oauth|jwt)[_-](?=[a-z._~+/=-]*[A-Z0-9])[\w.~+/=-]{16,}"
    r"|sk-(?:[a-z0-9]+-){0,2}\w{24,}|AKIA[A-Z0-9]{16})",
    re.ASCII,
)
_URL_PASSWORD = re.compile(r"(://[^/\s:@]*:)([^/\s@]+)(?=@)")
_SECRET_NAME = re.compile(
    r"(TOKEN|API_?KEY|ACCESS_KEY|PRIVATE_KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE
)

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
# Control characters, line ends of any kind, and the marks that turn the direction of text.
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
_LONGEST_OPTION = 2048


# ---- Secrets ---------------------------------------------------------------------------------------------------------


def holds_secret(text: str) -> bool:
    """Whether something in the text looks like a token, or is the password in a URL."""
    return bool(_TOKEN.search(text) or _URL_PASSWORD.search(text))


def is_secret_name(name: str) -> bool:
    """Whether a variable of that name is likely to hold a secret."""
    return _SECRET_NAME.search(name) is not None


def mask(text: str, secrets: Iterable[str] = ()) -> str:
    """The text without the given secrets, without what looks like a token, and without passwords in URLs."""
    spelled = {form for value in secrets if len(value) >= SHORTEST for form in _spellings(value)}
    for secret in sorted(spelled, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return _URL_PASSWORD.sub(rf"\g<1>{MASK}", _TOKEN.sub(MASK, text))


@lru_cache(maxsize=256)  # a log has many lines, and a machine few secrets
def _spellings(secret: str) -> tuple[str, ...]:
    """The secret as it is, and as it stands in JSON."""
    return secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]


def held(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The secrets of this shell and of the Hub's login, without loading the Hub's client."""
    found = [value for name, value in environment.items() if is_secret_name(name)]
    home = Path(environment.get("HF_HOME") or Path(environment.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    with suppress(OSError, RuntimeError, ValueError):
        login = Path(environment.get("HF_TOKEN_PATH") or home / "token").expanduser()
        found.append(login.read_text(encoding="utf-8").strip())
    return tuple(dict.fromkeys(value for value in found if len(value) >= SHORTEST))


# ---- Terminals -------------------------------------------------------------------------------------------------------


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
    return cut(mask(plain(line), secrets))


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


# ---- Options ---------------------------------------------------------------------------------------------------------


def check_text(value: object, *, free: bool = False) -> None:
    """Raise `ValueError` for a secret in any text of the value, and, unless it is `free`, for what can't be seen."""
    for text in _texts(value):
        if holds_secret(text):
            raise ValueError("looks like a token, and others would see it: give the names of secrets with --secrets")
        if "\0" in text:
            raise ValueError("can't hold a NUL character")
        if not free and not text:
            raise ValueError("should not be empty: leave it away for the default")
        if not free and (len(text) > _LONGEST_OPTION or _UNSEEN.search(text)):
            raise ValueError(f"should be one line of at most {_LONGEST_OPTION} characters, without control characters")


def _texts(value: object) -> Iterator[str]:
    """Every text in the value of an option."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from (str(key), str(item))
    elif isinstance(value, tuple):
        for item in value:
            yield from _texts(item)
