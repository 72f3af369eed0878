"""Whether the model and the dataset of a request are there for a Job, asked before anything is paid for."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.errors import RequestError
from launcher.hub import repos as _hub_commits
from launcher.hub.retry import Pace, persist
from launcher.jobs.base import ARTIFACTS_MOUNT, JobRequest
from launcher.plan.record import Plan
from launcher.spec import DATA_SUFFIXES

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def check(api: HfApi, request: JobRequest, pace: Pace) -> None:
    """Raise where a Job could not read them; a file that was sent along before is not looked for here."""
    _check_model(api, request.plan, pace)
    if request.plan.task == "export":
        _check_repo(api, "model", str(request.plan.adapter), request.plan.adapter_revision, pace)
    elif not any(item.startswith(f"{ARTIFACTS_MOUNT}/") for item in request.script_args):
        _check_dataset(api, request.plan, pace)


def _check_model(api: HfApi, plan: Plan, pace: Pace) -> None:
    if _is_path(plan.repo):
        raise RequestError(
            f"--model {plan.repo} is a folder of this machine, which a Job can't see.",
            "Push it to the Hub first (`hf upload`), or train here with --local.",
        )
    _check_repo(api, "model", plan.repo, plan.revision, pace)


def _check_dataset(api: HfApi, plan: Plan, pace: Pace) -> None:
    path = Path(plan.dataset).expanduser()
    if path.is_file():
        return
    if path.is_dir() or _is_path(plan.dataset) or plan.dataset.endswith(DATA_SUFFIXES):
        what = "is a folder, and only a file is sent along" if path.is_dir() else "is not there"
        raise RequestError(
            f"--dataset {plan.dataset} {what}.", "Give one json, jsonl, csv or parquet file, or push it to the Hub."
        )
    _check_repo(api, "dataset", plan.dataset, plan.dataset_revision, pace)


def _check_repo(api: HfApi, kind: str, name: str, revision: str | None, pace: Pace) -> None:
    action, what = f"looking up the {kind} {name}", f"the {kind} '{name}'"
    info = _hub_commits.look_up(api, kind, name, revision, pace)
    if info.gated:  # anyone may read of a gated repo; whether its files may be had is another question
        persist(action, lambda: api.auth_check(name, repo_type=kind), pace, what=what)


def _is_path(name: str) -> bool:
    with suppress(OSError):
        return name.startswith((".", "/", "~")) or Path(name).is_absolute()
    return False
