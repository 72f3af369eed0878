"""From what was asked to the workload: rows per step, their length, how many, and where that is known from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from launcher.catalog import Modality, Model
from launcher.errors import RequestError, ServiceError
from launcher.estimate import dataset
from launcher.estimate.dataset import DataSize
from launcher.estimate.setup import Setup
from launcher.plan import choices
from launcher.plan.choices import Precision
from launcher.plan.workload import DEFAULT_EFFECTIVE_BATCH, Workload
from launcher.spec import RunSpec

# What looks up the size of a Hub dataset: (dataset, config, split, revision).
LookUp = Callable[[str, str | None, str, str | None], DataSize]

# Of typical chat data, measured on rows of log-normal length; the script reports what a run really saw.
TYPICAL_ROW_TOKENS = 530
# About what is downloaded, in GB; `datasets` writes a copy of the same size.
_DEFAULT_DATASET_GB = {"text": 0.1, "vision": 11.0}


def workload(
    asked: RunSpec, model: Model, kind: Modality, load_in: Precision, look_up: LookUp | None, why: dict[str, str]
) -> Workload:
    """What the run has to do: rows per step, their length, how many, and how they are evaluated."""
    if asked.packing and kind == "vision":
        raise RequestError("--packing: rows with images can't be packed.", "Leave --packing away.")
    setup = _setup(asked, model, kind, load_in, why)
    size = _data_size(asked, kind, look_up)
    tokens, length = _row_tokens(model, setup, size)
    per_step = _rows_per_step(asked, why)
    steps, epochs = choices.stop(asked, why)
    streaming = choices.streaming(asked, kind, steps, why)
    if epochs is None:
        rows = None
        why["duration"] = f"{steps} steps of {per_step} rows of {length}"
    else:
        counted, source = _rows(asked, size)
        rows = epochs * counted
        why["duration"] = f"{epochs:g} epochs of {counted} rows ({source}) of {length}"
    made = Workload(
        model=model,
        setup=setup,
        rows_per_step=per_step,
        row_tokens=tokens,
        steps=steps,
        rows=rows,
        batch_size=asked.batch_size,
        accumulation=asked.gradient_accumulation,
        packing=asked.packing,
        streaming=streaming,
        eval_rows=choices.eval_rows(asked, why) or (choices.DEFAULT_EVAL_ROWS if asked.eval_split else 0),
        eval_steps=asked.eval_steps,
        dataset_gb=0 if streaming else _dataset_gb(asked, kind),
        copies=choices.copies(asked),
    )
    made.check()
    return made


def _setup(asked: RunSpec, model: Model, kind: Modality, load_in: Precision, why: dict[str, str]) -> Setup:
    """All that decides memory but the batch, which is one until there is a machine."""
    return Setup(
        load_in=load_in,
        engine=asked.engine,
        max_length=choices.max_length(asked, model, why),
        batch_size=1,
        lora_r=asked.lora_r,
        modality=kind,
        image_size=choices.image_size(asked, kind, why),
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


def _rows(asked: RunSpec, size: DataSize) -> tuple[int, str]:
    """Rows of the dataset, and who says so."""
    if asked.dataset_rows:
        return asked.dataset_rows, "as was said"
    if size.rows is not None:
        return size.rows, size.source
    if asked.local:
        return 1, "unknown, and here it matters to nobody"
    raise RequestError(
        "--num-train-epochs needs the number of rows to say how long the run takes, and it is not known "
        f"({size.source}).",
        "Add --dataset-rows N, or use --max-steps.",
    )


def _rows_per_step(asked: RunSpec, why: dict[str, str]) -> int:
    if asked.effective_batch_size:
        why["effective_batch_size"] = "asked for"
        return asked.effective_batch_size
    if asked.batch_size and asked.gradient_accumulation:
        why["effective_batch_size"] = "the batch times the accumulation asked for"
        return asked.batch_size * asked.gradient_accumulation
    unit = asked.batch_size or asked.gradient_accumulation or 1
    rows = unit * max(DEFAULT_EFFECTIVE_BATCH // unit, 1)
    why["effective_batch_size"] = f"{rows} rows per optimizer step: steady gradients for LoRA"
    return rows


def _data_size(asked: RunSpec, kind: Modality, look_up: LookUp | None) -> DataSize:
    """Rows and length of the dataset, read from a local file, looked up on the Hub, or unknown.

    A service that does not answer only matters where the plan can't do without it.
    """
    path = Path(asked.dataset).expanduser() if asked.dataset else None
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
    path = Path(asked.dataset).expanduser()
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return 2 * sum(file.stat().st_size for file in files) / 1e9 if path.exists() else None
