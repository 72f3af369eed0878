"""A run that would be cut off stops by itself before, with all that it learned kept, and says so."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.emulator import Hub
from tests.faults.test_resume import TOLERANCE, require_same_course
from tests.faults.trainings import Ended, Trainings, distance, weights


def require_stopped_at_its_deadline(stopped: Ended, folder: Path) -> int:
    """It said so, kept what it learned as a checkpoint and as its adapter, and ended; the steps that it made."""
    found = stopped.result
    assert "s: stopping\n" in stopped.log
    assert stopped.checkpoints[-1] == found["steps"]
    assert "the same command goes on from there\n" in stopped.log
    assert (found["status"], found["stopped"]) == ("stopped", "deadline")
    assert found["steps"] > 0
    kept = folder / "checkpoints" / f"checkpoint-{found['steps']}"
    assert distance(weights(folder), weights(kept)) == 0
    assert not (folder / "checkpoints" / "done").exists()
    return int(found["steps"])


def test_a_deadline_is_kept(trainings: Trainings, rows: Path, tmp_path: Path) -> None:
    """Another step as long as the last one would end after it; one longer than its patience would be a stall."""
    asked: dict[str, Any] = {"dataset": rows, "max_steps": 1000, "checkpoint_minutes": 1000, "timeout_s": 1_000}
    stopped = trainings.run(tmp_path, **asked, fate={"slow_step": [3, 600]})
    assert require_stopped_at_its_deadline(stopped, tmp_path) == 3


@pytest.mark.slow
def test_a_deadline_of_a_minute_is_kept_and_the_rest_is_done_later(
    trainings: Trainings, rows: Path, tmp_path: Path
) -> None:
    def attempt(timeout_s: int) -> Ended:
        """As the service does it: what has not ended then is killed."""
        training = trainings.start(tmp_path, dataset=rows, max_steps=100_000, timeout_s=timeout_s, checkpoint_minutes=1)
        killer = threading.Timer(timeout_s, training.send, [signal.SIGKILL])
        killer.start()
        try:
            return training.end()
        finally:
            killer.cancel()

    steps = require_stopped_at_its_deadline(attempt(60), tmp_path)
    # It was asked for more than can be done here: the rest is what one more attempt may do, and is then cut off too.
    second = attempt(40)
    assert f"resumed from step {steps}\n" in second.log
    assert second.steps[0] == steps + 1
    assert second.result["steps"] > steps


def test_a_deadline_that_passes_before_the_first_step_costs_nothing_more(
    trainings: Trainings, rows: Path, tmp_path: Path
) -> None:
    ended = trainings.run(tmp_path, dataset=rows, timeout_s=20_000, eval_rows=4, fate={"skip": {"== load": 19_999}})
    # Nobody ends it here: it ends by itself.
    found = ended.result
    assert (found["status"], found["stopped"], found["steps"]) == ("stopped", "deadline", 0)
    assert "== train\n" not in ended.log
    assert "the same command starts over" in ended.log
    assert not (tmp_path / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_before_the_training_loses_nothing(
    trainings: Trainings, rows: Path, tmp_path: Path, number: signal.Signals
) -> None:
    trainings.run(tmp_path, dataset=rows, fate={"signal": {"checkpoint step 2 |": signal.SIGKILL}})
    asked = trainings.run(tmp_path, dataset=rows, fate={"signal": {"== prepare data": number}})
    found = asked.result
    assert (found["status"], found["stopped"], found["steps"]) == ("stopped", "signal", 2)
    assert "== train\n" not in asked.log
    assert "Traceback" not in asked.log
    assert "the same command goes on from there" in asked.log
    assert (tmp_path / "checkpoints" / "checkpoint-2" / "manifest.json").is_file()


@pytest.mark.slow
def test_a_step_that_is_longer_than_a_signal_allows_is_made_anew(
    trainings: Trainings, rows: Path, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {"dataset": rows, "gradient_accumulation": 8, "max_steps": 3, "checkpoint_minutes": 60}
    whole = trainings.run(tmp_path / "whole", **asked)
    # A step takes half a minute of its time.
    fate: dict[str, Any] = {"row_s": 4, "signal_in": [2, 2, signal.SIGTERM]}
    first = trainings.run(tmp_path / "asked", **asked, fate=fate)
    assert "asked to stop: saving\n" in first.log
    assert first.checkpoints == [1]
    assert (first.result["stopped"], first.result["steps"]) == ("signal", 1)
    assert distance(weights(tmp_path / "asked"), weights(tmp_path / "asked" / "checkpoints" / "checkpoint-1")) == 0
    # In the first step of an attempt nobody knows how long one takes.
    fate = {"row_s": 1, "signal_in": [2, 3, signal.SIGTERM]}
    assert trainings.run(tmp_path / "asked", **asked, fate=fate).result["steps"] == 1
    last = trainings.run(tmp_path / "asked", **asked)
    # With dropout: the random numbers are those that the step would have had.
    require_same_course([first, last], whole)
    assert last.result["tokens_seen"] == whole.result["tokens_seen"]
    assert distance(weights(tmp_path / "whole"), weights(tmp_path / "asked")) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("fault", [503, "slow"])
def test_a_push_that_the_hub_does_not_take_in_time_ends_with_the_command_that_does_it(
    script: Path, script_python: str, tiny: Path, rows: Path, tmp_path: Path, fault: int | str
) -> None:
    words = [
        "--model", tiny, "--dataset", rows, "--max-steps", 1000, "--timeout-s", 60, "--output-dir", "out",
        "--output-repo", "tester/m", "--eval-rows", 0, "--max-length", 64, "--device", "cpu", "--trackio-project", "",
        "--batch-size", 1, "--gradient-accumulation", 1,
    ]  # fmt: skip
    with Hub(tmp_path / "hub", python=sys.executable) as hub:
        # After 503 the next try would come too late; in the other no answer comes at all.
        hub.fail_next(fault, route="POST /api/models/tester/m/commit", times=1000, seconds=300, retry_after=60)
        env = os.environ | hub.env() | {"UNSLOTH_COMPILE_DISABLE": "1"}
        # What has not ended then is killed, as the service does it.
        done = subprocess.run(
            [script_python, script, *map(str, words)],
            cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=60,
        )  # fmt: skip
    *_, result, last = done.stdout.strip().splitlines()
    assert done.returncode == 1, done.stdout
    found = json.loads(result.removeprefix("RESULT "))
    assert (found["status"], found["stopped"], found["pushed"]) == ("stopped", "deadline", False)
    assert found["push_error"].startswith("the push to tester/m ")
    assert last.startswith("error: the push to tester/m ")
    assert "this pushes it: hf upload --private" in last
    assert last.endswith(f"{tmp_path / 'out'} .")
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_and_the_same_command_goes_on(
    trainings: Trainings, rows: Path, tmp_path: Path, number: signal.Signals
) -> None:
    whole = trainings.run(tmp_path / "whole", dataset=rows, eval_rows=4)
    asked: dict[str, Any] = {"dataset": rows, "eval_rows": 4, "checkpoint_minutes": 60}
    first = trainings.run(tmp_path / "asked", **asked, fate={"signal": {"step 2/5": number}})
    found = first.result
    assert (found["status"], found["stopped"]) == ("stopped", "signal")
    assert found["eval_loss"] is None
    assert first.checkpoints == [found["steps"]]
    second = trainings.run(tmp_path / "asked", **asked)
    assert second.steps[0] == found["steps"] + 1
    require_same_course([first, second], whole)
    assert second.result["eval_loss_before"] == whole.result["eval_loss_before"]
    assert distance(weights(tmp_path / "whole"), weights(tmp_path / "asked")) <= TOLERANCE
