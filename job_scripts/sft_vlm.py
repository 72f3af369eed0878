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
# ]
#
# [tool.uv]
# exclude-newer = "2026-11-20T00:00:00Z"
# override-dependencies = ["certifi>=2026.1"]
#
# [tool.hf-jobs]
# flavor = "a10g-large"
# timeout = "19500s"
# secrets = ["HF_TOKEN"]
# ///
"""Fine-tune a vision-language model with LoRA on chats with images (Unsloth, one GPU).

Here, on a machine with a GPU:
    uv run job_scripts/sft_vlm.py --dataset HuggingFaceH4/llava-instruct-mix-vsft --max-steps 500 --output-repo USER/MODEL

On Hugging Face Jobs, on the machine that the header above names:
    hf jobs uv run job_scripts/sft_vlm.py --dataset HuggingFaceH4/llava-instruct-mix-vsft --output-repo USER/MODEL

Rows hold `messages`, and their pictures in `images` (or one in `image`), or inside the messages' parts. A placeholder,
`{"type": "image"}` or `<image>` in a text, says where a picture is shown. The loss counts the assistant's tokens only.
The last line printed is `RESULT {json}`.
"""

import argparse
import io
import itertools
import json
import math
import os
import random
import re
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

STARTED = time.monotonic()

# Every value that was chosen for this run; each is the default of the flag of the same name.
CHOSEN = {
    "model": "unsloth/Qwen3-VL-8B-Instruct",
    "revision": None,
    "load_in": "16bit",
    "chat_template": "qwen3-instruct",
    "dataset": "HuggingFaceH4/llava-instruct-mix-vsft",
    "dataset_config": None,
    "dataset_split": "train",
    "dataset_revision": None,
    "eval_split": None,
    "eval_rows": 64,
    "streaming": True,
    "train_on": "assistant",
    "max_steps": 500,
    "num_train_epochs": None,
    "max_length": 2048,
    "batch_size": 2,
    "gradient_accumulation": 8,
    "learning_rate": 0.0002,
    "lr_scheduler_type": "linear",
    "warmup_ratio": 0.03,
    "weight_decay": 0.01,
    "optim": "adamw_8bit",
    "seed": 3407,
    "logging_steps": 1,
    "eval_steps": None,
    "lora_r": 16,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "output_repo": None,
    "private": False,
    "run_name": "qwen3-vl-8b-sft",
    "sample_rows": 0,
    "trackio_project": "qwen3-vl-8b",
    "trackio_space": None,
    "image_size": 768,
    "finetune_vision_layers": True,
    "finetune_language_layers": True,
    "finetune_attention_modules": True,
    "finetune_mlp_modules": True,
}
PREDICTED_PEAK_GIB = 17.9
# The prediction holds while these are as planned.
DECIDES_MEMORY = ("model", "load_in", "max_length", "batch_size", "lora_r", "optim", "image_size")
FILE_LOADERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}


class UserError(Exception):
    """What is wrong and what to do next: shown as one paragraph, without a traceback."""

    def __init__(self, message, hint="", status=1):
        super().__init__(message, hint, status)
        self.paragraph, self.status = f"{message} {hint}".strip(), status


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f"{message}.", "--help lists every flag.", status=2)


def parse_args(argv):
    parser = Parser(description="Supervised fine-tuning of one model on one dataset.", allow_abbrev=False)

    add = parser.add_argument_group("model").add_argument
    add("--model", help="Hub repo id or local folder")
    add("--revision", help="branch, tag or commit of the model")
    add("--load-in", choices=["4bit", "16bit"], help="precision of the frozen weights")
    add("--chat-template", help="Unsloth template name, for models that bring none")

    add = parser.add_argument_group("data").add_argument
    add("--dataset", help="Hub dataset, json, jsonl, csv or parquet file, or a folder of these")
    add("--dataset-config", help="configuration (subset) of the dataset")
    add("--dataset-split", help="split to train on")
    add("--dataset-revision", help="branch, tag or commit of the dataset")
    add("--eval-split", help="split to evaluate on, instead of rows held out from the training split")
    add("--eval-rows", type=int, help="rows to hold out, or to use of --eval-split (0: none held out, all used)")
    add("--streaming", action=argparse.BooleanOptionalAction, help="read as a stream; needs --max-steps")
    add("--train-on", choices=["assistant", "all"], help="tokens that count in the loss")
    add("--image-size", type=int, help="longest side of an image in pixels; larger ones are shrunk")

    add = parser.add_argument_group("training").add_argument
    add("--max-steps", type=int, help="optimizer steps")
    add("--num-train-epochs", type=float, help="passes over the dataset, instead of --max-steps")
    add("--max-length", type=int, help="tokens per row; longer rows are cut")
    add("--batch-size", type=int, help="rows per forward pass")
    add("--gradient-accumulation", type=int, help="forward passes per optimizer step")
    add("--learning-rate", type=float, help="peak learning rate")
    add("--lr-scheduler-type", choices=["linear", "cosine", "constant", "constant_with_warmup"])
    add("--warmup-ratio", type=float, help="share of the steps spent warming up")
    add("--weight-decay", type=float)
    add("--optim", choices=["adamw_8bit", "adamw_torch", "paged_adamw_8bit"])
    add("--seed", type=int, help="of the data order and the adapter")
    add("--logging-steps", type=int, help="steps between two loss lines")
    add("--eval-steps", type=int, help="steps between evaluations (else before and after training only)")

    add = parser.add_argument_group("LoRA").add_argument
    add("--lora-r", type=int, help="rank")
    add("--lora-alpha", type=int, help="scale")
    add("--lora-dropout", type=float)
    for part in ("vision-layers", "language-layers", "attention-modules", "mlp-modules"):
        add(f"--finetune-{part}", action=argparse.BooleanOptionalAction, help=f"adapt the {part.replace('-', ' ')}")

    add = parser.add_argument_group("output").add_argument
    add("--output-dir", help="default: output/ on the Job's volume, else outputs/RUN_NAME")
    add("--output-repo", help="NAME or NAMESPACE/NAME on the Hub; nothing is pushed without it")
    add("--private", action=argparse.BooleanOptionalAction, help="create the output repo as private")
    add("--run-name", help="name of the run")
    add("--sample-rows", type=int, help="evaluation rows to answer before and after training")
    add("--trackio-project", help="Trackio project (empty: no tracking)")
    add("--trackio-space", help="Space that shows the metrics, NAMESPACE/NAME; kept on this machine without it")
    add("--device", choices=["auto", "cpu"], default="auto", help="cpu: train without a GPU")

    # Whichever of the two stop criteria is given replaces the chosen one.
    parser.set_defaults(**CHOSEN | {"max_steps": None, "num_train_epochs": None})
    # Flags may be spelled as in Python, --max_steps.
    words = [word.partition("=") for word in argv]
    argv = [(name.replace("_", "-") if name.startswith("--") else name) + eq + value for name, eq, value in words]
    args = parser.parse_args(argv)
    if args.max_steps and args.num_train_epochs:
        parser.error("--max-steps and --num-train-epochs both say when to stop: give one of them")
    if args.max_steps is None and args.num_train_epochs is None:
        args.max_steps, args.num_train_epochs = CHOSEN["max_steps"], CHOSEN["num_train_epochs"]
    return args


def check_args(args):
    """Refuse what can't work, before anything heavy is imported."""

    def refuse(flag, reason):
        value = getattr(args, flag.replace("-", "_"))
        raise UserError(f"--{flag} {value}: {reason}.", "--help lists every flag.", status=2)

    for flag in ("max-steps", "num-train-epochs", "batch-size", "gradient-accumulation", "learning-rate",
                 "logging-steps", "eval-steps", "lora-r", "lora-alpha"):  # fmt: skip
        value = getattr(args, flag.replace("-", "_"))
        if value is not None and not 0 < value < math.inf:
            refuse(flag, "should be above 0")
    for flag in ("eval-rows", "weight-decay", "seed", "sample-rows"):
        if not 0 <= getattr(args, flag.replace("-", "_")) < math.inf:
            refuse(flag, "should not be negative")
    for flag in ("warmup-ratio", "lora-dropout"):
        if not 0 <= getattr(args, flag.replace("-", "_")) < 1:
            refuse(flag, "should be at least 0 and below 1")
    if args.image_size < 28:
        refuse("image-size", "should be at least 28 pixels")
    if args.max_length < 16:
        refuse("max-length", "should be at least 16 tokens")
    if args.streaming and args.max_steps is None:
        raise UserError("a stream has no known end.", "Add --max-steps N, or --no-streaming.", status=2)
    if args.model.startswith((".", "/", "~")) and not Path(args.model).is_dir():
        refuse("model", "there is no such folder")
    dataset = Path(args.dataset).expanduser()
    is_path = args.dataset.startswith((".", "/", "~")) or dataset.suffix in FILE_LOADERS
    if is_path and not dataset.exists():
        refuse("dataset", "there is no such file or folder")
    if dataset.is_file() and dataset.suffix not in FILE_LOADERS:
        refuse("dataset", f"a file should end in {', '.join(FILE_LOADERS)}")
    if args.output_repo:
        if not re.fullmatch(r"([A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95}", args.output_repo, re.ASCII):
            refuse("output-repo", "should be NAME or NAMESPACE/NAME")
        home = os.environ.get("HF_HOME", Path.home() / ".cache/huggingface")
        token_file = Path(os.environ.get("HF_TOKEN_PATH", Path(home) / "token"))
        if not os.environ.get("HF_TOKEN") and not token_file.is_file():
            hint = "Run `hf auth login` or set HF_TOKEN, or leave --output-repo away."
            raise UserError("--output-repo needs a Hugging Face token, and there is none.", hint, status=2)


def phase(name):
    print(f"== {name}", flush=True)


def note(text):
    print(text, flush=True)


class Progress:
    """What the launcher follows, mixed into a trainer: token counts, and a line for every log."""

    tokens_seen = tokens_trained = largest_batch = 0
    startup_s = first_step_s = None
    tracker = None
    mark = (0, 0, 0.0)

    def training_step(self, model, inputs, *rest):
        now = time.monotonic()
        if self.startup_s is None:
            self.startup_s, self.began, self.mark = now - STARTED, now, (0, 0, now)
        elif self.first_step_s is None and self.state.global_step:
            self.first_step_s = now - self.began
        # Sums stay on the GPU, so that counting never makes it wait.
        mask = inputs.get("attention_mask")
        self.tokens_seen += inputs["input_ids"].numel() if mask is None else mask.sum()
        self.tokens_trained += (inputs["labels"][:, 1:] != -100).sum()
        self.largest_batch = max(self.largest_batch, inputs["input_ids"].numel())
        return super().training_step(model, inputs, *rest)

    def log(self, logs, *rest):
        super().log(logs, *rest)
        step, now, seen = self.state.global_step, time.monotonic(), int(self.tokens_seen)
        last_step, last_seen, last_time = self.mark
        if self.tracker:
            self.tracker.log({re.sub("^eval_", "eval/", name): value for name, value in logs.items()}, step)
        if "eval_loss" in logs:
            total = self.state.max_steps or (self.args.max_steps if self.args.max_steps > 0 else "?")
            note(f"eval step {step}/{total} | loss {logs['eval_loss']:.4f}")
        elif "loss" in logs:
            speed = (seen - last_seen) / (now - last_time)
            eta = (self.state.max_steps - step) * (now - last_time) / max(step - last_step, 1)
            line = f"step {step}/{self.state.max_steps} | loss {logs['loss']:.4f} | lr {logs['learning_rate']:.2e}"
            note(f"{line} | {speed:.0f} tok/s | eta {eta:.0f}s")
        self.mark = (step, seen, now)


def take_peak(peaks, name):
    """Note under that name the most GPU memory in use since the last call, in GiB."""
    import torch

    if torch.cuda.is_initialized():
        peaks[name] = max(peaks.get(name, 0), torch.cuda.max_memory_allocated() / 2**30)
        torch.cuda.reset_peak_memory_stats()


def reason(error):
    """The first line of what a library says, which often goes on for pages."""
    return next((line.strip(" .") for line in str(error).splitlines() if line.strip()), type(error).__name__)


def finite(value):
    """The same value with null for every number that JSON does not know."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


def open_repo(name, private):
    """Create the output repo, so that a token that may not write fails before any time is spent; its full name."""
    from httpx import HTTPError
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        user = api.whoami()
        if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise UserError("the Hugging Face token may only read.", "Make one with write access.", status=3)
        name = name if "/" in name else f"{user['name']}/{name}"
        api.create_repo(name, private=private, exist_ok=True)
    except (HTTPError, OSError) as error:
        hint = "Check the name, the token and the network."
        raise UserError(f"{name} can't be written to ({reason(error)}).", hint, status=3) from error
    return name


def push(folder, repo, attempts=5):
    """Upload the folder and return its address, trying again when the service or the network failed."""
    from huggingface_hub import HfApi

    for attempt in itertools.count(1):
        try:
            HfApi().upload_folder(repo_id=repo, folder_path=folder, commit_message="Trained with launch")
            break
        # Whatever went wrong, the training was paid for: only a refusal (4xx) is not worth another try.
        except Exception as error:
            status = getattr(getattr(error, "response", None), "status_code", 500)
            if attempt == attempts or (status < 500 and status not in (408, 429)):
                hint = f"The model is in {folder}: `hf upload {repo} {folder}` pushes it."
                raise UserError(f"the push to {repo} failed ({reason(error)}).", hint) from error
            note(f"push failed ({type(error).__name__}), trying again in {2**attempt} s")
            time.sleep(2**attempt)
    return f"{HfApi().endpoint}/{repo}"


def output_folder(args):
    """Where the model is saved: the volume that outlives a Job's machine, where there is one."""
    if args.output_dir:
        return Path(args.output_dir)
    if os.environ.get("LAUNCH_DATA_DIR"):
        return Path(os.environ["LAUNCH_DATA_DIR"], "output")
    if os.environ.get("JOB_ID") and Path("/data").is_dir():
        return Path("/data/output")
    return Path("outputs", args.run_name)


def check_model(model, revision):
    """Ask for the smallest file of a Hub model first, whose absence has a short explanation."""
    if Path(model).is_dir():
        return
    from httpx import HTTPError
    from huggingface_hub import errors, hf_hub_download

    try:
        hf_hub_download(model, "config.json", revision=revision)
    except errors.GatedRepoError as error:
        hint = f"Accept its terms at https://huggingface.co/{model} with the account of your HF_TOKEN."
        raise UserError(f"{model} is gated and this account has no access.", hint, status=3) from error
    except (HTTPError, OSError, errors.HFValidationError) as error:
        hint = "Check the name, the revision, the token and the network."
        raise UserError(f"the model {model} can't be read ({reason(error)}).", hint, status=3) from error


def read(args, split):
    """One split of the dataset, from the Hub or from here, whole or as a stream."""
    from datasets import DatasetDict, exceptions, load_dataset, load_from_disk
    from httpx import HTTPError
    from pyarrow.dataset import ParquetFragmentScanOptions

    path = Path(args.dataset).expanduser()
    try:
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            saved = load_from_disk(path)
            saved = saved[split] if isinstance(saved, DatasetDict) else saved
            return saved.to_iterable_dataset() if args.streaming else saved
        if path.is_file():
            loader, options = FILE_LOADERS[path.suffix], {}
            if loader == "parquet":
                # Arrow would read ahead over the whole file, which is as large as its pictures.
                options["fragment_scan_options"] = ParquetFragmentScanOptions(pre_buffer=False)
            return load_dataset(loader, data_files=str(path), split=split, streaming=args.streaming, **options)
        return load_dataset(
            str(path) if path.is_dir() else args.dataset,
            args.dataset_config,
            split=split,
            revision=args.dataset_revision,
            streaming=args.streaming,
        )
    except (HTTPError, exceptions.DatasetsError, OSError, ValueError, KeyError) as error:
        hint = "Check the name, the configuration, the split, the token and the network."
        raise UserError(f"the split {split} of {args.dataset} can't be read ({reason(error)}).", hint, 3) from error


def numbered(rows, args):
    """The rows with their place in the split, `row_number`, which errors name."""
    # Pictures stay encoded until they are used: a buffer of rows stays small, and an error can name the row.
    if args.streaming:
        rows = rows.decode(False)
    else:
        from datasets import Features

        features = json.dumps(rows.features.to_dict()).replace('"_type": "Image"', '"_type": "Image", "decode": false')
        rows.info.features = Features.from_dict(json.loads(features))
    if args.streaming:
        return rows.map(lambda row, number: {"row_number": number}, with_indices=True)
    return rows.add_column("row_number", list(range(len(rows))))


def read_rows(args):
    """The rows to train on and those to evaluate on, or none: the head of a stream, else drawn with the seed."""
    rows, eval_rows = numbered(read(args, args.dataset_split), args), None
    count = 0 if args.eval_split else args.eval_rows
    if not args.streaming:
        # Never more than half is held out, and no more rows are prepared than the steps will read.
        count = min(count, len(rows) // 2)
        order = random.Random(args.seed).sample(range(len(rows)), len(rows))
        if args.max_steps:
            order = order[: count + args.max_steps * args.batch_size * args.gradient_accumulation]
        rows = rows.select(order)
    if args.eval_split:
        eval_rows = numbered(read(args, args.eval_split), args)
        if args.eval_rows:
            eval_rows = eval_rows.take(args.eval_rows if args.streaming else min(args.eval_rows, len(eval_rows)))
    elif count:
        rows, eval_rows = rows.skip(count), rows.take(count)
    if args.streaming:
        rows = rows.shuffle(seed=args.seed, buffer_size=100)
    return rows, eval_rows


# ---- Chats with images -----------------------------------------------------------------------------------------------

ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}
PAIRS = [("prompt", "completion"), ("instruction", "output"), ("instruction", "response"), ("question", "answer")]
SHAPES = [("messages",), ("conversations",), *PAIRS]


def find_shape(columns):
    """Which of the known shapes a row with these columns has, as the names of the columns it uses."""
    for shape in SHAPES:
        if set(shape) <= set(columns):
            return shape
    hint = f"Rows need {'; or '.join(' and '.join(shape) for shape in SHAPES)}."
    raise UserError(f"no usable column among {', '.join(sorted(columns))}.", hint)


def turns(row, shape, number):
    """The row's roles and contents up to its last answer; an error names the row and what is wrong with it."""
    if len(shape) == 1:
        found = row[shape[0]]
    else:
        # Either side of a pair may be a text or already a list of messages.
        asked, answered = row[shape[0]], row[shape[1]]
        if isinstance(asked, str) and row.get("input"):
            asked = f"{asked}\n\n{row['input']}"
        found = [{"role": "user", "content": asked}] if isinstance(asked, str) else list(asked or [])
        found += [{"role": "assistant", "content": answered}] if isinstance(answered, str) else list(answered or [])
    if not isinstance(found, list) or not found:
        raise UserError(f"row {number}: {shape[-1]} is not a list of messages.", "Mend or remove the row.")
    said = []
    for turn in found:
        if not isinstance(turn, dict):
            raise UserError(f"row {number}: a message is not a role with a content.", "Mend or remove the row.")
        role, content = turn.get("role") or turn.get("from"), turn.get("content") or turn.get("value")
        role = ROLES.get(role, role)
        if role not in ("system", "user", "assistant", "tool"):
            raise UserError(f"row {number}: unknown role {role!r}.", "Use system, user, assistant or tool.")
        if role == "system" and not content:
            continue
        if not isinstance(content, list | str) or not content or (isinstance(content, str) and not content.strip()):
            raise UserError(f"row {number}: the {role}'s message is empty.", "Mend or remove the row.")
        said.append((role, content))
    # What follows the last answer can't be learned from.
    while said and said[-1][0] != "assistant":
        said.pop()
    if len(said) < 2:
        raise UserError(f"row {number}: no message of the assistant answers another.", "Mend or remove the row.")
    return said


def said(text):
    """A message's content that is only this text."""
    return [{"type": "text", "text": text}]


def fold_system(messages):
    """The system message at the head of the first user's, for chat templates that do not take one."""
    if messages[0]["role"] != "system" or messages[1]["role"] != "user":
        return messages
    system, user, *rest = messages
    content = system["content"] + said("\n\n") + user["content"]
    return [{"role": "user", "content": content}, *rest]


def takes_system(processor):
    """Whether the chat template shows a system message: some refuse it, some drop it from a finished chat."""
    from jinja2 import TemplateError

    shown = [{"type": "image"}, *said("Hi")]
    contents = {"system": said("PROBE"), "user": shown, "assistant": said("ANSWER")}
    probe = [{"role": role, "content": content} for role, content in contents.items()]
    try:
        return "PROBE" in processor.apply_chat_template(probe, tokenize=False)
    except TemplateError:
        return False


def end_of_turn(processor, tokenizer):
    """The id of the token that ends an answer in this chat template."""
    probe = [{"role": "user", "content": said("Hi")}, {"role": "assistant", "content": said("ANSWER")}]
    tail = processor.apply_chat_template(probe, tokenize=False).rpartition("ANSWER")[2]
    ids = tokenizer(tail, add_special_tokens=False).input_ids
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return next((id for id in ids if id in special), tokenizer.eos_token_id)


def attached(row):
    """The pictures of a row's own column, however many there are."""
    found = row.get("images") if row.get("images") is not None else row.get("image")
    return found if isinstance(found, list) else [] if found is None else [found]


def conversation(row, shape, pictures, fold=False):
    """The row as messages made of parts, each picture in its place; `fold` puts the system's into the first user's."""
    number, messages = row["row_number"], []
    for role, content in turns(row, shape, number):
        if isinstance(content, str):
            texts = content.split("<image>")
            content = [{"type": "text", "text": texts[0]}]
            for text in texts[1:]:
                content += [{"type": "image"}, {"type": "text", "text": text}]
        parts = [part for part in (one_part(part, role, number) for part in content) if part]
        if not parts:
            raise UserError(f"row {number}: the {role}'s message is empty.", "Mend or remove the row.")
        messages.append({"role": role, "content": parts})
    places = images_of(messages)
    if pictures and not places:
        places = [{"type": "image"} for _ in pictures]
        first = next(message for message in messages if message["role"] == "user")
        first["content"] = [*places, *first["content"]]
    waiting = [part for part in places if "image" not in part]
    if len(waiting) != len(pictures):
        hint = "Each picture needs one placeholder, in order, or none of them has any."
        raise UserError(f"row {number}: {len(pictures)} images for {len(waiting)} placeholders.", hint)
    for part, picture in zip(waiting, pictures, strict=True):
        part["image"] = picture
    return fold_system(messages) if fold else messages


def one_part(part, role, number):
    """A text or an image part without the empty fields that tables fill in; nothing for an empty text."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        return {"type": "text", "text": part["text"].strip("\n")} if (part.get("text") or "").strip() else None
    if kind in ("image", "image_url"):
        source = next((part[key] for key in ("image", "image_url", "url", "path", "bytes") if part.get(key)), None)
        if isinstance(source, dict) and source.get("url"):
            source = source["url"]
        return {"type": "image"} if source is None else {"type": "image", "image": source}
    raise UserError(f"row {number}: the {role}'s message holds a part of type {kind!r}.", "Use text and image.")


def open_picture(source, folder, longest, number):
    """A picture as RGB, at most `longest` pixels on its longer side, from a PIL image, bytes, a path or a URL."""
    import fsspec
    from PIL import Image, UnidentifiedImageError
    from transformers.image_utils import load_image

    try:
        if isinstance(source, dict):
            source = source.get("bytes") or source.get("path")
        if isinstance(source, bytes):
            source = Image.open(io.BytesIO(source))
        elif isinstance(source, str) and re.match(r"(hf|zip|tar|gzip)://", source):
            # A file in a Hub repo or in an archive, as streams name them.
            with fsspec.open(source) as file:
                source = Image.open(io.BytesIO(file.read()))
        elif isinstance(source, str) and not source.startswith(("http://", "https://", "data:")):
            source = Image.open(folder / source)
        picture = load_image(source).convert("RGB")
    except (OSError, ValueError, TypeError, UnidentifiedImageError) as error:
        raise UserError(f"row {number}: an image can't be read ({error}).", "Mend or remove the row.") from error
    picture.thumbnail((longest, longest))
    return picture


def chat(row, shape, fold, folder, longest):
    """The row as messages whose image parts hold their pictures."""
    messages = conversation(row, shape, attached(row), fold)
    for part in images_of(messages):
        part["image"] = open_picture(part["image"], folder, longest, row["row_number"])
    return messages


def images_of(messages):
    return [part for message in messages for part in message["content"] if part["type"] == "image"]


def words(message):
    return " ".join(part.get("text", "<image>") for part in message["content"])


def make_collator(model, processor, args, shape, fold, mask):
    """Rows to batches through Unsloth's collator; pictures that would be cut off in the middle are made smaller."""
    from jinja2 import TemplateError
    from unsloth_zoo.vision_utils import UnslothVisionDataCollator

    class Collator(UnslothVisionDataCollator):
        def __call__(self, rows):
            numbers = ", ".join(str(row["row_number"]) for row in rows)
            chats = [chat(row, shape, fold, data_folder(args), args.image_size) for row in rows]
            pictures = [[part.pop("image") for part in images_of(messages)] for messages in chats]
            for longest in (args.image_size, args.image_size // 2, args.image_size // 4, args.image_size // 8):
                for picture in itertools.chain(*pictures):
                    picture.thumbnail((longest, longest))
                pairs = zip(chats, pictures, strict=True)
                examples = [{"messages": messages, "images": [*own]} for messages, own in pairs]
                try:
                    return super().__call__(examples)
                except TemplateError as error:
                    hint = "Mend or remove it."
                    raise UserError(f"rows {numbers}: the chat template refuses one ({error}).", hint) from error
                except ValueError as error:
                    problem = reason(error)
                    note(f"rows {numbers}: at {longest} pixels they make no batch ({problem})")
            raise UserError(f"rows {numbers}: {problem}", "Raise --max-length or lower --image-size.")

    collator = Collator(model, processor, max_seq_length=args.max_length, resize="max")
    collator.train_on_responses_only = mask
    return collator


def data_folder(args):
    """What paths in a local dataset are relative to."""
    path = Path(args.dataset).expanduser()
    return path.parent if path.is_file() else path


def check_rows(rows, shape, fold, processor):
    """Look at every row's messages before anything is trained; its pictures are counted, not opened."""
    import pyarrow.compute as pc
    from jinja2 import TemplateError

    name = next((name for name in ("images", "image") if name in rows.column_names), None)
    for table in rows.with_format("arrow").iter(256):
        counts = [0] * len(table)
        if name:
            is_list = str(table[name].type).startswith(("list", "large_list"))
            counts = (pc.list_value_length if is_list else pc.is_valid)(table[name]).to_pylist()
        for row, count in zip(table.select([*shape, "row_number"]).to_pylist(), counts, strict=True):
            number = row["row_number"]
            messages = conversation(row, shape, [number] * int(count or 0), fold)
            try:
                processor.apply_chat_template(messages, tokenize=False)
            except TemplateError as error:
                raise UserError(f"row {number}: the model's chat template refuses it ({error}).") from error


def answer(model, processor, messages, stop, length=96):
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
    return processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def marked(tokenizer, ids, labels, longest=400):
    """A row as text, with ⟦ ⟧ around what is trained on."""
    pieces = []
    for trained, tokens in itertools.groupby(zip(ids, labels, strict=True), key=lambda pair: pair[1] != -100):
        text = tokenizer.decode([id for id, _ in tokens])
        if len(text) > longest:
            text = f"{text[: longest // 2]} … {text[-longest // 2 :]}"
        pieces.append(f"⟦{text}⟧" if trained else text)
    return "".join(pieces)


def check_labels(trainer, tokenizer, stop, masked_wanted, rows=64):
    """Look at what the model will really be given, and refuse to train on nothing, on prompts, or without an end."""
    trained = masked = seen = stops = 0
    for batch in trainer.get_train_dataloader():
        ids, labels = batch["input_ids"], batch["labels"]
        if "attention_mask" in batch:
            lengths = batch["attention_mask"].sum(dim=1).tolist()
        else:
            # Rows laid end to end: each starts at position 0.
            starts = (batch["position_ids"].flatten() == 0).nonzero().flatten().tolist()
            lengths = [end - start for start, end in itertools.pairwise([*starts, ids.numel()])]
        if not seen:
            first = marked(tokenizer, ids[0, : lengths[0]].tolist(), labels[0, : lengths[0]].tolist())
        targets = labels[:, 1:]
        trained += int((targets != -100).sum())
        stops += int((targets == stop).sum())
        masked += sum(lengths)
        seen += len(lengths)
        if seen >= rows:
            break
    masked -= trained
    note(f"labels: {trained} tokens trained on, {masked} masked, over the first {seen} rows. One of them:\n{first}")
    if not trained:
        raise UserError("every token is masked: there is nothing to learn.", "Raise --max-length or check the rows.")
    # The first token of a row is never predicted.
    if masked_wanted and masked <= seen:
        raise UserError("no token is masked: the prompts would be trained on too.", "If so wanted, add --train-on all.")
    if not stops:
        hint = "Raise --max-length if most rows are cut, else try another --chat-template."
        raise UserError(f"{tokenizer.decode([stop])} is never trained on: the model would not learn to stop.", hint)


def main(args):
    # ---- Load --------------------------------------------------------------------------------------------------------

    phase("load model")
    # Bars have no place in a log; Unsloth's generated code has none in the working directory.
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", tempfile.mkdtemp(prefix="unsloth-"))
    # One process trains on one GPU.
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    if args.device == "cpu":
        os.environ.update(CUDA_VISIBLE_DEVICES="", UNSLOTH_FORCE_CPU="1")
    import torch

    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        hint = "Use a machine with one; a text model can also be trained with --device cpu."
        raise UserError("no usable CUDA GPU was found, and Unsloth trains vision models on a GPU only.", hint, status=3)
    output_dir = output_folder(args)
    check_model(args.model, args.revision)
    output_repo = open_repo(args.output_repo, args.private) if args.output_repo else None
    # Unsloth goes first: it patches the libraries that are imported after it.
    from unsloth import FastVisionModel, is_bfloat16_supported
    from unsloth.chat_templates import get_chat_template, train_on_responses_only  # isort: skip
    import trackio
    from transformers import PrinterCallback, set_seed
    from trl import SFTConfig, SFTTrainer

    model, processor = FastVisionModel.from_pretrained(
        args.model,
        revision=args.revision,
        max_seq_length=args.max_length,
        load_in_4bit=args.load_in == "4bit",
        use_gradient_checkpointing="unsloth",
        # A revision belongs to this repo, not to the 4-bit copy of it that Unsloth would rather load.
        use_exact_model_name=args.revision is not None,
    )
    if not processor.chat_template and args.chat_template:
        processor = get_chat_template(processor, args.chat_template)
    if not processor.chat_template:
        hint = "Add --chat-template NAME (gemma-3, llama-3.2, …)."
        raise UserError(f"{args.model} has no chat template.", hint)
    tokenizer = processor.tokenizer

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

    # ---- Data --------------------------------------------------------------------------------------------------------

    phase("prepare data")
    train_data, eval_data = read_rows(args)
    columns = list(next(iter(train_data), {}))
    shape = find_shape(columns)
    note(f"rows of {' and '.join(shape)}, " + ("streamed" if args.streaming else f"{len(train_data)} to train on"))
    stop, fold, mask = end_of_turn(processor, tokenizer), not takes_system(processor), None
    if args.train_on == "assistant":
        # Unsloth finds the template's markers around answers; the function masks whatever is not between them.
        try:
            mask = train_on_responses_only(None, tokenizer=processor, return_function=True)
        except ValueError as error:
            hint = "Use another --chat-template, or --train-on all."
            raise UserError("no markers around answers were found in the chat template.", hint) from error
    for rows in (train_data, eval_data):
        if rows is not None and not args.streaming:
            check_rows(rows, shape, fold, processor)

    config = SFTConfig(
        output_dir=str(output_dir),
        max_steps=args.max_steps or -1,
        num_train_epochs=args.num_train_epochs or 1,
        per_device_train_batch_size=args.batch_size,
        gradient_accumulation_steps=args.gradient_accumulation,
        gradient_checkpointing=on_gpu,
        # Evaluation must fit wherever training did.
        per_device_eval_batch_size=min(args.batch_size, 2),
        prediction_loss_only=True,
        eval_strategy="steps" if eval_data is not None and args.eval_steps else "no",
        eval_steps=args.eval_steps,
        max_length=args.max_length,
        remove_unused_columns=False,
        dataset_text_field="",
        dataset_kwargs={"skip_prepare_dataset": True},
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
        save_strategy="no",
        disable_tqdm=True,
        report_to="none",
    )

    class Trainer(Progress, SFTTrainer):
        pass

    collator = make_collator(model, processor, args, shape, fold, mask)
    trainer = Trainer(
        model,
        config,
        data_collator=collator,
        train_dataset=train_data,
        eval_dataset=eval_data,
        processing_class=processor,
    )
    trainer.remove_callback(PrinterCallback)

    # ---- Check -------------------------------------------------------------------------------------------------------

    phase("check labels")
    FastVisionModel.for_training(model)
    check_labels(trainer, tokenizer, stop, masked_wanted=mask is not None)

    # ---- Train and evaluate ------------------------------------------------------------------------------------------

    if args.trackio_project:
        # A dashboard that can't be reached must not cost the training.
        try:
            trainer.tracker = trackio.init(
                args.trackio_project, args.run_name, space_id=args.trackio_space, config=vars(args)
            )
        except Exception as error:
            note(f"trackio is off, the run goes on without it ({type(error).__name__}: {error})")
    asked = [
        chat(row, shape, fold, data_folder(args), args.image_size)
        for row in itertools.islice(eval_data or [], args.sample_rows)
    ]

    def answers():
        FastVisionModel.for_inference(model)
        given = [answer(model, processor, messages[:-1], stop) for messages in asked]
        FastVisionModel.for_training(model)
        return given

    loss_before = loss_after = None
    peaks = {}
    take_peak(peaks, "load")
    if eval_data is not None:
        phase("evaluate")
        loss_before = trainer.evaluate()["eval_loss"]
        take_peak(peaks, "evaluate")
    answers_before = answers()
    take_peak(peaks, "answer")
    phase("train")
    # The same order of rows, whatever was drawn while checking.
    set_seed(args.seed)
    train_s = trainer.train().metrics["train_runtime"]
    take_peak(peaks, "train")
    if eval_data is not None:
        phase("evaluate")
        loss_after = trainer.evaluate()["eval_loss"]
        take_peak(peaks, "evaluate")
    samples = [
        {"prompt": words(messages[-2]), "expected": words(messages[-1]), "before": before, "after": after}
        for messages, before, after in zip(asked, answers_before, answers(), strict=True)
    ]
    take_peak(peaks, "answer")

    # ---- Save and push -----------------------------------------------------------------------------------------------

    phase("save")
    model.save_pretrained(output_dir)
    processor.save_pretrained(output_dir)
    note(f"saved in {output_dir}")
    url = None
    if output_repo:
        phase("push")
        url = push(output_dir, output_repo)

    # ---- Result ------------------------------------------------------------------------------------------------------

    as_planned = all(getattr(args, name) == CHOSEN[name] for name in DECIDES_MEMORY)
    steps, first_step_s = trainer.state.global_step, trainer.first_step_s or train_s
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    result = {
        "status": "done",
        "steps": steps,
        "tokens_seen": int(trainer.tokens_seen),
        "tokens_trained": int(trainer.tokens_trained),
        "train_loss": sum(losses[-10:]) / max(len(losses[-10:]), 1) if losses else None,
        "eval_loss_before": loss_before,
        "eval_loss": loss_after,
        "samples": samples,
        "tokens_per_second": int(trainer.tokens_seen) / train_s,
        "train_s": train_s,
        "startup_s": trainer.startup_s,
        "first_step_s": first_step_s,
        "step_s": (train_s - first_step_s) / (steps - 1) if steps > 1 else None,
        "largest_batch_tokens": trainer.largest_batch,
        "peak_gib": max(peaks.values(), default=None),
        "peaks_gib": peaks,
        "predicted_peak_gib": PREDICTED_PEAK_GIB if as_planned else None,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "output_dir": str(output_dir.resolve()),
        "output_repo": output_repo,
        "url": url,
        "versions": {name: version(name) for name in ("unsloth", "trl", "transformers", "datasets", "peft", "torch")},
    }
    if trainer.tracker:
        trackio.finish()
    print("RESULT " + json.dumps(finite(result), allow_nan=False), flush=True)


if __name__ == "__main__":
    try:
        arguments = parse_args(sys.argv[1:])
        check_args(arguments)
        main(arguments)
    except UserError as problem:
        print(f"error: {problem.paragraph}", file=sys.stderr, flush=True)
        sys.exit(problem.status)
