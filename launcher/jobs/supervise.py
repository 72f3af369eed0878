"""`python -m launcher.jobs.supervise RUN_DIR`: runs the command of one local run and records what becomes of it.

It outlives the launcher. Only this process writes a run's status while it lives. Processes are told apart by more than
a number that the system gives out again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, TypeGuard

from launcher import home
from launcher.jobs.base import now
from launcher.jobs.folder import COMMAND, STATUS, Run
from launcher.text import Redactor, Transcript, held

Process = dict[str, Any]
"""A process as it is kept in a run's status: `pid` and `identity`."""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_POLL_S = 0.25
_LONGEST_INSISTED_S = 60


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
    record(run, supervisor=describe(os.getpid()))
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


def _insist(run: Run, **changes: Any) -> None:
    """Record how the run ended; a disk that is full may have room in a moment."""
    for _ in range(_LONGEST_INSISTED_S):
        with suppress(OSError):
            record(run, **changes)
            return
        time.sleep(1)
    record(run, **changes)


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
    leader = describe(child.pid)
    with home.spared():
        record(run, stage="RUNNING", started_at=now().isoformat(), child=leader)
    # The script sees this shell's other secrets too, and may print them.
    hidden = [os.environ[name] for name in command["secrets"] if os.environ.get(name)] + [*held()]
    pump = threading.Thread(target=_copy, args=(child, run.log, hidden), daemon=True)
    pump.start()
    cause = _wait(child, asked, command["timeout_s"])
    # What the script left behind goes too, or it would hold the log open and the machine busy.
    end_group(leader, command["grace_s"] if cause else 2.0, reap=child.poll)
    pump.join(timeout=10)
    end = _end(cause, child.wait(), command["timeout_s"])
    _insist(run, **end, finished_at=now().isoformat())


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


def identity(pid: int) -> str | None:
    """What tells this process from any other that ever had its number; none for one that is gone or a zombie."""
    if _BOOT_ID.exists():
        fields = _stat(pid)
        return f"{_boot()}:{fields[19]}" if fields and fields[0] not in "ZX" else None
    asked = ["ps", "-o", "stat=", "-o", "lstart=", "-p", str(pid)]
    shown = subprocess.run(asked, capture_output=True, text=True, check=False, env={"LC_ALL": "C", "PATH": os.defpath})
    found = shown.stdout.split(maxsplit=1)
    return None if len(found) < 2 or found[0].startswith("Z") else found[1].strip()


def _boot() -> str:
    return _BOOT_ID.read_text(encoding="ascii").strip()


def _stat(pid: int) -> list[str]:
    """The fields of Linux's /proc/PID/stat from the state on; empty for no such process."""
    try:
        # The name in brackets may hold spaces and brackets itself: the fields begin behind the last one.
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def describe(pid: int) -> Process:
    """The process as it is now."""
    return {"pid": pid, "identity": identity(pid)}


def is_alive(process: Process | None) -> bool:
    """True while the very process that `describe` saw is there."""
    return _is_known(process) and identity(process["pid"]) == process["identity"]


def _is_known(process: Any) -> TypeGuard[Process]:
    """Whether this is what `describe` gives of a process that was there."""
    return (
        isinstance(process, dict) and isinstance(process.get("pid"), int) and isinstance(process.get("identity"), str)
    )


def end_group(leader: Process | None, grace_s: float, reap: Callable[[], object] = lambda: None) -> None:
    """Ask the process group that this leader began to end, and after `grace_s` seconds make it.

    `reap` is called while waiting: the leader's parent collects its exit status there.
    """
    if not _is_known(leader) or leader["pid"] <= 1:  # 1 and below are no group of ours
        return
    group, seen = leader["pid"], leader["identity"]
    if identity(group) not in (None, seen) or (_BOOT_ID.exists() and not seen.startswith(_boot())):
        return  # the number was given out again: those processes are somebody else's
    for sent, seconds in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, sent)
        deadline = time.monotonic() + seconds
        while _group_lives(group):
            if time.monotonic() > deadline:
                break
            reap()
            time.sleep(0.05)
        else:
            return


def _group_lives(group: int) -> bool:
    if _BOOT_ID.exists():  # not killpg(group, 0): that counts zombies, and not every container has an init to reap them
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                fields = _stat(int(folder.name))
                if fields and fields[2] == str(group) and fields[0] not in "ZX":
                    return True
        return False
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):  # macOS gives the second one for zombies
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
