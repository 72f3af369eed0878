"""What would make a run fit that does not: each change worked out, the smallest first."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from launcher.plan.choices import DEFAULT_EFFECTIVE_BATCH
from launcher.plan.machines import Fit
from launcher.plan.workload import Workload
from launcher.spec import RunSpec

# Where the run would go with a changed workload; None where it would not fit.
Attempt = Callable[[Workload], Fit | None]

SHOWN = 3
LENGTHS = (16384, 12288, 8192, 6144, 4096, 3072, 2048, 1536, 1024, 768, 512, 384, 256)
_SIDES = (2048, 1792, 1536, 1280, 1024, 896, 768, 640, 512, 448, 384, 336)
# How much a change takes away, in halvings of a length, a rank or an image's side; the rest are weighed against
# these: a smaller batch and a stream change nothing in the result, the last one gives up a part of the training.
_BATCH, _STREAM, _NO_EVALUATION, _FOUR_BIT, _MACHINE, _NO_VISION = 0.1, 0.3, 0.5, 0.6, 0.8, 3.0
# Exports change nothing in the training, and can be made later; fewer left out come first.
_NO_COPIES = {1: 0.2, 2: 0.25}
_LATER = " (`launch export` makes it later, on a machine of its own)"

_Change = tuple[dict[str, Any], float, Workload]


@dataclass(frozen=True, slots=True)
class Remedy:
    """A change that makes the run fit: `options` of a `RunSpec`, `change` how much it takes away, `fit` the result."""

    options: dict[str, Any]
    change: float
    fit: Fit

    def line(self) -> str:
        """The flags, and what the run would then be."""
        price = f", about ${self.fit.usd:.2f}" if self.fit.usd else ""
        return (
            f"{flags(self.options)}: {self.fit.footprint.peak:.1f} of {self.fit.room:.1f} GiB "
            f"on {self.fit.flavor.name}, batch {self.fit.setup.batch_size}{price}"
        )


def flags(options: dict[str, Any]) -> str:
    """Options as the command line takes them: `--load-in 4bit`, `--no-finetune-vision-layers`.

    What is None or empty is an option that is to be left away.
    """
    words, without = [], [f"--{name}" for name, value in options.items() if value in (None, ())]
    for name, value in options.items():
        if value in (None, ()):
            continue
        kebab = name.replace("_", "-")
        words.append(f"--{kebab}" if value is True else f"--no-{kebab}" if value is False else f"--{kebab} {value}")
    words += [f"without {' and '.join(without)}{_LATER}"] if without else []
    return " ".join(words)


def find(asked: RunSpec, workload: Workload, attempt: Attempt, elsewhere: list[Fit]) -> list[Remedy]:
    """The smallest changes that make the run fit where it was asked to run, or on one of the machines `elsewhere`.

    Every one was planned again with the change. At most one of each kind, two kinds together only where one is not
    enough; further machines only where nothing else is left.
    """
    machines = [Remedy({"flavor": fit.flavor.name}, _MACHINE, fit) for fit in elsewhere]
    ladders = [list(ladder(asked, workload)) for ladder in _LADDERS]
    found = machines[:1] + [remedy for ladder in ladders if (remedy := _first(ladder, attempt, math.inf))]
    if len(found) < SHOWN:
        pairs = _pairs(asked, workload, attempt)
        found += [pair for pair in pairs if not any(one.options.items() <= pair.options.items() for one in found)]
    found = sorted(found, key=lambda remedy: remedy.change)[:SHOWN]
    return found + machines[1 : 1 + SHOWN - len(found)]


def _first(changes: list[_Change], attempt: Attempt, below: float) -> Remedy | None:
    """The first change that makes the run fit, of those that take less away than `below`."""
    if not changes or attempt(changes[-1][-1]) is None:
        return None
    for options, change, changed in changes:
        if change >= below:
            return None
        fit = attempt(changed)
        if fit is not None:
            return Remedy(options, change, fit)
    return None


def _pairs(asked: RunSpec, workload: Workload, attempt: Attempt) -> list[Remedy]:
    """The smallest change of each two kinds together."""
    found = []
    for one, other in itertools.combinations(_LADDERS, 2):
        best: Remedy | None = None
        # From the largest change down: where that is not enough with another, less is not either.
        for options, change, changed in reversed(list(one(asked, workload))):
            remedy = _first(list(other(asked, changed)), attempt, math.inf)
            if remedy is None:
                break
            total = change + remedy.change
            if best is None or total < best.change:
                best = Remedy(options | remedy.options, total, remedy.fit)
        found += [best] if best else []
    return found


def _batches(asked: RunSpec, workload: Workload) -> Iterator[_Change]:
    size = workload.batch_size or (workload.rows_per_step // workload.accumulation if workload.accumulation else 1)
    for smaller in range(size - 1, 0, -1):
        if workload.rows_per_step % smaller:
            continue
        options = {"batch_size": smaller}
        if workload.accumulation:
            options["gradient_accumulation"] = workload.rows_per_step // smaller
        elif smaller * max(DEFAULT_EFFECTIVE_BATCH // smaller, 1) != workload.rows_per_step:
            options["effective_batch_size"] = workload.rows_per_step
        changed = replace(workload, batch_size=smaller, accumulation=options.get("gradient_accumulation"))
        yield options, _BATCH * math.log2(size / smaller), changed


def _streaming(asked: RunSpec, workload: Workload) -> Iterator[_Change]:
    if workload.dataset_gb and not workload.streaming and asked.max_steps:
        yield {"streaming": True}, _STREAM, replace(workload, streaming=True, dataset_gb=0)


def _evaluation(asked: RunSpec, workload: Workload) -> Iterator[_Change]:
    if workload.eval_rows and asked.eval_split is None:
        yield {"eval_rows": 0}, _NO_EVALUATION, replace(workload, eval_rows=0)


def _copies(asked: RunSpec, workload: Workload) -> Iterator[_Change]:
    made = workload.copies
    if made.merge and made.gguf:
        yield {"gguf": ()}, _NO_COPIES[1], replace(workload, copies=replace(made, gguf=()))
        both: dict[str, Any] = {"merge": None, "gguf": ()}
        yield both, _NO_COPIES[2], replace(workload, copies=replace(made, merge=None, gguf=()))
    elif made.any:
        options: dict[str, Any] = {"merge": None} if made.merge else {"gguf": ()}
        yield options, _NO_COPIES[2], replace(workload, copies=replace(made, merge=None, gguf=()))


def _load_in(asked: RunSpec, workload: Workload) -> Iterator[_Change]:
    if asked.load_in == "16bit":
        yield {"load_in": "4bit"}, _FOUR_BIT, _with(workload, load_in="4bit")


def _ranks(asked: RunSpec, workload: Workload) -> Iterator[_Change]:
    rank = workload.setup.lora_r
    for smaller in (rank >> shift for shift in range(1, rank.bit_length())):
        if smaller >= 4:
            yield {"lora_r": smaller}, math.log2(rank / smaller), _with(workload, lora_r=smaller)


def _lengths(asked: RunSpec, workload: Workload) -> Iterator[_Change]:
    """Shorter rows, as long as a picture still has room for as many words as it has tokens."""
    setup, vision = workload.setup, workload.model.vision
    seen = vision.tokens(setup.image_size) if vision and setup.image_size else 0
    for length in LENGTHS:
        if length < setup.max_length and length >= 2 * seen:
            changed = replace(_with(workload, max_length=length), row_tokens=min(workload.row_tokens, length))
            yield {"max_length": length}, math.log2(setup.max_length / length), changed


def _sides(asked: RunSpec, workload: Workload) -> Iterator[_Change]:
    side = workload.setup.image_size
    for smaller in _SIDES if side else ():
        if side and smaller < side:
            yield {"image_size": smaller}, math.log2(side / smaller), _with(workload, image_size=smaller)


def _vision(asked: RunSpec, workload: Workload) -> Iterator[_Change]:
    setup = workload.setup
    if setup.modality == "vision" and setup.finetune_vision_layers and setup.finetune_language_layers:
        yield {"finetune_vision_layers": False}, _NO_VISION, _with(workload, finetune_vision_layers=False)


def _with(workload: Workload, **changes: Any) -> Workload:
    return replace(workload, setup=replace(workload.setup, **changes))


# Each goes from the smallest change of its kind to the largest.
_LADDERS = (_batches, _copies, _streaming, _evaluation, _load_in, _ranks, _lengths, _sides, _vision)
