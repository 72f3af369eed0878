"""What the text of an option may be, so that it is safe in a path, a URL, a header or on a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from launcher import masks

COMMIT = re.compile(r"[0-9a-f]{40}")
"""A whole commit hash, as the Hub shows it."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,255}")
# Of git's own rules for a branch or a tag, what the Hub takes; a revision becomes a part of URLs and of cache folders.
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*(?:/[A-Za-z0-9_][A-Za-z0-9._+-]*)*")
# Control characters, line ends of any kind, and the marks that turn the direction of text.
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
_LONGEST, _LONGEST_NAME = 2048, 255


def check_text(value: object, *, free: bool = False) -> None:
    """Raise `ValueError` for a secret in any text of the value, and, unless it is `free`, for what can't be seen."""
    for text in _texts(value):
        if masks.holds_secret(text):
            raise ValueError("looks like a token, and others would see it: give the names of secrets with --secrets")
        if "\0" in text:
            raise ValueError("can't hold a NUL character")
        if not free and not text:
            raise ValueError("should not be empty: leave it away for the default")
        if not free and (len(text) > _LONGEST or _UNSEEN.search(text)):
            raise ValueError(f"should be one line of at most {_LONGEST} characters, without control characters")


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


def _check_revision(name: str) -> str:
    if not _REVISION.fullmatch(name) or ".." in name:
        raise ValueError("should be a branch, a tag or a commit: letters, digits, '.', '-', '_', '+' and '/'")
    return name


def _check_part(name: str) -> str:
    if "/" in name or "\\" in name or name.strip(".") == "":
        raise ValueError("should be a name, not a path")
    return name


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name) or ".." in name:
        raise ValueError("should be letters, digits, '-', '_' and '.', beginning with a letter or digit")
    return name


def _check_image(name: str) -> str:
    if not _IMAGE.fullmatch(name) or ".." in name:
        raise ValueError("should be an image such as ghcr.io/astral-sh/uv:python3.12-bookworm")
    return name


def check_place(name: str) -> str:
    """A model or a dataset may be a path: one that the system can look at."""
    if any(len(part.encode()) > _LONGEST_NAME for part in name.split("/")):
        raise ValueError(f"a name between two slashes should be at most {_LONGEST_NAME} bytes long")
    try:
        Path(name).expanduser()
    except RuntimeError as error:
        raise ValueError("there is no user of that name here") from error
    return name


Revision = Annotated[str, AfterValidator(_check_revision)]
Part = Annotated[str, AfterValidator(_check_part)]
Name = Annotated[str, AfterValidator(_check_name)]
Image = Annotated[str, AfterValidator(_check_image)]
Place = Annotated[str, AfterValidator(check_place)]
