"""Where things lie: the Job's volume, the output, the disk, and what is a repo on the Hub."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from parts.say import UserError, note, reason

# In a folder that is a run's own, and locked while one works in it.
OWN = ".launch"
# Seconds between two signs of life on a volume, where nothing can be locked.
ALIVE_S = 50.0
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)


def volume() -> Path | None:
    """The folder that outlives a Job's machine, or none where this is no Job."""
    if os.environ.get("LAUNCH_DATA_DIR"):
        return Path(os.environ["LAUNCH_DATA_DIR"])
    return Path("/data") if os.environ.get("JOB_ID") and Path("/data").is_dir() else None


def is_jobs_own(args: Any) -> bool:
    """Whether what is written goes to this Job's volume, where every attempt finds the same."""
    return bool(volume()) and not args.output_dir


def output_folder(args: Any) -> Path:
    """Where the model is saved."""
    place = volume()
    if args.output_dir:
        return Path(args.output_dir)
    return place / "output" if place else Path("outputs", args.run_name)


def claim(args: Any) -> None:
    """Make the output folder this run's own, until the process ends.

    Raises `UserError` of status 2 where it holds what no run made: there nothing is replaced, deleted or pushed; of
    status 3 where another run works in it, or it can't be written to.
    """
    folder, jobs_own = output_folder(args), is_jobs_own(args)
    place = str(folder.resolve())
    # Locked by what started this process, or what it was before it began again.
    if place == os.environ.get("LAUNCH_HOLDS"):
        return
    try:
        own = jobs_own or any((folder / name).is_file() for name in (OWN, "checkpoints/attempt"))
        if not own and folder.exists() and any(folder.iterdir()):
            hint = "Give --output-dir another one, or an empty one."
            raise UserError(f"the output folder {folder} is not empty, and no run made it.", hint, status=2)
        folder.mkdir(parents=True, exist_ok=True)
        if jobs_own:
            # Anew in each process: no thread outlives that, as a lock does.
            show_life(folder.with_name("alive"))
        else:
            lock(folder / OWN)
            os.environ["LAUNCH_HOLDS"] = place
    except OSError as error:
        hint = "Make room, or give --output-dir another folder."
        raise UserError(f"the output folder {folder} can't be used ({reason(error)}).", hint, status=3) from error


def lock(path: Path) -> None:
    """Hold the file until this process ends, however it ends; it may begin again in its own place."""
    file = os.open(path, os.O_CREAT | os.O_RDWR)
    os.set_inheritable(file, True)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        hint = "Wait for its end, or give --output-dir another folder."
        raise UserError(f"another run works in {path.parent}.", hint, status=3) from error
    except OSError:
        note(f"{path.parent} can't be locked: start no second run in it")


def show_life(path: Path) -> None:
    """Refuse where another Job writes its sign of life into that file, and write this one's from now on."""
    job = os.environ.get("JOB_ID", "")

    def read() -> tuple[str, float]:
        try:
            other, moment = path.read_text(encoding="utf-8").split()
            return other, float(moment)
        except (OSError, ValueError):
            return job, 0.0

    def write() -> None:
        while True:
            try:
                path.write_text(f"{job} {time.time()}", encoding="utf-8")
            except OSError as error:
                note(f"{path} can't be written ({reason(error)})")
            time.sleep(ALIVE_S)

    other, moment = read()
    if other != job and time.time() - moment < 3 * ALIVE_S:
        time.sleep(2 * ALIVE_S)
        if read()[1] > moment:
            hint = f"`launch wait {other}` follows it, `launch cancel {other}` stops it."
            raise UserError(f"Job {other} works on this run.", hint, status=3)
    threading.Thread(target=write, daemon=True).start()


def is_commit(revision: str | None) -> bool:
    """Whether that is a whole commit hash, which names the same files for ever."""
    return bool(re.fullmatch("[0-9a-f]{40}", revision or ""))


def is_hub_id(name: str) -> bool:
    """Whether that names a repo on the Hub: what is there on this machine wins, as it does when it is loaded."""
    return bool(HUB_ID.fullmatch(name)) and not Path(name).exists()


def require_disk(folder: Path, needed: float, told: Sequence[str], hint: str) -> None:
    """Refuse where the folder's disk has less room than that many bytes; `told` is what they are."""
    place = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    usage = shutil.disk_usage(place)
    # A mounted bucket has no size.
    if usage.total and usage.free < needed:
        message = f"the disk of {place} has {usage.free / 1e9:.2f} GB free, and this run writes {needed / 1e9:.2f} GB"
        raise UserError(f"{message} ({', '.join(told)}).", hint, status=3)


def sha256(path: Path, *, sync: bool = False) -> str:
    """The file's hash; with `sync` its content is on the disk afterwards."""
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()
