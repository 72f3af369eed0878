"""The commands that plan a run or start one: new, as a demonstration, once more, gone on with, or as an export."""

from __future__ import annotations

import shlex
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launcher import api
from launcher.cli import follow
from launcher.cli.ask import Asking
from launcher.cli.follow import print_json, say
from launcher.cli.options import Detach, Json, Quiet, RunName, Verbose, Yes, takes_spec
from launcher.errors import RequestError
from launcher.spec import RunSpec, build_export
from launcher.view.console import err, out

if TYPE_CHECKING:
    from rich.console import Console

    from launcher.catalog import Catalog
    from launcher.hub.client import Hub
    from launcher.plan.record import AnyPlan, Plan


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
    from launcher.hub.client import Hub

    asked = needed(asked)
    tables = todays_tables(Hub() if online else None)
    made = api.plan(asked, online=online, tables=tables)
    if as_json:
        print(made.model_dump_json(indent=2))
    else:
        show_plan(made, tables, out())


@takes_spec
def render(
    asked: RunSpec | None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file instead of stdout.", metavar="FILE")
    ] = None,
) -> None:
    """Print the training script of a run."""
    say_notices()
    script = api.render(api.plan(needed(asked)))
    if output:
        try:
            output.write_text(script, encoding="utf-8")
        except OSError as error:
            message = f"--output {output}: {error.strerror or error}."
            raise RequestError(message, "Give a file in a folder that is there.") from error
    else:
        sys.stdout.write(script)


def demo(as_json: Json = False) -> None:
    """Fine-tune a small real model here: no account, no GPU, five minutes."""
    from launcher.demo import model_folder, spec

    err().print("[bold]launch demo[/]: SmolLM2-135M learns what the Jobs flavors are, on this CPU.")
    with err().status("getting the model ready (once)") as status:
        model_folder(lambda line: status.update(f"getting the model ready (once): {line.strip()[:60]}"))
    say_notices()
    made = api.plan(spec())
    follow.submit(made, as_json=as_json, terse=True)
    err().print(
        "That was the script a Job gets. On a GPU: [bold]launch --model qwen3-8b --dry-run[/] says what it takes."
    )


def resume(
    job: RunName,
    timeout: Annotated[str | None, typer.Option(help="Another timeout, such as 4h.", metavar="TEXT")] = None,
    flavor: Annotated[str | None, typer.Option(help="Another flavor with as many GPUs.", metavar="NAME")] = None,
    yes: Yes = False,
    verbose: Verbose = False,
    detach: Detach = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Go on with a run that failed, was stopped or reached its deadline, from its last checkpoint."""
    from launcher import jobs
    from launcher.hub.client import Hub
    from launcher.runs.again import adapt, recall
    from launcher.runs.find import find_run

    found, hub = find_run(job), Hub()
    backend = jobs.get(found.backend, hub)
    before = recall(backend, found.address)
    tables = todays_tables(None if found.backend == "local" else hub)
    request = adapt(before, tables, timeout, flavor)
    asking = Asking(yes, verbose, tables)
    follow.submit(request, backend, detach=detach, as_json=as_json, quiet=quiet, asking=asking)


def rerun(
    name: Annotated[
        str, typer.Argument(help="A run's id or `last`, a run.json, or USER/REPO.", metavar="RUN", show_default=False)
    ],
    timeout: Annotated[str | None, typer.Option(help="Another timeout, such as 4h.", metavar="TEXT")] = None,
    flavor: Annotated[str | None, typer.Option(help="Another flavor with as many GPUs.", metavar="NAME")] = None,
    output_repo: Annotated[
        str | None, typer.Option(help="Another repo for the result, told to the same script.", metavar="NAME")
    ] = None,
    merged_repo: Annotated[
        str | None, typer.Option(help="Another one for the merged model (else merged/ there).", metavar="NAME")
    ] = None,
    max_cost: Annotated[
        float | None, typer.Option(help="Most dollars the run may cost, timeout included.", metavar="X")
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="Run here, not on Jobs.")] = False,
    trust_script: Annotated[
        str | None, typer.Option(help="SHA-256 of a script that you have read, to run it all the same.", metavar="HASH")
    ] = None,
    yes: Yes = False,
    verbose: Verbose = False,
    detach: Detach = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Start a run anew, with the script that it had, byte for byte."""
    from launcher import catalog, jobs
    from launcher.catalog import machine
    from launcher.hub.client import Hub
    from launcher.runs import again

    hub = Hub()

    @cache
    def todays() -> Catalog:
        return todays_tables(hub)

    def planned(asked: RunSpec) -> Plan:
        return api.plan(asked, online=not asked.local, tables=None if asked.local else todays())

    known = catalog.load()
    found = again.find(name, known, planned, trust_script, again.Places(output_repo, merged_repo))
    tables = known if local or found.request.flavor == machine.LOCAL else todays()
    request = again.adapt(found.request, tables, timeout, flavor)
    if not found.own:
        again.require_own_places(request.plan, hub)
    if local:
        request = again.bring_here(request, machine.here())
    say(found.notes)
    here = request.flavor == machine.LOCAL
    if not here:
        again.require_within(request, max_cost)
    # Neither to the price of another's run nor to how it differs from its record was a yes said.
    asking = Asking(yes, verbose, tables, doubt="" if here or max_cost is not None else found.doubt)
    backend = jobs.get("local" if here else "hub", hub)
    follow.submit(request, backend, detach=detach, as_json=as_json, quiet=quiet, asking=asking)


def export(
    source: Annotated[
        str,
        typer.Argument(help="A run's id or `last`, the repo of an adapter, or its folder.", metavar="RUN|REPO|FOLDER"),
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
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Push into a repo that holds another model.")] = False,
    revision: Annotated[str | None, typer.Option(help="Of the adapter's repo.", metavar="TEXT")] = None,
    flavor: Annotated[str | None, typer.Option(help="Jobs flavor; the cheapest that fits.", metavar="NAME")] = None,
    timeout: Annotated[str | None, typer.Option(help="When the Job is killed, such as 2h.", metavar="TEXT")] = None,
    local: Annotated[bool, typer.Option("--local", help="Run here, not on Jobs.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Everything but the submission.")] = False,
    yes: Yes = False,
    verbose: Verbose = False,
    detach: Detach = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a merged copy or GGUF files of an adapter that was trained before, on the cheapest machine that fits."""
    from launcher import jobs
    from launcher.hub.client import Hub

    asked = build_export(
        source=source, merge=merge, gguf=gguf, merged_repo=merged_repo, output_repo=output_repo, private=private,
        overwrite=overwrite, revision=revision, flavor=flavor, timeout=timeout, local=local,
    )  # fmt: skip
    hub = Hub()
    here = local or dry_run
    user = None if here else hub.user
    tables = todays_tables(None if here else hub)
    made = api.plan_export(asked, user, tables)
    if dry_run:
        show_dry_run(made, as_json)
        return
    backend, asking = jobs.get("local" if local else "hub", hub), Asking(yes, verbose, tables)
    follow.submit(made, backend, detach=detach, as_json=as_json, quiet=quiet, asking=asking)


def needed(asked: RunSpec | None) -> RunSpec:
    """What was asked for; `RequestError` where no model was named."""
    if asked is None:
        raise RequestError("no model was named.", "Try --model qwen3-8b; `launch models` lists the aliases.")
    return asked


def show_plan(plan: AnyPlan, tables: Catalog, console: Console | None = None) -> None:
    """The plan as one screen, on stderr where no console is named."""
    from launcher.view.plan import plan_view

    (console or err()).print(plan_view(plan, tables))


def show_dry_run(plan: AnyPlan, as_json: bool) -> None:
    """All that a run would be, and nothing submitted."""
    from launcher import catalog

    request = api.request_of(plan)
    if as_json:
        whole = {"plan": plan.model_dump(mode="json"), "job": request.describe(), "script": request.script}
        print_json(whole)
    else:
        show_plan(plan, catalog.load())
        from rich.text import Text

        said = "dry run: nothing was submitted. It would run "
        err().print(Text.assemble((said, "dim"), shlex.join(request.describe()["command"])), soft_wrap=True)


def say_notices() -> None:
    """What a user should know of how the tables were read."""
    todays_tables(None)


def todays_tables(hub: Hub | None) -> Catalog:
    """The tables, with the service's own machines and prices where it is asked; what is wrong with them is said."""
    tables = api.tables_of(hub)
    say(tables.notices)
    return tables
