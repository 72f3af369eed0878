# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = [
#   "unsloth==2026.10.9",
#   "unsloth_zoo==2026.10.9",
#   "trl==1.15.0",
#   "transformers==5.17.0",
#   "datasets==4.8.5",
#   "peft==0.21.2",
#   "trackio==0.43.0",
#   "matplotlib==3.11.2",
# ]
#
# [tool.uv]
# exclude-newer = "2026-11-20T00:00:00Z"
# override-dependencies = ["certifi>=2026.1"]
#
# [tool.hf-jobs]
# flavor = "a10g-large"
# timeout = "20100s"
# secrets = ["HF_TOKEN"]
# ///
"""Fine-tune a vision-language model with LoRA on chats with images (Unsloth, one GPU).

The run below, here on a machine with a GPU, and on Hugging Face Jobs on the machine that the header above names:
    uv run sft_vlm.py
    hf jobs uv run sft_vlm.py

Another one, by any of the options below as flags; nothing is pushed without --output-repo:
    uv run sft_vlm.py --dataset USER/ROWS --max-steps 500 --output-repo USER/MODEL

Rows hold `messages`, and their pictures in `images` (or one in `image`), or inside the messages' parts. A placeholder,
`{"type": "image"}` or `<image>` in a text, says where a picture is shown. The loss counts the assistant's tokens only.
The last line printed is `RESULT {json}`.
"""

from __future__ import annotations

import argparse
import base64
import csv
import faulthandler
import fcntl
import gc
import hashlib
import io
import json
import math
import os
import platform
import random
import re
import select
import shlex
import shutil
import signal
import stat
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from importlib.metadata import distributions, version
from itertools import chain, groupby, islice, pairwise
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints


# fmt: off
@dataclass(frozen=True, kw_only=True)
class Options:
    """What was chosen for this run; each is the default of the flag of its name (`--help`)."""

    model: Annotated[str, "Alias (`launch models`), Hub repo id or local folder."] = "unsloth/Qwen3-VL-8B-Instruct"
    revision: Annotated[str | None, "Branch, tag or commit of the model."] = None
    load_in: Annotated[Literal["4bit", "16bit"], "Precision of the frozen weights."] = "4bit"
    trust_remote_code: Annotated[bool, "Run the Python of the model's repo; only with --revision as a whole commit hash."] = False
    chat_template: Annotated[str | None, "Unsloth template name, for models that bring none."] = "qwen3-instruct"
    dataset: Annotated[str, "Hub dataset, or a json, jsonl, csv or parquet file."] = "HuggingFaceH4/llava-instruct-mix-vsft"
    dataset_config: Annotated[str | None, "Configuration (subset) of the dataset."] = None
    dataset_split: Annotated[str, "Split to train on."] = "train"
    dataset_revision: Annotated[str | None, "Branch, tag or commit of the dataset."] = None
    eval_split: Annotated[str | None, "Split to evaluate on."] = None
    eval_rows: Annotated[int | None, "Rows held out for evaluation (0: none; else 64, at most a tenth)."] = None
    streaming: Annotated[bool, "Read the dataset as a stream; needs --max-steps."] = True
    train_on: Annotated[Literal["assistant", "all"], "Tokens that count in the loss."] = "assistant"
    image_size: Annotated[int, "Longest side of an image in pixels; larger ones are shrunk."] = 768
    max_steps: Annotated[int | None, "Optimizer steps."] = 500
    num_train_epochs: Annotated[float | None, "Passes over the dataset."] = None
    max_length: Annotated[int, "Tokens per row; longer rows are cut."] = 2048
    batch_size: Annotated[int, "Rows per GPU and forward pass."] = 2
    gradient_accumulation: Annotated[int, "Forward passes per optimizer step."] = 8
    learning_rate: Annotated[float, "Peak learning rate."] = 0.0002
    lr_scheduler_type: Annotated[Literal["linear", "cosine", "constant", "constant_with_warmup"], "Learning-rate schedule."] = "linear"
    warmup_ratio: Annotated[float, "Share of the steps spent warming up."] = 0.03
    weight_decay: Annotated[float, "Weight decay."] = 0.01
    optim: Annotated[Literal["adamw_8bit", "adamw_torch", "paged_adamw_8bit"], "Optimizer."] = "adamw_8bit"
    seed: Annotated[int, "Seed of the data order and the adapter."] = 3407
    logging_steps: Annotated[int, "Steps between two loss lines."] = 1
    eval_steps: Annotated[int | None, "Steps between evaluations (else only at the end)."] = None
    checkpoint_minutes: Annotated[float, "Minutes between two checkpoints (0: none)."] = 10.0
    lora_r: Annotated[int, "Rank."] = 16
    lora_alpha: Annotated[int, "Scale; the rank where not given."] = 16
    lora_dropout: Annotated[float, "Dropout."] = 0.0
    finetune_vision_layers: Annotated[bool, "Vision models: adapt the layers that see."] = True
    finetune_language_layers: Annotated[bool, "Vision models: adapt the language model."] = True
    finetune_attention_modules: Annotated[bool, "Vision models: adapt the attention."] = True
    finetune_mlp_modules: Annotated[bool, "Vision models: adapt the MLPs."] = True
    output_repo: Annotated[str | None, "Where the result is pushed, NAME or NAMESPACE/NAME."] = None
    private: Annotated[bool, "Create the output repo as private; so it is where the data is from here, or private."] = False
    merge: Annotated[Literal["16bit", "4bit"] | None, "Merge the adapter into the model, as a copy of its own."] = None
    merged_repo: Annotated[str | None, "Where the merged model is pushed (else merged/ in the repo)."] = None
    gguf: Annotated[tuple[Literal["f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k"], ...], "Export as a GGUF file of that type, such as q4_k_m; may be repeated."] = ()
    run_name: Annotated[str, "Name of the run."] = "qwen3-vl-8b-sft"
    sample_rows: Annotated[int, "Evaluation rows answered before and after training."] = 0
    trackio_project: Annotated[str | None, "Trackio project."] = "qwen3-vl-8b"
    trackio_space: Annotated[str | None, "Space that shows the metrics, USER/NAME."] = None
    output_dir: Annotated[str | None, "Else output/ on the Job's volume, or outputs/RUN_NAME."] = None
    resume: Annotated[Literal["auto", "never"], "never: start over, checkpoints are removed."] = "auto"
    timeout_s: Annotated[int, "Seconds until the Job is killed (0: never)."] = 20100
    device: Annotated[Literal["auto", "cpu"], "cpu: without a GPU."] = "auto"


# What was planned for these options, how the model's makers sample it and where they say so, and its licence.
PLANNED: dict[str, Any] = {
    "peak_gib": 8.33,
    "compile_s": 130,
    "generation": {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.0, "presence_penalty": 1.5},
    "generation_source": "https://huggingface.co/Qwen/Qwen3-VL-8B-Instruct#generation-hyperparameters",
    "licence": {"license": "apache-2.0"},
}
# fmt: on


def main(args: Options) -> Run | None:
    run = begin(args, PLANNED)
    if run is None:
        return None
    args = run.args

    # ---- Load --------------------------------------------------------------------------------------------------------

    phase("load model")
    on_gpu = find_gpu(args)
    check_model(args.model, args.revision, args.trust_remote_code)
    if args.output_repo:
        run.output_repo = open_repo(args.output_repo, args.private)
    check_copies(args, run.output_repo)
    # Unsloth goes first: it patches the libraries that are imported after it.
    from unsloth import FastVisionModel
    from unsloth.chat_templates import get_chat_template  # isort: skip
    from transformers import PrinterCallback, TrainerCallback
    from trl import SFTTrainer

    model, processor = FastVisionModel.from_pretrained(
        args.model,
        revision=args.revision,
        max_seq_length=args.max_length,
        load_in_4bit=args.load_in == "4bit",
        use_gradient_checkpointing="unsloth",
        # This repo and no other: Unsloth would rather load a 4-bit copy, of another size, and at no revision.
        use_exact_model_name=True,
        trust_remote_code=args.trust_remote_code,
    )
    if not processor.chat_template and args.chat_template:
        processor = get_chat_template(processor, args.chat_template)
    require_template(processor, args.model)

    # ---- Adapt -------------------------------------------------------------------------------------------------------

    phase("add adapter")
    model = FastVisionModel.get_peft_model(
        model,
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        finetune_vision_layers=args.finetune_vision_layers,
        finetune_language_layers=args.finetune_language_layers,
        finetune_attention_modules=args.finetune_attention_modules,
        finetune_mlp_modules=args.finetune_mlp_modules,
        use_gradient_checkpointing="unsloth",
        random_state=args.seed,
    )
    check_disk(run.output_dir, model, args.optim if on_gpu else "adamw_torch")

    # ---- Data --------------------------------------------------------------------------------------------------------

    phase("prepare data")
    train_data, eval_data = read_rows(args, pictures=True)
    columns = list(next(iter(train_data), {}))
    reader = Reader(processor, columns, args)
    mask = find_mask(processor) if args.train_on == "assistant" else None
    size = "streamed" if args.streaming else f"{len(train_data)} to train on"
    note(f"rows of {' and '.join(reader.shape)}, {size}")
    for rows in (train_data, eval_data):
        if rows is not None and not args.streaming:
            check_rows(rows, reader)

    class Trainer(Careful, SFTTrainer):
        pass

    class Watch(Guard, TrainerCallback):
        pass

    # Rows become batches in the collator.
    own = {"remove_unused_columns": False, "dataset_text_field": "", "dataset_kwargs": {"skip_prepare_dataset": True}}
    trainer = Trainer(
        model,
        make_config(run, on_gpu, eval_data is not None, **own),
        data_collator=make_collator(model, reader, args, mask),
        train_dataset=train_data,
        eval_dataset=eval_data,
        processing_class=processor,
    )
    trainer.remove_callback(PrinterCallback)
    phase("check labels")
    FastVisionModel.for_training(model)
    check_labels(trainer, processor.tokenizer, reader.stop, masked_wanted=mask is not None)

    # ---- Train -------------------------------------------------------------------------------------------------------

    asked = [reader.messages(row) for row in islice(eval_data or [], args.sample_rows)]

    def reply(messages: list[Any]) -> str:
        return answer(model, processor, messages[:-1], reader.stop)

    guard = Watch(run, trainer, FastVisionModel, asked, reply)
    open_tracker(run)
    trainer.add_callback(guard)
    run.ready()
    # Unless an earlier attempt did.
    guard.before = guard.before or guard.look(evaluates=eval_data is not None)
    phase("train")
    guard.train()

    # ---- Save --------------------------------------------------------------------------------------------------------

    # Before anything else that may fail.
    if trainer.state.global_step:
        phase("save")
        # What loads the adapter by its record gets the very model that it was trained on.
        model.peft_config["default"].revision = args.revision
        settings = generation_of(model.generation_config, recommended(args, PLANNED), reader.stop)
        model.get_base_model().generation_config = settings
        run.saved = save(run.output_dir, model, processor, settings)
        note(f"saved in {run.output_dir}")
    guard.after = guard.look(evaluates=eval_data is not None)
    run.describe(guard, words, train_data, eval_data)

    # ---- Push --------------------------------------------------------------------------------------------------------

    run.push()
    return run


# ---- Say -------------------------------------------------------------------------------------------------------------
# Lines for whoever follows the run, and errors that say what to do next.

# Given by whoever started this, and known to no row: a line that ends with it is the script's own.
MARK = f" #{os.environ['LAUNCH_MARK']}" if os.environ.get("LAUNCH_MARK") else ""


class UserError(Exception):
    """What is wrong and what to do next: shown as one paragraph, without a traceback."""

    def __init__(self, message: str, hint: str = "", status: int = 1) -> None:
        super().__init__(message, hint, status)
        self.paragraph, self.status = f"{message} {hint}".strip(), status

    def tell(self) -> None:
        tell(f"error: {self.paragraph}", sys.stderr)


def tell(line: str, stream: Any = None) -> None:
    """Say one line, whatever it quotes, to whoever follows the run."""
    print(re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", line) + MARK, file=stream, flush=True)


def heard(line: str) -> str | None:
    """What such a line says; none for any other."""
    return line.removesuffix(MARK) if line.endswith(MARK) else None


def phase(name: str) -> None:
    tell(f"== {name}")


def note(text: str) -> None:
    """Say what is for people only."""
    print(text, flush=True)


def reason(error: BaseException) -> str:
    """The first line of what a library says, which often goes on for pages."""
    said = error.args[0] if isinstance(error, UserError) else str(error)
    # The Hub's client begins with the number of its request.
    lines = [line.strip(" .") for line in said.splitlines() if line.strip() and not line.startswith("(Request ID")]
    return lines[0] if lines else type(error).__name__


def finite(value: Any) -> Any:
    """The value as JSON has it, with null for what is no number there."""
    return json.loads(json.dumps(value), parse_constant=lambda _: None, parse_float=lambda text: round(float(text), 6))


# ---- Chat ------------------------------------------------------------------------------------------------------------
# Chats: the shapes that rows may have, and what the chat template makes of them.

Message = dict[str, Any]
ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}
SHAPES = [("messages",), ("conversations",), ("prompt", "completion"), ("instruction", "output"),
          ("instruction", "response"), ("question", "answer")]  # fmt: skip
# Of rows to compare two answers by: there is nothing among them that says which one is to be learned.
PREFERENCES = {"chosen", "rejected"}
# Characters of a value that an error repeats.
QUOTED = 60


def find_shape(columns: Sequence[str], shapes: Sequence[tuple[str, ...]] = SHAPES) -> tuple[str, ...]:
    """Which of the shapes a row with these columns has, as the names of the columns it uses."""
    for shape in shapes:
        if set(shape) <= set(columns):
            return shape
    own = sorted({*columns} - {"row_number"})
    hint = f"Rows need {'; or '.join(' and '.join(shape) for shape in shapes)}."
    if set(columns) >= PREFERENCES:
        hint = f"These are preferences, which this does not train on: take `chosen` as the messages. {hint}"
    raise UserError(f"no usable column among {', '.join(own) or 'none'}.", hint, status=2)


def bad_row(number: int, problem: str, hint: str = "Mend or remove the row.") -> UserError:
    """The error of one row, which is the same in every attempt."""
    return UserError(f"row {number}: {problem}.", hint, status=2)


def shown(value: Any) -> str:
    """A value as an error repeats it, with what it is."""
    kinds = {
        bool: "a truth value",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    if value is None:
        return "nothing"
    said = repr(value)
    return f"{kinds.get(type(value), 'of another kind')} ({said if len(said) <= QUOTED else f'{said[:QUOTED]}…'})"


def one_side(row: dict[str, Any], column: str, role: str, number: int) -> list[Any]:
    """The messages of one side of a pair, which may be a text or a list of messages already."""
    value = row[column]
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if value is not None and not isinstance(value, list):
        raise bad_row(number, f"{column} is {shown(value)}, not a text")
    return list(value or [])


def turns(row: dict[str, Any], shape: tuple[str, ...], number: int) -> list[tuple[str, Any]]:
    """The row's roles and contents up to its last answer; an error names the row and what is wrong with it."""
    if len(shape) == 1:
        found = row[shape[0]]
        if not isinstance(found, list) or not found:
            raise bad_row(number, f"{shape[0]} is not a list of messages but {shown(found)}")
    else:
        found = one_side(row, shape[0], "user", number)
        if isinstance(row[shape[0]], str) and row.get("input"):
            found[0]["content"] = f"{row[shape[0]]}\n\n{row['input']}"
        found += one_side(row, shape[1], "assistant", number)
    said = []
    for turn in found:
        if not isinstance(turn, dict):
            raise bad_row(number, f"a message is not a role with a content but {shown(turn)}")
        role, content = turn.get("role") or turn.get("from"), turn.get("content") or turn.get("value")
        role = ROLES.get(str(role), role)
        if role not in ("system", "user", "assistant", "tool"):
            raise bad_row(number, f"unknown role {role!r}", "Use system, user, assistant or tool.")
        if role == "system" and not content:
            continue
        if not content or (isinstance(content, str) and not content.strip()):
            raise bad_row(number, f"the {role}'s message is empty")
        if not isinstance(content, list | str):
            raise bad_row(number, f"the {role}'s message is {shown(content)}, not a text")
        for part in content if isinstance(content, list) else ():
            if not isinstance(part, dict) or not isinstance(part.get("text"), str | None):
                raise bad_row(number, f"a part of the {role}'s message is {shown(part)}, and has no type with a text")
        said.append((role, content))
    # What follows the last answer can't be learned from.
    while said and said[-1][0] != "assistant":
        said.pop()
    if len(said) < 2:
        raise bad_row(number, "no message of the assistant answers another")
    return said


def fold_system(messages: list[Message], said: Callable[[str], Any]) -> list[Message]:
    """The system message at the head of the first user's, for chat templates that do not take one."""
    if messages[0]["role"] != "system" or messages[1]["role"] != "user":
        return messages
    system, user, *rest = messages
    return [{"role": "user", "content": system["content"] + said("\n\n") + user["content"]}, *rest]


def takes_system(processor: Any, said: Callable[[str], Any], shown: Any = "Hi") -> bool:
    """Whether the chat template shows a system message: some refuse it, some drop it from a finished chat."""
    from jinja2 import TemplateError

    contents = {"system": said("PROBE"), "user": shown, "assistant": said("ANSWER")}
    probe = [{"role": role, "content": content} for role, content in contents.items()]
    try:
        return "PROBE" in processor.apply_chat_template(probe, tokenize=False)
    except TemplateError:
        return False


def end_of_turn(processor: Any, tokenizer: Any, said: Callable[[str], Any]) -> int:
    """The id of the token that ends an answer in this chat template."""
    probe = [{"role": "user", "content": said("Hi")}, {"role": "assistant", "content": said("ANSWER")}]
    tail = processor.apply_chat_template(probe, tokenize=False).rpartition("ANSWER")[2]
    ids = tokenizer(tail, add_special_tokens=False).input_ids
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    stop = next((id for id in ids if id in special), tokenizer.eos_token_id)
    if stop is None:
        hint = "Set eos_token in its tokenizer_config.json, or use the instruct model."
        raise UserError("the tokenizer has no token that ends a text.", hint, status=2)
    return int(stop)


# ---- Chat vision -----------------------------------------------------------------------------------------------------
# Chats with pictures: rows as messages, each picture in its place, and batches that fit the model's limit.


def said(text: str) -> list[dict[str, Any]]:
    """A message's content that is only this text."""
    return [{"type": "text", "text": text}]


def attached(row: dict[str, Any]) -> list[Any]:
    """The pictures of a row's own column, however many there are."""
    found = row.get("images") if row.get("images") is not None else row.get("image")
    return found if isinstance(found, list) else [] if found is None else [found]


def conversation(row: dict[str, Any], shape: tuple[str, ...], pictures: list[Any], fold: bool = False) -> list[Message]:
    """The row as messages made of parts, each picture in its place; `fold` puts the system's into the first user's."""
    number, messages = row["row_number"], list[Message]()
    for role, content in turns(row, shape, number):
        if isinstance(content, str):
            texts = content.split("<image>")
            content = [{"type": "text", "text": texts[0]}]
            for text in texts[1:]:
                content += [{"type": "image"}, {"type": "text", "text": text}]
        parts = [part for part in (one_part(part, role, number) for part in content) if part]
        if not parts:
            raise bad_row(number, f"the {role}'s message is empty")
        if role == "assistant" and any(part["type"] == "image" for part in parts):
            # No model here answers with pictures: the batch would fail in the forward pass.
            raise bad_row(number, "a picture stands in the assistant's message", "Put it into a user's message.")
        messages.append({"role": role, "content": parts})
    places = images_of(messages)
    if pictures and not places:
        places = [{"type": "image"} for _ in pictures]
        first = next(message for message in messages if message["role"] == "user")
        first["content"] = [*places, *first["content"]]
    waiting = [part for part in places if "image" not in part]
    if len(waiting) != len(pictures):
        hint = "Each picture needs one placeholder, in order, or none of them has any."
        raise bad_row(number, f"{len(pictures)} images for {len(waiting)} placeholders", hint)
    for part, picture in zip(waiting, pictures, strict=True):
        part["image"] = picture
    return fold_system(messages, said) if fold else messages


def one_part(part: Any, role: str, number: int) -> dict[str, Any] | None:
    """A text or an image part without the empty fields that tables fill in; nothing for an empty text."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        return {"type": "text", "text": part["text"].strip("\n")} if (part.get("text") or "").strip() else None
    if kind in ("image", "image_url"):
        source = next((part[key] for key in ("image", "image_url", "url", "path", "bytes") if part.get(key)), None)
        if isinstance(source, dict) and source.get("url"):
            source = source["url"]
        return {"type": "image"} if source is None else {"type": "image", "image": source}
    raise bad_row(number, f"the {role}'s message holds a part of type {kind!r}", "Use text and image.")


def open_picture(source: Any, place: Path | str, longest: int, number: int) -> Any:
    """A picture as RGB, at most `longest` pixels on its longer side, from a PIL image, bytes, a path or a URL.

    `place` is the folder of a dataset of this machine, or the name of the Hub's.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        picture = ImageOps.exif_transpose(find_picture(source, place)).convert("RGB")
    except (OSError, ValueError, TypeError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        # A file that is broken in the middle is a SyntaxError to some of Pillow's readers.
        said = "it is no picture" if isinstance(error, UnidentifiedImageError) else reason(error)[:200]
        raise bad_row(number, f"an image can't be read ({said})") from error
    picture.thumbnail((longest, longest))
    return picture


def find_picture(source: Any, place: Path | str) -> Any:
    """The picture as Pillow opens it, wherever it is."""
    from PIL import Image

    if isinstance(source, dict):
        source = source.get("bytes") or source.get("path")
    if isinstance(source, str) and source.startswith("data:"):
        source = base64.b64decode(source.partition(",")[2], validate=True)
    if not source:
        raise ValueError("it is empty")
    if isinstance(source, bytes):
        return Image.open(io.BytesIO(source))
    if not isinstance(source, str):
        return source
    if source.startswith(("http://", "https://")):
        from httpx import HTTPError, InvalidURL
        from transformers.image_utils import load_image

        try:
            return load_image(source)
        except (HTTPError, InvalidURL) as error:
            raise ValueError(f"{source[:100]}: {reason(error)}") from error
    if re.match(r"(hf|zip|tar|gzip)://", source):
        import fsspec

        # A file in the dataset's repo or in an archive, as streams name them: in one, and not beyond it.
        inside, _, archive = source.rpartition("::")
        if "::" in inside:
            raise ValueError(f"{source} is in an archive of an archive")
        if not archive.startswith(("https://", f"hf://datasets/{place}@")):
            own_file(place, re.sub(r"^\w+://", "", archive))
        with fsspec.open(source) as file:
            return Image.open(io.BytesIO(file.read()))
    return Image.open(own_file(place, source))


def own_file(place: Path | str, name: str) -> Path:
    """A file that a row names: beside a dataset of this machine; of a Hub's only one that was downloaded of it."""
    if isinstance(place, Path):
        return place / name
    from datasets import config
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    # Archives are unpacked into the other.
    own = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=place, repo_type="dataset"))
    path = Path(name).resolve()
    if any(path.is_relative_to(Path(cache).resolve()) for cache in (config.HF_DATASETS_CACHE, own)):
        return path
    raise ValueError(f"a Hub dataset names {name}, a file of this machine")


def images_of(messages: list[Message]) -> list[dict[str, Any]]:
    return [part for message in messages for part in message["content"] if part["type"] == "image"]


def words(message: Message) -> str:
    return " ".join(part.get("text", "<image>") for part in message["content"])


def data_place(args: Any) -> Path | str:
    """What paths in a local dataset are relative to; the name of a dataset of the Hub."""
    path = Path(args.dataset).expanduser()
    return path.parent if path.is_file() else path if path.is_dir() else str(args.dataset)


def require_template(processor: Any, model: str) -> None:
    """Refuse a model that has no chat template."""
    if not processor.chat_template:
        raise UserError(f"{model} has no chat template.", "Add --chat-template NAME (gemma-3, llama-3.2, …).", status=2)


class Reader:
    """Makes messages of a row, by the columns that the rows have and what the chat template takes."""

    def __init__(self, processor: Any, columns: list[str], args: Any) -> None:
        self.processor, self.shape = processor, find_shape(columns)
        self.stop = end_of_turn(processor, processor.tokenizer, said)
        self.fold = not takes_system(processor, said, [{"type": "image"}, *said("Hi")])
        self.place, self.longest = data_place(args), args.image_size

    def messages(self, row: dict[str, Any]) -> list[Message]:
        """The row as messages whose image parts hold their pictures."""
        messages = conversation(row, self.shape, attached(row), self.fold)
        for part in images_of(messages):
            part["image"] = open_picture(part["image"], self.place, self.longest, row["row_number"])
        return messages


def make_collator(model: Any, reader: Reader, args: Any, mask: Any) -> Any:
    """Rows to batches through Unsloth's collator; pictures that would be cut off in the middle are made smaller."""
    from jinja2 import TemplateError
    from unsloth_zoo.vision_utils import UnslothVisionDataCollator

    class Collator(UnslothVisionDataCollator):  # type: ignore[misc]
        def __call__(self, rows: list[dict[str, Any]]) -> Any:
            numbers, problem = ", ".join(str(row["row_number"]) for row in rows), ""
            chats = [reader.messages(row) for row in rows]
            pictures = [[part.pop("image") for part in images_of(messages)] for messages in chats]
            for longest in (args.image_size, args.image_size // 2, args.image_size // 4, args.image_size // 8):
                for picture in chain(*pictures):
                    picture.thumbnail((longest, longest))
                pairs = zip(chats, pictures, strict=True)
                examples = [{"messages": messages, "images": [*own]} for messages, own in pairs]
                try:
                    batch = super().__call__(examples)
                    check_pictures(batch, model.config, reader.processor, sum(map(len, pictures)))
                    return batch
                except TemplateError as error:
                    hint = "Mend or remove it."
                    raise UserError(f"rows {numbers}: the chat template refuses one ({error}).", hint, 2) from error
                except ValueError as error:
                    problem = reason(error)
                    note(f"rows {numbers}: at {longest} pixels they make no batch ({problem})")
            raise UserError(f"rows {numbers}: {problem}", "Raise --max-length or lower --image-size.", status=2)

    collator = Collator(model, reader.processor, max_seq_length=args.max_length, resize="max")
    collator.train_on_responses_only = mask
    return collator


def check_pictures(batch: Any, config: Any, processor: Any, pictures: int) -> None:
    """Raise `ValueError` where the length limit cut pictures off.

    transformers' processors do so, but not Gemma 3's as Unsloth replaces it when a model is loaded.
    """
    fewest = pictures * (getattr(processor, "image_seq_length", None) or 1)
    # Gemma's processor calls the mark before a picture so, its config what a picture is made of.
    found = int((batch["input_ids"] == config.image_token_id).sum())
    if found < fewest:
        raise ValueError(f"{found} of {fewest} image tokens are within the length limit")


def check_rows(rows: Any, reader: Reader) -> None:
    """Look at every row's messages before anything is trained; its pictures are counted, not opened."""
    import pyarrow.compute as pc
    from jinja2 import TemplateError

    name = next((name for name in ("images", "image") if name in rows.column_names), None)
    for table in rows.with_format("arrow").iter(256):
        counts = [0] * len(table)
        if name:
            is_list = str(table[name].type).startswith(("list", "large_list"))
            counts = (pc.list_value_length if is_list else pc.is_valid)(table[name]).to_pylist()
        for row, count in zip(table.select([*reader.shape, "row_number"]).to_pylist(), counts, strict=True):
            number = row["row_number"]
            messages = conversation(row, reader.shape, [number] * int(count or 0), reader.fold)
            try:
                reader.processor.apply_chat_template(messages, tokenize=False)
            except TemplateError as error:
                raise bad_row(number, f"the model's chat template refuses it ({error})") from error


def answer(model: Any, processor: Any, messages: list[Message], stop: int, length: int = 96) -> str:
    """What the model says next, word by word the likeliest."""
    pictures = [part["image"] for part in images_of(messages)]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    shown = {"images": [pictures]} if pictures else {}
    inputs = processor(text=[text], **shown, add_special_tokens=False, return_tensors="pt")
    ids = model.generate(
        **inputs.to(model.device, model.dtype),
        max_new_tokens=length,
        do_sample=False,
        eos_token_id=[stop],
        pad_token_id=processor.tokenizer.pad_token_id,
    )
    told = processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return str(told).strip()


# ---- Places ----------------------------------------------------------------------------------------------------------
# Where things lie: the Job's volume, the output, the disk, and what is a repo on the Hub.

# In a folder that is a run's own, and locked while one works in it.
OWN = ".launch"
# Seconds between two signs of life on a volume, where nothing can be locked.
ALIVE_S = 50.0
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)


def volume() -> Path | None:
    """The folder that outlives a Job's machine, or none where this is no Job."""
    if os.environ.get("LAUNCH_DATA_DIR"):
        return Path(os.environ["LAUNCH_DATA_DIR"])
    return Path("/data") if os.environ.get("JOB_ID") and Path("/data").is_dir() else None


def is_jobs_own(args: Any) -> bool:
    """Whether what is written goes to this Job's volume, where every attempt finds the same."""
    return bool(volume()) and not args.output_dir


def output_folder(args: Any) -> Path:
    """Where the model is saved."""
    place = volume()
    if args.output_dir:
        return Path(args.output_dir)
    return place / "output" if place else Path("outputs", args.run_name)


def claim(args: Any) -> None:
    """Make the output folder this run's own, until the process ends.

    Raises `UserError` of status 2 where it holds what no run made: there nothing is replaced, deleted or pushed; of
    status 3 where another run works in it, or it can't be written to.
    """
    folder, jobs_own = output_folder(args), is_jobs_own(args)
    place = str(folder.resolve())
    # Locked by what started this process, or what it was before it began again.
    if place == os.environ.get("LAUNCH_HOLDS"):
        return
    try:
        own = jobs_own or any((folder / name).is_file() for name in (OWN, "checkpoints/attempt"))
        if not own and folder.exists() and any(folder.iterdir()):
            hint = "Give --output-dir another one, or an empty one."
            raise UserError(f"the output folder {folder} is not empty, and no run made it.", hint, status=2)
        folder.mkdir(parents=True, exist_ok=True)
        if jobs_own:
            # Anew in each process: no thread outlives that, as a lock does.
            show_life(folder.with_name("alive"))
        else:
            lock(folder / OWN)
            os.environ["LAUNCH_HOLDS"] = place
    except OSError as error:
        hint = "Make room, or give --output-dir another folder."
        raise UserError(f"the output folder {folder} can't be used ({reason(error)}).", hint, status=3) from error


def lock(path: Path) -> None:
    """Hold the file until this process ends, however it ends; it may begin again in its own place."""
    file = os.open(path, os.O_CREAT | os.O_RDWR)
    os.set_inheritable(file, True)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        hint = "Wait for its end, or give --output-dir another folder."
        raise UserError(f"another run works in {path.parent}.", hint, status=3) from error
    except OSError:
        note(f"{path.parent} can't be locked: start no second run in it")


def show_life(path: Path) -> None:
    """Refuse where another Job writes its sign of life into that file, and write this one's from now on."""
    job = os.environ.get("JOB_ID", "")

    def read() -> tuple[str, float]:
        try:
            other, moment = path.read_text(encoding="utf-8").split()
            return other, float(moment)
        except (OSError, ValueError):
            return job, 0.0

    def write() -> None:
        while True:
            try:
                path.write_text(f"{job} {time.time()}", encoding="utf-8")
            except OSError as error:
                note(f"{path} can't be written ({reason(error)})")
            time.sleep(ALIVE_S)

    other, moment = read()
    if other != job and time.time() - moment < 3 * ALIVE_S:
        time.sleep(2 * ALIVE_S)
        if read()[1] > moment:
            hint = f"`launch wait {other}` follows it, `launch cancel {other}` stops it."
            raise UserError(f"Job {other} works on this run.", hint, status=3)
    threading.Thread(target=write, daemon=True).start()


def is_commit(revision: str | None) -> bool:
    """Whether that is a whole commit hash, which names the same files for ever."""
    return bool(re.fullmatch("[0-9a-f]{40}", revision or ""))


def is_hub_id(name: str) -> bool:
    """Whether that names a repo on the Hub: what is there on this machine wins, as it does when it is loaded."""
    return bool(HUB_ID.fullmatch(name)) and not Path(name).exists()


def require_disk(folder: Path, needed: float, told: Sequence[str], hint: str) -> None:
    """Refuse where the folder's disk has less room than that many bytes; `told` is what they are."""
    place = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    usage = shutil.disk_usage(place)
    # A mounted bucket has no size.
    if usage.total and usage.free < needed:
        message = f"the disk of {place} has {usage.free / 1e9:.2f} GB free, and this run writes {needed / 1e9:.2f} GB"
        raise UserError(f"{message} ({', '.join(told)}).", hint, status=3)


def sha256(path: Path, *, sync: bool = False) -> str:
    """The file's hash; with `sync` its content is on the disk afterwards."""
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- Clock -----------------------------------------------------------------------------------------------------------
# The time that a run has: until its deadline, and after a signal until it is killed.

# Kept where the process begins again (`os.execv`).
STARTED = float(os.environ.get("LAUNCH_STARTED") or time.monotonic())
# Seconds between SIGTERM and the end, within which the work is saved.
GRACE_S = 25.0
SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
# Of the time that is left, what the script's own end takes: its RESULT, Python's exit.
LAST_S = 5.0


def deadline(timeout_s: float, folder: Path) -> float:
    """When a Job is killed, on the clock of `time.monotonic`: all its attempts together have `timeout_s` seconds.

    The first attempt notes in the folder when its container began, which is when the first process there did.
    """
    now, today, job = time.monotonic(), time.time(), os.environ.get("JOB_ID")
    if not timeout_s:
        return math.inf
    lived = now - STARTED
    if job and not os.environ.get("LAUNCH_DATA_DIR"):
        ticks = int(Path("/proc/1/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
        container = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        # Older than its timeout it would not live: then the first process is another machine's.
        lived = container if lived < container < timeout_s else lived
    began = today - lived
    if job:
        # A Job that resumes this one has a timeout of its own.
        noted = folder / f"began-{hashlib.sha256(job.encode()).hexdigest()[:12]}"
        try:
            if not noted.exists():
                noted.write_text(str(began), encoding="utf-8")
            earlier = float(noted.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            note(f"{noted} does not say when this Job began: counted from now ({reason(error)})")
        else:
            # A Job that is older than its timeout by a day is none: that is no beginning.
            began = min(began, earlier) if earlier > today - timeout_s - 86400 else began
    return now + timeout_s - (today - began)


class Clock:
    """Says how much time is left, and ends the process where a library does not come back in time.

    A library may wait for as long as it likes, and need not return to Python: `last_s` before the end, or with
    `at_once` at a signal, a thread of this clock says the last words and ends the process with the status that they
    return. It also ends one that has not been `heard` of for longer than its `patience_s`.
    """

    def __init__(self) -> None:
        self.deadline, self.signalled = math.inf, 0.0
        self.heard, self.patience_s = 0.0, math.inf
        self.last_words: Callable[[], int] | None = None
        self.at_once, self.last_s, self.lock = False, LAST_S, threading.Lock()

    def start(self, ends: float, last_words: Callable[[], int]) -> None:
        """Begin: from now on a signal asks to stop, at once as long as there is nothing to save."""
        self.deadline, self.last_words, self.at_once = ends, last_words, True
        heard, told = os.pipe()
        os.set_blocking(told, False)
        # It is written to although the main thread is deep in a library, where no handler of Python's is called.
        signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, self.on_signal)
        # What ends a child is not meant for this process.
        os.register_at_fork(after_in_child=self.forget)
        threading.Thread(target=self.watch, args=(heard,), daemon=True).start()

    def rest(self) -> None:
        """Leave the last words to whoever calls this, unless they are being said."""
        with self.lock:
            self.last_words, self.patience_s = None, math.inf

    def forget(self) -> None:
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        # A terminal and uv may both pass the first one on.
        if number == signal.SIGINT and self.signalled and time.monotonic() > self.signalled + 1:
            raise KeyboardInterrupt
        self.signalled = self.signalled or time.monotonic()

    def left_s(self) -> float:
        """Seconds until the end, as far as it is known."""
        return min(self.deadline, self.signalled + GRACE_S if self.signalled else math.inf) - time.monotonic()

    def watch(self, heard: int) -> None:
        while True:
            if select.select([heard], [], [], 0.5)[0] and SIGNALS & {*os.read(heard, 512)}:
                self.signalled = self.signalled or time.monotonic()
            with self.lock:
                if time.monotonic() - self.heard > self.patience_s:
                    self.end(self.stalled)
                if self.last_words and (self.left_s() < self.last_s or (self.at_once and self.signalled)):
                    self.end(self.last_words)

    def end(self, last_words: Callable[[], int]) -> None:
        status = 1
        try:
            status = last_words()
        finally:
            sys.stdout.flush()
            os._exit(status)

    def stalled(self) -> int:
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        told = f"error: stalled: no step has ended for {time.monotonic() - self.heard:.0f} s."
        tell(f"{told} The stacks above show where; run this again: it goes on from the last checkpoint.", sys.stderr)
        return 1


CLOCK = Clock()


def refusal() -> Path | None:
    """Where an attempt of this Job notes for the next one what this script refused; none outside of a Job."""
    place, job = volume(), os.environ.get("JOB_ID", "")
    whose = hashlib.sha256(f"{job} {Path(__file__).name}".encode()).hexdigest()[:12]
    return place / f"refused-{whose}" if place and job else None


@contextmanager
def errors_told() -> Iterator[None]:
    """End with one line and a status, and without a traceback, where a user can do something about it.

    What is asked for does not change from one attempt of a Job to the next: what was refused once, with status 2, is
    refused at once by those that follow.
    """
    for stream in (sys.stdout, sys.stderr):
        # A row is shown, as far as may be, on a terminal that knows ASCII only.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    noted = refusal()
    try:
        if noted and noted.is_file():
            note("an earlier attempt of this Job refused what is asked for, and so does this one")
            raise UserError(noted.read_text(encoding="utf-8", errors="replace"), status=2)
        yield
    except BaseException as end:
        CLOCK.rest()
        if not isinstance(end, UserError | KeyboardInterrupt):
            raise
        problem = end if isinstance(end, UserError) else UserError("interrupted.", status=130)
        problem.tell()
        if noted and problem.status == 2:
            with suppress(OSError):
                noted.write_text(problem.paragraph, encoding="utf-8", errors="replace")
        sys.exit(problem.status)


# ---- Options ---------------------------------------------------------------------------------------------------------
# The options as flags: each field of the dataclass is one, and a value that can't work is refused at once.

Chosen = TypeVar("Chosen")
FILE_LOADERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
ADAPTER_THERE = "the adapter is there, and transformers would add it to the merged weights once more"
# Where a value should lie, for those options that the script has.
ABOVE_0 = ("max_steps", "num_train_epochs", "batch_size", "gradient_accumulation", "learning_rate", "logging_steps",
           "eval_steps", "lora_r", "lora_alpha")  # fmt: skip
# More fits neither a seed of NumPy's nor a clock.
LARGEST = 2**32
AT_LEAST = {"eval_rows": 0, "weight_decay": 0, "seed": 0, "sample_rows": 0, "checkpoint_minutes": 0, "timeout_s": 0,
            "warmup_ratio": 0, "lora_dropout": 0, "max_length": 16, "image_size": 28}  # fmt: skip
BELOW_1 = ("warmup_ratio", "lora_dropout")


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}.", "--help lists every flag.", status=2)


def read_options(kind: type[Chosen], argv: Sequence[str], description: str = "") -> Chosen:
    """What the command line chose, over the defaults of `kind`: `Annotated[TYPE, "help"] = VALUE` declares a flag.

    Flags may be spelled as in Python, --max_steps. Of two stop criteria the one that is given replaces the chosen one;
    only in a Job somebody ends the script after `timeout_s`.
    """
    parser = Parser(description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    hints = get_type_hints(kind, vars(sys.modules[kind.__module__]), include_extras=True)
    for option in fields(kind):  # type: ignore[arg-type]
        declared, told = get_args(hints[option.name])
        help_text = f"{told} [{option.default}]".replace("%", "%%")
        parser.add_argument(f"--{option.name.replace('_', '-')}", help=help_text, **flag_of(declared))
    words = [word.partition("=") for word in argv]
    argv = [(name.replace("_", "-") if name.startswith("--") else name) + eq + value for name, eq, value in words]
    given = vars(parser.parse_args(argv))
    given = {name: tuple(filter(None, value)) if isinstance(value, list) else value for name, value in given.items()}
    if given.get("max_steps") and given.get("num_train_epochs"):
        parser.error("--max-steps and --num-train-epochs both say when to stop: give one of them")
    if given.keys() & {"max_steps", "num_train_epochs"}:
        given = {"max_steps": None, "num_train_epochs": None} | given
    if not os.environ.get("JOB_ID"):
        given = {"timeout_s": 0} | given
    return kind(**given)


def flag_of(declared: Any) -> dict[str, Any]:
    """How argparse reads a value of that type."""
    none: tuple[str, ...] = ()
    if get_origin(declared) in (types.UnionType, Union):
        # `--merge=` leaves away what was chosen, as `--output-repo=` does.
        [declared], none = [one for one in get_args(declared) if one is not type(None)], ("",)
    if declared is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(declared) is tuple:
        return {"action": "append", "choices": (*get_args(get_args(declared)[0]), "")}
    if get_origin(declared) is Literal:
        return {"choices": get_args(declared) + none}
    return {"type": declared}


def refuse(args: Any, name: str, problem: str) -> NoReturn:
    """Raise `UserError` of status 2 for the value of that option."""
    raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: {problem}.", "--help lists every flag.", 2)


def check_options(args: Any) -> None:
    """Refuse what can't work, before anything heavy is imported."""
    for name, value in vars(args).items():
        end = 1 if name in BELOW_1 else LARGEST
        if name in ABOVE_0 and value is not None and not 0 < value < end:
            refuse(args, name, f"should be above 0 and below {end:,}")
        if name in AT_LEAST and value is not None and not AT_LEAST[name] <= value < end:
            refuse(args, name, f"should be at least {AT_LEAST[name]} and below {end:,}")
    for name in ("model", "dataset", "adapter", "output_dir"):
        try:
            Path(getattr(args, name, None) or ".").expanduser().resolve().exists()
        except (OSError, RuntimeError, ValueError) as error:
            refuse(args, name, f"no path that can be looked at ({reason(error)})")
    if args.trust_remote_code and not is_commit(args.revision):
        refuse(args, "revision", "--trust-remote-code needs the 40 digits of the commit that was read")
    if not re.fullmatch(r"\w[\w .-]*", args.run_name):
        refuse(args, "run_name", "should be a name, of letters, digits, '-', '_', '.' and spaces")
    if args.merge == "4bit" and (args.load_in != "4bit" or args.device == "cpu"):
        where = "there are none on a CPU" if args.device == "cpu" else "they come with --load-in 4bit"
        refuse(args, "merge", f"it is made of the 4-bit weights that are trained, and {where}")
    if args.merged_repo and not args.merge:
        refuse(args, "merged_repo", "it says where a merged model goes; add --merge 16bit")
    if args.merged_repo and args.merged_repo in (args.output_repo, getattr(args, "adapter", None)):
        refuse(args, "merged_repo", ADAPTER_THERE)
    for name in ("output_repo", "merged_repo"):
        if getattr(args, name) and not HUB_ID.fullmatch(getattr(args, name)):
            refuse(args, name, "should be NAME or NAMESPACE/NAME")


def check_data(args: Any) -> None:
    """Refuse a model or a dataset that is not there, and a stream without an end."""
    if args.streaming and args.max_steps is None:
        raise UserError("a stream has no known end.", "Add --max-steps N, or --no-streaming.", status=2)
    if args.trust_remote_code and Path(args.model).is_dir():
        refuse(args, "model", "--trust-remote-code needs a Hub repo: a folder has no commit to pin")
    if args.model.startswith((".", "/", "~")) and not Path(args.model).is_dir():
        refuse(args, "model", "there is no such folder")
    dataset = Path(args.dataset).expanduser()
    is_path = args.dataset.startswith((".", "/", "~")) or dataset.suffix in FILE_LOADERS
    if is_path and not dataset.exists():
        refuse(args, "dataset", "there is no such file or folder")
    if dataset.is_file() and dataset.suffix not in FILE_LOADERS:
        refuse(args, "dataset", f"a file should end in {', '.join(FILE_LOADERS)}")


# ---- Files -----------------------------------------------------------------------------------------------------------
# Files of rows on this machine: read row by row, each refused with what it is and the line at which it is none.

# Of a file's beginning, enough to say what it is.
HEAD = 4096
UTF16 = (b"\xff\xfe", b"\xfe\xff")
KINDS = {
    b"version https://git-lfs.github.com/spec": (
        "a pointer of Git LFS and not the file itself", "Fetch it with `git lfs pull`, or download it anew."),
    b"PAR1": ("a parquet file", "Name it .parquet."),
    b"\x1f\x8b": ("packed with gzip", "Unpack it with `gunzip`."),
    b"PK\x03\x04": ("a zip archive (or a workbook)", "Unpack it, or save it as CSV in UTF-8."),
    b"\x28\xb5\x2f\xfd": ("packed with zstd", "Unpack it with `unzstd`."),
    b"SQLite format 3": ("a database of SQLite", "Write its rows to a file of JSON lines."),
}  # fmt: skip


def rows_of(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a json, jsonl or csv file, each with its line (of a JSON array: its place, from 1).

    Raises `UserError` of status 2 for what is no such file, or no row of one.
    """
    require_kind(path)
    rows = csv_rows(path) if path.suffix == ".csv" else json_rows(path)
    first = next(rows, None)
    if first is None:
        raise wrong(path, "it holds no rows", "Give a file with at least one row.")
    yield first
    yield from rows


def require_kind(path: Path) -> None:
    """Raise `UserError` of status 2 where the file's beginning shows that it is something else than its name says."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            kind = (
                "a named pipe" if stat.S_ISFIFO(mode) else "a device or a socket" if not path.is_dir() else "a folder"
            )
            raise wrong(path, f"it is {kind}, and is read more than once", "Write the rows to a file first.")
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        hint = "Give a file that is there and that you may read."
        raise wrong(path, error.strerror or str(error), hint) from error
    begun = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not begun:
        raise wrong(path, "it is empty", "Give a file with at least one row.")
    for mark, (what, hint) in KINDS.items():
        if head.startswith(mark) and not (mark == b"PAR1" and path.suffix == ".parquet"):
            raise wrong(path, f"it is {what}", hint)
    if head.startswith(UTF16):
        raise wrong(path, "it is in UTF-16", "Save it in UTF-8.")
    if begun[:15].lower().startswith((b"<!doctype html", b"<html", b"<?xml")):
        raise wrong(
            path, "it is a web page", "Download the file itself: on the Hub with `hf download`, not from its page."
        )
    if path.suffix not in FILE_LOADERS:
        raise wrong(path, f"its name ends in {path.suffix or 'nothing'}", f"Use {', '.join(FILE_LOADERS)}, as it is.")
    if path.suffix == ".parquet" and not head.startswith(b"PAR1"):
        raise wrong(path, "it is no parquet file", "Download it anew, or name it for what it is.")


def json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of JSON lines, blank ones left out, or of one array."""
    with path.open("rb") as file:
        if file.read(HEAD).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
            yield from array_rows(path)
            return
        file.seek(0)
        for number, line in enumerate(file, 1):
            if line.isspace():
                continue
            row = parsed(path, line.removeprefix(b"\xef\xbb\xbf"), number)
            if not isinstance(row, dict):
                raise wrong(
                    path, f"line {number} is no object", 'Each line should be a row, such as {"messages": […]}.'
                )
            yield number, row


def array_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, row in enumerate(parsed(path, path.read_bytes(), None), 1):
        if not isinstance(row, dict):
            raise wrong(path, f"item {number} of its array is no object", 'Each should be a row: {"messages": […]}.')
        yield number, row


def parsed(path: Path, text: bytes, number: int | None) -> Any:
    """The JSON of a line, or of the whole file."""
    try:
        return json.loads(decoded(path, text, number))
    except (ValueError, RecursionError) as error:
        line = number or getattr(error, "lineno", 1)
        said = getattr(error, "msg", "it is nested too deeply")
        place = getattr(error, "colno", None)
        hint = "Each line should be one JSON object, or the whole file one array of them: mend the line."
        raise wrong(path, f"line {line} is not JSON ({said}{f', column {place}' if place else ''})", hint) from error


def decoded(path: Path, text: bytes, number: int | None) -> str:
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = number or text.count(b"\n", 0, error.start) + 1
        hint = f"Save it in UTF-8, such as with `iconv -f latin1 -t utf-8 {path.name}` where it is Latin-1."
        raise wrong(path, f"line {line} is not in UTF-8", hint) from error


def csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a table with commas, by the names in its first line; every cell is a text."""
    lines = csv_lines(path)
    _, names = next(lines)
    for number, cells in lines:
        if len(cells) > len(names):
            problem = f"line {number} has {len(cells)} cells for {len(names)} columns"
            raise wrong(path, problem, "Put texts with commas in quotes.")
        yield number, dict(zip(names, cells + [""] * (len(names) - len(cells)), strict=True))


def csv_lines(path: Path) -> Iterator[tuple[int, list[Any]]]:
    """The cells of each line of a table, its columns' names first; blank lines are left out."""
    csv.field_size_limit(sys.maxsize)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.reader(file, strict=True)
            names = next(table)
            if len(names) == 1 and any(sign in names[0] for sign in ";\t"):
                sign = "semicolons" if ";" in names[0] else "tabs"
                raise wrong(path, f"its columns are parted by {sign}", "Save it with commas.")
            yield 1, names
            yield from ((table.line_num, cells) for cells in table if cells)
    except csv.Error as error:
        raise wrong(path, f"line {table.line_num} is no row of a table ({error})", "Mend the line.") from error
    except UnicodeDecodeError:
        # The file is decoded in pieces: only the whole says which line it is.
        decoded(path, path.read_bytes(), None)


def wrong(path: Path, problem: str, hint: str) -> UserError:
    return UserError(f"--dataset {path}: {problem}.", hint, status=2)


def check_file(path: Path) -> None:
    """Raise `UserError` of status 2 where a file of rows is none, with the line; for parquet by its beginning only."""
    if FILE_LOADERS.get(path.suffix) == "parquet":
        require_kind(path)
        return
    for _ in rows_of(path):
        pass


# ---- Data ------------------------------------------------------------------------------------------------------------
# The dataset's rows: from the Hub or from here, whole or as a stream, each with its number.

# Held out of a large dataset where nobody said how many.
EVAL_ROWS = 64


def read_split(args: Any, split: str) -> Any:
    """One split of the dataset, from the Hub or from here, whole or as a stream."""
    from datasets import DatasetDict, Features, Value, exceptions, load_dataset, load_dataset_builder, load_from_disk
    from httpx import HTTPError
    from pyarrow.dataset import ParquetFragmentScanOptions

    path = Path(args.dataset).expanduser()
    if path.is_file():
        # A stream meets a broken line in the middle of the training, and a table with a cell too many is shifted.
        (check_file if args.streaming or path.suffix == ".csv" else require_kind)(path)
    try:
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            saved = load_from_disk(path)
            saved = saved[split] if isinstance(saved, DatasetDict) else saved
            check_own({split: [file["filename"] for file in saved.cache_files]}, path, args.dataset)
            return saved.to_iterable_dataset() if args.streaming else saved
        if path.is_file():
            loader, options = FILE_LOADERS[path.suffix], dict[str, Any]()
            if loader == "parquet":
                # Arrow would read ahead over the whole file, which is as large as its pictures.
                options = {"fragment_scan_options": ParquetFragmentScanOptions(pre_buffer=False)}
            elif loader == "csv":
                # Every cell as it is written: no number, date or null is made of it.
                texts = Features({name: Value("string") for name in next(csv_lines(path))[1]})
                options = {"features": texts, "keep_default_na": False}
            return load_dataset(loader, data_files=str(path), split=split, streaming=args.streaming, **options)
        name = str(path) if path.is_dir() else args.dataset
        builder = load_dataset_builder(name, args.dataset_config, revision=args.dataset_revision)
        check_own(builder.config.data_files or {}, path if path.is_dir() else None, args.dataset)
        if args.streaming:
            return builder.as_streaming_dataset(split=split)
        builder.download_and_prepare()
        return builder.as_dataset(split=split)
    except (HTTPError, exceptions.DatasetsError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        if path.is_file():
            check_file(path)
        hint = "Check the name, the configuration, the split, the token and the network."
        raise UserError(f"the split {split} of {args.dataset} can't be read ({reason(error)}).", hint, 3) from error


def check_own(files: dict[str, list[str]], folder: Path | None, name: str) -> None:
    """Refuse a dataset whose README names files that are not its own: of this machine, of other repos, of the web."""
    for path in (path for split in files.values() for path in split):
        if folder is not None:
            # What lies in the Hub's cache is linked to.
            linked = folder.parent.name == "snapshots" and folder.parents[1].name.startswith("datasets--")
            places = [folder.resolve(), *([folder.parents[1].resolve()] if linked else [])]
            own = "://" not in path and any(Path(path).resolve().is_relative_to(place) for place in places)
        else:
            own = path.startswith(f"hf://datasets/{name}@")
        if not own:
            hint = "Its author chose that: use another dataset, or give the file itself as --dataset."
            raise UserError(f"the dataset {name} names {path}, which is no file of its own.", hint, status=3)


def number_rows(rows: Any, args: Any, pictures: bool) -> Any:
    """The rows with their place in the split, `row_number`, which errors name."""
    if "row_number" in (rows.column_names or ()):
        rows = rows.remove_columns("row_number")
    # Pictures stay encoded until they are used: a buffer of rows stays small, and an error can name the row.
    if args.streaming:
        rows = rows.decode(False) if pictures else rows
        return rows.map(lambda row, number: {"row_number": number}, with_indices=True)
    if pictures:
        from datasets import Features

        features = json.dumps(rows.features.to_dict()).replace('"_type": "Image"', '"_type": "Image", "decode": false')
        rows.info.features = Features.from_dict(json.loads(features))
    if not len(rows):
        raise UserError(f"{args.dataset} holds no rows in this split.", "Choose another one.", status=2)
    return rows.add_column("row_number", list(range(len(rows))))


def held_out(rows: int, asked: int | None) -> int:
    """Of so many rows those that are not trained on: a tenth at most unless more was asked for, and never over half."""
    return min(EVAL_ROWS, rows // 10) if asked is None else min(asked, rows // 2)


def drawn(args: Any, rows: int, count: int) -> list[int]:
    """The numbers of the rows that are read, those held out first: no more are prepared than the steps will read."""
    order = random.Random(args.seed).sample(range(rows), rows)
    if args.max_steps and not getattr(args, "packing", False):
        order = order[: count + args.max_steps * args.batch_size * args.gradient_accumulation]
    return order


def read_rows(args: Any, pictures: bool = False) -> tuple[Any, Any]:
    """The rows to train on and those to evaluate on, or none: the head of a stream, else drawn with the seed."""
    rows, eval_rows = number_rows(read_split(args, args.dataset_split), args, pictures), None
    count = 0 if args.eval_split else EVAL_ROWS if args.eval_rows is None else args.eval_rows
    if not args.streaming:
        wanted, count = count, 0 if args.eval_split else held_out(len(rows), args.eval_rows)
        if count < wanted:
            note(f"{count} of {len(rows)} rows are held out, not {wanted}: there are too few")
        rows = rows.select(drawn(args, len(rows), count))
    if args.eval_split:
        eval_rows = number_rows(read_split(args, args.eval_split), args, pictures)
        if args.eval_rows:
            eval_rows = eval_rows.take(args.eval_rows if args.streaming else min(args.eval_rows, len(eval_rows)))
    elif count:
        rows, eval_rows = rows.skip(count), rows.take(count)
    if args.streaming:
        rows = rows.shuffle(seed=args.seed, buffer_size=100 if pictures else 1000)
    return rows, eval_rows


# ---- Checkpoints -----------------------------------------------------------------------------------------------------
# Checkpoints, in folders as transformers has them: whole once their manifest is there, and of the same settings.

# `checkpoint-N/` is what the trainer goes on from, with what this script knows beside it (run.json) and, written last,
# manifest.json with every file's size and SHA-256. Beside them lie `attempt`, the number of times that the run was
# started, and, once nothing is left to do, `done`, its RESULT.
KEPT, DONE = 2, "done"
# Free to change between two attempts: nothing that is learned depends on them.
NOT_LEARNED_FROM = {
    "checkpoint_minutes", "eval_steps", "gguf", "logging_steps", "merge", "merged_repo", "output_dir", "output_repo",
    "private", "resume", "run_name", "sample_rows", "timeout_s", "trackio_project", "trackio_space", "batch_size",
    "gradient_accumulation",
}  # fmt: skip


@dataclass
class Checkpoints:
    """A run's folder of checkpoints: `found` is what the newest whole one knew when this attempt began, or empty."""

    folder: Path
    found: dict[str, Any]
    attempt: int
    settings: dict[str, Any]

    def at(self, step: int) -> Path:
        return self.folder / f"checkpoint-{step}"

    @property
    def whole(self) -> list[int]:
        """The steps of those with a manifest."""
        return [step for step in steps_in(self.folder) if (self.at(step) / "manifest.json").is_file()]

    def seal(self, step: int, known: dict[str, Any]) -> int:
        """Make a whole checkpoint of what the trainer wrote for that step, and remove the older ones; its bytes."""
        place = self.at(step)
        (place / "run.json").write_text(json.dumps(known), encoding="utf-8")
        files = [file for file in sorted(place.rglob("*")) if file.is_file()]
        sizes = {file.relative_to(place).as_posix(): (file.stat().st_size, sha256(file, sync=True)) for file in files}
        # Last, and not renamed, which not every volume can: half of it is no JSON.
        with (place / "manifest.json").open("w", encoding="utf-8") as file:
            json.dump(sizes, file)
            file.flush()
            os.fsync(file.fileno())
        for other in {*steps_in(self.folder)}.difference(self.whole[-KEPT:]):
            shutil.rmtree(self.at(other), ignore_errors=True)
        return sum(size for size, _ in sizes.values())


def steps_in(folder: Path) -> list[int]:
    """The steps that the folder has checkpoints of, whole or not."""
    names = [path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")]
    return sorted(int(name) for name in names if re.fullmatch("[1-9][0-9]{0,9}", name))


def checkpoint_folder(args: Any) -> Path:
    """Where the checkpoints lie."""
    output = output_folder(args)
    return output.with_name("checkpoints") if is_jobs_own(args) else output / "checkpoints"


def settings(args: Any) -> dict[str, Any]:
    """What a checkpoint's steps depend on, by flag; how an optimizer step's rows are split may change.

    Rows of this machine are known by their bytes, wherever they lie.
    """
    chosen = {name: value for name, value in vars(args).items() if name not in NOT_LEARNED_FROM}
    data = Path(args.dataset).expanduser()
    if data.exists():
        files = sorted(path for path in [data, *data.rglob("*")] if path.is_file())
        hashes = " ".join(f"{path.relative_to(data).as_posix()} {sha256(path)}" for path in files)
        chosen["dataset"] = f"data of the SHA-256 {hashlib.sha256(hashes.encode()).hexdigest()[:16]}"
    return chosen | {"batch_size": args.batch_size * args.gradient_accumulation}


def result_before(args: Any) -> str | None:
    """The RESULT of an earlier attempt of this Job that did all there was to do, or none: nobody pays for it twice."""
    path = checkpoint_folder(args) / DONE
    if args.resume == "never" or not is_jobs_own(args) or not path.is_file():
        return None
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        return text if json.loads(text)["status"] == "done" else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def open_checkpoints(args: Any) -> tuple[Any, Checkpoints]:
    """The options, with the batch that fitted the memory before, and the folder, ready for this attempt.

    Raises `UserError` where the newest is of a run with other settings, and of status 3 where nothing can be written.
    An earlier run that was done is started anew.
    """
    folder, chosen, found = checkpoint_folder(args), settings(args), dict[str, Any]()
    if args.resume == "never" or ((folder / DONE).exists() and not is_jobs_own(args)):
        forget(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for step in reversed(steps_in(folder)):
            try:
                found = read_checkpoint(folder / f"checkpoint-{step}")
                break
            # Whatever lies there, of whatever shape.
            except Exception as error:
                note(f"the checkpoint of step {step} is not whole and left out ({reason(error)})")
                (folder / f"checkpoint-{step}" / "manifest.json").unlink(missing_ok=True)
        args = same_run(found, args, chosen) if found else args
        counter = folder / "attempt"
        earlier = counter.read_text(encoding="utf-8", errors="replace") if counter.exists() else ""
        # Begun again with a smaller batch, it is the same attempt.
        before = int(earlier) if re.fullmatch("[0-9]{1,9}", earlier) else 0
        attempt = before + (0 if os.environ.get("LAUNCH_STARTED") else 1)
        counter.write_text(str(attempt), encoding="utf-8")
    except OSError as error:
        hint = "Make room on its disk and remove what stands in its way, or give --output-dir another folder."
        raise UserError(f"{folder} can't be written ({reason(error)}).", hint, status=3) from error
    if not found and any(folder.glob("step-*/manifest.json")):
        hint = "Go on with the script that made them, or give --resume never to start over."
        raise UserError(f"the checkpoints in {folder} are of an earlier version of this script.", hint, status=2)
    return args, Checkpoints(folder, found, attempt, chosen)


def forget(folder: Path) -> None:
    """Remove the checkpoints and what else a run notes there, and nothing besides."""
    for path in folder.glob("*"):
        if re.fullmatch(r"(checkpoint|step)-[0-9]+", path.name):
            shutil.rmtree(path, ignore_errors=True)
        elif re.fullmatch(rf"attempt|{DONE}|began-[0-9a-f]+", path.name) and not path.is_dir():
            path.unlink(missing_ok=True)


def same_run(found: dict[str, Any], args: Any, chosen: dict[str, Any]) -> Any:
    """The options with the checkpoint's batch where that is smaller; `UserError` with the first flag that differs."""
    for name, value in chosen.items():
        before, flag = found["settings"].get(name), f"--{name.replace('_', '-')}"
        if before != value:
            if name == "batch_size":
                flag = "--batch-size times --gradient-accumulation"
            message = f"{flag} is {value} here and {before} in the checkpoint of step {found['step']}"
            raise UserError(f"{message}.", "Give what it had, or --resume never to start over.", status=2)
    # What did not fit in the memory before would not now.
    if found["batch_size"] < args.batch_size:
        return replace(args, batch_size=found["batch_size"], gradient_accumulation=found["gradient_accumulation"])
    return args


def read_checkpoint(place: Path) -> dict[str, Any]:
    """What a whole checkpoint knows; an error of any kind where it is not whole."""
    manifest = json.loads((place / "manifest.json").read_text(encoding="utf-8"))
    for name, (size, digest) in manifest.items():
        if (place / name).stat().st_size != size or sha256(place / name) != digest:
            raise ValueError(f"{name} is not as it was written")
    found: dict[str, Any] = json.loads((place / "run.json").read_text(encoding="utf-8"))
    if place.name != f"checkpoint-{found['step']}":
        raise ValueError(f"it is of step {found['step']}")
    numbers = [found[name] for name in ("step", "steps", "batch_size", "gradient_accumulation")]
    if not (isinstance(found["settings"], dict) and isinstance(found["known"], dict) and min(numbers) > 0):
        raise ValueError("run.json is of another form")
    if "adapter_model.safetensors" not in manifest:
        raise ValueError("it holds no adapter")
    return found


# ---- Models ----------------------------------------------------------------------------------------------------------
# The machine and the model, known to be there before anything is loaded, and what they are trained with.


def set_environment(args: Any) -> None:
    """What libraries read of it when they are imported."""
    # Bars have no place in a log; Unsloth's generated code has none in the working directory.
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # Where CI is set, torch takes the memory planning that Unsloth turns on for an error.
    os.environ.pop("CI", None)
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", tempfile.mkdtemp(prefix="unsloth-"))
    # One process trains on one GPU.
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    if args.device == "cpu":
        os.environ.update(CUDA_VISIBLE_DEVICES="", UNSLOTH_FORCE_CPU="1")
    # Only --trackio-space sends metrics away: Trackio would follow the environment too.
    for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        os.environ.pop(name, None)


def find_gpu(args: Any) -> bool:
    """Whether a GPU trains; `UserError` of status 3 where there is none and the CPU was not asked for."""
    import torch

    found = args.device == "auto" and torch.cuda.is_available()
    if not found and (args.device == "auto" or hasattr(args, "image_size")):
        hint = "Use a machine with one, or train a text model with --device cpu: vision models need a GPU."
        raise UserError("no usable CUDA GPU was found here.", hint, status=3)
    return bool(found)


def check_model(model: str, revision: str | None, trusted: bool = False) -> dict[str, Any]:
    """The model's config.json; `UserError` of status 3 where there is none to be read, or it names foreign code."""
    from huggingface_hub import errors, hf_hub_download, list_repo_files

    is_here = Path(model).is_dir()

    def read(name: str) -> dict[str, Any]:
        path = Path(model, name) if is_here else hf_hub_download(model, name, revision=revision)
        found: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        return found

    try:
        config = read("config.json")
        files = list_repo_files(model, revision=revision) if trusted and not is_here else []
        configs = {name: read(name) for name in files if "/" not in name and name.endswith("config.json")}
    except errors.GatedRepoError as error:
        hint = f"Accept its terms at https://huggingface.co/{model} with the account of your HF_TOKEN."
        raise UserError(f"{model} is gated and this account has no access.", hint, status=3) from error
    except Exception as error:
        hint = "Check the name, the revision, the token and the network."
        raise UserError(f"the model {model} can't be read ({reason(error)}).", hint, status=3) from error
    # The revision pins the model's own code, and of another repo the newest would be run.
    for name, content in configs.items():
        if "--" in json.dumps(content.get("auto_map")):
            hint = "Copy the code into a repo of your own, beside the model."
            raise UserError(f"{name} of {model} names code of another repo, which nothing pins.", hint, status=3)
    return config


def make_config(run: Any, on_gpu: bool, evaluates: bool, **more: Any) -> Any:
    """What both kinds of model are trained with; `more` is of one kind."""
    from trl import SFTConfig
    from unsloth import is_bfloat16_supported

    args = run.args
    return SFTConfig(
        output_dir=str(run.checkpoints.folder),
        max_steps=args.max_steps or -1,
        num_train_epochs=args.num_train_epochs or 1,
        per_device_train_batch_size=args.batch_size,
        gradient_accumulation_steps=args.gradient_accumulation,
        gradient_checkpointing=on_gpu,
        # Evaluation must fit wherever training did.
        per_device_eval_batch_size=min(args.batch_size, 2),
        prediction_loss_only=True,
        eval_strategy="steps" if evaluates and args.eval_steps else "no",
        eval_steps=args.eval_steps,
        max_length=args.max_length,
        learning_rate=args.learning_rate,
        lr_scheduler_type=args.lr_scheduler_type,
        warmup_steps=args.warmup_ratio,
        weight_decay=args.weight_decay,
        optim=args.optim if on_gpu else "adamw_torch",
        bf16=on_gpu and is_bfloat16_supported(),
        fp16=on_gpu and not is_bfloat16_supported(),
        use_cpu=not on_gpu,
        seed=args.seed,
        logging_steps=args.logging_steps,
        logging_nan_inf_filter=False,
        # The guard does it, and outlives a disk that is full.
        save_strategy="no",
        disable_tqdm=True,
        report_to="none",
        **more,
    )


def open_tracker(run: Any) -> None:
    """Give the run its tracker, or none: a dashboard that can't be reached must not cost the training."""
    if not run.args.trackio_project:
        return
    import trackio

    try:
        run.tracker = trackio.init(
            run.args.trackio_project,
            run.args.run_name,
            space_id=run.args.trackio_space,
            config=vars(run.args),
            resume="allow" if run.checkpoints.found or os.environ.get("LAUNCH_STARTED") else "never",
        )
    except Exception as error:
        note(f"trackio is off, the run goes on without it ({type(error).__name__}: {error})")


def take_peak(peaks: dict[str, float], name: str) -> None:
    """Note under that name the most GPU memory in use since the last call, in GiB."""
    import torch

    if torch.cuda.is_initialized():
        peaks[name] = max(peaks.get(name, 0), torch.cuda.max_memory_allocated() / 2**30)
        torch.cuda.reset_peak_memory_stats()


def free() -> None:
    """Give back what nothing holds any more on the GPU."""
    import torch

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


# ---- Guard -----------------------------------------------------------------------------------------------------------
# What keeps the work from being lost: checkpoints by the clock, stops in time, smaller batches, an end to NaN.

# Bytes a second that a disk and an upload surely take, where nothing was measured yet.
DISK_SPEED, UPLOAD_SPEED = 50e6, 10e6
# Logged steps in a row whose loss or gradient is no number.
MOST_NAN = 3
COUNTS = ("tokens_seen", "tokens_trained", "largest_batch")


class Stop(Exception):
    """An evaluation is left, since the time is up."""


class Careful:
    """Mixed into a trainer: counts tokens, and evaluates as far as time and memory suffice."""

    tokens_seen: Any = 0
    tokens_trained: Any = 0
    largest_batch = 0

    def training_step(self, model: Any, inputs: Any, *rest: Any) -> Any:
        # Sums stay on the GPU, so that counting never makes it wait.
        mask = inputs.get("attention_mask")
        self.tokens_seen = self.tokens_seen + (inputs["input_ids"].numel() if mask is None else mask.sum())
        self.tokens_trained = self.tokens_trained + (inputs["labels"][:, 1:] != -100).sum()
        self.largest_batch = max(self.largest_batch, inputs["input_ids"].numel())
        return super().training_step(model, inputs, *rest)  # type: ignore[misc]

    def evaluate(self, *rest: Any, **more: Any) -> dict[str, Any]:
        """The metrics, from fewer rows at a time where memory runs out; empty where it can't be done, which is said."""
        args: Any = self.args  # type: ignore[attr-defined]
        try:
            return dict(super().evaluate(*rest, **more))  # type: ignore[misc]
        except Stop:
            note("no time to evaluate")
            return {}
        except Exception as error:
            batch = args.per_device_eval_batch_size
            if batch == 1 or not out_of_memory(error):
                note(f"the evaluation failed, the run goes on without it ({reason(error)})")
                return {}
        free()
        note(f"out of memory in evaluation: batch {batch} -> {batch // 2}")
        args.per_device_eval_batch_size = batch // 2
        return self.evaluate(*rest, **more)


class Guard:
    """Mixed into a `TrainerCallback`: decides when to keep what was learned, when to stop, and says how it goes.

    A step draws its random numbers from a seed of its own, so that whoever makes it anew makes the same. Before and
    after the training it gives the `answer` to each of the chats that are `asked`; `kind` is Unsloth's class of model.
    """

    stopped: str | None = None
    startup_s: float | None = None
    first_step_s: float | None = None
    diverged: int | None = None

    def __init__(self, run: Any, trainer: Any, kind: Any, asked: list[Any], answer: Callable[[Any], str]) -> None:
        self.run, self.args, self.planned, self.trainer = run, run.args, run.planned, trainer
        self.kind, self.asked, self.answer = kind, asked, answer
        self.checkpoints: Checkpoints = run.checkpoints
        found = self.checkpoints.found
        # What it looked like before the training and after it: the loss, answers.
        self.before: dict[str, Any] = found.get("known", {})
        self.after: dict[str, Any] = {}
        self.earlier_s, self.start = found.get("train_s", 0.0), found.get("step", 0)
        # Of the steps that are done: one that is left is made anew.
        self.counts: dict[str, Any] = {name: found.get(name, 0) for name in COUNTS}
        vars(trainer).update(self.counts)
        trained = [weight for weight in trainer.model.parameters() if weight.requires_grad]
        size = sum(weight.numel() * weight.element_size() for weight in trained)
        self.checkpoint_s, self.push_s = 3 * size / DISK_SPEED, size / UPLOAD_SPEED if run.output_repo else 0.0
        self.kept, self.due, self.trained_s, self.longest_step_s, self.nan_logs = self.start, False, 0.0, 0.0, 0
        self.began = self.saved_at = self.step_began = time.monotonic()
        self.mark = (self.start, 0, self.began)
        self.steps_s: list[float] = []
        self.peaks: dict[str, float] = {}

    def must_stop(self) -> bool:
        """Whether a signal came, or no time is left but for a step, a checkpoint, the model's saving and its push."""
        # Python takes seconds to end.
        floor = min(60, max(self.args.timeout_s / 10, LAST_S))
        reserve_s = 1.5 * (2 * self.checkpoint_s + self.push_s) + floor + self.longest_step_s
        if not self.stopped and CLOCK.signalled:
            self.stopped = "signal"
            note("asked to stop: saving")
        elif not self.stopped and CLOCK.left_s() < reserve_s:
            self.stopped = "deadline"
            tell(f"deadline in {CLOCK.left_s():.0f}s: stopping")
        return bool(self.stopped)

    def patience_s(self) -> float:
        """Seconds without the end of a step after which the run has stalled."""
        compile_s: float = self.planned["compile_s"]
        return max(900.0, 2 * compile_s, 20 * statistics.median(self.steps_s or [0.0]))

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.began = self.saved_at = CLOCK.heard = time.monotonic()
        CLOCK.patience_s = self.patience_s()

    def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        from transformers import set_seed

        # Only now has the trainer written down what the step before was like.
        if self.due:
            self.save()
        self.step_began = time.monotonic()
        if self.startup_s is None:
            self.startup_s, self.began = self.step_began - STARTED, self.step_began
            self.mark = (state.global_step, int(self.trainer.tokens_seen), self.began)
        set_seed(self.args.seed + state.global_step)

    def on_substep_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        # The rest of the step may take longer than a signal allows.
        control.should_training_stop = bool(CLOCK.signalled) and self.must_stop()

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        now = CLOCK.heard = time.monotonic()
        took = now - self.step_began
        self.counts = {name: getattr(self.trainer, name) for name in COUNTS}
        self.steps_s = [*self.steps_s[-99:], took]
        CLOCK.patience_s = self.patience_s()
        self.first_step_s = self.first_step_s or now - self.began
        # The first step compiles, which happens once: it counts until there is another.
        self.longest_step_s = max(self.longest_step_s if state.global_step > self.start + 2 else 0.0, took)
        if self.must_stop():
            control.should_training_stop, control.should_evaluate = True, False
        every = self.args.checkpoint_minutes * 60
        self.due = bool(every) and now >= self.saved_at + every

    def on_prediction_step(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        CLOCK.heard = time.monotonic()
        if self.must_stop():
            raise Stop

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        CLOCK.patience_s = math.inf
        if self.args.checkpoint_minutes and not self.diverged:
            self.save()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
        step, now, seen = state.global_step, time.monotonic(), int(self.trainer.tokens_seen)
        if self.run.tracker:
            self.run.tracker.log({re.sub("^eval_", "eval/", name): value for name, value in logs.items()}, step)
        if "eval_loss" in logs:
            total = state.max_steps or (args.max_steps if args.max_steps > 0 else "?")
            tell(f"eval step {step}/{total} | loss {logs['eval_loss']:.4f}")
        elif "loss" in logs:
            last_step, last_seen, last_time = self.mark
            speed, eta = (seen - last_seen) / (now - last_time), (state.max_steps - step) * (now - last_time)
            line = f"step {step}/{state.max_steps} | loss {logs['loss']:.4f} | lr {logs['learning_rate']:.2e}"
            tell(f"{line} | {speed:.0f} tok/s | eta {eta / max(step - last_step, 1):.0f}s")
            are_numbers = math.isfinite(logs["loss"]) and math.isfinite(logs.get("grad_norm") or 0.0)
            self.nan_logs = 0 if are_numbers else self.nan_logs + 1
            if self.nan_logs == MOST_NAN:
                self.diverged, control.should_training_stop = step, True
        self.mark = (step, seen, now)

    def save(self) -> None:
        """Keep this step as a checkpoint; where that fails, on a full disk, say, the training goes on."""
        import torch

        trainer, state, args, self.due = self.trainer, self.trainer.state, self.args, False
        began, step, place = time.monotonic(), state.global_step, self.checkpoints.at(state.global_step)
        # Weights may be numbers still where the loss is none any more, and of no use.
        if step == self.kept or not step or self.nan_logs or not is_finite(trainer.model):
            return
        known = {name: int(value) for name, value in self.counts.items()} | {
            "step": step, "steps": state.max_steps, "batch_size": args.batch_size,
            "gradient_accumulation": args.gradient_accumulation, "settings": self.checkpoints.settings,
            "train_s": self.earlier_s + began - self.began, "known": self.before,
        }  # fmt: skip
        try:
            shutil.rmtree(place, ignore_errors=True)
            # What `train(resume_from_checkpoint=…)` goes on from, by the names that it looks for.
            trainer.save_model(str(place))
            for name in ("optimizer", "lr_scheduler"):
                torch.save(getattr(trainer, name).state_dict(), place / f"{name.removeprefix('lr_')}.pt")
            if trainer.accelerator.scaler:
                torch.save(trainer.accelerator.scaler.state_dict(), place / "scaler.pt")
            state.save_to_json(str(place / "trainer_state.json"))
            size = self.checkpoints.seal(step, known)
        except Exception as error:
            shutil.rmtree(place, ignore_errors=True)
            note(f"step {step} could not be kept in {self.checkpoints.folder} ({reason(error)})")
        else:
            self.kept, self.checkpoint_s = step, time.monotonic() - began
            tell(f"checkpoint step {step} | {self.checkpoint_s:.1f}s | {size / 1e6:.0f} MB")
        self.saved_at = CLOCK.heard = time.monotonic()

    def train(self) -> None:
        """Train from the newest checkpoint, or the start, to the end or a stop; begin again where memory runs out."""
        from transformers import TrainerState, set_seed

        trainer, found, step = self.trainer, self.checkpoints.found, self.start
        path = self.checkpoints.at(step)
        if step:
            tell(f"resumed from step {step}")
        if self.args.streaming:
            # Skipped as rows: transformers would make batches of all that it skips, and only within one pass.
            seen = step * self.args.batch_size * self.args.gradient_accumulation
            trainer.train_dataset = trainer.train_dataset.repeat(None).skip(seen)
            trainer.args.ignore_data_skip = True
        # The same order of rows, whatever was drawn while checking.
        set_seed(self.args.seed)
        try:
            if not self.must_stop() and (not found or step < found["steps"]):
                trainer.train(resume_from_checkpoint=str(path) if step else None)
            elif found:
                from peft import load_peft_weights, set_peft_model_state_dict

                set_peft_model_state_dict(trainer.model, load_peft_weights(str(path)))
                trainer.state = TrainerState.load_from_json(str(path / "trainer_state.json"))
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            begin_again(self.args, self.planned["peak_gib"])
        self.trained_s = time.monotonic() - self.began
        take_peak(self.peaks, "train")
        if self.diverged:
            kept = f"The last checkpoint is of step {self.kept}." if self.kept else "No checkpoint was made."
            message = f"the loss is no number any more, at step {self.diverged} for the {MOST_NAN}rd time in a row"
            raise UserError(f"{message}: stopped. {kept}", "Lower --learning-rate, or raise --warmup-ratio.")
        if not is_finite(trainer.model):
            raise UserError("the trained weights are no numbers: nothing is saved.", "Lower --learning-rate.")

    def look(self, evaluates: bool) -> dict[str, Any]:
        """The loss on what is evaluated on, and the answers to what is asked, as far as time and memory suffice."""
        found: dict[str, Any] = {"loss": None, "answers": []}
        if not self.peaks:
            take_peak(self.peaks, "load")
        if evaluates and not self.stopped:
            phase("evaluate")
            found["loss"] = self.trainer.evaluate().get("eval_loss")
            take_peak(self.peaks, "evaluate")
        self.kind.for_inference(self.trainer.model)
        for messages in self.asked:
            try:
                found["answers"].append(None if self.must_stop() else self.answer(messages))
            # No sample is worth a run.
            except Exception as error:
                found["answers"].append(None)
                note(f"a sample is left without an answer ({reason(error)})")
                free()
        self.kind.for_training(self.trainer.model)
        take_peak(self.peaks, "answer")
        return found


def is_finite(model: Any) -> bool:
    """Whether every weight that is trained is a number."""
    return all(bool(weight.isfinite().all()) for weight in model.parameters() if weight.requires_grad)


def out_of_memory(error: BaseException) -> bool:
    """Whether a GPU's memory ran out, whichever library says so."""
    import torch

    said = re.search(r"CUDA[^\n]*out of memory|ALLOC_FAILED", str(error))
    return isinstance(error, torch.OutOfMemoryError) or said is not None


def begin_again(args: Any, planned_gib: float) -> NoReturn:
    """Start this script once more, from its newest checkpoint, with a step's rows in smaller batches.

    A new process has the whole memory. Raises `UserError` where the batches are single rows already.
    """
    import torch

    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_initialized() else 0.0
    said = f"the GPU held {peak:.1f} GiB at most, {planned_gib:.1f} GiB were planned"
    batch, accumulation = args.batch_size, args.gradient_accumulation
    if batch == 1:
        flags = "--max-length, --image-size" if hasattr(args, "image_size") else "--max-length"
        hint = f"Lower {flags} or --lora-r, or take a flavor with more memory."
        raise UserError(f"out of memory in training with one row at a time ({said}).", hint)
    smaller = next(size for size in range(batch // 2, 0, -1) if batch % size == 0)
    more = accumulation * batch // smaller
    tell(f"out of memory: batch {batch} -> {smaller}, accumulation {accumulation} -> {more} ({said})")
    sys.stderr.flush()
    os.environ["LAUNCH_STARTED"] = str(STARTED)
    words = ["--batch-size", str(smaller), "--gradient-accumulation", str(more)]
    os.execv(sys.executable, [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], *words])


# ---- Labels ----------------------------------------------------------------------------------------------------------
# Which tokens are trained on: the answers, found by what the chat template puts around them, and a look at them.

IGNORED = -100
# Rows that are looked at before anything is trained.
LOOKED_AT = 64
ASKED, ANSWERED = "QUESTIONPROBE", "ANSWERPROBE"
# What may stand beside a marker, and be merged with its first or last token.
BESIDE = ("a", "A", "1", " ", "\n", "\\", "{", "}", "(", ".", "<", ">")


@dataclass(frozen=True)
class Marker:
    """The tokens before every question, or every answer: `core` are the same whatever stands beside them."""

    left: list[int]
    core: list[int]
    right: list[int]

    def at(self, ids: list[int], place: int) -> bool:
        return ids[place] == self.core[0] and ids[place : place + len(self.core)] == self.core


def find_mask(processor: Any) -> Mask:
    """The mask of this chat template; `UserError` where nothing marks the answers in it."""
    tokenizer = getattr(processor, "tokenizer", processor)
    question, answer = (marker_of(tokenizer, text) for text in around(processor, tokenizer))
    shared = [one for one, _ in common(question.core, answer.core)]
    if not question.core or not answer.core or shared in (question.core, answer.core):
        raise unmarked()
    special = {id: token.content.strip() for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    # A token that begins the messages of every role ends an answer too.
    opener = shared if all(special.get(id) for id in shared) else []
    return Mask(question, answer, opener, tokenizer.bos_token_id, tokenizer.eos_token_id)


@dataclass(frozen=True)
class Mask:
    """Labels of rows as tokens: an answer up to the end of its turn, and -100 for whatever else."""

    question: Marker
    answer: Marker
    opener: list[int]
    bos: int | None
    eos: int | None

    def __call__(self, batch: Any) -> dict[str, Any]:
        """`labels` for the batch's `input_ids`, which may be a tensor."""
        rows = batch["input_ids"]
        if isinstance(rows, list):
            return {"labels": [self.labels(ids) for ids in rows]}
        return {"labels": rows.new_tensor([self.labels(ids) for ids in rows.tolist()])}

    def labels(self, ids: list[int]) -> list[int]:
        labels, place = [IGNORED] * len(ids), 0
        while place < len(ids):
            if not self.answer.at(ids, place):
                place += 1
                continue
            begin = place + len(self.answer.core)
            begin += len(common(ids[begin:], self.answer.right))
            place = end = self.end(ids, begin)
            if end < len(ids) and self.question.at(ids, end):
                end -= len(common(ids[begin:end][::-1], self.question.left[::-1]))
            labels[begin:end] = ids[begin:end]
        return labels

    def end(self, ids: list[int], place: int) -> int:
        """Where the answer that begins there ends: with the end of the text's token, or before another message."""
        while place < len(ids):
            if ids[place] == self.eos:
                return place + 1
            opened = self.opener and ids[place : place + len(self.opener)] == self.opener
            if opened or ids[place] == self.bos or self.answer.at(ids, place) or self.question.at(ids, place):
                return place
            place += 1
        return place


def around(processor: Any, tokenizer: Any) -> tuple[str, str]:
    """The texts that the chat template puts before every question and before every answer."""
    from jinja2 import TemplateError

    said: list[Callable[[str], Any]] = [str, lambda text: [{"type": "text", "text": text}]]
    for ask, tell in ((said[0], said[0]), (said[1], said[1]), (said[1], said[0])):
        turn = [{"role": "user", "content": ask(ASKED)}, {"role": "assistant", "content": tell(ANSWERED)}]
        try:
            found = gaps(processor, tokenizer, turn * 3)
        except (TemplateError, TypeError, ValueError):
            continue
        if found:
            question, answer = strip(tokenizer, *found)
            return question, thoughtless(processor, answer, ask, tell)
    raise unmarked()


def thoughtless(processor: Any, answer: str, ask: Callable[[str], Any], tell: Callable[[str], Any]) -> str:
    """The marker without a place for thoughts at its end, where a row's own thoughts stand in that place."""
    empty = re.search(r"(?:<[^\s/<>]+>\s*)?</([^\s/<>]+)>\s*$", answer)
    if not empty or not empty.start():
        return answer
    header, thoughts = answer[: empty.start()], f"<{empty[1]}>THOUGHT</{empty[1]}>{ANSWERED}"
    chat = [{"role": "user", "content": ask(ASKED)}, {"role": "assistant", "content": tell(thoughts)}]
    text = processor.apply_chat_template(chat, tokenize=False)
    return answer if text.rpartition(header)[2].startswith(empty[0]) else header


def gaps(processor: Any, tokenizer: Any, chat: list[Message]) -> tuple[list[str], list[str], str] | None:
    """What stands before later questions, before answers, and where an answer is asked for; none without the probes."""
    text = processor.apply_chat_template(chat, tokenize=False)
    if text.count(ASKED) != 3 or text.count(ANSWERED) != 3:
        return None
    first, *rest = text.split(ANSWERED)
    answers = [piece.partition(ASKED)[2] for piece in (first, *rest[:-1])]
    questions = [piece.partition(ASKED)[0] for piece in rest[:-1]]
    asked, answered = (
        processor.apply_chat_template(chat[:-1], tokenize=False, add_generation_prompt=wanted).rpartition(ASKED)[2]
        for wanted in (False, True)
    )
    return questions, answers, apart(tokenizer, answered, asked)[0]


def apart(tokenizer: Any, one: str, other: str) -> tuple[str, str]:
    """Both texts without what they begin with alike, in whole tokens that are no pieces of a text, and spaces."""
    added = sorted({token.content for token in tokenizer.added_tokens_decoder.values()}, key=len, reverse=True)
    while one and other:
        begun = next((token for token in added if one.startswith(token) and other.startswith(token)), "")
        if not begun and one[0] == other[0] and one[0].isspace():
            begun = one[0]
        if not begun:
            break
        one, other = one.removeprefix(begun), other.removeprefix(begun)
    # A plain text may end a question, too.
    return (one.removeprefix(other), "") if one.startswith(other) else (one, other)


def strip(tokenizer: Any, questions: list[str], answers: list[str], header: str) -> tuple[str, str]:
    """Of what stands between a question and an answer, and between that and the next: what begins each of them."""
    question, answer = questions[0], answers[0]
    # A template may ask for thoughts where it asks for an answer, and put them before the last one only.
    while header and not (answer.endswith(header) and all(header in gap for gap in answers)):
        header = header[:-1]
    if header.strip() and header != answer:
        return question.removeprefix(answer.removesuffix(header)).strip(" \t"), header.strip(" \t")
    if header.strip():
        # What ends a question was taken for a part of it.
        answer, question = apart(tokenizer, answer, question)
    ends = [token for token in (tokenizer.eos_token, tokenizer.bos_token, " ", "\t") if token]
    while begun := next((token for token in ends if question.startswith(token)), ""):
        question = question.removeprefix(begun)
    while begun := next((token for token in ends if answer.startswith(token)), ""):
        answer = answer.removeprefix(begun)
    return question.rstrip(" \t"), answer.rstrip(" \t")


def marker_of(tokenizer: Any, text: str) -> Marker:
    """The tokens of a marker, with those at its edges apart that what stands beside it may be merged with."""
    ids = list(tokenizer(text, add_special_tokens=False).input_ids)
    start, end = 0, len(ids)
    for beside in BESIDE:
        after = tokenizer(text + beside, add_special_tokens=False).input_ids
        before = tokenizer(beside + text, add_special_tokens=False).input_ids
        end = min(end, len(common(ids, after)))
        start = max(start, len(ids) - len(common(ids[::-1], before[::-1])))
    return Marker(ids[:start], ids[start:end], ids[max(start, end) :])


def common(one: Sequence[int], other: Sequence[int]) -> list[tuple[int, int]]:
    """The pairs of equal items at the beginning of both."""
    alike = list[tuple[int, int]]()
    for pair in zip(one, other, strict=False):
        if pair[0] != pair[1]:
            break
        alike.append(pair)
    return alike


def unmarked() -> UserError:
    hint = "Use another --chat-template, or --train-on all."
    return UserError("no markers around answers were found in the chat template.", hint, status=2)


# ---- A look at them ----


def marked(tokenizer: Any, ids: list[int], labels: list[int], longest: int = 400) -> str:
    """A row as text, with ⟦ ⟧ around what is trained on."""
    pieces = []
    for trained, tokens in groupby(zip(ids, labels, strict=True), key=lambda pair: pair[1] != IGNORED):
        text = tokenizer.decode([id for id, _ in tokens])
        if len(text) > longest:
            text = f"{text[: longest // 2]} … {text[-longest // 2 :]}"
        pieces.append(f"⟦{text}⟧" if trained else text)
    return "".join(pieces)


@dataclass
class Tally:
    """What rows teach, counted in tokens: `stops` are those trained on that end an answer."""

    stop: int
    rows: int = 0
    trained: int = 0
    masked: int = 0
    stops: int = 0

    def add(self, labels: Sequence[int]) -> None:
        """Count a row; its first token is never predicted."""
        targets = [label for label in labels[1:] if label != IGNORED]
        self.rows += 1
        self.trained += len(targets)
        self.masked += len(labels) - len(targets)
        self.stops += targets.count(self.stop)

    def require(self, tokenizer: Any, masked_wanted: bool) -> None:
        """Refuse to train on nothing, on prompts, or without an end."""
        if not self.trained:
            hint = "Raise --max-length if the answers are cut off, else check the chat template and the rows."
            raise UserError("every token is masked: there is nothing to learn.", hint, status=2)
        if masked_wanted and self.masked <= self.rows:
            hint = "If so wanted, add --train-on all."
            raise UserError("no token is masked: the prompts would be trained on too.", hint, status=2)
        if not self.stops:
            hint = "Raise --max-length if most rows are cut, else try another --chat-template."
            end = tokenizer.decode([self.stop])
            raise UserError(f"{end} is never trained on: the model would not learn to stop.", hint, status=2)


def check_labels(trainer: Any, tokenizer: Any, stop: int, masked_wanted: bool) -> None:
    """Show a row with its mask as the trainer gives it to the model, and refuse what teaches nothing, or the wrong."""
    tally, first = Tally(stop), ""
    for batch in trainer.get_train_dataloader():
        ids, labels = batch["input_ids"], batch["labels"]
        if "attention_mask" in batch:
            # A row's own tokens, on whichever side it was filled up.
            kept = [row.nonzero().flatten().tolist() for row in batch["attention_mask"]]
            rows = [(ids[n, kept[n]].tolist(), labels[n, kept[n]].tolist()) for n in range(len(kept))]
        else:
            # Rows laid end to end: each starts at position 0.
            starts = (batch["position_ids"].flatten() == 0).nonzero().flatten().tolist()
            flat, own = ids.flatten().tolist(), labels.flatten().tolist()
            rows = [(flat[a:b], own[a:b]) for a, b in pairwise([*starts, len(flat)])]
        first = first or marked(tokenizer, *rows[0])
        for _, row in rows:
            tally.add(row)
        if tally.rows >= LOOKED_AT:
            break
    counted = f"{tally.trained} tokens trained on, {tally.masked} masked, over the first {tally.rows} rows"
    note(f"labels: {counted}. One of them:\n{first}")
    tally.require(tokenizer, masked_wanted)


# ---- Push ------------------------------------------------------------------------------------------------------------
# The push: known to be possible before the training, verified file by file, and kept with a command where it fails.

Answer = TypeVar("Answer")
# The model is kept anyway, and a GPU costs money while it waits: eight attempts last a few minutes.
ATTEMPTS, LONGEST_WAIT_S, LONGEST_WAITS_S = 8, 60.0, 900.0


def open_repo(name: str, private: bool, create: bool = True) -> str:
    """The output repo's full name, found there or created, and this token may write to it: known before any training.

    Raises `UserError` of status 3 where it can't be written to, or is public although it should be private.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import RepositoryNotFoundError

    if not get_token():
        raise UserError(
            f"{name} can't be written to without a token.", "Run `hf auth login` or set HF_TOKEN.", status=2
        )
    api = hub()
    try:
        if "/" not in name:
            name = f"{persist('asking who this token belongs to', api.whoami)['name']}/{name}"
        try:
            found = persist(f"looking up {name}", lambda: api.model_info(name))
        except RepositoryNotFoundError:
            if create:
                persist(f"creating {name}", lambda: api.create_repo(name, private=private, exist_ok=True))
            return name
        if found.id != name:
            note(f"{name} is now called {found.id}")
        persist(f"asking for {name}", lambda: api.auth_check(found.id, write=True))
    except Exception as error:
        hint = "Check the name, the token and the network, or leave --output-repo away."
        raise UserError(f"{name} can't be written to ({reason(error)}).", hint, status=3) from error
    if private and not found.private:
        hint = "Make it private on its page, or choose another --output-repo."
        raise UserError(f"--private: {found.id} is there already, and public.", hint, status=3)
    return str(found.id)


def hub() -> Any:
    """The Hub's client, which sends nothing that is written on to another host."""
    from huggingface_hub import HfApi, get_session

    hooks = get_session().event_hooks["response"]
    if hold not in hooks:
        hooks.append(hold)
    return HfApi()


def hold(response: Any) -> None:
    """Refuse a redirection to another host: the client would send the model there."""
    from huggingface_hub.errors import HfHubHTTPError

    request = response.request
    if response.has_redirect_location and request.method not in ("GET", "HEAD"):
        target = request.url.join(response.headers["location"])
        if (target.scheme, target.netloc) != (request.url.scheme, request.url.netloc):
            raise HfHubHTTPError(f"{request.url.host} sends it on to {target.host}, another host", response=response)


def push(folder: Path, repo: str, paths: Collection[str], stale: Collection[str] = ()) -> str:
    """Upload these files of the folder in one commit, and again until the Hub holds each as it is here; its address.

    Files that are `stale` in the repo are deleted with it.
    Raises `UserError` with the command that brings the model to the repo later: it stays in the folder.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    api, folder, files = hub(), Path(folder), sorted({*paths})

    def attempt() -> None:
        # What the Hub holds already is left out of the commit, so that a lost answer makes no second one, which
        # `upload_folder` does. The Hub refuses to delete what is gone, as after a lost answer.
        gone = sorted({*stale}.intersection(api.list_repo_files(repo)).difference(files)) if stale else []
        changes: list[Any] = [CommitOperationAdd(path, folder / path) for path in files]
        changes += [CommitOperationDelete(path) for path in gone]
        api.create_commit(repo, changes, commit_message="Trained with launch")
        found = api.verify_repo_checksums(repo, local_dir=folder)
        wrong = {*found.extra_paths, *(mismatch["path"] for mismatch in found.mismatches)}.intersection(files)
        if wrong:
            raise RuntimeError(f"the Hub does not hold {', '.join(sorted(wrong))} as sent")

    try:
        persist(f"the push to {repo}", attempt)
    except Exception as error:
        raise UserError(f"the push to {repo} failed ({reason(error)}).", rescue(folder, repo, files)) from error
    note(f"pushed to {repo}, and every file is there as it is here: {', '.join(files)}")
    return f"{api.endpoint}/{repo}"


def persist(what: str, act: Callable[[], Answer]) -> Answer:
    """What `act` returns, tried again after failures of the service or the network, never after a refusal (4xx)."""
    from huggingface_hub import is_offline_mode

    attempt, waited = 0, 0.0
    while True:
        attempt += 1
        try:
            return act()
        except Exception as error:
            # The client wraps some refusals. An error of the network has no response; nor has one of the content store.
            response = getattr(error, "response", getattr(error.__cause__, "response", None))
            status = getattr(response, "status_code", 500)
            if attempt == ATTEMPTS or is_offline_mode() or (status < 500 and status not in (408, 429)):
                raise
            wait = pause(getattr(response, "headers", {}), attempt)
            waited += wait
            if waited > LONGEST_WAITS_S or wait > CLOCK.left_s() - LAST_S:
                raise
            note(f"{what} failed ({reason(error)}), trying again in {wait:.0f} s")
            time.sleep(wait)


def pause(headers: Any, attempt: int) -> float:
    """Seconds to wait after that attempt: what the service asks for, else twice as long every time, and uneven."""
    asked = re.match(r"\d+", headers.get("retry-after", "")) or re.search(r"(?<=\bt=)\d+", headers.get("ratelimit", ""))
    # Not from the seeded generator, on which the order of the rows depends.
    share = random.SystemRandom().uniform(0.5, 1)
    return int(asked[0]) + share if asked else min(2.0**attempt, LONGEST_WAIT_S) * share


def rescue(folder: Path, repo: str, files: Collection[str]) -> str:
    """What to do where these files could not be pushed: one command for another machine, or for this one."""
    data, place, name = volume(), folder.resolve(), repo.split("/")[-1]
    # Nothing that lies beside them.
    upload = f"hf upload --private {' '.join(f'--include {shlex.quote(name)}' for name in sorted(files))} {repo}"
    if not data:
        return f"The model is kept; this pushes it: {upload} {shlex.quote(str(place))} ."
    if not place.is_relative_to(data.resolve()):
        # Elsewhere it would go with the container.
        for file in files:
            (data / "output" / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(place / file, data / "output" / file)
        place = (data / "output").resolve()
    inside, bucket = place.relative_to(data.resolve()).as_posix(), os.environ.get("LAUNCH_ARTIFACTS")
    if not bucket:
        job = os.environ.get("JOB_ID")
        return f"The model is kept in {inside}/ of the Job's bucket; this names it: hf jobs inspect {job}"
    fetch = f"hf buckets sync {shlex.quote(f'{bucket}/{inside}')} {name}"
    return f"The model is kept in the Job's bucket; this fetches and pushes it: {fetch} && {upload} {name} ."


# ---- Saving ----------------------------------------------------------------------------------------------------------
# The model on the disk: there is room for it, it is saved whole, and run.json says how to make it again.

# transformers knows no presence penalty.
ONLY_OLLAMA = {"presence_penalty"}
SAMPLING = ("temperature", "top_k", "top_p", "min_p")
# The card is written after the record, and made of it.
RECORD, PLAN, CARD, PICTURE = "run.json", "plan.json", "README.md", "loss.png"
# A path of this machine, and rows of a dataset that may be private.
NOT_RECORDED = ("output_dir", "samples")


def check_disk(folder: Path, model: Any, optim: str) -> None:
    """Refuse where the disk can't take what a run writes: the adapter, two checkpoints and the next one.

    A checkpoint is the adapter and the optimizer's two moments, of 1 byte a parameter in 8 bits, else of 4.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    adapter = sum(parameter.numel() * parameter.element_size() for parameter in trained)
    checkpoint = adapter + sum(parameter.numel() for parameter in trained) * (2 if "8bit" in optim else 8)
    told = [f"an adapter of {adapter / 1e9:.2f} GB, three checkpoints of {checkpoint / 1e9:.2f} GB"]
    # The tokenizer and the trainer's records take some too.
    require_disk(folder, adapter + 3 * checkpoint + 2**26, told, "Free some, or give --output-dir on another disk.")


def recommended(args: Any, planned: dict[str, Any]) -> dict[str, float]:
    """How the makers of the model say that it is best sampled; empty for another model than the chosen one."""
    return dict(planned["generation"]) if args.model == type(args).model else {}


def generation_of(known: Any, settings: dict[str, float], stop: int) -> Any:
    """The model's generation settings with the recommended ones, and with the token that ends an answer."""
    from transformers import GenerationConfig

    found: dict[str, Any] = {name: value for name, value in settings.items() if name not in ONLY_OLLAMA}
    if found:
        # A temperature of 0 is how others say that nothing is drawn.
        greedy = found.get("temperature") == 0
        found |= {"do_sample": not greedy} | (dict.fromkeys(SAMPLING) if greedy else {})
    known = known or GenerationConfig()
    ends = known.eos_token_id if isinstance(known.eos_token_id, list) else [known.eos_token_id]
    found["eos_token_id"] = [stop, *(token for token in ends if token not in (stop, None))]
    try:
        known.update(**found)
        known.validate(strict=True)
    except ValueError:
        # What the model brought contradicts itself, and would not be saved.
        known = GenerationConfig(bos_token_id=known.bos_token_id, pad_token_id=known.pad_token_id, **found)
    return known


def save(folder: Path, *parts: Any) -> list[str]:
    """Save the model and its tokenizer in the folder, whole or not at all: until they are written, all there stays.

    Returns the names of the files. Raises `UserError` where the disk is full or fails.
    """
    # Inside, where nothing has to be copied once it is whole.
    fresh = folder / ".saving"
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        for part in parts:
            part.save_pretrained(fresh)
        saved = [path.relative_to(fresh).as_posix() for path in sorted(fresh.rglob("*")) if path.is_file()]
        for path in fresh.iterdir():
            if (folder / path.name).is_dir():
                shutil.rmtree(folder / path.name)
            shutil.move(path, folder / path.name)
        fresh.rmdir()
        return saved
    # Some writers have errors of their own for a full disk.
    except Exception as error:
        shutil.rmtree(fresh, ignore_errors=True)
        hint = f"What was in {folder} is as it was. Make room and run this again: it goes on from the last checkpoint."
        raise UserError(f"the model could not be saved in {folder} ({reason(error)}).", hint) from error


def write_record(folder: Path, args: Any, result: dict[str, Any], model: Any, saved: list[str]) -> None:
    """Write run.json and the script itself into the folder; of environment variables the names only. Raises nothing."""
    # One that was there is of other weights.
    with spared(folder / RECORD):
        script = Path(__file__).resolve()
        (folder / script.name).write_bytes(script.read_bytes())
        plan, dataset, named = read_plan(script), Path(args.dataset).expanduser(), args.dataset
        variables = sorted(plan["env"]) if plan else []
        if plan:
            plan["env"] = {}
            # A file that was sent along lies elsewhere here, under its own name.
            if dataset.exists() and Path(plan["dataset"]).name.replace(" ", "_") == dataset.name.replace(" ", "_"):
                named = plan["dataset"]
        commit = getattr(model.config, "_commit_hash", None) or commit_of(args.model, args.revision, "model")
        words = {args.dataset: named, f"--dataset={args.dataset}": f"--dataset={named}"}
        record = {
            "version": 1,
            "launcher": (plan or {}).get("launcher"),
            "plan": plan,
            "script": {"name": script.name, "sha256": sha256(script)},
            "args": [words.get(word, word) for word in sys.argv[1:]],
            "inputs": {named: sha256(dataset)} if dataset.is_file() else {},
            "env": variables,
            "flavor": plan["flavor"] if plan else os.environ.get("ACCELERATOR"),
            "revisions": {"model": commit, "dataset": commit_of(args.dataset, args.dataset_revision, "dataset")},
            "packages": {found.name: found.version for found in distributions()},
            "python": platform.python_version(),
            "platform": platform.platform(),
            "device": result["device"],
            "files": {path: sha256(folder / path) for path in (*saved, script.name) if path != CARD},
            "result": finite({name: value for name, value in result.items() if name not in NOT_RECORDED}),
        }
        draft = folder / f".{RECORD}"
        draft.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        draft.replace(folder / RECORD)


@contextmanager
def spared(path: Path) -> Iterator[None]:
    """Whatever fails inside, where the file is written, costs that file only, and an earlier one in its place."""
    try:
        yield
    except Exception as error:
        path.unlink(missing_ok=True)
        note(f"{path.name} could not be written, the run goes on without it ({reason(error)})")


def read_plan(script: Path) -> dict[str, Any] | None:
    """The launcher's plan beside the script, or none where it was run by hand."""
    try:
        text = script.with_name(PLAN).read_text(encoding="utf-8")
        plan = json.loads(text, parse_constant=lambda _: None)
        return plan if isinstance(plan, dict) and {"repo", "dataset", "flavor", "env", "cost"} <= plan.keys() else None
    except (OSError, ValueError):
        return None


def commit_of(name: str, revision: str | None, kind: str) -> str | None:
    """The commit of a Hub repo that was loaded; none for a local one, and where the Hub's client kept none.

    Whoever loads by the name of a branch or tag asks for a file first, and the client notes what commit that was.
    """
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    if not is_hub_id(name):
        return None
    if is_commit(revision):
        return revision
    cache = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type=kind))
    try:
        commit = (cache / "refs" / (revision or "main")).read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return commit if is_commit(commit) else None


# ---- Card ------------------------------------------------------------------------------------------------------------
# Model cards: what was trained on what, how and how well, how to use it, and what anybody named as plain Markdown.

# Matplotlib's import and, on a new machine, its list of fonts.
PICTURE_S = 30
SNIPPET = """\
# pip install transformers accelerate{packages}
{imports}from transformers import {model_class}, {reader_class}, GenerationConfig

place = {place}
reader = {reader_class}.from_pretrained(place)
model = {model_class}.from_pretrained({base}, dtype="auto", device_map="auto"{code})
{adapt}{ask}
settings = GenerationConfig.from_pretrained(place)
output = model.generate(**inputs.to(model.device), generation_config=settings, max_new_tokens=200)
print(reader.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))"""
ASK_CHAT = """\
messages = [{"role": "user", "content": CONTENT}]
inputs = reader.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)"""
CONTENTS = {
    "chat": '"What can you do?"',
    "picture": '[{"type": "image", "image": "picture.jpg"}, {"type": "text", "text": "What is shown here?"}]',
}


def write_card(
    folder: Path, args: Any, planned: dict[str, Any], result: dict[str, Any], history: list[Any], left_s: float
) -> None:
    """Write README.md with its picture of the losses, which is left out with few seconds left. Raises nothing."""
    (folder / PICTURE).unlink(missing_ok=True)
    if left_s > PICTURE_S:
        with spared(folder / PICTURE):
            draw_losses(folder / PICTURE, result, history)
    # PEFT's own names the base model as it was loaded, and a path in its place is refused by the Hub.
    with spared(folder / CARD):
        (folder / CARD).write_text(make_card(folder, args, planned, finite(result)), encoding="utf-8")


def make_card(folder: Path, args: Any, planned: dict[str, Any], result: dict[str, Any]) -> str:
    """The text of the card; what is not known is left out."""
    record = json.loads((folder / RECORD).read_text(encoding="utf-8")) if (folder / RECORD).is_file() else {}
    repo, commits = result["output_repo"], record.get("revisions", {})
    base, commit, sees = args.model, commits.get("model"), hasattr(args, "image_size")
    about = f"A LoRA adapter for {linked(base, commit)}, "
    about += f"fine-tuned on {linked(args.dataset, commits.get('dataset'), 'datasets/')}."
    if result["stopped"]:
        about += f" The training was stopped after step {result['steps']}, before its end."
    pieces = [card_head(
        repo.split("/")[-1] if repo else args.run_name, about, base, "adapter", sees, [args.dataset],
        planned["licence"] if base == type(args).model else {},
        library_name="peft", tags=["lora", "sft", "trl", "unsloth", "launch"],
    )]  # fmt: skip
    pieces += ["![The loss by step](loss.png)"] * (folder / PICTURE).is_file()
    rows = card_rows(args, record, result).items()
    table = "\n".join(f"| {name} | {value} |" for name, value in rows if value)
    pieces.append(f"## Training\n\n| | |\n| --- | --- |\n{table}")
    ask = "picture" if sees else "chat" if (folder / "chat_template.jinja").is_file() else "text"
    text = snippet(
        repr(repo or "."), ask, args.trust_remote_code,
        packages=" peft bitsandbytes" if "bnb-4bit" in base else " peft", imports="from peft import PeftModel\n",
        base=f"{base!r}, revision={commit!r}" if commit else repr(base),
        adapt="model = PeftModel.from_pretrained(model, place)\n",
    )  # fmt: skip
    pieces.append(f"## How to use it\n\n### transformers and PEFT\n\n```python\n{text}\n```")
    sampling = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in recommended(args, planned).items())
    if sampling:
        told = f"{sampling}, as the makers of the base model recommend (<{planned['generation_source']}>)."
        pieces.append(f"## Sampling\n\n{told} `generation_config.json` holds what transformers knows of it.")
    told = f"`{RECORD}` holds the plan, the commits, every package's version and the hashes;"
    script = f"{code(Path(__file__).name)} is the script that ran, and runs by itself: `uv run`."
    return "\n\n".join([*pieces, f"## To run it again\n\n{told} {script}"]) + "\n"


def card_rows(args: Any, record: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """What was learned from, how and how well, and where; of time and cost what this attempt knows."""
    on_gpu, batch, accumulation = result["device"] != "cpu", result["batch_size"], result["gradient_accumulation"]
    rows, held_out, mean = result["rows"], result["eval_rows"], result["train_loss"]
    subset = ", ".join(code(name) for name in (args.dataset_config, args.dataset_split) if name)
    packed = "packed " if on_gpu and getattr(args, "packing", False) else ""
    moments = {"eval_loss_before": "before training", "eval_loss": "after it"}
    seen = ", ".join(f"{result[name]:.4f} {when}" for name, when in moments.items() if result[name] is not None)
    of = f"rows of {code(args.eval_split)}" if args.eval_split else "rows held out"
    in_job, flavor = bool(os.environ.get("JOB_ID")), record.get("flavor")
    rate = (record.get("plan") or {}).get("cost", {}).get("usd_per_hour")
    total_s, peak, predicted = time.monotonic() - STARTED, result["peak_gib"], result["predicted_peak_gib"]
    total, training = (timedelta(seconds=round(seconds)) for seconds in (total_s, result["train_s"]))
    again = f", in attempt {result['attempt']}" if result["attempt"] > 1 else ""
    memory = f"{peak:.2f} GiB at most" if peak is not None else ""
    memory += f", {predicted:.2f} GiB predicted" if memory and predicted is not None else ""
    return {
        "Data": subset + (f", {rows:,} rows" if rows else ", streamed" if args.streaming else ""),
        "Tokens": f"{result['tokens_seen']:,} seen, {result['tokens_trained']:,} of them learned from",
        "Steps": f"{result['steps']:,} of {batch * accumulation} {packed}rows, {args.max_length:,} tokens at most",
        "Learning rate": f"{args.learning_rate:g}, {args.lr_scheduler_type}, {args.warmup_ratio:.0%} to warm up",
        "Optimizer": f"{args.optim if on_gpu else 'adamw_torch'}, weight decay {args.weight_decay:g}",
        "LoRA": f"rank {args.lora_r}, alpha {args.lora_alpha}, dropout {args.lora_dropout:g}",
        "Frozen weights": args.load_in.replace("bit", " bits") if on_gpu else None,
        "Training loss": f"{mean:.4f}, mean of the last logged steps" if mean is not None else None,
        "Evaluation loss": seen and f"{seen}, on {f'{held_out:,} {of}' if held_out else of}",
        "Hardware": code(result["device"]) + (f", flavor {code(flavor)}" if in_job and flavor else ""),
        "Time": f"{total}{again}; {training} of training",
        "Speed": f"{result['tokens_per_second']:,.0f} tokens a second",
        "Cost": f"about ${rate * total_s / 3600:.2f}{again}, at ${rate:.2f} an hour" if in_job and rate else None,
        "GPU memory": memory,
        "Versions": ", ".join(f"{name} {number}" for name, number in result["versions"].items()),
    }


def draw_losses(path: Path, result: dict[str, Any], history: list[dict[str, Any]]) -> None:
    """Draw the losses by step: what was logged, and what the evaluations found."""
    from matplotlib.figure import Figure

    # Of the first evaluation the history does not tell.
    evaluated = {0: result["eval_loss_before"], result["steps"]: result["eval_loss"]}
    evaluated |= {entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry}
    trained = {entry["step"]: entry["loss"] for entry in history if "loss" in entry}
    figure = Figure(figsize=(7, 3.5), dpi=110, layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss")
    for name, found, style in (("training", trained, "-"), ("evaluation", evaluated, "o--")):
        points = sorted((step, value) for step, value in found.items() if value is not None and math.isfinite(value))
        if points:
            axes.plot(*zip(*points, strict=True), style, label=name)
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path, format="png")


def card_head(
    title: str, about: str, model: str, relation: str, sees: bool, datasets: Sequence[str], licence: dict[str, Any],
    **more: Any,
) -> str:  # fmt: skip
    """A card's metadata, title and first words; `licence` are the fields of the `model` that it builds on."""
    from huggingface_hub import ModelCardData

    if is_hub_id(model):
        more |= {"base_model": model, "base_model_relation": relation}
    data = ModelCardData(
        datasets=[name for name in datasets if is_hub_id(name)] or None,
        pipeline_tag="image-text-to-text" if sees else "text-generation", **licence, **more,
    )  # fmt: skip
    if licence:
        name = licence.get("license_name") if licence["license"] == "other" else licence["license"]
        about += f" The base model's licence holds for it too{f': {code(name)}' if name else ''}."
    return f"---\n{data}\n---\n\n# {title}\n\n{about}"


def snippet(place: str, ask: str, trusted: bool, **how: str) -> str:
    """Code that runs as it stands: loads the model of that place, asks it as `ask` says, prints its answer.

    `how` may say `packages`, `imports`, the `base` that is loaded, and how that is `adapt`ed.
    """
    content = CONTENTS.get(ask)
    return SNIPPET.format_map(
        {"packages": "", "imports": "", "base": "place", "adapt": ""} | how | {
            "place": place,
            "code": ", trust_remote_code=True" if trusted else "",
            "model_class": "AutoModelForImageTextToText" if ask == "picture" else "AutoModelForCausalLM",
            "reader_class": "AutoProcessor" if ask == "picture" else "AutoTokenizer",
            "ask": ASK_CHAT.replace("CONTENT", content) if content
                   else 'inputs = reader("Once upon a time", return_tensors="pt")',
        }
    )  # fmt: skip


def linked(name: str, commit: str | None = None, kind: str = "") -> str:
    """A Hub repo with its address and commit, or the name of what lay on the machine."""
    if not is_hub_id(name):
        return f"{code(Path(name).name)} (not on the Hub)"
    return f"[{code(name)}](https://huggingface.co/{kind}{name})" + (f" at {code(commit[:12])}" if commit else "")


def code(text: object) -> str:
    """The text as code, on one line, that ends neither a table's cell nor the code."""
    text = re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", str(text)).replace("|", "¦").replace("`", "ˋ")
    return f"`{text}`"


# ---- Second ----------------------------------------------------------------------------------------------------------
# Copies of the model (merged, GGUF) are made by export.py, which lies beside this script, in a process of its own.

EXPORTER = "export.py"
# Options that both scripts have.
SHARED = ("model", "revision", "load_in", "trust_remote_code", "merge", "merged_repo", "gguf", "private", "run_name",
          "output_dir", "timeout_s", "device")  # fmt: skip


def check_copies(args: Any, output_repo: str | None) -> None:
    """Refuse, as it says it, what export.py can't make, before the training is paid for."""
    if not (args.merge or args.gguf):
        return
    phase("check copies")
    if not Path(__file__).with_name(EXPORTER).is_file():
        hint = f"Put job_scripts/{EXPORTER} there, or leave the copies away: `launch export` makes them later."
        raise UserError(f"--merge and --gguf need {EXPORTER} beside {Path(__file__).name}.", hint, status=2)
    _, status, problem = run_exporter(args, output_repo, "--dry-run")
    if status:
        raise UserError(problem or f"{EXPORTER} ended with status {status}.", status=status if status in (2, 3) else 1)


def make_copies(args: Any, folder: Path, output_repo: str | None) -> tuple[list[Any], UserError | None]:
    """The copies of the adapter in that folder, as export.py's RESULT has them, and the error of those that failed."""
    exports, status, problem = run_exporter(args, output_repo, "--adapter", str(folder))
    said = f"{EXPORTER} ended with status {status}"
    if output_repo:
        # Where the adapter can be found from elsewhere.
        problem = problem.replace(f"launch export {folder}", f"launch export {output_repo}")
    error = UserError(problem or f"the adapter is whole, and {said}.") if status else None
    return not_made(args, said) if exports is None else exports, error


def not_made(args: Any, problem: str) -> list[Any]:
    """The copies that were asked for, as RESULT has them, none of which is there."""
    asked = [("merged", args.merge)] * bool(args.merge) + [("gguf", kind) for kind in args.gguf]
    rest = dict.fromkeys(("path", "repo", "gib", "checked")) | {"error": problem}
    return [{"kind": kind, "name": name} | rest for kind, name in asked]


def run_exporter(args: Any, output_repo: str | None, *words: str) -> tuple[list[Any] | None, int, str]:
    """Run it with this run's options: the copies of its RESULT, its exit status, and what its `error:` line says."""
    options = {name: getattr(args, name) for name in SHARED} | {"output_repo": output_repo}
    options["modality"] = "vision" if hasattr(args, "image_size") else "text"
    command = [sys.executable, str(Path(__file__).with_name(EXPORTER)), *words]
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            command.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            command += [
                word for one in (value if isinstance(value, tuple) else [value]) for word in (f"--{flag}", str(one))
            ]
    # Its deadline is this run's.
    began = {"LAUNCH_STARTED": str(CLOCK.deadline - args.timeout_s)} if args.timeout_s else {}
    exports, problem = None, ""
    piped: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    with subprocess.Popen(command, env=os.environ | began, **piped) as process:

        def pass_on(number: int, frame: FrameType | None) -> None:
            CLOCK.on_signal(number, frame)
            process.terminate()

        handlers = {number: signal.signal(number, pass_on) for number in SIGNALS}
        if CLOCK.signalled:
            process.terminate()
        for line in process.stdout or ():
            told = heard(line.rstrip("\n")) or ""
            if told.startswith("RESULT "):
                exports = json.loads(told.removeprefix("RESULT ")).get("exports")
            elif told.startswith("error: "):
                problem = told.removeprefix("error: ")
            else:
                note(line.rstrip("\n"))
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return exports, process.returncode, problem


# ---- Run -------------------------------------------------------------------------------------------------------------
# A run from its first second to its last words: what it goes on from, where it saves, and what its RESULT says.

DECIDES_MEMORY = ("model", "load_in", "max_length", "batch_size", "lora_r", "optim", "image_size")
# What an earlier attempt left, where this one came to nothing.
ADAPTER = ("adapter_model.safetensors", "adapter_config.json", "tokenizer*", "README.md", RECORD)
# Characters of a sample's texts: a longer line than all of them would be cut, and its mark with it.
SHOWN = 2000
PACKAGES = ("unsloth", "trl", "transformers", "datasets", "peft", "torch")


@dataclass
class Run:
    """One attempt; `saved` are the files of the model, as they were saved in the output folder."""

    args: Any
    planned: dict[str, Any]
    output_dir: Path
    checkpoints: Checkpoints
    output_repo: str | None
    saved: list[str] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)
    guard: Guard | None = None
    tracker: Any = None
    url: str | None = None
    push_error: UserError | None = None
    copies_error: UserError | None = None

    def ready(self) -> None:
        """From now on a signal does not end it at once, and a step that never comes back is not waited for."""
        CLOCK.at_once, CLOCK.last_s = False, 1.5

    def known(self, stopped: str | None) -> dict[str, Any]:
        """What RESULT says wherever the run ends."""
        return {
            "status": "stopped" if stopped else "done",
            "stopped": stopped,
            "attempt": self.checkpoints.attempt,
            "resumed_from": self.checkpoints.found.get("step"),
            "output_dir": str(self.output_dir.resolve()),
            "output_repo": self.output_repo,
        }

    def describe(self, guard: Guard, words: Callable[[Any], str], rows: Any, eval_rows: Any) -> None:
        """Note what the RESULT says of the training, and write record and card beside the model.

        `words` are a message's, `rows` those that were trained on.
        """
        import torch

        self.guard, args, trainer, steps = guard, self.args, guard.trainer, guard.trainer.state.global_step
        chosen = type(args)()
        as_planned = all(getattr(args, name, None) == getattr(chosen, name, None) for name in DECIDES_MEMORY)
        first_step_s, own_steps = guard.first_step_s or guard.trained_s, steps - guard.start
        logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry][-10:]
        train_s, tokens = guard.earlier_s + guard.trained_s, int(guard.counts["tokens_seen"])
        # A stream has no length; another attempt may have been asked for fewer answers.
        count, eval_count = (len(data) if hasattr(data, "__len__") else None for data in (rows, eval_rows))
        before = [*guard.before["answers"], *(None for _ in guard.asked)]
        samples = [
            {"prompt": words(prompt)[:SHOWN], "expected": words(expected)[:SHOWN], "before": first, "after": last}
            for (*_, prompt, expected), first, last in zip(guard.asked, before, guard.after["answers"], strict=False)
        ]
        self.result = self.known(guard.stopped if steps < trainer.state.max_steps or not steps else None) | {
            "steps": steps, "rows": count, "eval_rows": eval_count,
            "batch_size": args.batch_size, "gradient_accumulation": args.gradient_accumulation,
            "tokens_seen": tokens, "tokens_trained": int(guard.counts["tokens_trained"]),
            "train_loss": sum(logged) / len(logged) if logged else None,
            "eval_loss_before": guard.before["loss"], "eval_loss": guard.after["loss"], "samples": samples,
            "tokens_per_second": tokens / max(train_s, 1e-3), "train_s": train_s, "startup_s": guard.startup_s,
            "first_step_s": first_step_s,
            "step_s": (guard.trained_s - first_step_s) / (own_steps - 1) if own_steps > 1 else None,
            "largest_batch_tokens": guard.counts["largest_batch"],
            "peak_gib": max(guard.peaks.values(), default=None), "peaks_gib": guard.peaks,
            "predicted_peak_gib": self.planned["peak_gib"] if as_planned else None,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "versions": {name: version(name) for name in PACKAGES},
        }  # fmt: skip
        if steps:
            write_record(self.output_dir, args, self.result, trainer.model, self.saved)
            left_s = CLOCK.left_s() - 1.5 * guard.push_s
            write_card(self.output_dir, args, self.planned, self.result, trainer.state.log_history, left_s)

    def push(self) -> None:
        """Push the model, as far as there is time."""
        if self.tracker:
            import trackio

            # Not the run's own method: at the process's end Trackio would finish it again, behind the RESULT.
            trackio.finish()
        steps = self.result["steps"]
        if self.result["stopped"]:
            tell(f"stopped after step {steps}: {next_attempt(steps in self.checkpoints.whole)}")
        no_time = CLOCK.signalled and self.guard and CLOCK.left_s() <= LAST_S + 1.5 * self.guard.push_s
        if not self.output_repo or not steps or no_time:
            return
        phase("push")
        CLOCK.last_s = LAST_S
        try:
            self.url = push(self.output_dir, self.output_repo, self.written())
        except UserError as problem:
            self.push_error = problem

    def written(self) -> list[str]:
        """What this run wrote into its folder, and nothing that lies beside it."""
        written = [*self.saved, RECORD, CARD, PICTURE, Path(__file__).name]
        return [name for name in written if (self.output_dir / name).is_file()]

    def finish(self) -> None:
        """Make the copies and print the RESULT line; raise the error of a run that did not do all it was asked to."""
        free()
        if self.args.merge or self.args.gguf:
            stopped = CLOCK.signalled or (self.guard and self.guard.stopped)
            why = "its push failed" if self.push_error else "" if self.result["steps"] else "nothing was trained"
            why = why or ("asked to stop" if CLOCK.signalled else "no time is left" if stopped else "")
            self.result["exports"] = not_made(self.args, f"left out: {why or 'the time was up'}")
            if not why:
                self.result["exports"], self.copies_error = make_copies(self.args, self.output_dir, self.output_repo)
        CLOCK.rest()
        error = self.tell()
        if error:
            # Not done, and not lost: the last line is the command that goes on.
            raise error

    def tell(self) -> UserError | None:
        """Print the RESULT line; the error of a run that did not do all that it was asked to, or none."""
        problem = self.push_error.args[0] if self.push_error else None
        pushed = {"url": self.url, "pushed": self.url is not None, "push_error": problem}
        line = json.dumps(finite(self.result | pushed), allow_nan=False)
        tell(f"RESULT {line}")
        error = self.push_error or (None if self.result["stopped"] else self.copies_error)
        if not self.result["stopped"] and not error:
            try:
                (self.checkpoints.folder / DONE).write_text(line, encoding="utf-8")
            except OSError as full:
                note(f"that it is done can't be noted ({reason(full)})")
        return error

    def cut_off(self) -> int:
        """The last words where the time is up before the run has said them; the process's status."""
        pushes = self.output_repo and not self.url and not self.push_error
        if not self.result:
            stopped, whole = "signal" if CLOCK.signalled else "deadline", self.checkpoints.whole
            where = "before the training began" if CLOCK.at_once else "in a step that did not end"
            tell(f"stopped {where} ({stopped}): {next_attempt(bool(whole))}")
            if pushes and whole and (self.output_dir / "adapter_config.json").is_file():
                left = {path.name for pattern in ADAPTER for path in self.output_dir.glob(pattern)}
                note(rescue(self.output_dir, str(self.output_repo), left))
            self.result = self.known(stopped) | {"steps": whole[-1] if whole else 0}
        elif pushes and self.result["steps"]:
            kept = rescue(self.output_dir, str(self.output_repo), self.written())
            self.push_error = UserError(f"the push to {self.output_repo} did not end in time.", kept)
        error = self.tell()
        if error:
            error.tell()
        return error.status if error else 0


def begin(args: Any, planned: dict[str, Any]) -> Run | None:
    """The run that these options ask for; none where an earlier attempt of this Job did all there was to do."""
    earlier = result_before(args)
    if earlier:
        note("an earlier attempt did all there was to do: nothing is left")
        tell(f"RESULT {earlier}")
        return None
    claim(args)
    args, checkpoints = open_checkpoints(args)
    run = Run(args, planned, output_folder(args), checkpoints, args.output_repo or None)
    CLOCK.start(deadline(args.timeout_s, checkpoints.folder), run.cut_off)
    set_environment(args)
    return run


def next_attempt(kept: bool) -> str:
    """What to do after a stop, where a checkpoint is `kept` or not."""
    # Whoever pays: hf://buckets/NAMESPACE/…
    payer = os.environ.get("LAUNCH_ARTIFACTS", "").removeprefix("hf://buckets/").partition("/")[0]
    name = f"{payer}/" * bool(payer) + os.environ.get("JOB_ID", "")
    again = f"`launch resume {name}`" if os.environ.get("JOB_ID") else "the same command"
    return f"{again} {'goes on from there' if kept else 'starts over, since no checkpoint was made'}"


if __name__ == "__main__":
    with errors_told():
        arguments = read_options(Options, sys.argv[1:], "Supervised fine-tuning of one model on one dataset.")
        check_options(arguments)
        check_data(arguments)
        ended = main(arguments)
        if ended:
            # The GPU is free by now for what makes copies, in a process of its own.
            ended.finish()
