"""Runs the script on this machine: the same request in a subprocess, its state in the run's folder."""

from __future__ import annotations

import builtins
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import launcher
from launcher import home
from launcher.catalog.machine import LOCAL
from launcher.errors import RefusedError, RequestError, ServiceError
from launcher.hub import access
from launcher.hub.client import Hub
from launcher.jobs import folder, supervise
from launcher.jobs.base import MARK_ENV, Checked, Job, JobRequest, Left, new_mark, now, require_hidden, secret_values
from launcher.jobs.environment import find_uv, misleading, uv_run
from launcher.jobs.folder import COMMAND, NOTES, PLAN, REQUEST, STATUS, Run
from launcher.jobs.places import require_free
from launcher.spec import path_of
from launcher.text import safe

NEEDED_GB = 5
"""Free disk that a run needs: the training stack, its cache and an adapter."""

_START_S = 60


class LocalBackend:
    """Runs on this machine. `grace_s` is what a script gets to save its work when it is stopped.

    The `hub` is asked only about what a run pushes.
    """

    name = "local"

    def __init__(self, hub: Hub | None = None, *, grace_s: float = 30.0) -> None:
        self.hub = hub or Hub()
        self._grace_s = grace_s

    def check(self, request: JobRequest) -> Checked:
        """Raise where uv, disk space, a local file or the value of a secret is missing."""
        if os.name != "posix":
            raise RefusedError(
                "runs on this machine need Linux or macOS.", "Leave --local out to run on Jobs, or use WSL."
            )
        find_uv()
        _check_paths(request)
        require_hidden(request, secret_values(request.secrets))
        require_space()
        access.require_places(self.hub, *request.plan.places)
        return Checked(require_free(self.hub, request))

    def submit(self, request: JobRequest) -> Job:
        """Start the script and return once its supervisor lives; it goes on when the launcher ends."""
        values = secret_values(request.secrets)
        uv = uv_run()
        known = self._load(request.resumes) if request.resumes else None
        with folder.locked(known.folder) if known else nullcontext():
            try:
                run = self._again(request, known) if known else _name(folder.create(request, self.name))
                self._prepare(run, request, uv)
                _start_supervisor(run, values)
            except OSError as error:
                raise RefusedError(
                    f"the run can't be kept in {home.data()}: {error.strerror or error}.",
                    "Make room there, or set LAUNCH_HOME to another folder.",
                ) from error
        return self.inspect(run.id)

    def _prepare(self, run: Run, request: JobRequest, uv: list[str]) -> None:
        """Put into the run's folder what its supervisor needs."""
        mark = new_mark()
        arguments = request.arguments({item: str(Path(item).absolute()) for item in request.files})
        command: dict[str, Any] = {
            # uv's setting is for what a script itself runs with uv.
            "env": {"PYTHONUNBUFFERED": "1", "UV_NO_CONFIG": "1", **request.env, MARK_ENV: mark},
            # The supervisor has a PYTHONPATH of its own.
            "unset": sorted(misleading((*os.environ, "PYTHONPATH")) - {*request.secrets}),
            "secrets": sorted({*request.secrets, "HF_TOKEN"}),
            "timeout_s": request.timeout_s,
            "grace_s": self._grace_s,
        }
        script = run.folder / request.script_name
        run.write(COMMAND, command | {"argv": [*uv, str(script), *arguments]})
        job = Job(
            id=run.id, url=run.folder.as_uri(), backend=self.name, stage="SCHEDULING", message=None,
            flavor=request.flavor, labels=request.all_labels, created_at=now(), mark=mark,
        )  # fmt: skip
        run.write(STATUS, job.as_dict())

    def left(self, job_id: str, repo: str | None) -> Left:
        """Nothing is known beside the log."""
        return Left()

    def recall(self, job_id: str) -> JobRequest:
        """The request of a run of this machine: submitted, it goes on in the same folder, under the same id."""
        run = self._load(job_id)
        kept, plan = run.read(REQUEST), run.plan()
        try:
            script = run.folder / str(kept["script_name"])
            return JobRequest(
                plan=plan, script=script.read_bytes().decode(), script_name=script.name,
                script_args=tuple(map(str, kept["script_args"])), image=None, flavor=plan.decisions.flavor.value,
                timeout_s=plan.decisions.timeout_s.value, env=plan.env, secrets=plan.decisions.secrets.value,
                labels=_read(run)[0].labels, namespace=None, resumes=run.id,
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise RequestError(
                f"the request of run '{run.id}' can't be read: it is not whole, or another version of launch wrote it.",
                f"Look at {run.folder}, and start the run anew with its options.",
            ) from error

    def inspect(self, job_id: str) -> Job:
        """The run as it is; one whose supervisor died without a word is ended here, with what it left running."""
        run = self._load(job_id)
        job, status = _read(run)
        if job.ended or supervise.is_alive(status.get("supervisor")):
            return job
        job, status = _read(run)  # it may have ended between the two looks
        if job.ended or ("supervisor" not in status and now() - job.created_at < timedelta(seconds=_START_S)):
            return job
        supervise.end_group(status.get("child"), grace_s=1.0)
        died = "its supervisor died: it was killed, or the machine restarted"
        job = replace(job, stage="ERROR", message=died, finished_at=now())
        with home.spared():
            run.write(STATUS, status | job.as_dict())
        return job

    def list(self, all: bool = False) -> builtins.list[Job]:
        """The runs of this machine, newest first."""
        ids = [run.id for run in folder.every() if folder.is_local(run.id)]
        jobs = sorted((self.inspect(run_id) for run_id in ids), key=lambda job: job.created_at, reverse=True)
        return [job for job in jobs if all or not job.ended]

    def logs(self, job_id: str, follow: bool) -> Iterator[str]:
        """The lines of the transcript; a line that is still being written counts once the run has ended."""
        run = self._load(job_id)
        return self._lines(run, follow)

    def cancel(self, job_id: str) -> Job:
        """Stop the run: asked to first, killed when it has not ended in time."""
        job = self.inspect(job_id)
        run = self._load(job_id)
        if job.ended:
            return job
        supervisor = _read(run)[1].get("supervisor")
        if supervisor and supervise.is_alive(supervisor):
            with suppress(ProcessLookupError):
                os.kill(supervisor["pid"], signal.SIGTERM)
        grace_s = run.read(COMMAND).get("grace_s")
        deadline = time.monotonic() + (grace_s if isinstance(grace_s, int | float) else self._grace_s) + 20
        while not (job := self.inspect(job_id)).ended:
            if time.monotonic() > deadline:
                raise ServiceError(f"run {job_id} does not end.", f"Look at {run.folder / STATUS} for its processes.")
            time.sleep(0.1)
        return job

    def _again(self, request: JobRequest, run: Run) -> Run:
        """The folder of the run that is gone on with; what it said before is kept beside its new transcript."""
        if not self.inspect(run.id).ended:
            raise RequestError(f"{run.id} still goes on.", f"`launch wait {run.id}` follows it.")
        if run.log.exists():
            number = len(list(run.folder.glob(f"{run.log.name}.*"))) + 1
            run.log.rename(run.log.with_name(f"{run.log.name}.{number}"))
        run.write(PLAN, request.plan.model_dump_json(indent=2) + "\n")
        kept = run.read(REQUEST)
        run.write(REQUEST, kept | request.describe() | {"script_args": list(request.script_args)})
        return run

    def _load(self, job_id: str) -> Run:
        run = folder.load(job_id)
        if not folder.is_local(run.id):
            raise RequestError(f"'{job_id}' is not a run of this machine.", "`launch ps --all` shows all.")
        return run

    def _lines(self, run: Run, follow: bool) -> Iterator[str]:
        rest = b""
        position, pause_s = 0, 0.05
        while True:
            # Looked at before reading: what was written until the end is then surely in what is read.
            ended = not follow or self.inspect(run.id).ended
            chunk = _read_from(run.log, position)
            position += len(chunk)
            *lines, rest = (rest + chunk).split(b"\n") if b"\n" in chunk else [rest + chunk]
            for line in lines:
                yield safe(line.decode("utf-8", "replace"), ())
            if ended and not chunk:
                break
            if not chunk:
                time.sleep(pause_s)
            pause_s = 0.05 if chunk else min(pause_s * 1.5, 0.5)
        if rest:
            yield safe(rest.decode("utf-8", "replace"), ())


def _read(run: Run) -> tuple[Job, dict[str, Any]]:
    """The run as it is kept, and all that is kept of it; where that is damaged, what its id says."""
    status = run.read(STATUS)
    with suppress(ValueError):
        return Job.from_dict(status, run_dir=run.folder), status
    return Job(
        id=run.id, url=run.folder.as_uri(), backend=LocalBackend.name, stage="SCHEDULING", message=None, flavor=LOCAL,
        labels={}, created_at=folder.began(run.id), run_dir=run.folder,
    ), {}  # fmt: skip


def _read_from(log: Path, position: int) -> bytes:
    with suppress(FileNotFoundError), log.open("rb") as file:
        file.seek(position)
        return file.read(1 << 22)
    return b""


def _name(run: Run) -> Run:
    while True:
        with suppress(FileExistsError):
            return run.rename(f"local-{now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}")


def _start_supervisor(run: Run, values: dict[str, str]) -> None:
    """Run the supervisor's first process to its end; the secrets travel in its environment, never on disk."""
    # It runs in the launcher's own Python, installed or not; its child gets none of that.
    environment = os.environ | values | {"PYTHONPATH": str(Path(launcher.__file__).parent.parent)}
    notes = run.write(NOTES, "")
    with notes.open("ab") as file:
        started = subprocess.run(
            [sys.executable, "-P", "-m", "launcher.jobs.supervise", str(run.folder)],
            env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True, check=False,
        )  # fmt: skip
    if started.returncode != 0:
        supervise.record(run, stage="ERROR", message="its supervisor did not start", finished_at=now().isoformat())
        raise ServiceError("the run could not be started on this machine.", f"Look at {notes}.")


def _check_paths(request: JobRequest) -> None:
    named = {"model": request.plan.facts.repo}
    if request.plan.task == "sft":
        named["dataset"] = request.plan.decisions.dataset.value
    for option, name in named.items():
        if (path := path_of(name)) and not path.exists():
            raise RequestError(f"--{option} {name}: there is no such file or folder.", "Give a path that exists.")


def require_space() -> None:
    """Raise `RefusedError` where the disks of runs and of uv have too little room for a run."""
    for place in (home.data(), Path(os.environ.get("UV_CACHE_DIR") or Path.home() / ".cache")):
        there = next(path for path in (place, *place.parents) if path.exists())
        free = shutil.disk_usage(there).free / 1e9
        if free < NEEDED_GB:
            raise RefusedError(
                f"there are {free:.1f} GB free at {there}, and a run needs {NEEDED_GB} GB.",
                "Make room, or set LAUNCH_HOME and UV_CACHE_DIR to a larger disk.",
            )
