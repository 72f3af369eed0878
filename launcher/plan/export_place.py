"""What each machine would do with an export, and which one is taken: the cheapest that holds it, CPUs among them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from launcher.catalog import Catalog, Flavor, Modality, Model
from launcher.errors import RefusedError
from launcher.estimate import copies, duration, memory
from launcher.estimate.copies import Copies
from launcher.estimate.setup import GIB, Setup
from launcher.estimate.values import Duration, Host, Offer
from launcher.plan import host
from launcher.plan.choices import Precision

_GB = 1e9
# Assumed: a prompt's cache, its logits and what the kernels need, for a few dozen tokens of one row.
_ANSWER_GIB = 1.0
# Bytes of a weight that is loaded without a GPU.
_CPU_BYTES = 2
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Export:
    """What is to be made, whichever machine does it; `rank` is the adapter's."""

    model: Model
    modality: Modality
    copies: Copies
    rank: int
    warm_image: bool = False
    local: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """One machine with the precision that the model is loaded in; memory of a GPU, or without one of the machine.

    `why_not` is None where the export fits.
    """

    flavor: Flavor
    load_in: Precision
    parts: dict[str, float]
    room_gib: float
    reserve_gib: float
    host: Host
    duration: Duration
    why_not: str | None

    @property
    def fits(self) -> bool:
        """Whether memory, RAM and disk all hold it."""
        return self.why_not is None

    @property
    def peak_gib(self) -> float:
        """The sum of the parts."""
        return sum(self.parts.values())

    @property
    def usd(self) -> float:
        """Expected dollars."""
        return self.flavor.usd_per_hour * self.duration.total_s / 3600

    def offer(self) -> Offer:
        """The line for the plan."""
        return Offer(
            flavor=self.flavor.name,
            fits=self.fits,
            peak_gib=round(self.peak_gib, 2),
            total_s=self.duration.total_s if self.fits else None,
            expected_usd=round(self.usd, 2) if self.fits else None,
            headroom=round(1 - self.peak_gib / self.room_gib, 3) if self.room_gib > 0 else -1,
            why_not=self.why_not,
        )


def choose(export: Export, catalog: Catalog, given: Flavor | None, why: dict[str, str]) -> Place:
    """The machine that was given, or the cheapest that holds the export; `RefusedError` with what would do."""
    places = survey(export, catalog.flavors.values())
    if given is not None:
        taken = at(export, given)
        why["flavor"] = "this machine" if export.local else "asked for"
    else:
        taken = next((place for place in places if place.fits and place.flavor.num_gpus <= 1), places[0])
        minutes = round(taken.duration.total_s / 60)
        why["flavor"] = f"the cheapest that holds it: about ${taken.usd:.2f} for {minutes} minutes"
    if not taken.fits:
        raise _refusal(export, catalog, given, taken, places)
    why["load_in"] = _load_in(export, taken)
    why["host"] = (
        f"about {taken.host.ram_gb:.0f} GB of RAM and {taken.host.disk_gb:.0f} GB of disk, all copies together"
    )
    why["duration"] = f"from assumed speeds {copies.ASSUMED}"
    if export.local:
        why["duration"] = "not estimated: this machine costs nothing"
        return replace(taken, duration=Duration(startup_s=0, train_s=0, total_s=0))
    return taken


def survey(export: Export, flavors: Iterable[Flavor]) -> list[Place]:
    """Every flavor that can be planned for: those that hold it first, the cheapest first, to the cent; then by time."""
    places = [at(export, flavor) for flavor in flavors if not flavor.accelerator]
    return sorted(places, key=lambda place: (not place.fits, round(place.usd, 2), place.duration.total_s))


def at(export: Export, flavor: Flavor) -> Place:
    """The export on one machine, in 16 bits where they fit and may be used, else in 4."""
    loads: list[Precision] = ["16bit"] if _wide(export) else []
    loads += ["4bit"] if flavor.gpu or not loads else []
    places = [_place(export, flavor, load_in) for load_in in loads]
    return next((place for place in places if place.fits), places[-1])


def _wide(export: Export) -> bool:
    """Whether the model may be loaded in 16 bits: a 4-bit copy is made of the 4-bit weights."""
    return export.copies.merge != "4bit"


def _place(export: Export, flavor: Flavor, load_in: Precision) -> Place:
    model, gpu = export.model, flavor.gpu
    if load_in == "16bit":
        # In place of a 4-bit upload the script loads what that was made of.
        model = model.model_copy(update={"quantized": None, "repo_4bit": None})
    setup = Setup(load_in, "unsloth", 0, 1, export.rank, modality=export.modality)
    parts = {
        "weights": (memory.weights(model, load_in) if gpu else _CPU_BYTES * model.params) / GIB,
        "adapter": 4 * memory.adapter_parameters(model, setup) / GIB,
        "answers": _ANSWER_GIB,
    }
    peak = sum(parts.values())
    needed = host.of_export(model, load_in, export.copies, loaded_gb=0 if gpu else peak * GIB / _GB,
                            adapter_gb=parts["adapter"] * GIB / _GB, installed=export.local)  # fmt: skip
    if gpu:
        room, reserve = memory.available(gpu), memory.reserve(gpu)
    else:
        # What Python and the libraries take, and a shard in the making, is the reserve of a machine's own memory.
        reserve = min(needed.ram_gb * _GB / GIB - peak, flavor.ram_gb * _GB / GIB)
        room = flavor.ram_gb * _GB / GIB - reserve
    before = duration.loading(model, load_in, on_cpu=gpu is None, warm_image=export.warm_image)
    start = {name: round(seconds) for name, seconds in before.items()}
    timed = Duration(startup_s=sum(start.values()), train_s=0, total_s=sum(start.values()), parts=start)
    timed = copies.added(timed, copies.seconds(model, load_in, export.copies, flavor.vcpu))
    short = _unable(export, flavor) or (
        f"memory: needs {peak:.1f} GiB, has {room:.1f} GiB" if gpu and peak > room else host.lacking(needed, flavor)
    )
    return Place(flavor, load_in, parts, room, reserve, needed, timed, short)


def _unable(export: Export, flavor: Flavor) -> str | None:
    """Why a machine without a GPU can't do it, however large it is."""
    if flavor.gpu:
        return None
    if export.modality == "vision":
        return "Unsloth has no vision models without a GPU"
    return "4-bit weights need a GPU" if export.copies.merge == "4bit" else None


def _load_in(export: Export, taken: Place) -> str:
    if taken.load_in == "16bit":
        return "the exact weights, which the copies are made of"
    if export.copies.merge == "4bit":
        return "what --merge 4bit saves, merged"
    return f"16-bit weights do not fit on {taken.flavor.name}; the copies are made of them all the same"


def _refusal(export: Export, catalog: Catalog, given: Flavor | None, tried: Place, places: list[Place]) -> RefusedError:
    """Why it can't be done there, with what would: each worked out."""
    lines = [f"  {line}" for line in _fewer(export, catalog, given)]
    if given is not None and not export.local:
        others = [place for place in places if place.fits and place.flavor.num_gpus <= 1]
        lines += [f"  --flavor {place.flavor.name}: about ${place.usd:.2f}" for place in others[: _SHOWN - len(lines)]]
    hints = ["It would with one of:" if len(lines) > 1 else "It would with:", *lines] if lines else []
    if export.local and (other := next((place for place in places if place.fits), None)):
        hints.append(f"Without --local it fits on {other.flavor.name}, about ${other.usd:.2f}.")
    where = "this machine" if export.local else given.name if given else "any flavor"
    return RefusedError(
        f"an export of {export.model.alias} does not fit on {where}: {tried.why_not}.",
        "\n".join(hints) or "Make the copies on a machine of your own that is larger, with --local.",
    )


def _fewer(export: Export, catalog: Catalog, given: Flavor | None) -> list[str]:
    """Which of the copies could be made there, one kind at a time."""
    made = export.copies
    fewer: dict[str, dict[str, Any]] = {}
    if made.merge and made.gguf:
        fewer = {f"--merge {made.merge} alone": {"gguf": ()}, "--gguf alone": {"merge": None}}
    if len(made.gguf) > 1:
        smallest = min(made.gguf, key=copies.GGUF_BITS.__getitem__)
        fewer |= {f"--gguf {smallest} alone": {"gguf": (smallest,), "merge": None}}
    if made.merge == "4bit":
        fewer |= {"--merge 16bit": {"merge": "16bit"}}
    lines = []
    for words, changes in fewer.items():
        changed = replace(export, copies=replace(made, **changes))
        tried = [at(changed, given)] if given else survey(changed, catalog.flavors.values())
        fitting = next((place for place in tried if place.fits and place.flavor.num_gpus <= 1), None)
        if fitting:
            price = f", about ${math.ceil(fitting.usd * 100) / 100:.2f}" if fitting.usd else ""
            lines.append(f"{words}: on {fitting.flavor.name}{price}")
    return lines
