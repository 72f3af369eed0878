"""From runs that ended to their rows of `measurements.csv`, which the estimates are held to.

    uv run python bench/calibrate.py RUN… [--header] >> bench/measurements.csv

A RUN is a run's id, or a log with its plan.json beside it.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from launcher.catalog import Catalog, load
from launcher.errors import LauncherError, RequestError
from launcher.jobs.events import summarize
from launcher.jobs.folder import PLAN, Run
from launcher.plan.record import Plan
from launcher.runs.find import File, HubJob, LocalRun, find

COLUMNS = (
    "model", "modality", "engine", "load_in", "batch_size", "max_length", "lora_r", "image_size", "images", "optim",
    "finetune_vision_layers", "eval_batch_size", "card", "card_gib", "peak_gib", "eval_peak_gib", "step_s",
    "tokens_per_step", "versions", "date", "held_out", "source",
)  # fmt: skip
# The script's `per_device_eval_batch_size` is at most this.
_EVAL_BATCH = 2


@dataclass(frozen=True, slots=True)
class Measured:
    """One row, its values by column, and what a reader should know of it."""

    row: Mapping[str, Any]
    notes: tuple[str, ...]


def measure(name: str, catalog: Catalog) -> Measured:
    """The row of a run's id, or of a log file that has the run's `plan.json` beside it.

    Raises `RequestError` where there is no such run, or where it does not say what it needed: it has not ended, it ran
    without a GPU, or its script was run with other options than planned.
    """
    match find(name):
        case File(path):
            run, log = Run(path.absolute().parent), path
        case LocalRun(run) | HubJob(run=Run() as run):
            log = run.log
        case _:
            raise RequestError(f"{name} is no run that was started here, and no file.", "`launch ps --all` shows them.")
    if not (run.folder / PLAN).is_file():
        raise RequestError(
            f"{name}: what was trained is in no plan.json beside it.",
            "Give the id of a run (`launch ps --all`), or put what `launch plan … --json` printed beside the log.",
        )
    result = _result(name, log, run.mark)
    plan = run.plan()
    if plan.task == "export":
        raise RequestError(f"{name} is an export, which trains nothing.", "Choose a run that trained a model.")
    _check(name, plan, result)
    length, notes = _length(name, plan, result)
    return Measured(_row(plan, result, length, _date(log), catalog, f"bench/calibrate.py {run.id}"), notes)


def table(measured: list[Measured], header: bool) -> str:
    """The rows as CSV, with the names of the columns before them where asked for."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(item.row for item in measured)
    return text.getvalue()


def _result(name: str, log: Path, mark: str | None) -> Mapping[str, Any]:
    try:
        with log.open(encoding="utf-8", errors="replace") as lines:
            progress = summarize((line.rstrip("\n") for line in lines), mark)
    except OSError as error:
        raise RequestError(
            f"{name}: no log of it is kept here ({error.strerror or error}).",
            f"`launch logs {name}` fetches a Job's log and keeps it.",
        ) from error
    if progress.result is None:
        raise RequestError(
            f"{name}: its log has no RESULT line, so it has not ended well.", "Choose a run that is done."
        )
    return progress.result


def _check(name: str, plan: Plan, result: Mapping[str, Any]) -> None:
    if not result.get("peak_gib"):
        raise RequestError(
            f"{name} ran on {result.get('device', 'an unknown device')}, so there is no peak of a GPU's memory in it.",
            "Choose a run on a GPU.",
        )
    if result.get("predicted_peak_gib") is None:
        raise RequestError(
            f"{name}: its script was run with other options than its plan has, so it measures something else.",
            "Start it anew through `launch` with those options.",
        )
    if not result.get("largest_batch_tokens"):
        raise RequestError(
            f"{name}: its script does not say how large its batches were.", "Run it anew with this version of launch."
        )


def _length(name: str, plan: Plan, result: Mapping[str, Any]) -> tuple[int, tuple[str, ...]]:
    """The tokens of a row in the largest batch, and a note where that is less than was allowed."""
    length = plan.decisions.max_length.value
    seen = int(result["largest_batch_tokens"]) // plan.decisions.batch_size.value
    if seen >= length:
        return length, ()
    return seen, (f"{name}: its longest rows had {seen} tokens where {length} were allowed; max_length is {seen}.",)


def _row(
    plan: Plan, result: Mapping[str, Any], length: int, date: str, catalog: Catalog, source: str
) -> dict[str, Any]:
    vision = plan.decisions.modality.value == "vision"
    evaluated = plan.decisions.eval_rows.value != 0 or bool(plan.options.eval_split)
    peaks = result.get("peaks_gib") or {}
    return {
        "model": _model(plan, catalog),
        "modality": plan.decisions.modality.value,
        "engine": plan.options.engine,
        "load_in": plan.decisions.load_in.value,
        "batch_size": plan.decisions.batch_size.value,
        "max_length": length,
        "lora_r": plan.options.lora_r,
        "image_size": plan.decisions.image_size.value,
        "images": 1 if vision else None,
        "optim": plan.options.optim,
        "finetune_vision_layers": plan.options.finetune_vision_layers if vision else None,
        "eval_batch_size": min(plan.decisions.batch_size.value, _EVAL_BATCH) if evaluated else 0,
        "card": result.get("device"),
        "card_gib": _round(result.get("card_gib") or plan.vram.available_gib + plan.vram.reserve_gib),
        "peak_gib": _round(peaks.get("train") or result["peak_gib"]),
        "eval_peak_gib": _round(peaks.get("evaluate")),
        "step_s": _round(result.get("step_s")),
        "tokens_per_step": round(result["tokens_seen"] / result["steps"]) if result.get("steps") else None,
        "versions": " ".join(f"{name}={number}" for name, number in (result.get("versions") or {}).items()),
        "date": date,
        "held_out": False,
        "source": source,
    }


def _model(plan: Plan, catalog: Catalog) -> str:
    """The alias that the catalog has for it, else the name of the repo."""
    return next(
        (model.alias for model in catalog.models.values() if plan.facts.repo in (model.repo, model.upstream)),
        plan.facts.repo,
    )


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _date(log: Path) -> str:
    return f"{datetime.fromtimestamp(log.stat().st_mtime, UTC):%Y-%m-%d}"


def main() -> None:
    """Print the rows of the runs that were named; what a reader should know goes to stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="RUN", help="a run's id, or a log with its plan.json beside it")
    parser.add_argument("--header", action="store_true", help="the names of the columns first")
    asked = parser.parse_args()
    try:
        measured = [measure(name, load()) for name in asked.names]
    except LauncherError as error:
        print(f"error: {error.message}\n{error.hint}".rstrip(), file=sys.stderr)
        sys.exit(error.exit_code)
    for note in (note for item in measured for note in item.notes):
        print(note, file=sys.stderr)
    sys.stdout.write(table(measured, asked.header))


if __name__ == "__main__":
    main()
