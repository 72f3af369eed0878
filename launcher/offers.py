"""What each flavor would do with a run, and which one is taken."""

from __future__ import annotations

from dataclasses import dataclass, replace

from launcher import duration, memory
from launcher.catalog import Flavor, Gpu, Model
from launcher.errors import RefusedError
from launcher.memory import Setup
from launcher.plan import Duration, Offer

# The share of a card's plannable memory that a chosen batch may fill; the estimate's own error fits in the rest.
_FILL = 0.85
_CPU_BATCH = 4
# On a CPU the script trains in float32: twice what the estimate for 16 bits says.
_FLOAT32_SHARE = 0.5
# Per core, so that the share that `duration` assumes is what SmolLM2-135M reached on two cores of a cloud machine.
_CPU_TFLOPS = 0.4


@dataclass(frozen=True, slots=True)
class Fit:
    """One flavor with the micro-batch it would run; `peak_gib` is per GPU."""

    flavor: Flavor
    gpu: Gpu
    batch_size: int
    peak_gib: float
    fits: bool
    duration: Duration

    @property
    def usd(self) -> float:
        """Expected dollars of the whole run."""
        return self.flavor.usd_per_hour * self.duration.total_s / 3600

    def offer(self) -> Offer:
        """The line for the plan; a run that does not fit has no time and no price."""
        return Offer(
            flavor=self.flavor.name,
            fits=self.fits,
            peak_gib=round(self.peak_gib, 2),
            total_s=self.duration.total_s if self.fits else None,
            expected_usd=round(self.usd, 2) if self.fits else None,
        )


def survey(flavors: list[Flavor], model: Model, setup: Setup, batches: list[int], tokens: int) -> list[Fit]:
    """Every flavor that has a GPU, the ones that fit first, the cheapest run first among them."""
    fits = [_fit(flavor, flavor.gpu, model, setup, batches, tokens) for flavor in flavors if flavor.gpu]
    return sorted(fits, key=lambda fit: (not fit.fits, fit.usd))


def cheapest(fits: list[Fit], model: Model) -> Fit:
    """The cheapest run on one GPU; `RefusedError` where there is none."""
    single = _single(fits)
    if not single:
        raise RefusedError(f"{model.alias} fits on no flavor like this.", _what_fits(single))
    return single[0]


def at(place: Flavor, fits: list[Fit], model: Model, setup: Setup, batches: list[int], tokens: int) -> Fit:
    """The run on one given machine, on its CPU where it has no GPU; `RefusedError` where it can't be."""
    if place.gpu is None:
        batches = [size for size in batches if size <= _CPU_BATCH] or [min(batches)]
    gpu = place.gpu or _host_memory(place)
    fit = _fit(place, gpu, model, setup, batches, tokens)
    if not fit.fits:
        where, hint = place.name, _what_fits(_single(fits))
        if not place.usd_per_hour:
            where, hint = "this machine", "Leave --local away to run it on Jobs, or try a smaller model."
        raise RefusedError(
            f"{model.alias} does not fit on {where}: it needs {fit.peak_gib:.1f} GiB at batch {fit.batch_size} and "
            f"length {setup.max_length}, and {memory.available(gpu):.1f} GiB of its {gpu.title} can be used.",
            hint,
        )
    return fit


def _single(fits: list[Fit]) -> list[Fit]:
    return [fit for fit in fits if fit.fits and fit.flavor.num_gpus == 1]


def _host_memory(place: Flavor) -> Gpu:
    """A CPU in the terms of a GPU."""
    return Gpu(
        title="host memory",
        memory_gib=place.ram_gb * 1e9 / memory.GIB * _FLOAT32_SHARE,
        nominal_gb=0,
        bf16=True,
        compute_capability="",
        bf16_tflops=_CPU_TFLOPS * place.vcpu,
        bandwidth_gbs=1,
    )


def _fit(flavor: Flavor, gpu: Gpu, model: Model, setup: Setup, batches: list[int], tokens: int) -> Fit:
    """The flavor with the largest of the micro-batches that stays within the fill, else the smallest."""
    room = memory.available(gpu)
    peaks = {size: memory.footprint(model, replace(setup, batch_size=size)).peak for size in batches}
    batch = max((size for size in batches if peaks[size] <= room * _FILL), default=min(batches))
    expected = duration.expected(model, gpu, tokens, setup.load_in)
    return Fit(flavor, gpu, batch, peaks[batch], peaks[batch] <= room, expected)


def _what_fits(single: list[Fit]) -> str:
    if not single:
        return "It fits on no flavor like this: try --load-in 4bit or a shorter --max-length."
    return "It fits on " + ", ".join(f"{fit.flavor.name} (about ${fit.usd:.2f})" for fit in single[:3]) + "."
