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
# timeout = "7200s"
# secrets = ["HF_TOKEN"]
# ///
"""Fine-tune a language model with LoRA on chat data (Unsloth, one GPU).

Here, on a machine with a GPU:
    uv run job_scripts/sft_text.py --dataset trl-lib/Capybara --max-steps 500 --output-repo USER/MODEL

On Hugging Face Jobs, on the machine that the header above names:
    hf jobs uv run job_scripts/sft_text.py --dataset trl-lib/Capybara --max-steps 500 --output-repo USER/MODEL

On a CPU, with a small model:
    uv run job_scripts/sft_text.py --model HuggingFaceTB/SmolLM2-135M-Instruct --dataset rows.jsonl --device cpu

Rows may hold `messages`, ShareGPT `conversations`, `prompt` and `completion`, `instruction` and `output`, or `text`.
The loss counts the assistant's tokens only. The last line printed is `RESULT {json}`.
"""

import argparse
import gc
import hashlib
import itertools
import json
import math
import os
import random
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import urllib.request
from contextlib import ExitStack, contextmanager
from email.utils import parsedate_to_datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

STARTED = time.monotonic()

# Every value that was chosen for this run; each is the default of the flag of the same name.
CHOSEN = {
    "model": "unsloth/Qwen3-8B",
    "revision": None,
    "trust_remote_code": False,
    "load_in": "4bit",
    "chat_template": "qwen-3",
    "dataset": "trl-lib/Capybara",
    "dataset_config": None,
    "dataset_split": "train",
    "dataset_revision": None,
    "eval_split": None,
    "eval_rows": 64,
    "streaming": False,
    "train_on": "assistant",
    "max_steps": 500,
    "num_train_epochs": None,
    "max_length": 2048,
    "batch_size": 4,
    "gradient_accumulation": 1,
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
    "merge": None,
    "merged_repo": None,
    "gguf": (),
    "run_name": "qwen3-8b-sft",
    "sample_rows": 0,
    "trackio_project": "qwen3-8b",
    "trackio_space": None,
    "checkpoint_minutes": 10.0,
    "timeout_s": 7200,
    "packing": True,
    "lora_targets": "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj",
}
# How the chosen model is best sampled, by what its makers say there.
GENERATION = {
    "temperature": 0.7,
    "top_p": 0.8,
    "top_k": 20.0,
    "min_p": 0.0,
}
GENERATION_SOURCE = "https://huggingface.co/Qwen/Qwen3-8B#best-practices"
LICENCE = "apache-2.0"
# What its makers call one that the Hub does not know, and where it stands.
LICENCE_NAME = None
LICENCE_LINK = None
PREDICTED_PEAK_GIB = 7.77
# The prediction holds while these are as planned.
DECIDES_MEMORY = ("model", "load_in", "max_length", "batch_size", "lora_r", "optim")
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
    add("--trust-remote-code", action=argparse.BooleanOptionalAction, help="run the repo's Python; needs its commit")
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

    add = parser.add_argument_group("training").add_argument
    add("--max-steps", type=int, help="optimizer steps")
    add("--num-train-epochs", type=float, help="passes over the dataset, instead of --max-steps")
    add("--max-length", type=int, help="tokens per row; longer rows are cut")
    add("--batch-size", type=int, help="rows per forward pass")
    add("--gradient-accumulation", type=int, help="forward passes per optimizer step")
    add("--packing", action=argparse.BooleanOptionalAction, help="fill rows up to --max-length with several examples")
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
    add("--lora-targets", help="names of the adapted layers, with commas between them")

    add = parser.add_argument_group("output").add_argument
    add("--output-dir", help="default: output/ on the Job's volume, else outputs/RUN_NAME")
    add("--output-repo", help="NAME or NAMESPACE/NAME on the Hub; nothing is pushed without it")
    add("--private", action=argparse.BooleanOptionalAction, help="create the output repo as private")
    add("--merge", choices=["16bit", "4bit"], help="merge the adapter into a copy of the model, in merged/")
    add("--merged-repo", help="where the merged model is pushed, instead of merged/ in the output repo")
    add("--gguf", action="append", choices=GGUF_BITS, help="export as a GGUF file of that type; may be repeated")
    add("--run-name", help="name of the run")
    add("--sample-rows", type=int, help="evaluation rows to answer before and after training")
    add("--trackio-project", help="Trackio project (empty: no tracking)")
    add("--trackio-space", help="Space that shows the metrics, NAMESPACE/NAME; kept on this machine without it")
    add("--checkpoint-minutes", type=float, help="minutes between checkpoints (0: none are made)")
    add("--resume", choices=["auto", "never"], default="auto", help="never: do not go on from checkpoints, remove them")
    add("--timeout-s", type=int, help="seconds after which the Job is killed; training stops before (0: never)")
    add("--device", choices=["auto", "cpu"], default="auto", help="cpu: train without a GPU")

    # Whichever of the two stop criteria is given replaces the chosen one.
    parser.set_defaults(**CHOSEN | {"max_steps": None, "num_train_epochs": None, "gguf": None})
    if not os.environ.get("JOB_ID"):
        # Nobody ends the script here at that time.
        parser.set_defaults(timeout_s=0)
    # Flags may be spelled as in Python, --max_steps.
    words = [word.partition("=") for word in argv]
    argv = [(name.replace("_", "-") if name.startswith("--") else name) + eq + value for name, eq, value in words]
    args = parser.parse_args(argv)
    if args.max_steps and args.num_train_epochs:
        parser.error("--max-steps and --num-train-epochs both say when to stop: give one of them")
    if args.max_steps is None and args.num_train_epochs is None:
        args.max_steps, args.num_train_epochs = CHOSEN["max_steps"], CHOSEN["num_train_epochs"]
    args.gguf = CHOSEN["gguf"] if args.gguf is None else tuple(args.gguf)
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
    for flag in ("eval-rows", "weight-decay", "seed", "sample-rows", "checkpoint-minutes", "timeout-s"):
        if not 0 <= getattr(args, flag.replace("-", "_")) < math.inf:
            refuse(flag, "should not be negative")
    for flag in ("warmup-ratio", "lora-dropout"):
        if not 0 <= getattr(args, flag.replace("-", "_")) < 1:
            refuse(flag, "should be at least 0 and below 1")
    if args.max_length < 16:
        refuse("max-length", "should be at least 16 tokens")
    if args.streaming and args.max_steps is None:
        raise UserError("a stream has no known end.", "Add --max-steps N, or --no-streaming.", status=2)
    if args.trust_remote_code and not re.fullmatch("[0-9a-f]{40}", args.revision or ""):
        refuse("revision", "--trust-remote-code needs the 40 digits of the commit that was read")
    if args.trust_remote_code and Path(args.model).is_dir():
        refuse("model", "--trust-remote-code needs a Hub repo: a folder has no commit to pin")
    if args.model.startswith((".", "/", "~")) and not Path(args.model).is_dir():
        refuse("model", "there is no such folder")
    if not re.fullmatch(r"\w[\w .-]*", args.run_name):
        refuse("run-name", "should be a name, of letters, digits, '-', '_', '.' and spaces")
    dataset = Path(args.dataset).expanduser()
    is_path = args.dataset.startswith((".", "/", "~")) or dataset.suffix in FILE_LOADERS
    if is_path and not dataset.exists():
        refuse("dataset", "there is no such file or folder")
    if dataset.is_file() and dataset.suffix not in FILE_LOADERS:
        refuse("dataset", f"a file should end in {', '.join(FILE_LOADERS)}")
    if args.merge == "4bit" and (args.load_in != "4bit" or args.device == "cpu"):
        where = "there are none on a CPU" if args.device == "cpu" else "they come with --load-in 4bit"
        refuse("merge", f"it is made of the 4-bit weights that are trained, and {where}")
    if args.merged_repo and not args.merge:
        refuse("merged-repo", "it says where a merged model goes; add --merge 16bit")
    if args.merged_repo and args.merged_repo == args.output_repo:
        refuse("merged-repo", ADAPTER_THERE)
    for flag in ("output-repo", "merged-repo"):
        name = getattr(args, flag.replace("-", "_"))
        if not name:
            continue
        if not re.fullmatch(r"([A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95}", name, re.ASCII):
            refuse(flag, "should be NAME or NAMESPACE/NAME")
        home = os.environ.get("HF_HOME", Path.home() / ".cache/huggingface")
        token_file = Path(os.environ.get("HF_TOKEN_PATH", Path(home) / "token"))
        if not os.environ.get("HF_TOKEN") and not token_file.is_file():
            hint = f"Run `hf auth login` or set HF_TOKEN, or leave --{flag} away."
            raise UserError(f"--{flag} needs a Hugging Face token, and there is none.", hint, status=2)


def phase(name):
    print(f"== {name}", flush=True)


def note(text):
    print(text, flush=True)


class Progress:
    """What the launcher follows, mixed into a trainer: token counts, and a line for every log."""

    tokens_seen = tokens_trained = largest_batch = 0
    startup_s = first_step_s = start = None
    tracker = None
    mark = (0, 0, 0.0)

    def training_step(self, model, inputs, *rest):
        now = time.monotonic()
        if self.startup_s is None:
            self.startup_s, self.began = now - STARTED, now
            self.start, self.mark = self.state.global_step, (self.state.global_step, int(self.tokens_seen), now)
        elif self.first_step_s is None and self.state.global_step > self.start:
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
    said = error.args[0] if isinstance(error, UserError) else str(error)
    return next((line.strip(" .") for line in said.splitlines() if line.strip()), type(error).__name__)


def finite(value):
    """The same value with null for every number that JSON does not know."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


# ---- Checkpoints -----------------------------------------------------------------------------------------------------

# The folder beside a Job's output, or inside another output folder, holds step-N/ for the newest two checkpoints,
# `attempt`, the number of times that the run was started, and, once nothing is left to do, `done`, its RESULT. A
# checkpoint is what transformers saves of a trainer (adapter, optimizer, schedule, random state, trainer_state.json),
# what this script knows beside it (run.json), and written last manifest.json, with every file's size and SHA-256.
KEPT = 2
# Free to change between two attempts: nothing that is learned depends on them.
NOT_LEARNED_FROM = {
    "attempt", "checkpoint_minutes", "eval_steps", "gguf", "logging_steps", "merge", "merged_repo", "output_dir",
    "output_repo", "private", "resume", "run_name", "sample_rows", "timeout_s", "trackio_project", "trackio_space",
    "batch_size", "gradient_accumulation",
}  # fmt: skip
DONE = "done"


def checkpoint_folder(args):
    """Where the checkpoints lie."""
    output = output_folder(args)
    return output.with_name("checkpoints") if is_jobs_own(args) else output / "checkpoints"


def settings(args):
    """What a checkpoint's steps depend on, by flag; how an optimizer step's rows are split may change."""
    chosen = {name: value for name, value in vars(args).items() if name not in NOT_LEARNED_FROM}
    return chosen | {"batch_size": args.batch_size * args.gradient_accumulation}


def result_before(args):
    """The RESULT of an earlier attempt of this Job that did all there was to do, or none: nobody pays for it twice."""
    path = checkpoint_folder(args) / DONE
    if args.resume == "never" or not is_jobs_own(args) or not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    try:
        return text if json.loads(text)["status"] == "done" else None
    except (ValueError, KeyError, TypeError):
        return None


def open_checkpoints(args):
    """The folder, ready for this attempt, and its newest whole checkpoint, as `run.json` describes it, or none.

    Raises `UserError` where that is of a run with other settings. An earlier run that was done is started anew.
    """
    folder = checkpoint_folder(args)
    if args.resume == "never" or ((folder / DONE).exists() and not is_jobs_own(args)):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(folder / ".new", ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    steps = [path.name.removeprefix("step-") for path in folder.glob("step-*")]
    found = None
    for step in sorted((int(step) for step in steps if step.isdecimal()), reverse=True):
        problem = flaw(folder / f"step-{step}")
        if problem is None:
            found = json.loads((folder / f"step-{step}" / "run.json").read_text(encoding="utf-8"))
            require_same(found, args)
            break
        note(f"the checkpoint of step {step} is not whole and left out ({problem})")
    counter = folder / "attempt"
    earlier = counter.read_text(encoding="utf-8") if counter.exists() else ""
    args.attempt = int(earlier if earlier.isdecimal() else 0) + 1
    counter.write_text(str(args.attempt), encoding="utf-8")
    return folder, found


def require_same(found, args):
    """Raise `UserError` with the first flag that the checkpoint was made with otherwise; take over a smaller batch."""
    for name, value in settings(args).items():
        before, flag = found["settings"].get(name), f"--{name.replace('_', '-')}"
        if before != value:
            if name == "batch_size":
                flag, name = "--batch-size times --gradient-accumulation", "their product"
            message = f"{flag} is {value} here and {before} in the checkpoint of step {found['step']}"
            raise UserError(f"{message}.", "Give what it had, or --resume never to start over.", status=2)
    # What did not fit in the memory before would not now.
    if found["batch_size"] < args.batch_size:
        args.batch_size, args.gradient_accumulation = found["batch_size"], found["gradient_accumulation"]


def flaw(path):
    """What keeps a checkpoint from being whole, or none."""
    try:
        for name, (size, digest) in json.loads((path / "manifest.json").read_text(encoding="utf-8")).items():
            if (path / name).stat().st_size != size or sha256(path / name) != digest:
                return f"{name} is not as it was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError) as error:
        return reason(error)


def seal(fresh, path, record):
    """Make a whole checkpoint at `path` of the files in `fresh`; its size in bytes."""
    (fresh / "run.json").write_text(json.dumps(record), encoding="utf-8")
    files = [file for file in sorted(fresh.rglob("*")) if file.is_file()]
    manifest = {file.relative_to(fresh).as_posix(): (file.stat().st_size, sha256(file, sync=True)) for file in files}
    shutil.rmtree(path, ignore_errors=True)
    shutil.move(fresh, path)
    # Last, and not renamed, which not every volume can: half of it is no JSON.
    with (path / "manifest.json").open("w", encoding="utf-8") as file:
        json.dump(manifest, file)
        file.flush()
        os.fsync(file.fileno())
    return sum(size for size, _ in manifest.values())


def sha256(path, sync=False):
    """The file's SHA-256; with `sync`, once it is on the disk."""
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- Time and memory -------------------------------------------------------------------------------------------------

# Seconds between SIGTERM and the end, within which the work is saved.
GRACE_S = 25
# Of the time that is left, what the script's own end takes: its RESULT, Python's exit.
LAST_S = 5
# Bytes a second that a disk and an upload surely take, where nothing was measured yet.
DISK_SPEED, UPLOAD_SPEED = 50e6, 10e6


class Stop(Exception):
    """A step or an evaluation is left, since the time is up."""


def deadline(timeout_s):
    """When a Job is killed, on the clock of `time.monotonic`: its container began when its first process did."""
    now = time.monotonic()
    if not timeout_s:
        return math.inf
    lived = now - STARTED
    if os.environ.get("JOB_ID") and not os.environ.get("LAUNCH_DATA_DIR"):
        ticks = int(Path("/proc/1/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
        container = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        # Older than its timeout it would not live: then the first process is another machine's.
        lived = container if lived < container < timeout_s else lived
    return now + timeout_s - lived


class Clock:
    """The time that this run has: until its deadline and, once it was asked to stop, until it is killed.

    Inside `or_else` a library may wait for the network for as long as it likes: when the time is up, a thread of this
    clock says the last words and ends the process.
    """

    deadline, signalled, last_words, at_once = math.inf, None, None, False

    def __init__(self):
        self.lock = threading.Lock()

    def start(self, deadline):
        """Begin: from now on a signal asks to stop, and is not the end."""
        self.deadline = deadline
        heard, told = os.pipe()
        os.set_blocking(told, False)
        # It is written to although the main thread is deep in a library, where no handler of Python's is called.
        signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.on_signal)
        # What ends a child is not meant for this process.
        os.register_at_fork(after_in_child=self.forget)
        threading.Thread(target=self.watch, args=(heard,), daemon=True).start()

    def forget(self):
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)

    def on_signal(self, number, frame):
        # A terminal and uv may both pass the first one on.
        if number == signal.SIGINT and self.signalled and time.monotonic() > self.signalled + 1:
            raise KeyboardInterrupt
        self.signalled = self.signalled or time.monotonic()

    def left_s(self):
        """Seconds until the end, as far as it is known."""
        return min(self.deadline, self.signalled + GRACE_S if self.signalled else math.inf) - time.monotonic()

    @contextmanager
    def or_else(self, last_words, at_once=False):
        """Inside, once the time is up, `last_words` is called elsewhere, and the status it returns is the process's.

        With `at_once` a signal is enough: there is nothing to save.
        """
        self.last_words, self.at_once = last_words, at_once
        try:
            yield
        finally:
            # Or it is at its last words.
            with self.lock:
                self.last_words = None

    def watch(self, heard):
        while True:
            if select.select([heard], [], [], 0.5)[0] and {signal.SIGTERM, signal.SIGINT} & {*os.read(heard, 512)}:
                self.signalled = self.signalled or time.monotonic()
            if self.left_s() < LAST_S or (self.at_once and self.signalled):
                with self.lock:
                    if self.last_words:
                        self.end()

    def end(self):
        status = 1
        try:
            status = self.last_words()
        finally:
            sys.stdout.flush()
            os._exit(status)


CLOCK = Clock()


def spent_before(folder, left_s, timeout_s):
    """Seconds that earlier attempts of this Job took: whether its timeout is one for all of them is not documented."""
    job = os.environ.get("JOB_ID")
    if not job or not timeout_s:
        return 0.0
    # The first attempt's container began at this time of day.
    began, noted = time.time() + left_s - timeout_s, folder / f"began-{hashlib.sha256(job.encode()).hexdigest()[:12]}"
    if not noted.exists():
        noted.write_text(str(began), encoding="utf-8")
    return max(began - float(noted.read_text(encoding="utf-8") or began), 0.0)


def leave(args, output_dir, found):
    """The last words of a run that has to stop before its training begins; the process's status."""
    stopped, step = "signal" if CLOCK.signalled else "deadline", found["step"] if found else 0
    note(f"stopped before the training began ({stopped}): {next_attempt(bool(found))}")
    if args.output_repo and step and (output_dir / "adapter_config.json").is_file():
        note(rescue(output_dir, args.output_repo))
    result = {
        "status": "stopped", "stopped": stopped, "attempt": args.attempt, "resumed_from": step or None, "steps": step,
        "output_dir": str(output_dir.resolve()), "output_repo": args.output_repo, "url": None, "pushed": False,
        "push_error": None,
    }  # fmt: skip
    print(f"RESULT {json.dumps(result)}", flush=True)
    return 0


def next_attempt(kept):
    """What to do after a stop, where a checkpoint is `kept` or not."""
    again = f"`launch resume {os.environ['JOB_ID']}`" if os.environ.get("JOB_ID") else "the same command"
    return f"{again} {'goes on from there' if kept else 'starts over, since no checkpoint was made'}"


def out_of_memory(error):
    """Whether a GPU's memory ran out, whichever library says so."""
    import torch

    said = re.search(r"CUDA[^\n]*out of memory|ALLOC_FAILED", str(error))
    return isinstance(error, torch.OutOfMemoryError) or said is not None


def free_memory():
    """Give back what the step that failed held on the GPU; the peak until now, in GiB."""
    import torch
    from unsloth_zoo.gradient_checkpointing import reset_unsloth_gradient_checkpointing_buffers

    if not torch.cuda.is_initialized():
        return 0.0
    reset_unsloth_gradient_checkpointing_buffers()
    gc.collect()
    torch.cuda.empty_cache()
    peak = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return peak


def random_state():
    """That of every generator which a step draws from."""
    import numpy
    import torch

    on_gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return random.getstate(), numpy.random.get_state(), torch.get_rng_state(), on_gpu


def restore_random_state(state):
    import numpy
    import torch

    random.setstate(state[0])
    numpy.random.set_state(state[1])
    torch.set_rng_state(state[2])
    if state[3]:
        torch.cuda.set_rng_state_all(state[3])


def endless(rows, seen):
    """A stream again and again, shuffled anew for every pass, without the first `seen` rows."""
    from torch.utils.data import IterableDataset

    class Endless(IterableDataset):
        def __iter__(self):
            return itertools.islice(self.passes(), seen, None)

        def passes(self):
            for number in itertools.count():
                rows.set_epoch(number)
                yield from rows

    return Endless()


# What is counted on the way, and kept with a checkpoint.
COUNTS = ("tokens_seen", "tokens_trained", "largest_batch")


class Guard:
    """What keeps the work from being lost, mixed into a trainer above `Progress`.

    Checkpoints by the clock; a stop at a step's end before the deadline, or after a signal; smaller batches where the
    GPU's memory runs out.
    """

    stopped = step_began = None
    counted_step, before_s, longest_step_s = -1, 0.0, 0.0

    def guard(self, asked, folder, found, pushes):
        """Begin: `asked` are the flags, `found` the checkpoint to go on from, `pushes` whether the model is pushed."""
        self.asked, self.folder, self.found = asked, folder, found
        self.resumed_from, self.known = found["step"] if found else None, dict(found["known"] if found else {})
        self.whole = [found["step"]] if found else []
        self.saved_at = time.monotonic()
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        size = sum(parameter.numel() * parameter.element_size() for parameter in trained)
        self.checkpoint_s, self.push_s = 3 * size / DISK_SPEED, size / UPLOAD_SPEED if pushes else 0.0
        self.stream = self.train_dataset if asked.streaming else None

    def reserve_s(self):
        """Seconds that are needed after the step that is being made: a checkpoint, the model's saving and its push."""
        # Python takes seconds to end.
        floor = min(60, max(self.asked.timeout_s / 10, LAST_S))
        return 1.5 * (2 * self.checkpoint_s + self.push_s) + floor + self.longest_step_s

    def must_stop(self):
        if not self.stopped and CLOCK.signalled:
            self.stopped = "signal"
            note("asked to stop: saving")
        elif not self.stopped and CLOCK.left_s() < self.reserve_s():
            self.stopped = "deadline"
            note(f"deadline in {CLOCK.left_s():.0f}s: stopping")
        return bool(self.stopped)

    def must_leave_step(self):
        """Whether a signal came and this step would not end, and be saved, before the process is killed."""
        rest = self.longest_step_s - (time.monotonic() - self.step_began)
        needed = LAST_S + 3 * self.checkpoint_s + max(rest, 0)
        return bool(CLOCK.signalled) and (not self.longest_step_s or CLOCK.left_s() < needed)

    def can_push(self):
        return not CLOCK.signalled or CLOCK.left_s() > LAST_S + 1.5 * self.push_s

    # ---- Checkpoints ----

    def training_step(self, *rest, **more):
        if self.step_began is None:
            # Sums of their own: what is added to a tensor is added in place.
            counts = {name: getattr(self, name) + 0 for name in COUNTS}
            self.step_began, self.before_step = time.monotonic(), (counts, random_state())
        if self.must_leave_step():
            raise Stop
        return super().training_step(*rest, **more)

    def leave_step(self):
        """Keep what was learned until this step, which the next attempt makes anew, with the same random numbers."""
        counts, state = self.before_step
        for name, count in counts.items():
            setattr(self, name, count)
        self.must_stop()
        self.model.zero_grad()
        step = self.state.global_step
        note(f"step {step + 1} would take too long: left")
        if step and self.asked.checkpoint_minutes and step not in self.whole:
            restore_random_state(state)
            self._save_checkpoint(self.model, None)

    def _maybe_log_save_evaluate(self, tr_loss, grad_norm, model, trial, *rest, **more):
        step, now = self.state.global_step, time.monotonic()
        # At the end of an epoch it is called once more.
        new = step != self.counted_step
        if new:
            # The first step compiles, which happens once: it counts until there is another.
            earlier = self.longest_step_s if step > self.start + 2 else 0.0
            self.longest_step_s = max(earlier, now - self.step_began)
        self.counted_step, self.step_began = step, None
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *rest, **more)
        if new:
            if self.must_stop():
                self.control.should_training_stop = True
            every = self.asked.checkpoint_minutes * 60
            if every and (self.control.should_training_stop or time.monotonic() >= self.saved_at + every):
                self._save_checkpoint(model, trial)

    def _save_checkpoint(self, model, trial):
        """Let transformers write into a folder of no meaning, and make a checkpoint of it; the newest two are kept."""
        began, step, fresh = time.monotonic(), self.state.global_step, Path(self.args.output_dir)
        try:
            super()._save_checkpoint(model, trial)
            size = seal(fresh / f"checkpoint-{step}", self.folder / f"step-{step}", self.record())
        # A full disk, say: the training goes on, and an older checkpoint is there.
        except Exception as error:
            shutil.rmtree(self.folder / f"step-{step}", ignore_errors=True)
            note(f"step {step} could not be kept in {self.folder} ({reason(error)})")
        else:
            self.whole.append(step)
            for path in self.folder.glob("step-*"):
                if path.name not in [f"step-{kept}" for kept in self.whole[-KEPT:]]:
                    shutil.rmtree(path, ignore_errors=True)
            self.checkpoint_s = time.monotonic() - began
            note(f"checkpoint step {step} | {self.checkpoint_s:.1f}s | {size / 1e6:.0f} MB")
        shutil.rmtree(fresh, ignore_errors=True)
        self.saved_at = time.monotonic()

    def record(self):
        """What goes on beside the trainer's own state."""
        return {
            "step": self.state.global_step,
            "steps": self.state.max_steps,
            "batch_size": self.args.per_device_train_batch_size,
            "gradient_accumulation": self.args.gradient_accumulation_steps,
            "settings": settings(self.asked),
            "tokens_seen": int(self.tokens_seen),
            "tokens_trained": int(self.tokens_trained),
            "largest_batch": self.largest_batch,
            "train_s": self.before_s + time.monotonic() - self.began,
            # Of before the training: losses, answers.
            "known": self.known,
        }

    # ---- Training ----

    def train_on(self):
        """Train from the newest checkpoint, or the start, to the end or a stop, with less at once where need be."""
        from transformers import TrainerState, set_seed

        fresh = {} if self.found else {name: weight.detach().cpu().clone() for name, weight in self.adapter()}
        while True:
            step = self.found["step"] if self.found else 0
            path = self.folder / f"step-{step}" if self.found else None
            if step:
                note(f"resumed from step {step}")
            for name in COUNTS:
                setattr(self, name, self.found[name] if self.found else 0)
            self.before_s = self.found["train_s"] if self.found else 0.0
            self.counted_step, self.step_began, self.startup_s, self.first_step_s = -1, None, None, None
            self.state.global_step, self.saved_at, self.began = step, time.monotonic(), time.monotonic()
            # The same order of rows, whatever was drawn while checking.
            set_seed(self.args.seed)
            if self.stream is not None:
                # Skipped as rows: transformers would make batches of all that it skips, and only within one pass.
                seen = step * self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
                self.train_dataset, self.args.ignore_data_skip = endless(self.stream, seen), True
            if self.must_stop() or (self.found and step >= self.found["steps"]):
                if self.found:
                    self._load_from_checkpoint(str(path))
                    self.state = TrainerState.load_from_json(str(path / "trainer_state.json"))
                return
            try:
                self.train(resume_from_checkpoint=str(path) if path else None)
                return
            except Stop:
                self.leave_step()
                return
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
            self.halve()
            if self.whole:
                newest = self.folder / f"step-{self.whole[-1]}" / "run.json"
                self.found = json.loads(newest.read_text(encoding="utf-8"))
            for name, weight in self.adapter() if not self.found else ():
                weight.data.copy_(fresh[name])

    def adapter(self):
        return [(name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad]

    def get_batch_samples(self, *rest):
        found = super().get_batch_samples(*rest)
        # As transformers does where it skips batches by itself: the state is that of before the step, not before this.
        if self.stream is not None and self.found and self.counted_step < 0:
            self._load_rng_state(str(self.folder / f"step-{self.found['step']}"))
        return found

    def halve(self):
        """Split a step's rows into smaller batches; `UserError` where they are single rows already."""
        self.optimizer = self.lr_scheduler = None
        self.model_wrapped = self.model
        self.accelerator.free_memory()
        self.model.zero_grad()
        peak = free_memory()
        said = f"the GPU held {peak:.1f} GiB at most, {PREDICTED_PEAK_GIB:.1f} GiB were planned"
        batch, accumulation = self.args.per_device_train_batch_size, self.args.gradient_accumulation_steps
        if batch == 1:
            hint = "Lower --max-length or --lora-r, or take a flavor with more memory."
            raise UserError(f"out of memory in training with one row at a time ({said}).", hint)
        smaller = next(size for size in range(batch // 2, 0, -1) if batch % size == 0)
        more = accumulation * batch // smaller
        note(f"out of memory: batch {batch} -> {smaller}, accumulation {accumulation} -> {more} ({said})")
        self.args.per_device_train_batch_size = self._train_batch_size = self.asked.batch_size = smaller
        self.args.gradient_accumulation_steps = self.asked.gradient_accumulation = more

    # ---- Evaluation ----

    def evaluate(self, *rest, **more):
        """The metrics, from fewer rows at a time where memory runs out; empty where time or memory do not suffice."""
        while True:
            try:
                return super().evaluate(*rest, **more)
            except Stop:
                note("no time to evaluate")
                return {}
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
            free_memory()
            batch = self.args.per_device_eval_batch_size
            if batch == 1:
                note("out of memory in evaluation with one row at a time: left out")
                return {}
            note(f"out of memory in evaluation: batch {batch} -> {batch // 2}")
            self.args.per_device_eval_batch_size = batch // 2

    def prediction_step(self, *rest, **more):
        if self.must_stop():
            raise Stop
        return super().prediction_step(*rest, **more)

    def answers(self, asked, answer):
        """What `answer` makes of each; none where time or memory do not suffice, since no sample is worth a run."""
        given = []
        for messages in asked:
            given.append(None)
            try:
                given[-1] = None if self.must_stop() else answer(messages)
            except Exception as error:
                note(f"a sample is left without an answer ({reason(error)})")
                if out_of_memory(error):
                    free_memory()
        return given


def check_disk(folder, model, optim, exports=(), place=None):
    """Refuse where the disk can't take what a run writes: the adapter, two checkpoints and the next one, the exports.

    `exports` are what these write at most, bytes by what they are, and `place` is where, if not in the folder.

    A checkpoint is the adapter and the optimizer's two moments, of 1 byte a parameter in 8 bits, else of 4.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    adapter = sum(parameter.numel() * parameter.element_size() for parameter in trained)
    checkpoint = adapter + sum(parameter.numel() for parameter in trained) * (2 if "8bit" in optim else 8)
    # The tokenizer, the records of the trainer.
    needed = adapter + 3 * checkpoint + 2**26
    told = [f"an adapter of {adapter / 1e9:.2f} GB, three checkpoints of {checkpoint / 1e9:.2f} GB"]
    exports = dict(exports)
    copies = sum(exports.values())
    copied = [f"{name} {size / 1e9:.1f} GB" for name, size in exports.items()]
    hint = "Free some, or give --output-dir on another disk."
    if exports:
        hint = f"{hint[:-1]}, or leave the exports away: `launch export` makes them later, elsewhere."
    if place:
        require_disk(place, copies, copied, hint)
        require_disk(folder, needed, told, hint)
    else:
        require_disk(folder, needed + copies, told + copied, hint)


def require_disk(folder, needed, told, hint):
    """Refuse where the folder's disk has less room than that many bytes; `told` is what they are."""
    place = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    usage = shutil.disk_usage(place)
    # A mounted bucket has no size.
    if usage.total and usage.free < needed:
        message = f"the disk of {place} has {usage.free / 1e9:.2f} GB free, and this run writes {needed / 1e9:.2f} GB"
        raise UserError(f"{message} ({', '.join(told)}).", hint, status=3)


def save(folder, *parts):
    """Save the model and its tokenizer in the folder, whole or not at all: until they are written, all there stays.

    Raises `UserError` where the disk is full or fails.
    """
    # Inside, where nothing has to be copied once it is whole.
    fresh = folder / ".saving"
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        for part in parts:
            part.save_pretrained(fresh)
        for path in fresh.iterdir():
            if (folder / path.name).is_dir():
                shutil.rmtree(folder / path.name)
            shutil.move(path, folder / path.name)
        fresh.rmdir()
    # Some writers have errors of their own for a full disk.
    except Exception as error:
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            free = f", {shutil.disk_usage(folder).free / 1e9:.3f} GB free"
        except OSError:
            free = ""
        hint = f"What was in {folder} is as it was. Make room and run this again: it goes on from the last checkpoint."
        raise UserError(f"the model could not be saved in {folder} ({reason(error)}{free}).", hint) from error


# The model is kept anyway, and a GPU costs money while it waits: eight attempts last a few minutes.
ATTEMPTS, LONGEST_WAIT_S, LONGEST_WAITS_S = 8, 60, 900


def open_repo(name, private):
    """The output repo's full name, found there or created, and this token may write to it: known before any training.

    Raises `UserError` of status 3 where it can't be written to, or is public although it should be private.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi()
    try:
        me = persist("asking who this token belongs to", api.whoami)
        name = name if "/" in name else f"{me['name']}/{name}"
        check_token(me, name)
        try:
            found = persist(f"looking up {name}", lambda: api.model_info(name))
        except RepositoryNotFoundError:
            persist(f"creating {name}", lambda: api.create_repo(name, private=private, exist_ok=True))
        else:
            if found.id != name:
                note(f"{name} is now called {found.id}")
            name = found.id
            if private and not found.private:
                hint = "Make it private on its page, or choose another --output-repo."
                raise UserError(f"--private: {name} is there already, and public.", hint, status=3)
            persist(f"asking for {name}", lambda: api.auth_check(name, write=True))
    except UserError:
        raise
    except Exception as error:
        hint = "Check the name, the token and the network, or leave --output-repo away."
        raise UserError(f"{name} can't be written to ({reason(error)}).", hint, status=3) from error
    # Found now, since the Hub may not answer when it is needed.
    if "LAUNCH_ARTIFACTS" not in os.environ:
        os.environ["LAUNCH_ARTIFACTS"] = find_artifacts(me)
    return name


def check_token(me, repo):
    """Refuse where what the Hub says of the token (`/api/whoami-v2`) rules out writing to the repo."""
    owner, token = repo.split("/")[0], me.get("auth", {}).get("accessToken", {})
    roles = {org["name"]: org.get("roleInOrg") for org in me.get("orgs", [])}
    scopes = token.get("fineGrained", {}).get("scoped", [])
    granted = {
        permission
        for scope in scopes
        if scope.get("entity", {}).get("name") in (owner, repo)
        for permission in scope.get("permissions", [])
    }
    if token.get("role") == "read":
        problem = "the Hugging Face token may only read"
    elif owner != me["name"] and owner not in roles:
        problem = f"{me['name']} is not a member of {owner}"
    elif roles.get(owner) == "read":
        problem = f"{me['name']} may only read in {owner}"
    elif token.get("role") == "fineGrained" and "repo.write" not in granted:
        problem = f"the fine-grained token may not write to repos of {owner}"
    else:
        return
    hint = "Make a token that may, at https://huggingface.co/settings/tokens, or choose another --output-repo."
    raise UserError(f"{repo} can't be written to: {problem}.", hint, status=3)


def push(folder, repo, paths=None, stale=()):
    """Upload the folder in one commit, and again until the Hub holds every file as it is here; the repo's address.

    `paths` are the files to upload, instead of all that belong to the adapter; `stale` are those to delete with it.
    Raises `UserError` with the command that brings the model to the repo later: it stays in the folder.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api, folder = HfApi(), Path(folder)
    files = {path: fingerprint(folder / path) for path in paths or pushed_files(folder)}

    def attempt():
        # What the Hub holds already is left out of the commit, so that a lost answer makes no second one.
        additions = [CommitOperationAdd(path, folder / path) for path in files]
        # The Hub refuses to delete what is gone, as after a lost answer.
        gone = set(stale).intersection(api.list_repo_files(repo)) - files.keys() if stale else ()
        deletions = [CommitOperationDelete(path) for path in sorted(gone)]
        api.create_commit(repo, [*additions, *deletions], commit_message="Trained with launch")
        wrong = differing(api, repo, files)
        if wrong:
            raise RuntimeError(f"the Hub does not hold {', '.join(wrong)} as sent")

    try:
        persist(f"the push to {repo}", attempt)
    except Exception as error:
        raise UserError(f"the push to {repo} failed ({reason(error)}).", rescue(folder, repo)) from error
    note(f"pushed to {repo}, and every file is there as it is here: {', '.join(files)}")
    return f"{api.endpoint}/{repo}"


def persist(what, act):
    """What `act` returns, tried again after failures of the service or the network, never after a refusal (4xx)."""
    attempt, waited = 0, 0.0
    while True:
        attempt += 1
        try:
            return act()
        except Exception as error:
            # The client wraps some refusals. An error of the network has no response; nor has one of the content store.
            response = getattr(error, "response", getattr(error.__cause__, "response", None))
            status = getattr(response, "status_code", 500)
            offline = os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE")
            if attempt == ATTEMPTS or offline or (status < 500 and status not in (408, 429)):
                raise
            wait = pause(getattr(response, "headers", {}), attempt)
            waited += wait
            if waited > LONGEST_WAITS_S or wait > CLOCK.left_s() - LAST_S:
                raise
            note(f"{what} failed ({reason(error)}), trying again in {wait:.0f} s")
            time.sleep(wait)


def pause(headers, attempt):
    """Seconds to wait after that attempt: what the service asks for, else twice as long every time, and uneven."""
    said = headers.get("retry-after", "")
    asked = re.match(r"\d+", said) or re.search(r"(?<=\bt=)\d+", headers.get("ratelimit", ""))
    # Not from the seeded generator, on which the order of the rows depends.
    share = random.SystemRandom().uniform(0.5, 1)
    if asked:
        return int(asked[0]) + share
    try:
        return max(parsedate_to_datetime(said).timestamp() - time.time(), 0) + share
    except ValueError:
        return min(2**attempt, LONGEST_WAIT_S) * share


def pushed_files(folder):
    """What of the folder belongs to the adapter, as paths with `/`: no checkpoints, exports or hidden files."""
    paths = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    mine = [path for path in paths if path.parts[0] != "checkpoints" and not is_export(path.as_posix())]
    return [path.as_posix() for path in mine if not any(part.startswith(".") for part in path.parts)]


def fingerprint(path):
    """Size, SHA-256 and git's blob id of a file: the Hub knows a large one by the second, a small one by the third."""
    size = path.stat().st_size
    sha256, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)
    with path.open("rb") as file:
        while block := file.read(2**20):
            sha256.update(block)
            blob.update(block)
    return size, sha256.hexdigest(), blob.hexdigest()


def differing(api, repo, files):
    """The paths that the Hub does not hold with the size and hash that they have here."""
    held = {entry.path: entry for entry in api.list_repo_tree(repo, recursive=True) if hasattr(entry, "size")}
    wrong = []
    for path, (size, sha256, blob) in files.items():
        entry = held.get(path)
        if entry is None or entry.size != size or (entry.lfs.sha256 != sha256 if entry.lfs else entry.blob_id != blob):
            wrong.append(path)
    return wrong


def rescue(folder, repo):
    """What to do where the folder could not be pushed: one command for another machine, or for this one."""
    data = Path(os.environ.get("LAUNCH_DATA_DIR", "/data")).resolve()
    place, name = folder.resolve(), repo.split("/")[-1]
    upload = f"hf upload --private --exclude 'checkpoints/*' --exclude '.*' {repo}"
    if "JOB_ID" in os.environ and data.is_dir() and not place.is_relative_to(data):
        # Elsewhere it would go with the container.
        place = shutil.copytree(place, data / "output", dirs_exist_ok=True)
    if "JOB_ID" not in os.environ or not place.is_relative_to(data):
        return f"The model is kept; this pushes it: {upload} {shlex.quote(str(place))} ."
    inside, bucket = place.relative_to(data).as_posix(), os.environ.get("LAUNCH_ARTIFACTS")
    if not bucket:
        job = os.environ["JOB_ID"]
        return f"The model is kept in {inside}/ of the Job's bucket; this names it: hf jobs inspect {job}"
    fetch = f"hf buckets sync {shlex.quote(f'{bucket}/{inside}')} {name}"
    return f"The model is kept in the Job's bucket; this fetches and pushes it: {fetch} && {upload} {name} ."


def find_artifacts(me):
    """The address of the bucket's folder that a Job has at /data; empty where it can't be known."""
    from huggingface_hub import HfApi

    for owner in (me["name"], *(org["name"] for org in me.get("orgs", []))):
        try:
            job = HfApi().inspect_job(job_id=os.environ["JOB_ID"], namespace=owner)
            [volume] = [volume for volume in job.volumes or [] if volume.mount_path == "/data"]
        # Elsewhere than in a Job, in another's namespace, with a token that may not look.
        except Exception:
            continue
        if volume.type == "bucket":
            return "/".join(("hf://buckets", volume.source, *filter(None, [volume.path])))
    return ""


# ---- llama.cpp -------------------------------------------------------------------------------------------------------

# What is fetched where there is no llama.cpp: the source distribution of llama-cpp-python 0.3.36 holds one whole, with
# its converter. PyPI's address is made of the content's own hash, and the content is checked besides.
LLAMA_CPP = (
    "https://files.pythonhosted.org/packages/ec/e9/e7de2b0463ea3ffbf0ede6cb21b58c1258a8f6521aae45ca773a59fe7cf3/"
    "llama_cpp_python-0.3.36.tar.gz"
)
LLAMA_CPP_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
CONVERTER = "convert_hf_to_gguf.py"
QUANTIZER, ANSWERER = "llama-quantize", "llama-completion"
# What is built, also for the scripts of the other kind of model.
PROGRAMS = (QUANTIZER, "llama-completion", "llama-mtmd-cli")
# The types that the converter writes by itself.
CONVERTED = ("f16", "bf16", "q8_0")


def open_llama_cpp(args):
    """The folder of a llama.cpp that can make what was asked for of this model; before anything is loaded."""
    folder = get_llama_cpp(args.gguf)
    require_convertible(args, folder)
    return folder


def get_llama_cpp(types):
    """The folder of a llama.cpp that can make GGUF files of these types; fetched, and built, where there is none.

    `UNSLOTH_LLAMA_CPP_PATH` names it, and names it for Unsloth afterwards. Raises `UserError` of status 3 with what
    is lacking: this is called before anything is trained.
    """
    named = os.environ.get("UNSLOTH_LLAMA_CPP_PATH")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "launch", "llama.cpp-0.3.36")
    if named:
        folder = Path(named).expanduser().absolute()
        problem = llama_cpp_flaw(folder, types)
        if problem:
            hint = "Name a folder of llama.cpp that is built (bench/llama_cpp.sh makes one), or unset the variable."
            raise UserError(f"UNSLOTH_LLAMA_CPP_PATH={named}: {problem}.", hint, status=3)
    else:
        found = (Path.home() / ".unsloth" / "llama.cpp", cache)
        folder = next((folder for folder in found if llama_cpp_flaw(folder, types) is None), None)
        if folder == cache and tool(cache, ANSWERER) is None and can_build(()):
            # An earlier release built one of the two that answer.
            folder = None
    if folder is None:
        folder = cache
        phase("get llama.cpp")
        make_llama_cpp(folder, build=can_build(types))
        problem = llama_cpp_flaw(folder, types)
        if problem:
            raise UserError(f"the llama.cpp in {folder} can't be used: {problem}.", "Remove it, and try again.", 3)
    # Unsloth would else go to GitHub for what is newest there, and install what that needs as root.
    os.environ.update(UNSLOTH_LLAMA_CPP_PATH=str(folder), UNSLOTH_AUTO_INSTALL="0", UNSLOTH_LLAMA_CPP_OFFLINE="1")
    note(f"GGUF files are made by {folder}")
    return folder


def require_convertible(args, llama_cpp):
    """Refuse a model that the converter does not know, by the tables that it looks the architecture up in."""
    settings = read_config(args)
    tables = {"TEXT_MODEL_MAP": "text_config"}
    for table, part in tables.items():
        known, own = convertible(llama_cpp, table), settings.get(part) or {}
        names = [name for whose in (own, settings) for name in whose.get("architectures") or ()]
        if known and names and not known.intersection(names):
            message = f"--gguf {args.gguf[0]}: llama.cpp can't convert {args.model}, a {names[-1]}"
            raise UserError(f"{message}.", "Leave --gguf away; --merge 16bit works.", status=3)


def convertible(llama_cpp, table):
    """The names in that table of the converter's; empty where it keeps them otherwise, as other releases do."""
    try:
        text = (llama_cpp / "conversion" / "__init__.py").read_text(encoding="utf-8")
    except OSError:
        return set()
    found = re.search("^" + table + r"\b[^\n]*\n(.*?)^\}", text, re.MULTILINE | re.DOTALL)
    return set(re.findall(r'^ +"([\w.]+)":', found[1], re.MULTILINE)) if found else set()


def tool(folder, name):
    """A program of llama.cpp, where it was built or installed; none where there is none that starts."""
    for path in (folder / name, folder / "build" / "bin" / name):
        if os.access(path, os.X_OK):
            try:
                done = subprocess.run([path, "--help"], capture_output=True, timeout=60, check=False)
            except (OSError, subprocess.TimeoutExpired):
                continue
            # The tools are not of one mind about the status of their help.
            if b"usage" in (done.stdout + done.stderr).lower():
                return path
    return None


def llama_cpp_flaw(folder, types):
    """What keeps that folder from making these types, or none."""
    if not folder.is_dir():
        return "there is no such folder"
    for name in (CONVERTER, "gguf-py/gguf/gguf_reader.py"):
        if not (folder / name).is_file():
            return f"it has no {name}"
    if not set(types) <= set(CONVERTED) and tool(folder, QUANTIZER) is None:
        return f"it has no {QUANTIZER} that runs"
    return None


def can_build(types):
    """Whether llama.cpp's programs can be built here; `UserError` of status 3 where they can't and one is needed."""
    # `uv` is what runs this script, and fetches cmake too.
    needed = {"cmake": ("cmake", "uv"), "g++": ("c++", "g++", "clang++"), "make": ("make", "ninja")}
    lacking = [name for name, any_of in needed.items() if not any(map(shutil.which, any_of))]
    quantized = [name for name in types if name not in CONVERTED]
    if lacking and quantized:
        message = f"--gguf {quantized[0]} needs llama.cpp, and to build it {' and '.join(lacking)} is missing here"
        hint = (
            f"apt-get update && apt-get install -y {' '.join(lacking)}; or name a build with UNSLOTH_LLAMA_CPP_PATH; "
            f"or ask for {', '.join(CONVERTED[:-1])} or {CONVERTED[-1]}, which need none."
        )
        raise UserError(f"{message}.", hint, status=3)
    return not lacking


def make_llama_cpp(folder, build=True):
    """Fetch llama.cpp into the folder, whole or not at all, with its programs built if asked for; minutes."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".llama.cpp-", dir=folder.parent) as staging:
        archive, source = Path(staging) / "archive", Path(staging) / "llama.cpp"
        try:
            fetch(LLAMA_CPP, LLAMA_CPP_SHA256, archive)
        except (OSError, ValueError) as error:
            hint = "Name a build of llama.cpp with UNSLOTH_LLAMA_CPP_PATH, or leave --gguf away."
            raise UserError(f"llama.cpp can't be fetched from {LLAMA_CPP} ({reason(error)}).", hint, 3) from error
        unpack(archive, "vendor/llama.cpp/", source)
        if build:
            build_llama_cpp(source)
        shutil.rmtree(folder, ignore_errors=True)
        source.rename(folder)


def fetch(address, digest, path):
    """Download what has that SHA-256; `ValueError` for anything else."""
    with urllib.request.urlopen(address, timeout=60) as answer, path.open("wb") as file:
        shutil.copyfileobj(answer, file)
    if sha256(path) != digest:
        raise ValueError(f"its SHA-256 is {sha256(path)} and should be {digest}")


def unpack(archive, inside, folder):
    """Unpack what lies under the folder `inside` of the archive's only folder."""
    with tarfile.open(archive) as tar:
        members = []
        for member in tar:
            _, found, rest = member.name.partition(f"/{inside}")
            # Of the web page nothing is built.
            if found and member.isfile() and not rest.startswith("tools/ui/"):
                members.append(member.replace(name=rest, deep=False))
        tar.extractall(folder, members, filter="data")


def build_llama_cpp(source):
    """Build the programs that quantise and that answer, for the processor, without what they could do on the net."""
    cores, build = os.cpu_count() or 1, source / "build"
    cmake = [shutil.which("cmake")] if shutil.which("cmake") else ["uv", "tool", "run", "--quiet", "cmake"]
    off = ("LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES", "LLAMA_BUILD_SERVER", "LLAMA_BUILD_APP", "LLAMA_BUILD_UI",
           "LLAMA_USE_PREBUILT_UI", "LLAMA_OPENSSL", "BUILD_SHARED_LIBS")  # fmt: skip
    options = ["-DCMAKE_BUILD_TYPE=Release", *(f"-D{name}=OFF" for name in off)]
    commands = (
        [*cmake, "-S", source, "-B", build, *options],
        [*cmake, "--build", build, "--parallel", str(cores), "--target", *PROGRAMS],
    )
    note(f"building llama.cpp on {cores} cores: a minute on twelve, five on two")
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-20:])
            note(tail)
            hint = "The lines above say why. Name a build of llama.cpp with UNSLOTH_LLAMA_CPP_PATH instead."
            raise UserError(f"llama.cpp could not be built (status {done.returncode}).", hint, status=3)
    for name in PROGRAMS:
        shutil.copy(build / "bin" / name, source / name)
    shutil.rmtree(build)


# ---- Exports ---------------------------------------------------------------------------------------------------------

MERGED = "merged"
# The names that transformers gives to a model's weights.
WEIGHTS = r"(pytorch_)?model(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?"
# What Unsloth calls the file of what sees, in the place of a type.
MMPROJ = "F16-mmproj"
# Beside GGUF files, for Ollama.
FOR_OLLAMA = ("Modelfile", "params", "template")
# Bits that a weight takes in a file of that type, rounded up for the parts that are kept more exact.
GGUF_BITS = {
    "f16": 16, "bf16": 16, "q8_0": 8.6, "q6_k": 6.7, "q5_k_m": 5.9, "q4_k_m": 5.1, "q3_k_m": 4.3, "q2_k": 3.7,
}  # fmt: skip
# Bytes a second that a disk and an upload may well take. The adapter is safe by then: an export that comes to nothing
# for want of time costs only its time.
EXPORT_DISK_SPEED, EXPORT_UPLOAD_SPEED = 200e6, 40e6
# What is wrong with such a --merged-repo.
ADAPTER_THERE = (
    "the adapter is there, and transformers would add it to the merged weights once more; without it these go to "
    f"{MERGED}/ of the output repo"
)
# Left for the RESULT line and the card.
CLOSING_S = 20


class TimeUp(BaseException):
    """The exports are left as they are. No `Exception`: nothing that tries again may catch it."""


@contextmanager
def until(left_s):
    """Raise `TimeUp` inside after so many seconds, or when a signal asks to stop."""

    def stop(number, frame):
        raise TimeUp("the time is up" if number == signal.SIGALRM else "asked to stop")

    before = {number: signal.signal(number, stop) for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT)}
    try:
        if left_s < math.inf:
            signal.setitimer(signal.ITIMER_REAL, max(left_s, 0.01))
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def asked_exports(args):
    """What was asked for, as the list that becomes RESULT's `exports`; `error` is null once one is made and checked."""
    wanted = [("merged", args.merge)] * bool(args.merge) + [("gguf", kind) for kind in dict.fromkeys(args.gguf)]
    unknown = {"path": None, "repo": None, "gib": None, "checked": None, "error": "not made"}
    return [{"kind": kind, "name": name, **unknown} for kind, name in wanted]


def whole_bytes(model):
    """What the model takes in 16 bits, without what is trained; packed weights count as what they stand for."""
    states = ((parameter, getattr(parameter, "quant_state", None)) for parameter in model.parameters())
    frozen = [(parameter, state) for parameter, state in states if not parameter.requires_grad]
    return 2 * sum(math.prod(state.shape) if state else parameter.numel() for parameter, state in frozen)


def export_bytes(args, whole, name=None):
    """What the exports take on the disk at most, by what it is, for a model of that size in 16 bits.

    `name` is that of the 16-bit model, which is downloaded where it is not the one that is trained.
    """
    parts = {f"{name} in 16 bits": whole} if name and name != args.model else {}
    if args.merge:
        parts[f"{MERGED}/"] = whole if args.merge == "16bit" else 0.4 * whole
    if args.gguf and args.merge != "16bit":
        parts["a 16-bit copy to convert"] = whole
    if any(kind not in CONVERTED for kind in args.gguf):
        parts["a 16-bit GGUF file to quantise"] = whole
    for kind in dict.fromkeys(args.gguf):
        parts[f"{kind}.gguf"] = whole * GGUF_BITS[kind] / 16
    return parts


def export_place(args, folder, repo, merged_repo):
    """Where exports are put, and where they are made: new folders, or for the first the adapter's.

    A Job's volume is a bucket behind a file system, on which no file is mapped or changed in place, and to which what
    is pushed anyway would travel a second time. What is not pushed belongs there.
    """
    in_bucket, pushes = is_jobs_own(args), repo or (merged_repo and not args.gguf)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / ".exporting", ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix="exporting-")) if in_bucket else folder / ".exporting"
    work.mkdir(exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="exports-")) if in_bucket and pushes else folder, work


def open_merged_repo(args, output_repo):
    """The full name of the repo of the merged model, or none; opened as the output repo was.

    Raises `UserError` of status 3 where it holds an adapter, or will.
    """
    if not args.merged_repo:
        return None
    from huggingface_hub import HfApi

    name = open_repo(args.merged_repo, args.private)
    held = persist(f"looking at {name}", lambda: HfApi().list_repo_files(name))
    if name == output_repo or "adapter_config.json" in held:
        raise UserError(f"--merged-repo {name}: {ADAPTER_THERE}.", "Name another repo.", status=3)
    return name


def read_config(args):
    """The model's config.json."""
    from huggingface_hub import hf_hub_download

    own = Path(args.model, "config.json")
    own = own if own.is_file() else Path(hf_hub_download(args.model, "config.json", revision=args.revision))
    return json.loads(own.read_text(encoding="utf-8"))


def find_whole(args):
    """Name and revision of the model in 16 bits: the one that is trained, or what its 4-bit upload was made of.

    Raises `UserError` of status 2 where that is not known, for exports that need it.
    """
    from huggingface_hub import HfApi
    from unsloth.models.loader_utils import get_model_name

    if not args.gguf and args.merge != "16bit":
        return args.model, args.revision
    settings = read_config(args).get("quantization_config") or {}
    if settings.get("quant_method") != "bitsandbytes":
        return args.model, args.revision
    try:
        name = None if Path(args.model).is_dir() else get_model_name(args.model, load_in_4bit=False)
    except Exception:
        name = None
    if not name or name.lower() == args.model.lower():
        message = f"--model {args.model} is in 4 bits itself, and its 16-bit original, which exports need, is not known"
        raise UserError(f"{message}.", "Name that one, and add --load-in 4bit.", status=2)
    try:
        return name, persist(f"looking up {name}", lambda: HfApi().model_info(name).sha)
    except Exception as error:
        # It may lie in the cache all the same.
        note(f"the commit of {name} is not known ({reason(error)})")
        return name, None


def fetch_whole(name, revision):
    """The folder of that model's files; what was loaded already lies in the Hub's cache."""
    from huggingface_hub import snapshot_download

    if Path(name).is_dir():
        return Path(name).absolute()
    wanted = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.py"]
    skipped = ["*/*", "consolidated*"]
    fetch = partial(snapshot_download, name, revision=revision, allow_patterns=wanted, ignore_patterns=skipped)
    folder = Path(persist(f"fetching {name}", fetch))
    note(f"merged into {name} of commit {folder.name}")
    return folder


def export(args, exports, folder, model, reader, stop, llama_cpp, whole, repo, merged_repo, left_s):
    """Make each of the `exports` of the trained model, compare it with that, and push it; each notes what became of it.

    Nothing is raised, and the model is gone from memory afterwards. `whole` is the name and revision of the 16-bit
    model; `repo` and `merged_repo` are where to push, or none.
    """
    place, work = export_place(args, folder, repo, merged_repo)
    size, ends = whole_bytes(model), time.monotonic() + left_s

    def require_time(written, pushed):
        needed = written / EXPORT_DISK_SPEED + (pushed / EXPORT_UPLOAD_SPEED if repo or merged_repo else 0)
        if ends - time.monotonic() < needed:
            raise TimeUp(f"{ends - time.monotonic():.0f} s are left, and about {needed:.0f} s are needed")

    try:
        with until(left_s):
            require_time(2 * size, 0)
            copies = make_copies(args, work, model, reader, stop, whole, exports)
            empty(model)
            checked = check_copies(args, copies, work / "known.json", exports)
            for entry in exports:
                if entry["error"] != "not made":
                    continue
                phase(f"export {entry['kind']} {entry['name']}")
                bits = GGUF_BITS[entry["name"]] if entry["kind"] == "gguf" else 16 if entry["name"] == "16bit" else 5
                require_time(2 * size, size * bits / 16)
                try:
                    if entry["kind"] == "merged":
                        entry["checked"] = checked[entry["name"]]
                        keep_merged(entry, args, copies, place, repo, merged_repo)
                    else:
                        keep_gguf(entry, args, gguf_name(args, repo), copies["16bit"], work, place, llama_cpp)
                        first = not any(other["kind"] == "gguf" and not other["error"] for other in exports)
                        if first:
                            write_modelfile(place, args, reader, entry["path"])
                        push_gguf(entry, place, repo)
                    entry["error"] = None
                    where = f"pushed to {entry['repo']}" if entry["repo"] else f"in {place}"
                    note(f"{entry['path']}: {entry['gib']:.2f} GiB, {where}; {entry['checked']}")
                except Exception as error:
                    entry["error"] = reason(error)
                    note(f"{entry['kind']} {entry['name']} failed: {entry['error']}")
    except TimeUp as end:
        fail(exports, f"left out: {end}")
    except Exception as error:
        fail(exports, reason(error))
    shutil.rmtree(work, ignore_errors=True)
    if place != folder and not any(entry["error"] for entry in exports):
        # All of it was pushed.
        shutil.rmtree(place, ignore_errors=True)


def fail(exports, problem, kind=None):
    """Note the problem for those that nothing has become of yet, of that merged copy's if it is named."""
    for entry in exports:
        if entry["error"] == "not made" and (kind is None or is_of(entry, kind)):
            entry["error"] = problem
            note(f"{entry['kind']} {entry['name']}: {problem}")


def is_of(entry, kind):
    """Whether that export is the merged copy of that kind, or made of it."""
    return kind == "16bit" if entry["kind"] == "gguf" else entry["name"] == kind


def make_copies(args, work, model, reader, stop, whole, exports):
    """The merged copies that are needed, by kind, with what the trained model makes of the prompt beside them.

    The 4-bit one comes last: merging changes the weights that are loaded.
    """
    phase("merge")
    known, copies = probe(model, reader, stop), {}
    (work / "known.json").write_text(json.dumps(known | {"merged_words": known["words"]}), encoding="utf-8")
    for kind in [kind for kind in ("16bit", "4bit") if kind == args.merge or (kind == "16bit" and args.gguf)]:
        try:
            base = fetch_whole(*whole) if kind == "16bit" else None
            merge(model, reader, kind, work / kind, base)
            copies[kind] = work / kind
        except Exception as error:
            fail(exports, reason(error), kind)
    return copies


def merge(model, reader, kind, folder, base):
    """Merge the adapter into a copy of the model, with all that it takes to use it, through Unsloth."""
    named = model.config._name_or_path
    try:
        if base:
            # Unsloth reads the 16-bit weights anew, and would take the newest of the repo that it thinks the best.
            model.config._name_or_path = str(base)
        method = {"16bit": "merged_16bit", "4bit": "merged_4bit_forced"}[kind]
        model.save_pretrained_merged(str(folder), reader, save_method=method)
    finally:
        model.config._name_or_path = named
    reader.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    if not any(folder.glob("*.safetensors")):
        raise RuntimeError("Unsloth wrote no weights")


def empty(model):
    """Let go of the model's memory, whoever still holds on to it."""
    import torch

    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.new_empty(0)
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def check_copies(args, copies, record, exports):
    """What the comparison with the trained model says of each merged copy, by kind."""
    told = {}
    for kind, copy in copies.items():
        try:
            told[kind], problem, answer = in_own_process("check_merged", copy, record, args.trust_remote_code or "")
            if problem:
                fail(exports, problem, kind)
            elif kind == "16bit":
                # A GGUF file is made of it, and nearer to it than to what was trained in 4 bits.
                known = json.loads(record.read_text(encoding="utf-8"))
                record.write_text(json.dumps(known | answer), encoding="utf-8")
        except Exception as error:
            if re.search("out of memory|killed by signal 9", str(error)):
                # What was trained in 4 bits may not fit in 16.
                told[kind] = f"not loaded again, for want of memory ({reason(error)})"
            else:
                fail(exports, f"it can't be loaded again ({reason(error)})", kind)
    return told


def keep_merged(entry, args, copies, place, repo, merged_repo):
    """Put the merged copy in its place, and push it."""
    copy = land(copies[entry["name"]], place / MERGED)
    # GGUF files are made of it too.
    copies[entry["name"]] = copy
    files = every_file(copy)
    entry |= {"path": MERGED, "gib": sum((copy / path).stat().st_size for path in files) / 2**30}
    if merged_repo:
        push_merged(entry, args, copy, files, repo, merged_repo)
    elif repo:
        paths = [f"{MERGED}/{path}" for path in files]
        push(place, repo, paths, stale_files(repo, paths, f"{MERGED}/.*"))
    entry["repo"] = merged_repo or repo


def push_merged(entry, args, copy, files, repo, merged_repo):
    """Push the merged copy to a repo of its own, with a card where one can be made."""
    adapter = repo
    stale = stale_files(merged_repo, files, WEIGHTS)
    try:
        # It is the repo, and in no folder of it.
        whole = entry | {"path": None, "repo": merged_repo, "error": None}
        text = copies_card(args, copy, [whole], merged_repo, adapter)
        (copy / "README.md").write_text(text, encoding="utf-8")
        push(copy, merged_repo, ["README.md", *files], stale)
        return
    except Exception as error:
        # The Hub refuses a commit for a card that it does not take.
        if isinstance(error, UserError) and "README.md" not in error.args[0]:
            raise
        note(f"{merged_repo} has no card ({reason(error)})")
    push(copy, merged_repo, files, stale)


def keep_gguf(entry, args, name, copy, work, place, llama_cpp):
    """Convert the 16-bit copy, quantise it, check the file, and put it in its place."""
    from unsloth_zoo.llama_cpp import convert_to_gguf, quantize_gguf

    kind = entry["name"]

    def file_of(kind):
        return work / f"{name}.{kind.upper()}.gguf"

    def convert(kind):
        # What sees is a file of its own, and made once.
        sees = False
        converter = str(llama_cpp / CONVERTER)
        _, seen = convert_to_gguf(
            str(work / name), str(copy), "f16", kind, converter_location=converter, is_vlm=sees,
            # One file: what quantises and pushes it knows no parts.
            max_shard_size="1000GB",
        )  # fmt: skip
        if sees and not seen:
            raise RuntimeError("the part of the model that sees could not be converted")

    if kind in CONVERTED:
        convert(kind)
    else:
        whole = next((other for other in ("bf16", "f16") if file_of(other).exists()), "bf16")
        if not file_of(whole).exists():
            convert(whole)
        quantizer = str(tool(llama_cpp, QUANTIZER))
        quantize_gguf(str(file_of(whole)), str(file_of(kind)), kind, quantizer, print_output=False)
    told, problem = in_own_process("check_gguf", file_of(kind), kind, work / "known.json", llama_cpp)
    if problem:
        raise RuntimeError(problem)
    # Other types are quantised from a 16-bit file, and what sees is not made again.
    sees = seeing(file_of(kind))
    landed = land(file_of(kind), place / file_of(kind).name, keep=kind in ("bf16", "f16"))
    if sees:
        land(sees, place / sees.name, keep=True)
    entry |= {"path": landed.name, "gib": landed.stat().st_size / 2**30, "checked": told}


def gguf_name(args, repo):
    """What GGUF files are called before their type: as the repo that they go to, so that later ones replace them."""
    name = repo.split("/")[-1] if repo else args.run_name
    return re.sub(r"[^\w.-]+|\.gguf$", "-", name, flags=re.ASCII).strip(".-") or "model"


def push_gguf(entry, place, repo):
    """Push the file, with what sees and what Ollama needs."""
    if repo:
        sees = seeing(place / entry["path"])
        beside = [name for name in FOR_OLLAMA if (place / name).is_file()]
        paths = [entry["path"], *([sees.name] if sees else []), *beside]
        # llama.cpp takes the first file of a type.
        kinds = [entry["name"].upper()] + [MMPROJ] * bool(sees)
        push(place, repo, paths, stale_files(repo, paths, rf"[^/]+\.({'|'.join(kinds)})\.gguf"))
        entry["repo"] = repo


def seeing(path):
    """The file beside that GGUF file of what sees, or none."""
    found = path.with_name(f"{path.stem.rpartition('.')[0]}.{MMPROJ}.gguf")
    return found if found.is_file() else None


def stale_files(repo, fresh, pattern):
    """What of the repo an earlier export left: files of such names that are not among the fresh ones."""
    from huggingface_hub import HfApi

    held = persist(f"looking at {repo}", lambda: HfApi().list_repo_files(repo))
    found = [path for path in held if path not in fresh and re.fullmatch(pattern, path)]
    if found:
        note(f"of an earlier export, and deleted from {repo} with this push: {', '.join(found)}")
    return found


def land(source, target, keep=False):
    """The new path of a whole file or folder, which appears there at once; with `keep` a file stays here too."""
    draft = target.with_name(f".{target.name}.new")
    for old in (draft, target):
        if old.is_dir():
            shutil.rmtree(old)
    if keep:
        # Of two names of one file neither would replace the other.
        target.unlink(missing_ok=True)
        try:
            os.link(source, draft)
        except OSError:
            shutil.copy(source, draft)
    else:
        shutil.move(source, draft)
    draft.replace(target)
    return target


def every_file(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def is_export(path):
    """Whether that path of an output folder is of an export, which is pushed by itself."""
    return path.startswith(f"{MERGED}/") or path.endswith(".gguf") or path in FOR_OLLAMA


def failed_exports(args, exports, where, url):
    """The error of a run whose exports are not all there, or none; its last words say how to try again."""
    failed = [entry for entry in exports if entry["error"]]
    if not failed:
        return None
    told = "; ".join(f"{entry['kind']} {entry['name']}: {entry['error']}" for entry in failed)
    words = [f"--merge {entry['name']}" if entry["kind"] == "merged" else f"--gguf {entry['name']}" for entry in failed]
    if args.merged_repo and failed[0]["kind"] == "merged":
        words.append(f"--merged-repo {args.merged_repo}")
    address = f", {url}" if url else ""
    message = f"the adapter is whole{address}; {len(failed)} of {len(exports)} exports failed ({told})"
    return UserError(f"{message}.", f"Try again with: launch export {shlex.quote(str(where))} {' '.join(words)}")


# ---- Comparing an export with the trained model ----------------------------------------------------------------------

QUESTION, BEGINNING = "What is the capital of France?", "The capital of France is"
ANSWERED, COMPLETE_S = 24, 900
# How far a token's logit must lead the next one's for a GGUF file of that type to have to answer with it as well. Of a
# model of 135M q4_k_m moved a lead by 2.3 at most, in 91 tokens, and q2_k by 5.7: of the smallest types none has to.
LEADS = {"f16": 3, "bf16": 3, "q8_0": 3, "q6_k": 6, "q5_k_m": 6, "q4_k_m": 6}


def ask(reader):
    """The prompt that both are given, through the chat template where there is one."""
    if not reader.chat_template:
        return BEGINNING
    content = QUESTION
    # Llama's template would else hold the day.
    shown = {"add_generation_prompt": True, "date_string": "26 Jul 2024"}
    return reader.apply_chat_template([{"role": "user", "content": content}], tokenize=False, **shown)


def probe(model, reader, stop, led=False):
    """What the model makes of the prompt, as JSON: the likeliest token at each place, and its likeliest answer.

    With `led` also the words at its beginning that lead all others by so much.
    """
    import torch

    text, tokenizer = ask(reader), getattr(reader, "tokenizer", reader)
    inputs = reader([text], add_special_tokens=not reader.chat_template, return_tensors="pt").to(model.device)
    with torch.inference_mode():
        logits = model(**inputs).logits[0].float().cpu()
        # Greedy, and without what the recommended settings would change of it.
        made = model.generate(
            **inputs,
            max_new_tokens=ANSWERED,
            do_sample=False,
            repetition_penalty=1.0,
            eos_token_id=[stop],
            pad_token_id=tokenizer.pad_token_id,
            **({"return_dict_in_generate": True, "output_logits": True} if led else {}),
        )
    answer = (made.sequences if led else made)[0, inputs["input_ids"].shape[1] :].tolist()
    pairs = [step[0].float().topk(2).values.tolist() for step in made.logits] if led else []
    said = partial(tokenizer.decode, skip_special_tokens=True)
    return {
        "prompt": text,
        "ids": inputs["input_ids"][0].tolist(),
        "likeliest": logits.argmax(-1).tolist(),
        "last": logits[-1].tolist(),
        "answer": answer,
        "words": said(answer),
        "led": {str(lead): leading_words(answer, pairs, lead, said) for lead in set(LEADS.values())} if led else {},
        "stop": stop,
        "eos": tokenizer.eos_token_id,
        "template": reader.chat_template,
    }


def leading_words(answer, pairs, lead, said):
    """The whole words at the beginning of an answer whose every token leads by so much; `pairs` are the best logits."""
    count = next((n for n, (first, second) in enumerate(pairs) if first - second < lead), len(answer))
    return words_of(said(answer) if count >= len(answer) else re.sub(r"\S*$", "", said(answer[:count])))


def words_of(text):
    """The words of an answer, without tags, of which llama.cpp shows others than transformers."""
    return re.sub(r"<[^<>]*>", " ", text).split()


def compare(known, found):
    """How much the exported model is the trained one, in a sentence, and what is wrong with it, or none."""
    if found["ids"] != known["ids"]:
        return None, "its tokenizer or chat template makes another prompt than the trained model's"
    pairs = list(zip(known["likeliest"][::-1], found["likeliest"][::-1], strict=False))
    same = sum(one == other for one, other in pairs)
    far = max(abs(one - other) for one, other in zip(known["last"], found["last"], strict=False))
    told = f"the likeliest next token is the same at {same} of {len(pairs)} places of a prompt"
    told += f", and the logits at its end differ by {far:.3g} at most"
    # Of a model that knows little, 4 bits change the likeliest token easily, and the logits as a whole much less.
    if same * 2 <= len(pairs) and correlation(known["last"], found["last"]) < 0.5:
        return None, f"it does not answer as the trained model: {told}"
    return f"{tell_answers(known['answer'], found['answer'])}; {told}", None


def correlation(one, other):
    """Of two lists of numbers, from -1 to 1; 0 where either is of one number only."""
    count = min(len(one), len(other))
    means = sum(one[:count]) / count, sum(other[:count]) / count
    pairs = [(a - means[0], b - means[1]) for a, b in zip(one, other, strict=False)]
    size = math.sqrt(sum(a * a for a, _ in pairs) * sum(b * b for _, b in pairs))
    return sum(a * b for a, b in pairs) / size if size else 0.0


def tell_answers(known, found):
    if known == found:
        return f"the same answer of {len(known)} tokens"
    place = next((n for n, (one, other) in enumerate(zip(known, found, strict=False)) if one != other), None)
    place = min(len(known), len(found)) if place is None else place
    return f"the answers are the same for {place} tokens, then differ"


def check_merged(folder, record, trusted):
    """Load the merged model with plain transformers, without Unsloth: what `compare` finds, and what it answers.

    The answer is what a GGUF file's is compared with: it is made of that model.
    """
    import torch
    from transformers import AutoModelForCausalLM as AutoModel
    from transformers import AutoTokenizer as AutoReader

    known = json.loads(Path(record).read_text(encoding="utf-8"))
    trust = {"trust_remote_code": bool(trusted)}
    reader = AutoReader.from_pretrained(folder, **trust)
    where = {"device_map": "auto"} if torch.cuda.is_available() else {}
    model = AutoModel.from_pretrained(folder, dtype="auto", **where, **trust)
    found = probe(model, reader, known["stop"], led=True)
    return (*compare(known, found), {"merged_words": found["words"], "led": found["led"]})


def check_gguf(path, kind, record, llama_cpp):
    """Read what the file says of its tokens and template, and let llama.cpp answer from it where it is built."""
    sys.path.insert(0, str(Path(llama_cpp, "gguf-py")))
    from gguf import GGUFReader

    known = json.loads(Path(record).read_text(encoding="utf-8"))
    fields = GGUFReader(path).fields
    eos, template = (
        fields[name].contents() if name in fields else None
        for name in ("tokenizer.ggml.eos_token_id", "tokenizer.chat_template")
    )
    if eos not in (known["eos"], known["stop"]):
        return None, f"its end token is {eos}, and the trained model's {known['eos']}"
    if (template or "").strip() != (known["template"] or "").strip():
        return None, "its chat template is not the trained model's"
    told = f"the end token and {'the chat template' if template else 'the lack of a chat template'} are the model's"
    answerer = tool(Path(llama_cpp), ANSWERER)
    if answerer is None:
        return f"{told}; not run, since {llama_cpp} has no {ANSWERER}", None
    try:
        said = answer_gguf(answerer, path, known["prompt"], fields)
    except (MemoryError, subprocess.TimeoutExpired) as error:
        return f"{told}; not run, for want of {'memory' if isinstance(error, MemoryError) else 'time'}", None
    return compare_words(known["merged_words"].strip(), said, known["led"].get(str(LEADS.get(kind)), []), told)


def compare_words(known, said, led, told):
    """What is told of an answer in llama.cpp, and what is wrong with it, or none; `led` are the words it can't lack."""
    if said == known:
        return f"the same answer in llama.cpp; {told}", None
    differs = f"in llama.cpp it answers {said[:60]!r}, and the merged model {known[:60]!r}"
    needed = led[: math.ceil(len(led) / 2)]
    if words_of(said)[: len(needed)] != needed:
        return None, f"it does not answer as the merged model: {differs}"
    return f"another answer: {differs}; {told}", None


def answer_gguf(answerer, path, prompt, fields):
    """What llama.cpp answers to the prompt, as text."""
    bos = fields.get("tokenizer.ggml.bos_token_id")
    adds = fields.get("tokenizer.ggml.add_bos_token")
    if bos and adds and adds.contents():
        # It would be there twice.
        prompt = prompt.removeprefix(fields["tokenizer.ggml.tokens"].contents(bos.contents()))
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".txt") as file:
        file.write(prompt)
        file.flush()
        plain = ("--no-conversation", "--no-display-prompt", "--no-escape", "--simple-io")
        # As it stands: of a text file llama.cpp drops the last line's end, which a chat template's prompt needs.
        return complete(answerer, path, "--binary-file", file.name, *plain)


def complete(answerer, path, *asked):
    """The likeliest words after what is asked.

    `RuntimeError` where llama.cpp fails, `MemoryError` where it is for want of memory, `TimeoutExpired` where it takes
    too long, as with a file that is larger than the memory.
    """
    # The file holds the recommended settings, a penalty for repetition among them.
    greedy = ("-n", ANSWERED, "-c", "1024", "--temp", "0", "--repeat-penalty", "1", "--poll", "0", "--no-warmup")
    command = [str(word) for word in (answerer, "-m", path, *asked, *greedy)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=COMPLETE_S, check=False)
    if done.returncode and re.search("(failed|unable) to allocate|out of memory", done.stderr, re.IGNORECASE):
        raise MemoryError
    if done.returncode == -signal.SIGKILL:
        raise MemoryError
    if done.returncode:
        raise RuntimeError(f"{answerer.name} ended with status {done.returncode}: {last_line(done.stderr)}")
    return done.stdout.removesuffix("\n").replace("[end of text]", "").strip()


def last_line(text):
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def in_own_process(function, *words):
    """What that function of this script returns in a process of its own, where nothing is patched."""
    run = "import json, runpy, sys; found = runpy.run_path(sys.argv[1], run_name='check')[sys.argv[2]](*sys.argv[3:]); "
    command = [sys.executable, "-c", run + "print(json.dumps(found))", __file__, function, *map(str, words)]
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode < 0:
        raise RuntimeError(f"it was killed by signal {-done.returncode}, as where memory does not suffice")
    if done.returncode:
        raise RuntimeError(last_line(done.stderr))
    return json.loads(done.stdout.strip().splitlines()[-1])


# ---- How it is sampled -----------------------------------------------------------------------------------------------

# The settings by transformers' names; Ollama's, where they differ. transformers knows no presence penalty.
OLLAMA_NAMES = {"repetition_penalty": "repeat_penalty"}
ONLY_OLLAMA = {"presence_penalty"}
SAMPLING = ("temperature", "top_k", "top_p", "min_p")

# A prompt in Ollama's language, Go's text/template; what stands between ⟨ and ⟩ is read off the chat template.
GO_TEMPLATE = (
    "{{ if .System }}⟨head⟩{{ .System }}⟨after_system⟩{{ else }}⟨start⟩{{ end }}"
    "{{ range $i, $m := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
    '{{ if eq $m.Role "user" }}{{ $m.Content }}{{ if $last }}⟨tail⟩{{ else }}⟨after_user⟩{{ end }}'
    '{{ else if eq $m.Role "assistant" }}{{ $m.Content }}{{ if not $last }}⟨after_answer⟩{{ end }}'
    "{{ end }}{{ end }}"
)


def recommended(args):
    """How the makers of the model say that it is best sampled; empty for another model than the chosen one."""
    found = GENERATION if args.model == CHOSEN["model"] else {}
    return {name: int(value) if name == "top_k" else value for name, value in found.items()}


def set_generation(model, args, stop):
    """Give the model the recommended settings, and the token that ends an answer: generation_config.json in the end."""
    from transformers import GenerationConfig

    found = {name: value for name, value in recommended(args).items() if name not in ONLY_OLLAMA}
    # A temperature of 0 is how others say that nothing is drawn.
    greedy = found.get("temperature") == 0
    if found:
        found |= {"do_sample": not greedy} | (dict.fromkeys(SAMPLING) if greedy else {})
    known = getattr(model, "generation_config", None) or GenerationConfig()
    ends = known.eos_token_id if isinstance(known.eos_token_id, list) else [known.eos_token_id]
    found["eos_token_id"] = [stop, *(token for token in ends if token not in (stop, None))]
    try:
        known.update(**found)
        known.validate(strict=True)
    except ValueError:
        # What the model brought contradicts itself, and would not be saved.
        kept = {name: getattr(known, name) for name in ("bos_token_id", "pad_token_id")}
        known = GenerationConfig(**kept | found)
    model.get_base_model().generation_config = known


def write_modelfile(folder, args, processor, gguf_name):
    """Write what Ollama needs beside the GGUF file: the Modelfile for `ollama create`.

    `ollama run hf.co/USER/MODEL` reads the files `template` and `params` of the repo instead.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    settings = {OLLAMA_NAMES.get(name, name): value for name, value in recommended(args).items()}
    stops = [tokenizer.eos_token]
    template = None
    if processor.chat_template:
        stops.insert(0, tokenizer.decode([end_of_turn(processor, tokenizer)]))
        template = go_template(processor, tokenizer)
    stops = [stop for stop in dict.fromkeys(stops) if stop and not re.search(r'["\\\n]', stop)]
    # The part of a vision model that sees is a file of its own.
    sees = seeing(Path(folder, gguf_name))
    files = [gguf_name] + ([sees.name] if sees else [])
    lines = [f"FROM ./{name}" for name in files]
    lines += [f"PARAMETER {name} {value}" for name, value in settings.items()]
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    if template is not None:
        lines.append(f'TEMPLATE """{template}"""')
        (Path(folder) / "template").write_text(template, encoding="utf-8")
    else:
        (Path(folder) / "template").unlink(missing_ok=True)
        if processor.chat_template:
            lines.append("# No template: none makes the prompts of this chat template. Ollama looks for one like it.")
    (Path(folder) / "Modelfile").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (Path(folder) / "params").write_text(json.dumps(settings | {"stop": stops}, indent=2) + "\n", encoding="utf-8")


def go_template(processor, tokenizer):
    """The chat template as Ollama writes one, or none where no such template makes the same prompts.

    It is read off a prompt: what stands before, between and after the messages. Then other prompts must come out equal.
    """
    from jinja2 import TemplateError

    asked = ("SYSTEM0", "USER1", "ANSWER1", "USER2")
    try:
        whole, bare = prompt(processor, *asked), prompt(processor, None, *asked[1:])
        parts, others = re.split("|".join(asked), whole), re.split("|".join(asked[1:]), bare)
        if len(parts) != 5 or len(others) != 4 or parts[2:] != others[1:]:
            return None
        head, after_system, after_user, after_answer, tail = parts
        start = others[0]

        def put_together(system, *turns):
            text = start if system is None else head + system + after_system
            for number, turn in enumerate(turns):
                last = number == len(turns) - 1
                text += turn + (tail if last else after_answer if number % 2 else after_user)
            return text

        for chat in ((None, "a"), ("s", "a"), ("s", *"abc"), (None, *"abcde"), ("s", *"abcdefg")):
            if put_together(*chat) != prompt(processor, *chat):
                return None
    except TemplateError:
        return None
    bos = tokenizer.bos_token
    if bos and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]:
        # Ollama puts it there too.
        head, start = head.removeprefix(bos), start.removeprefix(bos)
    pieces = {"head": head, "after_system": after_system, "start": start,
              "after_user": after_user, "after_answer": after_answer, "tail": tail}  # fmt: skip
    if any('"""' in piece or "{{" in piece + "{" for piece in pieces.values()):
        return None
    return re.sub("⟨([a-z_]+)⟩", lambda found: pieces[found[1]], GO_TEMPLATE)


def prompt(processor, system, *turns):
    """The prompt for an answer to these turns, the user's and the assistant's, with a system message or none."""
    roles = itertools.cycle(("user", "assistant"))
    messages = [{"role": role, "content": said(text)} for role, text in zip(roles, turns, strict=False)]
    if system is not None:
        messages.insert(0, {"role": "system", "content": said(system)})
        messages = messages if takes_system(processor) else fold_system(messages)
    # Llama's would hold the day on which this runs.
    shown = {"add_generation_prompt": True, "date_string": "26 Jul 2024"}
    return processor.apply_chat_template(messages, tokenize=False, **shown)


# ---- Record ----------------------------------------------------------------------------------------------------------

RECORD, PLAN = "run.json", "plan.json"
# Written after the record, and made of it.
CARD, PICTURE = "README.md", "loss.png"
# A path of this machine, and rows of a dataset that may be private.
NOT_RECORDED = ("output_dir", "samples")


def write_record(folder, args, result, model):
    """Write run.json and the script itself into the folder: all that it takes to run this again. Raises nothing."""
    try:
        script = Path(__file__).resolve()
        (folder / script.name).write_bytes(script.read_bytes())
        record = describe_run(folder, script, args, result, model)
        draft = folder / f".{RECORD}"
        draft.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        draft.replace(folder / RECORD)
    except Exception as error:
        # One that was there is of other weights.
        (folder / RECORD).unlink(missing_ok=True)
        note(f"{RECORD} could not be written, the run goes on without it ({reason(error)})")


def describe_run(folder, script, args, result, model):
    """What run.json says; of environment variables the names only, in the plan too."""
    import platform
    from importlib.metadata import distributions

    plan, dataset, given = read_plan(script), Path(args.dataset).expanduser(), sys.argv[1:]
    named, variables = args.dataset, []
    if plan:
        variables, plan["env"] = sorted(plan["env"]), {}
        # A file that was sent along lies elsewhere here, under its own name.
        if dataset.exists() and Path(plan["dataset"]).name.replace(" ", "_") == dataset.name.replace(" ", "_"):
            named = plan["dataset"]
    commit = getattr(model.config, "_commit_hash", None) or commit_of(args.model, args.revision, "model")
    words = {args.dataset: named, f"--dataset={args.dataset}": f"--dataset={named}"}
    files = [path for path in pushed_files(folder) if path not in (RECORD, CARD, PICTURE)]
    packages = {found.name: found.version for found in distributions()}
    return {
        "version": 1,
        "launcher": (plan or {}).get("launcher"),
        "plan": plan,
        "script": {"name": script.name, "sha256": sha256(script)},
        "args": [words.get(word, word) for word in given],
        "inputs": {named: sha256(dataset)} if dataset.is_file() else {},
        "env": variables,
        "flavor": plan["flavor"] if plan else os.environ.get("ACCELERATOR"),
        "revisions": {"model": commit, "dataset": commit_of(args.dataset, args.dataset_revision, "dataset")},
        "packages": dict(sorted(packages.items())),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": result["device"],
        "files": {path: sha256(folder / path) for path in files},
        "result": finite({name: value for name, value in result.items() if name not in NOT_RECORDED}),
    }


def read_plan(script):
    """The launcher's plan beside the script, or none where it was run by hand."""
    try:
        text = script.with_name(PLAN).read_text(encoding="utf-8")
        plan = json.loads(text, parse_constant=lambda _: None)
        return plan if isinstance(plan, dict) and {"repo", "dataset", "flavor", "env", "cost"} <= plan.keys() else None
    except (OSError, ValueError):
        return None


def commit_of(name, revision, kind):
    """The commit of a Hub repo that was loaded; none for a local one, and where the Hub's client kept none.

    Whoever loads by the name of a branch or tag asks for a file first, and the client notes what commit that was.
    """
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    if not is_hub_id(name):
        return None
    if re.fullmatch("[0-9a-f]{40}", revision or ""):
        return revision
    cache = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type=kind))
    try:
        commit = (cache / "refs" / (revision or "main")).read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return commit if re.fullmatch("[0-9a-f]{40}", commit) else None


# ---- Model card ------------------------------------------------------------------------------------------------------

# Matplotlib's import and, on a new machine, its list of fonts.
PICTURE_S = 30


def write_card(folder, args, result, history, exports, left_s=math.inf):
    """Write the model card, README.md, with its picture of the losses; `exports` are the copies that were made.

    A card that was there is replaced: it told of other weights. With few seconds left there is no picture. Nothing is
    raised.
    """
    picture = left_s > PICTURE_S
    try:
        if picture:
            draw_losses(folder / PICTURE, result, history)
    except Exception as error:
        picture = False
        note(f"{PICTURE} could not be drawn, the run goes on without it ({reason(error)})")
    if not picture:
        (folder / PICTURE).unlink(missing_ok=True)
    try:
        (folder / CARD).write_text(make_card(folder, args, result, exports, picture), encoding="utf-8")
    except Exception as error:
        # PEFT's own names the base model as it was loaded, and a path in its place is refused by the Hub.
        (folder / CARD).unlink(missing_ok=True)
        note(f"{CARD} could not be written, the run goes on without it ({reason(error)})")


def make_card(folder, args, result, exports, picture):
    """The text of the card; what is not known is left out."""
    from huggingface_hub import ModelCardData

    record = json.loads((folder / RECORD).read_text(encoding="utf-8")) if (folder / RECORD).is_file() else {}
    repo, base_on_hub = result.get("output_repo"), is_hub_id(args.model)
    data = ModelCardData(
        library_name="peft",
        base_model=args.model if base_on_hub else None,
        base_model_relation="adapter" if base_on_hub else None,
        datasets=[args.dataset] if is_hub_id(args.dataset) else None,
        pipeline_tag=TASK,
        tags=["lora", "sft", "trl", "unsloth", "launch"],
        **licence_of(args),
    )
    commits = record.get("revisions", {})
    base, dataset = place(args.model, commits.get("model")), place(args.dataset, commits.get("dataset"), "datasets/")
    about = [f"A LoRA adapter for {base}, fine-tuned on {dataset}."]
    if result["stopped"]:
        about.append(f"The training was stopped after step {result['steps']}, before its end.")
    about += tell_licence(licence_of(args))
    tables = {
        "Training": training_rows(args, result),
        "Machine": machine_rows(record, result),
        "Copies": export_rows(exports),
    }
    sampling = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in recommended(args).items())
    return fill_card(
        data,
        title=plain(repo.split("/")[-1] if repo else args.run_name),
        about=" ".join(about),
        picture=picture,
        tables=[(name, rows) for name, rows in tables.items() if rows],
        snippets=usage(folder, args, result, exports, commits.get("model")),
        settings=sampling and f"{sampling}, as the makers of the base model recommend (<{GENERATION_SOURCE}>). "
                              f"`generation_config.json` holds what transformers knows of it.",
        again=(f"`{RECORD}` holds the plan, the commits, every package's version and the hashes; "
               f"{code(Path(__file__).name)} is the script that ran, and runs by itself: `uv run`."),
    )  # fmt: skip


def training_rows(args, result):
    """What was learned from, how, and how well."""
    on_gpu, batch, accumulation = result["device"] != "cpu", result["batch_size"], result["gradient_accumulation"]
    packed = on_gpu and getattr(args, "packing", False)
    subset = ", ".join(code(name) for name in (args.dataset_config, args.dataset_split) if name)
    rows, held_out = result.get("rows"), result.get("eval_rows")
    lines = [
        ("Data", f"{subset}" + (f", {rows:,} rows" if rows else ", streamed" if args.streaming else "")),
        ("Tokens", f"{result['tokens_seen']:,} seen, {result['tokens_trained']:,} of them learned from"),
        ("Learned from", "the assistant's answers" if args.train_on == "assistant" else "the whole text"),
        ("Steps", f"{result['steps']:,} of {batch * accumulation} {'packed ' * packed}rows "
                  f"({batch} at a time), {args.max_length:,} tokens at most"),
        ("Learning rate", f"{args.learning_rate:g}, {args.lr_scheduler_type}, "
                          f"{args.warmup_ratio:.0%} of the steps to warm up"),
        ("Optimizer", f"{args.optim if on_gpu else 'adamw_torch'}, weight decay {args.weight_decay:g}"),
        ("LoRA", f"rank {args.lora_r}, alpha {args.lora_alpha}, dropout {args.lora_dropout:g}, on {adapted(args)}"),
        ("Frozen weights", {"4bit": "4 bits", "16bit": "16 bits"}[args.load_in] if on_gpu else None),
        ("Seed", args.seed),
        ("Training loss", loss(result["train_loss"]) and f"{loss(result['train_loss'])}, mean of the last logged steps"),
    ]  # fmt: skip
    before, after = loss(result["eval_loss_before"]), loss(result["eval_loss"])
    of = f"rows of {code(args.eval_split)}" if args.eval_split else "rows held out"
    found = ", ".join([f"{before} before training"] * bool(before) + [f"{after} after it"] * bool(after))
    lines.append(("Evaluation loss", found and f"{found}, on {f'{held_out:,} ' if held_out else ''}{of}"))
    return [(name, value) for name, value in lines if value or value == 0]


def adapted(args):
    """Which layers are."""
    return code(args.lora_targets.replace(",", " "))


def loss(value):
    return f"{value:.4f}" if value is not None and math.isfinite(value) else None


def machine_rows(record, result):
    """Where it was trained, how long that took and what it cost, as far as this attempt knows."""
    plan, in_job = record.get("plan") or {}, bool(os.environ.get("JOB_ID"))
    flavor, rate = record.get("flavor"), plan.get("cost", {}).get("usd_per_hour")
    total_s = time.monotonic() - STARTED
    again = f", in attempt {result['attempt']}" if result["attempt"] > 1 else ""
    peak, predicted = result["peak_gib"], result["predicted_peak_gib"]
    memory = []
    if peak is not None:
        memory = [f"{peak:.2f} GiB at most", f"{predicted:.2f} GiB predicted" if predicted is not None else None]
    lines = [
        ("Hardware", code(result["device"]) + (f", flavor {code(flavor)}" if in_job and flavor else "")),
        ("Time", f"{span(total_s)}{again}; {span(result['train_s'])} of training"),
        ("Speed", f"{result['tokens_per_second']:,.0f} tokens a second"),
        ("Cost", f"about ${rate * total_s / 3600:.2f}{again}, at ${rate:.2f} an hour" if in_job and rate else None),
        ("GPU memory", ", ".join(filter(None, memory))),
        ("Versions", ", ".join(f"{name} {number}" for name, number in result["versions"].items())),
    ]
    return [(name, value) for name, value in lines if value]


def span(seconds):
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def draw_losses(path, result, history):
    """Draw the losses by step: what was logged, and what the evaluations found."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    trained = {entry["step"]: entry["loss"] for entry in history if "loss" in entry}
    # Of the first evaluation the history does not tell.
    evaluated = {0: result["eval_loss_before"], result["steps"]: result["eval_loss"]}
    evaluated |= {entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry}
    figure = Figure(figsize=(7, 3.5), dpi=110, layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss")
    for name, found, style in (("training", trained, "-"), ("evaluation", evaluated, "o--")):
        points = sorted((step, value) for step, value in found.items() if value is not None and math.isfinite(value))
        if points:
            axes.plot(*zip(*points, strict=True), style, label=name, linewidth=1.2, markersize=5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, format="png")


# ---- Cards: what all have --------------------------------------------------------------------------------------------


# A template of Jinja's; what a user or the Hub named only ever comes as a value of it.
CARD_TEMPLATE = """\
---
{{ card_data }}
---

# {{ title }}

{{ about }}
{% if picture %}

![The loss by step](loss.png)
{% endif %}
{% for heading, rows in tables %}

## {{ heading }}

| | |
| --- | --- |
{% for name, value in rows %}
| {{ name }} | {{ value }} |
{% endfor %}
{% endfor %}

## How to use it
{% for name, language, snippet in snippets %}

### {{ name }}

```{{ language }}
{{ snippet }}
```
{% endfor %}
{% if settings %}

## Sampling

{{ settings }}
{% endif %}
{% if again %}

## To run it again

{{ again }}
{% endif %}
"""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
TASK = "text-generation"


def fill_card(data, **values):
    """The text of a card of these metadata; what has no value is left out."""
    from huggingface_hub import ModelCard

    # A statement of the template leaves no line of its own.
    template = CARD_TEMPLATE.replace("%}\n", "%}")
    empty = {"picture": False, "tables": [], "settings": "", "again": ""}
    return str(ModelCard.from_template(data, template_str=template, **empty | values))


def copies_card(args, folder, exports, repo, adapter):
    """The text of a card for a repo of copies of that adapter's model; `folder` holds the tokenizer."""
    from huggingface_hub import ModelCardData

    commit = args.revision if re.fullmatch("[0-9a-f]{40}", args.revision or "") else None
    made = [export for export in exports if not export["error"]]
    merged, on_hub = any(export["kind"] == "merged" for export in made), is_hub_id(args.model)
    datasets, licence = learned_from(args)
    relation, library = ("finetune", "transformers") if merged else ("quantized", None)
    base = place(args.model, commit)
    of = f"the adapter {place(adapter, None)}" if adapter else "an adapter"
    about = [f"{'' if merged else 'GGUF files of '}{base} with {of} merged into it."]
    if repo == adapter:
        relation, library, about = "adapter", "peft", [f"A LoRA adapter for {base}, and copies of the model with it."]
    data = ModelCardData(
        library_name=library,
        base_model=args.model if on_hub else None,
        base_model_relation=relation if on_hub else None,
        datasets=datasets or None,
        pipeline_tag=TASK,
        tags=["lora", "unsloth", "launch"] if repo == adapter else ["unsloth", "launch"],
        **licence,
    )
    shown = usage(folder, args, {"output_repo": repo, "device": "cpu"}, exports, commit)
    return fill_card(
        data,
        title=plain(repo.split("/")[-1]),
        about=" ".join(about + tell_licence(licence)),
        tables=[("Copies", export_rows(made))],
        snippets=shown if repo == adapter else shown[2:],
    )


def is_hub_id(name):
    """Whether that names a repo on the Hub: what is there on this machine wins, as it does when it is loaded."""
    return bool(HUB_ID.fullmatch(name)) and not Path(name).exists()


def learned_from(args):
    """The datasets that the adapter was trained on, by their names on the Hub, and the licence as a card's fields."""
    return [args.dataset] * is_hub_id(args.dataset), licence_of(args)


def licence_of(args):
    """The licence of the planned model, as a card's fields; empty for another one."""
    told = {"license": LICENCE, "license_name": LICENCE_NAME, "license_link": LICENCE_LINK}
    return {name: value for name, value in told.items() if value} if args.model == CHOSEN["model"] else {}


def tell_licence(licence):
    """The sentence on the licence, in a list, which is empty where none is known."""
    name = licence.get("license_name") if licence.get("license") == "other" else licence.get("license")
    return [f"The base model's licence holds for it too{f': {code(name)}' if name else ''}."] if licence else []


def code(text):
    """The text as code, on one line, that ends neither a table's cell nor the code."""
    text = re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", str(text)).replace("|", "¦").replace("`", "ˋ")
    return f"`{text}`"


def plain(text):
    """The text as text on one line, whatever it holds."""
    return re.sub(r"([\\`*_~|<>\[\]#$])", r"\\\1", " ".join(str(text).split()))


def place(name, commit, kind=""):
    """A Hub repo with its address and commit, or the name of what lay on the machine."""
    if not is_hub_id(name):
        return f"{code(Path(name).name)} (not on the Hub)"
    return f"[{code(name)}](https://huggingface.co/{kind}{name})" + (f" at {code(commit[:12])}" if commit else "")


def export_rows(exports):
    """The copies beside the adapter, and those that could not be made."""
    lines = []
    for export in exports:
        size = [f"{export['gib']:.2f} GiB"] if export.get("gib") else []
        found = f"not made: {plain(export['error'])}" if export.get("error") else plain(export.get("checked") or "")
        lines.append((code(export["path"] or export["name"]), ", ".join([*size, *filter(None, [found])])))
    return lines


# ---- How to use it: the card's snippets ------------------------------------------------------------------------------

ASK = """\
messages = [{"role": "user", "content": "What can you do?"}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
"""
ASK_OF_PICTURE = """\
content = [{"type": "image", "image": "picture.jpg"}, {"type": "text", "text": "What is shown here?"}]
messages = [{"role": "user", "content": content}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
"""
GO_ON = """\
inputs = tokenizer("Once upon a time", return_tensors="pt")
"""
ANSWER = """\
settings = GenerationConfig.from_pretrained({place})
output = model.generate(**inputs.to(model.device), generation_config=settings, max_new_tokens=200)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))"""
PEFT_SNIPPET = """\
# pip install peft transformers accelerate{quantizer}
from peft import PeftModel
from transformers import {auto_model}, {auto_tokenizer}, GenerationConfig

tokenizer = {auto_tokenizer}.from_pretrained({place})
model = {auto_model}.from_pretrained(
    {base}, dtype="auto", device_map="auto"{code}
)
model = PeftModel.from_pretrained(model, {place})
"""
UNSLOTH_SNIPPET = """\
# pip install unsloth
from unsloth import {fast_model}  # before transformers
from transformers import GenerationConfig

model, tokenizer = {fast_model}.from_pretrained({place}, max_seq_length={max_length}, load_in_4bit={four_bits})
{fast_model}.for_inference(model)
"""
MERGED_SNIPPET = """\
# pip install transformers accelerate{quantizer}
{fetch}from transformers import {auto_model}, {auto_tokenizer}, GenerationConfig

place = {whole}
tokenizer = {auto_tokenizer}.from_pretrained(place)
model = {auto_model}.from_pretrained(place, dtype="auto", device_map="auto"{code})
"""
FETCH = "from huggingface_hub import snapshot_download\n"


def usage(folder, args, result, exports, commit):
    """How to use what was made, as (heading, language, text): each runs as it stands, in the folder if not pushed."""
    repo = result.get("output_repo")
    names = {
        "place": literal(repo or "."),
        "base": literal(args.model) + (f", revision={literal(commit)}" if commit else ""),
        "quantizer": " bitsandbytes" if "bnb-4bit" in args.model else "",
        "code": ", trust_remote_code=True" if args.trust_remote_code else "",
        "max_length": args.max_length,
        "four_bits": args.load_in == "4bit" and result["device"] != "cpu",
        "auto_model": "AutoModelForCausalLM",
        "auto_tokenizer": "AutoTokenizer",
        "fast_model": "FastLanguageModel",
    }
    settings = folder / "tokenizer_config.json"
    inside = settings.is_file() and '"chat_template"' in settings.read_text(encoding="utf-8")
    ask = ASK if inside or (folder / "chat_template.jinja").is_file() else GO_ON

    def snippet(text, **more):
        return text.format(**names | more) + ask + ANSWER.format(**names | more)

    shown = [
        ("transformers and PEFT", "python", snippet(PEFT_SNIPPET)),
        ("Unsloth", "python", snippet(UNSLOTH_SNIPPET)),
    ]
    made = [export for export in exports if not export.get("error")]
    for export in made:
        if export["kind"] == "merged":
            path, more = export["path"], " bitsandbytes" if export["name"] == "4bit" else ""
            whole, fetch = literal(export["repo"] or path), ""
            if path and export["repo"] and export["repo"] == repo:
                # A folder: with PEFT installed, transformers would take the adapter at the repo's root for the model.
                whole, fetch = f'snapshot_download({whole}, allow_patterns="{path}/*") + "/{path}"', FETCH
            merged = snippet(MERGED_SNIPPET, place="place", whole=whole, fetch=fetch, quantizer=more)
            shown.append((f"Merged, {export['name']}", "python", merged))
    files = [export for export in made if export["kind"] == "gguf"]
    if files:
        asked = '-p "What can you do?"'
        shown.append(("llama.cpp", "sh", "\n".join(f"llama-cli {called(file, files)} {asked}" for file in files)))
        pulled = [f"ollama run hf.co/{file['repo']}:{tag(file, files)}" for file in files if file["repo"]]
        name = re.sub("[^a-z0-9._-]+", "-", args.run_name.lower()).strip("-._") or "mine"
        local = [f"ollama create {name} -f Modelfile", f"ollama run {name}"]
        shown.append(("Ollama", "sh", "\n".join(pulled or local)))
    return shown


def literal(text):
    """The text as Python writes it."""
    return json.dumps(text) if text.isascii() else repr(text)


def called(export, files):
    """A GGUF file as llama.cpp is told of it; `files` are all of them."""
    if not export["repo"]:
        return f"-m {shlex.quote(export['path'])}"
    name = tag(export, files)
    return f"-hf {export['repo']} -hff {name}" if name == export["path"] else f"-hf {export['repo']}:{name}"


def tag(export, files):
    """The type of a repo's GGUF file; its whole name where llama.cpp, which takes the first match, finds another."""
    kind = export["name"].upper()
    held = sorted(file["path"] for file in files if file["repo"] == export["repo"])
    first = next((path for path in held if re.search(f"{kind}[.-]", path, re.IGNORECASE)), None)
    return kind if first == export["path"] else export["path"]


def volume():
    """The folder that outlives a Job's machine, or none where this is no Job."""
    if os.environ.get("LAUNCH_DATA_DIR"):
        return Path(os.environ["LAUNCH_DATA_DIR"])
    return Path("/data") if os.environ.get("JOB_ID") and Path("/data").is_dir() else None


def is_jobs_own(args):
    """Whether what is written goes to this Job's volume, where every attempt finds the same."""
    return bool(volume()) and not args.output_dir


def output_folder(args):
    """Where the model is saved."""
    if args.output_dir:
        return Path(args.output_dir)
    return volume() / "output" if volume() else Path("outputs", args.run_name)


def check_model(model, revision, trusted=False):
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
    if trusted:
        check_code(model, revision)


def check_code(model, revision):
    """Refuse code of another repo: the revision pins the model's own, and of the other one the newest would be run."""
    from huggingface_hub import hf_hub_download, list_repo_files

    for name in list_repo_files(model, revision=revision):
        if "/" not in name and name.endswith("config.json"):
            content = json.loads(Path(hf_hub_download(model, name, revision=revision)).read_text(encoding="utf-8"))
            if "--" in json.dumps(content.get("auto_map")):
                hint = "Copy the code into a repo of your own, beside the model."
                raise UserError(f"{name} of {model} names code of another repo, which nothing pins.", hint, status=3)


def read(args, split):
    """One split of the dataset, from the Hub or from here, whole or as a stream."""
    from datasets import DatasetDict, exceptions, load_dataset, load_from_disk
    from httpx import HTTPError

    path = Path(args.dataset).expanduser()
    try:
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            saved = load_from_disk(path)
            saved = saved[split] if isinstance(saved, DatasetDict) else saved
            return saved.to_iterable_dataset() if args.streaming else saved
        if path.is_file():
            loader, options = FILE_LOADERS[path.suffix], {}
            return load_dataset(loader, data_files=str(path), split=split, streaming=args.streaming, **options)
        return load_dataset(
            str(path) if path.is_dir() else args.dataset,
            args.dataset_config,
            split=split,
            revision=args.dataset_revision,
            streaming=args.streaming,
        )
    except (HTTPError, exceptions.DatasetsError, OSError, ValueError, KeyError, RuntimeError) as error:
        hint = "Check the name, the configuration, the split, the token and the network."
        raise UserError(f"the split {split} of {args.dataset} can't be read ({reason(error)}).", hint, 3) from error


def numbered(rows, args):
    """The rows with their place in the split, `row_number`, which errors name."""
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
        if args.max_steps and not args.packing:
            order = order[: count + args.max_steps * args.batch_size * args.gradient_accumulation]
        rows = rows.select(order)
    if args.eval_split:
        eval_rows = numbered(read(args, args.eval_split), args)
        if args.eval_rows:
            eval_rows = eval_rows.take(args.eval_rows if args.streaming else min(args.eval_rows, len(eval_rows)))
    elif count:
        rows, eval_rows = rows.skip(count), rows.take(count)
    if args.streaming:
        rows = rows.shuffle(seed=args.seed, buffer_size=1000)
    return rows, eval_rows


# ---- Chat data -------------------------------------------------------------------------------------------------------

ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}
PAIRS = [("prompt", "completion"), ("instruction", "output"), ("instruction", "response"), ("question", "answer")]
SHAPES = [("messages",), ("conversations",), *PAIRS, ("text",)]


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
    return text


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

    shown = said("Hi")
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


def conversation(row, shape, fold=False):
    """The row as a list of messages with a role and a text; `fold` puts the system's into the first user's."""
    number, messages = row["row_number"], []
    for role, content in turns(row, shape, number):
        if isinstance(content, list):
            if any(part.get("type") != "text" for part in content):
                raise UserError(f"row {number}: a message holds more than text.", "Use a vision model for images.")
            content = "".join(part.get("text") or "" for part in content)
        if not content.strip():
            raise UserError(f"row {number}: the {role}'s message is empty.", "Mend or remove the row.")
        messages.append({"role": role, "content": content})
    return fold_system(messages) if fold else messages


def words(message):
    return message["content"]


def has_target(row):
    return any(label != -100 for label in row["labels"][1:])


def answer(model, tokenizer, messages, stop, length=96):
    """What the model says next, word by word the likeliest."""
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    ids = model.generate(
        **inputs.to(model.device),
        max_new_tokens=length,
        do_sample=False,
        eos_token_id=[stop],
        pad_token_id=tokenizer.pad_token_id,
    )
    return tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


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
    earlier = result_before(args)
    if earlier:
        note("an earlier attempt did all there was to do: nothing is left")
        print(f"RESULT {earlier}", flush=True)
        return
    output_dir = output_folder(args)
    checkpoints, found = open_checkpoints(args)
    ends = deadline(args.timeout_s)
    CLOCK.start(ends - spent_before(checkpoints, ends - time.monotonic(), args.timeout_s))
    # Until the training begins there is nothing to save.
    setup = ExitStack()
    setup.enter_context(CLOCK.or_else(partial(leave, args, output_dir, found), at_once=True))
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
    import torch

    on_gpu = args.device == "auto" and torch.cuda.is_available()
    if not on_gpu and args.device == "auto":
        raise UserError("no usable CUDA GPU was found here.", "Use a machine with one, or add --device cpu.", status=3)
    check_model(args.model, args.revision, args.trust_remote_code)
    output_repo = open_repo(args.output_repo, args.private) if args.output_repo else None
    merged_repo = open_merged_repo(args, output_repo)
    llama_cpp = open_llama_cpp(args) if args.gguf else None
    # Unsloth goes first: it patches the libraries that are imported after it.
    from unsloth import FastLanguageModel, is_bfloat16_supported
    from unsloth.chat_templates import get_chat_template, train_on_responses_only  # isort: skip
    import trackio
    from jinja2 import TemplateError
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    whole = find_whole(args)
    if not on_gpu:
        # Packed rows would read each other without the GPU's attention kernels.
        wanted = {"4-bit weights": args.load_in == "4bit", "packing": args.packing, args.optim: "8bit" in args.optim}
        left_out = [name for name, is_wanted in wanted.items() if is_wanted]
        note(f"on the CPU: {', '.join(f'no {name}' for name in left_out) or 'as asked'}")
    model, tokenizer = FastLanguageModel.from_pretrained(
        args.model,
        revision=args.revision,
        max_seq_length=args.max_length,
        load_in_4bit=args.load_in == "4bit" and on_gpu,
        # This repo and no other: Unsloth would rather load a 4-bit copy, of another size, and at no revision.
        use_exact_model_name=True,
        trust_remote_code=args.trust_remote_code,
    )
    if model.config.model_type == "gemma2":
        # Unsloth compiles its soft-capped attention anew for every shape, and inductor fails on the backward pass.
        torch._dynamo.config.disable = True
    # Text is all there is here, also for a model that brings a processor for images.
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    if not tokenizer.chat_template and args.chat_template:
        tokenizer = get_chat_template(tokenizer, args.chat_template)

    # ---- Adapt -------------------------------------------------------------------------------------------------------

    phase("add adapter")
    model = FastLanguageModel.get_peft_model(
        model,
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=args.lora_targets.split(","),
        use_gradient_checkpointing="unsloth" if on_gpu else False,
        random_state=args.seed,
    )
    exports_elsewhere = Path(tempfile.gettempdir()) if is_jobs_own(args) else None
    exports_size = export_bytes(args, whole_bytes(model), whole[0])
    check_disk(output_dir, model, args.optim if on_gpu else "adamw_torch", exports_size, exports_elsewhere)

    # ---- Data --------------------------------------------------------------------------------------------------------

    phase("prepare data")
    train_rows, eval_rows = read_rows(args)
    columns = list(next(iter(train_rows), {}))
    shape = find_shape(columns)
    note(f"rows of {' and '.join(shape)}, " + ("streamed" if args.streaming else f"{len(train_rows)} to train on"))
    chat, stop, mask, fold = shape != ("text",), tokenizer.eos_token_id, None, False
    if chat and not tokenizer.chat_template:
        hint = "Add --chat-template NAME (chatml, llama-3.1, …), or use rows with a text column."
        raise UserError(f"{args.model} has no chat template.", hint)
    if chat:
        stop, fold = end_of_turn(tokenizer, tokenizer), not takes_system(tokenizer)
    if chat and args.train_on == "assistant":
        # Unsloth finds the template's markers around answers; the function masks whatever is not between them.
        try:
            mask = train_on_responses_only(None, tokenizer=tokenizer, return_function=True)
        except ValueError as error:
            hint = "Use another --chat-template, or --train-on all."
            raise UserError("no markers around answers were found in the chat template.", hint) from error

    def encode(row):
        if chat:
            try:
                ids = tokenizer.apply_chat_template(conversation(row, shape, fold), return_dict=False)
            except TemplateError as error:
                number = row["row_number"]
                raise UserError(f"row {number}: the model's chat template refuses it ({error}).") from error
        else:
            ids = tokenizer(row["text"]).input_ids
            # The text may bring its own beginning-of-sequence token.
            if ids[:2] == [tokenizer.bos_token_id] * 2:
                ids = ids[1:]
            if ids[-1:] != [stop]:
                ids = [*ids, stop]
        labels = mask({"input_ids": [ids]})["labels"][0] if mask else ids
        cut = slice(args.max_length)
        return {"input_ids": ids[cut], "labels": labels[cut], "was_cut": len(ids) > args.max_length}

    train_data = train_rows.map(encode, remove_columns=columns)
    eval_data = eval_rows.map(encode, remove_columns=columns) if eval_rows is not None else None
    head = list(itertools.islice(train_data, 256))
    note(f"longer than {args.max_length} tokens, so cut: {sum(row['was_cut'] for row in head)} of {len(head)} rows")
    if not any(has_target(row) for row in head):
        hint = "Raise --max-length if the answers are cut off, else check the chat template and the rows."
        raise UserError("every token is masked, so there is nothing to learn.", hint)
    train_data = train_data.filter(has_target).select_columns(["input_ids", "labels"])
    if eval_data is not None:
        eval_data = eval_data.filter(has_target).select_columns(["input_ids", "labels"])

    config = SFTConfig(
        # What it writes there becomes a checkpoint once it is whole.
        output_dir=str(checkpoints / ".new"),
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
        packing=args.packing and on_gpu,
        eval_packing=False,
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

    class Trainer(Guard, Progress, SFTTrainer):
        pass

    trainer = Trainer(model, config, train_dataset=train_data, eval_dataset=eval_data, processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)

    # ---- Check -------------------------------------------------------------------------------------------------------

    phase("check labels")
    check_labels(trainer, tokenizer, stop, masked_wanted=mask is not None)

    # ---- Train and evaluate ------------------------------------------------------------------------------------------

    if args.trackio_project:
        # Only --trackio-space sends metrics away: Trackio would follow the environment too.
        for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
            os.environ.pop(name, None)
        # A dashboard that can't be reached must not cost the training.
        try:
            trainer.tracker = trackio.init(
                args.trackio_project,
                args.run_name,
                space_id=args.trackio_space,
                config=vars(args),
                resume="allow" if found else "never",
            )
        except Exception as error:
            note(f"trackio is off, the run goes on without it ({type(error).__name__}: {error})")
    sampled = itertools.islice(eval_rows or [], args.sample_rows if chat else 0)
    asked = [conversation(row, shape, fold) for row in sampled]

    def answers():
        FastLanguageModel.for_inference(model)
        given = trainer.answers(asked, lambda messages: answer(model, tokenizer, messages[:-1], stop))
        FastLanguageModel.for_training(model)
        return given

    peaks = {}
    take_peak(peaks, "load")
    setup.close()
    trainer.guard(args, checkpoints, found, pushes=bool(output_repo))
    known = trainer.known
    if eval_data is not None and "loss" not in known:
        phase("evaluate")
        known["loss"] = trainer.evaluate().get("eval_loss")
        take_peak(peaks, "evaluate")
    if "answers" not in known:
        known["answers"] = answers()
        take_peak(peaks, "answer")
    phase("train")
    trainer.train_on()
    steps, trained_s = trainer.state.global_step, time.monotonic() - trainer.began
    stopped = trainer.stopped if steps < trainer.state.max_steps or not steps else None
    take_peak(peaks, "train")

    # ---- Save --------------------------------------------------------------------------------------------------------

    # Before anything else that may fail.
    if steps:
        phase("save")
        # What loads the adapter by its record gets the very model that it was trained on.
        model.peft_config["default"].revision = args.revision
        set_generation(model, args, stop)
        save(output_dir, model, tokenizer, model.generation_config)
        note(f"saved in {output_dir}")

    # ---- Evaluate ----------------------------------------------------------------------------------------------------

    loss_after = None
    if eval_data is not None and not trainer.stopped:
        phase("evaluate")
        try:
            loss_after = trainer.evaluate().get("eval_loss")
        except Exception as error:
            note(f"the evaluation failed, the run goes on without it ({reason(error)})")
        take_peak(peaks, "evaluate")
    samples = [
        {"prompt": words(messages[-2]), "expected": words(messages[-1]), "before": before, "after": after}
        for messages, before, after in zip(asked, known["answers"], answers(), strict=True)
    ]
    take_peak(peaks, "answer")

    # ---- Result ------------------------------------------------------------------------------------------------------

    as_planned = all(getattr(args, name) == CHOSEN[name] for name in DECIDES_MEMORY)
    first_step_s, own_steps = trainer.first_step_s or trained_s, steps - (trainer.start or 0)
    train_s = trainer.before_s + trained_s
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    result = {
        "status": "stopped" if stopped else "done",
        "stopped": stopped,
        "attempt": args.attempt,
        "resumed_from": trainer.resumed_from,
        "steps": steps,
        "rows": None if args.streaming else len(train_rows),
        "eval_rows": None if eval_data is None or args.streaming else len(eval_data),
        "batch_size": args.batch_size,
        "gradient_accumulation": args.gradient_accumulation,
        "tokens_seen": int(trainer.tokens_seen),
        "tokens_trained": int(trainer.tokens_trained),
        "train_loss": sum(losses[-10:]) / max(len(losses[-10:]), 1) if losses else None,
        "eval_loss_before": known.get("loss"),
        "eval_loss": loss_after,
        "samples": samples,
        "tokens_per_second": int(trainer.tokens_seen) / max(train_s, 1e-3),
        "train_s": train_s,
        "startup_s": trainer.startup_s,
        "first_step_s": first_step_s,
        "step_s": (trained_s - first_step_s) / (own_steps - 1) if own_steps > 1 else None,
        "largest_batch_tokens": trainer.largest_batch,
        "peak_gib": max(peaks.values(), default=None),
        "peaks_gib": peaks,
        "predicted_peak_gib": PREDICTED_PEAK_GIB if as_planned else None,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "output_dir": str(output_dir.resolve()),
        "output_repo": output_repo,
        "versions": {name: version(name) for name in ("unsloth", "trl", "transformers", "datasets", "peft", "torch")},
    }

    # ---- Push and export ---------------------------------------------------------------------------------------------

    url, push_error, exports = None, None, asked_exports(args)

    def told():
        """The result with what became of the push and the exports until now."""
        pushed = {"url": url, "pushed": url is not None, "push_error": push_error.args[0] if push_error else None}
        return result | pushed | ({"exports": exports} if exports else {})

    def tell():
        """Print the RESULT line; the error of a run that did not do all that it was asked to, or none."""
        line = json.dumps(finite(told()), allow_nan=False)
        print(f"RESULT {line}", flush=True)
        error = push_error or (None if stopped else failed_exports(args, exports, output_repo or output_dir, url))
        if not stopped and not error:
            (checkpoints / DONE).write_text(line, encoding="utf-8")
        return error

    def cut_off():
        """The last words of a run whose time was up before the Hub had answered."""
        nonlocal push_error
        if output_repo and steps and can_push and not url and not push_error:
            push_error = UserError(f"the push to {output_repo} did not end in time.", rescue(output_dir, output_repo))
        fail(exports, "left out: the time was up")
        error = tell()
        if error:
            print(f"error: {error.paragraph}", file=sys.stderr, flush=True)
        return error.status if error else 0

    if steps:
        write_record(output_dir, args, result, model)
        left_s = CLOCK.left_s() - 1.5 * trainer.push_s
        write_card(output_dir, args, result, trainer.state.log_history, [], left_s)
    if stopped:
        note(f"stopped after step {steps}: {next_attempt(steps in trainer.whole)}")
    can_push = trainer.can_push()
    with CLOCK.or_else(cut_off):
        if output_repo and steps and can_push:
            phase("push")
            try:
                url = push(output_dir, output_repo)
            except UserError as problem:
                push_error = problem
        left_out = "its push failed" if push_error else trainer.stopped or not steps
        if exports and left_out:
            why = {"deadline": "no time is left", "signal": "asked to stop", True: "nothing was trained"}
            fail(exports, f"left out: {why.get(left_out, left_out)}")
        elif exports:
            FastLanguageModel.for_inference(model)
            # None was made where an earlier attempt had trained to the end.
            if trainer.optimizer is not None:
                trainer.optimizer.state.clear()
            export(
                args, exports, output_dir, model, tokenizer, stop, llama_cpp, whole,
                output_repo, merged_repo, CLOCK.left_s() - CLOSING_S,
            )  # fmt: skip
            write_record(output_dir, args, told(), model)
            write_card(output_dir, args, told(), trainer.state.log_history, exports)
            try:
                if output_repo:
                    push(output_dir, output_repo)
            except UserError as problem:
                note(f"the card does not tell of the exports ({problem.paragraph})")
        if trainer.tracker:
            trackio.finish()
    error = tell()
    if error:
        # Not done, and not lost: the last line is the command that goes on.
        raise error


if __name__ == "__main__":
    try:
        arguments = parse_args(sys.argv[1:])
        check_args(arguments)
        main(arguments)
    except UserError as problem:
        CLOCK.last_words = None
        print(f"error: {problem.paragraph}", file=sys.stderr, flush=True)
        sys.exit(problem.status)
