"""Submitting: what a Job would lack is refused; then the artifacts, then exactly one Job, whatever the network does.

Each Job carries a label with an id of its request. After a failure that leaves open whether the Job was made, that id
is looked up before anything is asked again. The list of Jobs may lag behind, so it is looked at several times, and once
more when a second request has succeeded: of two Jobs with one id the younger is canceled.

So is the younger of two that go on with the same run. Each looks at the list until it holds its own Job, and so every
earlier one: whoever asked first sees no earlier one and stays.
"""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from launcher.errors import InterruptedSubmissionError, LauncherError, RefusedError, RequestError, ServiceError
from launcher.hub import access, repos
from launcher.hub.client import Hub, Pace, library, persist
from launcher.hub.errors import is_odd
from launcher.jobs.base import (
    ARTIFACTS_BUCKET,
    ARTIFACTS_ENV,
    ARTIFACTS_MOUNT,
    ENDED,
    MARK_ENV,
    PLAN_FILE,
    Checked,
    JobRequest,
    join_artifacts,
    new_mark,
    require_hidden,
    secret_values,
    split_artifacts,
)
from launcher.jobs.info import by_age, checked, stage_of
from launcher.jobs.places import require_free
from launcher.plan.record import Plan
from launcher.spec import path_of

if TYPE_CHECKING:
    from huggingface_hub import JobInfo

LOOKS = 4
"""How often the list of Jobs is looked at before a Job is taken for not made."""

CLAIM_LOOKS = 8
"""How often it is looked at for the own Job, where another may go on with the same run: two minutes in all."""


def check(hub: Hub, request: JobRequest) -> Checked:
    """Raise where the token, the namespaces, the output repo, the model or the dataset would make the Job fail.

    A file that was sent along before is not looked for here.
    """
    plan = request.plan
    access.require_write(hub.account)
    access.require_jobs(hub.account, request.namespace)
    require_hidden(request, secret_values(request.secrets))
    access.require_places(hub, *plan.places)
    if path_of(plan.facts.repo):
        raise RequestError(
            f"--model {plan.facts.repo} is a folder of this machine, which a Job can't see.",
            "Push it to the Hub first (`hf upload`), or train here with --local.",
        )
    repos.require_readable(hub, "model", plan.facts.repo, plan.decisions.revision.value)
    if plan.task == "export":
        made = plan.decisions
        repos.require_readable(hub, "model", made.adapter.value, made.adapter_revision.value)
    elif not any(item.startswith(f"{ARTIFACTS_MOUNT}/") for item in request.script_args):
        _check_dataset(hub, plan)
    doubts = access.expiring(hub.account, request.timeout_s)
    return Checked(require_free(hub, request), doubts)


def _check_dataset(hub: Hub, plan: Plan) -> None:
    dataset = plan.decisions.dataset.value
    path = path_of(dataset)
    if path and path.is_file():
        return
    if path:
        what = "is a folder, and only a file is sent along" if path.is_dir() else "is not there"
        raise RequestError(
            f"--dataset {dataset} {what}.", "Give one json, jsonl, csv or parquet file, or push it to the Hub."
        )
    repos.require_readable(hub, "dataset", dataset, plan.decisions.dataset_revision.value)


class Submission:
    """One request on its way to become one Job."""

    def __init__(self, hub: Hub, request: JobRequest, namespace: str) -> None:
        self._hub, self._request, self._namespace = hub, request, namespace
        self._pace = hub.patient
        self.id = uuid4().hex
        fresh = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{self.id[:6]}"
        self.artifacts = request.artifacts or join_artifacts(f"{namespace}/{ARTIFACTS_BUCKET}", fresh)
        self._posts, self._in_doubt = 0, False

    def send(self) -> JobInfo:
        """The one Job of this request; every `LauncherError` says whether there may be one all the same."""
        values = secret_values(self._request.secrets)
        try:
            self._prepare()
            info = persist("starting the Job", lambda: self._post(values), self._pace, recover=self._find)
            if self._posts > 1:
                info = self._only_one(info)
            if self._request.resumes:
                self._in_doubt = False
                self._claim(info)
            return info
        except KeyboardInterrupt as stop:
            raise self._interrupted() from stop
        except LauncherError as error:
            if self._in_doubt or isinstance(error, ServiceError):
                raise type(error)(error.message, f"{self._known()} {error.hint}") from error
            raise

    def _prepare(self) -> None:
        """Put the script, the plan and the files beside it where the Job finds them, in a bucket that is private."""
        bucket, folder = split_artifacts(self.artifacts)
        made = {self._request.script_name: self._request.script, **self._request.beside}
        made[PLAN_FILE] = self._request.plan.model_dump_json(indent=2) + "\n"
        files = [
            (made[name].encode() if name in made else Path(name), f"{folder}/{remote}")
            for name, remote in self._request.remote_names.items()
        ]
        action = f"preparing the bucket {bucket}"
        persist(action, lambda: self._hub.api.create_bucket(bucket, private=True, exist_ok=True), self._pace)
        if not persist(action, lambda: self._hub.api.bucket_info(bucket), self._pace).private:
            raise RefusedError(
                f"the bucket {bucket} is public: script, data and checkpoints of this run would be too.",
                f"Make it private with `hf buckets settings {bucket} --private`, then run the same command again.",
            )
        try:
            persist("uploading the script", lambda: self._hub.api.batch_bucket_files(bucket, add=[*files]), self._pace)
        except OSError as error:
            if error.filename in {str(item) for item, _ in files if isinstance(item, Path)}:
                message = f"a file can't be sent along: {error.strerror} ({error.filename})."
                raise RequestError(message, "Give the path of a file that you may read.") from error
            raise ServiceError(
                f"uploading the script failed on this machine: {error}.",
                "The Hub's client needs some room in HF_HOME: make room there, or set it to another folder.",
            ) from error

    def _post(self, values: dict[str, str]) -> JobInfo:
        job = self._request.describe()
        bucket, folder = split_artifacts(self.artifacts)
        self._posts += 1
        try:
            return checked(self._run(job, bucket, folder, values))
        except Exception as error:
            # The Job is there, and only the answer can't be read: the list may say what it is called.
            if not is_odd(error) or (found := self._find()) is None:
                raise
            return found

    def _run(self, job: dict[str, Any], bucket: str, folder: str, values: dict[str, str]) -> JobInfo:
        info: JobInfo = self._hub.api.run_job(
            image=job["image"],
            command=job["command"],
            env=job["env"] | {ARTIFACTS_ENV: self.artifacts, MARK_ENV: new_mark()},
            secrets=dict(values),
            flavor=job["flavor"],
            timeout=job["timeout_s"],
            attempts=job["attempts"],
            labels=job["labels"] | {"request": self.id, "artifacts": folder},
            volumes=[
                library().Volume(type="bucket", source=bucket, mount_path=ARTIFACTS_MOUNT, path=folder, read_only=False)
            ],
            namespace=self._namespace,
        )
        return info

    def _find(self) -> JobInfo | None:
        """The Job of this request, if there is one: the list is given time to show it."""
        self._in_doubt = True
        for number in range(LOOKS):
            if number:
                time.sleep(self._pace.pause(number))
            if found := self._jobs():
                return found[0]
        return None

    def _jobs(self) -> list[JobInfo]:
        return find(self._hub, self._namespace, {"request": self.id}, self._pace)

    def _only_one(self, info: JobInfo) -> JobInfo:
        """The eldest of the Jobs of this request, `info` among them; any other is canceled."""
        with suppress(LauncherError):  # the Job is there: that its twin can't be looked for now is no failure of it
            for number in range(LOOKS):
                eldest, *others = by_age({job.id: job for job in [info, *self._jobs()]}.values())
                for other in others:
                    self._cancel(other.id, "canceling a second Job of the same request")
                if others:
                    return eldest
                time.sleep(self._pace.pause(number + 1))
        return info

    def _claim(self, info: JobInfo) -> None:
        """Cancel the Job and raise `RequestError` where another has begun to go on with the same run before it."""
        labels = {"artifacts": split_artifacts(self.artifacts)[1]}
        for number in range(CLAIM_LOOKS):
            try:
                listed = find(self._hub, self._namespace, labels, self._pace)
            except LauncherError:
                return  # the Job is there: that others can't be looked for now is no failure of it
            alive = [job for job in listed if stage_of(job) not in ENDED]
            if info.id in (job.id for job in listed):
                first = by_age(alive)[0].id if alive else info.id
                if first != info.id:
                    self._cancel(info.id, "canceling a second Job of the same run")
                    raise RequestError(
                        f"Job {first} went on with {self._request.resumes} at the same time, and began first: "
                        f"{info.id} was canceled.",
                        f"`launch wait {self._namespace}/{first}` follows that one.",
                    )
                return
            time.sleep(self._pace.pause(number + 1))

    def _cancel(self, job_id: str, action: str) -> None:
        def cancel() -> None:
            self._hub.api.cancel_job(job_id=job_id, namespace=self._namespace)

        persist(action, cancel, self._pace)

    def _interrupted(self) -> InterruptedSubmissionError:
        if not self._posts:
            return InterruptedSubmissionError("interrupted: no Job was started, and nothing is paid for.")
        found: list[JobInfo] = []
        with suppress(LauncherError, KeyboardInterrupt):
            found = find(self._hub, self._namespace, {"request": self.id}, Pace(tries=1))
        if not found:
            return InterruptedSubmissionError("interrupted while the Job was being started.", self._known())
        job = f"{self._namespace}/{found[0].id}"
        return InterruptedSubmissionError(
            f"interrupted, but the Job {job} was started: it goes on, and so does its bill.",
            f"`launch wait {job}` comes back to it, `launch cancel {job}` stops it.",
        )

    def _known(self) -> str:
        """What is known of a submission that failed."""
        if not self._posts:
            return "No Job was started."
        return (
            "The Job may have started all the same: look before you try again, with "
            f"`hf jobs ps --all --namespace {self._namespace} --label request={self.id}`."
        )


def find(hub: Hub, namespace: str, labels: dict[str, str], pace: Pace) -> list[JobInfo]:
    """The Jobs with all of these labels, of any stage, the eldest first.

    Not `HfApi.list_jobs`, which asks again by itself, five times and with pauses that nobody can shorten.
    """

    def ask() -> list[JobInfo]:
        client, endpoint = library(), hub.api.endpoint
        asked = [("label", f"{name}={value}") for name, value in labels.items()]
        answer = client.utils.get_session().get(
            f"{endpoint}/api/jobs/{namespace}", params=asked, headers=client.utils.build_hf_headers()
        )
        client.utils.hf_raise_for_status(answer)
        return [checked(client.JobInfo(**item, endpoint=endpoint)) for item in answer.json()]

    return by_age(persist("looking for the Job", ask, pace))
