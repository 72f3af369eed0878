"""Where the adapter of a run, a repo or a folder is, for whoever wants to do something with it."""

from __future__ import annotations

import re
from pathlib import Path

from launcher import adapter, backends, runs, why
from launcher.adapter import CONFIG, Adapter
from launcher.backends.base import Backend, Job
from launcher.backends.hub import HubBackend
from launcher.errors import LauncherError, RefusedError, RequestError
from launcher.plan import Plan
from launcher.spec import REPO_ID

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
    plan = why.plan_of(job.id) or backend.recall(why.address(job)).plan
    if plan.task == "export":
        raise RequestError(f"{job.id} is an export itself.", f"Its adapter is {plan.adapter}: name that.")
    if folder := _folder(backend, job, local or not plan.output_repo):
        return adapter.read_folder(folder), plan
    if plan.output_repo is None:
        raise _unpushed(backend, job)
    try:
        return HubBackend().read_adapter(plan.output_repo, revision), plan
    except (RequestError, RefusedError) as error:
        raise type(error)(
            f"{job.id} was to push its adapter, and it is not there: {error.message}",
            f"`launch why {job.id}` says what became of it, and how what it kept is pushed.",
        ) from error


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
