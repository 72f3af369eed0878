"""The commands about runs that were started: what there is, what they say, how they ended, in what they differ."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

import typer

from launcher import api
from launcher.cli import follow
from launcher.cli.follow import print_json
from launcher.cli.options import Json, Quiet, RunName
from launcher.view.console import err, out


def ps(
    every: Annotated[bool, typer.Option("--all", "-a", help="Ended ones too.")] = False,
    as_json: Json = False,
    local: Annotated[bool, typer.Option("--local", help="Local runs only: no network.")] = False,
) -> None:
    """List runs, on Jobs and here."""
    from launcher import jobs
    from launcher.view import tables

    found = jobs.list_jobs(every=every, names=["local"] if local else None)
    if as_json:
        print_json([job.as_dict() for job in found])
    else:
        out().print(tables.jobs_table(found))


def logs(
    job: RunName, follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the run ends.")] = False
) -> None:
    """Print what a run said."""
    from launcher import jobs
    from launcher.errors import ServiceError
    from launcher.jobs.events import unmarked
    from launcher.runs.find import find_run

    found = find_run(job)
    backend, mark = jobs.get(found.backend), found.run.mark if found.run else None
    if mark is None:
        with suppress(ServiceError):  # that it can't be looked at now does not hide what it said
            mark = backend.inspect(found.address).mark
    for line in backend.logs(found.address, follow=follow):
        print(unmarked(line, mark)[0], flush=follow)


def wait(job: RunName, as_json: Json = False, quiet: Quiet = False) -> None:
    """Follow a run until it ends and take over its outcome."""
    follow.follow(api.inspect(job), as_json=as_json, quiet=quiet)


def why(job: RunName, as_json: Json = False) -> None:
    """Say how a run ended, why, and what to do next."""
    follow.explain(api.inspect(job), as_json)


def cancel(job: RunName, as_json: Json = False) -> None:
    """Stop a run."""
    from launcher import jobs
    from launcher.runs.find import find_run

    found = find_run(job)
    ended = jobs.get(found.backend).cancel(found.address)
    if as_json:
        print_json(ended.as_dict())
    else:
        err().print(f"{ended.id}: {ended.stage}", markup=False)


def diff(
    one: Annotated[
        str, typer.Argument(help="A run's id or `last`, a run.json, a plan.json, or USER/REPO.", metavar="A")
    ],
    other: Annotated[str, typer.Argument(help="Another.", metavar="B")],
    every: Annotated[bool, typer.Option("--all", "-a", help="What follows from the decisions too.")] = False,
    as_json: Json = False,
) -> None:
    """Say in which decisions two runs differ, and how each of them ended."""
    from launcher.runs.diff import compare, load

    found = compare(load(one), load(other), everything=every)
    if as_json:
        print_json(found.as_dict())
        return
    from launcher.view.diff import diff_view

    out().print(diff_view(found))


def dashboard(
    run: Annotated[
        str | None,
        typer.Argument(
            help="A run's id or a Job's, or `last`; all of this machine's without it.",
            metavar="RUN",
            show_default=False,
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            help="Port of this machine; the first free one from 7860 on without it.",
            metavar="N",
            show_default=False,
        ),
    ] = None,
    opens: Annotated[bool, typer.Option("--open/--no-open", help="Open it in the browser.")] = True,
) -> None:
    """Show a run's metrics in Trackio's dashboard, on this machine, until Ctrl-C."""
    import webbrowser

    from launcher.dashboard.board import find, serve

    def show(url: str) -> None:
        print(url, flush=True)
        if opens:
            webbrowser.open(url)

    board = find(run)
    if board.space_url:
        show(board.space_url)
        return
    if board.live:
        err().print("[dim]it opens with the run's first metrics[/]")
    serve(board, port, show)
