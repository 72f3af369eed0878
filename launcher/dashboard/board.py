"""Trackio's own dashboard on a run's metrics: which project to show, and from where.

A run of this machine logs to Trackio's folder here. A Job without a Space logs to a disk that ends with it, so what its
transcript says goes into a fresh project in the run's folder, each time anew.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import IO, Any

from launcher import jobs
from launcher.dashboard.process import require_port, send, started, stopped_like_ctrl_c
from launcher.errors import LauncherError, RequestError, ServiceError
from launcher.jobs import base, folder
from launcher.jobs.base import Job
from launcher.jobs.events import Evaluation, Event, Step, watch
from launcher.plan.record import AnyPlan, Plan
from launcher.runs.find import HubJob, LocalRun, find_run

# Where Trackio looks for its data, the first that is set.
_PLACES = ("TRACKIO_DIR", "HF_HOME", "XDG_CACHE_HOME")
_CONFIG = {
    "model", "dataset", "flavor", "load_in", "max_length", "batch_size", "gradient_accumulation", "packing",
    "learning_rate", "lora_r", "lora_alpha", "seed",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Board:
    """What to show: the Space of a run, the run, or, where both are none, every project of this machine."""

    space: str | None = None
    job: Job | None = None
    plan: Plan | None = None

    @property
    def space_url(self) -> str | None:
        """The page of the Space that shows the metrics, if there is one."""
        return f"https://huggingface.co/spaces/{self.space}" if self.space else None

    @property
    def live(self) -> bool:
        """True while more metrics may come."""
        return self.job is not None and not self.job.ended

    @property
    def fed(self) -> bool:
        """True for a Job, whose metrics are nowhere but in its transcript."""
        return self.job is not None and self.job.backend != "local"


def find(name: str | None) -> Board:
    """What there is to show of a run, or of all of this machine's where none is named.

    Raises `RequestError` for a run that is not known, and for one that was started without tracking.
    """
    if name is None:
        return Board()
    found = find_run(name)
    plan = found.run.plan() if found.run else None
    if plan and (space := _space(plan)):
        return Board(space=space)
    job = _inspect(found)
    plan = plan or jobs.get(job.backend).recall(job.address).plan
    if space := _space(plan):
        return Board(space=space)
    if plan.task != "sft" or not plan.decisions.trackio_project.value:
        raise RequestError(
            f"{job.id} keeps no metrics: it was started without a Trackio project.",
            f"`launch logs {job.address}` shows its losses.",
        )
    return Board(job=job, plan=plan)


def _space(plan: AnyPlan) -> str | None:
    return plan.asked.trackio_space if plan.task == "sft" else None


def _inspect(found: LocalRun | HubJob) -> Job:
    """The run as it is; of one that can't be asked for any more, as it was known here last."""
    try:
        return jobs.get(found.backend).inspect(found.address)
    except LauncherError:
        run = found.run
        if run is None or not run.log.is_file():
            raise
        with suppress(ValueError):
            return Job.from_dict(run.read(folder.STATUS), run_dir=run.folder)
        raise


def serve(board: Board, port: int | None, on_url: Callable[[str], None]) -> None:
    """Serve the dashboard on this machine until Ctrl-C; `on_url` gets the page's address once there is one.

    Raises `RequestError` for a port that is taken and where there are no metrics, `RefusedError` without uv,
    `ServiceError` where uv can't get Trackio.
    """
    if port is not None:
        require_port(port)
    with stopped_like_ctrl_c(), suppress(KeyboardInterrupt), ExitStack() as stack:
        env = board.plan.env if board.plan else {}
        places = {name: env[name] for name in _PLACES if name in env}
        if board.job and board.fed:
            places = {"TRACKIO_DIR": stack.enter_context(_fresh_folder(board.job))}
        _talk(stack.enter_context(started(places)), board, port, on_url)


@contextmanager
def _fresh_folder(job: Job) -> Iterator[str]:
    """A folder that only its owner can read, in the run's own, gone at the end."""
    run = folder.find(job.id)
    with TemporaryDirectory(prefix="trackio-", dir=run.folder if run else None, ignore_cleanup_errors=True) as place:
        yield place


def _talk(process: subprocess.Popen[str], board: Board, port: int | None, on_url: Callable[[str], None]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    send(process.stdin, _question(board, port))
    if board.job and (board.fed or board.live):
        # Reading a log can wait for the service for ever, and must not keep the dashboard from ending.
        threading.Thread(target=_feed, args=(process.stdin, board.job, board.fed), daemon=True).start()
    answer = json.loads(process.stdout.readline() or "{}")
    if "url" in answer:
        on_url(answer["url"])
    status = process.wait()
    if "missing" in answer:
        raise _nothing(board, answer["missing"])
    if "taken" in answer:
        raise RequestError(f"the dashboard found no port: {answer['taken']}", "Give a free one with --port.")
    if status or "url" not in answer:
        raise ServiceError(
            f"Trackio's dashboard ended by itself (uv ended with {status}).",
            "What it said stands above. The first time it comes from PyPI: look at the network, then try again.",
        )


def _question(board: Board, port: int | None) -> dict[str, Any]:
    plan = board.plan.model_dump(mode="json") if board.plan else {}
    return {
        "port": port,
        "project": plan.get("trackio_project"),
        "run": plan.get("run_name"),
        "between": _span(board.job) if board.job else None,
        "config": {name: value for name, value in plan.items() if name in _CONFIG},
        "fed": board.fed,
        "live": board.live,
    }


def _span(job: Job) -> tuple[str | None, str | None]:
    """When a run of this machine began, and when it ended: the others of its name lie outside."""
    if not folder.is_local(job.id):
        return None, None
    # A run that is gone on with says when that was; its id, when it first began.
    return folder.began(job.id).isoformat(), job.finished_at.isoformat() if job.finished_at else None


def _nothing(board: Board, place: str) -> LauncherError:
    if board.job is None or board.plan is None:
        return RequestError(f"no run of this machine has metrics in {place}.", "`launch demo` makes one.")
    run_id = board.job.id
    if board.fed:
        return RequestError(
            f"{run_id} has logged no step: there is nothing to show.",
            f"`launch why {board.job.address}` says what became of it.",
        )
    return RequestError(
        f"there are no metrics of {run_id} in {place} (project {board.plan.decisions.trackio_project.value}, "
        f"run {board.plan.decisions.run_name.value}).",
        f"`launch logs {board.job.address}` shows its losses. A run that was started with another TRACKIO_DIR or "
        "HF_HOME needs the same here.",
    )


def _feed(stdin: IO[str], job: Job, fed: bool) -> None:
    """Send the metrics of a Job's transcript to its end, of any other run only its end."""
    with suppress(OSError, ValueError, LauncherError):  # the server has ended; what goes on is shown without an end
        if fed:
            for metrics, step in points(_lines(job), job.mark):
                send(stdin, {"metrics": metrics, "step": step})
        else:
            base.wait(jobs.get(job.backend), job.id)
        send(stdin, {"end": True})


def _lines(job: Job) -> Iterator[str]:
    """The Job's log, as long as it goes on; of one that can't be had any more, what was kept of it here."""
    came = False
    with suppress(LauncherError):
        for line in jobs.get(job.backend).logs(job.address, follow=not job.ended):
            came = True
            yield line
        if came:
            return
    run = folder.find(job.id)
    if run and run.log.is_file():
        with run.log.open(encoding="utf-8", errors="replace") as kept:
            yield from (line.rstrip("\n") for line in kept)


def points(lines: Iterable[str], mark: str | None = None) -> Iterator[tuple[dict[str, float], int]]:
    """The metrics of each line that has any, with their step, under the names that the script gives them.

    Steps that an attempt repeats after its checkpoint come once, as they were first.
    """
    reached: dict[type[Event], int] = {}
    for line in watch(lines, mark):
        match event := line.event:
            case Step():
                found = {"loss": event.loss, "learning_rate": event.learning_rate, "tokens_per_s": event.tokens_per_s}
            case Evaluation():
                found = {"eval/loss": event.loss}
            case _:
                continue
        known = {name: value for name, value in found.items() if value is not None}
        if known and event.step > reached.get(type(event), -1):
            reached[type(event)] = event.step
            yield known, event.step
