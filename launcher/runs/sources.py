"""Where a run is kept: a folder of this machine, a `run.json`, a repo of the Hub, or a Job of one's own elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

from launcher import jobs as backends
from launcher.errors import RequestError
from launcher.jobs import folder as runs
from launcher.jobs.base import JobRequest
from launcher.jobs.folder import Run
from launcher.runs import record
from launcher.runs.record import FILE, LARGEST, Kept
from launcher.spec import COMMIT, REPO_ID

_JOB = re.compile(r"(?:https?://[^/]+/jobs/)?(?:[A-Za-z0-9][A-Za-z0-9._-]{0,95}/)?[0-9a-f]{24}")
_PAGE = re.compile(r"https://huggingface\.co/")


def find(name: str) -> Run | Kept | JobRequest:
    """The run of that name: one that was started here, a record with its script, or the request of a Job.

    Raises `RequestError` where there is none, or it can't be read, and `RefusedError` where a script is not the one
    that its record names.
    """
    if run := runs.find(name):
        return run
    path = Path(name).expanduser()
    if path.is_dir() and (path / FILE).is_file():
        return record.read(path / FILE)
    if path.is_file() or path.name == FILE:
        return record.read(path)
    if _JOB.fullmatch(name):
        return backends.get("hub").recall(name)
    repo, at, revision = _PAGE.sub("", name).partition("@")
    if REPO_ID.fullmatch(repo) and (not at or revision):
        return from_hub(repo, revision or None)
    if runs.is_local(name) or "/" not in name:
        return runs.load(name)  # which knows what is spelled alike
    raise RequestError(f"'{name}' is neither a run nor a repo.", f"Give a run's id, a {FILE}, or USER/REPO.")


def from_hub(repo: str, revision: str | None) -> Kept:
    """The record in a model repo, with its script, both of one commit."""
    from launcher.jobs.service import HubBackend

    hub = HubBackend()
    commit = revision if COMMIT.fullmatch(revision or "") else hub.see("model", repo, revision).commit
    where = f"{repo}@{commit}" if commit else repo
    found = record.parse(hub.read_file(repo, FILE, commit, LARGEST), f"{FILE} of {where}")
    page = f"https://huggingface.co/{repo}/blob/{commit or 'main'}/{found.script.name}"
    return record.pair(found, hub.read_file(repo, found.script.name, commit, LARGEST), where, page)
