"""A run as its terminal sees it: submitted, followed to its end, its outcome printed and taken over."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from launcher import api
from launcher.cli import ask
from launcher.cli.ask import Asking
from launcher.cli.signals import Terminated, exit_code
from launcher.errors import JobFailedError
from launcher.view.console import err, out

if TYPE_CHECKING:
    from collections.abc import Iterable

    from launcher.hub.client import Hub
    from launcher.jobs.base import Backend, Job, JobRequest
    from launcher.jobs.rehearse import Rehearsed
    from launcher.plan.record import AnyPlan
    from launcher.runs.outcome import Outcome


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(value, indent=2))


def say(notes: Iterable[str]) -> None:
    """What a user should know besides, on stderr."""
    for note in notes:
        err().print(note, style="yellow", markup=False, soft_wrap=True)


def submit(
    plan: AnyPlan | JobRequest,
    backend: Backend | None = None,
    *,
    detach: bool = False,
    as_json: bool = False,
    quiet: bool = False,
    terse: bool = False,
    asking: Asking | None = None,
    rehearsed: Rehearsed | None = None,
) -> None:
    """Check the run, show what it will be, start it where that is agreed to, and follow it unless `detach`."""
    request, backend, checked = api.check(plan, backend)
    ask.agree(request, checked, asking or Asking(), quiet=quiet, unasked=detach or as_json or quiet)
    job = backend.submit(request)
    if not quiet:
        err().print(f"{job.id} {job.url}", markup=False, soft_wrap=True)
    if not detach:
        follow(job, as_json=as_json, quiet=quiet, terse=terse, rehearsed=rehearsed)
    elif as_json:
        print_json(job.as_dict() | _shown(rehearsed))
    else:
        err().print(f"[dim]follow it with[/] launch logs -f {job.address}", soft_wrap=True)
        if quiet:
            print(job.address)


def rehearse(plan: AnyPlan, hub: Hub, *, goes_on: bool, as_json: bool, quiet: bool) -> Rehearsed:
    """Rehearse the run here, and show how it goes and what it showed: the result, where nothing `goes_on` from it."""
    from contextlib import closing

    from launcher.catalog.machine import LOCAL
    from launcher.jobs.base import Job, now
    from launcher.jobs.events import Line
    from launcher.jobs.rehearse import rehearse as rehearsal
    from launcher.view.live import Live
    from launcher.view.tables import rehearsal_view

    job = Job(
        id="rehearsal", url="", backend=LOCAL, stage="RUNNING", message=None, flavor=LOCAL, labels={}, created_at=now()
    )
    with closing(rehearsal(api.request_of(plan), hub)) as items, Live(err(), job, 0, quiet=quiet, terse=False) as live:
        for item in items:
            if isinstance(item, Line):
                live.update(item)
            else:
                found = item
    if as_json and not goes_on:
        print_json(_shown(found))
    elif not (quiet and goes_on):
        (err() if goes_on else out()).print(rehearsal_view(found), soft_wrap=True)
    return found


def _shown(rehearsed: Rehearsed | None) -> dict[str, Any]:
    return {"rehearsal": rehearsed.as_dict()} if rehearsed else {}


def follow(job: Job, *, as_json: bool, quiet: bool, terse: bool = False, rehearsed: Rehearsed | None = None) -> None:
    """Show a run until it ends, print its outcome and exit by it."""
    from launcher.jobs.base import Job as Seen
    from launcher.jobs.events import Line
    from launcher.view.live import Live

    try:
        with Live(err(), job, _rate(job.flavor), quiet=quiet, terse=terse) as live:
            for item in api.watch(job):
                if isinstance(item, Line):
                    live.update(item)
                elif isinstance(item, Seen):
                    live.see(item)
                else:
                    outcome = item
    except KeyboardInterrupt as stop:
        _interrupted(job, stop)
    _finish(outcome.job or job, outcome, as_json, rehearsed)


def explain(job: Job, as_json: bool) -> None:
    """Say what became of a run, from its stage and its log as they are now."""
    from rich.text import Text

    from launcher import jobs
    from launcher.runs import why

    backend = jobs.get(job.backend)
    progress = why.seen(backend, job)
    found = why.explain(backend, job, progress)
    if as_json:
        print_json(why.as_dict(job, found, progress))
        return
    cause = Text.assemble("cause: ", (found.cause, "bold"), "\n") if found.cause else Text()
    out().print(Text.assemble(cause, found.message, "\n" if found.hint else "", found.hint), soft_wrap=True)


def _rate(flavor: str) -> float:
    from launcher import catalog

    known = catalog.load().flavors
    return known[flavor].usd_per_hour if flavor in known else 0


def _interrupted(job: Job, stop: KeyboardInterrupt) -> NoReturn:
    from launcher import jobs

    back = f"`launch wait {job.address}` comes back to it, `launch cancel {job.address}` stops it."
    if job.backend != "local":
        text = f"\n{job.id} goes on, and so does its bill. {back}"
    elif isinstance(stop, Terminated):  # nobody asked for the run to end
        text = f"\n{job.id} goes on. {back}"
    else:
        jobs.get("local").cancel(job.id)
        text = f"\ninterrupted: {job.id} was stopped. --detach starts a run that outlives its terminal."
    with suppress(OSError):  # the terminal may be gone
        err().print(text, markup=False, soft_wrap=True)
    raise typer.Exit(exit_code(stop))


def _finish(job: Job, outcome: Outcome, as_json: bool, rehearsed: Rehearsed | None) -> None:
    if as_json:
        ending = {"status": outcome.status, "cause": outcome.cause, "next": list(outcome.next), **_shown(rehearsed)}
        print_json(job.as_dict() | {"result": outcome.result} | ending)
    if outcome.exit_code:
        failure = JobFailedError(outcome.message, outcome.hint)
        failure.exit_code = outcome.exit_code
        raise failure
    if outcome.result and not as_json:
        from launcher.runs import why
        from launcher.view import tables

        began, ended = job.started_at, job.finished_at
        took_s = (ended - began).total_seconds() if began and ended else None
        out().print(tables.result_view(outcome.result, why.plan_of(job.id), took_s, _rate(job.flavor)))
    if outcome.hint:  # not an error, and not the end that was asked for either
        err().print(f"{outcome.message}\n{outcome.hint}", style="yellow", markup=False, soft_wrap=True)
