"""The options: those of a run from the fields of `RunSpec`, so that each is declared once, and what commands share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from typer.core import TyperGroup
from typer.exceptions import TyperException

from launcher.cli import signals
from launcher.errors import RequestError
from launcher.spec import MODEL, RunSpec, build
from launcher.text import mask

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Nothing but the result.")]
Detach = Annotated[bool, typer.Option("--detach", "-d", help="Submit and return; don't follow.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Start it without the question.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="The whole plan, not its answer alone.")]
RunName = Annotated[str, typer.Argument(help="A run's id or a Job's, or `last`.", metavar="RUN", show_default=False)]

# What TRL's and transformers' own scripts call the same thing.
_ALSO = {
    "per-device-train-batch-size": "batch-size",
    "gradient-accumulation-steps": "gradient-accumulation",
    "model-name-or-path": "model",
    "dataset-name": "dataset",
    "hub-model-id": "output-repo",
}


def normalize(name: str) -> str:
    """The option a word of the command line means: underscores are as good as dashes, TRL's names as good as ours."""
    kebab = name.replace("_", "-")
    return _ALSO.get(kebab, kebab)


class Commands(TyperGroup):
    """The subcommands. What is wrong with a command line is said without the secrets that stand in it."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Read the options of `launch` itself."""
        with _masked():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        """Read those of a subcommand, and run it."""
        with _masked():
            return super().invoke(ctx)


@contextmanager
def _masked() -> Iterator[None]:
    try:
        yield
    except TyperException as error:
        if isinstance(said := getattr(error, "message", None), str):
            error.message = mask(said)
        raise
    except KeyboardInterrupt as stop:
        raise typer.Exit(signals.tell(stop)) from stop


CONTEXT = {"token_normalize_func": normalize, "help_option_names": ["-h", "--help"]}


def takes_spec(
    command: Callable[..., Any] | None = None, *, panels: Sequence[str] | None = None, also: Sequence[str] = ()
) -> Callable[..., Any]:
    """Give a command every option of a run, `--config`, and the finished `RunSpec` as its first argument.

    The command's own parameters, the context first where it takes one, stay options of their own. Called with no model
    at all, from nowhere, the command gets `None`. With `panels` the options are those of these and `also` others.
    """
    if command is None:
        return partial(takes_spec, panels=panels, also=also)
    own = inspect.signature(command, eval_str=True).parameters.values()
    kept = [parameter for parameter in own if parameter.name != "asked"]
    help = "TOML file of any of these options; the command line wins."
    config = _parameter(
        "config", Path | None, typer.Option("--config", help=help, rich_help_panel=MODEL, metavar="FILE")
    )
    names = [name for name in RunSpec.model_fields if panels is None or name in also or _panel(name) in panels]
    fields = [_field_parameter(name) for name in names]

    @wraps(command)
    def wrapper(**given: Any) -> Any:
        asked = {name: given.pop(name) for name in names}
        chosen = {name: _value(name, value) for name, value in asked.items() if value not in (None, [], ())}
        path = given.pop("config")
        return command(asked=build(chosen, path) if chosen or path else None, **given)

    wrapper.__signature__ = inspect.Signature([*kept, config, *fields])  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in [*kept, config, *fields]}
    return wrapper


def _panel(name: str) -> str:
    extra: Any = RunSpec.model_fields[name].json_schema_extra
    return str(extra["panel"])


def _parameter(name: str, kind: Any, option: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option])


def _field_parameter(name: str) -> inspect.Parameter:
    field = RunSpec.model_fields[name]
    extra: Any = field.json_schema_extra or {}
    flag = "--" + name.replace("_", "-")
    kind = _base_type(field.annotation)
    declarations = [f"{flag}/--no-{flag[2:]}"] if kind is bool else [flag, *filter(None, [extra.get("short")])]
    option = typer.Option(
        *declarations,
        help=_help(field, kind),
        rich_help_panel=extra["panel"],
        show_default=False,
        metavar=_metavar(kind),
    )
    return _parameter(name, list[str] | None if kind in (dict, tuple) else kind | None, option)


def _help(field: FieldInfo, kind: Any) -> str:
    choices = f" One of {', '.join(get_args(kind))}." if get_origin(kind) is Literal else ""
    default = (
        ""
        if field.is_required() or field.default in (None, {}, (), False, "")
        else f" Default {_plain(field.default)}."
    )
    return f"{field.description}{choices}{default}"


def _plain(value: Any) -> str:
    return "yes" if value is True else f"{value:g}" if isinstance(value, float) else str(value)


def _base_type(annotation: Any) -> Any:
    """The plain type of a field: `int` of `int | None`, `dict` of `dict[str, str]`, a `Literal` as it is."""
    if get_origin(annotation) in (Union, UnionType):
        annotation = next(arm for arm in get_args(annotation) if arm is not type(None))
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return annotation if get_origin(annotation) is Literal else get_origin(annotation) or annotation


def _metavar(kind: Any) -> str:
    if kind is bool:
        return ""
    if kind is dict:
        return "KEY=VALUE"
    return {int: "N", float: "X", tuple: "NAME", str: "TEXT"}.get(kind, "NAME")


def _value(name: str, value: Any) -> Any:
    if _base_type(RunSpec.model_fields[name].annotation) is not dict:
        return value
    pairs = {}
    for item in value:
        key, sign, text = item.partition("=")
        if not sign or not key:
            raise RequestError(f"--{name} {mask(repr(item))}: should be KEY=VALUE.", f"Such as --{name} a=b.")
        pairs[key] = text
    return pairs
