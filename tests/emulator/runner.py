"""Runs Jobs as processes of this machine.

A container's mounts can't be had everywhere, so each volume is a folder: every mention of its mount path in the command
and the environment is replaced by that folder, and `LAUNCH_DATA_DIR` holds the one of `/data`. For a bucket it is the
bucket's own folder, so what a Job writes stays, and its next attempt finds it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.emulator.job import DEFAULT_TIMEOUT_S, Job
from tests.emulator.state import State

# What a Job inherits: where programs and caches are, how to reach an index. No token, no other setting of a test.
INHERITED = re.compile(
    r"PATH|HOME|LANG|LC_ALL|TMPDIR|LD_LIBRARY_PATH|XDG_CACHE_HOME|UV_.*|PIP_.*|SSL_CERT_.*|REQUESTS_CA_BUNDLE"
    r"|CURL_CA_BUNDLE|(?i:https?_proxy|all_proxy|no_proxy)"
)


@dataclass
class Runner:
    state: State
    uv: str
    python: str | None = None
    """The interpreter that uv uses, whatever a script asks for."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Set for every Job."""

    def start(self, job: Job) -> None:
        threading.Thread(target=self._run, args=(job,), name=f"job-{job.id}", daemon=True).start()

    def _run(self, job: Job) -> None:
        try:
            folder = self.state.root / "jobs" / job.id
            (folder / "work").mkdir(parents=True)
            command, env = self._command(job, folder)
            # The timeout is the Job's, over all of its attempts: so the client's documentation reads.
            deadline = time.monotonic() + job.spec.get("timeoutSeconds", DEFAULT_TIMEOUT_S)
            for _ in range(job.spec.get("attempts", 1)):
                if job.ended:
                    return None
                job.start()
                code, late = self._attempt(job, command, env, folder / "work", deadline)
                if late:
                    return job.finish("ERROR", "Job timeout")
                if code == 0:
                    return job.finish("COMPLETED")
            return job.finish("ERROR", f"Job failed with exit code: {code}")
        except (OSError, ValueError) as error:  # such as a command or a revision that does not exist
            return job.finish("ERROR", f"Job could not be started: {error}")
        finally:
            # Whatever went wrong here, the Job ends, or who follows it waits for ever.
            job.finish("ERROR", "the emulator failed")

    def _attempt(
        self, job: Job, command: list[str], env: dict[str, str], work: Path, deadline: float
    ) -> tuple[int, bool]:
        """The exit status, and whether the time was up. Everything the command started ends with it."""
        process = subprocess.Popen(
            command,
            cwd=work,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        late, over = threading.Event(), threading.Event()
        watch = threading.Thread(target=_watch, args=(job, process, deadline, late, over), daemon=True)
        watch.start()
        assert process.stdout is not None
        with process.stdout as output:
            for line in output:
                job.log(line.decode(errors="replace").rstrip("\n"))
        code = process.wait()
        over.set()
        watch.join()
        return (128 - code if code < 0 else code), late.is_set()

    def _command(self, job: Job, folder: Path) -> tuple[list[str], dict[str, str]]:
        spec = job.spec
        mounts = {volume["mountPath"]: self._volume(volume, folder) for volume in spec.get("volumes", [])}
        parts = [_rewrite(part, mounts) for part in [*spec.get("command", []), *spec.get("arguments", [])]]
        machine = self.state.flavors[spec["flavor"]]
        inherited = {name: value for name, value in os.environ.items() if INHERITED.fullmatch(name)}
        programs = [str(Path(self.uv).parent), *([str(Path(self.python).parent)] if self.python else [])]
        local = "127.0.0.1,localhost"
        env = {
            **inherited,
            "PATH": os.pathsep.join([*programs, inherited.get("PATH", os.defpath)]),
            "NO_PROXY": local,
            "no_proxy": local,
            "HF_ENDPOINT": self.state.url,
            "HF_HOME": str(folder / "huggingface"),
            "PYTHONUNBUFFERED": "1",
            "JOB_ID": job.id,
            "ACCELERATOR": spec["flavor"] if machine["accelerator"] else "none",
            "CPU_CORES": machine["cpu"].split()[0],
            "MEMORY": machine["ram"].replace(" GB", "Gi"),
            **({"UV_PYTHON": self.python} if self.python else {}),
            **({"LAUNCH_DATA_DIR": str(mounts["/data"])} if "/data" in mounts else {}),
            **self.env,
            **{name: _rewrite(value, mounts) for name, value in spec.get("environment", {}).items()},
            **job.secrets,
        }
        return [self.uv, *parts[1:]] if parts[0] == "uv" else parts, env

    def _volume(self, volume: dict[str, Any], folder: Path) -> Path:
        """The folder that stands for a volume: the bucket's own, or a copy of a repo."""
        inside, mount = str(volume.get("path") or ""), str(volume["mountPath"])
        if volume["type"] == "bucket":
            place = self.state.buckets[volume["source"]].folder / inside
            place.mkdir(parents=True, exist_ok=True)
            if not volume.get("readOnly"):
                return place
        copy = folder / "volumes" / mount.strip("/")
        if volume["type"] == "bucket":
            shutil.copytree(place, copy)
            return copy
        repo = self.state.repos[self.state.key(f"{volume['type']}s", volume["source"])]
        commit = repo.find(volume.get("revision") or "main")
        if commit is None:
            raise ValueError(f"{repo.id} has no revision {volume['revision']!r}")
        for path, file in commit.files.items():
            target = copy / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.data)
        return copy / inside


def _watch(
    job: Job, process: subprocess.Popen[bytes], deadline: float, late: threading.Event, over: threading.Event
) -> None:
    """Kills the process group when the Job is cancelled or its time is up."""
    while not over.wait(0.05):
        if job.canceled.is_set() or time.monotonic() > deadline:
            if not job.canceled.is_set():
                late.set()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            return


def _rewrite(text: str, mounts: Mapping[str, Path]) -> str:
    for mount, place in mounts.items():
        text = re.sub(rf"(?<![\w/.-]){re.escape(mount)}(?![\w.-])", str(place), text)
    return text


def find_uv() -> str:
    """The uv of this environment, or else the one on PATH."""
    beside = Path(sys.executable).parent / "uv"
    return str(beside) if beside.exists() else shutil.which("uv") or "uv"
