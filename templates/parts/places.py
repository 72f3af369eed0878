"""Where things lie: the Job's volume, the output, the disk, and what is a repo on the Hub."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from parts.say import UserError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


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
