"""`launch` itself: its commands, the main one, and the one place where an error becomes text and an exit status."""

from __future__ import annotations

import errno
import sys
from typing import Annotated, NoReturn

import typer

from launcher import __version__, api
from launcher.cli import ask, data, follow, runs, start, tables
from launcher.cli.ask import Asking
from launcher.cli.options import CONTEXT, Commands, Detach, Json, Quiet, Verbose, Yes, takes_spec
from launcher.errors import LauncherError, RequestError, ServiceError
from launcher.spec import RunSpec
from launcher.text import held, mask
from launcher.view.console import err

app = typer.Typer(
    cls=Commands,
    context_settings=CONTEXT,
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
)


# What a machine may refuse at any time: no room, no right to write, too many files, a disk that fails.
_REFUSALS = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE,
    errno.EIO,
)  # fmt: skip


def main() -> None:
    """Run the command line; the one place where an error becomes text and an exit status."""
    try:
        _require_text(sys.argv)
        try:
            app()
        finally:
            sys.stdout.flush()
    except LauncherError as error:
        _exit(error)
    except OSError as error:
        if error.errno == errno.EPIPE:  # whoever read it has had enough
            sys.stdout = None
            sys.exit(1)
        if error.errno not in _REFUSALS:
            _exit_with_traceback()
        place = f"{error.filename}: " if error.filename else ""
        sys.stdout = None  # what could not be written is not tried again
        _exit(
            ServiceError(f"this machine refuses: {place}{error.strerror}.", "Make room or give the right, then again.")
        )
    except Exception:
        _exit_with_traceback()


def _require_text(argv: list[str]) -> None:
    """Raise `RequestError` for an argument whose bytes are no text: it can be neither sent nor shown."""
    for argument in argv:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            raise RequestError(
                f"the argument {argument[:200]!a} is not UTF-8.", "Write it in that encoding."
            ) from error


def _exit(error: LauncherError) -> NoReturn:
    from rich.text import Text

    # A command in it is copied: what does not fit is the terminal's to wrap.
    err().print(Text.assemble(("error: ", "bold red"), _shown(error.message)), soft_wrap=True)
    if error.hint:
        err().print(Text(_shown(error.hint)), soft_wrap=True)
    sys.exit(error.exit_code)


def _exit_with_traceback() -> NoReturn:
    """End with the traceback of the error that is handled: it is a bug."""
    import traceback

    # Its last line may be what a service said.
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
    rehearse: Annotated[
        bool,
        typer.Option("--rehearse", help="First run the script here, on a tiny twin of the model; with --yes go on."),
    ] = False,
    yes: Yes = False,
    verbose: Verbose = False,
    detach: Detach = False,
    as_json: Json = False,
    quiet: Quiet = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Fine-tune a language or vision-language model on Hugging Face Jobs.

    [bold]launch --model qwen3-8b[/] plans the run, says what it will be and cost, asks, submits one script, follows it.
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
    if dry_run and rehearse:
        raise RequestError("--dry-run runs nothing, and --rehearse runs the script here.", "Give one of them.")
    if dry_run:
        start.say_notices()
        start.show_dry_run(api.plan(asked), as_json)
        return
    from launcher import jobs
    from launcher.hub.client import Hub, read_token

    hub = Hub()
    # A rehearsal alone needs no account.
    online = not asked.local and (yes or not rehearse or bool(read_token()))
    user = hub.user if online else None
    tables = start.todays_tables(hub if online else None)
    plan = api.plan(asked, user=user, online=online, tables=tables)
    rehearsed = None
    if rehearse:
        if not quiet:
            start.show_plan(plan, tables)
        rehearsed = follow.rehearse(plan, hub, goes_on=yes, as_json=as_json, quiet=quiet)
        if not yes:
            return
    ask.require_dataset(plan, yes)
    backend = jobs.get("local" if asked.local else "hub", hub)
    asking = Asking(yes, verbose, tables)
    follow.submit(plan, backend, detach=detach, as_json=as_json, quiet=quiet, asking=asking, rehearsed=rehearsed)


for command in (
    start.plan, data.data, start.render, start.demo, tables.models, tables.flavors, runs.ps, runs.logs, runs.wait,
    runs.why, start.resume, start.rerun, runs.diff, runs.dashboard, start.export, runs.cancel,
):  # fmt: skip
    app.command()(command)
