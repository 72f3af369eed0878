"""Branches and tags as the commits that they are at: what a run reads is decided when it is planned."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date
from pathlib import Path

from launcher.errors import ServiceError
from launcher.plan import Plan
from launcher.spec import DATA_SUFFIXES, REPO_ID
from launcher.values import COMMIT

# What asks the Hub: (model or dataset, repo, revision or none) to a commit, or none where it does not say.
Resolve = Callable[[str, str, str | None], str | None]

# Old datasets of the Hub have no namespace.
_DATASET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


def pin(plan: Plan, resolve: Resolve, today: date) -> Plan:
    """The plan with commits for revisions, and the reason beside each; a folder or a file has none.

    What can't be read is an error as it would be at submission. A service that fails now is not: the plan then keeps
    the revision that was asked for and says so.
    """
    chosen: dict[str, str | None] = {}
    why = dict(plan.reasons)
    for kind, field, name in (("model", "revision", plan.repo), ("dataset", "dataset_revision", plan.dataset)):
        asked = getattr(plan, field)
        if not _on_hub(kind, name):
            continue
        if COMMIT.fullmatch(asked or ""):
            why[field] = "asked for"
            continue
        branch = asked or "main"
        try:
            found = resolve(kind, name, asked)
        except ServiceError as error:
            why[field] = f"{branch}, whatever that is when the run begins: {error.message}"
            continue
        chosen[field] = found or asked
        told = f"{branch}, as it was on {today.day} {today:%B %Y}"
        why[field] = told if found else f"{branch}, whatever that is when the run begins: the Hub names no commit"
    return plan.model_copy(update=chosen | {"reasons": why})


def _on_hub(kind: str, name: str) -> bool:
    """Whether the name is that of a repo, by the rules that a request is made by."""
    if Path(name).expanduser().exists():
        return False
    return bool(REPO_ID.fullmatch(name) or (kind == "dataset" and _DATASET.fullmatch(name))) and not name.endswith(
        DATA_SUFFIXES
    )
