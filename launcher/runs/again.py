"""A run once more, or on from where it ended: the same script, byte for byte, with the same arguments and variables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from launcher import spec
from launcher.catalog import Catalog, Flavor
from launcher.catalog.machine import LOCAL
from launcher.errors import RefusedError, RequestError, from_validation, unknown
from launcher.estimate import duration, memory
from launcher.hub import access
from launcher.hub.client import Hub
from launcher.jobs import folder
from launcher.jobs import request as requests
from launcher.jobs.base import ARTIFACTS_ENV, ARTIFACTS_MOUNT, DEFAULT_IMAGE, Backend, Job, JobRequest
from launcher.jobs.folder import REQUEST, Run
from launcher.plan import budget, command
from launcher.plan.record import AnyPlan
from launcher.runs import arguments, record, trust, why
from launcher.runs.find import fetch
from launcher.runs.record import Kept, recorded, with_args
from launcher.spec import DATA_SUFFIXES, RepoName, path_of, require_apart
from launcher.text import mask

_OF_ONE_JOB = ("request", "artifacts", "resumes")


@dataclass(frozen=True, slots=True)
class Again:
    """The request to submit, whether it was this user's before, and what they should know of it."""

    request: JobRequest
    own: bool = False
    notes: tuple[str, ...] = ()
    doubt: str = ""
    """What the user has to agree to first, if anything."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where the result is to be pushed, and its merged copy; none for where the run pushed it."""

    output_repo: str | None = None
    merged_repo: str | None = None

    @property
    def chosen(self) -> tuple[str, ...]:
        """The names of those that are given."""
        return tuple(name for name, repo in asdict(self).items() if repo)


def find(
    name: str, tables: Catalog, planner: trust.Planner, trusted: str | None = None, places: Places = Places()
) -> Again:
    """The request of a run, ready to be submitted as a new one.

    `trusted` is the SHA-256 of a script that the user has read; `places` are told to the script by its arguments.
    What a stranger's run takes and costs is asked of `planner`.
    Raises `RefusedError` for a script that is neither this launcher's nor trusted, and `RequestError` for a run or a
    data file that is not there any more, and for places that can't be meant.
    """
    found = fetch(name)
    if isinstance(found, Kept):
        trusts = trust.require_trust(found, tables, trusted)
        known = found.record
        args, told = _pushing_to(places, with_args(record.plan_of(found), known.args), known.args)
        meant = with_args(record.plan_of(found), args)
        trust.require_chosen_places(found, meant, places.chosen, trusts, lambda: Hub().user)
        request, left_out = trust.request(found, args, tables, trusts, planner)
        doubt = trust.doubt(found, request.plan) if request.plan.task == "sft" else ""
        return Again(_with_data(request, known.inputs), notes=told + left_out, doubt=doubt)
    if trusted:
        raise RequestError(
            f"--trust-script: {name} was started by you, with a script of its own.", "Leave --trust-script away."
        )
    if isinstance(found, Run):
        request = _from_run(found)
    else:
        request = _with_data(replace(found, artifacts=None, resumes=None), {})
    args, notes = _pushing_to(places, request.plan, request.script_args)
    try:
        plan = request.plan.changed(_repos(request.plan, args))
    except ValidationError as error:
        raise from_validation(error) from error
    # A request that was put together again does not name what lay beside its script.
    beside = request.beside or requests.copies_of(plan, tables.stack)
    return Again(replace(request, plan=plan, script_args=args, beside=beside), own=True, notes=notes)


def recall(backend: Backend, job_id: str) -> JobRequest:
    """The request of a run that can be gone on with; `RequestError` for any other."""
    before = backend.inspect(job_id)
    if known := why.plan_of(before.id):
        require_training(known, before.id)
    require_unfinished(before, why.read(backend, before).result if before.succeeded else None)
    recalled = backend.recall(job_id)
    require_training(recalled.plan, before.id)
    return replace(recalled, attempts=recalled.plan.decisions.attempts.value)


def require_unfinished(job: Job, result: Mapping[str, Any] | None) -> None:
    """Raise `RequestError` for a run that still goes on, or has done all that it was to do.

    `result` is what its script reported at its end, if that is known.
    """
    if not job.ended:
        raise RequestError(
            f"{job.id} still goes on (stage {job.stage}).",
            f"`launch wait {job.address}` follows it; `launch cancel {job.address}` stops it: then it can be resumed.",
        )
    if job.succeeded and not (result or {}).get("stopped"):
        raise RequestError(
            f"{job.id} has ended well: there is nothing left to do for it.",
            "To train for longer, start a run with more --max-steps or --num-train-epochs.",
        )


def require_training(plan: AnyPlan, job_id: str) -> None:
    """Raise `RequestError` for an export, which keeps nothing that another Job could go on with."""
    if plan.task == "export":
        raise RequestError(
            f"{job_id} is an export, which has no checkpoints to go on from.",
            f"Start it again: `{command.export(plan)}`.",
        )


def adapt(request: JobRequest, catalog: Catalog, timeout: str | None, flavor: str | None) -> JobRequest:
    """The request with another timeout or flavor, within what the run needs; the script stays as it is.

    Raises `RequestError` for values that can't be meant, and `RefusedError` where the run does not fit.
    """
    if request.flavor == LOCAL and not timeout and not flavor:
        return request
    args, plan = request.script_args, request.plan
    timeout_s = _timeout_s(plan, args) or plan.decisions.timeout_s.value
    if timeout:
        timeout_s = _seconds(timeout)
        if request.flavor != LOCAL:
            budget.require_start(timeout_s, plan.duration.startup_s)
        args = arguments.changed(plan, args, {"timeout_s": str(timeout_s)})
    machine = _machine(plan, catalog, flavor) if flavor else catalog.flavors.get(request.flavor)
    changed = plan.changed({"flavor": flavor or request.flavor, "timeout_s": timeout_s})
    if machine:  # whoever wrote the plan is not asked for its price
        cost = duration.cost(machine, _total_s(plan, machine), timeout_s)
        changed = changed.model_copy(update={"cost": cost})
    return replace(request, plan=changed, flavor=flavor or request.flavor, timeout_s=timeout_s, script_args=args)


def require_within(request: JobRequest, max_cost: float | None) -> None:
    """Raise `RefusedError` where the run may cost more than that."""
    usd = request.plan.cost.max_usd
    if max_cost is not None and usd > max_cost:
        raise RefusedError(
            f"the run may cost ${usd:.2f} on {request.flavor} until its timeout of {request.timeout_s // 60} minutes, "
            f"and --max-cost is ${max_cost:.2f}.",
            "Give more, a shorter --timeout, or another --flavor.",
        )


def bring_here(request: JobRequest, here: Flavor) -> JobRequest:
    """The request as this machine runs it; `RefusedError` for what can't be trained on it."""
    if request.flavor == LOCAL:
        return request
    if request.plan.decisions.modality.value == "vision" and not here.num_gpus:
        raise RefusedError(
            "this machine has no GPU, and Unsloth trains vision models on a GPU only.", "Leave --local away."
        )
    told: dict[str, arguments.Value | None] = {} if here.num_gpus else {"device": "cpu"}
    told |= {"timeout_s": str(request.timeout_s)}
    args = arguments.changed(request.plan, request.script_args, told)
    # Without a push, no account is needed here.
    pushes = any(request.plan.places[:2])
    secrets = tuple(name for name in request.secrets if name != "HF_TOKEN" or pushes)
    return replace(request, flavor=LOCAL, script_args=args, secrets=secrets, image=None, namespace=None)


def require_own_places(plan: AnyPlan, hub: Hub) -> None:
    """Refuse a stranger's run that would send its result or its metrics where this user may not write, or to them."""
    output, merged, _ = plan.places
    space = plan.asked.trackio_space if plan.task == "sft" else None
    if not (output or merged or space):
        return
    hint = "The script stays as it is; give it a repo of yours: --output-repo NAME."
    hint += " --merged-repo NAME is for its merged copy." if merged else ""
    try:
        access.require_places(hub, *plan.places)
    except RefusedError as error:
        to = " and ".join(filter(None, (output, merged)))
        raise RefusedError(f"the run pushes to {to}. {error.message}", hint) from error
    owners = {hub.user, (output or "").partition("/")[0]}
    if space and space.partition("/")[0] not in owners:
        raise RefusedError(
            f"the run sends its metrics to the Space {space}, which is not yours.",
            "Start a run of your own with the same options; `launch diff` shows in what two runs differ.",
        )


def _from_run(run: Run) -> JobRequest:
    """The request of a run that was started here, as it was sent."""
    kept, plan = run.read(REQUEST), run.plan()
    try:
        script = run.folder / str(kept["script_name"])
        image, labels, env = kept["image"], kept["labels"], kept["env"]
        request = JobRequest(
            plan=plan,
            script=script.read_bytes().decode(),
            script_name=script.name,
            beside={path.name: path.read_text("utf-8") for path in script.parent.glob("*.py") if path != script},
            script_args=tuple(kept["script_args"]),
            image=None if image == DEFAULT_IMAGE else image,
            flavor=str(kept["flavor"]),
            timeout_s=int(kept["timeout_s"]),
            env={name: value for name, value in env.items() if name != ARTIFACTS_ENV},
            secrets=tuple(kept["secrets"]),
            labels={name: value for name, value in labels.items() if name not in _OF_ONE_JOB},
            namespace=kept["namespace"],
            attempts=int(kept.get("attempts", plan.decisions.attempts.value)),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        raise RequestError(
            f"the request of run '{run.id}' can't be read: it is not whole, or another version of launch wrote it.",
            f"Look at {run.folder}, and start the run anew with its options.",
        ) from error
    return _with_data(request, run.inputs)


def _pushing_to(places: Places, plan: AnyPlan, args: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The script's arguments with other places than the plan's, and what to say of them."""
    notes: tuple[str, ...] = ()
    first_output, first_merged, _ = plan.places
    merged, output = places.merged_repo, places.output_repo
    if merged and not plan.decisions.merge.value:
        raise RequestError(f"--merged-repo {merged}: the run makes no merged copy.", "Leave it away.")
    if output:
        args = arguments.changed(plan, args, {"output_repo": _checked("--output-repo", output)})
    if merged:
        args = arguments.changed(plan, args, {"merged_repo": _checked("--merged-repo", merged)})
    elif output and first_merged:
        # Empty is none to the script. The first run's repo would hold this run's weights under its own name.
        args = arguments.changed(plan, args, {"merged_repo": ""})
        notes = (
            f"the merged copy goes into merged/ of {output}, not into {first_merged}; --merged-repo NAME gives it "
            "a repo of its own.",
        )
    require_apart(merged or (None if output else first_merged), output or first_output)
    return args, notes


def _repos(plan: AnyPlan, args: tuple[str, ...]) -> dict[str, arguments.Value | None]:
    """The repos that the arguments name, by the plan's fields; none for an empty one."""
    return {name: value or None for name, value in arguments.read(plan, args).items() if name in trust.PLACES}


def _checked(option: str, name: str) -> str:
    try:
        return str(TypeAdapter(RepoName).validate_python(name))
    except ValidationError as error:
        said = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise RequestError(f"{option} {mask(repr(name))}: {said}.", "Such as me/my-model.") from error


def _machine(plan: AnyPlan, catalog: Catalog, flavor: str) -> Flavor:
    """The flavor to run on instead, which must hold what the plan needs."""
    if plan.decisions.flavor.value == LOCAL:
        raise RequestError(f"--flavor {flavor}: a local run has no flavor.", "Leave it away.")
    machine = catalog.flavors.get(flavor)
    if machine is None:
        raise unknown("flavor", flavor, catalog.flavors, "launch flavors")
    if machine.num_gpus != plan.num_gpus:
        raise RequestError(
            f"--flavor {flavor} has {machine.num_gpus} GPUs, and the run was begun on {plan.num_gpus}: "
            "its steps would not be the same.",
            "Choose a flavor with as many GPUs; `launch flavors` shows them.",
        )
    if plan.num_gpus:
        room = memory.available(machine.gpu) if machine.gpu else 0
        if plan.vram.peak_gib > room:
            raise RefusedError(
                f"the run needs {plan.vram.peak_gib:.1f} GiB and {flavor} has {room:.1f} GiB for it.",
                "Choose a larger one; `launch flavors` shows them.",
            )
    return machine


def _total_s(plan: AnyPlan, machine: Flavor) -> int:
    """The expected seconds of the whole run on that flavor, which the plan may hold among its offers."""
    offered = [offer.total_s for offer in plan.offers if offer.flavor == machine.name and offer.total_s]
    return offered[0] if offered and machine.name != plan.decisions.flavor.value else plan.duration.total_s


def _seconds(timeout: str) -> int:
    try:
        return spec.seconds(timeout)
    except ValueError as error:
        raise RequestError(f"--timeout {timeout!r} {error}.", "Such as --timeout 2h.") from error


def _timeout_s(plan: AnyPlan, args: tuple[str, ...]) -> int | None:
    """The timeout that an earlier resumption gave the script."""
    told = str(arguments.read(plan, args).get("timeout_s", ""))
    return int(told) if re.fullmatch("[0-9]{1,9}", told) else None


def _with_data(request: JobRequest, files: Mapping[str, str]) -> JobRequest:
    """The request with its data file where that lies now; raises where it is gone, or is another one."""
    if request.plan.task != "sft":
        return request
    named = str(arguments.read(request.plan, request.script_args).get("dataset", ""))
    if not named:
        return request
    planned = request.plan.decisions.dataset.value
    path = path_of(named)
    if path is None:
        return request
    if named.startswith(f"{ARTIFACTS_MOUNT}/") and not path.exists():
        path = Path(planned).expanduser()
        args = arguments.changed(request.plan, request.script_args, {"dataset": str(path.absolute())})
        request = replace(request, script_args=args)
    if not path.exists() and (path.suffix in DATA_SUFFIXES or path.is_absolute()):
        raise RequestError(f"the dataset of the run, {path}, is not there any more.", "Put it back, then try again.")
    expected = recorded(files, named) or recorded(files, planned)
    if path.is_file() and expected and folder.digest(path) != expected:
        raise RequestError(
            f"{path} is not what the run was trained on: its SHA-256 is another one.",
            "Put the former file back, or start a new run on this one.",
        )
    return request
