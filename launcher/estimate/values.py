"""What is estimated of a run, as values that a record can hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from pydantic import BaseModel, ConfigDict


class Value(BaseModel):
    """Frozen, and of exactly these fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Vram(Value):
    """Peak memory per GPU, GiB as torch counts allocated memory; `available_gib` is what a run may use.

    `parts` sum to the peak; `reserve_gib` is the card's memory that no run gets (CUDA context, fragmentation).
    """

    weights_gib: float
    peak_gib: float
    available_gib: float
    fits: bool
    reserve_gib: float = 0
    parts: dict[str, float] = {}

    @classmethod
    def of(cls, parts: Mapping[str, float], *, available_gib: float, reserve_gib: float, fits: bool) -> Self:
        """The parts and their sum, in hundredths of a GiB."""
        return cls(
            weights_gib=round(parts["weights"], 2),
            peak_gib=round(sum(parts.values()), 2),
            available_gib=round(available_gib, 2),
            fits=fits,
            reserve_gib=round(reserve_gib, 2),
            parts={name: round(gib, 2) for name, gib in parts.items()},
        )


class Duration(Value):
    """Expected seconds: until the first step, of training, and in all; `parts` name what the start-up consists of.

    `measured` says whether the card's speed was measured or follows from its published figures.
    """

    startup_s: int
    train_s: int
    total_s: int
    parts: dict[str, int] = {}
    tokens_per_second: float = 0
    measured: bool = False


class Cost(Value):
    """US dollars: the flavor's rate, what the run should cost, and what it costs if it reaches its timeout."""

    usd_per_hour: float
    expected_usd: float
    max_usd: float


class Amount(Value):
    """How much a training reads: `steps`, which are `passes` over those of the split's `rows` that are not held out.

    None where the rows are not known; `source` says how they are, or why not.
    """

    steps: int
    rows: int | None = None
    held_out: int = 0
    passes: float | None = None
    source: str = ""


class Host(Value):
    """What the machine around the GPU must hold, in GB (10^9 bytes)."""

    ram_gb: float
    disk_gb: float


class Offer(Value):
    """What one flavor would do with this run; times and costs are null where it does not fit.

    `headroom` is the share of the plannable memory that stays free, below 0 where it does not fit; `why_not` says what
    is missing: memory, host RAM or disk.
    """

    flavor: str
    fits: bool
    peak_gib: float
    total_s: int | None
    expected_usd: float | None
    batch_size: int = 1
    headroom: float = 0
    why_not: str | None = None
