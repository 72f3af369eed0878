"""Branches and tags as the commits that they are at, and the licence that the model's card gives: what a run reads is
decided when it is planned.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from launcher.errors import ServiceError
from launcher.plan.record import Plan
from launcher.spec import COMMIT, DATA_SUFFIXES, REPO_ID


@dataclass(frozen=True, slots=True)
class Seen:
    """What the Hub says of a repo at a revision: its commit, and by its card the licence with what belongs to `other`.

    None where it does not say.
    """

    commit: str | None
    licence: str | None = None
    licence_name: str | None = None
    licence_link: str | None = None


# What asks the Hub: (model or dataset, repo, revision or none).
Resolve = Callable[[str, str, str | None], Seen]

# Old datasets of the Hub have no namespace.
_DATASET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
# A card is anybody's, and its licence goes into other cards: what is not of these forms is left out.
_LICENCE = {
    "licence": re.compile(r"[a-z0-9][a-z0-9.-]{0,63}"),
    "licence_name": re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,95}"),
    "licence_link": re.compile(r"https://[A-Za-z0-9.-]+/[A-Za-z0-9._~/%#-]{1,255}"),
}


def pin(plan: Plan, resolve: Resolve, today: date) -> Plan:
    """The plan with commits for revisions, and the reason beside each; a folder or a file has none.

    What can't be read is an error as it would be at submission. A service that fails now is not: the plan then keeps
    the revision that was asked for and says so.
    """
    chosen: dict[str, object] = {}
    why = dict(plan.reasons)
    for kind, field, name in (("model", "revision", plan.repo), ("dataset", "dataset_revision", plan.dataset)):
        asked = getattr(plan, field)
        if not _on_hub(kind, name):
            continue
        pinned = COMMIT.fullmatch(asked or "")
        if pinned:
            why[field] = "asked for"
        if pinned and (kind == "dataset" or plan.licence):
            continue
        branch = asked or "main"
        try:
            seen = resolve(kind, name, asked)
        except ServiceError as error:
            if not pinned:
                why[field] = f"{branch}, whatever that is when the run begins: {error.message}"
            continue
        if kind == "model":
            chosen |= _licence(plan, seen)
        if not pinned:
            chosen[field] = seen.commit or asked
            told = f"{branch}, as it was on {today.day} {today:%B %Y}"
            unsaid = f"{branch}, whatever that is when the run begins: the Hub names no commit"
            why[field] = told if seen.commit else unsaid
    return plan.model_copy(update=chosen | {"reasons": why})


def _licence(plan: Plan, seen: Seen) -> dict[str, str]:
    """The licence by the model's card where the catalog knows none, and what the card says of one that is `other`."""
    said = {name: getattr(seen, name) for name, form in _LICENCE.items() if form.fullmatch(getattr(seen, name) or "")}
    licence = plan.licence or said.get("licence")
    if licence is None or (licence == "other" != said.get("licence")):
        return {}
    return {"licence": licence} | (
        {name: said[name] for name in said if name != "licence"} if licence == "other" else {}
    )


def _on_hub(kind: str, name: str) -> bool:
    """Whether the name is that of a repo, by the rules that a request is made by."""
    if Path(name).expanduser().exists():
        return False
    return bool(REPO_ID.fullmatch(name) or (kind == "dataset" and _DATASET.fullmatch(name))) and not name.endswith(
        DATA_SUFFIXES
    )
