"""A Job's request, put together again: from the service, from its bucket, and from the record here if there is one."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pydantic import ValidationError

from launcher import runs
from launcher.backends._hub_retry import Pace, persist
from launcher.backends._hub_submit import find
from launcher.backends.base import (
    ARTIFACTS_ENV,
    ARTIFACTS_MOUNT,
    DEFAULT_IMAGE,
    PLAN_FILE,
    JobRequest,
    join_artifacts,
    split_artifacts,
)
from launcher.errors import RefusedError, RequestError
from launcher.plan import Plan

if TYPE_CHECKING:
    from huggingface_hub import HfApi, JobInfo

_OF_ONE_JOB = ("request", "artifacts", "resumes")
_SCRIPT = re.compile(r"\w[\w-]*\.py", re.ASCII)
_ANEW = "Start it anew with its options; `launch ps --all` lists the Jobs of this launcher."


def recall(api: HfApi, namespace: str, job_id: str, user: str, pace: Pace) -> JobRequest:
    """The request of a Job of this launcher, with its artifacts, to be submitted again.

    Raises `RequestError` where the Job is not of this launcher, its artifacts are gone, or another Job works on them,
    and `RefusedError` where it is not the `user` who started it.
    """
    info = persist("looking at the Job", lambda: api.inspect_job(job_id=job_id, namespace=namespace), pace)
    artifacts, script_name = _artifacts(info), _script_name(info)
    _require_own(info, user)
    _require_alone(api, namespace, info, artifacts, pace)
    script, plan = _kept(info.id, script_name) or _fetch(api, info.id, artifacts, script_name, pace)
    command = info.command or []
    image = f"hf.co/spaces/{info.space_id}" if info.space_id else info.docker_image
    return JobRequest(
        plan=plan,
        script=script,
        script_name=script_name,
        script_args=tuple(command[3:]),
        image=None if image == DEFAULT_IMAGE else image,
        flavor=str(getattr(info.flavor, "value", info.flavor)),
        timeout_s=plan.timeout_s,
        env={name: value for name, value in (info.environment or {}).items() if name != ARTIFACTS_ENV},
        secrets=tuple(info.secrets or ()),
        labels={name: value for name, value in (info.labels or {}).items() if name not in _OF_ONE_JOB},
        namespace=namespace,
        attempts=(info.retry or 0) + 1,
        artifacts=artifacts,
        resumes=info.id,
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
    if info.initiator and info.initiator.type == "user" and info.initiator.name != user:
        raise RefusedError(
            f"Job {info.id} was started by {info.initiator.name}: its script would run with your secrets.",
            f"Ask {info.initiator.name} to resume it, or start your own with its options.",
        )


def _require_alone(api: HfApi, namespace: str, info: JobInfo, artifacts: str, pace: Pace) -> None:
    """Raise where a live Job works in the same folder: two would overwrite each other's checkpoints."""
    folder = split_artifacts(artifacts)[1]
    others = [job.id for job in find(api, namespace, {"artifacts": folder}, pace, live=True) if job.id != info.id]
    if others:
        raise RequestError(
            f"Job {info.id} was resumed already: Job {others[0]} is at it.",
            f"`launch wait {others[0]}` follows that one, `launch cancel {others[0]}` stops it.",
        )


def _kept(job_id: str, script_name: str) -> tuple[str, Plan] | None:
    """Script and plan as they were sent from here."""
    run = runs.find(job_id)
    if run is None or not (run.folder / script_name).is_file():
        return None
    return (run.folder / script_name).read_bytes().decode(), run.plan()


def _fetch(api: HfApi, job_id: str, artifacts: str, script_name: str, pace: Pace) -> tuple[str, Plan]:
    bucket, folder = split_artifacts(artifacts)
    with TemporaryDirectory() as here:
        wanted = [(f"{folder}/{name}", Path(here, name)) for name in (script_name, PLAN_FILE)]
        persist(
            "fetching the script of the Job",
            lambda: api.download_bucket_files(bucket, [*wanted], raise_on_missing_files=True),
            pace,
            what=f"the folder {artifacts} of Job {job_id}",
        )
        script, plan = (path.read_bytes() for _, path in wanted)
    try:
        return script.decode(), Plan.model_validate_json(plan)
    except (ValidationError, UnicodeDecodeError) as error:
        raise RequestError(
            f"the plan of Job {job_id} can't be read: another version of launch wrote it.",
            f"Resume it with that version ({artifacts}), or start it anew with its options.",
        ) from error
