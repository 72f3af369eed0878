"""Fit `launcher.estimate.speed.COEFFICIENTS` to measured steps, and say how far off the fit is.

    python bench/fit_speed.py bench/measurements.csv [bench/speed_h100.csv ...] [--fix layer_s=0.01]

Least squares of the logarithms by coordinate search, in plain Python. A file is one of bench/calibrate.py's rows, whose
`step_s` is an optimizer step of `tokens_per_step`, or of `bench/speed.py`'s, whose `micro_step_s` is one forward and
backward pass. Only lines of an H100 under Unsloth count; those that are held out are reported and not fitted. Runs in
the launcher's environment.
"""

from __future__ import annotations

import argparse
import csv
import math
import re
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

from launcher import catalog
from launcher.catalog import Gpu, Model
from launcher.estimate import speed
from launcher.estimate.setup import Setup
from launcher.estimate.speed import Batch

H100 = Gpu(title="H100", memory_gib=79.18, nominal_gb=80, bf16=True, compute_capability="9.0",
           bf16_tflops=989, matmul_tflops=788, bandwidth_gbs=3352)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Point:
    """One measured forward and backward pass."""

    name: str
    model: Model
    setup: Setup
    batch: Batch
    seconds: float
    held_out: bool

    def error(self, fitted: dict[str, float]) -> float:
        """Predicted by measured, less one."""
        return speed.micro_step(self.model, H100, self.setup, self.batch, fitted) / self.seconds - 1


def read(path: Path) -> list[Point]:
    """The lines of a file that have a time, and a model of the catalog."""
    models = catalog.load().models
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    return [
        _point(row, models[row["model"]])
        for row in rows
        if row["model"] in models
        and (row.get("micro_step_s") or row.get("step_s"))
        and "H100" in (row.get("card") or row.get("device") or "H100")
        and (row.get("engine") or "unsloth") == "unsloth"
    ]


def _point(row: dict[str, str], model: Model) -> Point:
    setup = Setup(
        load_in="4bit" if row["load_in"] == "4bit" else "16bit",
        engine="unsloth",
        max_length=int(row["max_length"]),
        batch_size=int(row["batch_size"]),
        lora_r=int(row["lora_r"]),
        modality="vision" if row["modality"] == "vision" else "text",
        image_size=int(row.get("image_size") or 0) or None,
        images=int(row.get("images") or 1),
        finetune_vision_layers=(row.get("finetune_vision_layers") or "true").lower() == "true",
    )
    full = setup.batch_size * setup.max_length
    tokens, alone = float(row.get("tokens_per_step") or full), row.get("micro_step_s")
    passes = 1 if alone else max(round(tokens / full), 1)
    seconds = float(alone) if alone else float(row["step_s"]) / passes
    batch = Batch(setup.batch_size, tokens / passes / setup.batch_size, by_row=not alone and _attends_by_row(row))
    name = f"{row['model']} {row['load_in']} {setup.batch_size} x {setup.max_length}"
    return Point(name, model, setup, batch, seconds, (row.get("held_out") or "").lower() == "true")


def _attends_by_row(row: dict[str, str]) -> bool:
    """Whether that run attended to text rows one by one: below torch 2.12 (Unsloth's attention_dispatch)."""
    version = re.search(r"torch=(\d+)\.(\d+)", row.get("versions") or "")
    return row["modality"] == "text" and version is not None and tuple(map(int, version.groups())) < (2, 12)


def fit(points: list[Point], fixed: dict[str, float]) -> dict[str, float]:
    """The coefficients with the least squared error of the logarithms, from those of today on."""
    best, factor = speed.COEFFICIENTS | fixed, 1.5
    least = loss(points, best)
    while factor > 1.001:
        improved = False
        for name in sorted(set(best) - set(fixed)):
            for change in (factor, 1 / factor):
                tried = best | {name: best[name] * change}
                # Nothing reaches more than the whole of its peak.
                if name.endswith("share") and tried[name] > 1:
                    continue
                if (now := loss(points, tried)) < least:
                    best, least, improved = tried, now, True
        if not improved:
            factor = math.sqrt(factor)
    return best


def loss(points: list[Point], fitted: dict[str, float]) -> float:
    """The mean squared error of the logarithm."""
    return statistics.fmean(math.log1p(point.error(fitted)) ** 2 for point in points)


def main() -> int:
    """Fit and report."""
    parser = argparse.ArgumentParser(description="Fit the speed formula.")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--fix", nargs="*", default=[], metavar="NAME=VALUE")
    args = parser.parse_args()
    points = [point for path in args.files for point in read(path)]
    used = [point for point in points if not point.held_out]
    if not used:
        print("no line has a time of an H100", file=sys.stderr)
        return 1
    fixed = {name: float(value) for name, value in (item.split("=") for item in args.fix)}
    fitted = fit(used, fixed)
    for point in points:
        mark = "held out" if point.held_out else ""
        print(f"{point.name:42} measured {point.seconds:7.3f} s, predicted {point.error(fitted):+5.0%}  {mark}")
    for title, group in (("fitted", used), ("held out", [point for point in points if point.held_out])):
        if group:
            errors = [abs(point.error(fitted)) for point in group]
            print(f"{title}: {len(group)} lines, median error {statistics.median(errors):.1%}, worst {max(errors):.1%}")
    print("COEFFICIENTS =", {name: float(f"{value:.3g}") for name, value in fitted.items()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
