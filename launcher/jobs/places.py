"""Whether the repos that a run pushes to are free for it: no model of another run is in them, none is more public."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from launcher.errors import LauncherError, RefusedError
from launcher.hub import repos
from launcher.hub.client import Hub
from launcher.hub.repos import Place
from launcher.jobs.base import JobRequest

_RECORD = "run.json"
_LARGEST_RECORD = 4_000_000


def require_free(hub: Hub, request: JobRequest) -> Place | None:
    """The repo of the result as it is now; `RefusedError` where it or the merged copy's holds what is not this run's.

    A run's own are that of a run it goes on with, one that the same script has pushed to, and that of an adapter whose
    copies are made. Any is, where the user says so by `--overwrite`.
    """
    output, merged, adapter = request.plan.places
    named = {"--output-repo": output, "--merged-repo": merged}
    found = {
        option: repos.place(hub, name if "/" in name else f"{hub.user}/{name}")
        for option, name in named.items()
        if name
    }
    for option, place in found.items():
        if place.exists and request.plan.decisions.private.value and not place.private:
            raise RefusedError(
                f"{option} {place.name} is there already and public, and what this run learns is to be private.",
                "Make it private on its page, give another, or publish it with --no-private.",
            )
    known = bool(request.resumes) or request.plan.asked.overwrite
    for option, place in found.items():
        known = known or adapter in (place.name, named[option]) or _has_pushed(hub, place, request)
        if place.holds_model and not known:
            raise RefusedError(
                f"{option} {place.name} holds a model already, and not of this run: its files would be replaced.",
                f"Give another {option}; a new run, or an export, replaces them with --overwrite.",
            )
    return found.get("--output-repo") or found.get("--merged-repo")


def _has_pushed(hub: Hub, place: Place, request: JobRequest) -> bool:
    """Whether what is in the repo was pushed by this very script."""
    if _RECORD not in place.files:
        return False
    try:
        record = json.loads(repos.file(hub, place.name, _RECORD, None, _LARGEST_RECORD))
        pushed: Any = record["script"]["sha256"]
    except (LauncherError, ValueError, KeyError, TypeError, RecursionError):
        return False
    return bool(pushed == hashlib.sha256(request.script.encode()).hexdigest())
