"""Processes of this machine, told apart by more than a number that the system gives out again."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

Process = dict[str, str | int | None]
"""A process as it is kept in a run's status: `pid` and `identity`."""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


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
    if not process or not process["identity"]:
        return False
    return identity(int(process["pid"] or 0)) == process["identity"]


def end_group(leader: Process | None, grace_s: float, reap: Callable[[], object] = lambda: None) -> None:
    """Ask the process group that this leader began to end, and after `grace_s` seconds make it.

    `reap` is called while waiting: the leader's parent collects its exit status there.
    """
    if not leader or not leader["pid"] or not leader["identity"]:
        return
    group, seen = int(leader["pid"]), str(leader["identity"])
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
