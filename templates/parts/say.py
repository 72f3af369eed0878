"""Lines for whoever follows the run, and errors that say what to do next."""

from __future__ import annotations

import math
from typing import Any


class UserError(Exception):
    """What is wrong and what to do next: shown as one paragraph, without a traceback."""

    def __init__(self, message: str, hint: str = "", status: int = 1) -> None:
        super().__init__(message, hint, status)
        self.paragraph, self.status = f"{message} {hint}".strip(), status


def phase(name: str) -> None:
    print(f"== {name}", flush=True)


def note(text: str) -> None:
    print(text, flush=True)


def reason(error: BaseException) -> str:
    """The first line of what a library says, which often goes on for pages."""
    said = error.args[0] if isinstance(error, UserError) else str(error)
    return next((line.strip(" .") for line in said.splitlines() if line.strip()), type(error).__name__)


def finite(value: Any) -> Any:
    """The same value with null for every number that JSON does not know."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value
