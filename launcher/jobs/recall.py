"""What is had of a Job afterwards: its request, from the service, its bucket and the record here, and what it left."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pydantic import ValidationError

from launcher.errors import LauncherError, RefusedError, RequestError, ServiceError
from launcher.hub import answers
from launcher.hub.client import TIMEOUT_S, Hub, told
from launcher.jobs import folder, log
from launcher.jobs import info as infos
from launcher.jobs.base import (
    ARTIFACTS_ENV,
    ARTIFACTS_MOUNT,
    DEFAULT_IMAGE,
    ENDED,
    MARK_ENV,
    PLAN_FILE,
    JobRequest,
    Left,
    join_artifacts,
    split_artifacts,
)
from launcher.jobs.events import summarize
from launcher.jobs.folder import STATUS
from launcher.jobs.info import stage_of
from launcher.jobs.submit import find
from launcher.plan.record import READ, AnyPlan

if TYPE_CHECKING:
    from huggingface_hub import JobInfo

_OF_ONE_JOB = ("request", "artifacts", "resumes")
_SCRIPT = re.compile(r"\w[\w-]*\.py", re.ASCII)
_DONE = "checkpoints/done"
# Written last: without it the rest of a checkpoint is a torn one.
_CHECKPOINT = re.compile(r"(?:.*/)?checkpoints/checkpoint-(\d{1,12})/manifest\.json")
_ANEW = "Start it anew with its options; `launch ps --all` lists the Jobs of this launcher."


def recall(hub: Hub, namespace: str, job_id: str) -> JobRequest:
    """The request of a Job of this launcher, with its artifacts, to be submitted again.

    Raises `RequestError` where the Job is not of this launcher or its artifacts are gone, and `RefusedError` where it
    is not this user who started it.
    """
    info = hub.ask("looking at the Job", lambda: infos.inspect(hub, namespace, job_id))
    artifacts, script_name = _artifacts(info), _script_name(info)
    _require_own(info, hub.user)
    script, plan = _kept(info.id, script_name) or _fetch(hub, info.id, artifacts, script_name)
    command = info.command or []
    image = f"hf.co/spaces/{info.space_id}" if info.space_id else info.docker_image
    return JobRequest(
        plan=plan,
        script=script,
        script_name=script_name,
        script_args=tuple(command[3:]),
        image=None if image == DEFAULT_IMAGE else image,
        flavor=str(getattr(info.flavor, "value", info.flavor)),
        timeout_s=plan.decisions.timeout_s.value,
        env={name: value for name, value in (info.environment or {}).items() if name not in (ARTIFACTS_ENV, MARK_ENV)},
        secrets=tuple(info.secrets or ()),
        labels={name: value for name, value in (info.labels or {}).items() if name not in _OF_ONE_JOB},
        namespace=namespace,
        attempts=(info.retry or 0) + 1,
        artifacts=artifacts,
        resumes=info.id,
    )


def left(hub: Hub, namespace: str, job_id: str, repo: str | None) -> Left:
    """What the Job left in its /data and in the repo; what can't be looked up is said in `problem`, never raised."""
    try:
        with told("looking at the Job's files"):
            info = infos.inspect(hub, namespace, job_id)
            data = _data(hub, info)
        with told("looking at the output repo"):
            pushed = _pushed(hub, repo, info) if repo else ()
    except LauncherError as error:
        return Left(repo=repo, problem=error.message)
    steps = [int(found[1]) for name in data if (found := _CHECKPOINT.fullmatch(name))]
    return Left(
        repo=repo,
        repo_files=pushed,
        checkpoint=max(steps, default=None),
        output_files=tuple(name for name in data if name.startswith("output/")),
    )


def _artifacts(info: JobInfo) -> str:
    for volume in info.volumes or []:
        if (volume.type, volume.mount_path) == ("bucket", ARTIFACTS_MOUNT) and volume.path and not volume.read_only:
            return join_artifacts(volume.source, volume.path)
    raise RequestError(f"Job {info.id} has no {ARTIFACTS_MOUNT} of its own that a new Job could go on with.", _ANEW)


def _script_name(info: JobInfo) -> str:
    command, start = info.command or [], f"{ARTIFACTS_MOUNT}/"
    name = command[2].removeprefix(start) if len(command) > 2 else ""
    if (
        command[:2] != ["uv", "run"]
        or command[2] == name
        or not _SCRIPT.fullmatch(name)
        or "launcher" not in (info.labels or {})
    ):
        raise RequestError(f"Job {info.id} was not started by this launcher.", _ANEW)
    return name


def _require_own(info: JobInfo, user: str) -> None:
    """Raise where somebody else started the Job: its script, image and variables would get this user's secrets."""
    by = info.initiator
    if by and (by.name != user if by.type == "user" else not folder.find(info.id)):
        raise RefusedError(
            f"Job {info.id} was started by {by.name or by.type}: its script would run with your secrets.",
            f"Ask {by.name or by.type} to resume it, or start your own with its options.",
        )


def require_undone(hub: Hub, namespace: str, job_id: str, artifacts: str) -> None:
    """Raise `RequestError` where another Job than this one works in the same folder, since two would overwrite each
    other's checkpoints, and where one has come to the end of the run there, which would be paid for once more.
    """
    own = split_artifacts(artifacts)[1]
    found = {job.id: job for job in find(hub, namespace, {"artifacts": own}, hub.brief)}
    # The list lags behind. What was started from here is known without it.
    for run in folder.every():
        labels = run.read(STATUS).get("labels")
        if run.id not in found and isinstance(labels, dict) and labels.get("artifacts") == own:
            with suppress(LauncherError), told("looking at the Job"):
                found[run.id] = infos.inspect(hub, namespace, run.id)
    others = infos.by_age(job for job in found.values() if job.id != job_id)
    if live := [job.id for job in others if stage_of(job) not in ENDED]:
        raise RequestError(
            f"Job {job_id} was resumed already: Job {live[0]} is at it.",
            f"`launch wait {namespace}/{live[0]}` follows that one, `launch cancel {namespace}/{live[0]}` stops it.",
        )
    if ended_well := [job for job in others if stage_of(job) == "COMPLETED"]:
        _require_stopped(hub, namespace, job_id, ended_well[-1])


def _require_stopped(hub: Hub, namespace: str, job_id: str, other: JobInfo) -> None:
    """Raise unless the other Job, which ended well, says that it stopped before the end of the run."""
    try:
        lines = log.read(hub, namespace, other.id, ended=True)
        result = summarize(lines, infos.mark_of(other)).result
        failed = None
    except ServiceError as error:
        result, failed = None, error
    if result and result.get("stopped"):
        return
    if result or _is_done(hub, other):
        raise RequestError(
            f"Job {job_id} was resumed already, and Job {other.id} has come to the end of the run.",
            "To train for longer, start a run with more --max-steps or --num-train-epochs.",
        )
    unsure = f"Job {job_id} was resumed as Job {other.id}, which ended well, perhaps with the whole run done"
    if failed:
        raise ServiceError(f"{unsure}: its log can't be read now. {failed.message}", failed.hint) from failed
    raise RequestError(
        f"{unsure}: its log has no RESULT that would tell.",
        f"`launch why {namespace}/{other.id}` says what there is of it; a new run with the same options starts anew.",
    )


def _kept(job_id: str, script_name: str) -> tuple[str, AnyPlan] | None:
    """Script and plan as they were sent from here."""
    run = folder.find(job_id)
    if run is None or not (run.folder / script_name).is_file():
        return None
    try:
        script, plan = (run.folder / script_name).read_bytes().decode(), run.plan()
    except (RequestError, UnicodeDecodeError, OSError):
        return None  # damaged here, and whole in its bucket
    return (script, plan) if script else None


def _fetch(hub: Hub, job_id: str, artifacts: str, script_name: str) -> tuple[str, AnyPlan]:
    bucket, place = split_artifacts(artifacts)
    with TemporaryDirectory() as here:
        wanted = [(f"{place}/{name}", Path(here, name)) for name in (script_name, PLAN_FILE)]
        hub.ask(
            "fetching the script of the Job",
            lambda: hub.api.download_bucket_files(bucket, [*wanted], raise_on_missing_files=True),
            f"the folder {artifacts} of Job {job_id}",
        )
        script, plan = (path.read_bytes() for _, path in wanted)
    try:
        return script.decode(), READ.validate_json(plan)
    except (ValidationError, UnicodeDecodeError) as error:
        raise RequestError(
            f"the plan of Job {job_id} can't be read: another version of launch wrote it.",
            f"Resume it with that version ({artifacts}), or start it anew with its options.",
        ) from error


def _is_done(hub: Hub, job: JobInfo) -> bool:
    """Whether the script has marked /data as that of a run which came to its end; false where nobody knows."""
    try:
        with told("looking at the Job's files"):
            return _DONE in _data(hub, job)
    except LauncherError:
        return False


def _pushed(hub: Hub, repo: str, job: JobInfo) -> tuple[str, ...]:
    """The names of the repo's files; none where nothing was pushed since the Job was made."""
    found = answers.repo(hub.api.model_info(repo, timeout=TIMEOUT_S))
    if found.last_modified and job.created_at and found.last_modified < job.created_at:
        return ()
    return tuple(item.rfilename for item in found.siblings or ())


def _data(hub: Hub, job: JobInfo) -> tuple[str, ...]:
    """The names of the files under /data."""
    found: list[str] = []
    for volume in job.volumes or ():
        if volume.type == "bucket" and volume.mount_path == ARTIFACTS_MOUNT:
            prefix = (volume.path or "").strip("/")
            tree = hub.api.list_bucket_tree(volume.source, prefix=prefix or None, recursive=True)
            found += [item.path.removeprefix(prefix).lstrip("/") for item in tree if item.type == "file"]
    return tuple(found)
