"""What a plan says about its machine: the reasons for what was decided there, and what to be warned of."""

from __future__ import annotations

from typing import Literal

from launcher import spec
from launcher.estimate import copies, memory
from launcher.plan import machines as offers
from launcher.plan.machines import Fit
from launcher.plan.place import Placed
from launcher.plan.record import ASKED, Decision
from launcher.spec import RunSpec

_TIGHT = 0.05
_DEAR = 2.0


def warnings(asked: RunSpec, placed: Placed, timeout_s: int) -> tuple[str, ...]:
    """What fits badly: idle GPUs, the wrong number format, little room, a high price, a short timeout, lost packing."""
    fit = placed.fit
    machine, found = fit.flavor, []
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
