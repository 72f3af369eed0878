"""From a plan to what a backend is asked to run."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from launcher import __version__, catalog
from launcher.catalog.machine import LOCAL
from launcher.errors import RequestError
from launcher.jobs.base import DATASET_FLAG, TIMEOUT_FLAG, JobRequest
from launcher.plan.record import AnyPlan
from launcher.render import COPIES, render, render_copies, script_name
from launcher.spec import DATA_SUFFIXES, path_of

_LABEL_LENGTH = 100


def from_plan(plan: AnyPlan, catalog: catalog.Catalog) -> JobRequest:
    """Render the script and put the Job around it.

    Raises `RequestError` for a local model or dataset that is not there, or that a remote Job could not see.
    """
    if plan.task == "sft" and plan.asked.engine != "unsloth":
        raise RequestError(
            f"--engine {plan.asked.engine} is there to compare estimates, and the script trains with Unsloth.",
            "Leave it away to run, or use it with `launch plan`.",
        )
    made = plan.decisions
    local = made.flavor.value == LOCAL
    _check_model(plan, local)
    data = _dataset_args(plan.decisions.dataset.value, local) if plan.task == "sft" else ()
    return JobRequest(
        plan=plan,
        script=render(plan, catalog.stack),
        script_name=script_name(plan),
        beside=copies_of(plan, catalog.stack),
        script_args=(
            *data,
            *(() if plan.num_gpus else ("--device=cpu",)),
            # By itself the script counts with the timeout of a Job only.
            *((TIMEOUT_FLAG, str(made.timeout_s.value)) if local else ()),
        ),
        image=made.image.value,
        flavor=made.flavor.value,
        timeout_s=made.timeout_s.value,
        env=plan.env,
        secrets=made.secrets.value,
        labels=_labels(plan),
        namespace=made.namespace.value,
        attempts=made.attempts.value,
    )


def copies_of(plan: AnyPlan, stack: catalog.Stack) -> dict[str, str]:
    """The script that makes the copies, by its name, where the training starts one."""
    wanted = plan.task == "sft" and (plan.decisions.merge.value or plan.decisions.gguf.value)
    return {COPIES: render_copies(plan, stack)} if wanted else {}


def plan_hash(plan: AnyPlan) -> str:
    """Twelve hexadecimal digits that name a plan: two equal plans have the same."""
    return hashlib.sha256(plan.model_dump_json().encode()).hexdigest()[:12]


def _labels(plan: AnyPlan) -> dict[str, str]:
    """The launcher's own labels, in the letters that the service takes; a local path is only its last name."""
    if plan.task == "sft":
        dataset = plan.decisions.dataset.value
        source = {"model": plan.asked.model, "dataset": path.name if (path := path_of(dataset)) else dataset}
    else:
        source = {"model": plan.decisions.model.value, "adapter": _last(plan.decisions.adapter.value)}
    own = source | {"model": _last(source["model"])}
    own |= {"plan": plan_hash(plan), "launcher": __version__, "name": plan.decisions.run_name.value}
    return {key: _label(value) for key, value in own.items()} | plan.labels


def _last(name: str) -> str:
    return Path(name).name if Path(name).is_absolute() else name


def _label(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", text.replace("/", "--"))[:_LABEL_LENGTH]


def _check_model(plan: AnyPlan, local: bool) -> None:
    if not local and Path(plan.facts.repo).is_absolute():
        raise RequestError(
            f"--model {plan.facts.repo} is a folder on this machine, which a Job can't see.",
            "Push it to the Hub and name the repo, or add --local.",
        )


def _dataset_args(dataset: str, local: bool) -> tuple[str, ...]:
    """A dataset on this machine is passed as an argument: the Hub client uploads the file and rewrites the path."""
    path = path_of(dataset)
    if path is None:
        return ()
    if path.is_file():
        if path.suffix not in DATA_SUFFIXES:
            raise RequestError(
                f"--dataset {dataset}: a file should end in {', '.join(DATA_SUFFIXES)}.",
                "Convert it, or name a Hub dataset.",
            )
        return (DATASET_FLAG, str(path.resolve()))
    if path.is_dir():
        if not local:
            raise RequestError(
                f"--dataset {dataset} is a folder on this machine, which a Job can't see.",
                "Name one of its files, push it as a Hub dataset, or add --local.",
            )
        return (DATASET_FLAG, str(path.resolve()))
    if path.exists():
        raise RequestError(
            f"--dataset {dataset} is no regular file, and its rows are read more than once.",
            "Write them to a file first.",
        )
    raise RequestError(
        f"--dataset {dataset}: there is no such file here, and it is not a Hub dataset's name.",
        "Give a path that exists, or NAMESPACE/NAME.",
    )
