"""The difference of two runs on one screen."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from launcher.runs.diff import SECTIONS, Difference, Pair
from launcher.text import plain
from launcher.view.tables import grid, table

_LONGEST = 60


def diff_view(found: Difference) -> RenderableType:
    """Decisions by their sections, then revisions, packages and results."""
    parts: list[RenderableType] = []
    if found.same:
        unsure = (
            f"; packages are not known of {' and '.join(found.unknown)}" if found.unknown else ", no package either"
        )
        parts.append(Text(f"no decision differs{unsure}"))
    others = dict(found.decisions)
    for title, names in SECTIONS.items():
        if here := {name: others.pop(name) for name in names if name in others}:
            parts += _section(title, here, found)
    if others:
        parts += _section("what follows", others, found)
    if found.revisions:
        parts += _section("what was read", found.revisions, found)
    if found.packages:
        parts += _section("packages", found.packages, found)
    if found.unknown:
        unknown = " and ".join(_short(name, _LONGEST) for name in found.unknown)
        parts.append(Text(f"packages are not known of {unknown}", style="dim"))
    if said := _scripts(found.script):
        parts.append(Text(said, style="dim"))
    if found.result:
        view = _table("result", found)
        for name, pair in found.result.items():
            view.add_row(Text(name), *(Text(_value(value, name)) for value in pair))
        parts += [Text(), view]
    return Group(*parts)


def _section(title: str, pairs: dict[str, Pair], found: Difference) -> list[RenderableType]:
    view, why = _table(title, found), grid("dim", "dim")
    for name, pair in pairs.items():
        view.add_row(Text(plain(name)), *(Text(_value(value, name)) for value in pair))
        for side, reason in zip(found.names, found.reasons.get(name, (None, None)), strict=True):
            if reason:
                why.add_row(Text(f"  {plain(name)} of {_short(side, 24)}"), Text(plain(reason)))
    return [view, *([why] if why.row_count else []), Text()]


def _table(title: str, found: Difference) -> Table:
    return table(title, *(_short(name, _LONGEST) for name in found.names))


def _value(value: Any, name: str) -> str:
    if value is None:
        return "-"
    if name == "env":  # values of variables are nobody's to read over a shoulder
        return _beginning(", ".join(value)) or "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | dict):
        items = [f"{key}={item}" for key, item in value.items()] if isinstance(value, dict) else map(str, value)
        return _beginning(", ".join(items)) or "none"
    return _beginning(str(value))


def _beginning(text: str) -> str:
    text = plain(text.replace("\n", " "))
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _short(text: str, most: int) -> str:
    """The end of a path or a name, which says the most."""
    text = plain(text.replace("\n", " "))
    return text if len(text) <= most else "…" + text[1 - most :]


def _scripts(pair: Pair) -> str:
    if None in pair:
        return ""
    return "the scripts are the same, byte for byte" if pair[0] == pair[1] else "the scripts differ"
