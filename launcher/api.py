"""The launcher as a library: plan a run, render its script, submit it, follow it.

Nothing here prints or exits, and what a user or a service may cause is raised as a `LauncherError`. The command line is
built on these functions; `launcher` itself exports them.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, date, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from launcher.errors import RefusedError, ServiceError

if TYPE_CHECKING:
    from launcher.catalog import Catalog
    from launcher.hub.client import Hub
    from launcher.jobs.base import Backend, Checked, Job, JobRequest
    from launcher.jobs.events import Event, Line
    from launcher.look.report import Look
    from launcher.plan.record import AnyPlan, ExportPlan, Plan
    from launcher.runs.outcome import Outcome
    from launcher.spec import ExportSpec, RunSpec


def plan(
    spec: RunSpec | None = None, *, online: bool = False, user: str | None = None,
    tables: Catalog | None = None, **options: Any,
) -> Plan:  # fmt: skip
    """Decide everything that was left open of a run: the options of the command line, in Python's spelling.

    `options` win over those of a `spec`. Where `online`, the Hub is asked for today's prices, the dataset's size and
    commits; otherwise only for the configuration of a model that the catalog does not know. `user` is the account that
    output repos without a namespace belong to. With either the run is to be submitted, and gets a name that no other
    has. `tables` are other models and machines than those that are known here. Raises `RequestError` for what
    can't be meant, and `RefusedError` for a run that fits nowhere, or not where it was asked to run.
    """
    from launcher import home
    from launcher.catalog import machine
    from launcher.hub import datasets, repos
    from launcher.hub.client import Hub
    from launcher.plan import make
    from launcher.spec import build

    asked = build((spec.model_dump(exclude_unset=True) if spec else {}) | options) if options or not spec else spec
    hub = Hub()
    return make.make_plan(
        asked,
        tables or tables_of(hub if online else None),
        today=_today(),
        user=user,
        unique=f"{datetime.now(UTC):%H%M}-{secrets.token_hex(2)}" if user or online else None,
        here=machine.here() if asked.local else None,
        fetch_config=partial(repos.config, hub),
        fetch_weights=partial(repos.weights, hub),
        look_up=partial(datasets.size, hub) if online else None,
        resolve=partial(repos.see, hub) if online else None,
        image=home.settings().image,
    )


def plan_export(asked: ExportSpec, user: str | None = None, tables: Catalog | None = None) -> ExportPlan:
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
        tables or catalog.load(),
        today=_today(),
        user=user,
        here=machine.here() if asked.local else None,
        of=trained,
        fetch_config=partial(repos.config, hub),
        fetch_weights=partial(repos.weights, hub),
        image=home.settings().image,
    )


def look(plan: Plan) -> Look:
    """What the run of a plan would learn from its rows, seen without torch: of a Hub dataset, from its first rows.

    What the script would refuse is said in `refusal`. Raises `RequestError` for what holds no rows at all, and
    `ServiceError` where none can be seen from here.
    """
    from launcher.hub.client import Hub
    from launcher.look import reading

    return reading.look(plan, Hub())


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

    Raises what would make it fail before anything is paid for: `RequestError`, also for rows that nothing can be
    learned from, or `RefusedError` where a token, access or room is missing; and `ServiceError`, which says whether
    there may be a Job all the same.
    """
    request, backend, _ = check(plan, backend)
    return backend.submit(request)


def check(plan: AnyPlan | JobRequest, backend: Backend | None = None) -> tuple[JobRequest, Backend, Checked]:
    """What `submit` would send, to where, and what a check of it found; raises as `submit` does."""
    from launcher import jobs
    from launcher.catalog.machine import LOCAL
    from launcher.jobs.base import JobRequest

    request = plan if isinstance(plan, JobRequest) else request_of(plan)
    backend = backend or jobs.get("local" if request.flavor == LOCAL else "hub")
    checked = backend.check(request)
    if request.plan.task == "sft" and not request.resumes:
        # Rows that can't be seen from here are the script's to refuse.
        with suppress(ServiceError, RefusedError):
            look(request.plan).require()
    return request, backend, checked


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


def tables_of(hub: Hub | None) -> Catalog:
    """All models and machines: as that Hub's service lists them now, or as they are known here.

    Its `notices` say what went wrong with that.
    """
    from launcher import catalog

    if hub is None:
        return catalog.load()
    from launcher.jobs.service import todays

    return todays(hub)


def _today() -> date:
    return datetime.now(UTC).date()
