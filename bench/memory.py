"""Measure the peak GPU memory and the step time of whole models, one configuration after the other.

    python bench/memory.py OUT                    every configuration, several models beside each other on the card
    python bench/memory.py OUT --only qwen3-4b    some of them
    python bench/memory.py OUT --rows             what was measured, as rows for bench/measurements.csv
    python bench/memory.py --errors               what the formula says against bench/measurements.csv

Each configuration runs through the rendered script's own `main` on a model of the real size with random weights, on
rows that fill every position: four forward and backward passes, two optimizer steps, and an evaluation. `OUT` gets one
JSON line a configuration. The first two run in the training stack's environment, the others in the launcher's.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import family_models
import job_script

ROOT = Path(__file__).parent.parent
# The models lie in memory where that is allowed: what is measured is the GPU, not a disk.
MODELS = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path("/tmp")
CARD_GIB = 76
_MARK = "RESULT "


@dataclass(frozen=True, slots=True)
class Config:
    """One run. `batch` in rows per forward pass, `length` in tokens, `image` the side of a square picture in pixels."""

    family: str
    model: str
    load_in: str
    batch: int
    length: int
    rank: int
    image: int | None = None
    images: int = 1
    accumulate: int = 2
    steps: int = 2
    vision_layers: bool = True
    held_out: bool = False
    snapshot: bool = False
    sets: tuple[str, ...] = ("text",)

    @property
    def name(self) -> str:
        """What identifies it in logs."""
        seen = f"-i{self.image}x{self.images}" if self.image else ""
        frozen = "" if self.vision_layers else "-frozen"
        return f"{self.model}-{self.load_in}-b{self.batch}-l{self.length}-r{self.rank}{seen}{frozen}"


def _text(family: str, model: str, *rows: tuple[Any, ...]) -> list[Config]:
    """Rows are (load_in, batch, length, rank, marks): h is held out of the fit, s takes a snapshot."""
    return [
        Config(family, model, load_in, batch, length, rank, held_out="h" in marks, snapshot="s" in marks)
        for load_in, batch, length, rank, marks in rows
    ]


def _vision(family: str, model: str, *rows: tuple[Any, ...]) -> list[Config]:
    """Rows are (load_in, batch, length, rank, image, images, marks); f leaves the vision tower frozen."""
    return [
        Config(
            family, model, load_in, batch, length, rank, image, images, held_out="h" in marks, snapshot="s" in marks,
            vision_layers="f" not in marks, sets=("vision",),
        )
        for load_in, batch, length, rank, image, images, marks in rows
    ]  # fmt: skip


CONFIGS = [
    *_text("phi-4", "phi-4", ("4bit", 2, 2048, 16, ""), ("4bit", 1, 8192, 64, "h")),
    *_text("qwen2.5", "qwen2.5-14b", ("4bit", 4, 2048, 16, "h"), ("16bit", 1, 2048, 32, "")),
    *_text("qwen3", "qwen3-8b", ("4bit", 2, 2048, 16, "s"), ("4bit", 8, 2048, 16, "h"), ("16bit", 1, 8192, 16, "s")),
    *_text("llama-3.1", "llama-3.1-8b", ("4bit", 4, 1024, 16, "s"), ("4bit", 1, 16384, 32, "h")),
    *_text("mistral", "mistral-7b", ("4bit", 4, 4096, 16, ""), ("16bit", 2, 512, 128, "h")),
    *_text("qwen3", "qwen3-4b", ("4bit", 2, 2048, 16, ""), ("4bit", 16, 2048, 16, "s"), ("16bit", 8, 512, 32, "h"),
           ("4bit", 1, 16384, 64, "")),
    *_text("gemma-2", "gemma-2-2b", ("4bit", 4, 2048, 16, "s"), ("16bit", 2, 4096, 16, "h")),
    *_text("llama-3.2", "llama-3.2-3b", ("4bit", 2, 2048, 128, ""), ("16bit", 4, 1024, 16, "")),
    *_text("lfm2", "lfm2-1.2b", ("4bit", 8, 2048, 16, "s"), ("16bit", 2, 8192, 32, "h")),
    *_text("gemma-3", "gemma-3-1b", ("4bit", 4, 2048, 16, "s"), ("16bit", 2, 4096, 32, "h")),
    *_text("qwen3", "qwen3-1.7b", ("4bit", 16, 1024, 16, "h"), ("16bit", 4, 4096, 8, "")),
    *_text("llama-3.2", "llama-3.2-1b", ("4bit", 8, 2048, 16, ""), ("16bit", 2, 8192, 64, "h")),
    *_text("qwen2.5", "qwen2.5-0.5b", ("16bit", 16, 512, 8, ""), ("4bit", 4, 2048, 32, "h"),
           ("4bit", 1, 16384, 16, "s")),
    *_vision("pixtral", "pixtral-12b", ("4bit", 1, 4096, 16, 1024, 1, "h"), ("4bit", 2, 2048, 16, 512, 1, "h")),
    *_vision("llama-3.2-vision", "llama-3.2-11b-vision", ("4bit", 1, 2048, 16, 560, 1, "s"),
             ("4bit", 2, 1024, 16, 1120, 1, "h")),
    *_vision("qwen3-vl", "qwen3-vl-8b", ("4bit", 2, 2048, 16, 768, 1, "s"), ("4bit", 1, 4096, 16, 1792, 1, "s"),
             ("4bit", 4, 2048, 16, 448, 1, "h")),
    *_vision("gemma-3-vision", "gemma-3-4b", ("4bit", 2, 2048, 16, 896, 1, "sh"), ("4bit", 4, 1024, 32, 896, 1, "h")),
    *_vision("qwen3-vl", "qwen3-vl-2b", ("16bit", 8, 1024, 16, 448, 1, ""), ("4bit", 2, 4096, 16, 1024, 2, ""),
             ("4bit", 2, 2048, 16, 768, 1, "f")),
]  # fmt: skip


# ---- The parent: which model runs when -------------------------------------------------------------------------------


def measure(out: Path, configs: list[Config], *, jobs: int, deadline: float, room: float) -> int:
    """Run several models' configurations beside each other, as many as the card holds; 0 where all ran.

    `room` GiB are counted for each beside its weights in 16 bits: building it, the CUDA context, activations.
    """
    waiting = [(model, list(group)) for model, group in itertools.groupby(configs, lambda config: config.model)]
    running: list[tuple[str, float, subprocess.Popen[bytes]]] = []
    began, failed = time.monotonic(), 0
    while waiting or running:
        for model, need, process in list(running):
            code = process.poll()
            if code is None and time.monotonic() - began < deadline:
                continue
            if code is None:
                process.kill()
            print(f"{time.monotonic() - began:6.0f} s  {model}: {code}", flush=True)
            failed += code != 0
            running.remove((model, need, process))
            shutil.rmtree(MODELS / f"launch-{model}", ignore_errors=True)
        for model, group in list(waiting):
            need = _need(model) + room
            if len(running) < jobs and sum(taken for _, taken, _ in running) + need <= CARD_GIB:
                waiting.remove((model, group))
                running.append((model, need, _start(out, model, group)))
        if time.monotonic() - began >= deadline:
            failed += len(waiting)
            waiting.clear()
        time.sleep(0.5)
    return int(failed > 0)


def _need(model: str) -> float:
    """GiB on the card: the model is built there in 16 bits."""
    return float(family_models.catalog()["models"][model]["params"]) * 2 / 2**30


def _start(out: Path, model: str, group: list[Config]) -> subprocess.Popen[bytes]:
    numbers = [str(CONFIGS.index(config)) for config in group]
    log = (out / f"{model}.log").open("ab")
    command = [sys.executable, __file__, str(out), "--worker", *numbers]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)


# ---- The worker: one model's configurations --------------------------------------------------------------------------


def work(out: Path, configs: list[Config]) -> int:
    """Build the model, then run each configuration in a process of its own; 0 where all ran."""
    folder = _folder(configs[0])
    build = [sys.executable, family_models.__file__, "--model", configs[0].model, configs[0].family, str(folder)]
    subprocess.run(build, check=True)
    # In one process the second configuration would be measured on what the first has left on the GPU.
    one = [sys.executable, __file__, str(out), "--one"]
    codes = [subprocess.run([*one, str(CONFIGS.index(config))], check=False).returncode for config in configs]
    return max(codes)


def measure_one(out: Path, config: Config) -> int:
    """Run one configuration through the rendered script and keep what it measured; 1 where it failed."""
    began = time.monotonic()
    try:
        measured = _run(config, _folder(config))
    except Exception as error:
        measured = {"error": f"{type(error).__name__}: {str(error)[:400]}"}
    row = {"name": config.name, **asdict(config), **measured, "wall_s": round(time.monotonic() - began, 1)}
    with (out / "memory.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    return int("error" in measured)


def _folder(config: Config) -> Path:
    return MODELS / f"launch-{config.model}"


def _run(config: Config, folder: Path) -> dict[str, Any]:
    # Before everything that it patches.
    import unsloth  # noqa: F401  # isort: skip
    import torch

    modality = "vision" if config.image else "text"
    script = job_script.load("sft_vlm" if config.image else "sft_text")
    data = _rows(config, folder.parent / f"rows-{config.name}", _end(folder))
    argv = {
        "--model": folder, "--dataset": data, "--load-in": config.load_in, "--batch-size": config.batch,
        "--max-length": config.length, "--lora-r": config.rank, "--lora-alpha": config.rank,
        "--gradient-accumulation": config.accumulate, "--max-steps": config.steps,
        # What evaluates is compiled apart, which for a model that sees takes a minute and more.
        "--eval-rows": 0 if config.image else 2,
        "--trackio-project": "", "--output-dir": folder.parent / "adapter", "--train-on": "all",
    }  # fmt: skip
    if modality == "vision":
        argv["--image-size"] = config.image
    flags = [str(word) for pair in argv.items() for word in pair]
    flags += ["--no-packing"] if modality == "text" else ["--no-streaming"]
    flags += [] if config.vision_layers else ["--no-finetune-vision-layers"]
    said = io.StringIO()
    with _snapshot(config) as peak, contextlib.redirect_stdout(_Both(said)):
        arguments = script.read_options(script.Options, flags)
        script.check_options(arguments)
        script.check_data(arguments)
        script.main(arguments).finish()
    shutil.rmtree(data, ignore_errors=True)
    result = json.loads(said.getvalue().rpartition(_MARK)[2])
    kept = ("peak_gib", "peaks_gib", "step_s", "first_step_s", "startup_s", "largest_batch_tokens", "tokens_seen",
            "tokens_trained", "tokens_per_second", "device", "versions")  # fmt: skip
    card = torch.cuda.get_device_properties(0).total_memory / 2**30
    return {name: result[name] for name in kept} | {"card_gib": card, "snapshot": peak}


class _Both(io.TextIOBase):
    """Standard output, kept as well as written."""

    def __init__(self, kept: io.StringIO) -> None:
        self.kept, self.through = kept, sys.stdout

    def write(self, text: str) -> int:
        self.kept.write(text)
        return self.through.write(text)

    def flush(self) -> None:
        self.through.flush()


def _end(folder: Path) -> str:
    return str(json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["eos_token"])


def _rows(config: Config, folder: Path, end: str) -> Path:
    """Rows that are longer than the length, so that every position of every batch is filled; `end` is among them.

    The script refuses rows in which the end of a text is never learned.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = config.batch * config.accumulate * config.steps + 2
    # At least a token a word; the longest word has six letters.
    words = ["stone", "river", "garden", "window", "paper", "silver", "north", "seven"]
    texts = [" ".join(words[(n * (k + 3) + k // 5) % 8] for k in range(config.length)) for n in range(count)]
    if config.image is None:
        lines = [json.dumps({"text": f"stone{end}{text}"}) for text in texts]
        (folder / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
        return folder
    from datasets import Dataset, Features, Image, List, Value

    part = {"type": Value("string"), "text": Value("string")}
    features = Features({"images": List(Image()), "messages": List({"role": Value("string"), "content": List(part)})})
    rows = []
    for n, text in enumerate(texts):
        shown = [{"bytes": family_models.picture(n + k, config.image), "path": None} for k in range(config.images)]
        parts: list[dict[str, str | None]] = [{"type": "image", "text": None} for _ in shown]
        said = [("user", "What is this?"), ("assistant", "A digit."), ("user", "Go on."), ("assistant", text)]
        messages = [{"role": role, "content": [{"type": "text", "text": words}]} for role, words in said]
        messages[0]["content"] = [*parts, *messages[0]["content"]]
        rows.append({"images": shown, "messages": messages})
    Dataset.from_list(rows, features=features).to_parquet(folder / "train.parquet")
    return folder


# ---- What is alive at the peak ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def _snapshot(config: Config) -> Iterator[dict[str, Any]]:
    """Where asked for, record the allocations of the last pass, and say what was alive when most was in use."""
    import torch
    import transformers

    found: dict[str, Any] = {}
    if not config.snapshot:
        yield found
        return
    whole, calls, last = transformers.Trainer.training_step, itertools.count(1), config.accumulate * config.steps

    def recorded(trainer: Any, *rest: Any, **more: Any) -> Any:
        if next(calls) != last:
            return whole(trainer, *rest, **more)
        torch.cuda.synchronize()
        base = torch.cuda.memory_allocated()
        torch.cuda.memory._record_memory_history(context="alloc", stacks="python", max_entries=400_000)
        done = whole(trainer, *rest, **more)
        torch.cuda.synchronize()
        trace = torch.cuda.memory._snapshot()["device_traces"][0]
        torch.cuda.memory._record_memory_history(enabled=None)
        found.update(_at_peak(trace, base))
        return done

    transformers.Trainer.training_step = recorded
    try:
        yield found
    finally:
        transformers.Trainer.training_step = whole


def _at_peak(trace: list[dict[str, Any]], base: int) -> dict[str, Any]:
    """The blocks alive at the highest point, by the lines that made them, in MiB; earlier ones are one number."""
    alive: dict[int, dict[str, Any]] = {}
    now = highest = 0
    kept: list[dict[str, Any]] = []
    for event in trace:
        if event["action"] == "alloc":
            alive[event["addr"]] = event
            now += event["size"]
        elif event["action"] == "free_completed":
            gone = alive.pop(event["addr"], None)
            now -= gone["size"] if gone else event["size"]
        if now > highest:
            highest, kept = now, list(alive.values())
    by_line: Counter[str] = Counter()
    for event in kept:
        by_line[_where(event.get("frames", []))] += event["size"]
    lines = {line: round(size / 2**20, 1) for line, size in by_line.most_common(40)}
    return {"base_mib": round(base / 2**20, 1), "above_mib": round(highest / 2**20, 1), "lines": lines}


def _where(frames: Iterable[dict[str, Any]]) -> str:
    shown = [f"{Path(frame['filename']).name}:{frame['line']}:{frame['name']}" for frame in frames]
    skipped = ("module.py", "_contextlib.py", "eval_frame.py", "graph.py")
    return " < ".join([line for line in shown if not line.startswith(skipped)][:6])


# ---- What was measured -----------------------------------------------------------------------------------------------


def rows(out: Path) -> Iterator[dict[str, Any]]:
    """The measurements in the columns of measurements.csv."""
    for line in (out / "memory.jsonl").read_text(encoding="utf-8").splitlines():
        found = json.loads(line)
        if "error" in found:
            print(f"{found['name']}: {found['error']}", file=sys.stderr)
            continue
        versions = " ".join(f"{name}={version}" for name, version in found["versions"].items())
        evaluated = found["peaks_gib"].get("evaluate")
        yield {
            "model": found["model"],
            "modality": "vision" if found["image"] else "text",
            "engine": "unsloth",
            "load_in": found["load_in"],
            "batch_size": found["batch"],
            "max_length": found["length"],
            "lora_r": found["rank"],
            "image_size": found["image"],
            "images": found["images"] if found["image"] else None,
            "optim": "adamw_8bit",
            "finetune_vision_layers": found["vision_layers"],
            "eval_batch_size": 0 if found["image"] else min(found["batch"], 2),
            "card": found["device"],
            "card_gib": round(found["card_gib"], 2),
            "peak_gib": round(found["peaks_gib"]["train"], 3),
            "eval_peak_gib": evaluated and round(evaluated, 3),
            # Several models shared the card, so its time says nothing.
            "step_s": None,
            "tokens_per_step": None,
            "versions": versions,
            "date": time.strftime("%Y-%m-%d"),
            "held_out": found["held_out"],
            "source": "bench/memory.py",
        }


def print_rows(out: Path) -> None:
    """Print them as CSV, without the header."""
    found = list(rows(out))
    writer = csv.DictWriter(sys.stdout, list(found[0]), lineterminator="\n")
    writer.writerows(found)


def print_errors() -> None:
    """Print the formula's error on each family, in and out of the fit, and its extremes."""
    sys.path.insert(0, str(ROOT))
    import measurements

    from launcher import catalog

    known = catalog.shipped().models
    errors: dict[tuple[str, bool], list[float]] = {}
    for row in measurements.load():
        error = 100 * row.error(known[row.model])
        for family in (str(known[row.model].family), "all"):
            errors.setdefault((family, row.held_out), []).append(error)
    print("| family | in the fit | median | worst under | worst over | kept out | median | worst under | worst over |")
    print("| --- |" + " ---: |" * 8)
    for family in sorted({family for family, _ in errors}, key=lambda name: (name == "all", name)):
        cells = [family]
        for held_out in (False, True):
            found = errors.get((family, held_out), [])
            cells.append(str(len(found)))
            if not found:
                cells += ["", "", ""]
                continue
            median = statistics.median(abs(error) for error in found)
            cells += [f"{median:.2f} %", f"{min(0.0, *found):.2f} %", f"{max(0.0, *found):+.2f} %"]
        print(f"| {' | '.join(cells)} |")


def main() -> int:
    """Measure, or compare."""
    parser = argparse.ArgumentParser(description="Peak memory of whole models on this GPU.")
    parser.add_argument("out", type=Path, nargs="?", default=Path("memory-bench"))
    parser.add_argument("--rows", action="store_true", help="print what OUT holds as rows of measurements.csv")
    parser.add_argument("--errors", action="store_true", help="compare the formula with measurements.csv")
    parser.add_argument("--sets", nargs="+", default=["text", "vision"])
    parser.add_argument("--only", nargs="+", help="models or single configurations, in the order in which they start")
    parser.add_argument("--jobs", type=int, default=5)
    parser.add_argument("--deadline", type=float, default=3000, help="seconds until what still runs is stopped")
    parser.add_argument("--room", type=float, default=9, help="GiB for each model beside its weights in 16 bits")
    parser.add_argument("--worker", type=int, nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.errors or args.rows:
        print_errors() if args.errors else print_rows(args.out)
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    if args.worker:
        return work(args.out, [CONFIGS[number] for number in args.worker])
    if args.one is not None:
        return measure_one(args.out, CONFIGS[args.one])
    wanted = [config for config in CONFIGS if set(args.sets) & set(config.sets)]
    if args.only:
        wanted = [config for name in args.only for config in wanted if name in (config.model, config.name)]
    return measure(args.out, wanted, jobs=args.jobs, deadline=args.deadline, room=args.room)


if __name__ == "__main__":
    sys.exit(main())
