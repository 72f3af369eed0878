"""How fast our rendered script trains against the usual defaults and against plain TRL, on one GPU, in one run.

    python bench/throughput.py OUT                                     # Qwen3 4B and 8B, about 4 minutes each
    python bench/throughput.py OUT --models qwen3-4b --only usual equal planned --planned 16x1p
    python bench/throughput.py OUT --tiny --device cpu                 # a dry run of every path on a CPU

Every variant is a fresh process, one after the other, on the same model (real size, random weights), once through the
same rows (log-normal lengths, mean about 530 tokens, cut at 2048), 4-bit weights, LoRA r=16 on every linear layer, the
same constant learning rate, and then evaluated on the same held-out rows:

    usual     Unsloth as its notebooks call it: batch 2, accumulation 4, no packing
    plain     TRL, PEFT and bitsandbytes, without Unsloth: TRL's own batch of 8
    equal     our script at the same 8 rows per optimizer step, packed where the planner packs
    packed, unpacked   the same, one or the other whatever the planner says
    planned   our script at the batch that the planner chooses on this card; twice the rows, for its steps would be too
              few to time: `loss` is the one after as many rows as the others had, `last loss` the one at the end

Tokens are the rows' own, never padding. "Steady" leaves out the first steps, which compile. OUT gets `throughput.json`
and `throughput.log`. Runs in the training stack's environment.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import family_models
from progress import Progress

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "job_scripts" / "sft_text.py"
SEED = 3407
MAX_LENGTH = 2048
STEP_ROWS = 8
# The cut takes some 20 tokens off the mean.
MEAN_TOKENS, SPREAD, SHORTEST = 550, 0.8, 48
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
VARIANTS = ("usual", "plain", "equal", "packed", "unpacked", "planned")
GOALS = {"planned": 4.0, "equal": 2.5}
# Of the loss after the same rows: two orders of the same rows differ by less.
LOSS_TOLERANCE = 0.05
_STEP = re.compile(r"step (\d+)/\S+ \| loss (\S+) \| lr \S+ \| (\d+) tok/s")
_EVAL = re.compile(r"eval step (\d+)/\S+ \| loss (\S+)")

# Below torch 2.12 Unsloth runs packed attention segment by segment, only because `varlen_attn` has no `enable_gqa`
# there; the flash kernel below it takes grouped heads. The scripts' pins resolve to a newer torch, which has both.
# Written as a sitecustomize module, which waits until torch's is imported.
VARLEN = """
import importlib.util, sys

class Varlen:
    name = "torch.nn.attention.varlen"

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module
        def exec_module(module):
            execute(module)
            attend = module.varlen_attn
            def varlen_attn(*args, window_size=(-1, -1), enable_gqa=False, **more):
                return attend(*args, window_size=window_size, **more)
            module.varlen_attn = varlen_attn
            module._should_use_cudnn = lambda device_index: False
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Varlen())
"""


@dataclass(frozen=True, slots=True)
class Shape:
    """Rows per forward pass, forward passes per optimizer step, and whether a row is packed to the full length."""

    batch: int
    accumulate: int
    packing: bool = False

    @classmethod
    def parse(cls, text: str) -> Shape:
        """From `8x2`, or `8x2p` where packed."""
        batch, accumulate = text.rstrip("p").split("x")
        return cls(int(batch), int(accumulate), text.endswith("p"))

    def __str__(self) -> str:
        return f"{self.batch} x {self.accumulate}" + " packed" * self.packing

    def step_rows(self, mean_tokens: float) -> float:
        """Rows of the dataset per optimizer step."""
        per_row = 0.98 * MAX_LENGTH / mean_tokens if self.packing else 1
        return self.batch * self.accumulate * per_row


FIXED = {"usual": Shape(2, 4), "plain": Shape(STEP_ROWS, 1)}


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step: how long after the line before it its own came, its loss, and the tokens it read."""

    number: int
    seconds: float
    loss: float
    tokens: float


@dataclass(slots=True)
class Seen:
    """What a process said while it ran; `result` is its RESULT line, none where it did not get that far."""

    steps: list[Step] = field(default_factory=list)
    evals: list[tuple[int, float]] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)
    wall_s: float = 0


# ---- The rows --------------------------------------------------------------------------------------------------------


def write_rows(folder: Path, count: int, tokens_of: Callable[[str], int], *, longest: int) -> float:
    """Write train.jsonl (the first `count` rows of an endless sequence) and test.jsonl (16 others); the mean tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    lengths: list[int] = []
    for split, seed, rows in (("train", SEED, count), ("test", SEED + 1, 16)):
        rng = random.Random(seed)
        drawn = [draw_row(rng, tokens_of, longest) for _ in range(rows)]
        text = "".join(json.dumps({"messages": messages}) + "\n" for messages, _ in drawn)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
        lengths = lengths or [length for _, length in drawn]
    return sum(lengths) / len(lengths)


def draw_row(rng: random.Random, tokens_of: Callable[[str], int], longest: int) -> tuple[list[dict[str, str]], int]:
    """One conversation and about how many tokens it has: one to four questions, the answers three times as long."""
    scale = longest / MAX_LENGTH
    # The mean of a log-normal is above its median by this factor.
    length = scale * MEAN_TOKENS * rng.lognormvariate(-(SPREAD**2) / 2, SPREAD)
    wanted = min(max(length, SHORTEST), longest)
    turns = min(rng.choice((1, 1, 2, 3, 4)), int(wanted / SHORTEST))
    messages, total = [], 0
    for turn in range(turns):
        for role, share in (("user", 0.25), ("assistant", 0.75)):
            told, tokens = [sentence(rng)], 0
            goal = (wanted - total) * share / (turns - turn) if role == "user" else (wanted - total) / (turns - turn)
            # Six tokens stand around every message.
            while (tokens := tokens_of(" ".join(told)) + 6) < goal - 8:
                told += [sentence(rng) for _ in range(max(int((goal - tokens) / 24), 1))]
            messages.append({"role": role, "content": " ".join(told)})
            total += tokens
    return messages, min(total, longest)


def sentence(rng: random.Random) -> str:
    """A plain sentence with something to guess in it."""
    colours, things, places = family_models._COLOURS, family_models._THINGS, family_models._PLACES
    what = f"The {rng.choice(colours)} {rng.choice(things)}"
    return f"{what} stands beside {rng.choice(places)}, under number {rng.randrange(100)}."


def answers_only(ids: list[int], begin: list[int], stop: int) -> list[int]:
    """The labels of a conversation: what follows each `begin` up to its `stop`, which is part of the answer."""
    labels, answering = [-100] * len(ids), False
    for place, token in enumerate(ids):
        answering = answering or ids[max(place - len(begin), 0) : place] == begin
        if answering:
            labels[place] = token
            answering = token != stop
    return labels


# ---- The variants that are not ours: each in a process of its own ----------------------------------------------------


def train_usual(model_folder: Path, rows: Path, shape: Shape, args: argparse.Namespace) -> None:
    """What Unsloth's notebooks do: load, adapt, lay the chats out as text, SFTTrainer, train on responses only."""
    from unsloth import FastLanguageModel  # isort: skip
    from unsloth.chat_templates import train_on_responses_only  # isort: skip
    from datasets import load_dataset
    from trl import SFTConfig, SFTTrainer

    on_gpu = args.device != "cpu"
    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=str(model_folder), max_seq_length=args.max_length, load_in_4bit=on_gpu
    )
    model = FastLanguageModel.get_peft_model(
        model, r=16, target_modules=list(TARGETS), lora_alpha=16, lora_dropout=0, bias="none",
        use_gradient_checkpointing="unsloth" if on_gpu else False, random_state=SEED,
    )  # fmt: skip

    def lay_out(batch: dict[str, Any]) -> dict[str, Any]:
        return {"text": [tokenizer.apply_chat_template(chat, tokenize=False) for chat in batch["messages"]]}

    data = load_dataset(str(rows)).map(lay_out, batched=True, remove_columns=["messages"])

    class Trainer(Progress, SFTTrainer):  # type: ignore[misc]
        pass

    config = SFTConfig(
        dataset_text_field="text", optim="adamw_8bit" if on_gpu else "adamw_torch", **_shared(shape, args),
        **({} if on_gpu else {"gradient_checkpointing": False}),
    )  # fmt: skip
    trainer = Trainer(
        model=model, processing_class=tokenizer, train_dataset=data["train"], eval_dataset=data["test"], args=config
    )
    trainer = train_on_responses_only(
        trainer, instruction_part="<|im_start|>user\n", response_part="<|im_start|>assistant\n"
    )
    _run(trainer)


def train_plain(model_folder: Path, rows: Path, shape: Shape, args: argparse.Namespace) -> None:
    """TRL's SFTTrainer on a bitsandbytes model with a PEFT config, checkpointed, padded; the labels made here."""
    import torch
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        BitsAndBytesConfig,
    )
    from trl import SFTConfig, SFTTrainer

    on_gpu = args.device != "cpu"
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    if on_gpu:
        nf4 = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )  # fmt: skip
        how = {"quantization_config": nf4, "dtype": torch.bfloat16, "device_map": {"": 0}}
    else:
        how = {"dtype": torch.float32}
    model = AutoModelForCausalLM.from_pretrained(model_folder, **how)
    begin = tokenizer("<|im_start|>assistant\n", add_special_tokens=False).input_ids
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")

    def encode(row: dict[str, Any]) -> dict[str, list[int]]:
        ids = tokenizer.apply_chat_template(row["messages"], return_dict=False)
        cut = slice(args.max_length)
        return {"input_ids": ids[cut], "labels": answers_only(ids, begin, stop)[cut]}

    data = load_dataset(str(rows)).map(encode, remove_columns=["messages"])

    class Trainer(Progress, SFTTrainer):  # type: ignore[misc]
        pass

    config = SFTConfig(
        gradient_checkpointing=True, optim="adamw_8bit" if on_gpu else "adamw_torch", bf16=on_gpu,
        use_cpu=not on_gpu, **_shared(shape, args),
    )  # fmt: skip
    lora = LoraConfig(r=16, lora_alpha=16, lora_dropout=0, target_modules=list(TARGETS), task_type="CAUSAL_LM")
    _run(
        Trainer(
            model, config, train_dataset=data["train"], eval_dataset=data["test"], processing_class=tokenizer,
            peft_config=lora,
        )
    )  # fmt: skip


def _shared(shape: Shape, args: argparse.Namespace) -> dict[str, Any]:
    """What every variant is trained with."""
    return {
        "output_dir": "trained", "per_device_train_batch_size": shape.batch,
        "gradient_accumulation_steps": shape.accumulate, "per_device_eval_batch_size": 2, "num_train_epochs": 1,
        "max_length": args.max_length, "learning_rate": args.learning_rate, "lr_scheduler_type": "constant",
        "weight_decay": 0.01, "logging_steps": 1, "save_strategy": "no", "seed": SEED, "report_to": "none",
        "disable_tqdm": True,
    }  # fmt: skip


def _run(trainer: Any) -> None:
    import torch
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    print("== train", flush=True)
    train_s = trainer.train().metrics["train_runtime"]
    trainer.evaluate()
    seen = int(trainer.tokens_seen)
    result = {
        "steps": trainer.state.global_step,
        "tokens_seen": seen,
        "tokens_trained": int(trainer.tokens_trained),
        "tokens_per_second": seen / train_s,
        "train_s": train_s,
        "startup_s": trainer.startup_s,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
    print("RESULT " + json.dumps(result), flush=True)


# ---- The parent: one process after the other, and what they say ------------------------------------------------------


class Bench:
    """One run: its options, where things lie, and the measurements so far."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.work: Path = args.work
        self.out: Path = args.out
        self.found: list[dict[str, Any]] = []
        self.out.mkdir(parents=True, exist_ok=True)
        self.work.mkdir(parents=True, exist_ok=True)
        self.environment = os.environ | {
            "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "PYTHONUNBUFFERED": "1", "UNSLOTH_DISABLE_STATISTICS": "1",
            "HF_DATASETS_CACHE": str(self.work / "cache"),
        }  # fmt: skip
        if args.device == "cpu":
            self.environment |= {"CUDA_VISIBLE_DEVICES": "", "UNSLOTH_FORCE_CPU": "1"}
        if args.varlen:
            shim = self.work / "shim"
            shim.mkdir(exist_ok=True)
            (shim / "sitecustomize.py").write_text(VARLEN, encoding="utf-8")
            paths = [str(shim), self.environment.get("PYTHONPATH", "")]
            self.environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))

    def run(self) -> None:
        """Every variant on every model; the tables are printed as they fill."""
        for model in self.args.models:
            folder = self.work / model
            if not (folder / "config.json").exists():
                say(f"building {model}")
                self.watch([sys.executable, __file__, str(self.out), "--build", model, *self.passed()])
            tokens_of = counter(folder)
            few, many = self.work / "rows", self.work / "more-rows"
            mean = write_rows(few, self.args.rows, tokens_of, longest=self.args.max_length)
            write_rows(many, self.args.planned_rows, tokens_of, longest=self.args.max_length)
            say(f"{model}: {self.args.rows} rows of {mean:.0f} tokens on average")
            for variant in self.args.only:
                self.one(model, variant, folder, many if variant == "planned" else few, mean)
            print(table(self.found, model), flush=True)
        for model in self.args.models:
            print("\n".join(verdicts(self.found, model)), flush=True)

    def one(self, model: str, variant: str, folder: Path, rows: Path, mean: float) -> None:
        """Run one variant and keep what it measured."""
        shape = self.shape(model, variant, mean)
        say(f"{model} {variant}: {shape}")
        if variant in ("usual", "plain"):
            command = [__file__, str(self.out), "--child", variant, str(folder), str(rows), *self.passed()]
        else:
            after = round(self.args.rows / shape.step_rows(mean)) if variant == "planned" else None
            command = ours(folder, rows, shape, after, self.args)
        # TRL's loss is a Triton kernel, which nothing compiles for a CPU; Unsloth brings its own there.
        interpreted = variant == "plain" and self.args.device == "cpu"
        seen = self.watch([sys.executable, *command], {"TRITON_INTERPRET": "1"} if interpreted else {})
        self.found.append(measured(model, variant, shape, seen, mean, self.args.skip))
        text = json.dumps({"settings": vars(self.args), "found": self.found}, indent=1, default=str)
        (self.out / "throughput.json").write_text(text + "\n", encoding="utf-8")

    def shape(self, model: str, variant: str, mean: float) -> Shape:
        """What each variant trains with."""
        if variant in FIXED:
            return FIXED[variant]
        if variant == "planned":
            return self.args.planned or (Shape(4, 4) if self.args.tiny else planned(model, None))
        if variant == "packed":
            return Shape(max(round(STEP_ROWS * mean / MAX_LENGTH), 1), 1, packing=True)
        return Shape(STEP_ROWS, 1) if variant == "unpacked" or self.args.tiny else planned(model, STEP_ROWS)

    def passed(self) -> list[str]:
        """The options that a child needs too."""
        args = self.args
        named = {"--work": args.work, "--device": args.device, "--learning-rate": args.learning_rate}
        return [str(part) for pair in named.items() for part in pair] + ["--tiny"] * args.tiny

    def watch(self, command: list[str], environment: dict[str, str] | None = None) -> Seen:
        """Run a process to its end, or to the limit, and read its lines as they come."""
        seen, began = Seen(), time.monotonic()
        process = subprocess.Popen(
            command, cwd=self.work, env=self.environment | (environment or {}), text=True, errors="replace",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        # Its compile workers hold the pipe too.
        timer = threading.Timer(self.args.limit, os.killpg, (process.pid, signal.SIGKILL))
        timer.start()
        last = began
        with (self.out / "throughput.log").open("a", encoding="utf-8") as log, process:
            log.write(f"\n$ {shlex.join(command)}\n")
            assert process.stdout is not None
            for line in process.stdout:
                now = time.monotonic()
                log.write(f"{now - began:7.2f} {line}")
                log.flush()
                last = read_line(line, seen, now, last)
        timer.cancel()
        seen.wall_s = time.monotonic() - began
        if process.returncode:
            tail = "\n".join((self.out / "throughput.log").read_text(encoding="utf-8").splitlines()[-25:])
            say(f"failed with {process.returncode} after {seen.wall_s:.0f} s; the log ends:\n{tail}")
        return seen


def read_line(line: str, seen: Seen, now: float, last: float) -> float:
    """Add one line to what was seen; the time from which the next step counts."""
    if match := _EVAL.match(line):
        seen.evals.append((int(match[1]), float(match[2])))
    elif match := _STEP.match(line):
        seconds = now - last
        seen.steps.append(Step(int(match[1]), seconds, float(match[2]), int(match[3]) * seconds))
    elif line.startswith("RESULT "):
        seen.result = json.loads(line.removeprefix("RESULT "))
    elif not line.startswith("== "):
        return last
    return now


def ours(folder: Path, rows: Path, shape: Shape, eval_after: int | None, args: argparse.Namespace) -> list[str]:
    """The rendered script itself, with what differs from its choices as flags."""
    flags: dict[str, object] = {
        "--model": folder, "--dataset": rows, "--eval-split": "test", "--eval-rows": 0, "--num-train-epochs": 1,
        "--batch-size": shape.batch, "--gradient-accumulation": shape.accumulate, "--max-length": args.max_length,
        "--learning-rate": args.learning_rate, "--lr-scheduler-type": "constant", "--logging-steps": 1,
        "--load-in": "4bit", "--lora-r": 16, "--lora-alpha": 16, "--seed": SEED,
        "--trackio-project": "", "--output-dir": "trained", "--device": args.device,
    }  # fmt: skip
    if eval_after:
        flags["--eval-steps"] = eval_after
    packing = "--packing" if shape.packing else "--no-packing"
    return [str(SCRIPT), *(str(part) for flag in flags.items() for part in flag), packing, *shlex.split(args.extra)]


def planned(model: str, rows: int | None) -> Shape:
    """What the planner chooses for this machine: as asked, or at so many rows per optimizer step."""
    sys.path.insert(0, str(ROOT))
    from launcher import catalog
    from launcher.catalog import machine
    from launcher.plan import make as planner
    from launcher.spec import RunSpec

    asked = RunSpec(model=model, local=True, load_in="4bit", max_length=MAX_LENGTH, effective_batch_size=rows)
    plan = planner.make_plan(asked, catalog.load(), today=date.today(), here=machine.here())
    return Shape(
        plan.decisions.batch_size.value, plan.decisions.gradient_accumulation.value, plan.decisions.packing.value
    )


def counter(folder: Path) -> Callable[[str], int]:
    """How many tokens the model's tokenizer makes of a text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return lambda text: len(tokenizer.encode(text).ids)


# ---- What it comes to ------------------------------------------------------------------------------------------------


def measured(model: str, variant: str, shape: Shape, seen: Seen, mean: float, skip: int) -> dict[str, Any]:
    """One row of the table: figures of the steady steps, of the whole training, memory and loss."""
    steady = seen.steps[min(skip, len(seen.steps) // 2) :]
    seconds, tokens = sum(step.seconds for step in steady), sum(step.tokens for step in steady)
    after = [loss for step, loss in seen.evals if step] or [math.nan]
    everything = sum(step.tokens for step in seen.steps), sum(step.seconds for step in seen.steps)
    return {
        "model": model,
        "variant": variant,
        "shape": str(shape),
        "steps": len(seen.steps),
        "tokens_per_step": tokens / max(len(steady), 1),
        "rows_per_step": tokens / max(len(steady), 1) / mean,
        "step_s": seconds / max(len(steady), 1),
        "tokens_per_second": tokens / seconds if seconds else math.nan,
        "rows_per_second": tokens / seconds / mean if seconds else math.nan,
        "whole_tokens_per_second": everything[0] / everything[1] if everything[1] else math.nan,
        "tokens_seen": seen.result.get("tokens_seen"),
        "tokens_trained": seen.result.get("tokens_trained"),
        "startup_s": seen.result.get("startup_s"),
        "peak_gib": seen.result.get("peak_gib"),
        "loss": after[0],
        "last_loss": after[-1],
        "device": seen.result.get("device"),
        "wall_s": seen.wall_s,
        "timed": [asdict(step) for step in seen.steps],
    }


def table(found: list[dict[str, Any]], model: str) -> str:
    """The measurements of one model as markdown."""
    names = ("", "batch", "rows/step", "s/step", "rows/s", "tokens/s", "x usual", "whole run tokens/s", "peak GiB",
             "loss", "last loss", "steps", "tokens trained on")  # fmt: skip
    lines = [f"\n{model}\n", f"| {' | '.join(names)} |", "| --- | --- |" + " ---: |" * (len(names) - 2)]
    base = next((row["tokens_per_second"] for row in of(found, model) if row["variant"] == "usual"), math.nan)
    for row in of(found, model):
        cells = (
            row["variant"], row["shape"], f"{row['rows_per_step']:.1f}", f"{row['step_s']:.2f}",
            f"{row['rows_per_second']:.1f}", f"{row['tokens_per_second']:.0f}",
            f"{row['tokens_per_second'] / base:.2f}", f"{row['whole_tokens_per_second']:.0f}",
            f"{row['peak_gib'] or math.nan:.2f}", f"{row['loss']:.4f}", f"{row['last_loss']:.4f}",
            str(row["steps"]), str(row["tokens_trained"]),
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def verdicts(found: list[dict[str, Any]], model: str) -> Iterator[str]:
    """How each goal came out, as one line each."""
    rows = {row["variant"]: row for row in of(found, model)}
    usual = rows.get("usual")
    for variant, goal in GOALS.items():
        if not usual or variant not in rows:
            continue
        times = rows[variant]["tokens_per_second"] / usual["tokens_per_second"]
        loss, base = rows[variant]["loss"], usual["loss"]
        alike = abs(loss - base) <= LOSS_TOLERANCE * base
        how = f"{'equal' if alike else 'another'} loss ({loss:.4f}, usual {base:.4f})"
        yield f"{model} {variant}: {times:.2f} x the usual tokens/s (goal {goal:g}: {mark(times >= goal)}), {how}"


def of(found: list[dict[str, Any]], model: str) -> list[dict[str, Any]]:
    return [row for row in found if row["model"] == model]


def mark(good: bool) -> str:
    return "reached" if good else "missed"


def say(text: str) -> None:
    print(f"# {text}", flush=True)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Our script's throughput against the usual defaults and plain TRL.")
    parser.add_argument("out", type=Path, help="folder for throughput.json and throughput.log")
    parser.add_argument("--models", nargs="+", default=["qwen3-4b", "qwen3-8b"], help="Qwen3 models of the catalog")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=["usual", "plain", "equal", "planned"])
    parser.add_argument("--rows", type=int, help="rows that every variant trains on (192)")
    parser.add_argument("--planned-rows", type=int, help="rows of `planned`, the same ones among them (twice as many)")
    parser.add_argument("--planned", type=Shape.parse, help="BATCHxACCUMULATION, with a p behind it where packed")
    parser.add_argument("--skip", type=int, default=4, help="first steps that are not timed")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="a random model learns little at the usual")
    parser.add_argument("--extra", default="", help="further flags of our script, as one word")
    parser.add_argument("--varlen", action="store_true", help="torch below 2.12: packed attention as newer ones run it")
    parser.add_argument("--limit", type=float, default=240, help="seconds for one process")
    work = Path("/dev/shm" if Path("/dev/shm").is_dir() else "/tmp", "throughput")
    parser.add_argument("--work", type=Path, default=work, help="where models and rows lie")
    parser.add_argument("--tiny", action="store_true", help="tiny models, few short rows")
    parser.add_argument("--device", choices=["auto", "cpu"], default="auto")
    parser.add_argument("--build", metavar="MODEL", help=argparse.SUPPRESS)
    parser.add_argument("--child", nargs=3, metavar=("VARIANT", "FOLDER", "ROWS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out, args.work = args.out.absolute(), args.work.absolute()
    args.max_length = 256 if args.tiny else MAX_LENGTH
    args.rows = args.rows or (24 if args.tiny else 192)
    args.planned_rows = args.planned_rows or 2 * args.rows
    return args


def main() -> None:
    args = parse_args()
    if args.build:
        device = "cpu" if args.device == "cpu" else "cuda"
        model = None if args.tiny else args.build
        family_models.build("qwen3", args.work / args.build, model=model, tiny=args.tiny, device=device)
    elif args.child:
        variant, folder, rows = args.child
        train = {"usual": train_usual, "plain": train_plain}[variant]
        train(Path(folder), Path(rows), FIXED[variant], args)
    else:
        Bench(args).run()


if __name__ == "__main__":
    main()
