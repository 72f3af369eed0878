"""The row of a run that ended, for the measurements that the estimates are held to."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import calibrate
import pytest

from launcher import catalog
from launcher.errors import RequestError
from launcher.estimate.values import Vram
from launcher.jobs import folder
from tests.unit import sample

CALIBRATE = Path(__file__).parents[3] / "bench" / "calibrate.py"
TABLES = catalog.shipped()
ON_H100 = {
    "status": "done", "steps": 10, "tokens_seen": 163_840, "largest_batch_tokens": 1024, "step_s": 0.51234567,
    "peak_gib": 18.5, "peaks_gib": {"load": 6.0, "evaluate": 7.25, "train": 17.421875, "answer": 18.5},
    "predicted_peak_gib": 17.9, "device": "NVIDIA H100 80GB HBM3", "versions": {"torch": "2.14.1", "trl": "1.15.0"},
}  # fmt: skip


def ran(run_id: str, result: dict[str, Any] | None, **plan: Any) -> folder.Run:
    """A run of this launcher that ended with that result."""
    vram = Vram(weights_gib=1, peak_gib=17.9, available_gib=75, reserve_gib=4, fits=True)
    made = sample.plan(
        **{"repo": "unsloth/Qwen3-8B", "batch_size": 2, "max_length": 512, "eval_rows": 8, "vram": vram} | plan
    )
    run = folder.create(sample.request("pass", of=made), "hub").rename(run_id)
    lines = ["== train", "step 1/1 | loss 1.0"] + ([f"RESULT {json.dumps(result)}"] if result else [])
    run.log.write_text("\n".join(lines), encoding="utf-8")
    return run


def rows_of(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, CALIBRATE, *args], capture_output=True, text=True, timeout=60, check=False)


def test_a_run_gives_its_row_under_the_columns_of_the_table() -> None:
    ran("job1", ON_H100)
    answer = rows_of("job1", "--header")
    assert answer.returncode == 0, answer.stderr
    assert answer.stderr == ""
    assert answer.stdout.splitlines()[0] == (
        "model,modality,engine,load_in,batch_size,max_length,lora_r,image_size,images,optim,finetune_vision_layers,"
        "eval_batch_size,card,card_gib,peak_gib,eval_peak_gib,step_s,tokens_per_step,versions,date,held_out,source"
    )
    [row] = csv.DictReader(io.StringIO(answer.stdout))
    assert row["model"] == "qwen3-8b"
    assert (row["batch_size"], row["max_length"], row["lora_r"]) == ("2", "512", "8")
    assert (row["peak_gib"], row["eval_peak_gib"], row["step_s"]) == ("17.4219", "7.25", "0.5123")
    assert (row["card"], row["card_gib"]) == ("NVIDIA H100 80GB HBM3", "79.0")
    assert (row["tokens_per_step"], row["eval_batch_size"], row["held_out"]) == ("16384", "2", "False")
    assert row["versions"] == "torch=2.14.1 trl=1.15.0"
    assert (row["image_size"], row["images"], row["finetune_vision_layers"]) == ("", "", "")
    assert row["source"] == "bench/calibrate.py job1"


def test_rows_that_were_shorter_than_allowed_are_measured_as_what_they_were() -> None:
    ran("job1", ON_H100 | {"largest_batch_tokens": 600})
    answer = rows_of("job1")
    [cells] = csv.reader(io.StringIO(answer.stdout))
    assert cells[calibrate.COLUMNS.index("max_length")] == "300"
    assert "300 tokens where 512 were allowed" in " ".join(answer.stderr.split())


def test_a_vision_run_says_what_was_seen_and_several_runs_are_several_rows() -> None:
    ran("job1", ON_H100)
    ran("job2", ON_H100, modality="vision", image_size=768, finetune_vision_layers=False, eval_rows=0, repo="me/own")
    answer = rows_of("job2", "job1")
    first, second = csv.reader(io.StringIO(answer.stdout))
    found = dict(zip(calibrate.COLUMNS, first, strict=True))
    assert (found["image_size"], found["images"], found["finetune_vision_layers"]) == ("768", "1", "False")
    assert (found["model"], found["eval_batch_size"]) == ("me/own", "0")
    assert second[0] == "qwen3-8b"


def test_a_log_file_with_its_plan_beside_it_is_as_good_as_a_run(tmp_path: Path) -> None:
    run = ran("job1", ON_H100)
    (tmp_path / "plan.json").write_bytes((run.folder / "plan.json").read_bytes())
    (tmp_path / "job.txt").write_bytes(run.log.read_bytes())
    measured = calibrate.measure(str(tmp_path / "job.txt"), TABLES)
    assert measured.row["peak_gib"] == pytest.approx(17.4219)


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (None, "no RESULT line"),
        (ON_H100 | {"peak_gib": None, "device": "cpu"}, "ran on cpu"),
        (ON_H100 | {"predicted_peak_gib": None}, "other options"),
        ({name: value for name, value in ON_H100.items() if name != "largest_batch_tokens"}, "how large its batches"),
    ],
)
def test_a_run_that_tells_nothing_is_refused(result: dict[str, Any] | None, said: str) -> None:
    ran("job1", result)
    answer = rows_of("job1")
    assert (answer.returncode, answer.stdout) == (2, "")
    assert said in " ".join(answer.stderr.split())
    assert "Traceback" not in answer.stderr


def test_what_is_no_run_is_said(tmp_path: Path) -> None:
    (tmp_path / "alone.log").write_text("RESULT {}")
    with pytest.raises(RequestError, match=r"no plan\.json"):
        calibrate.measure(str(tmp_path / "alone.log"), TABLES)
    with pytest.raises(RequestError, match="unknown run 'job9'"):
        calibrate.measure("job9", TABLES)
    run = ran("job1", ON_H100)
    run.log.unlink()
    with pytest.raises(RequestError, match="no log") as caught:
        calibrate.measure("job1", TABLES)
    assert "launch logs job1" in caught.value.hint
