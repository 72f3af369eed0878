"""The decisions that no machine has a part in; each leaves its reason in `why`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from launcher.catalog import Catalog, Flavor, Modality, Model
from launcher.errors import RefusedError, RequestError, unknown
from launcher.estimate.copies import Copies
from launcher.spec import RunSpec, require_apart

Precision = Literal["4bit", "16bit"]

DEFAULT_DATASET = {"text": "trl-lib/Capybara", "vision": "HuggingFaceH4/llava-instruct-mix-vsft"}
DEFAULT_MAX_STEPS = 500
DEFAULT_MAX_LENGTH = 2048
DEFAULT_EVAL_ROWS = 64
DEFAULT_IMAGE_SIZE = 768


def slug(model: Model) -> str:
    """A name for repos and projects: the alias, or the last part of a repo id or folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(model.alias).name).strip("-.") or "model"


def modality(asked: RunSpec, model: Model, why: dict[str, str]) -> Modality:
    """Text or vision; what the model does first where it was not said."""
    chosen = asked.modality or model.modalities[0]
    if chosen not in model.modalities:
        raise RequestError(
            f"--modality {chosen}: {model.alias} is a {' and '.join(model.modalities)} model.",
            "`launch models` shows what each model can do.",
        )
    why["modality"] = "asked for" if asked.modality else f"what {model.alias} is made for"
    return chosen


def place(asked: RunSpec, here: Flavor | None, catalog: Catalog, modality: Modality) -> Flavor | None:
    """The machine that was asked for; none where it is to be chosen."""
    if asked.local:
        assert here is not None, "a local plan needs to know this machine"
        chosen = here
    elif asked.flavor == "auto":
        return None
    else:
        chosen = catalog.flavor(asked.flavor)
    if chosen.gpu is None and modality == "vision":
        name, flag = ("this machine", "--local") if asked.local else (chosen.name, "--flavor")
        raise RefusedError(
            f"{name} has no GPU, and Unsloth trains vision models on a GPU only.",
            f"Leave {flag} away to have a Job's flavor chosen, or train a text model here.",
        )
    if chosen.gpu is None and asked.merge == "4bit":
        raise RefusedError(
            f"--merge 4bit: {'this machine' if asked.local else chosen.name} has no GPU, and 4-bit weights need one.",
            "Use --merge 16bit, or a flavor with a GPU.",
        )
    return chosen


def load_in(asked: RunSpec, model: Model, given: Flavor | None) -> Precision:
    """The precision that is planned first where it was left open: 16 bits on a CPU, else 4.

    Raises `RequestError` for weights that are stored in 4 bits and asked for in 16, or on a CPU, and for a 4-bit merge
    of 16-bit ones.
    """
    if asked.merge == "4bit" and asked.load_in == "16bit":
        raise RequestError(
            "--merge 4bit saves the 4-bit weights that were trained on, and --load-in 16bit trains on others.",
            "Leave --load-in away, or use --merge 16bit.",
        )
    if model.quantized:
        if asked.load_in == "16bit" or (given is not None and given.gpu is None):
            raise RequestError(
                f"{model.alias} is stored in 4 bits, which can't be loaded in 16 and need a GPU.",
                "Use the repo that it was made from.",
            )
        return "4bit"
    if asked.load_in != "auto":
        return asked.load_in
    return "16bit" if given is not None and given.gpu is None else "4bit"


def max_length(asked: RunSpec, model: Model, why: dict[str, str]) -> int:
    """Tokens per row, within what the model was made for."""
    limit = model.arch.max_position
    if asked.max_length is None:
        why["max_length"] = f"the default, within the model's {limit}"
        return min(DEFAULT_MAX_LENGTH, limit)
    if asked.max_length > limit:
        raise RequestError(
            f"--max-length {asked.max_length}: {model.alias} was made for at most {limit} tokens.",
            f"Use --max-length {limit} or less.",
        )
    why["max_length"] = "asked for"
    return asked.max_length


def stop(asked: RunSpec, why: dict[str, str]) -> tuple[int | None, float | None]:
    """Optimizer steps or passes over the dataset: one of them is None."""
    if asked.max_steps is None and asked.num_train_epochs is None:
        why["max_steps"] = "the default: enough to see a change, little to pay"
        return DEFAULT_MAX_STEPS, None
    why["max_steps"] = "asked for"
    return asked.max_steps, asked.num_train_epochs


def chat_template(asked: RunSpec, model: Model, catalog: Catalog, why: dict[str, str]) -> str | None:
    """The template for a model that brings none; `RequestError` for a name that Unsloth does not know."""
    known = {family.chat_template for family in catalog.families.values()}
    known |= {other.chat_template for other in catalog.models.values() if other.chat_template}
    if asked.chat_template is None:
        return model.chat_template
    if asked.chat_template not in known:
        raise unknown("chat template", asked.chat_template, known)
    why["chat_template"] = "asked for"
    return asked.chat_template


def dataset(asked: RunSpec, modality: Modality, why: dict[str, str]) -> str:
    """What is trained on."""
    why["dataset"] = "asked for" if asked.dataset else f"the default for {modality}"
    return asked.dataset or DEFAULT_DATASET[modality]


def streaming(asked: RunSpec, modality: Modality, max_steps: int | None, why: dict[str, str]) -> bool:
    """Whether the dataset is read as a stream."""
    if asked.streaming is not None:
        why["streaming"] = "asked for"
        return asked.streaming
    if asked.dataset is None and modality == "vision" and max_steps is not None:
        why["streaming"] = "the default dataset is 11 GB, and the steps read a small part of it"
        return True
    why["streaming"] = "the dataset is read whole, and shuffled whole"
    return False


def image_size(asked: RunSpec, modality: Modality, why: dict[str, str]) -> int | None:
    """The longest side of a picture in pixels; None for text."""
    if modality == "text":
        if asked.image_size is not None:
            raise RequestError("--image-size: a text run has no images.", "Leave it away, or use --modality vision.")
        return None
    why["image_size"] = "asked for" if asked.image_size else "large enough to read print, small enough to batch"
    return asked.image_size or DEFAULT_IMAGE_SIZE


def eval_rows(asked: RunSpec, why: dict[str, str]) -> int:
    """Rows held out for evaluation, or used of the evaluation split (0: all of it, or none held out)."""
    if asked.eval_rows is not None or asked.eval_split is not None:
        why["eval_rows"] = "asked for"
        return asked.eval_rows or 0
    why["eval_rows"] = "a loss on rows that were not trained on"
    return DEFAULT_EVAL_ROWS


def output_repo(asked: RunSpec, run_name: str, user: str | None, why: dict[str, str]) -> str | None:
    """Where the result is pushed; None where nothing is."""
    if not asked.push or (asked.local and asked.output_repo is None):
        why["output_repo"] = "nothing is pushed"
        return None
    name = asked.output_repo or run_name
    owner = asked.namespace or user
    why["output_repo"] = "asked for" if asked.output_repo else "the model, sft and the date"
    return name if "/" in name or owner is None else f"{owner}/{name}"


def copies(asked: RunSpec) -> Copies:
    """What is made of the model once it is trained."""
    pushed = asked.push and not (asked.local and asked.output_repo is None and asked.merged_repo is None)
    return Copies(asked.merge, asked.gguf, pushed=pushed, volume=not asked.local)


def require_convertible(model: Model, gguf: tuple[str, ...], catalog: Catalog) -> None:
    """Raise `RefusedError` for GGUF files of what llama.cpp can't convert, as far as the catalog knows."""
    family = next(
        (one for one in catalog.families.values() if one.model_type == model.model_type and not one.gguf), None
    )
    if gguf and family:
        raise RefusedError(
            f"--gguf {gguf[0]}: llama.cpp can't convert {model.alias}, a {family.title} ({family.model_type}) model.",
            "Leave --gguf away; --merge 16bit works.",
        )


def merged_repo(asked: RunSpec, output: str | None, user: str | None, why: dict[str, str]) -> str | None:
    """Where the merged copy is pushed; None where it goes into the `output` repo, or nowhere."""
    if asked.merged_repo is None:
        return None
    why["merged_repo"] = "asked for"
    owner = asked.namespace or user
    merged = asked.merged_repo if "/" in asked.merged_repo or owner is None else f"{owner}/{asked.merged_repo}"
    require_apart(merged, output)
    return merged


def secrets(asked: RunSpec, why: dict[str, str]) -> tuple[str, ...]:
    """Names of the secrets that the Job gets."""
    if asked.local and not asked.output_repo and not asked.merged_repo:
        return asked.secrets
    why["secrets"] = "HF_TOKEN reads the model and the data and pushes the result"
    return tuple(dict.fromkeys(("HF_TOKEN", *asked.secrets)))
