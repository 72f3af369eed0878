"""The same curve twice: one plan of the real small model, trained here, and trained again from what is kept of it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launcher.jobs import folder as runs
from tests.e2e.test_launch import rows
from tests.emulator import Hub

LAUNCH = Path(sys.executable).with_name("launch")
# What a loss line says of the training; its last two figures are of the clock.
CURVE = re.compile(r"^((?:eval )?step \d+/\d+ \| loss \S+(?: \| lr \S+)?)", re.MULTILINE)


def curve(run_id: str) -> list[str]:
    return CURVE.findall(runs.load(run_id).log.read_text(encoding="utf-8"))


def run_launch(folder: Path, *args: object, env: dict[str, str] | None = None) -> str:
    command = [str(word) for word in (LAUNCH, *args)]
    environment = os.environ | (env or {})
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=900, check=False, cwd=folder, env=environment
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
def test_the_same_curve_to_the_digit(smollm2: Path, tmp_path: Path) -> None:
    def launch(*args: object) -> str:
        return run_launch(tmp_path, *args)

    def trained(*args: object) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(launch(*args, "--json", "-q"))
        return found

    rows(tmp_path / "houses.jsonl")
    first = trained(
        "--model", smollm2, "--dataset", "houses.jsonl", "--local", "--max-steps", 6, "--eval-rows", 4,
        "--eval-steps", 3, "--max-length", 128, "--effective-batch-size", 4, "--learning-rate", "1e-3",
        "--lora-dropout", "0.1",
    )  # fmt: skip
    output = Path(first["result"]["output_dir"])
    beside = {name: (output / name).read_bytes() for name in ("run.json", "sft_text.py")}
    assert beside["sft_text.py"] == (runs.load(first["id"]).folder / "sft_text.py").read_bytes()

    second = trained("rerun", first["id"])
    kept = tmp_path / "kept"
    kept.mkdir()
    for name, content in beside.items():
        (kept / name).write_bytes(content)
    # A folder of this machine is only trained for who has read the script.
    digest = hashlib.sha256(beside["sft_text.py"]).hexdigest()
    third = trained("rerun", kept / "run.json", "--trust-script", digest)

    curves = [curve(run["id"]) for run in (first, second, third)]
    assert sum(line.startswith("step") for line in curves[0]) == 6
    assert {line.split()[2] for line in curves[0] if line.startswith("eval")} == {"0/6", "3/6", "6/6"}
    assert curves[0] == curves[1] == curves[2]
    # A curve of one number, or one that does not go down, would prove nothing.
    losses = [float(re.findall(r"loss (\S+)", line)[0]) for line in curves[0] if line.startswith("step")]
    assert len(set(losses)) == 6
    assert losses[-1] < losses[0]
    for name in ("train_loss", "eval_loss", "eval_loss_before", "tokens_seen", "tokens_trained"):
        assert first["result"][name] == second["result"][name] == third["result"][name], name
    scripts = {(runs.load(run["id"]).folder / "sft_text.py").read_bytes() for run in (first, second, third)}
    assert scripts == {beside["sft_text.py"]}

    different = json.loads(launch("diff", first["id"], second["id"], "--json"))
    assert (different["decisions"], different["revisions"], different["packages"]) == ({}, {}, {})
    assert different["result"]["train_loss"] == [first["result"]["train_loss"]] * 2
    assert "no decision differs" in launch("diff", kept / "run.json", third["id"])


@pytest.mark.slow
def test_what_a_job_pushed_is_enough_to_run_it_again(smollm2: Path, tmp_path: Path) -> None:
    """A real Job's own record: nothing is left here of the run but its data file."""
    data = rows(tmp_path / "houses.jsonl")
    hub = Hub(tmp_path / "hub", python=sys.executable)
    hub.add_repo("tester/smollm2", folder=smollm2)
    with hub:
        env = hub.env()
        run_launch(
            tmp_path, "--model", "tester/smollm2", "--dataset", "houses.jsonl", "--flavor", "cpu-upgrade",
            "--max-steps", 2, "--eval-rows", 4, "--max-length", 128, "--effective-batch-size", 4,
            "--output-repo", "houses", "--env", "SOME=thing", "-q", env=env,
        )  # fmt: skip
        pushed = hub.repos["tester/houses"].files
        record = json.loads(pushed["run.json"])
        assert record["revisions"]["model"] == hub.repos["tester/smollm2"].head.oid
        assert record["plan"]["revision"] == hub.repos["tester/smollm2"].head.oid
        hub.runner = None
        elsewhere = env | {"LAUNCH_HOME": str(tmp_path / "another laptop")}
        run_launch(tmp_path, "rerun", "tester/houses", "--detach", "-q", env=elsewhere)
        first, second = hub.jobs.values()
        stored = hub.buckets["tester/jobs-artifacts"].files
        for job in (first, second):
            assert stored[f"{job.labels['artifacts']}/sft_text.py"] == pushed["sft_text.py"]
            assert stored[f"{job.labels['artifacts']}/houses.jsonl"] == data.read_bytes()
        for part in ("flavor", "timeoutSeconds"):
            assert first.spec[part] == second.spec[part], part
        # Arguments are written anew, so that each is one that was read.
        said, again = (" ".join(job.spec["command"]).replace("=", " ") for job in (first, second))
        assert said == again
        assert second.secrets == first.secrets
        assert "SOME" in first.spec["environment"]
        assert "SOME" not in second.spec["environment"]
        same = json.loads(run_launch(tmp_path, "diff", first.id, "tester/houses", "--json", env=env))
        assert set(same["decisions"]) <= {"env"}
        assert not hub.unknown_requests
