"""Every error a user may cause or meet, each with its exit status.

Only a `LauncherError` is shown as a plain paragraph, in one place (`cli.main`); anything else is a bug and keeps its
traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from pydantic import ValidationError

from launcher.text import mask

_LONGEST = 120


class LauncherError(Exception):
    """What is wrong, with the value, and what to do next."""

    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class RequestError(LauncherError):
    """What was asked for is wrong: an unknown name, a bad value, options that contradict each other."""

    exit_code = 2


class RefusedError(LauncherError):
    """Refused before anything was paid for: it does not fit, there is no access, it is too dear."""

    exit_code = 3


class ServiceError(LauncherError):
    """The service or the network failed."""

    exit_code = 4


class JobFailedError(LauncherError):
    """The Job ran and did not end well."""

    exit_code = 1


class InterruptedSubmissionError(LauncherError):
    """Ctrl-C came while a Job was being submitted; the message says what is known of it."""

    exit_code = 130


def unknown(kind: str, name: str, known: Iterable[str], see: str = "") -> RequestError:
    """The error for a name that is not in a table: near matches first, else where the whole table is shown."""
    choices = sorted(known)
    near = difflib.get_close_matches(name.lower(), choices, n=3, cutoff=0.5)
    if near:
        hint = f"Did you mean {' or '.join(near)}?" + (f" `{see}` shows all." if see else "")
    elif see:
        hint = f"`{see}` shows all {len(choices)}."
    else:
        hint = f"Choose {' or '.join(choices)}."
    return RequestError(f"unknown {kind} '{name}'.", hint)


def from_validation(error: ValidationError) -> RequestError:
    """Turn pydantic's findings into one paragraph in the words of the command line.

    Values of tables and lists are not repeated: a secret may have been put there by mistake.
    """
    findings = []
    for item in error.errors():
        name = "--" + str(item["loc"][0]).replace("_", "-") if item["loc"] else ""
        text = item["msg"].removeprefix("Value error, ").removeprefix("Input ")
        if not name:
            findings.append(text)
        elif item["type"] == "extra_forbidden":
            findings.append(f"there is no option {name[:_LONGEST]}")
        elif isinstance(item["input"], str | int | float) and len(item["loc"]) == 1:
            findings.append(f"{name} {_shown(item['input'])}: {text}")
        else:
            findings.append(f"{name}: {text}")
    return RequestError("; ".join(findings) + ".", "`launch --help` lists every option and its default.")


def _shown(value: object) -> str:
    """A value as an error repeats it: never a secret, and not whole where it is long."""
    text = mask(repr(value))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
