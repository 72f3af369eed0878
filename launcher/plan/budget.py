"""The timeout of a run and what it may cost: from the expected time, within `--max-cost`."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Protocol

from launcher import spec
from launcher.errors import RefusedError
from launcher.estimate import duration
from launcher.estimate.copies import Copies
from launcher.plan import limits as remedies
from launcher.plan import machines as offers
from launcher.plan.machines import Fit
from launcher.plan.record import ASKED, Decision
from launcher.plan.workload import Workload
from launcher.spec import RunSpec

# The least margin over the expected time that a limit on the cost may leave.
LEAST_MARGIN = 1.2
_LOCAL_TIMEOUT_S = 7 * 86400


class Limits(Protocol):
    """What of a spec says how long it may take."""

    @property
    def timeout(self) -> str | None:
        """The timeout that was asked for."""

    @property
    def local(self) -> bool:
        """Whether it runs on this machine."""


def timeout(asked: RunSpec, fit: Fit) -> Decision[int]:
    """Seconds until the Job is killed."""
    wanted = seconds(asked, fit.duration.total_s)
    paid = _paid_s(fit, asked.max_cost)
    if asked.timeout:
        require_start(wanted.value, fit.duration.startup_s, asked)
    if asked.timeout or asked.local or paid >= wanted.value:
        return wanted
    minutes = wanted.value // 60
    return Decision(
        paid, f"what ${asked.max_cost:.2f} pays for; {minutes} minutes would be the expected time with its margin"
    )


def seconds(asked: Limits, total_s: int) -> Decision[int]:
    """The timeout of what is expected to take that long, without a limit on its cost."""
    if asked.timeout:
        return Decision(spec.seconds(asked.timeout), ASKED)
    if asked.local:
        return Decision(_LOCAL_TIMEOUT_S, "nobody pays for this machine by the minute")
    return Decision(
        duration.timeout(total_s),
        f"the expected time x {duration.TIMEOUT_MARGIN:g} and {duration.TIMEOUT_SLACK_S // 60} minutes more, "
        f"never under {duration.TIMEOUT_MIN_S // 60}",
    )


def require_start(timeout_s: int, startup_s: int, asked: Limits | None = None) -> None:
    """Raise `RefusedError` for a timeout within which a Job would not even begin its work."""
    if timeout_s < startup_s and not (asked and asked.local):
        raise RefusedError(
            f"a timeout of {timeout_s} s would end the Job before its first step: its start-up alone takes about "
            f"{startup_s} s.",
            f"Leave --timeout away for one that fits, or give at least {math.ceil(startup_s / 300) * 5}m.",
        )


def affords(asked: RunSpec, fit: Fit) -> bool:
    """Whether the run with the least timeout it needs, or the one asked for, stays within `--max-cost`."""
    return asked.max_cost is None or _least_usd(asked, fit) <= asked.max_cost


def refusal(asked: RunSpec, workload: Workload, fits: list[Fit], others: list[Fit]) -> RefusedError:
    """The error for a run that is too dear on all of `fits`, with the nearest that are not.

    `others` are the machines that were not asked for.
    """
    assert asked.max_cost is not None
    best = min(fits, key=lambda fit: _least_usd(asked, fit))
    if asked.timeout:
        reason = f"at its timeout of {asked.timeout}"
    else:
        reason = f"with {LEAST_MARGIN - 1:.0%} to spare, and a Job gets half an hour at least"
    fewer = _fewer_steps(asked, workload, fits)
    lines = [
        fewer or _fewer_steps(asked, workload, others),
        _without_copies(asked, workload, fits),
        _elsewhere(asked, others),
        _shorter_timeout(asked, best),
        f"--max-cost {math.ceil(_least_usd(asked, best) * 100) / 100:.2f}: enough on {best.flavor.name}",
    ]
    return RefusedError(
        f"{workload.model.alias} on {best.flavor.name} may cost ${_least_usd(asked, best):.2f} ({reason}), "
        f"and --max-cost is ${asked.max_cost:.2f}.",
        "Within reach:\n" + "\n".join(f"  {line}" for line in lines if line),
    )


def _least_s(asked: RunSpec, total_s: int) -> int:
    if asked.timeout:
        return spec.seconds(asked.timeout)
    return max(duration.TIMEOUT_MIN_S, math.ceil(total_s * LEAST_MARGIN))


def _least_usd(asked: RunSpec, fit: Fit) -> float:
    return fit.flavor.usd_per_hour * _least_s(asked, fit.duration.total_s) / 3600


def _paid_s(fit: Fit, max_cost: float | None) -> int:
    """Whole seconds that the money pays for; a billion where nothing limits them."""
    rate = fit.flavor.usd_per_hour
    return 10**9 if max_cost is None or not rate else math.floor(max_cost / rate * 3600)


def _elsewhere(asked: RunSpec, fits: list[Fit]) -> str | None:
    for fit in fits:
        if affords(asked, fit):
            return f"--flavor {fit.flavor.name}: about ${fit.usd:.2f}, at most ${_least_usd(asked, fit):.2f}"
    return None


def _without_copies(asked: RunSpec, workload: Workload, fits: list[Fit]) -> str | None:
    """The training alone, where that is within reach."""
    bare = replace(workload, copies=Copies())
    given: dict[str, Any] = {name: None for name in ("merge", "gguf") if getattr(workload.copies, name)}
    for fit in fits if given else ():
        trained = offers.retimed(fit, bare, bare.work(fit.step))
        if affords(asked, trained):
            return f"{remedies.flags(given)}: about ${trained.usd:.2f}, at most ${_least_usd(asked, trained):.2f}"
    return None


def _fewer_steps(asked: RunSpec, workload: Workload, fits: list[Fit]) -> str | None:
    """The most steps that the money pays for, on the machine where they are most."""
    if asked.timeout:
        return None
    reachable = ((_most_steps(asked, workload, fit), fit) for fit in fits if not affords(asked, fit))
    steps, fit = max(reachable, key=lambda pair: pair[0], default=(0, None))
    if not steps or fit is None:
        return None
    shorter = _with_steps(workload, fit, steps)
    return (
        f"--max-steps {steps} --flavor {fit.flavor.name}: about ${shorter.usd:.2f}, "
        f"at most ${_least_usd(asked, shorter):.2f}"
    )


def _most_steps(asked: RunSpec, workload: Workload, fit: Fit) -> int:
    """The largest number of steps within `--max-cost` on that machine, by bisection; 0 where not one is."""
    enough, too_many = 0, workload.work(fit.step).steps
    while too_many - enough > 1:
        middle = (enough + too_many) // 2
        if affords(asked, _with_steps(workload, fit, middle)):
            enough = middle
        else:
            too_many = middle
    return enough


def _with_steps(workload: Workload, fit: Fit, steps: int) -> Fit:
    work = replace(workload, steps=steps, rows=None).work(fit.step)
    return offers.retimed(fit, workload, work)


def _shorter_timeout(asked: RunSpec, fit: Fit) -> str | None:
    paid = _paid_s(fit, asked.max_cost)
    if not asked.timeout or paid < max(fit.duration.total_s * LEAST_MARGIN, duration.TIMEOUT_MIN_S):
        return None
    return f"--timeout {paid // 60}m: about ${fit.usd:.2f} on {fit.flavor.name}"
