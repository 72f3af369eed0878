"""Where text for people goes: results to stdout, everything else to stderr; loaded with the first text.

rich takes as long to import as a plan takes to make, and `--json` needs none of it.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

# What a plan is laid out for; rich takes 80 for what is no terminal.
_WIDTH = 100


@cache
def err() -> Console:
    """The console of everything that is not a result."""
    return _console(stderr=True)


@cache
def out() -> Console:
    """The console of results."""
    return _console(stderr=False)


def _console(stderr: bool) -> Console:
    from rich.console import Console

    free = "COLUMNS" in os.environ or (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, highlight=False, emoji=False, width=None if free else _WIDTH)
