"""The arguments of a script, read as it reads them itself, by its own options."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from typing import NoReturn

from launcher.errors import RequestError
from launcher.plan.record import AnyPlan
from launcher.render import options_of
from launcher.text import mask, plain

Value = str | bool | tuple[str, ...]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise RequestError(
            f"the script's arguments can't be read: {mask(plain(message))[:300]}.",
            "The record was changed, or another version of launch wrote it: start a run of your own.",
        )


def read(plan: AnyPlan, args: Iterable[str]) -> dict[str, Value]:
    """What the arguments say, by the names of the options; a switch is a boolean, and of repeated ones the last counts.

    Raises `RequestError` for what the plan's script would refuse: a word that is no option's, an option without its
    value. `--help` is none either: it would end a Job that is paid for.
    """
    parser = _Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for option in options_of(plan):
        flag = "--" + option.name.replace("_", "-")
        if option.kind == "bool":
            parser.add_argument(flag, action=argparse.BooleanOptionalAction)
        else:
            parser.add_argument(flag, action="append" if option.kind.startswith("tuple") else "store")
    words = [word.partition("=") for word in args]
    found = parser.parse_args(
        [(name.replace("_", "-") if name.startswith("--") else name) + sign + value for name, sign, value in words]
    )
    return {name: tuple(value) if isinstance(value, list) else value for name, value in vars(found).items()}


def write(values: Mapping[str, Value]) -> tuple[str, ...]:
    """The arguments that say that, in a spelling that no script can take for anything else."""
    words: list[str] = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
            continue
        for text in (value,) if isinstance(value, str) else value:
            words += [f"--{flag}={text}"] if not text or text.startswith("-") else [f"--{flag}", text]
    return tuple(words)


def changed(plan: AnyPlan, args: Iterable[str], values: Mapping[str, Value | None]) -> tuple[str, ...]:
    """The arguments with other values of these options; none leaves one away."""
    told = {name: value for name, value in read(plan, args).items() if name not in values}
    return write(told | {name: value for name, value in values.items() if value is not None})
