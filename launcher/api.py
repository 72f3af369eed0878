"""The launcher as a library: plan a run, render its script, submit it, follow it.

Nothing here prints or exits, and what a user or a service may cause is raised as a `LauncherError`. The command line is
built on these functions; `launcher` itself exports them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from launcher.jobs.base import Backend, Job, JobRequest
    from launcher.jobs.events import Event, Line
    from launcher.plan.record import AnyPlan, ExportPlan, Plan
    from launcher.runs.outcome import Outcome
    from launcher.spec import ExportSpec, RunSpec


def plan(spec: RunSpec | None = None, *, online: bool = False, user: str | None = None, **options: Any) -> Plan:
    """Decide everything that was left open of a run: the options of the command line, in Python's spelling.

    `options` win over those of a `spec`. Where `online`, the Hub is asked for the dataset's size and for commits;
    otherwise only for the configuration of a model that the catalog does not know. `user` is the account that output
    repos without a namespace belong to, where it is known. Raises `RequestError` for what can't be meant, and
    `RefusedError` for a run that fits nowhere, or not where it was asked to run.
    """
    from launcher import catalog, home
    from launcher.catalog import machine
    from launcher.hub import datasets, repos
    from launcher.hub.client import Hub
    from launcher.plan import make
    from launcher.spec import build

    asked = build((spec.model_dump(exclude_unset=True) if spec else {}) | options) if options or not spec else spec
    hub = Hub()
    return make.make_plan(
        asked,
        catalog.load(),
        today=_today(),
        user=user,
        here=machine.here() if asked.local else None,
        fetch_config=partial(repos.config, hub),
        fetch_weights=partial(repos.weights, hub),
        look_up=partial(datasets.size, hub) if online else None,
        resolve=partial(repos.see, hub) if online else None,
        image=home.settings().image,
    )


def plan_export(asked: ExportSpec, user: str | None = None) -> ExportPlan:
    """The same for an export of an adapter that was trained before; the Hub is asked where the adapter is there."""
    from launcher import catalog, home
    from launcher.catalog import machine
    from launcher.hub import repos
    from launcher.hub.client import Hub
    from launcher.plan import export
    from launcher.runs import adapters

    hub = Hub()
    adapter, trained = adapters.locate(asked.source, asked.revision, asked.local, hub)
    return export.make_plan(
        asked,
        adapter,
        catalog.load(),
        today=_today(),
        user=user,
        here=machine.here() if asked.local else None,
        of=trained,
        fetch_config=partial(repos.config, hub),
        fetch_weights=partial(repos.weights, hub),
        image=home.settings().image,
    )


def render(plan: AnyPlan) -> str:
    """The script of a plan, which runs by itself with `uv run`."""
    return request_of(plan).script


def request_of(plan: AnyPlan) -> JobRequest:
    """The Job around the script of a plan; `RequestError` for files that are not there, or that no Job could see."""
    from launcher import catalog
    from launcher.jobs import request

    return request.from_plan(plan, catalog.load())


def submit(plan: AnyPlan | JobRequest, backend: Backend | None = None) -> Job:
    """Check and start a run, and return at once: on the machine that its plan names, where no backend is given.

    Raises what would make it fail before anything is paid for: `RequestError`, or `RefusedError` where a token, access
    or room is missing; and `ServiceError`, which says whether there may be a Job all the same.
    """
    from launcher import jobs
    from launcher.catalog.machine import LOCAL
    from launcher.jobs.base import JobRequest

    request = plan if isinstance(plan, JobRequest) else request_of(plan)
    backend = backend or jobs.get("local" if request.flavor == LOCAL else "hub")
    backend.check(request)
    return backend.submit(request)


def follow(run: Job | str) -> Iterator[Event | Outcome]:
    """What a run says until it ends, and as the last item how it ended: an `Outcome`, also for one that failed.

    `run` is a Job as `submit` returned it, or a name: a run's id, a Job's, `last`. What had been said before comes
    first. Raises `RequestError` for no such run, and `ServiceError` when the service has been away for long.
    """
    from launcher.jobs.events import Line
    from launcher.runs.outcome import Outcome

    for item in watch(run):
        if isinstance(item, Outcome):
            yield item
        elif isinstance(item, Line) and item.event:
            yield item.event


def watch(run: Job | str) -> Iterator[Job | Line | Outcome]:
    """The same with every line, each with its event if it is one, and with what the lines add up to.

    Before them comes the Job, each time it was looked at while it waits for its machine, and once it has that.
    """
    from launcher import jobs
    from launcher.errors import RefusedError, RequestError
    from launcher.jobs.base import lost

    job = inspect(run) if isinstance(run, str) else run
    try:
        yield from _watched(jobs.get(job.backend), job)
    except (RequestError, RefusedError) as error:
        raise (lost(error, job.address, job.url) if job.backend == "hub" else error) from error


def _watched(backend: Backend, job: Job) -> Iterator[Job | Line | Outcome]:
    from launcher.errors import ServiceError
    from launcher.jobs import base, events
    from launcher.runs import why

    progress = events.Progress(job.mark)
    if job.stage == base.WAITING:
        yield job
        for seen in base.looks(backend, job.address, 0.2):
            yield seen
            if seen.stage != base.WAITING:
                break
    try:
        for line in events.watch(backend.logs(job.address, follow=True), job.mark):
            progress = line.progress
            yield line
    except ServiceError:
        if backend.inspect(job.address).live:
            raise  # of a Job that is over the stage tells how it ended, whatever became of its log
    ended = base.wait(backend, job.address)
    yield replace(why.explain(backend, ended, progress), job=ended)


def inspect(name: str) -> Job:
    """The run or the Job of that name as it is now; `RequestError` where there is none."""
    from launcher import jobs
    from launcher.runs.find import find_run

    found = find_run(name)
    return jobs.get(found.backend).inspect(found.address)


def _today() -> date:
    return datetime.now(UTC).date()
