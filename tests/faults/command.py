"""The command line in this process, which saves starting one for each question."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from typing import NamedTuple

import pytest

from launcher.cli import app
from launcher.hub.client import Hub
from launcher.view import console


class Ran(NamedTuple):
    """What a process would have left."""

    returncode: int
    stdout: str
    stderr: str


def launch(monkeypatch: pytest.MonkeyPatch, *args: str, pause_s: float = 0.001) -> int:
    """The exit status of the command line, with short pauses."""
    monkeypatch.setattr(Hub.__init__, "__defaults__", (pause_s,))
    monkeypatch.setattr(sys, "argv", ["launch", *args])
    for make in (console.err, console.out):  # what an earlier one was made for may not hold now
        make.cache_clear()
    try:
        app.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def run(*args: str, env: Mapping[str, str] | None = None) -> Ran:
    """Its exit status and what it printed, with short pauses, in an environment with these variables too."""
    out, error = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(error):
        patch.delenv("COLUMNS", raising=False)  # of the terminal that the tests were started from
        for name, value in (env or {}).items():
            patch.setenv(name, value)
        status = launch(patch, *args)
    return Ran(status, out.getvalue(), error.getvalue())
