"""Model cards: what was trained on what, how and how well, how to use it, and what anybody named as plain Markdown."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from parts.clock import STARTED
from parts.places import is_hub_id
from parts.saving import CARD, PICTURE, RECORD, recommended, spared
from parts.say import finite

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


def plain(text: object) -> str:
    """The text as text on one line, whatever it holds."""
    return re.sub(r"([\\`*_~|<>\[\]#$])", r"\\\1", " ".join(str(text).split()))
