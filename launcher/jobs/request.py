"""From a plan to what a backend is asked to run."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from launcher import __version__, catalog
from launcher.catalog.machine import LOCAL
from launcher.errors import RequestError
from launcher.jobs.base import TIMEOUT_FLAG, JobRequest
from launcher.plan.record import Plan
from launcher.render import render, render_copies
from launcher.spec import DATA_SUFFIXES, REPO_ID

_LABEL_LENGTH = 100
_DATASET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


def from_plan(plan: Plan, catalog: catalog.Catalog) -> JobRequest:
    """Render the script and put the Job around it.

    Raises `RequestError` for a local model or dataset that is not there, or that a remote Job could not see.
    """
    if plan.engine != "unsloth":
        raise RequestError(
            f"--engine {plan.engine} is there to compare estimates, and the script trains with Unsloth.",
            "Leave it away to run, or use it with `launch plan`.",
        )
    local = plan.flavor == LOCAL
    _check_model(plan, local)
    trains = plan.task == "sft"
    return JobRequest(
        plan=plan,
        script=render(plan, catalog.stack),
        script_name=script_name(plan),
        # What makes the copies, which the training starts.
        beside={"export.py": render_copies(plan, catalog.stack)} if trains and (plan.merge or plan.gguf) else {},
        script_args=(
            *(_dataset_args(plan, local) if trains else ()),
            *(() if plan.num_gpus else ("--device=cpu",)),
            # By itself the script counts with the timeout of a Job only.
            *((TIMEOUT_FLAG, str(plan.timeout_s)) if local else ()),
        ),
        image=plan.image,
        flavor=plan.flavor,
        timeout_s=plan.timeout_s,
        env=plan.env,
        secrets=plan.secrets,
        labels=_labels(plan),
        namespace=plan.namespace,
        attempts=plan.attempts,
    )


def script_name(plan: Plan) -> str:
    """What the script of a plan is called."""
    names = {
        ("sft", "text"): "sft_text.py",
        ("sft", "vision"): "sft_vlm.py",
        ("export", "text"): "export.py",
        ("export", "vision"): "export.py",
    }
    return names[plan.task, plan.modality]


def plan_hash(plan: Plan) -> str:
    """Twelve hexadecimal digits that name a plan: two equal plans have the same."""
    return hashlib.sha256(plan.model_dump_json().encode()).hexdigest()[:12]


def _labels(plan: Plan) -> dict[str, str]:
    """The launcher's own labels, in the letters that the service takes; a local path is only its last name."""
    dataset = Path(plan.dataset).name if Path(plan.dataset).exists() else plan.dataset
    model = _last(plan.model)
    source = {"dataset": dataset} if plan.task == "sft" else {"adapter": _last(str(plan.adapter))}
    own = {"model": model} | source | {"plan": plan_hash(plan), "launcher": __version__, "name": plan.run_name}
    return {key: _label(value) for key, value in own.items()} | plan.labels


def _last(name: str) -> str:
    return Path(name).name if Path(name).is_absolute() else name


def _label(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", text.replace("/", "--"))[:_LABEL_LENGTH]


def _check_model(plan: Plan, local: bool) -> None:
    if not local and Path(plan.repo).is_absolute():
        raise RequestError(
            f"--model {plan.repo} is a folder on this machine, which a Job can't see.",
            "Push it to the Hub and name the repo, or add --local.",
        )


def _dataset_args(plan: Plan, local: bool) -> tuple[str, ...]:
    """A dataset on this machine is passed as an argument: the Hub client uploads the file and rewrites the path."""
    path = Path(plan.dataset).expanduser()
    if path.is_file():
        if path.suffix not in DATA_SUFFIXES:
            raise RequestError(
                f"--dataset {plan.dataset}: a file should end in {', '.join(DATA_SUFFIXES)}.",
                "Convert it, or name a Hub dataset.",
            )
        return ("--dataset", str(path.resolve()))
    if path.is_dir() and (local or not REPO_ID.fullmatch(plan.dataset)):
        if not local:
            raise RequestError(
                f"--dataset {plan.dataset} is a folder on this machine, which a Job can't see.",
                "Name one of its files, push it as a Hub dataset, or add --local.",
            )
        return ("--dataset", str(path.resolve()))
    if not (REPO_ID.fullmatch(plan.dataset) or _DATASET_NAME.fullmatch(plan.dataset)) or path.suffix in DATA_SUFFIXES:
        raise RequestError(
            f"--dataset {plan.dataset}: there is no such file here, and it is not a Hub dataset's name.",
            "Give a path that exists, or NAMESPACE/NAME.",
        )
    return ()
