"""The command line: flags to a `RunSpec`, calls, and the only place that prints or exits."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from launcher import __version__
from launcher.errors import JobFailedError, LauncherError, RequestError
from launcher.options import CONTEXT, takes_spec
from launcher.spec import RunSpec

if TYPE_CHECKING:
    from launcher.backends.base import Backend, Job, JobRequest
    from launcher.follow import Outcome
    from launcher.plan import Plan

app = typer.Typer(
    context_settings=CONTEXT, rich_markup_mode="rich", add_completion=False, pretty_exceptions_enable=False
)
err = Console(stderr=True, highlight=False)
out = Console(highlight=False)

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Nothing but the result.")]
Detach = Annotated[bool, typer.Option("--detach", "-d", help="Submit and return; don't follow.")]
JobId = Annotated[str, typer.Argument(help="A Job's id, or a local run's.", metavar="JOB", show_default=False)]


def main() -> None:
    """Run the command line; the one place where an error becomes text and an exit status."""
    try:
        app()
    except LauncherError as error:
        err.print(Text.assemble(("error: ", "bold red"), error.message))
        if error.hint:
            err.print(Text(error.hint))
        sys.exit(error.exit_code)


def _version(asked: bool) -> None:
    if asked:
        print(f"launch {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
@takes_spec
def run(
    ctx: typer.Context,
    asked: RunSpec | None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Everything but the submission: no network, no token.")
    ] = False,
    detach: Detach = False,
    as_json: Json = False,
    quiet: Quiet = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Fine-tune a language or vision-language model on Hugging Face Jobs.

    [bold]launch --model qwen3-8b[/] plans the run, shows the plan, submits one self-contained script and follows it.
    [bold]launch demo[/] does it here, on the CPU, with no account.
    """
    if ctx.invoked_subcommand:
        if asked:
            raise RequestError(
                "options of a run come after the subcommand.", f"Try `launch {ctx.invoked_subcommand} --model …`."
            )
        return
    if asked is None:
        print(ctx.get_help())
        raise typer.Exit(2)
    if dry_run:
        _dry_run(_plan(asked), as_json)
        return
    from launcher import backends

    backend = backends.get("local" if asked.local else "hub")
    plan = _plan(asked, user=backend.user() if not asked.local else None)
    if not quiet:
        _show_plan(plan)
    _submit_and_follow(backend, _request(plan), detach=detach, as_json=as_json, quiet=quiet)


@app.command()
@takes_spec
def plan(asked: RunSpec | None, as_json: Json = False) -> None:
    """Say what a run needs, how long it takes and what it costs, on every flavor."""
    made = _plan(_needed(asked))
    if as_json:
        print(made.model_dump_json(indent=2))
    else:
        _show_plan(made, out)


@app.command()
@takes_spec
def render(
    asked: RunSpec | None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file instead of stdout.", metavar="FILE")
    ] = None,
) -> None:
    """Print the training script of a run."""
    script = _request(_plan(_needed(asked))).script
    if output:
        output.write_text(script, encoding="utf-8")
    else:
        sys.stdout.write(script)


@app.command()
def demo(as_json: Json = False) -> None:
    """Fine-tune a small real model here: no account, no GPU, five minutes."""
    from launcher import backends
    from launcher import demo as demonstration

    err.print("[bold]launch demo[/]: SmolLM2-135M learns what the Jobs flavors are, on this CPU.")
    with err.status("getting the model ready (once)") as status:
        demonstration.model_folder(lambda line: status.update(f"getting the model ready (once): {line.strip()[:60]}"))
    plan = _plan(demonstration.spec())
    _show_plan(plan)
    _submit_and_follow(backends.get("local"), _request(plan), as_json=as_json, terse=True)
    err.print(
        "That was the script a Job gets. On a GPU: [bold]launch --model qwen3-8b --dry-run[/] says what it takes."
    )


@app.command()
def models(as_json: Json = False) -> None:
    """List the models that are known by an alias."""
    from launcher import catalog, show

    known = catalog.load().models.values()
    if as_json:
        _print_json([model.model_dump() for model in known])
    else:
        out.print(show.models_table(known))


@app.command()
def flavors(as_json: Json = False) -> None:
    """List the machines of the Jobs service."""
    from launcher import catalog, show

    known = catalog.load().flavors.values()
    if as_json:
        _print_json([flavor.model_dump() for flavor in known])
    else:
        out.print(show.flavors_table(known))


@app.command()
def ps(
    every: Annotated[bool, typer.Option("--all", "-a", help="Ended ones too.")] = False,
    as_json: Json = False,
    local: Annotated[bool, typer.Option("--local", help="Local runs only: no network.")] = False,
) -> None:
    """List runs, on Jobs and here."""
    from launcher import backends, show

    jobs = backends.list_jobs(every=every, names=["local"] if local else None)
    if as_json:
        _print_json([job.as_dict() for job in jobs])
    else:
        out.print(show.jobs_table(jobs))


@app.command()
def logs(
    job: JobId, follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the run ends.")] = False
) -> None:
    """Print what a run said."""
    from launcher import backends

    for line in backends.find(job).logs(job, follow=follow):
        print(line, flush=follow)


@app.command()
def wait(job: JobId, as_json: Json = False, quiet: Quiet = False) -> None:
    """Follow a run until it ends and take over its outcome."""
    from launcher import backends

    backend = backends.find(job)
    _follow(backend, backend.inspect(job), as_json=as_json, quiet=quiet)


@app.command()
def cancel(job: JobId, as_json: Json = False) -> None:
    """Stop a run."""
    from launcher import backends

    ended = backends.find(job).cancel(job)
    if as_json:
        _print_json(ended.as_dict())
    else:
        err.print(f"{ended.id}: {ended.stage}")


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def _needed(asked: RunSpec | None) -> RunSpec:
    if asked is None:
        raise RequestError("no model was named.", "Try --model qwen3-8b; `launch models` lists the aliases.")
    return asked


def _plan(asked: RunSpec, user: str | None = None) -> Plan:
    from launcher import backends, catalog, machine, planner

    return planner.make_plan(
        asked,
        catalog.load(),
        today=datetime.now(UTC).date(),
        user=user,
        here=machine.here() if asked.local else None,
        fetch_config=lambda repo, revision: backends.get("hub").read_config(repo, revision),
    )


def _request(plan: Plan) -> JobRequest:
    from launcher import catalog, request

    return request.from_plan(plan, catalog.load())


def _show_plan(plan: Plan, console: Console = err) -> None:
    from launcher import catalog, show

    console.print(show.plan_view(plan, catalog.load()))


def _dry_run(plan: Plan, as_json: bool) -> None:
    request = _request(plan)
    if as_json:
        whole = {"plan": plan.model_dump(mode="json"), "job": request.describe(), "script": request.script}
        _print_json(whole)
    else:
        _show_plan(plan)
        err.print(f"[dim]dry run: nothing was submitted. It would run[/] {' '.join(request.describe()['command'])}")


def _submit_and_follow(
    backend: Backend,
    request: JobRequest,
    *,
    detach: bool = False,
    as_json: bool = False,
    quiet: bool = False,
    terse: bool = False,
) -> None:
    backend.check(request)
    job = backend.submit(request)
    if not quiet:
        err.print(f"[bold]{job.id}[/] {job.url}")
    if not detach:
        _follow(backend, job, as_json=as_json, quiet=quiet, terse=terse)
    elif as_json:
        _print_json(job.as_dict())
    else:
        err.print(f"[dim]follow it with[/] launch logs -f {job.id}")
        if quiet:
            print(job.id)


def _follow(backend: Backend, job: Job, *, as_json: bool, quiet: bool, terse: bool = False) -> None:
    """Show a run until it ends, print its outcome and exit by it."""
    from launcher import follow
    from launcher.backends import base
    from launcher.live import Live

    progress = follow.Progress()
    try:
        with Live(err, job, _rate(job.flavor), quiet=quiet, terse=terse) as live:
            for line, _ in follow.watch(backend.logs(job.id, follow=True), progress):
                live.update(line, progress)
        ended = base.wait(backend, job.id)
    except KeyboardInterrupt:
        _interrupted(backend, job)
    else:
        _finish(ended, follow.outcome(ended, progress), as_json)


def _rate(flavor: str) -> float:
    from launcher import catalog

    known = catalog.load().flavors
    return known[flavor].usd_per_hour if flavor in known else 0


def _interrupted(backend: Backend, job: Job) -> NoReturn:
    if backend.name == "local":
        backend.cancel(job.id)
        err.print(f"\ninterrupted: {job.id} was stopped. --detach starts a run that outlives its terminal.")
    else:
        err.print(
            f"\n{job.id} goes on, and so does its bill. `launch wait {job.id}` comes back to it, "
            f"`launch cancel {job.id}` stops it."
        )
    raise typer.Exit(130)


def _finish(job: Job, outcome: Outcome, as_json: bool) -> None:
    from launcher import show

    if as_json:
        _print_json(job.as_dict() | {"result": outcome.result})
    if outcome.exit_code:
        failure = JobFailedError(outcome.message, outcome.hint)
        failure.exit_code = outcome.exit_code
        raise failure
    if outcome.result and not as_json:
        out.print(show.result_view(outcome.result))
