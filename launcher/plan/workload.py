"""What a run has to do, whichever machine does it: the rows, steps and tokens, and whether rows are packed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from launcher.catalog import Gpu, Model
from launcher.errors import RequestError
from launcher.estimate.copies import Copies
from launcher.estimate.duration import Work
from launcher.estimate.setup import FAST_TYPES, Setup

DEFAULT_EFFECTIVE_BATCH = 16
# Packing pays where rows leave much of the length empty; above this share the gain is lost in the kernels for it.
_PACKS_BELOW = 0.6
# How full packed rows are: best-fit packing leaves little (TRL's `bfd`).
_PACKED_FILL = 0.95
# Packed rows are whole: more than this share off the rows asked for per step, and packing is left off.
_ROWS_TOLERANCE = 0.25
# torch's varlen kernel and FlashAttention need Ampere (unsloth/utils/attention_dispatch.py: `_torch_varlen_takes`).
_PACKING_CAPABILITY = 8.0
# More rows at once than this no card needs to be busy.
_LARGEST_BATCH = 64
# The script's `per_device_eval_batch_size`: evaluation must fit wherever training did.
_EVAL_BATCH = 2


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step on one kind of machine.

    `rows` as the model sees them, packed ones where `packing`, each of `row_tokens` on average; `dataset_rows` is how
    many rows of the dataset they hold; `reason` says why it is packed or not, `doubt` why packing that was asked for
    may not happen, or go wrong.
    """

    packing: bool
    rows: int
    row_tokens: float
    dataset_rows: float
    reason: str
    doubt: str | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """A run as it was asked for, without its machine.

    `setup` holds a batch of one until a machine is known. `rows_per_step` counts rows of the dataset, of `row_tokens`
    each on average, cut at the length limit. `steps` is how many optimizer steps, or `rows` how many rows in all.
    `batch_size`, `accumulation` and `packing` are None where they may be chosen. `dataset_gb` is what the data takes on
    the disk (10^9 bytes), None where that is not known. `warm_image` where the training stack is in the image. `copies`
    are made of the model once it is trained.
    """

    model: Model
    setup: Setup
    rows_per_step: int
    row_tokens: float
    steps: int | None = None
    rows: float | None = None
    batch_size: int | None = None
    accumulation: int | None = None
    packing: bool | None = None
    streaming: bool = False
    eval_rows: int = 0
    eval_steps: int | None = None
    dataset_gb: float | None = None
    warm_image: bool = False
    copies: Copies = field(default_factory=Copies)

    def at_batch(self, batch_size: int) -> Setup:
        """The setup with that many rows per forward pass, and the evaluation that the script then does."""
        return replace(
            self.setup,
            batch_size=batch_size,
            eval_batch_size=min(batch_size, _EVAL_BATCH) if self.eval_rows else 0,
        )

    def step(self, gpu: Gpu | None) -> Step:
        """One optimizer step on that card, or on a CPU."""
        packed = self._packed_rows()
        hindered = _hindrance(self, gpu)
        if self.packing and gpu is not None:
            return self._packed_step(packed, f"asked for: {self._packed_words(packed)}", hindered)
        if self.packing:
            return self._plain_step("off: packed rows need a GPU's attention kernels")
        if self.packing is False:
            return self._plain_step("off, as asked")
        hindered = hindered or self._no_gain(packed)
        if hindered:
            return self._plain_step(f"off: {hindered}")
        return self._packed_step(packed, f"on: {self._packed_words(packed)}")

    def batches(self, step: Step) -> list[int]:
        """The micro-batches to choose among, smallest first: those that divide a step's rows."""
        if self.batch_size:
            return [self.batch_size]
        if self.accumulation:
            return [max(step.rows // self.accumulation, 1)]
        return [size for size in range(1, min(step.rows, _LARGEST_BATCH) + 1) if step.rows % size == 0]

    def work(self, step: Step) -> Work:
        """How much there is to do in such steps."""
        steps = self.steps or max(math.ceil((self.rows or 1) / step.dataset_rows), 1)
        # The script evaluates before and after training, and in between where it was asked to.
        evaluations = 2 + (steps // self.eval_steps if self.eval_steps else 0)
        return Work(
            steps=steps,
            rows_per_step=step.rows,
            tokens_per_row=step.row_tokens,
            eval_rows=self.eval_rows,
            evaluations=evaluations if self.eval_rows else 0,
            packed=step.dataset_rows / step.rows if step.packing else 1,
        )

    def check(self) -> None:
        """Raise `RequestError` where the batch asked for does not divide a step's rows."""
        if self.packing:
            return
        if self.batch_size and self.rows_per_step % self.batch_size:
            raise RequestError(
                f"--batch-size {self.batch_size} does not divide --effective-batch-size {self.rows_per_step}.",
                "Choose a batch size that divides the rows of a step.",
            )
        if self.accumulation and self.rows_per_step % self.accumulation:
            raise RequestError(
                f"--gradient-accumulation {self.accumulation} does not divide "
                f"--effective-batch-size {self.rows_per_step}.",
                "Choose a number of passes that divides the rows of a step.",
            )

    def _plain_step(self, reason: str) -> Step:
        return Step(False, self.rows_per_step, self.row_tokens, self.rows_per_step, reason)

    def _packed_step(self, packed: int, reason: str, doubt: str | None = None) -> Step:
        return Step(True, packed, self.setup.max_length * _PACKED_FILL, self._rows_in(packed), reason, doubt)

    def _packed_rows(self) -> int:
        """Packed rows that hold a step's rows, a multiple of the batch or the accumulation that was asked for."""
        if self.batch_size and self.accumulation:
            return self.batch_size * self.accumulation
        wanted = self.rows_per_step * self.row_tokens / (self.setup.max_length * _PACKED_FILL)
        unit = (self.batch_size or self.accumulation or 1) if self.packing else 1
        return max(round(wanted / unit), 1) * unit

    def _rows_in(self, packed: int) -> float:
        return packed * self.setup.max_length * _PACKED_FILL / self.row_tokens

    def _packed_words(self, packed: int) -> str:
        rows = "row" if packed == 1 else "rows"
        return (
            f"{packed} {rows} of {self.setup.max_length} tokens hold about {self._rows_in(packed):.0f} of the dataset, "
            f"of about {self.row_tokens:.0f} tokens each"
        )

    def _no_gain(self, packed: int) -> str | None:
        """Why packing would not pay, or would change how many rows a step has."""
        share = self.row_tokens / self.setup.max_length
        if share >= _PACKS_BELOW:
            return f"rows of about {self.row_tokens:.0f} tokens fill {min(share, 1):.0%} of the length as they are"
        if abs(self._rows_in(packed) / self.rows_per_step - 1) > _ROWS_TOLERANCE:
            return f"a step's {self.rows_per_step} rows are no whole number of packed rows"
        if packed % (self.batch_size or self.accumulation or 1) or (self.batch_size and self.accumulation):
            return "the batch asked for counts the dataset's rows"
        return None


def _hindrance(workload: Workload, gpu: Gpu | None) -> str | None:
    """Why rows of that model should not share a packed row on that machine; None where they may.

    Sources: unsloth 2026.10.9, `unsloth/trainer.py`: PADDING_FREE_BLOCKLIST (Gemma 2), processors (models that see)
    and `_is_hybrid_linear_attention_model` (short convolutions; with TRL's chunked loss it ignores `packing`).
    """
    arch = workload.model.arch
    if gpu is None:
        return "packed rows need a GPU's attention kernels"
    if workload.setup.modality == "vision":
        return "rows with images can't be packed"
    if workload.model.vision is not None:
        return "the model sees, and Unsloth does not pack for its processor"
    if arch.attention_layers is not None and arch.attention_layers < arch.num_layers:
        return "the model's convolutions would mix neighbouring rows"
    if arch.logit_softcap is not None:
        return "Unsloth does not pack for soft-capped attention"
    if arch.sliding_window is not None and arch.sliding_window < workload.setup.max_length:
        return "packed rows were not checked with sliding-window attention"
    if workload.model.model_type not in FAST_TYPES:
        return f"packed rows were not checked with {workload.model.model_type}"
    if float(gpu.compute_capability or 0) < _PACKING_CAPABILITY:
        return f"the {gpu.title} has no fused attention for packed rows"
    if workload.streaming:
        return "a stream is packed only when asked"
    return None
