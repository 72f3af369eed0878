"""From what was asked to what will be done: every decision, each with its reason."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Literal

from launcher import duration, memory, offers, spec
from launcher.catalog import Catalog, FetchConfig, Flavor, Modality, Model
from launcher.errors import RefusedError, RequestError, unknown
from launcher.memory import Setup
from launcher.offers import Fit
from launcher.plan import Duration, Plan, Vram
from launcher.spec import RunSpec

DEFAULT_DATASET = {"text": "trl-lib/Capybara", "vision": "HuggingFaceH4/llava-instruct-mix-vsft"}
DEFAULT_MAX_STEPS = 500
DEFAULT_MAX_LENGTH = 2048
DEFAULT_EFFECTIVE_BATCH = 16
DEFAULT_EVAL_ROWS = 64
DEFAULT_IMAGE_SIZE = 768
# Of typical chat data, measured on rows of log-normal length; the script reports what a run really saw.
TYPICAL_ROW_TOKENS = 530
_LOCAL_TIMEOUT_S = 7 * 86400
_LARGEST_BATCH = 64


def make_plan(
    asked: RunSpec,
    catalog: Catalog,
    *,
    today: date,
    user: str | None = None,
    here: Flavor | None = None,
    fetch_config: FetchConfig | None = None,
) -> Plan:
    """Decide everything that was left open.

    `user` is the Hub account that output repos without a namespace belong to, where it is known; `here` is this
    machine, for local runs. Raises `RequestError` for names that don't exist and `RefusedError` for a model that
    fits nowhere, or not where it was asked to run.
    """
    model = catalog.model(asked.model, asked.revision, fetch_config)
    why: dict[str, str] = {}
    modality = _modality(asked, model, why)
    place = _place(asked, here, catalog, modality)
    load_in = _load_in(asked, place, why)
    max_length = _max_length(asked, model, why)
    rows = _effective_batch(asked, why)
    packing = _packing(asked, modality, why)
    max_steps, epochs = _stop(asked, why)
    tokens = _training_tokens(asked, rows, max_length, packing, max_steps, epochs, why)
    setup = Setup(load_in, asked.engine, max_length, asked.batch_size or 1, asked.lora_r)
    batches = _micro_batches(asked, rows)
    fits = offers.survey(list(catalog.flavors.values()), model, setup, batches, tokens)
    chosen = offers.at(place, fits, model, setup, batches, tokens) if place else offers.cheapest(fits, model)
    if asked.local:
        chosen = replace(chosen, duration=Duration(startup_s=0, train_s=0, total_s=0))
    _flavor(asked, chosen, why)
    why["batch_size"] = "asked for" if asked.batch_size else "the most rows at once that leave the card some room"
    run_name = asked.run_name or f"{_slug(model)}-sft-{today:%Y%m%d}"
    timeout_s = _timeout(asked, chosen.duration.total_s, why)
    peak = memory.footprint(model, replace(setup, batch_size=chosen.batch_size))
    return Plan(
        model=asked.model,
        repo=model.repo,
        revision=asked.revision,
        modality=modality,
        engine=asked.engine,
        load_in=load_in,
        chat_template=_chat_template(asked, model, catalog, why),
        dataset=_dataset(asked, modality, why),
        dataset_config=asked.dataset_config,
        dataset_split=asked.dataset_split,
        dataset_revision=asked.dataset_revision,
        eval_split=asked.eval_split,
        eval_rows=_eval_rows(asked, why),
        streaming=_streaming(asked, modality, max_steps, why),
        train_on=asked.train_on,
        image_size=_image_size(asked, modality, why),
        max_steps=max_steps,
        num_train_epochs=epochs,
        max_length=max_length,
        batch_size=chosen.batch_size,
        gradient_accumulation=asked.gradient_accumulation or max(rows // chosen.batch_size, 1),
        packing=packing,
        learning_rate=asked.learning_rate,
        lr_scheduler_type=asked.lr_scheduler_type,
        warmup_ratio=asked.warmup_ratio,
        weight_decay=asked.weight_decay,
        optim=asked.optim,
        seed=asked.seed,
        logging_steps=asked.logging_steps,
        eval_steps=asked.eval_steps,
        lora_r=asked.lora_r,
        lora_alpha=asked.lora_alpha or asked.lora_r,
        lora_dropout=asked.lora_dropout,
        lora_targets=model.lora_targets,
        finetune_vision_layers=asked.finetune_vision_layers,
        finetune_language_layers=asked.finetune_language_layers,
        finetune_attention_modules=asked.finetune_attention_modules,
        finetune_mlp_modules=asked.finetune_mlp_modules,
        output_repo=_output_repo(asked, run_name, user, why),
        private=asked.private,
        run_name=run_name,
        sample_rows=asked.sample_rows,
        trackio_project=asked.trackio_project or _slug(model),
        trackio_space=asked.trackio_space,
        flavor=chosen.flavor.name,
        num_gpus=chosen.flavor.num_gpus,
        image=asked.image,
        namespace=asked.namespace,
        labels=asked.label,
        env=asked.env,
        secrets=_secrets(asked, why),
        timeout_s=timeout_s,
        vram=Vram(
            weights_gib=round(peak.weights, 2),
            peak_gib=round(peak.peak, 2),
            available_gib=round(memory.available(chosen.gpu), 2),
            fits=chosen.fits,
            reserve_gib=round(memory.reserve(chosen.gpu), 2),
            parts={name: round(gib, 2) for name, gib in peak.parts.items()},
        ),
        duration=chosen.duration,
        cost=duration.cost(chosen.flavor, chosen.duration.total_s, timeout_s),
        reasons=why,
        warnings=_warnings(chosen),
        offers=tuple(fit.offer() for fit in fits),
    )


def _slug(model: Model) -> str:
    """A name for repos and projects: the alias, or the last part of a repo id or folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(model.alias).name).strip("-.") or "model"


def _modality(asked: RunSpec, model: Model, reasons: dict[str, str]) -> Modality:
    modality = asked.modality or model.modalities[0]
    if modality not in model.modalities:
        raise RequestError(
            f"--modality {modality}: {model.alias} is a {' and '.join(model.modalities)} model.",
            "`launch models` shows what each model can do.",
        )
    reasons["modality"] = "asked for" if asked.modality else f"what {model.alias} is made for"
    return modality


def _load_in(asked: RunSpec, place: Flavor | None, reasons: dict[str, str]) -> Literal["4bit", "16bit"]:
    if asked.load_in != "auto":
        reasons["load_in"] = "asked for"
        return asked.load_in
    if place and place.gpu is None:
        reasons["load_in"] = "on a CPU; 4-bit weights need a GPU"
        return "16bit"
    reasons["load_in"] = "4-bit weights need a quarter of the memory of 16-bit ones"
    return "4bit"


def _max_length(asked: RunSpec, model: Model, reasons: dict[str, str]) -> int:
    limit = model.arch.max_position
    if asked.max_length is None:
        reasons["max_length"] = f"the default, within the model's {limit}"
        return min(DEFAULT_MAX_LENGTH, limit)
    if asked.max_length > limit:
        raise RequestError(
            f"--max-length {asked.max_length}: {model.alias} was made for at most {limit} tokens.",
            f"Use --max-length {limit} or less.",
        )
    reasons["max_length"] = "asked for"
    return asked.max_length


def _effective_batch(asked: RunSpec, reasons: dict[str, str]) -> int:
    if asked.effective_batch_size:
        reasons["effective_batch_size"] = "asked for"
        return asked.effective_batch_size
    if asked.gradient_accumulation:
        reasons["effective_batch_size"] = "the batch times the accumulation asked for"
        return (asked.batch_size or 1) * asked.gradient_accumulation
    size = asked.batch_size or 1
    rows = size * max(DEFAULT_EFFECTIVE_BATCH // size, 1)
    reasons["effective_batch_size"] = f"{rows} rows per optimizer step: steady gradients for LoRA"
    return rows


def _packing(asked: RunSpec, modality: Modality, reasons: dict[str, str]) -> bool:
    if asked.packing and modality == "vision":
        raise RequestError("--packing: rows with images can't be packed.", "Leave --packing away.")
    reasons["packing"] = "off: a step is as many rows as asked for" if asked.packing is None else "asked for"
    return bool(asked.packing)


def _stop(asked: RunSpec, reasons: dict[str, str]) -> tuple[int | None, float | None]:
    if asked.max_steps is None and asked.num_train_epochs is None:
        reasons["max_steps"] = "the default: enough to see a change, little to pay"
        return DEFAULT_MAX_STEPS, None
    reasons["max_steps"] = "asked for"
    return asked.max_steps, asked.num_train_epochs


def _training_tokens(
    asked: RunSpec, rows: int, max_length: int, packing: bool, steps: int | None, epochs: float | None,
    reasons: dict[str, str],
) -> int:  # fmt: skip
    per_row = max_length if packing else min(max_length, TYPICAL_ROW_TOKENS)
    if steps is not None:
        reasons["duration"] = f"{steps} steps of {rows} rows of about {per_row} tokens, at a share of the card's peak"
        return steps * rows * per_row
    if asked.dataset_rows is None:
        raise RequestError(
            "--num-train-epochs needs the number of rows to say how long the run takes.",
            "Add --dataset-rows N, or use --max-steps.",
        )
    reasons["duration"] = f"{epochs:g} epochs of {asked.dataset_rows} rows of about {per_row} tokens"
    return round((epochs or 1) * asked.dataset_rows * min(max_length, TYPICAL_ROW_TOKENS))


def _micro_batches(asked: RunSpec, rows: int) -> list[int]:
    """The batch sizes to choose among: those that divide a step's rows."""
    if asked.batch_size:
        if rows % asked.batch_size:
            raise RequestError(
                f"--batch-size {asked.batch_size} does not divide --effective-batch-size {rows}.",
                "Choose a batch size that divides the rows of a step.",
            )
        return [asked.batch_size]
    if asked.gradient_accumulation:
        return [max(rows // asked.gradient_accumulation, 1)]
    return [size for size in range(1, min(rows, _LARGEST_BATCH) + 1) if rows % size == 0]


def _place(asked: RunSpec, here: Flavor | None, catalog: Catalog, modality: Modality) -> Flavor | None:
    """The machine that was asked for; none where it is to be chosen."""
    if asked.local:
        assert here is not None, "a local plan needs to know this machine"
        place = here
    elif asked.flavor == "auto":
        return None
    else:
        place = catalog.flavor(asked.flavor)
    if place.gpu is None and modality == "vision":
        name, flag = ("this machine", "--local") if asked.local else (place.name, "--flavor")
        raise RefusedError(
            f"{name} has no GPU, and Unsloth trains vision models on a GPU only.",
            f"Leave {flag} away to have a Job's flavor chosen, or train a text model here.",
        )
    return place


def _flavor(asked: RunSpec, chosen: Fit, reasons: dict[str, str]) -> None:
    if asked.local:
        reasons["flavor"] = f"this machine, on its {chosen.gpu.title if chosen.flavor.num_gpus else 'CPU'}"
        reasons["duration"] = "not estimated: this machine costs nothing"
    elif asked.flavor != "auto":
        reasons["flavor"] = "asked for"
    else:
        minutes = round(chosen.duration.total_s / 60)
        reasons["flavor"] = f"the cheapest run that fits: about ${chosen.usd:.2f} for {minutes} minutes"


def _timeout(asked: RunSpec, total_s: int, reasons: dict[str, str]) -> int:
    if asked.timeout:
        reasons["timeout"] = "asked for"
        return spec.seconds(asked.timeout)
    if asked.local:
        reasons["timeout"] = "nobody pays for this machine by the minute"
        return _LOCAL_TIMEOUT_S
    reasons["timeout"] = (
        f"the expected time x {duration.TIMEOUT_MARGIN:g} and {duration.TIMEOUT_SLACK_S // 60} minutes more, "
        f"never under {duration.TIMEOUT_MIN_S // 60}"
    )
    return duration.timeout(total_s)


def _chat_template(asked: RunSpec, model: Model, catalog: Catalog, reasons: dict[str, str]) -> str | None:
    known = {family.chat_template for family in catalog.families.values()}
    known |= {other.chat_template for other in catalog.models.values() if other.chat_template}
    if asked.chat_template is None:
        return model.chat_template
    if asked.chat_template not in known:
        raise unknown("chat template", asked.chat_template, known)
    reasons["chat_template"] = "asked for"
    return asked.chat_template


def _dataset(asked: RunSpec, modality: Modality, reasons: dict[str, str]) -> str:
    reasons["dataset"] = "asked for" if asked.dataset else f"the default for {modality}"
    return asked.dataset or DEFAULT_DATASET[modality]


def _streaming(asked: RunSpec, modality: Modality, max_steps: int | None, reasons: dict[str, str]) -> bool:
    if asked.streaming is not None:
        reasons["streaming"] = "asked for"
        return asked.streaming
    if asked.dataset is None and modality == "vision" and max_steps is not None:
        reasons["streaming"] = "the default dataset is 11 GB, and the steps read a small part of it"
        return True
    reasons["streaming"] = "the dataset is read whole, and shuffled whole"
    return False


def _image_size(asked: RunSpec, modality: Modality, reasons: dict[str, str]) -> int | None:
    if modality == "text":
        if asked.image_size is not None:
            raise RequestError("--image-size: a text run has no images.", "Leave it away, or use --modality vision.")
        return None
    reasons["image_size"] = "asked for" if asked.image_size else "large enough to read print, small enough to batch"
    return asked.image_size or DEFAULT_IMAGE_SIZE


def _eval_rows(asked: RunSpec, reasons: dict[str, str]) -> int:
    if asked.eval_rows is not None or asked.eval_split is not None:
        reasons["eval_rows"] = "asked for"
        return asked.eval_rows or 0
    reasons["eval_rows"] = "a loss on rows that were not trained on"
    return DEFAULT_EVAL_ROWS


def _output_repo(asked: RunSpec, run_name: str, user: str | None, reasons: dict[str, str]) -> str | None:
    if not asked.push or (asked.local and asked.output_repo is None):
        reasons["output_repo"] = "nothing is pushed"
        return None
    name = asked.output_repo or run_name
    owner = asked.namespace or user
    reasons["output_repo"] = "asked for" if asked.output_repo else "the model, sft and the date"
    return name if "/" in name or owner is None else f"{owner}/{name}"


def _secrets(asked: RunSpec, reasons: dict[str, str]) -> tuple[str, ...]:
    if asked.local and not asked.output_repo:
        return asked.secrets
    reasons["secrets"] = "HF_TOKEN reads the model and the data and pushes the result"
    return tuple(dict.fromkeys(("HF_TOKEN", *asked.secrets)))


def _warnings(chosen: Fit) -> tuple[str, ...]:
    found = []
    if chosen.flavor.num_gpus > 1:
        found.append(f"the script trains on one GPU: {chosen.flavor.num_gpus - 1} of {chosen.flavor.name}'s would idle")
    if chosen.flavor.num_gpus and not chosen.gpu.bf16:
        found.append(f"the {chosen.gpu.title} has no bfloat16: it trains in float16")
    return tuple(found)
