"""Where the adapter of a run, a repo or a folder is, for whoever wants to do something with it."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

from launcher import jobs
from launcher.errors import LauncherError, RefusedError, RequestError
from launcher.hub import repos
from launcher.hub.client import Hub
from launcher.jobs import folder
from launcher.jobs.base import Backend, Job
from launcher.jobs.folder import RECORD, REQUEST
from launcher.plan import adapter
from launcher.plan.adapter import CONFIG, Adapter
from launcher.plan.record import AnyPlan, Plan
from launcher.runs import why
from launcher.runs.find import File, Folder, HubJob, LocalRun, Repo, find

_LOOKS = 10
"""Commits of a repo that are looked at for a run's own adapter."""

# Both files of an adapter are a few kilobytes; a larger one is not what its name says.
_LARGEST = 16 * 2**20


def locate(source: str, revision: str | None, local: bool, hub: Hub) -> tuple[Adapter, Plan | None]:
    """The adapter of that name, and the plan that it was trained by where `source` is a run.

    `source` is a folder, a run or a Job, or a repo of the Hub; `local` where the folder of a run of this machine is as
    good as its repo. Raises `RequestError` where there is no adapter.
    """
    match find(source):
        case Folder(path):
            return adapter.read_folder(path), None
        case Repo(repo, at):
            return read(hub, repo, revision or at), None
        case File(path):
            raise RequestError(f"{path} is a file, and an adapter is a folder.", "Give the folder that it lies in.")
        case found:
            return _of_run(found, revision, local, hub)


def read(hub: Hub, repo: str, revision: str | None) -> Adapter:
    """The adapter in a repo, at the commit that the revision is now; `RequestError` for a repo that holds none."""
    found = repos.snapshot(hub, repo, revision, (CONFIG, RECORD), _LARGEST)
    if CONFIG not in found.names:
        holds = "a whole model" if "config.json" in found.names else "no model"
        raise RequestError(
            f"{repo} holds no {CONFIG}: it is {holds}, not a LoRA adapter.",
            "Give the repo that a run pushed its adapter to, or the run's id (`launch ps --all`).",
        )
    if CONFIG not in found.files:
        raise RequestError(f"the {CONFIG} of {repo} is too large to be one.", "Save the adapter again.")
    config = adapter.as_object(found.files[CONFIG], f"the {CONFIG} of {repo}")
    kept = adapter.as_object(found.files[RECORD], "") if RECORD in found.files else None
    return adapter.read(found.repo, config, kept, revision=found.commit, private=found.private)


def _of_run(found: LocalRun | HubJob, revision: str | None, local: bool, hub: Hub) -> tuple[Adapter, Plan]:
    backend = jobs.get(found.backend, hub)
    job = backend.inspect(found.address)
    if not job.ended:
        raise RequestError(
            f"{job.id} still goes on: it has no adapter yet.", f"`launch wait {job.address}` follows it."
        )
    plan, script, inputs = _kept(job.id) or _recalled(backend, job)
    if plan.task == "export":
        raise RequestError(
            f"{job.id} is an export itself.", f"Its adapter is {plan.decisions.adapter.value}: name that."
        )
    repo = plan.decisions.output_repo.value
    if place := _folder(backend, job, local or not repo):
        return adapter.read_folder(place), plan
    if repo is None:
        raise _unpushed(backend, job)
    try:
        pushed = read(hub, repo, revision)
    except (RequestError, RefusedError) as error:
        raise type(error)(
            f"{job.id} was to push its adapter, and it is not there: {error.message}",
            f"`launch why {job.address}` says what became of it, and how what it kept is pushed.",
        ) from error
    if _is_anothers(pushed, script, inputs):
        raise _replaced(hub, pushed, job, script, inputs)
    return pushed, plan


def _kept(job_id: str) -> tuple[AnyPlan, str | None, frozenset[str]] | None:
    """The plan of a run that was started here, and the SHA-256 of its script and of its data files."""
    run, plan = folder.find(job_id), why.plan_of(job_id)
    if run is None or plan is None:
        return None
    script = run.folder / str(run.read(REQUEST).get("script_name"))
    return plan, folder.digest(script) if script.is_file() else None, frozenset(run.inputs.values())


def _recalled(backend: Backend, job: Job) -> tuple[AnyPlan, str | None, frozenset[str]]:
    """The same of a run that was started elsewhere, whose data files are not known."""
    asked = backend.recall(job.address)
    return asked.plan, hashlib.sha256(asked.script.encode()).hexdigest(), frozenset()


def _is_anothers(found: Adapter, script: str | None, inputs: frozenset[str]) -> bool:
    """Whether another run's script made the adapter, or the same one of other data; what is not recorded is neither."""
    if found.script and script and found.script != script:
        return True
    return bool(found.inputs and inputs and found.inputs != inputs)


def _replaced(hub: Hub, found: Adapter, job: Job, script: str | None, inputs: frozenset[str]) -> RequestError:
    """The error for a repo that holds another run's adapter, with the commit of this run's where that is found."""
    at = f"{found.place} holds the adapter of another run"
    for commit in _commits(hub, found.place, job):
        with suppress(LauncherError):
            other = read(hub, found.place, commit)
            if other.script and not _is_anothers(other, script, inputs):
                return RequestError(f"{at}; that of {job.id} is at its commit {commit}.", f"Add --revision {commit}.")
    return RequestError(
        f"{at}, and no commit from the time of {job.id} was found with its own.",
        f"Add --revision with the commit that you mean, or name the repo itself: `launch export {found.place} …`.",
    )


def _commits(hub: Hub, repo: str, job: Job) -> list[str]:
    """The repo's commits since the run began, those next to its end first: its own push came then."""
    ended = job.finished_at or job.created_at
    since = [(abs(made - ended), commit) for commit, made in repos.history(hub, repo) if made >= job.created_at]
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
        return RequestError(
            f"{message}, and its folder has no adapter.", f"`launch why {job.address}` says how it ended."
        )
    try:
        artifacts = backend.recall(job.address).artifacts
    except LauncherError:
        artifacts = None
    if not artifacts:
        return RequestError(f"{message}, and its bucket is not there any more.", f"See `launch why {job.address}`.")
    name = f"{job.id}-output"
    return RequestError(
        f"{message}: its adapter is in its bucket only.",
        f"`hf buckets sync {artifacts}/output {name}` fetches it; `hf upload NAME {name} .` then pushes it, and "
        f"`launch export YOU/NAME …` makes the copies (`launch export ./{name} --local …` makes them here).",
    )
