"""What each flavor would do with a run, and which one is taken."""

from __future__ import annotations

from dataclasses import dataclass, replace

from launcher import duration, memory
from launcher.catalog import Catalog, Flavor, Gpu, Model
from launcher.errors import RefusedError
from launcher.memory import Setup
from launcher.plan import Duration, Offer

# The share of a card's plannable memory that a chosen batch may fill; the estimate's own error fits in the rest.
_FILL = 0.85


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


def choose(name: str, fits: list[Fit], catalog: Catalog, model: Model, setup: Setup) -> Fit:
    """The flavor that was asked for, or for `auto` the cheapest run on one GPU; `RefusedError` where it can't be."""
    single = [fit for fit in fits if fit.fits and fit.flavor.num_gpus == 1]
    if name == "auto":
        if not single:
            raise RefusedError(
                f"{model.alias} fits on no flavor like this.", "Try --load-in 4bit or a shorter --max-length."
            )
        return single[0]
    flavor = catalog.flavor(name)
    if flavor.gpu is None:
        raise RefusedError(f"--flavor {name} has no GPU, and training needs one.", _what_fits(single))
    chosen = next(fit for fit in fits if fit.flavor.name == name)
    if not chosen.fits:
        raise RefusedError(
            f"{model.alias} does not fit on {name}: it needs {chosen.peak_gib:.1f} GiB at batch {chosen.batch_size} "
            f"and length {setup.max_length}, and {memory.available(chosen.gpu):.1f} GiB of its {chosen.gpu.title} "
            "can be used.",
            _what_fits(single),
        )
    return chosen


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
