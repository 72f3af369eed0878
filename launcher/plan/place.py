"""Which machine a run gets, in what precision its weights are loaded, and why; or why it gets none."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from launcher import spec
from launcher.catalog import Flavor
from launcher.errors import RefusedError
from launcher.estimate import copies, memory
from launcher.estimate.values import Amount
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
# Below this share of free memory, and above this many times the cheapest price, a run is warned about.
_TIGHT = 0.05
# Passes over the same rows that nobody makes on purpose.
_MANY_PASSES = 10
_DEAR = 2.0


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


def warnings(asked: RunSpec, placed: Placed, amount: Amount) -> tuple[str, ...]:
    """What fits badly: few rows, idle GPUs, little room, a high price, a short timeout, packing that is lost."""
    fit = placed.fit
    machine, found = fit.flavor, []
    if asked.num_train_epochs is None and amount.rows and (amount.passes or 0) > _MANY_PASSES:
        found.append(
            f"{amount.steps} steps are {amount.passes:.0f} passes over {amount.rows - amount.held_out} rows: "
            "--num-train-epochs 3 would be usual"
        )
    if machine.num_gpus > 1:
        found.append(f"the script trains on one GPU: {machine.num_gpus - 1} of {machine.name}'s would idle")
    if machine.num_gpus and not fit.gpu.bf16:
        found.append(f"the {fit.gpu.title} has no bfloat16: it trains in float16")
    if fit.headroom < _TIGHT:
        found.append(f"only {fit.headroom:.0%} of the memory of {machine.name} would stay free")
    if machine.num_gpus:
        found += memory.doubts(placed.workload.model, fit.setup)
    found += [text for text in (_dear(placed), _unpacked(asked, placed)) if text]
    if asked.timeout and spec.seconds(asked.timeout) < fit.duration.total_s and not asked.local:
        minutes = round(fit.duration.total_s / 60)
        found.append(f"the run is expected to take {minutes} minutes: it would be killed after {asked.timeout}")
    if asked.trust_remote_code:
        found.append(f"the Python of {asked.model} at {asked.revision} is run, with your token in reach")
    return tuple(found)


def flavor(asked: RunSpec, placed: Placed) -> Decision[str]:
    """The machine, and why the run gets that one."""
    fit = placed.fit
    name = fit.flavor.name
    if asked.local:
        return Decision(name, f"this machine, on its {fit.gpu.title if fit.flavor.num_gpus else 'CPU'}")
    if asked.flavor != "auto":
        return Decision(name, ASKED)
    best = "shortest" if asked.prefer == "fast" else "cheapest"
    within = f" within ${asked.max_cost:.2f}" if asked.max_cost else ""
    minutes = round(fit.duration.total_s / 60)
    return Decision(name, f"the {best} run that fits{within}: about ${fit.usd:.2f} for {minutes} minutes")


def batch_size(asked: RunSpec, fit: Fit) -> Decision[int]:
    """Rows at once."""
    size = fit.setup.batch_size
    if asked.batch_size or asked.gradient_accumulation:
        return Decision(size, "what was asked for")
    if not fit.flavor.num_gpus:
        return Decision(size, "a CPU gains nothing from more rows at once")
    if size == fit.step.rows:
        return Decision(size, f"all rows of a step at once; {fit.headroom:.0%} of the memory stays free")
    return Decision(
        size,
        f"the most rows at once that fill at most {offers.FILL:.0%} of the memory, divide a step's and lose no time",
    )


def gradient_accumulation(fit: Fit) -> Decision[int]:
    """Forward passes that make a step's rows."""
    rows, size = fit.step.rows, fit.setup.batch_size
    return Decision(max(rows // size, 1), f"{rows} rows a step, {size} at once")


def merge(asked: RunSpec, placed: Placed) -> Decision[Literal["16bit", "4bit"] | None]:
    """The merged copy, and what it takes."""
    return Decision(placed.workload.copies.merge, _copies(asked, placed).get("merge", ""))


def gguf(asked: RunSpec, placed: Placed) -> Decision[tuple[str, ...]]:
    """The GGUF files, and what they take."""
    return Decision(placed.workload.copies.gguf, _copies(asked, placed).get("gguf", ""))


def duration(asked: RunSpec, fit: Fit, amount: str) -> str:
    """What the expected time stands on, of that amount of work."""
    return "not estimated: this machine costs nothing" if asked.local else f"{amount}; {_speed(fit)}"


def _speed(fit: Fit) -> str:
    if not fit.flavor.num_gpus:
        return "a CPU's speed is assumed from its cores"
    return f"the {fit.gpu.title}'s speed " + (
        "was measured" if fit.duration.measured else "follows from what is published"
    )


def host(placed: Placed) -> str:
    """What RAM and disk are for."""
    needed, dataset_gb = placed.fit.host, placed.workload.dataset_gb
    data = "the dataset comes on top" if dataset_gb is None else f"{dataset_gb:.1f} GB of data among it"
    return (
        f"about {needed.ram_gb:.0f} GB of RAM, and {needed.disk_gb:.0f} GB of disk for the training stack, the weights "
        f"and the result; {data}"
    )


def _copies(asked: RunSpec, placed: Placed) -> dict[str, str]:
    """What the merged copy and the GGUF files take, and where they stay if nothing is pushed."""
    made, model = placed.workload.copies, placed.workload.model
    said = copies.words(model, made, placed.fit.setup.load_in)
    kept = "" if made.pushed or asked.local else "; nothing is pushed: it stays in the Job's bucket, under output/"
    return {name: text + kept for name, text in said.items()}


def _dear(placed: Placed) -> str | None:
    """Another machine with one GPU that would do it for less than half."""
    fit = placed.fit
    cheapest = min(offers.single(placed.fits), key=lambda other: other.usd, default=None)
    if cheapest is None or not fit.flavor.num_gpus or fit.usd <= cheapest.usd * _DEAR:
        return None
    return f"{cheapest.flavor.name} would do it for about ${cheapest.usd:.2f} instead of ${fit.usd:.2f}"


def _unpacked(asked: RunSpec, placed: Placed) -> str | None:
    """Packing that was asked for and that Unsloth would ignore, so that a step would be fewer rows than planned."""
    if not asked.packing:
        return None
    step = placed.fit.step
    if not step.packing:
        return f"--packing has no effect: {step.reason.removeprefix('off: ')}"
    if step.doubt:
        return f"--packing: {step.doubt}; unpacked, a step would be {step.rows} rows and not {step.dataset_rows:.0f}"
    return None
