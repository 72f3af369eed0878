"""Which machine a run gets and in what precision its weights are loaded; or why it gets none."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from launcher.catalog import Flavor
from launcher.errors import RefusedError
from launcher.plan import budget
from launcher.plan import limits as remedies
from launcher.plan import machines as offers
from launcher.plan.choices import Precision
from launcher.plan.machines import Fit
from launcher.plan.record import ASKED, Decision
from launcher.plan.workload import Workload
from launcher.spec import RunSpec

# 16-bit weights are preferred where training takes at most this many times what it takes with 4-bit ones; their larger
# download may make the whole run this much longer.
_SAME = 1.02
_DOWNLOAD = 1.10


@dataclass(frozen=True, slots=True)
class Placed:
    """A run with its machine: `fit` is what was chosen, `fits` what every flavor with a GPU would do, best first."""

    workload: Workload
    load_in: Decision[Precision]
    fit: Fit
    fits: list[Fit]


def place(asked: RunSpec, workload: Workload, flavors: Iterable[Flavor], given: Flavor | None) -> Placed:
    """The run on the machine that was given, else on the best that holds it and is within `--max-cost`.

    Where the precision was left open, each machine gets 4-bit weights, or 16-bit ones where nothing speaks against
    them. Raises `RefusedError` where the run fits nowhere, not where it was asked to run, or costs too much.
    """
    flavors = list(flavors)
    fits = narrow = _survey(asked, workload, flavors, given)
    wide: list[Fit] = []
    open_ = asked.load_in == "auto" and asked.merge != "4bit"
    if open_ and workload.setup.load_in == "4bit" and not workload.model.quantized:
        widened = replace(workload, setup=replace(workload.setup, load_in="16bit"))
        wide = _survey(asked, widened, flavors, given)
        fits = _best_precisions(asked, narrow, wide)
    candidates = [fit for fit in fits if fit.flavor == given] if given else offers.single(fits)
    taken = _first(asked, candidates)
    if taken is None:
        raise _refusal(asked, workload, flavors, given, fits, candidates)
    load_in = Decision(taken.setup.load_in, _load_in(asked, taken, narrow, wide))
    return Placed(workload, load_in, taken, [fit for fit in fits if fit.flavor in flavors and fit.flavor.num_gpus])


def _survey(asked: RunSpec, workload: Workload, flavors: list[Flavor], given: Flavor | None) -> list[Fit]:
    """Every flavor with a GPU, best first, and before them the machine that was given where it is none of these."""
    fits = offers.survey(flavors, workload, asked.prefer)
    if given is None or any(fit.flavor == given for fit in fits):
        return fits
    return [offers.at(given, workload, local=asked.local), *fits]


def _first(asked: RunSpec, fits: list[Fit]) -> Fit | None:
    return next((fit for fit in fits if fit.fits and budget.affords(asked, fit)), None)


def _best_precisions(asked: RunSpec, narrow: list[Fit], wide: list[Fit]) -> list[Fit]:
    """Each machine with the better of its two precisions; 16-bit weights never cost the best machine its place."""
    at = {fit.flavor.name: fit for fit in wide}
    fits = [at[fit.flavor.name] if _against_16bit(asked, fit, at[fit.flavor.name]) is None else fit for fit in narrow]
    best = _first(asked, offers.single(narrow))
    now = _first(asked, offers.single(offers.ranked(fits, asked.prefer)))
    if best and now and now.flavor != best.flavor:
        fits = [best if fit.flavor == best.flavor else fit for fit in fits]
    return offers.ranked(fits, asked.prefer)


def _against_16bit(asked: RunSpec, narrow: Fit, wide: Fit) -> str | None:
    """What speaks against 16-bit weights on a machine; None where they fit well and cost no time."""
    if not wide.fits or not budget.affords(asked, wide):
        return "do not fit" + (f" within ${asked.max_cost:.2f}" if asked.max_cost else "")
    if wide.headroom < 1 - offers.FILL and wide.headroom < narrow.headroom:
        return f"would leave {wide.headroom:.0%} of the memory"
    slower = wide.duration.train_s / max(narrow.duration.train_s, 1)
    if slower > _SAME:
        return f"would train {slower - 1:.0%} longer, {wide.setup.batch_size} rows at once"
    longer = wide.duration.total_s / max(narrow.duration.total_s, 1)
    if longer > _DOWNLOAD:
        return f"would take {longer - 1:.0%} longer, most of it to download"
    return None


def _load_in(asked: RunSpec, taken: Fit, narrow: list[Fit], wide: list[Fit]) -> str:
    """Why the weights have the precision they have."""
    if asked.load_in != "auto":
        return ASKED
    if asked.merge == "4bit":
        return "what --merge 4bit saves, merged"
    if not wide:
        return "on a CPU; 4-bit weights need a GPU"
    if taken.setup.load_in == "16bit":
        return "16-bit weights are exact, fit on the same card and train no slower than 4-bit ones"
    before, after = (next(fit for fit in fits if fit.flavor == taken.flavor) for fits in (narrow, wide))
    against = _against_16bit(asked, before, after) or f"would cost ${after.usd:.2f} instead of ${before.usd:.2f}"
    return f"4-bit weights need a quarter of the memory; 16-bit ones {against}"


def _refusal(
    asked: RunSpec,
    workload: Workload,
    flavors: list[Flavor],
    given: Flavor | None,
    fits: list[Fit],
    candidates: list[Fit],
) -> RefusedError:
    """Why the run can't be placed: too large, or too dear."""
    elsewhere = [fit for fit in offers.single(fits) if fit.flavor != given]
    if any(fit.fits for fit in candidates):
        return budget.refusal(asked, workload, candidates, elsewhere if given else [])
    return _too_large(asked, workload, flavors, given, candidates or fits, elsewhere)


def _too_large(
    asked: RunSpec, workload: Workload, flavors: list[Flavor], given: Flavor | None, tried: list[Fit], others: list[Fit]
) -> RefusedError:
    """The error for a run that does not fit, with the smallest changes that would make it."""

    def attempt(changed: Workload) -> Fit | None:
        if given is None:
            return next(iter(offers.single(offers.survey(flavors, changed, asked.prefer))), None)
        fit = offers.at(given, changed, local=asked.local)
        return fit if fit.fits else None

    found = remedies.find(asked, workload, attempt, others if given and not asked.local else [])
    hints = ["It would with one of:" if len(found) > 1 else "It would with:"] if found else []
    hints += [f"  {remedy.line()}" for remedy in found]
    if asked.local and others:
        hints.append(f"Without --local it fits on {others[0].flavor.name}, about ${others[0].usd:.2f}.")
    best = max(tried, key=lambda fit: (fit.flavor.num_gpus == 1, fit.room))
    where = (
        "this machine" if asked.local else given.name if given else f"any flavor's GPU ({best.flavor.name}'s is best)"
    )
    return RefusedError(
        f"{workload.model.alias} does not fit on {where} at batch {best.setup.batch_size}, length "
        f"{workload.setup.max_length} and {workload.setup.load_in}: {best.why_not}.",
        "\n".join(hints) or "Try a smaller model: `launch models` lists the ones that are known.",
    )
