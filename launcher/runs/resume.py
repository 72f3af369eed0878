"""Going on with a run that ended too early: whether there is something to go on with, and what may be changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

from launcher import spec
from launcher.catalog import Catalog, Flavor
from launcher.catalog.machine import LOCAL
from launcher.errors import RefusedError, RequestError, unknown
from launcher.estimate import duration, memory
from launcher.jobs.base import TIMEOUT_FLAG, Backend, Job, JobRequest
from launcher.plan import export
from launcher.plan.record import Plan
from launcher.runs import why


def recall(backend: Backend, job_id: str) -> JobRequest:
    """The request of a run that can be gone on with; `RequestError` for any other."""
    before = backend.inspect(job_id)
    if known := why.plan_of(before.id):
        require_training(known, before.id)
    require_unfinished(before, why.read(backend, before).result if before.succeeded else None)
    recalled = backend.recall(job_id, to_resume=True)
    require_training(recalled.plan, before.id)
    return recalled


def require_unfinished(job: Job, result: Mapping[str, Any] | None) -> None:
    """Raise `RequestError` for a run that still goes on, or has done all that it was to do.

    `result` is what its script reported at its end, if that is known.
    """
    if not job.ended:
        raise RequestError(
            f"{job.id} still goes on (stage {job.stage}).",
            f"`launch wait {job.id}` follows it; `launch cancel {job.id}` stops it, and then it can be resumed.",
        )
    if job.succeeded and not (result or {}).get("stopped"):
        raise RequestError(
            f"{job.id} has ended well: there is nothing left to do for it.",
            "To train for longer, start a run with more --max-steps or --num-train-epochs.",
        )


def require_training(plan: Plan, job_id: str) -> None:
    """Raise `RequestError` for an export, which keeps nothing that another Job could go on with."""
    if plan.task == "export":
        raise RequestError(
            f"{job_id} is an export, which has no checkpoints to go on from.",
            f"Start it again: `{export.command(plan)}`.",
        )


def adapt(request: JobRequest, catalog: Catalog, timeout: str | None, flavor: str | None) -> JobRequest:
    """The request with another timeout or flavor; the script stays as it is, byte for byte.

    Raises `RequestError` for values that can't be meant, and `RefusedError` where the run does not fit.
    """
    args, plan = request.script_args, request.plan
    timeout_s = _timeout_s(args) or plan.timeout_s
    if timeout:
        timeout_s = _seconds(timeout)
        args = (*_without_timeout(args), TIMEOUT_FLAG, str(timeout_s))
    machine = _machine(plan, catalog, flavor)
    changed = plan.model_copy(update={"flavor": flavor or request.flavor, "timeout_s": timeout_s})
    if machine and changed != plan:
        cost = duration.cost(machine, _total_s(plan, machine), timeout_s)
        changed = changed.model_copy(update={"cost": cost})
    return replace(
        request, plan=changed, flavor=changed.flavor, timeout_s=timeout_s, script_args=args, attempts=plan.attempts
    )


def _machine(plan: Plan, catalog: Catalog, flavor: str | None) -> Flavor | None:
    """The flavor to run on, which must hold what the plan needs; none for this machine and for what is not known."""
    if flavor is None:
        return catalog.flavors.get(plan.flavor)
    if plan.flavor == LOCAL:
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


def _total_s(plan: Plan, machine: Flavor) -> int:
    """The expected seconds of the whole run on that flavor, which the plan may hold among its offers."""
    offered = [offer.total_s for offer in plan.offers if offer.flavor == machine.name and offer.total_s]
    return offered[0] if offered and machine.name != plan.flavor else plan.duration.total_s


def _seconds(timeout: str) -> int:
    try:
        return spec.seconds(timeout)
    except ValueError as error:
        raise RequestError(f"--timeout {timeout!r} {error}.", "Such as --timeout 2h.") from error


def _timeout_s(args: tuple[str, ...]) -> int | None:
    """The timeout that an earlier resumption gave the script."""
    values = [value for flag, value in pairwise(args) if flag == TIMEOUT_FLAG]
    return int(values[-1]) if values and values[-1].isdigit() else None


def _without_timeout(args: tuple[str, ...]) -> tuple[str, ...]:
    dropped = {place + step for place, item in enumerate(args) if item == TIMEOUT_FLAG for step in (0, 1)}
    return tuple(item for place, item in enumerate(args) if place not in dropped)
