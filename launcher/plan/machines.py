"""What each machine would do with a run, and which one is taken."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from launcher.catalog import Flavor, Gpu
from launcher.estimate import copies, duration, memory
from launcher.estimate.duration import Work
from launcher.estimate.memory import Footprint
from launcher.estimate.setup import GIB, Setup
from launcher.estimate.values import Duration, Host, Offer
from launcher.plan import host
from launcher.plan.workload import Step, Workload

Prefer = Literal["cheap", "fast"]

# The share of the plannable memory that a chosen batch may fill. The reserve stands apart already; what is left is for
# the formula's own error (2 % at worst too low) and for a batch whose rows are all as long as allowed.
FILL = 0.90
# A larger batch is taken unless it takes more than this many times as long: its rows are padded to the longest.
_SLOWER = 1.02
_CPU_BATCH = 4
# On a CPU the script trains in float32: twice what the estimate for 16 bits says.
_FLOAT32_SHARE = 0.5
# Per core, so that the share that `duration` assumes is what SmolLM2-135M reached on two cores of a cloud machine.
_CPU_TFLOPS = 0.4


@dataclass(frozen=True, slots=True)
class Fit:
    """One machine with the micro-batch it would run; memory is per GPU. `why_not` is None where the run fits."""

    flavor: Flavor
    gpu: Gpu
    setup: Setup
    step: Step
    footprint: Footprint
    host: Host
    duration: Duration
    why_not: str | None

    @property
    def fits(self) -> bool:
        """Whether the GPU's memory, the RAM and the disk all hold the run."""
        return self.why_not is None

    @property
    def room(self) -> float:
        """GiB that may be planned with."""
        return memory.available(self.gpu)

    @property
    def headroom(self) -> float:
        """Share of the plannable memory that stays free; below 0 where the run is too large."""
        return 1 - self.footprint.peak / self.room

    @property
    def usd(self) -> float:
        """Expected dollars of the whole run, its start-up included."""
        return self.flavor.usd_per_hour * self.duration.total_s / 3600

    def offer(self) -> Offer:
        """The line for the plan; a run that does not fit has no time and no price."""
        return Offer(
            flavor=self.flavor.name,
            fits=self.fits,
            peak_gib=round(self.footprint.peak, 2),
            total_s=self.duration.total_s if self.fits else None,
            expected_usd=round(self.usd, 2) if self.fits else None,
            batch_size=self.setup.batch_size,
            headroom=round(self.headroom, 3),
            why_not=self.why_not,
        )


def survey(flavors: Iterable[Flavor], workload: Workload, prefer: Prefer = "cheap") -> list[Fit]:
    """Every flavor whose GPU is known, the ones that fit first, and the best of them first."""
    cards: dict[Gpu, _Card] = {}
    fits = []
    for flavor in flavors:
        if flavor.gpu is not None:
            card = cards.get(flavor.gpu) or _Card(workload, flavor.gpu)
            cards[flavor.gpu] = card
            fits.append(card.on(flavor))
    return ranked(fits, prefer)


def ranked(fits: Iterable[Fit], prefer: Prefer) -> list[Fit]:
    """The machines that hold the run first, and among them the cheapest run, or the shortest; ties go by the other."""

    def rank(fit: Fit) -> tuple[bool, float, float]:
        by_time, by_price = fit.duration.total_s, fit.usd
        return (not fit.fits, by_time, by_price) if prefer == "fast" else (not fit.fits, by_price, by_time)

    return sorted(fits, key=rank)


def at(place: Flavor, workload: Workload, *, local: bool = False) -> Fit:
    """The run on one given machine, on its CPU where it has no GPU; `local` where the stack is installed there."""
    if place.gpu is not None:
        return _Card(workload, place.gpu, local=local).on(place)
    return _Card(workload, _host_memory(place), cpu=True, local=local).on(place)


def single(fits: Iterable[Fit]) -> list[Fit]:
    """Those of the offers that may be chosen: they fit, and have no GPU that the script would leave idle."""
    return [fit for fit in fits if fit.fits and fit.flavor.num_gpus == 1]


def retimed(fit: Fit, workload: Workload, work: Work) -> Fit:
    """The same machine with another amount of training."""
    trained = duration.expected(workload.model, fit.gpu, fit.setup, work, warm_image=workload.warm_image)
    return replace(fit, duration=_with_copies(workload, fit.setup, fit.flavor, trained))


def _with_copies(workload: Workload, setup: Setup, flavor: Flavor, trained: Duration) -> Duration:
    return copies.added(trained, copies.seconds(workload.model, setup.load_in, workload.copies, flavor.vcpu))


class _Card:
    """A run on one kind of GPU: what does not depend on the rest of the machine is worked out once."""

    def __init__(self, workload: Workload, gpu: Gpu, *, cpu: bool = False, local: bool = False) -> None:
        self.workload, self.gpu, self.cpu, self.local = workload, gpu, cpu, local
        self.step = workload.step(None if cpu else gpu)
        self.work = workload.work(self.step)
        self.room = memory.available(gpu)
        sizes = workload.batches(self.step)
        if cpu:
            sizes = [size for size in sizes if size <= _CPU_BATCH] or sizes[:1]
        self.sizes = sizes
        self._known: dict[int, tuple[Setup, Footprint, Host]] = {}
        self._durations: dict[int, Duration] = {}

    def on(self, flavor: Flavor) -> Fit:
        """The largest micro-batch within the fill and the machine's RAM that pays, else the smallest."""
        roomy = [size for size in self.sizes if self._roomy(size, flavor)] or self.sizes[:1]
        fastest = min(self._duration(size).train_s for size in roomy)
        batch = max(size for size in roomy if self._duration(size).train_s <= fastest * _SLOWER)
        setup, footprint, needed = self._at(batch)
        short = None if footprint.peak <= self.room else self._short(footprint)
        if short is None:
            short = host.lacking(needed, flavor)
        whole = _with_copies(self.workload, setup, flavor, self._duration(batch))
        return Fit(flavor, self.gpu, setup, self.step, footprint, needed, whole, short)

    def _roomy(self, batch: int, flavor: Flavor) -> bool:
        _, footprint, needed = self._at(batch)
        return footprint.peak <= self.room * FILL and (self.cpu or needed.ram_gb <= flavor.ram_gb)

    def _at(self, batch: int) -> tuple[Setup, Footprint, Host]:
        if batch not in self._known:
            setup = self.workload.at_batch(batch)
            footprint = memory.footprint(self.workload.model, setup, None if self.cpu else self.gpu)
            needed = host.needs(self.workload, setup, gpu=not self.cpu, installed=self.local)
            if self.cpu:
                # Without a GPU the merged model is made beside the trained one.
                merged = copies.full_bytes(self.workload.model) if self.workload.copies.whole else 0
                ram = (footprint.peak / _FLOAT32_SHARE * GIB + merged) / 1e9
                needed = needed.model_copy(update={"ram_gb": round(ram, 1)})
            self._known[batch] = setup, footprint, needed
        return self._known[batch]

    def _duration(self, batch: int) -> Duration:
        if batch not in self._durations:
            setup, _, _ = self._at(batch)
            self._durations[batch] = duration.expected(
                self.workload.model, self.gpu, setup, self.work, warm_image=self.workload.warm_image
            )
        return self._durations[batch]

    def _short(self, footprint: Footprint) -> str:
        return f"memory: needs {footprint.peak:.1f} GiB, has {self.room:.1f} GiB"


def _host_memory(place: Flavor) -> Gpu:
    """A CPU in the terms of a GPU."""
    return Gpu(
        title="host memory",
        memory_gib=place.ram_gb * 1e9 / GIB * _FLOAT32_SHARE,
        nominal_gb=0,
        bf16=True,
        compute_capability="",
        bf16_tflops=_CPU_TFLOPS * place.vcpu,
        bandwidth_gbs=1,
    )


def without_time(fit: Fit) -> Fit:
    """The same on this machine, whose speed nobody knows and nobody pays for."""
    return replace(fit, duration=Duration(startup_s=0, train_s=0, total_s=0))
