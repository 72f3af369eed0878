"""The command line in this process, which saves starting one for each question."""

from __future__ import annotations

import io
import os
import pty
import re
import sys
import threading
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import cache
from typing import NamedTuple

import pytest
from typer.main import get_command

from launcher.cli import app
from launcher.hub.client import Hub
from launcher.view import console

# Of 20 commands, made anew for each question in a tenth of a second.
COMMANDS = cache(get_command)


class Ran(NamedTuple):
    """What a process would have left."""

    returncode: int
    stdout: str
    stderr: str


def launch(monkeypatch: pytest.MonkeyPatch, *args: str, pause_s: float = 0.001, yes: bool = True) -> int:
    """The exit status of the command line, with short pauses; nobody is there to agree to the default dataset."""
    monkeypatch.setattr(Hub.__init__, "__defaults__", (pause_s,))
    agreed = ["--yes"] if yes and args and args[0] in ("--model", "-m") else []
    monkeypatch.setattr("typer.main.get_command", COMMANDS)
    monkeypatch.setattr(sys, "argv", ["launch", *agreed, *args])
    for make in (console.err, console.out):  # what an earlier one was made for may not hold now
        make.cache_clear()
    try:
        app.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def run(*args: str, env: Mapping[str, str] | None = None, yes: bool = True) -> Ran:
    """Its exit status and what it printed, with short pauses, in an environment with these variables too."""
    out, error = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(error):
        patch.delenv("COLUMNS", raising=False)  # of the terminal that the tests were started from
        for name, value in (env or {}).items():
            patch.setenv(name, value)
        status = launch(patch, *args, yes=yes)
    return Ran(status, out.getvalue(), error.getvalue())


def at_terminal(*args: str, says: str = "", env: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Its exit status and the screen of a terminal of 80 columns, at which somebody types this, and then Ctrl-D."""
    ours, theirs = pty.openpty()
    os.write(ours, f"{says}\x04".encode())
    screen = bytearray()

    def watch() -> None:
        with suppress(OSError):  # the other side was closed
            while part := os.read(ours, 65536):
                screen.extend(part)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with pytest.MonkeyPatch.context() as patch, os.fdopen(os.dup(theirs), "w") as out, os.fdopen(theirs) as typed:
        patch.setenv("COLUMNS", "80")
        patch.setenv("NO_COLOR", "1")
        for name, value in (env or {}).items():
            patch.setenv(name, value)
        for name, stream in (("stdin", typed), ("stdout", out), ("stderr", out)):
            patch.setattr(sys, name, stream)
        status = launch(patch, *args, yes=False)
    watcher.join()
    os.close(ours)
    return status, re.sub(r"\x1b\[[0-9;]*m", "", screen.decode()).replace("\r\n", "\n")
