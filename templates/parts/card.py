"""The model card: what was trained on what, how, how well, and how to use it, with a picture of the losses."""

from __future__ import annotations

import json
import math
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from parts.clock import STARTED
from parts.markdown import card_head, code, linked, literal, snippet
from parts.record import CARD, PICTURE, RECORD, spared
from parts.sampling import recommended

# Matplotlib's import and, on a new machine, its list of fonts.
PICTURE_S = 30
SNIPPETS = {
    "transformers and PEFT": """\
# pip install peft transformers accelerate{quantizer}
from peft import PeftModel
from transformers import {auto_model}, {auto_tokenizer}, GenerationConfig

tokenizer = {auto_tokenizer}.from_pretrained({place})
model = {auto_model}.from_pretrained(
    {base}, dtype="auto", device_map="auto"{code}
)
model = PeftModel.from_pretrained(model, {place})
""",
    "Unsloth": """\
# pip install unsloth
from unsloth import {fast_model}  # before transformers
from transformers import GenerationConfig

model, tokenizer = {fast_model}.from_pretrained({place}, max_seq_length={max_length}, load_in_4bit={four_bits})
{fast_model}.for_inference(model)
""",
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
        (folder / CARD).write_text(make_card(folder, args, planned, result), encoding="utf-8")


def make_card(folder: Path, args: Any, planned: dict[str, Any], result: dict[str, Any]) -> str:
    """The text of the card; what is not known is left out."""
    record = json.loads((folder / RECORD).read_text(encoding="utf-8")) if (folder / RECORD).is_file() else {}
    repo, commits = result.get("output_repo"), record.get("revisions", {})
    base = linked(args.model, commits.get("model"))
    about = f"A LoRA adapter for {base}, fine-tuned on {linked(args.dataset, commits.get('dataset'), 'datasets/')}."
    if result["stopped"]:
        about += f" The training was stopped after step {result['steps']}, before its end."
    pieces = [card_head(
        repo.split("/")[-1] if repo else args.run_name, about, args.model, "adapter", hasattr(args, "image_size"),
        [args.dataset], licence_of(args, planned),
        library_name="peft", tags=["lora", "sft", "trl", "unsloth", "launch"],
    )]  # fmt: skip
    pieces += ["![The loss by step](loss.png)"] * (folder / PICTURE).is_file()
    for heading, rows in (("Training", training_rows(args, result)), ("Machine", machine_rows(record, result))):
        table = "\n".join(f"| {name} | {value} |" for name, value in rows if value or value == 0)
        pieces.append(f"## {heading}\n\n| | |\n| --- | --- |\n{table}")
    pieces.append("## How to use it")
    pieces += [f"### {name}\n\n```python\n{text}\n```" for name, text in usage(folder, args, result, commits)]
    sampling = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in recommended(args, planned).items())
    if sampling:
        told = f"{sampling}, as the makers of the base model recommend (<{planned['generation_source']}>)."
        pieces.append(f"## Sampling\n\n{told} `generation_config.json` holds what transformers knows of it.")
    told = f"`{RECORD}` holds the plan, the commits, every package's version and the hashes;"
    script = f"{code(Path(__file__).name)} is the script that ran, and runs by itself: `uv run`."
    return "\n\n".join([*pieces, f"## To run it again\n\n{told} {script}"]) + "\n"


def usage(folder: Path, args: Any, result: dict[str, Any], commits: dict[str, Any]) -> list[tuple[str, str]]:
    """How to use what was trained, as (heading, code): each runs as it stands, in the folder if it was not pushed."""
    place, commit = literal(result.get("output_repo") or "."), commits.get("model")
    ask = "chat" if (folder / "chat_template.jinja").is_file() else "text"
    if hasattr(args, "image_size"):
        ask = "picture"
    names = {
        "base": literal(args.model) + (f", revision={literal(commit)}" if commit else ""),
        "quantizer": " bitsandbytes" if "bnb-4bit" in args.model else "",
        "max_length": args.max_length,
        "four_bits": args.load_in == "4bit" and result["device"] != "cpu",
    }
    return [(name, snippet(loads, ask, place, args.trust_remote_code, **names)) for name, loads in SNIPPETS.items()]


def licence_of(args: Any, planned: dict[str, Any]) -> dict[str, Any]:
    """The licence of the planned model, as a card's fields; empty for another one."""
    fields = {"license": "licence", "license_name": "licence_name", "license_link": "licence_link"}
    told = {field: planned[name] for field, name in fields.items() if planned[name]}
    return told if args.model == type(args).model and "license" in told else {}


def training_rows(args: Any, result: dict[str, Any]) -> list[tuple[str, Any]]:
    """What was learned from, how, and how well."""
    on_gpu, batch, accumulation = result["device"] != "cpu", result["batch_size"], result["gradient_accumulation"]
    packed = "packed " if on_gpu and getattr(args, "packing", False) else ""
    subset = ", ".join(code(name) for name in (args.dataset_config, args.dataset_split) if name)
    rows, held_out = result.get("rows"), result.get("eval_rows")
    before, after = loss(result["eval_loss_before"]), loss(result["eval_loss"])
    found = ", ".join([f"{before} before training"] * bool(before) + [f"{after} after it"] * bool(after))
    of = f"{f'{held_out:,} ' if held_out else ''}"
    of += f"rows of {code(args.eval_split)}" if args.eval_split else "rows held out"
    parts = ("vision_layers", "language_layers", "attention_modules", "mlp_modules")
    adapted = ", ".join(part.replace("_", " ") for part in parts if getattr(args, f"finetune_{part}", False))
    layers = code(args.lora_targets.replace(",", " ")) if hasattr(args, "lora_targets") else adapted
    mean = loss(result["train_loss"])
    return [
        ("Data", subset + (f", {rows:,} rows" if rows else ", streamed" if args.streaming else "")),
        ("Tokens", f"{result['tokens_seen']:,} seen, {result['tokens_trained']:,} of them learned from"),
        ("Learned from", "the assistant's answers" if args.train_on == "assistant" else "the whole text"),
        ("Steps", f"{result['steps']:,} of {batch * accumulation} {packed}rows ({batch} at a time), "
                  f"{args.max_length:,} tokens at most"),
        ("Learning rate", f"{args.learning_rate:g}, {args.lr_scheduler_type}, "
                          f"{args.warmup_ratio:.0%} of the steps to warm up"),
        ("Optimizer", f"{args.optim if on_gpu else 'adamw_torch'}, weight decay {args.weight_decay:g}"),
        ("LoRA", f"rank {args.lora_r}, alpha {args.lora_alpha}, dropout {args.lora_dropout:g}, on {layers}"),
        ("Frozen weights", {"4bit": "4 bits", "16bit": "16 bits"}[args.load_in] if on_gpu else None),
        ("Seed", args.seed),
        ("Training loss", mean and f"{mean}, mean of the last logged steps"),
        ("Evaluation loss", found and f"{found}, on {of}"),
    ]  # fmt: skip


def loss(value: float | None) -> str | None:
    return f"{value:.4f}" if value is not None and math.isfinite(value) else None


def machine_rows(record: dict[str, Any], result: dict[str, Any]) -> list[tuple[str, Any]]:
    """Where it was trained, how long that took and what it cost, as far as this attempt knows."""
    plan, in_job = record.get("plan") or {}, bool(os.environ.get("JOB_ID"))
    flavor, rate = record.get("flavor"), plan.get("cost", {}).get("usd_per_hour")
    total_s = time.monotonic() - STARTED
    total, training = (timedelta(seconds=round(seconds)) for seconds in (total_s, result["train_s"]))
    again = f", in attempt {result['attempt']}" if result["attempt"] > 1 else ""
    peak, predicted = result["peak_gib"], result["predicted_peak_gib"]
    memory = [f"{peak:.2f} GiB at most"] if peak is not None else []
    memory += [f"{predicted:.2f} GiB predicted"] if memory and predicted is not None else []
    return [
        ("Hardware", code(result["device"]) + (f", flavor {code(flavor)}" if in_job and flavor else "")),
        ("Time", f"{total}{again}; {training} of training"),
        ("Speed", f"{result['tokens_per_second']:,.0f} tokens a second"),
        ("Cost", f"about ${rate * total_s / 3600:.2f}{again}, at ${rate:.2f} an hour" if in_job and rate else None),
        ("GPU memory", ", ".join(memory)),
        ("Versions", ", ".join(f"{name} {number}" for name, number in result["versions"].items())),
    ]


def draw_losses(path: Path, result: dict[str, Any], history: list[dict[str, Any]]) -> None:
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
