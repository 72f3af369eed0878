"""`python -m launcher.jobs.supervise RUN_DIR`: runs the command of one local run and records what becomes of it.

It outlives the launcher. Only this process writes a run's status while it lives.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from launcher.jobs import process as _process
from launcher.jobs.base import now
from launcher.jobs.folder import STATUS, Run
from launcher.text import Redactor, Transcript, held

COMMAND = "command.json"
_POLL_S = 0.25


def main(folder: Path) -> int:
    """Fork the supervisor; return 0 once it has recorded itself in the status, else 1."""
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        return 0 if os.read(reader, 1) else 1
    os.close(reader)
    asked = threading.Event()

    def ask(_signal: int, _frame: FrameType | None) -> None:
        asked.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask)
    run = Run(folder)
    record(run, supervisor=_process.describe(os.getpid()))
    os.write(writer, b".")
    os.close(writer)
    try:
        _supervise(run, asked)
    except Exception as error:
        record(run, stage="ERROR", message=f"the supervisor failed: {error}", finished_at=now().isoformat())
        raise
    return 0


def record(run: Run, **changes: Any) -> dict[str, Any]:
    """Change some keys of the status, and return all of them."""
    status = run.read(STATUS) | changes
    run.write(STATUS, status)
    return status


def _supervise(run: Run, asked: threading.Event) -> None:
    command = run.read(COMMAND)
    inherited = {name: value for name, value in os.environ.items() if name not in command["unset"]}
    child = subprocess.Popen(
        command["argv"],
        cwd=run.folder,
        env=inherited | command["env"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    leader = _process.describe(child.pid)
    record(run, stage="RUNNING", started_at=now().isoformat(), child=leader)
    # The script sees this shell's other secrets too, and may print them.
    hidden = [os.environ[name] for name in command["secrets"] if os.environ.get(name)] + [*held()]
    pump = threading.Thread(target=_copy, args=(child, run.log, hidden), daemon=True)
    pump.start()
    cause = _wait(child, asked, command["timeout_s"])
    # What the script left behind goes too, or it would hold the log open and the machine busy.
    _process.end_group(leader, command["grace_s"] if cause else 2.0, reap=child.poll)
    pump.join(timeout=10)
    record(run, **_end(cause, child.wait(), command["timeout_s"]), finished_at=now().isoformat())


def _wait(child: subprocess.Popen[bytes], asked: threading.Event, timeout_s: float) -> str | None:
    """Why the child must be ended: `canceled` or `timeout`; none where it ended by itself."""
    deadline = time.monotonic() + timeout_s
    while child.poll() is None:
        if asked.is_set():
            return "canceled"
        if time.monotonic() >= deadline:
            return "timeout"
        with suppress(subprocess.TimeoutExpired):
            child.wait(_POLL_S)
    return None


def _end(cause: str | None, code: int, timeout_s: float) -> dict[str, Any]:
    if cause == "canceled":
        return {"stage": "CANCELED", "message": "canceled", "exit_code": code}
    # One that ended well when its time was up has kept all: the script counts from a later start than this does.
    if cause == "timeout" and code != 0:
        return {"stage": "ERROR", "message": f"timeout: stopped after {timeout_s:g} seconds", "exit_code": code}
    if code == 0:
        return {"stage": "COMPLETED", "message": None, "exit_code": code}
    if code < 0:
        return {"stage": "ERROR", "message": f"killed by {signal.Signals(-code).name}", "exit_code": code}
    return {"stage": "ERROR", "message": f"exit status {code}", "exit_code": code}


def _copy(child: subprocess.Popen[bytes], log: Path, secrets: list[str]) -> None:
    """Write each line that the child prints to the transcript, until every holder of the pipe has closed it."""
    assert child.stdout is not None
    # As it came for one of several lines, and in each line once no escape stands in the middle of one.
    redactor, transcript = Redactor(secrets), Transcript(secrets)
    with os.fdopen(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "wb", buffering=0) as sink:
        while chunk := os.read(child.stdout.fileno(), 1 << 16):
            with suppress(OSError):  # a full disk loses lines of the transcript, never the run
                sink.write(transcript.feed(redactor.feed(chunk)))
        with suppress(OSError):
            sink.write(transcript.feed(redactor.flush()) + transcript.flush())


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
