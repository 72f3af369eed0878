"""The decisions that no machine has a part in."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path
from typing import Literal

from launcher.catalog import Catalog, Flavor, Modality, Model
from launcher.errors import RefusedError, RequestError, unknown
from launcher.estimate.copies import Copies
from launcher.plan.record import ASKED, Decision
from launcher.spec import RunSpec, path_of, require_apart

Precision = Literal["4bit", "16bit"]

DEFAULT_DATASET = {"text": "trl-lib/Capybara", "vision": "HuggingFaceH4/llava-instruct-mix-vsft"}
DEFAULT_MAX_STEPS = 500
DEFAULT_MOST_PASSES = 3
DEFAULT_EFFECTIVE_BATCH = 16
DEFAULT_MAX_LENGTH = 2048
DEFAULT_EVAL_ROWS, DEFAULT_EVAL_SHARE = 64, 10
DEFAULT_IMAGE_SIZE = 768
# Of the 96 characters that the name of a repo may have.
_SLUG = 70


def slug(model: Model) -> str:
    """A name for repos and projects: the alias, or the last part of a repo id or folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(model.alias).name).strip("-.") or "model"


def modality(asked: RunSpec, model: Model) -> Decision[Modality]:
    """Text or vision; what the model does first where it was not said."""
    chosen = asked.modality or model.modalities[0]
    if chosen not in model.modalities:
        raise RequestError(
            f"--modality {chosen}: {model.alias} is a {' and '.join(model.modalities)} model.",
            "`launch models` shows what each model can do.",
        )
    return Decision(chosen, ASKED if asked.modality else f"what {model.alias} is made for")


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


def max_length(asked: RunSpec, model: Model) -> Decision[int]:
    """Tokens per row, within what the model was made for."""
    limit = model.arch.max_position
    if asked.max_length is None:
        return Decision(min(DEFAULT_MAX_LENGTH, limit), f"the default, within the model's {limit}")
    if asked.max_length > limit:
        raise RequestError(
            f"--max-length {asked.max_length}: {model.alias} was made for at most {limit} tokens.",
            f"Use --max-length {limit} or less.",
        )
    return Decision(asked.max_length, ASKED)


def stop(asked: RunSpec, rows: int | None, per_step: int) -> tuple[Decision[int | None], Decision[float | None]]:
    """Optimizer steps, or passes over the dataset: the one is None where the other says when it ends.

    `rows` are those of the dataset, where they are known.
    """
    if asked.max_steps or asked.num_train_epochs:
        return Decision(asked.max_steps, ASKED), Decision(asked.num_train_epochs)
    if asked.dataset and rows:
        passes = max(min(DEFAULT_MAX_STEPS * per_step // rows, DEFAULT_MOST_PASSES), 1)
        most = f"as many passes as {DEFAULT_MAX_STEPS} steps make, {DEFAULT_MOST_PASSES} at most and one at least"
        return Decision(None, f"the default for {rows} rows: {most}"), Decision(float(passes))
    unknown = "; where its rows are known it is passes over them" if asked.dataset else ""
    reason = f"the default: enough to see a change, little to pay{unknown}"
    return Decision(DEFAULT_MAX_STEPS, reason), Decision(None)


def effective_batch_size(asked: RunSpec) -> Decision[int]:
    """Rows of the dataset per optimizer step."""
    if asked.effective_batch_size:
        return Decision(asked.effective_batch_size, ASKED)
    if asked.batch_size and asked.gradient_accumulation:
        return Decision(asked.batch_size * asked.gradient_accumulation, "the batch times the accumulation asked for")
    unit = asked.batch_size or asked.gradient_accumulation or 1
    rows = unit * max(DEFAULT_EFFECTIVE_BATCH // unit, 1)
    return Decision(rows, f"{rows} rows per optimizer step: steady gradients for LoRA")


def lora_alpha(asked: RunSpec) -> Decision[int]:
    """The adapter's scale."""
    return Decision(asked.lora_alpha, ASKED) if asked.lora_alpha else Decision(asked.lora_r, "as the rank")


def chat_template(asked: RunSpec, model: Model, catalog: Catalog) -> Decision[str | None]:
    """The template for a model that brings none; `RequestError` for a name that Unsloth does not know."""
    known = {family.chat_template for family in catalog.families.values()}
    known |= {other.chat_template for other in catalog.models.values() if other.chat_template}
    if asked.chat_template is None:
        return Decision(model.chat_template, "the model brings none" if model.chat_template else "the model's own")
    if asked.chat_template not in known:
        raise unknown("chat template", asked.chat_template, known)
    return Decision(asked.chat_template, ASKED)


def dataset(asked: RunSpec, modality: Modality) -> Decision[str]:
    """What is trained on."""
    if asked.dataset:
        return Decision(asked.dataset, ASKED)
    return Decision(DEFAULT_DATASET[modality], f"the default for {modality}")


def namesakes(asked: RunSpec) -> tuple[str, ...]:
    """What lies here under the name of a repo that was asked for, and is not meant by it."""
    named = {"model": asked.model, "dataset": asked.dataset or ""}
    return tuple(
        f"--{option} {name} is the Hub's: the one that lies here is ./{name}"
        for option, name in named.items()
        if name and path_of(name) is None and Path(name).exists()
    )


def streaming(asked: RunSpec, modality: Modality, max_steps: int | None) -> Decision[bool]:
    """Whether the dataset is read as a stream."""
    if asked.streaming is not None:
        return Decision(asked.streaming, ASKED)
    if asked.dataset is None and modality == "vision" and max_steps is not None:
        return Decision(True, "the default dataset is 11 GB, and the steps read a small part of it")
    return Decision(False, "the dataset is read whole, and shuffled whole")


def image_size(asked: RunSpec, modality: Modality) -> Decision[int | None]:
    """The longest side of a picture in pixels; None for text."""
    if modality == "text":
        if asked.image_size is not None:
            raise RequestError("--image-size: a text run has no images.", "Leave it away, or use --modality vision.")
        return Decision(None)
    if asked.image_size:
        return Decision(asked.image_size, ASKED)
    return Decision(DEFAULT_IMAGE_SIZE, "large enough to read print, small enough to batch")


def eval_rows(asked: RunSpec, rows: int | None) -> Decision[int | None]:
    """Rows held out for evaluation, or used of the evaluation split (0: all of it, or none held out).

    None where nobody knows how many there are: the script, which does then, holds out as many as this would.
    """
    if asked.eval_rows is not None or asked.eval_split is not None:
        return Decision(asked.eval_rows or 0, ASKED)
    most = "a loss on rows not trained on; a tenth at most"
    if rows is None:
        return Decision(None, most)
    held_out = min(DEFAULT_EVAL_ROWS, rows // DEFAULT_EVAL_SHARE)
    return Decision(held_out, most if held_out else f"{rows} rows are too few to hold any out")


def run_name(asked: RunSpec, model: Model, today: date, unique: str | None) -> Decision[str]:
    """What the run is called; `unique` tells it from the others of its day, where it is to be submitted."""
    if asked.run_name:
        return Decision(asked.run_name, ASKED)
    name = f"{slug(model)[:_SLUG].rstrip('-.')}-sft-{today:%Y%m%d}"
    if unique is None:
        return Decision(name, "the model, sft and the date; a submission adds what no other has")
    return Decision(f"{name}-{unique}", "the model, sft, the date and what no other has")


def output_repo(asked: RunSpec, run_name: Decision[str], user: str | None) -> Decision[str | None]:
    """Where the result is pushed; None where nothing is."""
    if not asked.push or (asked.local and asked.output_repo is None):
        return Decision(None, "nothing is pushed")
    reason = ASKED if asked.output_repo else "the run's name" if asked.run_name else run_name.reason
    return Decision(owned(asked.output_repo or run_name.value, asked.namespace or user), reason)


def private(asked: RunSpec, pushed: bool, data_is_private: bool) -> Decision[bool]:
    """Whether a new repo is made private: where it was not said, for what was learned from data that others can't see.

    A file of this machine is such data, and a private dataset of the Hub.
    """
    if asked.private is not None:
        return Decision(asked.private, ASKED)
    here = asked.dataset is not None and path_of(asked.dataset) is not None
    if not pushed or not (here or data_is_private):
        return Decision(False)
    whose = "from this machine" if here else "private"
    return Decision(True, f"the data is {whose}; --no-private publishes what is learned from it")


def owned(name: str, owner: str | None) -> str:
    """The name of a repo with its owner's before it, where that is known and not said."""
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


def merged_repo(asked: RunSpec, output: str | None, user: str | None) -> Decision[str | None]:
    """Where the merged copy is pushed; None where it goes into the `output` repo, or nowhere."""
    if asked.merged_repo is None:
        return Decision(None)
    merged = owned(asked.merged_repo, asked.namespace or user)
    require_apart(merged, output)
    return Decision(merged, ASKED)


def trackio_project(asked: RunSpec, model: Model) -> Decision[str]:
    """Where the metrics are gathered."""
    return Decision(asked.trackio_project, ASKED) if asked.trackio_project else Decision(slug(model), "the model")


def namespace(asked: RunSpec) -> Decision[str | None]:
    """Who pays; None for the user."""
    return Decision(asked.namespace, ASKED if asked.namespace else "")


def secrets(asked: RunSpec) -> Decision[tuple[str, ...]]:
    """Names of the secrets that the Job gets."""
    if asked.local and not asked.output_repo and not asked.merged_repo:
        return Decision(asked.secrets)
    names = tuple(dict.fromkeys(("HF_TOKEN", *asked.secrets)))
    return Decision(names, "HF_TOKEN reads the model and the data and pushes the result")


def attempts(asked: RunSpec) -> Decision[int]:
    """How often a failed Job is started."""
    again = "a failed Job starts again from its last checkpoint, all within the one timeout"
    return Decision(asked.attempts, "" if asked.local else again)
