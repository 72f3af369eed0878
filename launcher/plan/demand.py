"""From what was asked to the workload: rows per step, their length, how many, and where that is known from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from launcher.catalog import Modality, Model
from launcher.errors import RequestError, ServiceError
from launcher.estimate import dataset
from launcher.estimate.dataset import DataSize
from launcher.estimate.setup import Setup
from launcher.estimate.values import Amount
from launcher.plan import choices
from launcher.plan.choices import Precision
from launcher.plan.record import Decision
from launcher.plan.workload import Step, Workload
from launcher.spec import RunSpec, path_of

# What looks up the size of a Hub dataset: (dataset, config, split, revision).
LookUp = Callable[[str, str | None, str, str | None], DataSize]

# Of typical chat data, measured on rows of log-normal length; the script reports what a run really saw.
TYPICAL_ROW_TOKENS = 530
# About what is downloaded, in GB; `datasets` writes a copy of the same size.
_DEFAULT_DATASET_GB = {"text": 0.1, "vision": 11.0}


@dataclass(frozen=True, slots=True)
class Demand:
    """What a run has to do, with the decisions about it; `words` say it.

    `rows` are those of the dataset, where they are known from that `source`; `held_out` of them are not trained on.
    """

    workload: Workload
    words: str
    rows: int | None
    source: str
    held_out: int
    max_steps: Decision[int | None]
    num_train_epochs: Decision[float | None]
    max_length: Decision[int]
    image_size: Decision[int | None]
    streaming: Decision[bool]
    eval_rows: Decision[int | None]
    effective_batch_size: Decision[int]

    def amount(self, step: Step) -> Amount:
        """How much is read in such steps."""
        steps, passes = self.workload.work(step).steps, self.num_train_epochs.value
        if passes is None and self.rows:
            passes = round(steps * step.dataset_rows / max(self.rows - self.held_out, 1), 2)
        return Amount(steps=steps, rows=self.rows, held_out=self.held_out, passes=passes, source=self.source)


def demand(
    asked: RunSpec,
    model: Model,
    kind: Modality,
    load_in: Precision,
    look_up: LookUp | None,
    warm_image: bool = False,
) -> Demand:
    """Rows per step, their length, how many, and how they are evaluated; `warm_image` brings the training stack."""
    if asked.packing and kind == "vision":
        raise RequestError("--packing: rows with images can't be packed.", "Leave --packing away.")
    max_length, image_size = choices.max_length(asked, model), choices.image_size(asked, kind)
    setup = _setup(asked, kind, load_in, max_length.value, image_size.value)
    size = _data_size(asked, kind, look_up)
    tokens, length = _row_tokens(model, setup, size)
    per_step = choices.effective_batch_size(asked)
    known, source = (asked.dataset_rows, "as was said") if asked.dataset_rows else (size.rows, size.source)
    (steps, epochs), eval_rows = choices.stop(asked, known, per_step.value), choices.eval_rows(asked, known)
    streaming = choices.streaming(asked, kind, steps.value)
    evaluated = choices.DEFAULT_EVAL_ROWS if eval_rows.value is None else eval_rows.value
    # The script never holds out more than half.
    held_out = 0 if asked.eval_split else evaluated if known is None else min(evaluated, known // 2)
    rows, words = None, f"{steps.value} steps of {per_step.value} rows of {length}"
    if epochs.value is not None:
        counted = _required(asked, known, source)
        rows = epochs.value * max(counted - held_out, 1)
        words = f"{epochs.value:g} epochs of {counted} rows ({source}) of {length}"
    workload = Workload(
        model=model,
        setup=setup,
        rows_per_step=per_step.value,
        row_tokens=tokens,
        steps=steps.value,
        rows=rows,
        batch_size=asked.batch_size,
        accumulation=asked.gradient_accumulation,
        packing=asked.packing,
        streaming=streaming.value,
        eval_rows=evaluated or (choices.DEFAULT_EVAL_ROWS if asked.eval_split else 0),
        eval_steps=asked.eval_steps,
        dataset_gb=0 if streaming.value else _dataset_gb(asked, kind),
        warm_image=warm_image,
        copies=choices.copies(asked),
    )
    workload.check()
    return Demand(
        workload, words, known, source, held_out, steps, epochs, max_length, image_size, streaming, eval_rows, per_step
    )


def _setup(asked: RunSpec, kind: Modality, load_in: Precision, max_length: int, image_size: int | None) -> Setup:
    """All that decides memory but the batch, which is one until there is a machine."""
    return Setup(
        load_in=load_in,
        engine=asked.engine,
        max_length=max_length,
        batch_size=1,
        lora_r=asked.lora_r,
        modality=kind,
        image_size=image_size,
        optim=asked.optim,
        finetune_vision_layers=asked.finetune_vision_layers,
        finetune_language_layers=asked.finetune_language_layers,
        finetune_attention_modules=asked.finetune_attention_modules,
        finetune_mlp_modules=asked.finetune_mlp_modules,
    )


def _row_tokens(model: Model, setup: Setup, size: DataSize) -> tuple[float, str]:
    """Mean tokens of a row, its picture's included, cut at the length limit; and where that is known from."""
    seen = model.vision.tokens(setup.image_size) if setup.image_size and model.vision else 0
    tokens = max(min(setup.max_length, (size.tokens_per_row or TYPICAL_ROW_TOKENS) + seen), 1)
    source = size.source if size.tokens_per_row else "typical chat data"
    picture = f", {seen} of them a picture" if seen else ""
    return tokens, f"about {tokens:.0f} tokens{picture} ({source})"


def _required(asked: RunSpec, rows: int | None, source: str) -> int:
    """Rows of the dataset; `RequestError` where they are not known, and somebody pays for them."""
    if rows is not None or asked.local:
        return rows or 1
    raise RequestError(
        f"--num-train-epochs needs the number of rows to say how long the run takes, and it is not known ({source}).",
        "Add --dataset-rows N, or use --max-steps.",
    )


def _data_size(asked: RunSpec, kind: Modality, look_up: LookUp | None) -> DataSize:
    """Rows and length of the dataset, read from a local file, looked up on the Hub, or unknown.

    A service that does not answer only matters where the plan can't do without it.
    """
    path = path_of(asked.dataset) if asked.dataset else None
    if path is not None and path.exists():
        return dataset.measure(path, asked.dataset_split)
    if look_up is None:
        return DataSize(None, None, "the dataset was not looked up")
    name = asked.dataset or choices.DEFAULT_DATASET[kind]
    try:
        return look_up(name, asked.dataset_config, asked.dataset_split, asked.dataset_revision)
    except ServiceError as error:
        return DataSize(None, None, f"the look-up failed: {error.message.rstrip('.')}")


def _dataset_gb(asked: RunSpec, kind: Modality) -> float | None:
    """GB that the data takes on the disk with the copy that `datasets` writes; None where it is not known."""
    if asked.dataset is None:
        return 2 * _DEFAULT_DATASET_GB[kind]
    path = path_of(asked.dataset)
    if path is None or not path.exists():
        return None
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return 2 * sum(file.stat().st_size for file in files) / 1e9
