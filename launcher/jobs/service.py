"""Runs the script on Hugging Face Jobs."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from launcher.catalog import flavors
from launcher.errors import RequestError, ServiceError
from launcher.hub.client import TIMEOUT_S, Hub, told
from launcher.jobs import folder, log, recall, submit
from launcher.jobs.base import LIVE, Job, JobRequest, Left, now
from launcher.jobs.folder import STATUS
from launcher.spec import REPO_ID
from launcher.text import held, plain, safe

if TYPE_CHECKING:
    from huggingface_hub import JobHardwareInfo, JobInfo


class HubBackend:
    """Runs on Hugging Face Jobs, as the account of that `hub`."""

    name = "hub"

    def __init__(self, hub: Hub | None = None) -> None:
        self.hub = hub or Hub()

    def check(self, request: JobRequest) -> None:
        """Raise where the token, the namespaces, the model or the dataset would make the Job fail."""
        submit.check(self.hub, request)

    def submit(self, request: JobRequest) -> Job:
        """Upload the script with its local files, start one Job, and keep its record in a folder of its id."""
        run = folder.create(request, self.name)
        try:
            namespace = request.namespace or self.hub.user
            info = submit.Submission(self.hub, request, namespace, run.folder).send()
        except BaseException:
            run.discard()
            raise
        try:
            run = run.rename(info.id)
        except (FileExistsError, ValueError):  # not an id of the service's usual form: the Job runs all the same
            run.discard()
        else:
            run.write(STATUS, _job(info).as_dict() | {"namespace": info.owner.name})
        return _job(info)

    def recall(self, job_id: str, to_resume: bool = False) -> JobRequest:
        """The request of a Job, from the service, its bucket and what is kept here; its secrets by name only."""
        namespace, job_id = self._locate(job_id)
        return recall.recall(self.hub, namespace, job_id, to_resume)

    def left(self, job_id: str, repo: str | None) -> Left:
        """What the Job left in its /data and in the repo."""
        namespace, job_id = self._locate(job_id)
        return recall.left(self.hub, namespace, job_id, repo)

    def inspect(self, job_id: str) -> Job:
        """The Job as the service sees it, which is the truth about it."""
        namespace, job_id = self._locate(job_id)
        with told("looking at the Job"):
            job = _job(self.hub.api.inspect_job(job_id=job_id, namespace=namespace))
        if run := folder.find(job.id):
            run.write(STATUS, job.as_dict() | {"namespace": namespace})
        return job

    def list(self, all: bool = False) -> builtins.list[Job]:
        """The Jobs with the launcher's label: yours, and those of organisations that were started from here."""
        user = self.hub.user
        namespaces = {run.read(STATUS).get("namespace") or user for run in folder.every()} | {user}
        stages = None if all else sorted(LIVE)
        found = []
        with told("listing the Jobs"):
            for namespace in sorted(namespaces):
                jobs = self.hub.api.list_jobs(status=stages, namespace=namespace, timeout=int(TIMEOUT_S))
                found += [_job(info) for info in jobs if "launcher" in (info.labels or {})]
        return sorted(found, key=lambda job: job.created_at, reverse=True)

    def logs(self, job_id: str, follow: bool) -> Iterator[str]:
        """The lines of the Job's log, kept in its folder too; following ends with the Job, not with a stream."""
        namespace, job_id = self._locate(job_id)
        name, ended = f"{namespace}/{job_id}", False
        with suppress(ServiceError):  # an unknown id is an error now; a service that is away may be back for the log
            ended = self.inspect(name).ended
        if follow:
            lines = log.follow(self.hub, namespace, job_id, lambda: self.inspect(name).ended)
        else:
            lines = log.read(self.hub, namespace, job_id, ended)
        return _kept(job_id, lines)

    def cancel(self, job_id: str) -> Job:
        """Stop the Job."""
        namespace, job_id = self._locate(job_id)
        job = self.inspect(f"{namespace}/{job_id}")
        if job.ended:
            return job
        with told("canceling the Job"):
            self.hub.api.cancel_job(job_id=job_id, namespace=namespace)
        return self.inspect(f"{namespace}/{job_id}")

    def _locate(self, job_id: str) -> tuple[str, str]:
        """Namespace and bare id of an ID or NAMESPACE/ID, which may be of a form that the service has not today."""
        if not (REPO_ID.fullmatch(job_id) or folder.is_id(job_id)):
            raise RequestError(f"'{job_id}' is not the id of a Job.", "`launch ps --all` shows them.")
        namespace, _, job_id = job_id.rpartition("/")
        run = folder.find(job_id)
        return namespace or (run and run.read(STATUS).get("namespace")) or self.hub.user, job_id


def hardware(hub: Hub) -> tuple[list[flavors.Listed], list[str]]:
    """The machines that the service lists, and what of its list could not be understood; needs no account."""
    try:
        with told("asking for the list of flavors"):
            items = hub.api.list_jobs_hardware()
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ServiceError(
            "the service's list of flavors is not of the form that this version knows.", "Update launch."
        ) from error
    listed, problems = [], []
    for item in items:
        try:
            listed.append(_listed(item))
        except ValueError as error:
            problems.append(plain(str(error).splitlines()[0]))
    return listed, problems


def _kept(job_id: str, lines: Iterator[str]) -> Iterator[str]:
    with log.keep(folder.find(job_id)) as write:
        for line in lines:
            write(line)
            yield line


def _listed(item: JobHardwareInfo) -> flavors.Listed:
    gpu = item.accelerator
    return flavors.read(
        plain(str(item.name)), cpu=item.cpu, ram=item.ram, disk=item.ephemeral_storage, unit_usd=item.unit_cost_usd,
        unit=item.unit_label, accelerator=plain(str(gpu.model)) if gpu else None, quantity=gpu.quantity if gpu else "0",
        vram=gpu.vram if gpu else "",
    )  # fmt: skip


def _job(info: JobInfo) -> Job:
    run = folder.find(info.id)
    return Job(
        id=info.id,
        url=plain(info.url),
        backend=HubBackend.name,
        stage=plain(submit.stage_of(info)),
        message=safe(info.status.message, held()) if info.status.message else None,
        flavor=plain(str(getattr(info.flavor, "value", info.flavor or ""))),
        labels={plain(name): plain(value) for name, value in (info.labels or {}).items()},
        created_at=info.created_at or now(),
        started_at=info.started_at,
        finished_at=info.finished_at,
        run_dir=run.folder if run else None,
    )
