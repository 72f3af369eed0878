"""Runs the script on Hugging Face Jobs."""

from __future__ import annotations

import builtins
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from launcher.catalog import flavors as hardware
from launcher.catalog.tensors import Weights
from launcher.errors import RequestError, ServiceError
from launcher.estimate.dataset import DataSize
from launcher.hub import access as _hub_access
from launcher.hub import adapter as _hub_adapter
from launcher.hub import datasets as _hub_datasets
from launcher.hub import record as _hub_record
from launcher.hub import repos as _hub_commits
from launcher.hub import weights as _hub_weights
from launcher.hub.client import TIMEOUT_S, make_api, told
from launcher.hub.retry import Pace, persist
from launcher.jobs import folder as runs
from launcher.jobs import hub_left as _hub_left
from launcher.jobs import log as _hub_log
from launcher.jobs import recall as _hub_resume
from launcher.jobs import repos as _hub_repos
from launcher.jobs.base import LIVE, Job, JobRequest, now, require_hidden, secret_values
from launcher.jobs.folder import STATUS
from launcher.jobs.left import Left
from launcher.jobs.submit import Submission, stage_of
from launcher.jobs.transcript import keep
from launcher.plan.adapter import Adapter
from launcher.plan.pins import Seen
from launcher.plan.record import Plan
from launcher.spec import require_apart
from launcher.text import held, plain, safe

if TYPE_CHECKING:
    from huggingface_hub import HfApi, JobHardwareInfo, JobInfo

_JOB_ID = re.compile(r"(?:https?://[^/]+/jobs/)?(?:([A-Za-z0-9][A-Za-z0-9._-]{0,95})/)?([A-Za-z0-9_-]{1,96})")


class HubBackend:
    """Runs on Hugging Face Jobs. `pause_s` is the first wait before anything is asked for again."""

    name = "hub"

    def __init__(self, pause_s: float = 1.0) -> None:
        self._pause_s = pause_s
        self._pace = Pace(pause_s)
        self._brief = Pace(pause_s, tries=3)

    def user(self) -> str:
        """The name of the account; raises where there is none, or its token is not accepted."""
        return str(self._me["name"])

    def read_config(self, repo: str, revision: str | None) -> dict[str, Any]:
        """The `config.json` of a model repo."""
        # Not through the client's cache: a config of yesterday may be another one.
        with TemporaryDirectory() as folder, told(f"looking up the model {repo}", what=f"the model '{repo}'"):
            path = self._api.hf_hub_download(repo, "config.json", revision=revision, local_dir=folder)
            text = Path(path).read_bytes()
        try:
            config = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"the config.json of {repo} is not JSON.", "Choose another model.") from error
        return config if isinstance(config, dict) else {}

    def read_weights(self, repo: str, revision: str | None, four_bits: bool) -> Weights | None:
        """The size of a model's weights; none where the Hub does not say, or can't be asked."""
        return _hub_weights.read(self._api, repo, revision, four_bits)

    def read_adapter(self, repo: str, revision: str | None) -> Adapter:
        """The adapter in a repo, at the commit of that revision; `RequestError` where there is none."""
        return _hub_adapter.read(self._api, repo, revision, self._brief)

    def hardware(self) -> tuple[builtins.list[hardware.Listed], builtins.list[str]]:
        """The machines that the service lists, and what of its list could not be understood; needs no account."""
        try:
            with told("asking for the list of flavors"):
                items = self._api.list_jobs_hardware()
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

    def dataset_size(self, dataset: str, config: str | None, split: str, revision: str | None) -> DataSize:
        """How large a split is; what can't be looked up is said in its `source`, never raised."""
        return _hub_datasets.look_up(self._api, dataset, config, split, revision)

    def see(self, kind: str, repo: str, revision: str | None) -> Seen:
        """What the Hub says of a model or dataset at a revision: its commit, and the licence that its card gives.

        Raises as `check` would for one that is not there.
        """
        return _hub_commits.see(self._api, kind, repo, revision, self._brief)

    def commits(self, repo: str) -> builtins.list[tuple[str, datetime]]:
        """The commits of a model repo with their times, the newest first."""
        return _hub_commits.history(self._api, repo, self._brief)

    def read_file(self, repo: str, name: str, commit: str | None, largest: int) -> bytes:
        """A file of a model repo at a commit; `RequestError` where there is none, or it has more bytes than that."""
        return _hub_record.read(self._api, repo, name, commit, largest, self._brief)

    def check(self, request: JobRequest) -> None:
        """Raise where the token, the namespaces, the model or the dataset would make the Job fail."""
        _hub_access.require_write(self._me)
        _hub_access.require_jobs(self._me, request.namespace)
        require_hidden(request, secret_values(request.secrets))
        self.check_push(request.plan)
        _hub_repos.check(self._api, request, self._brief)

    def check_push(self, plan: Plan) -> None:
        """Raise where the token can't write to the repos that the plan pushes to, or two of them are one."""
        for option, repo in (("--output-repo", plan.output_repo), ("--merged-repo", plan.merged_repo)):
            if repo:
                _hub_access.require_write(self._me)
                _hub_access.require_push(self._me, repo, option)
        if plan.merged_repo:
            places = (plan.merged_repo, plan.output_repo, plan.adapter)
            require_apart(*(name if not name or "/" in name else f"{self.user()}/{name}" for name in places))

    def submit(self, request: JobRequest) -> Job:
        """Upload the script with its local files, start one Job, and keep its record in a folder of its id."""
        run = runs.create(request, self.name)
        try:
            info = Submission(self._api, request, request.namespace or self.user(), run.folder, self._pace).send()
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
        return _hub_resume.recall(self._api, namespace, job_id, self.user(), self._brief, to_resume)

    def left(self, job_id: str, repo: str | None) -> Left:
        """What the Job NAMESPACE/ID left in its /data and in the repo."""
        return _hub_left.look(self._api, job_id, repo)

    def inspect(self, job_id: str) -> Job:
        """The Job as the service sees it, which is the truth about it."""
        namespace, job_id = self._locate(job_id)
        with told("looking at the Job"):
            job = _job(self._api.inspect_job(job_id=job_id, namespace=namespace))
        if run := runs.find(job.id):
            run.write(STATUS, job.as_dict() | {"namespace": namespace})
        return job

    def list(self, all: bool = False) -> builtins.list[Job]:
        """The Jobs with the launcher's label: yours, and those of organisations that were started from here."""
        namespaces = {run.read(STATUS).get("namespace") or self.user() for run in runs.every()} | {self.user()}
        stages = None if all else sorted(LIVE)
        found = []
        with told("listing the Jobs"):
            for namespace in sorted(namespaces):
                jobs = self._api.list_jobs(status=stages, namespace=namespace, timeout=int(TIMEOUT_S))
                found += [_job(info) for info in jobs if "launcher" in (info.labels or {})]
        return sorted(found, key=lambda job: job.created_at, reverse=True)

    def logs(self, job_id: str, follow: bool) -> Iterator[str]:
        """The lines of the Job's log, kept in its folder too; following ends with the Job, not with a stream."""
        namespace, job_id = self._locate(job_id)
        name, ended = f"{namespace}/{job_id}", False
        with suppress(ServiceError):  # an unknown id is an error now; a service that is away may be back for the log
            ended = self.inspect(name).ended
        if follow:
            lines = _hub_log.follow(self._api, namespace, job_id, lambda: self.inspect(name).ended, self._pause_s)
        else:
            lines = _hub_log.read(self._api, namespace, job_id, ended)
        return _kept(job_id, lines)

    def cancel(self, job_id: str) -> Job:
        """Stop the Job."""
        namespace, job_id = self._locate(job_id)
        job = self.inspect(f"{namespace}/{job_id}")
        if job.ended:
            return job
        with told("canceling the Job"):
            self._api.cancel_job(job_id=job_id, namespace=namespace)
        return self.inspect(f"{namespace}/{job_id}")

    @cached_property
    def _api(self) -> HfApi:
        return make_api()

    @cached_property
    def _me(self) -> dict[str, Any]:
        # Kept: the Hub limits this question strictly, and the client would ask it before each of its calls.
        return persist("checking your account", self._api.whoami, self._brief)

    def _locate(self, job_id: str) -> tuple[str, str]:
        """Namespace and bare id of an ID, NAMESPACE/ID or the URL of a Job's page."""
        match = _JOB_ID.fullmatch(job_id)
        if match is None:
            raise RequestError(f"'{job_id}' is not the id of a Job.", "`launch ps --all` shows them.")
        namespace, job_id = match.groups()
        run = runs.find(job_id)
        return namespace or (run and run.read(STATUS).get("namespace")) or self.user(), job_id


def _kept(job_id: str, lines: Iterator[str]) -> Iterator[str]:
    with keep(runs.find(job_id)) as write:
        for line in lines:
            write(line)
            yield line


def _listed(item: JobHardwareInfo) -> hardware.Listed:
    gpu = item.accelerator
    return hardware.read(
        plain(str(item.name)), cpu=item.cpu, ram=item.ram, disk=item.ephemeral_storage, unit_usd=item.unit_cost_usd,
        unit=item.unit_label, accelerator=plain(str(gpu.model)) if gpu else None, quantity=gpu.quantity if gpu else "0",
        vram=gpu.vram if gpu else "",
    )  # fmt: skip


def _job(info: JobInfo) -> Job:
    run = runs.find(info.id)
    return Job(
        id=info.id,
        url=plain(info.url),
        backend=HubBackend.name,
        stage=plain(stage_of(info)),
        message=safe(info.status.message, held()) if info.status.message else None,
        flavor=plain(str(getattr(info.flavor, "value", info.flavor or ""))),
        labels={plain(name): plain(value) for name, value in (info.labels or {}).items()},
        created_at=info.created_at or now(),
        started_at=info.started_at,
        finished_at=info.finished_at,
        run_dir=run.folder if run else None,
    )
