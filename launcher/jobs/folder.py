"""One folder a run: what was asked for, what was sent, what came back. Private to its owner, and without secrets."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from launcher import home
from launcher.errors import RequestError, unknown
from launcher.jobs.base import PLAN_FILE as PLAN
from launcher.jobs.base import JobRequest
from launcher.plan.adapter import RECORD
from launcher.plan.record import READ, AnyPlan

# The files of a run: what was decided, what was sent, how it stands, what it said; RECORD lies beside a trained model.
REQUEST, STATUS, LOG = "request.json", "status.json", "log"
PART = "log.part"
"""The transcript while somebody follows."""
COMMAND, NOTES = "command.json", "supervisor.log"
"""Of a run of this machine: what its supervisor starts, and what it said itself."""
__all__ = [
    "COMMAND", "LOG", "NOTES", "PART", "PLAN", "RECORD", "REQUEST", "STATUS", "Run", "create", "digest", "every",
    "find", "is_id", "is_local", "load",
]  # fmt: skip

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,95}")
_LOCAL_ID = re.compile(r"local-\d{8}-\d{6}-[0-9a-f]{4}")
_STAGING = ".new-"


def is_id(name: str) -> bool:
    """True for what may be the id of a run, and so the name of its folder."""
    return _ID.fullmatch(name) is not None


def is_local(run_id: str) -> bool:
    """True for the id of a run on this machine, such as `local-20261124-103012-ab12`."""
    return _LOCAL_ID.fullmatch(run_id) is not None


def began(run_id: str) -> datetime:
    """When the run of this machine with that id was first started."""
    with suppress(ValueError):  # a folder that somebody named so
        return datetime.strptime(run_id[6:21], "%Y%m%d-%H%M%S").replace(tzinfo=UTC)
    return datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class Run:
    """The folder of one run. Files appear whole or not at all, and only their owner can read them."""

    folder: Path

    @property
    def id(self) -> str:
        """The run's id: the Job's, where it runs on a service."""
        return self.folder.name

    @property
    def log(self) -> Path:
        """The transcript; it may not exist yet."""
        return self.folder / LOG

    @property
    def mark(self) -> str | None:
        """How the lines of its transcript end that it said for the launcher; none where it said them without."""
        mark = self.read(STATUS).get("mark")
        return mark if isinstance(mark, str) else None

    def write(self, name: str, content: str | dict[str, Any]) -> Path:
        """Replace one file in one step, by text or by an object written as JSON."""
        text = content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        return home.write(self.folder / name, text)

    def read(self, name: str) -> dict[str, Any]:
        """The object in one of the JSON files; empty where there is no such file, or not a whole one."""
        with suppress(OSError, ValueError, RecursionError):
            content = json.loads((self.folder / name).read_bytes())
            return content if isinstance(content, dict) else {}
        return {}

    @property
    def inputs(self) -> dict[str, str]:
        """The SHA-256 of each data file that the run was started with, by its path; empty where that is not kept."""
        files = self.read(REQUEST).get("files")
        return {name: str(value) for name, value in files.items()} if isinstance(files, dict) else {}

    def plan(self) -> AnyPlan:
        """The plan of the run; `RequestError` where this version of the launcher can't read it."""
        try:
            return READ.validate_json((self.folder / PLAN).read_bytes())
        except (OSError, ValidationError) as error:
            raise RequestError(
                f"the plan of run '{self.id}' can't be read: it is not there, or another version of launch wrote it.",
                f"Look at {self.folder / PLAN}, and start the run anew with its options.",
            ) from error

    def rename(self, run_id: str) -> Run:
        """Give a new run its id, after which it can be found; raises `FileExistsError` where the id is taken,
        and `ValueError` for one that can't safely name a folder.
        """
        if not _ID.fullmatch(run_id):
            raise ValueError(f"not an id: {run_id!r}")
        target = self.folder.with_name(run_id)
        if target.exists():
            raise FileExistsError(target)
        return Run(self.folder.rename(target))

    def discard(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def create(request: JobRequest, backend: str) -> Run:
    """A new run that holds the request but has no id yet: it is found by nobody until `rename`."""
    folder = home.data() / "runs" / f"{_STAGING}{secrets.token_hex(8)}"
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.mkdir(mode=0o700)
    run = Run(folder)
    try:
        run.write(PLAN, request.plan.model_dump_json(indent=2) + "\n")
        for name, text in {request.script_name: request.script, **request.beside}.items():
            run.write(name, text)
        run.write(
            REQUEST,
            {
                "backend": backend,
                "script_name": request.script_name,
                "script_args": list(request.script_args),
                "namespace": request.namespace,
                "files": {name: digest(Path(name)) for name in request.files},
                **request.describe(),
            },
        )
    except BaseException:
        run.discard()
        raise
    return run


@contextmanager
def locked(folder: Path | None = None) -> Iterator[None]:
    """Let one launcher of this machine at a time go on with the run in that folder, or with any Job.

    Where nothing can be locked, it goes on without.
    """
    with ExitStack() as stack:
        with suppress(OSError):
            place = os.open(folder or home.data() / "runs", os.O_RDONLY)
            stack.callback(os.close, place)
            fcntl.flock(place, fcntl.LOCK_EX)
        yield


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find(run_id: str) -> Run | None:
    """The run of that id, if there is a folder for it here."""
    folder = home.data() / "runs" / run_id
    with suppress(OSError):
        return Run(folder) if is_id(run_id) and folder.is_dir() else None
    return None


def load(run_id: str) -> Run:
    """The run of that id; `RequestError` with the near matches where there is none."""
    run = find(run_id)
    if run is None:
        raise unknown("run", run_id, (run.id for run in every()), "launch ps --all")
    return run


def every() -> list[Run]:
    """All runs that have a folder here, those made last first."""
    made = []
    with suppress(OSError):
        for path in (home.data() / "runs").iterdir():
            with suppress(OSError):  # the folder of a run without a plan is not one
                if is_id(path.name) and path.is_dir():
                    made.append(((path / PLAN).stat().st_mtime, path.name))
    return [Run(home.data() / "runs" / name) for _, name in sorted(made, reverse=True)]
