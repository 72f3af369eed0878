"""Where the adapter of a run, a repo or a folder is, for whoever wants to do something with it."""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from pathlib import Path

from launcher import jobs as backends
from launcher.errors import LauncherError, RefusedError, RequestError
from launcher.jobs import folder as runs
from launcher.jobs.base import Backend, Job
from launcher.jobs.folder import REQUEST
from launcher.jobs.service import HubBackend
from launcher.plan import adapter
from launcher.plan.adapter import CONFIG, Adapter
from launcher.plan.record import Plan
from launcher.runs import why
from launcher.spec import REPO_ID

_LOOKS = 10
"""Commits of a repo that are looked at for a run's own adapter."""

_JOB_PAGE = re.compile(r"https?://[^/]+/jobs/.+")


def find(source: str, revision: str | None, local: bool) -> tuple[Adapter, Plan | None]:
    """The adapter, and the plan that it was trained by where `source` is a run.

    `source` is a folder, the id of a run or the page of a Job, or a repo of the Hub; `local` where the folder of a
    run of this machine is as good as its repo. Raises `RequestError` where there is no adapter.
    """
    folder = Path(source).expanduser()
    if (folder / CONFIG).is_file() or source.startswith((".", "/", "~")):
        return adapter.read_folder(folder), None
    bare = source.rsplit("/", 1)[-1]
    if runs.find(bare) or _JOB_PAGE.fullmatch(source) or "/" not in source:
        return _of_run(source if not runs.is_local(bare) else bare, revision, local)
    if not REPO_ID.fullmatch(source):
        raise RequestError(
            f"'{source}' is no run, no repo of the Hub and no folder with an {CONFIG}.",
            "Give a run's id (`launch ps --all`), USER/REPO, or the folder of an adapter.",
        )
    return HubBackend().read_adapter(source, revision), None


def _of_run(source: str, revision: str | None, local: bool) -> tuple[Adapter, Plan]:
    backend = backends.find(source)
    job = backend.inspect(source)
    if not job.ended:
        raise RequestError(f"{job.id} still goes on: it has no adapter yet.", f"`launch wait {job.id}` follows it.")
    plan, script, inputs = _kept(job.id) or _recalled(backend, job)
    if plan.task == "export":
        raise RequestError(f"{job.id} is an export itself.", f"Its adapter is {plan.adapter}: name that.")
    if folder := _folder(backend, job, local or not plan.output_repo):
        return adapter.read_folder(folder), plan
    if plan.output_repo is None:
        raise _unpushed(backend, job)
    try:
        found = HubBackend().read_adapter(plan.output_repo, revision)
    except (RequestError, RefusedError) as error:
        raise type(error)(
            f"{job.id} was to push its adapter, and it is not there: {error.message}",
            f"`launch why {job.id}` says what became of it, and how what it kept is pushed.",
        ) from error
    if _is_anothers(found, script, inputs):
        raise _replaced(found, job, script, inputs)
    return found, plan


def _kept(job_id: str) -> tuple[Plan, str | None, frozenset[str]] | None:
    """The plan of a run that was started here, and the SHA-256 of its script and of its data files."""
    run, plan = runs.find(job_id), why.plan_of(job_id)
    if run is None or plan is None:
        return None
    asked = run.read(REQUEST)
    script, files = run.folder / str(asked.get("script_name")), asked.get("files") or {}
    return plan, runs.digest(script) if script.is_file() else None, frozenset(files.values())


def _recalled(backend: Backend, job: Job) -> tuple[Plan, str | None, frozenset[str]]:
    """The same of a run that was started elsewhere, whose data files are not known."""
    asked = backend.recall(why.address(job))
    return asked.plan, hashlib.sha256(asked.script.encode()).hexdigest(), frozenset()


def _is_anothers(found: Adapter, script: str | None, inputs: frozenset[str]) -> bool:
    """Whether another run's script made the adapter, or the same one of other data; what is not recorded is neither."""
    if found.script and script and found.script != script:
        return True
    return bool(found.inputs and inputs and found.inputs != inputs)


def _replaced(found: Adapter, job: Job, script: str | None, inputs: frozenset[str]) -> RequestError:
    """The error for a repo that holds another run's adapter, with the commit of this run's where that is found."""
    at = f"{found.place} holds the adapter of another run"
    for commit in _commits(found.place, job):
        with suppress(LauncherError):
            other = HubBackend().read_adapter(found.place, commit)
            if other.script and not _is_anothers(other, script, inputs):
                return RequestError(f"{at}; that of {job.id} is at its commit {commit}.", f"Add --revision {commit}.")
    return RequestError(
        f"{at}, and no commit from the time of {job.id} was found with its own.",
        f"Add --revision with the commit that you mean, or name the repo itself: `launch export {found.place} …`.",
    )


def _commits(repo: str, job: Job) -> list[str]:
    """The repo's commits since the run began, those next to its end first: its own push came then."""
    ended = job.finished_at or job.created_at
    since = [(abs(made - ended), commit) for commit, made in HubBackend().commits(repo) if made >= job.created_at]
    return [commit for _, commit in sorted(since)[:_LOOKS]]


def _folder(backend: Backend, job: Job, wanted: bool) -> Path | None:
    """The output folder of a run of this machine, if the adapter lies there."""
    if backend.name != "local" or not wanted:
        return None
    found = (why.read(backend, job).result or {}).get("output_dir")
    return Path(found) if isinstance(found, str) and (Path(found) / CONFIG).is_file() else None


def _unpushed(backend: Backend, job: Job) -> RequestError:
    """The error for a run whose adapter is nowhere on the Hub."""
    message = f"{job.id} pushed nothing"
    if backend.name == "local":
        return RequestError(f"{message}, and its folder has no adapter.", f"`launch why {job.id}` says how it ended.")
    try:
        artifacts = backend.recall(why.address(job)).artifacts
    except LauncherError:
        artifacts = None
    if not artifacts:
        return RequestError(f"{message}, and its bucket is not there any more.", f"See `launch why {job.id}`.")
    name = f"{job.id}-output"
    return RequestError(
        f"{message}: its adapter is in its bucket only.",
        f"`hf buckets sync {artifacts}/output {name}` fetches it; `hf upload NAME {name} .` then pushes it, and "
        f"`launch export YOU/NAME …` makes the copies (`launch export ./{name} --local …` makes them here).",
    )
