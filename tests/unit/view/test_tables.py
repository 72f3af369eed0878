"""What a run says at its end: what was predicted stands beside what was seen."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from launcher.estimate.values import Cost, Duration
from launcher.jobs.local import LocalBackend
from launcher.plan.record import Plan
from launcher.view import tables as show
from tests.unit import sample

LAUNCH = Path(sys.executable).with_name("launch")
RESULT: dict[str, Any] = {
    "steps": 500, "train_s": 600.0, "tokens_per_second": 1234.5, "output_dir": "/models/[bold]m", "url": None,
    "peak_gib": 17.42, "predicted_peak_gib": 17.9, "largest_batch_tokens": 16384,
}  # fmt: skip


def shown(result: dict[str, Any], plan: Plan | None = None, took_s: float | None = None, rate: float = 0) -> str:
    text = io.StringIO()
    Console(file=text, width=100, highlight=False).print(show.result_view(result, plan, took_s, rate))
    return " ".join(text.getvalue().split())


def test_the_peak_that_was_seen_stands_beside_the_predicted_one() -> None:
    said = "peak VRAM 17.42 GiB seen, 17.90 GiB predicted (+2.8 %), for batches of at most 16,384 tokens"
    assert said in shown(RESULT)
    other = "17.42 GiB seen; nothing was predicted for these options"
    assert other in shown(RESULT | {"predicted_peak_gib": None})
    assert "(-50.0 %)" in shown(RESULT | {"predicted_peak_gib": 8.71, "largest_batch_tokens": None})


def test_so_do_time_and_cost_where_there_is_a_plan() -> None:
    plan = sample.plan(
        duration=Duration(startup_s=300, train_s=660, total_s=960),
        cost=Cost(usd_per_hour=1.8, expected_usd=0.48, max_usd=1),
    )
    said = shown(RESULT, plan, took_s=1200, rate=1.8)
    for words in (
        "training time 10 min seen, 11 min predicted (+10.0 %)",
        "whole run 20 min seen, 16 min predicted (-20.0 %)",
        "cost $0.60, $0.48 predicted",
    ):
        assert words in said


def test_a_run_that_nothing_was_predicted_for_says_only_what_was_seen() -> None:
    said = shown(RESULT | {"peak_gib": None})
    assert "predicted" not in said and "VRAM" not in said
    assert "500 steps in 10 min, 1,234 tokens/s" in said
    assert "/models/[bold]m" in said
    free = sample.plan(duration=Duration(startup_s=0, train_s=0, total_s=0))
    assert "training time" not in shown(RESULT, free, took_s=100)


def test_whoever_waits_for_a_run_reads_both_at_its_end() -> None:
    plan = sample.plan(duration=Duration(startup_s=1, train_s=660, total_s=960))
    body = f"say('RESULT ' + {json.dumps(RESULT)!r})"
    job = LocalBackend().submit(sample.request(sample.SAY + body, of=plan, flavor="local"))
    answer = subprocess.run([LAUNCH, "wait", job.id], capture_output=True, text=True, timeout=120, check=False)
    assert answer.returncode == 0, answer.stderr
    said = " ".join(answer.stdout.split())
    assert "17.42 GiB seen, 17.90 GiB predicted" in said
    assert "training time 10 min seen, 11 min predicted (+10.0 %)" in said
    assert "whole run" in said
    assert "cost" not in said
