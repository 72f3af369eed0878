"""What a NAME means, for every command that takes one: a run, a Job, a repo of the Hub, a file or a folder."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from launcher import jobs
from launcher.errors import RequestError, unknown
from launcher.hub import repos
from launcher.hub.client import Hub
from launcher.jobs import folder
from launcher.jobs.base import JobRequest
from launcher.jobs.folder import PLAN, RECORD, Run
from launcher.plan.adapter import CONFIG
from launcher.runs import record
from launcher.runs.record import LARGEST, Kept
from launcher.spec import COMMIT, REPO_ID

LAST = "last"
"""The run that was started here last."""

_MAY_BE = (
    f"A NAME is a run's id or `{LAST}` (`launch ps --all` shows them), a Job's id, NAMESPACE/ID or the address of its "
    f"page, a repo USER/NAME, a {RECORD} or {PLAN}, or the folder of an adapter."
)
# An id as the service gives them, by which a Job of an organisation is told from a repo; behind the address of a page
# it may be of another form.
_JOB = re.compile(
    r"(?P<page>https?://[^/\s]+/jobs/)?(?:(?P<namespace>[A-Za-z0-9][A-Za-z0-9._-]{0,95})/)?"
    r"(?P<id>(?(page)[A-Za-z0-9][A-Za-z0-9_-]{0,95}|[0-9a-f]{24}))"
)
_PAGE = re.compile(r"https://huggingface\.co/")


@dataclass(frozen=True, slots=True)
class LocalRun:
    """A run of this machine."""

    backend: ClassVar = "local"
    run: Run

    @property
    def address(self) -> str:
        """What the backend knows it by."""
        return self.run.id


@dataclass(frozen=True, slots=True)
class HubJob:
    """A Job of the service, whether there is one or not; `run` is its folder here, where it was started from here."""

    backend: ClassVar = "hub"
    id: str
    namespace: str | None = None
    run: Run | None = None

    @property
    def address(self) -> str:
        """What the backend knows it by: without a namespace, in the one that is kept here, else the user's own."""
        return f"{self.namespace}/{self.id}" if self.namespace else self.id


@dataclass(frozen=True, slots=True)
class Repo:
    """A model repo of the Hub, whether there is one or not, at a revision if one is named."""

    id: str
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class File:
    """A file of this machine: the record of a run or a plan, by what is in it. It may not be there."""

    path: Path


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of this machine, with an adapter or a record in it, or named by its path. It may not be there."""

    path: Path


Found = LocalRun | HubJob | Repo | File | Folder
_KINDS = {Repo: "a repo of the Hub", File: "a file", Folder: "a folder"}


def find(name: str) -> Found:
    """What the name means, by its form and by what is on this machine; asks nobody.

    A run's id goes before all else; a path before a repo of the same spelling. Raises `RequestError`, which says what
    a name may be, for any other.
    """
    if name == LAST:
        return _of(_newest())
    if run := folder.find(name):
        return _of(run)
    if folder.is_local(name):
        raise _unknown(name)
    if job := _JOB.fullmatch(name):
        return HubJob(job["id"], job["namespace"], folder.find(job["id"]))
    if REPO_ID.fullmatch(name) and (run := folder.find(name.partition("/")[2])):
        return HubJob(run.id, name.partition("/")[0], run)  # an id of another form, as it was printed
    if path := _path(name):
        return path
    repo, at, revision = _PAGE.sub("", name).partition("@")
    if REPO_ID.fullmatch(repo) and (not at or revision):
        return Repo(repo, revision or None)
    raise _unknown(name)


def find_run(name: str) -> LocalRun | HubJob:
    """The same for commands that take a run or a Job only; `RequestError` for any other thing."""
    found = find(name)
    if isinstance(found, LocalRun | HubJob):
        return found
    raise RequestError(
        f"'{name}' is {_KINDS[type(found)]}, not a run.",
        f"Give a run's id or `{LAST}` (`launch ps --all` shows them), a Job's id, NAMESPACE/ID or the address of its "
        "page.",
    )


def fetch(name: str | Found) -> Run | Kept | JobRequest:
    """What is kept of it: a run that was started here, a record with its script, or the request of a Job.

    Raises `RequestError` where there is none, or it can't be read, and `RefusedError` where a script is not the one
    that its record names.
    """
    match find(name) if isinstance(name, str) else name:
        case LocalRun(run) | HubJob(run=Run() as run):
            return run
        case HubJob() as job:
            return jobs.get(job.backend).recall(job.address)
        case Repo(repo, revision):
            return _from_hub(repo, revision)
        case Folder(path):
            return record.read(path / RECORD)
        case File(path):
            return record.read(path)


def _of(run: Run) -> LocalRun | HubJob:
    return LocalRun(run) if folder.is_local(run.id) else HubJob(run.id, run=run)


def _newest() -> Run:
    if runs := folder.every():
        return runs[0]
    raise RequestError(f"`{LAST}` is the run that was started last, and none was started here yet.", _MAY_BE)


def _path(name: str) -> File | Folder | None:
    """The file or the folder of that path; none for what may be something else."""
    with suppress(OSError, RuntimeError, ValueError):  # too long a name, another's home, a NUL
        path = Path(name).expanduser()
        if path.is_file() or path.name in (RECORD, PLAN):
            return File(path)
        if name.startswith((".", "/", "~")) or any((path / item).is_file() for item in (RECORD, CONFIG)):
            return Folder(path)
    return None


def _unknown(name: str) -> RequestError:
    error = unknown("run", name[:200], (run.id for run in folder.every()), "launch ps --all")
    near = error.hint.partition("?")[0] + "? " if "?" in error.hint else ""
    return RequestError(error.message, near + _MAY_BE)


def _from_hub(repo: str, revision: str | None) -> Kept:
    """The record in a model repo, with its script, both of one commit."""
    hub = Hub()
    commit = revision if COMMIT.fullmatch(revision or "") else repos.see(hub, "model", repo, revision).commit
    where = f"{repo}@{commit}" if commit else repo
    found = record.parse(repos.file(hub, repo, RECORD, commit, LARGEST), f"{RECORD} of {where}")
    page = f"https://huggingface.co/{repo}/blob/{commit or 'main'}/{found.script.name}"
    script = repos.file(hub, repo, found.script.name, commit, LARGEST)
    return record.pair(found, script, where, page, repo)
