"""Time micro-steps of whole models over batch fill, lengths and load types, with the card to itself.

    python bench/speed.py OUT [MODEL ...]

Random weights at the real sizes, random tokens that fill every position: forward, recomputed forward and backward pass
of a QLoRA or LoRA model under Unsloth's checkpointing, then the 8-bit optimizer's step, three times unmeasured and then
for at least two seconds. `OUT/speed.csv` gets one line a configuration, for `bench/fit_speed.py`. Runs in the training
stack's environment.
"""

from __future__ import annotations

import argparse
import csv
import gc
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import family_models

FOLDER = Path("/dev/shm/launch-speed") if Path("/dev/shm").is_dir() else Path("/tmp/launch-speed")
FIELDS = ("model", "modality", "load_in", "batch_size", "max_length", "lora_r", "optimizer_s", "micro_step_s",
          "forward_s", "load_s", "first_step_s", "device")  # fmt: skip
# (batch, length): the tokens of a forward pass from a few hundred to where the card is full, and long rows.
SHAPES = ((1, 512), (2, 512), (4, 512), (1, 2048), (8, 512), (4, 2048), (16, 512), (1, 8192), (8, 2048), (1, 16384))
MODELS = {
    "qwen3-4b": ("qwen3", "4bit", "16bit"),
    "qwen2.5-0.5b": ("qwen2.5", "4bit", "16bit"),
    "llama-3.1-8b": ("llama-3.1", "4bit"),
    "qwen3-1.7b": ("qwen3", "4bit"),
}


def measure(out: Path, name: str, family: str, load_in: str) -> None:
    """One model, loaded once, over all shapes."""
    import torch
    import unsloth
    from bitsandbytes.optim import AdamW8bit  # type: ignore[import-not-found]

    began = time.monotonic()
    model, _ = unsloth.FastLanguageModel.from_pretrained(
        str(FOLDER / name), max_seq_length=16384, load_in_4bit=load_in == "4bit", dtype=torch.bfloat16
    )
    load_s = time.monotonic() - began
    model = unsloth.FastLanguageModel.get_peft_model(
        model, r=16, lora_alpha=16, lora_dropout=0, use_gradient_checkpointing="unsloth",
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    )  # fmt: skip
    model.train()
    optimizer = AdamW8bit([weight for weight in model.parameters() if weight.requires_grad], lr=1e-5)

    def passes(ids: Any) -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()

    def forward(ids: Any) -> None:
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            model(input_ids=ids, labels=ids).loss.item()

    def step(_: Any) -> None:
        optimizer.step()

    for batch, length in SHAPES:
        ids = torch.randint(0, 1000, (batch, length), device="cuda")
        try:
            first = _timed(passes, ids, least=0, warm=0)
            row = (name, "text", load_in, batch, length, 16, _timed(step, ids), _timed(passes, ids),
                   _timed(forward, ids), load_s, first, torch.cuda.get_device_name())  # fmt: skip
        except torch.OutOfMemoryError:
            optimizer.zero_grad()
            torch.cuda.empty_cache()
            continue
        optimizer.zero_grad()
        with (out / "speed.csv").open("a", newline="") as file:
            csv.writer(file).writerow([f"{cell:.5f}" if isinstance(cell, float) else cell for cell in row])
        print(*row, flush=True)


def _timed(call: Any, ids: Any, least: float = 2.0, warm: int = 3) -> float:
    """Seconds of one call, on average over at least that long."""
    import torch

    for _ in range(warm):
        call(ids)
    torch.cuda.synchronize()
    began, count = time.monotonic(), 0
    while count == 0 or (time.monotonic() - began < least and count < 50):
        call(ids)
        torch.cuda.synchronize()
        count += 1
    return (time.monotonic() - began) / count


def main() -> int:
    """Build and measure the models one after the other."""
    parser = argparse.ArgumentParser(description="Micro-step times on this GPU.")
    parser.add_argument("out", type=Path)
    parser.add_argument("models", nargs="*", default=[*MODELS])
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "speed.csv").open("a", newline="") as file:
        csv.writer(file).writerow(FIELDS)
    import torch

    for name in args.models:
        family, *kinds = MODELS[name]
        began = time.monotonic()
        family_models.build(family, FOLDER / name, model=name, device="cuda")
        print(f"{name} built in {time.monotonic() - began:.0f} s", flush=True)
        for load_in in kinds:
            gc.collect()
            torch.cuda.empty_cache()
            measure(args.out, name, family, load_in)
        shutil.rmtree(FOLDER / name, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
