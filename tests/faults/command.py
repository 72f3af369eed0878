"""The command line in this process."""

from __future__ import annotations

import sys

import pytest

from launcher.cli import app
from launcher.hub.client import Hub


def launch(monkeypatch: pytest.MonkeyPatch, *args: str, pause_s: float = 0.001) -> int:
    """The exit status of the command line, with short pauses."""
    monkeypatch.setattr(Hub.__init__, "__defaults__", (pause_s,))
    monkeypatch.setattr(sys, "argv", ["launch", *args])
    try:
        app.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0
