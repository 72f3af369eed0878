"""What crosses the seam between the launcher and whatever runs a script."""

from __future__ import annotations

import builtins
import json
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from pydantic import AwareDatetime, TypeAdapter

from launcher.errors import LauncherError, RefusedError, RequestError, ServiceError
from launcher.hub import session
from launcher.hub.client import read_token
from launcher.hub.repos import Place
from launcher.plan.record import AnyPlan
from launcher.spec import path_of
from launcher.text import SHORTEST

# The service's words. A stage that is in neither set is one that this launcher does not know.
WAITING = "SCHEDULING"
"""For a machine: nothing is paid yet."""
LIVE = frozenset({WAITING, "RUNNING"})
ENDED = frozenset({"COMPLETED", "ERROR", "CANCELED", "DELETED"})

# What `run_uv_job` does when nothing is said (huggingface_hub's DEFAULT_UV_IMAGE, HF_JOBS_ARTIFACTS_*); a test holds
# them equal to the client's, whose import would cost a dry run most of a second.
DEFAULT_IMAGE = "ghcr.io/astral-sh/uv:python3.12-bookworm"
ARTIFACTS_BUCKET = "jobs-artifacts"
ARTIFACTS_MOUNT = "/data"
ARTIFACTS_ENV = "LAUNCH_ARTIFACTS"
"""Tells a Job where its /data is to be found from outside, as `hf://buckets/NAMESPACE/BUCKET/FOLDER`."""
PLAN_FILE = "plan.json"
MARK_ENV = "LAUNCH_MARK"
"""Tells a run how the lines end that it says for the launcher: new each time, so that nothing it reads can know it."""
DATASET_FLAG = "--dataset"
TIMEOUT_FLAG = "--timeout-s"
"""Tells the script when it is stopped, in seconds from its start."""

_BUCKETS = "hf://buckets/"
_TIMES = ("created_at", "started_at", "finished_at")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """Everything a backend needs to run a script; secrets are named, their values are read at submission.

    The dataset's file is sent along, and its argument rewritten to where the Job finds it. A request that goes on with
    the Job `resumes` names that Job's `artifacts`, as an `hf://` URI, where such files are already.
    """

    plan: AnyPlan
    script: str
    script_name: str
    beside: dict[str, str] = field(default_factory=dict)
    """Other scripts that lie beside it, by name: what it starts itself."""
    script_args: tuple[str, ...] = ()
    image: str | None = None
    flavor: str
    timeout_s: int
    env: dict[str, str]
    secrets: tuple[str, ...]
    labels: dict[str, str]
    namespace: str | None = None
    attempts: int = 1
    artifacts: str | None = None
    resumes: str | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """The dataset's file, where the arguments name one; another option may be called like a file, and is none."""
        if self.artifacts:
            return ()
        named = (value for flag, value in pairwise(self.script_args) if flag == DATASET_FLAG)
        return tuple(value for value in dict.fromkeys(named) if (path := path_of(value)) and path.is_file())

    def arguments(self, sent: Mapping[str, str]) -> list[str]:
        """The arguments with each of the `files` under the path that the script finds it at."""
        before = ("", *self.script_args)
        return [
            sent.get(item, item) if flag == DATASET_FLAG else item
            for flag, item in zip(before, self.script_args, strict=False)
        ]

    @property
    def all_labels(self) -> dict[str, str]:
        """The labels with a `name` of the form that the service takes; the client would else make one up."""
        name = self.labels.get("name") or self.plan.decisions.run_name.value
        return {**self.labels, "name": re.sub(r"[^A-Za-z0-9_-]", "-", name)[:100]}

    @property
    def remote_names(self) -> dict[str, str]:
        """What is sent, each under the name that it has in the Job's /data."""
        return _remote_names((self.script_name, *self.beside, PLAN_FILE, *self.files))

    def describe(self) -> dict[str, Any]:
        """The Job as the service would run it, for people and for `--dry-run --json`; reads no network, no token."""
        remote = self.remote_names
        sent = {item: f"{ARTIFACTS_MOUNT}/{remote[item]}" for item in self.files}
        arguments = self.arguments(sent)
        artifacts = self.artifacts or f"{_BUCKETS}{self.namespace or '<you>'}/{ARTIFACTS_BUCKET}/<a fresh folder>"
        source, folder = split_artifacts(artifacts)
        own = {"request": "<a fresh id>", "artifacts": folder} | ({"resumes": self.resumes} if self.resumes else {})
        return {
            "image": self.image or DEFAULT_IMAGE,
            "command": ["uv", "run", f"{ARTIFACTS_MOUNT}/{remote[self.script_name]}", *arguments],
            "flavor": self.flavor,
            "timeout_s": self.timeout_s,
            "attempts": self.attempts,
            "env": {**self.env, ARTIFACTS_ENV: artifacts},
            "secrets": list(self.secrets),
            "labels": self.all_labels | own,
            "volumes": [
                {
                    "type": "bucket",
                    "source": source,
                    "path": folder,
                    "mount_path": ARTIFACTS_MOUNT,
                    "read_only": False,
                }
            ],
        }


def split_artifacts(uri: str) -> tuple[str, str]:
    """Bucket and folder of the URI of a Job's artifacts."""
    namespace, bucket, folder = uri.removeprefix(_BUCKETS).split("/", 2)
    return f"{namespace}/{bucket}", folder


def join_artifacts(bucket: str, folder: str) -> str:
    """The URI of a Job's artifacts."""
    return f"{_BUCKETS}{bucket}/{folder}"


def _remote_names(paths: tuple[str, ...]) -> dict[str, str]:
    """The name of each file under the mount, as `run_uv_job` gives them: no spaces, a number where two are alike."""
    names: dict[str, str] = {}
    for path in paths:
        wanted = Path(Path(path).name.replace(" ", "_"))
        name, number = wanted.name, 0
        while name in names.values():
            name, number = wanted.with_stem(f"{wanted.stem}({number})").name, number + 1
        names[path] = name
    return names


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is known of one run at one moment; times are aware, and none where it has not come to that."""

    id: str
    url: str
    backend: str
    stage: str
    message: str | None
    flavor: str
    labels: dict[str, str]
    created_at: AwareDatetime
    started_at: AwareDatetime | None = None
    finished_at: AwareDatetime | None = None
    run_dir: Path | None = None
    mark: str | None = None
    """How the lines end that the run says for the launcher; none where it says them without."""

    @property
    def address(self) -> str:
        """NAMESPACE/ID for a Job of the service, which finds it without any record of it here."""
        return "/".join(self.url.rsplit("/", 2)[-2:]) if self.backend == "hub" and "/jobs/" in self.url else self.id

    @property
    def ended(self) -> bool:
        """True once the stage will not change any more."""
        return self.stage in ENDED

    @property
    def live(self) -> bool:
        """True while it waits or runs; a stage that is not known here is neither that nor an end."""
        return self.stage in LIVE

    @property
    def succeeded(self) -> bool:
        """True only for a Job that ran to its end and exited with 0."""
        return self.stage == "COMPLETED"

    def as_dict(self) -> dict[str, Any]:
        """The Job as JSON can hold it, times in ISO 8601."""
        values = asdict(self)
        for name in _TIMES:
            values[name] = values[name] and values[name].isoformat()
        values["run_dir"] = self.run_dir and str(self.run_dir)
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any], run_dir: Path | None = None) -> Job:
        """The Job that `as_dict` wrote; keys that are not of a Job are left aside. `ValueError` where it is not one."""
        known = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        return _form().validate_python(known | {"run_dir": run_dir})


@cache
def _form() -> TypeAdapter[Job]:
    return TypeAdapter(Job)


def new_mark() -> str:
    """A mark for one submission."""
    return secrets.token_hex(4)


@dataclass(frozen=True, slots=True)
class Left:
    """What a run left: the files of its output repo, the newest checkpoint's step, the files of /data's output.

    `problem` says why they are not known.
    """

    repo: str | None = None
    repo_files: tuple[str, ...] = ()
    checkpoint: int | None = None
    output_files: tuple[str, ...] = ()
    problem: str = ""

    @property
    def model(self) -> str | None:
        """Where a trained model is, in words."""
        if any(name.endswith(".safetensors") for name in self.repo_files):
            return f"the model is at https://huggingface.co/{self.repo}"
        if any(name.endswith(".safetensors") for name in self.output_files):
            return "the model is in the Job's /data/output"
        return None


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check found out besides: the repo that the result goes to, as it is now, and what may fail all the same.

    The repo is none where nothing is pushed.
    """

    repo: Place | None = None
    doubts: tuple[str, ...] = ()


class Backend(Protocol):
    """Where scripts run. What a user or a service may cause is raised as a `LauncherError`.

    A Job is named by its id, or by its `address`.
    """

    name: str

    def check(self, request: JobRequest) -> Checked:
        """Raise where the request can't succeed for a reason that can be known before anything is paid for."""
        ...

    def submit(self, request: JobRequest) -> Job:
        """Start the Job and return at once; `check` is not repeated.

        Raises `RequestError` for one that goes on with a run which another goes on with, or has come to its end.
        """
        ...

    def inspect(self, job_id: str) -> Job:
        """The Job as it is now; `RequestError` where there is none of that id."""
        ...

    def recall(self, job_id: str) -> JobRequest:
        """The request of a Job, to be submitted again on its artifacts; `RequestError` where that can't be had."""
        ...

    def left(self, job_id: str, repo: str | None) -> Left:
        """What the Job left behind, in `repo` too; what can't be looked up is said in `problem`, never raised."""
        ...

    def list(self, all: bool = False) -> builtins.list[Job]:
        """The Jobs that this launcher started, newest first; only those that have not ended, unless `all`."""
        ...

    def logs(self, job_id: str, follow: bool) -> Iterator[str]:
        """The lines so far, from the first; with `follow` until the Job has ended. Nothing a terminal would act on."""
        ...

    def cancel(self, job_id: str) -> Job:
        """Stop the Job; one that has ended already is returned as it is."""
        ...


def looks(backend: Backend, job_id: str, pause_s: float = 1.0) -> Iterator[Job]:
    """The Job as it is, again and again, less and less often; a service that fails for a while is asked again."""
    failures = 0
    while True:
        try:
            job = backend.inspect(job_id)
        except ServiceError:
            failures += 1
            if failures == 8:
                raise
        else:
            failures = 0
            yield job
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, 15)


def wait(backend: Backend, job_id: str, pause_s: float = 1.0) -> Job:
    """Return the Job once it is over, or in a stage that nobody knows here."""
    return next(job for job in looks(backend, job_id, pause_s) if not job.live)


def lost(error: LauncherError, address: str, url: str = "") -> ServiceError:
    """What is said instead of a Job that was made, where the service does not show it: it may go on all the same."""
    place = url or f"https://huggingface.co/jobs/{address}"
    return ServiceError(
        f"{error.message} The Job {address} was made: it may go on, and cost.",
        f"`launch wait {address}` looks again, `launch cancel {address}` stops it; its page is {place}. {error.hint}",
    )


def now() -> datetime:
    """This moment, aware."""
    return datetime.now(UTC)


def secret_values(names: tuple[str, ...]) -> dict[str, str]:
    """The value of each secret: the Hub's token for HF_TOKEN, the environment for any other.

    Raises `RequestError` with the names that have none.
    """
    values = {name: read_token() if name == "HF_TOKEN" else os.environ.get(name) for name in names}
    missing = [name for name, value in values.items() if not value]
    if "HF_TOKEN" in missing:
        raise RequestError(
            "the secret HF_TOKEN has no value: you are not logged in to the Hub.",
            "Run `hf auth login`, or set HF_TOKEN in this shell.",
        )
    if missing:
        raise RequestError(
            f"the secret {' and '.join(missing)} has no value in this shell's environment.",
            f"Set it first: `export {missing[0]}=…`.",
        )
    return {name: value for name, value in values.items() if value}


def require_hidden(request: JobRequest, values: dict[str, str]) -> None:
    """Raise `RefusedError` where the value of a secret stands in what the service shows, or in the script.

    So it does for an HF_ENDPOINT to which the run would send its token in clear.
    """
    session.require_endpoint(request.env.get("HF_ENDPOINT") or os.environ.get("HF_ENDPOINT"))
    told = json.dumps([request.describe(), request.plan.model_dump(mode="json")], ensure_ascii=False)
    shown = "".join([told, request.script, *request.beside.values()])
    for name, value in values.items():
        if len(value) >= SHORTEST and value in shown:
            raise RefusedError(
                f"the value of the secret {name} stands in the request itself, where others would see it.",
                "Take it out of the options; --secrets sends it, encrypted.",
            )
