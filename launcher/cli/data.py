"""The command that looks at a run's rows before anything is paid for."""

from __future__ import annotations

from typing import Annotated

import typer

from launcher import api
from launcher.cli import start
from launcher.cli.follow import print_json
from launcher.cli.options import Json, takes_spec
from launcher.spec import DATA, MODEL, RunSpec, build
from launcher.view.console import out


@takes_spec(panels=(MODEL, DATA), also=("max_length", "max_steps"))
def data(
    asked: RunSpec | None,
    source: Annotated[
        str, typer.Argument(help="Hub dataset, or a json, jsonl, csv or parquet file.", metavar="DATASET")
    ],
    as_json: Json = False,
) -> None:
    """Say what a model would learn from a dataset, without a GPU: which tokens, from which rows, and what is wrong.

    Reads a file of this machine whole, of a Hub dataset the first rows. Ends with status 2 where a run would refuse it.
    """
    from launcher.view.look import look_view

    chosen = start.needed(asked).model_dump(exclude_unset=True) | {"dataset": source}
    found = api.look(api.plan(build(chosen)))
    if as_json:
        print_json(found.as_dict())
    else:
        out().print(look_view(found), soft_wrap=True)
    found.require()
