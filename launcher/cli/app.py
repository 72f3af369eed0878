"""The command line: flags to a `RunSpec`, calls, and text: only here and in `session` is anything printed."""

from __future__ import annotations

import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launcher import __version__
from launcher.cli import follow as session
from launcher.cli.options import CONTEXT, Commands, takes_spec
from launcher.errors import LauncherError, RequestError, ServiceError
from launcher.spec import RunSpec
from launcher.text import held, mask
from launcher.view.console import err, out

if TYPE_CHECKING:
    from rich.console import Console

    from launcher.catalog import Catalog
    from launcher.catalog.tensors import Weights
    from launcher.estimate.dataset import DataSize
    from launcher.jobs.base import JobRequest
    from launcher.plan.pins import Seen
    from launcher.plan.record import Plan
    from launcher.spec import ExportSpec

app = typer.Typer(
    cls=Commands,
    context_settings=CONTEXT,
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Nothing but the result.")]
Detach = Annotated[bool, typer.Option("--detach", "-d", help="Submit and return; don't follow.")]
JobId = Annotated[str, typer.Argument(help="A Job's id, or a local run's.", metavar="JOB", show_default=False)]


def main() -> None:
    """Run the command line; the one place where an error becomes text and an exit status."""
    try:
        app()
    except LauncherError as error:
        from rich.text import Text

        # A command in it is copied: what does not fit is the terminal's to wrap.
        err().print(Text.assemble(("error: ", "bold red"), _shown(error.message)), soft_wrap=True)
        if error.hint:
            err().print(Text(_shown(error.hint)), soft_wrap=True)
        sys.exit(error.exit_code)
    except Exception:
        # A bug keeps its traceback, whose last line may be what a service said.
        import traceback

        sys.stderr.write(_shown(traceback.format_exc()) + "\n")
        sys.exit(1)


def _shown(text: str) -> str:
    """What a user or a service wrote, without secrets and without what a terminal would act on."""
    from launcher.text import plain

    return "\n".join(plain(line) for line in mask(text, held()).split("\n"))


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
    from launcher import jobs as backends

    backend = backends.get("local" if asked.local else "hub")
    plan = _plan(asked, user=backend.user() if not asked.local else None, online=not asked.local)
    if not quiet:
        _show_plan(plan)
    session.submit(backend, _request(plan), detach=detach, as_json=as_json, quiet=quiet)


@app.command()
@takes_spec
def plan(
    asked: RunSpec | None,
    online: Annotated[
        bool, typer.Option("--online", help="Ask the Hub for the dataset's size and for commits.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say what a run needs, how long it takes and what it costs, on every flavor.

    Without --online the network is used only for the configuration of a model that `launch models` does not list.
    """
    made = _plan(_needed(asked), online=online)
    if as_json:
        print(made.model_dump_json(indent=2))
    else:
        _show_plan(made, out())


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
    from launcher import demo as demonstration
    from launcher import jobs as backends

    err().print("[bold]launch demo[/]: SmolLM2-135M learns what the Jobs flavors are, on this CPU.")
    with err().status("getting the model ready (once)") as status:
        demonstration.model_folder(lambda line: status.update(f"getting the model ready (once): {line.strip()[:60]}"))
    plan = _plan(demonstration.spec())
    _show_plan(plan)
    session.submit(backends.get("local"), _request(plan), as_json=as_json, terse=True)
    err().print(
        "That was the script a Job gets. On a GPU: [bold]launch --model qwen3-8b --dry-run[/] says what it takes."
    )


@app.command()
def models(
    shown: Annotated[
        str | None, typer.Option("--show", help="All that is known of one: an alias, or its repo.", metavar="NAME")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the models that are known by an alias."""
    from launcher import catalog
    from launcher.view import tables as show

    if shown is not None:
        _show_model(shown, as_json)
        return
    known = catalog.load().models.values()
    if as_json:
        session.print_json([model.model_dump() for model in known])
    else:
        out().print(show.models_table(known))


@app.command()
def flavors(
    as_json: Json = False,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Ask the service for its list, keep it, and say what has changed.")
    ] = False,
) -> None:
    """List the machines of the Jobs service."""
    from launcher import catalog

    if refresh:
        _refresh()
    tables = catalog.load()
    known = tables.flavors.values()
    if as_json:
        session.print_json([flavor.model_dump() for flavor in known])
        return
    from launcher.view import tables as show

    out().print(show.flavors_table(known))
    err().print(f"{tables.flavors_from}; `launch flavors --refresh` asks the service for today's", style="dim")
    _say_notices(tables)


@app.command()
def ps(
    every: Annotated[bool, typer.Option("--all", "-a", help="Ended ones too.")] = False,
    as_json: Json = False,
    local: Annotated[bool, typer.Option("--local", help="Local runs only: no network.")] = False,
) -> None:
    """List runs, on Jobs and here."""
    from launcher import jobs as backends
    from launcher.view import tables as show

    jobs = backends.list_jobs(every=every, names=["local"] if local else None)
    if as_json:
        session.print_json([job.as_dict() for job in jobs])
    else:
        out().print(show.jobs_table(jobs))


@app.command()
def logs(
    job: JobId, follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the run ends.")] = False
) -> None:
    """Print what a run said."""
    from launcher import jobs as backends

    for line in backends.find(job).logs(job, follow=follow):
        print(line, flush=follow)


@app.command()
def wait(job: JobId, as_json: Json = False, quiet: Quiet = False) -> None:
    """Follow a run until it ends and take over its outcome."""
    from launcher import jobs as backends

    backend = backends.find(job)
    session.follow(backend, backend.inspect(job), as_json=as_json, quiet=quiet)


@app.command()
def why(job: JobId, as_json: Json = False) -> None:
    """Say how a run ended, why, and what to do next."""
    from launcher import jobs as backends

    session.explain(backends.find(job), job, as_json)


@app.command()
def resume(
    job: JobId,
    timeout: Annotated[str | None, typer.Option(help="Another timeout, such as 4h.", metavar="TEXT")] = None,
    flavor: Annotated[str | None, typer.Option(help="Another flavor with as many GPUs.", metavar="NAME")] = None,
    detach: Detach = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Go on with a run that failed, was stopped or reached its deadline, from its last checkpoint."""
    from launcher import catalog
    from launcher import jobs as backends
    from launcher.runs import resume as resumption
    from launcher.runs import why

    backend = backends.find(job)
    before = backend.inspect(job)
    if known := why.plan_of(before.id):
        resumption.require_training(known, before.id)
    resumption.require_unfinished(before, why.read(backend, before).result if before.succeeded else None)
    recalled = backend.recall(job, to_resume=True)
    resumption.require_training(recalled.plan, before.id)
    request = resumption.adapt(recalled, catalog.load(), timeout, flavor)
    session.submit(backend, request, detach=detach, as_json=as_json, quiet=quiet)


@app.command()
def rerun(
    name: Annotated[
        str, typer.Argument(help="A run's id, a run.json, or USER/REPO.", metavar="RUN", show_default=False)
    ],
    timeout: Annotated[str | None, typer.Option(help="Another timeout, such as 4h.", metavar="TEXT")] = None,
    flavor: Annotated[str | None, typer.Option(help="Another flavor with as many GPUs.", metavar="NAME")] = None,
    output_repo: Annotated[
        str | None, typer.Option(help="Another repo for the result, told to the same script.", metavar="NAME")
    ] = None,
    merged_repo: Annotated[
        str | None, typer.Option(help="Another one for the merged model (else merged/ there).", metavar="NAME")
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="Run here, not on Jobs.")] = False,
    trust_script: Annotated[
        str | None, typer.Option(help="SHA-256 of a script that you have read, to run it all the same.", metavar="HASH")
    ] = None,
    detach: Detach = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Start a run anew, with the script that it had, byte for byte."""
    from launcher import catalog
    from launcher import jobs as backends
    from launcher.catalog import machine
    from launcher.runs import again as reruns

    tables = catalog.load()
    again = reruns.find(name, tables, trust_script, reruns.Places(output_repo, merged_repo))
    request = reruns.adapt(again.request, tables, timeout, flavor)
    if not again.own:
        reruns.require_own_places(request.plan)
    if local:
        request = reruns.bring_here(request, machine.here())
    if not quiet:
        _show_plan(request.plan)
    for note in again.notes:
        err().print(note, style="yellow", markup=False, soft_wrap=True)
    backend = backends.get("local" if request.flavor == machine.LOCAL else "hub")
    session.submit(backend, request, detach=detach, as_json=as_json, quiet=quiet)


@app.command()
def diff(
    one: Annotated[str, typer.Argument(help="A run's id, a run.json, a plan.json, or USER/REPO.", metavar="A")],
    other: Annotated[str, typer.Argument(help="Another.", metavar="B")],
    every: Annotated[bool, typer.Option("--all", "-a", help="What follows from the decisions too.")] = False,
    as_json: Json = False,
) -> None:
    """Say in which decisions two runs differ, and how each of them ended."""
    from launcher.runs import diff as differences

    found = differences.compare(differences.load(one), differences.load(other), everything=every)
    if as_json:
        session.print_json(found.as_dict())
        return
    from launcher.view import diff as diff_view

    out().print(diff_view.diff_view(found))


@app.command()
def dashboard(
    run: Annotated[
        str | None,
        typer.Argument(
            help="A Job's id, or a local run's; all of this machine's without it.", metavar="RUN", show_default=False
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

    from launcher.dashboard import board as boards

    def show(url: str) -> None:
        print(url, flush=True)
        if opens:
            webbrowser.open(url)

    board = boards.find(run)
    if board.space_url:
        show(board.space_url)
        return
    if board.live:
        err().print("[dim]it opens with the run's first metrics[/]")
    boards.serve(board, port, show)


@app.command()
def export(
    source: Annotated[
        str, typer.Argument(help="A run's id, the repo of an adapter, or its folder.", metavar="RUN|REPO|FOLDER")
    ],
    merge: Annotated[
        str | None, typer.Option(help="A merged copy of the model: 16bit or 4bit.", metavar="PRECISION")
    ] = None,
    gguf: Annotated[
        list[str] | None, typer.Option(help="A GGUF file of that type, such as q4_k_m; repeatable.", metavar="TYPE")
    ] = None,
    merged_repo: Annotated[
        str | None, typer.Option(help="Where the merged model is pushed (else merged/ in the repo).", metavar="REPO")
    ] = None,
    output_repo: Annotated[
        str | None, typer.Option(help="Where the copies are pushed (else the adapter's repo).", metavar="REPO")
    ] = None,
    private: Annotated[
        bool | None, typer.Option("--private/--no-private", help="Create a new repo as private.", show_default=False)
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Of the adapter's repo.", metavar="TEXT")] = None,
    flavor: Annotated[str | None, typer.Option(help="Jobs flavor; the cheapest that fits.", metavar="NAME")] = None,
    timeout: Annotated[str | None, typer.Option(help="When the Job is killed, such as 2h.", metavar="TEXT")] = None,
    local: Annotated[bool, typer.Option("--local", help="Run here, not on Jobs.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Everything but the submission.")] = False,
    detach: Detach = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a merged copy or GGUF files of an adapter that was trained before, on the cheapest machine that fits."""
    from launcher import jobs as backends
    from launcher.spec import build_export

    asked = build_export(
        source=source, merge=merge, gguf=gguf, merged_repo=merged_repo, output_repo=output_repo, private=private,
        revision=revision, flavor=flavor, timeout=timeout, local=local,
    )  # fmt: skip
    backend = backends.get("local" if local else "hub")
    made = _export_plan(asked, None if local or dry_run else backend.user())
    if dry_run:
        _dry_run(made, as_json)
        return
    if not quiet:
        _show_plan(made)
    session.submit(backend, _request(made), detach=detach, as_json=as_json, quiet=quiet)


@app.command()
def cancel(job: JobId, as_json: Json = False) -> None:
    """Stop a run."""
    from launcher import jobs as backends

    ended = backends.find(job).cancel(job)
    if as_json:
        session.print_json(ended.as_dict())
    else:
        err().print(f"{ended.id}: {ended.stage}", markup=False)


def _show_model(name: str, as_json: bool) -> None:
    from launcher import catalog
    from launcher.view import tables

    model = tables.find_model(name, catalog.load())
    if as_json:
        session.print_json(model.model_dump(mode="json"))
    else:
        out().print(tables.model_view(model))


def _needed(asked: RunSpec | None) -> RunSpec:
    if asked is None:
        raise RequestError("no model was named.", "Try --model qwen3-8b; `launch models` lists the aliases.")
    return asked


def _plan(asked: RunSpec, user: str | None = None, online: bool = False) -> Plan:
    from launcher import catalog, home
    from launcher.catalog import machine
    from launcher.plan import make as planner

    tables = catalog.load()
    _say_notices(tables)
    return planner.make_plan(
        asked,
        tables,
        today=datetime.now(UTC).date(),
        user=user,
        here=machine.here() if asked.local else None,
        fetch_config=_read_config,
        fetch_weights=_read_weights,
        look_up=_dataset_size if online else None,
        resolve=_see if online else None,
        image=home.settings().image,
    )


def _export_plan(asked: ExportSpec, user: str | None) -> Plan:
    from launcher import catalog, home
    from launcher.catalog import machine
    from launcher.plan import export as exports
    from launcher.runs import find as trained

    tables = catalog.load()
    _say_notices(tables)
    adapter, plan = trained.find(asked.source, asked.revision, asked.local)
    return exports.make_plan(
        asked,
        adapter,
        tables,
        today=datetime.now(UTC).date(),
        user=user,
        here=machine.here() if asked.local else None,
        of=plan,
        fetch_config=_read_config,
        fetch_weights=_read_weights,
        image=home.settings().image,
    )


def _read_config(repo: str, revision: str | None) -> dict[str, Any]:
    from launcher import jobs as backends

    return backends.get("hub").read_config(repo, revision)


def _read_weights(repo: str, revision: str | None, four_bits: bool) -> Weights | None:
    from launcher.jobs.service import HubBackend

    return HubBackend().read_weights(repo, revision, four_bits)


def _dataset_size(dataset: str, config: str | None, split: str, revision: str | None) -> DataSize:
    from launcher.jobs.service import HubBackend

    return HubBackend().dataset_size(dataset, config, split, revision)


def _see(kind: str, repo: str, revision: str | None) -> Seen:
    from launcher.jobs.service import HubBackend

    return HubBackend().see(kind, repo, revision)


def _refresh() -> None:
    """Take the service's list, and say on stderr what is different from the one before."""
    from launcher import catalog
    from launcher.catalog import flavors as hardware
    from launcher.jobs.service import HubBackend
    from launcher.view import tables as show

    listed, problems = HubBackend().hardware()
    if not listed:
        raise ServiceError("the service lists no flavor that this version understands.", "Try again later.")
    before = catalog.load().flavors
    hardware.keep(listed)
    after = catalog.load().flavors
    err().print(show.changes_view(hardware.changes(before, after)))
    unknown = [f"{flavor.name} ({flavor.accelerator})" for flavor in after.values() if flavor.accelerator]
    problems += [f"nothing can be planned on {name}: its GPU is not known here" for name in unknown]
    for problem in problems:
        err().print(problem, style="yellow", markup=False, soft_wrap=True)


def _say_notices(tables: Catalog) -> None:
    for notice in tables.notices:
        err().print(notice, style="yellow", markup=False, soft_wrap=True)


def _request(plan: Plan) -> JobRequest:
    from launcher import catalog
    from launcher.jobs import request

    return request.from_plan(plan, catalog.load())


def _show_plan(plan: Plan, console: Console | None = None) -> None:
    from launcher import catalog
    from launcher.view import plan as plan_view

    (console or err()).print(plan_view.plan_view(plan, catalog.load()))


def _dry_run(plan: Plan, as_json: bool) -> None:
    request = _request(plan)
    if as_json:
        whole = {"plan": plan.model_dump(mode="json"), "job": request.describe(), "script": request.script}
        session.print_json(whole)
    else:
        _show_plan(plan)
        from rich.text import Text

        said = "dry run: nothing was submitted. It would run "
        err().print(Text.assemble((said, "dim"), shlex.join(request.describe()["command"])), soft_wrap=True)
