"""What a Job left behind: in the repo that it pushes to, and in its folder of the bucket that it saw as /data."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from launcher.errors import LauncherError
from launcher.hub.client import TIMEOUT_S, told
from launcher.jobs.base import ARTIFACTS_MOUNT
from launcher.jobs.left import Left

if TYPE_CHECKING:
    from huggingface_hub import HfApi, JobInfo

_DONE = "checkpoints/done"
# Written last: without it the rest of a checkpoint is a torn one.
_CHECKPOINT = re.compile(r"(?:.*/)?checkpoints/(?:step|checkpoint)-(\d{1,12})/manifest\.json")


def look(api: HfApi, job: str, repo: str | None) -> Left:
    """What there is of the Job NAMESPACE/ID; what can't be looked up is said in `problem`, never raised."""
    namespace, _, job_id = job.rpartition("/")
    try:
        with told("looking at the Job's files"):
            info = api.inspect_job(job_id=job_id, namespace=namespace or None)
            data = _data(api, info)
        with told("looking at the output repo"):
            pushed = _pushed(api, repo, info) if repo else ()
    except LauncherError as error:
        return Left(repo=repo, problem=error.message)
    steps = [int(found[1]) for name in data if (found := _CHECKPOINT.fullmatch(name))]
    return Left(
        repo=repo,
        repo_files=pushed,
        checkpoint=max(steps, default=None),
        output_files=tuple(name for name in data if name.startswith("output/")),
    )


def is_done(api: HfApi, job: JobInfo) -> bool:
    """Whether the script has marked /data as that of a run which came to its end; false where nobody knows."""
    try:
        with told("looking at the Job's files"):
            return _DONE in _data(api, job)
    except LauncherError:
        return False


def _pushed(api: HfApi, repo: str, job: JobInfo) -> tuple[str, ...]:
    """The names of the repo's files; none where nothing was pushed since the Job was made."""
    found = api.model_info(repo, timeout=TIMEOUT_S)
    if found.last_modified and job.created_at and found.last_modified < job.created_at:
        return ()
    return tuple(item.rfilename for item in found.siblings or ())


def _data(api: HfApi, job: JobInfo) -> tuple[str, ...]:
    """The names of the files under /data."""
    found: list[str] = []
    for volume in job.volumes or ():
        if volume.type == "bucket" and volume.mount_path == ARTIFACTS_MOUNT:
            prefix = (volume.path or "").strip("/")
            tree = api.list_bucket_tree(volume.source, prefix=prefix or None, recursive=True)
            found += [item.path.removeprefix(prefix).lstrip("/") for item in tree if item.type == "file"]
    return tuple(found)
