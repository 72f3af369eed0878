"""The exporter beside the script: what is heard of it, and that a signal to the training reaches it too."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from parts import second
from parts.clock import CLOCK

from tests.unit.sample import options

MADE = {"kind": "gguf", "name": "f16", "path": "m.F16.gguf", "repo": None, "gib": 1.0, "checked": "so", "error": None}


@pytest.fixture(autouse=True)
def clock() -> Iterator[None]:
    handler = signal.signal(signal.SIGTERM, CLOCK.on_signal)
    yield
    signal.signal(signal.SIGTERM, handler)
    CLOCK.deadline, CLOCK.signalled = float("inf"), 0.0


def put_exporter(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / second.EXPORTER).write_text(f"import os, signal, sys, time\n{body}", encoding="utf-8")
    monkeypatch.setattr(second, "__file__", str(folder / "sft_text.py"))


def test_what_the_exporter_made_and_said_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = f"error: the adapter is whole; again: launch export {tmp_path} --gguf f16"
    body = f"print('== merge')\nprint('RESULT {{\"exports\": [], \"url\": 1}}')\nprint({failed!r})\nsys.exit(1)\n"
    put_exporter(tmp_path, body, monkeypatch)
    copies, error = second.make_copies(options("--gguf", "f16"), tmp_path, "me/model")
    assert copies == []
    assert error is not None
    assert error.paragraph == "the adapter is whole; again: launch export me/model --gguf f16"
    assert capsys.readouterr().out == "== merge\n"


def test_of_an_exporter_that_broke_off_no_copy_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_exporter(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)\n", monkeypatch)
    copies, error = second.make_copies(options("--merge", "16bit", "--gguf", "f16"), tmp_path, None)
    said = "export.py ended with status -9"
    assert [(copy["kind"], copy["name"], copy["error"]) for copy in copies] == [
        ("merged", "16bit", said), ("gguf", "f16", said),
    ]  # fmt: skip
    assert copies[0].keys() == MADE.keys()
    assert error is not None
    assert said in error.paragraph


def test_a_signal_reaches_the_exporter_which_tells_what_it_has_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = """
def stop(number, frame):
    print('RESULT {"exports": ["stopped"]}', flush=True)
    sys.exit(0)

signal.signal(signal.SIGTERM, stop)
os.kill(os.getppid(), signal.SIGTERM)
while True:
    time.sleep(60)
"""
    put_exporter(tmp_path, body, monkeypatch)
    assert second.make_copies(options("--gguf", "f16"), tmp_path, None) == (["stopped"], None)
    assert CLOCK.signalled
    assert signal.getsignal(signal.SIGTERM) == CLOCK.on_signal
