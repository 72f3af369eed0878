"""The commands that show what is known: models and machines."""

from __future__ import annotations

from typing import Annotated

import typer

from launcher.cli.follow import print_json, say
from launcher.cli.options import Json
from launcher.errors import ServiceError
from launcher.view.console import err, out


def models(
    shown: Annotated[
        str | None, typer.Option("--show", help="All that is known of one: an alias, or its repo.", metavar="NAME")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the models that are known by an alias."""
    from launcher import catalog
    from launcher.view import tables

    if shown is not None:
        _show_model(shown, as_json)
        return
    known = catalog.load().models.values()
    if as_json:
        print_json([model.model_dump() for model in known])
    else:
        out().print(tables.models_table(known))


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
    loaded = catalog.load()
    known = loaded.flavors.values()
    if as_json:
        print_json([flavor.model_dump() for flavor in known])
        return
    from launcher.view import tables

    out().print(tables.flavors_table(known))
    err().print(f"{loaded.flavors_from}; `launch flavors --refresh` asks the service for today's", style="dim")
    say(loaded.notices)


def _show_model(name: str, as_json: bool) -> None:
    from launcher import catalog
    from launcher.view.tables import find_model, model_view

    model = find_model(name, catalog.load())
    if as_json:
        print_json(model.model_dump(mode="json"))
    else:
        out().print(model_view(model))


def _refresh() -> None:
    """Take the service's list, and say on stderr what is different from the one before."""
    from launcher import catalog
    from launcher.catalog import flavors
    from launcher.hub.client import Hub
    from launcher.jobs.service import hardware
    from launcher.view import tables

    listed, problems = hardware(Hub())
    if not listed:
        raise ServiceError("the service lists no flavor that this version understands.", "Try again later.")
    before = catalog.load().flavors
    flavors.keep(listed)
    after = catalog.load().flavors
    err().print(tables.changes_view(flavors.changes(before, after)))
    unknown = [f"{flavor.name} ({flavor.accelerator})" for flavor in after.values() if flavor.accelerator]
    problems += [f"nothing can be planned on {name}: its GPU is not known here" for name in unknown]
    say(problems)
