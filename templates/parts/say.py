"""Lines for whoever follows the run, and errors that say what to do next."""

from __future__ import annotations

import json
import os
import re
import sys
from typing import Any

# Given by whoever started this, and known to no row: a line that ends with it is the script's own.
MARK = f" #{os.environ['LAUNCH_MARK']}" if os.environ.get("LAUNCH_MARK") else ""


class UserError(Exception):
    """What is wrong and what to do next: shown as one paragraph, without a traceback."""

    def __init__(self, message: str, hint: str = "", status: int = 1) -> None:
        super().__init__(message, hint, status)
        self.paragraph, self.status = f"{message} {hint}".strip(), status

    def tell(self) -> None:
        tell(f"error: {self.paragraph}", sys.stderr)


def tell(line: str, stream: Any = None) -> None:
    """Say one line, whatever it quotes, to whoever follows the run."""
    print(re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", line) + MARK, file=stream, flush=True)


def heard(line: str) -> str | None:
    """What such a line says; none for any other."""
    return line.removesuffix(MARK) if line.endswith(MARK) else None


def phase(name: str) -> None:
    tell(f"== {name}")


def note(text: str) -> None:
    """Say what is for people only."""
    print(text, flush=True)


def reason(error: BaseException) -> str:
    """The first line of what a library says, which often goes on for pages."""
    said = error.args[0] if isinstance(error, UserError) else str(error)
    # The Hub's client begins with the number of its request.
    lines = [line.strip(" .") for line in said.splitlines() if line.strip() and not line.startswith("(Request ID")]
    return lines[0] if lines else type(error).__name__


def finite(value: Any) -> Any:
    """The value as JSON has it, with null for what is no number there."""
    return json.loads(json.dumps(value), parse_constant=lambda _: None, parse_float=lambda text: round(float(text), 6))
