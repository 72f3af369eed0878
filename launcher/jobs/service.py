"""Runs the script on Hugging Face Jobs."""

from __future__ import annotations

import builtins
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING

from launcher import home
from launcher.catalog import Catalog, flavors, load, shipped
from launcher.errors import LauncherError, RefusedError, RequestError, ServiceError
from launcher.hub.client import TIMEOUT_S, Hub, told
from launcher.jobs import folder, log, recall, submit
from launcher.jobs import info as infos
from launcher.jobs.base import LIVE, Checked, Job, JobRequest, Left, lost, now
from launcher.jobs.folder import STATUS, Run
from launcher.spec import REPO_ID
from launcher.text import held, plain, safe

if TYPE_CHECKING:
    from huggingface_hub import JobHardwareInfo, JobInfo


class HubBackend:
    """Runs on Hugging Face Jobs, as the account of that `hub`."""

    name = "hub"

    def __init__(self, hub: Hub | None = None) -> None:
        self.hub = hub or Hub()

    def check(self, request: JobRequest) -> Checked:
        """Raise where the token, the namespaces, the model or the dataset would make the Job fail."""
        return submit.check(self.hub, request)

    def submit(self, request: JobRequest) -> Job:
        """Upload the script with its local files, start one Job, and keep its record in a folder of its id."""
        run = None
        with home.spared():
            run = folder.create(request, self.name)
        namespace = request.namespace or self.hub.user
        try:
            with folder.locked() if request.resumes else nullcontext():
                if request.resumes and request.artifacts:
                    recall.require_undone(self.hub, namespace, request.resumes, request.artifacts)
                info = submit.Submission(self.hub, request, namespace).send()
                if run:
                    _keep(run, info)
        except BaseException:
            if run:
                run.discard()
            raise
        return _job(info)

    def recall(self, job_id: str) -> JobRequest:
        """The request of a Job, from the service, its bucket and what is kept here; its secrets by name only."""
        namespace, job_id = self._locate(job_id)
        return recall.recall(self.hub, namespace, job_id)

    def left(self, job_id: str, repo: str | None) -> Left:
        """What the Job left in its /data and in the repo."""
        namespace, job_id = self._locate(job_id)
        return recall.left(self.hub, namespace, job_id, repo)

    def inspect(self, job_id: str) -> Job:
        """The Job as the service sees it, which is the truth about it."""
        namespace, job_id = self._locate(job_id)
        with _told("looking at the Job", namespace, job_id):
            job = _job(infos.inspect(self.hub, namespace, job_id))
        if run := folder.find(job.id):
            with home.spared():
                run.write(STATUS, job.as_dict() | {"namespace": namespace})
        return job

    def list(self, all: bool = False) -> builtins.list[Job]:
        """The Jobs with the launcher's label: yours, and those of organisations that were started from here."""
        user = self.hub.user
        namespaces = {_namespace(run) or user for run in folder.every()} | {user}
        stages = None if all else sorted(LIVE)
        found = []
        with told("listing the Jobs"):
            for namespace in sorted(namespaces):
                jobs = self.hub.api.list_jobs(status=stages, namespace=namespace, timeout=int(TIMEOUT_S))
                found += [_job(info) for info in map(infos.checked, jobs) if "launcher" in (info.labels or {})]
        return sorted(found, key=lambda job: job.created_at, reverse=True)

    def logs(self, job_id: str, follow: bool) -> Iterator[str]:
        """The lines of the Job's log, kept in its folder too; following ends with the Job, not with a stream."""
        namespace, job_id = self._locate(job_id)
        name, ended = f"{namespace}/{job_id}", False
        with suppress(ServiceError):  # an unknown id is an error now; a service that is away may be back for the log
            ended = self.inspect(name).ended
        if follow:
            lines = log.follow(self.hub, namespace, job_id, lambda: not self.inspect(name).live)
        else:
            lines = log.read(self.hub, namespace, job_id, ended)
        return _kept(namespace, job_id, lines)

    def cancel(self, job_id: str) -> Job:
        """Stop the Job."""
        namespace, job_id = self._locate(job_id)
        with suppress(ServiceError):  # it is stopped all the same, and looked at afterwards
            job = self.inspect(f"{namespace}/{job_id}")
            if job.ended:
                return job
        with _told("canceling the Job", namespace, job_id):
            self.hub.api.cancel_job(job_id=job_id, namespace=namespace)
        # Any answer with a status of success is taken for one: what counts is the stage, which may lag behind.
        pace = self.hub.patient
        for number in range(1, pace.tries + 1):
            job = self.inspect(f"{namespace}/{job_id}")
            if not job.live:
                return job
            time.sleep(pace.pause(number))
        raise ServiceError(
            f"Job {job.address} was asked to stop, and is still {job.stage}: it goes on, and costs.",
            f"`launch cancel {job.address}` asks again; it can be stopped at {job.url} too.",
        )

    def _locate(self, job_id: str) -> tuple[str, str]:
        """Namespace and bare id of an ID or NAMESPACE/ID, which may be of a form that the service has not today."""
        if not (REPO_ID.fullmatch(job_id) or folder.is_id(job_id)):
            raise RequestError(f"'{job_id}' is not the id of a Job.", "`launch ps --all` shows them.")
        namespace, _, job_id = job_id.rpartition("/")
        run = folder.find(job_id)
        return namespace or (run and _namespace(run)) or self.hub.user, job_id


def hardware(hub: Hub) -> tuple[list[flavors.Listed], list[str]]:
    """The machines that the service lists, and what of its list could not be understood; needs no account."""
    with told("asking for the list of flavors"):
        items = hub.api.list_jobs_hardware()
    listed, problems = [], []
    for item in items:
        try:
            listed.append(_listed(item))
        except (ValueError, TypeError, AttributeError, OverflowError) as error:
            problems.append(plain(str(error).splitlines()[0]))
    return listed, problems


def todays(hub: Hub) -> Catalog:
    """The tables with the machines and prices that the service lists now, which are kept.

    Where it does not say them they are those of before, and a notice of the catalog says so.
    """
    try:
        listed, problems = hardware(hub)
        why = "" if listed else f"it lists none that this version understands: {'; '.join(problems[:1])}"
    except LauncherError as error:
        listed, why = [], error.message
    if not listed:
        before = load()
        said = f"the service did not say its prices ({why.rstrip('.: ')}): those here are of {before.flavors_from}."
        return before.model_copy(update={"notices": (*before.notices, said)})
    with suppress(RefusedError):  # a disk that is full does not make them older
        flavors.keep(listed)
    return flavors.over(shipped(), flavors.taken_now(listed))


@contextmanager
def _told(action: str, namespace: str, job_id: str) -> Iterator[None]:
    """The client's errors in words; of a Job that was started from here none says that there is no such Job."""
    try:
        with told(action):
            yield
    except (RequestError, RefusedError) as error:
        if folder.find(job_id) is None:
            raise
        raise lost(error, f"{namespace}/{job_id}") from error


def _keep(run: Run, info: JobInfo) -> None:
    """Give the record the Job's id. The Job runs, whatever becomes of it."""
    with home.spared():
        try:
            run = run.rename(info.id)
        except (FileExistsError, ValueError):  # not an id of the service's usual form
            run.discard()
        else:
            run.write(STATUS, _job(info).as_dict() | {"namespace": info.owner.name})


def _namespace(run: Run) -> str | None:
    """Where the Job of that run is; none where it is not kept, or not as a name."""
    known = run.read(STATUS).get("namespace")
    return known if isinstance(known, str) and REPO_ID.fullmatch(f"{known}/x") else None


def _kept(namespace: str, job_id: str, lines: Iterator[str]) -> Iterator[str]:
    with _told("reading the Job's log", namespace, job_id), log.keep(folder.find(job_id)) as write:
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
        stage=plain(infos.stage_of(info)),
        message=safe(info.status.message, held()) if info.status.message else None,
        flavor=plain(str(getattr(info.flavor, "value", info.flavor or ""))),
        labels={plain(name): plain(value) for name, value in (info.labels or {}).items()},
        created_at=info.created_at or now(),
        started_at=info.started_at,
        finished_at=info.finished_at,
        run_dir=run.folder if run else None,
        mark=infos.mark_of(info),
    )
