"""A run that would be cut off stops by itself before, with all that it learned kept, and says so."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.faults.test_resume import TOLERANCE, require_same_course
from tests.faults.trainings import Trainings, distance, weights


def test_a_deadline_is_kept(trainings: Trainings, rows: Path, tmp_path: Path) -> None:
    _reach_deadline(trainings, rows, tmp_path, 24)


@pytest.mark.slow
def test_a_deadline_of_a_minute_is_kept_and_the_rest_is_done_later(
    trainings: Trainings, rows: Path, tmp_path: Path
) -> None:
    steps = _reach_deadline(trainings, rows, tmp_path, 60)
    # It was asked for more than can be done here: the rest is what one more attempt may do, and is then cut off too.
    second = trainings.run(tmp_path, dataset=rows, max_steps=1000, timeout_s=40)
    assert f"resumed from step {steps}\n" in second.log
    assert second.steps[0] == steps + 1
    assert second.result["steps"] > steps


def _reach_deadline(trainings: Trainings, rows: Path, folder: Path, timeout_s: int) -> int:
    began = time.monotonic()
    stopped = trainings.run(folder, dataset=rows, max_steps=1000, timeout_s=timeout_s, checkpoint_minutes=1)
    took = time.monotonic() - began
    found = stopped.result
    assert timeout_s / 3 < took < timeout_s
    assert f"s: stopping\ncheckpoint step {found['steps']} |" in stopped.log
    assert "the same command goes on from there\n" in stopped.log
    assert (found["status"], found["stopped"]) == ("stopped", "deadline")
    assert 0 < found["steps"] < 1000
    kept = folder / "checkpoints" / f"step-{found['steps']}"
    assert distance(weights(folder), weights(kept)) == 0
    assert not (folder / "checkpoints" / "done").exists()
    return int(found["steps"])


@pytest.mark.slow
def test_a_deadline_that_passes_before_the_first_step_costs_nothing_more(
    trainings: Trainings, rows: Path, tmp_path: Path
) -> None:
    found = trainings.run(tmp_path, dataset=rows, timeout_s=1, eval_rows=4).result
    assert (found["status"], found["stopped"], found["steps"]) == ("stopped", "deadline", 0)
    assert not (tmp_path / "adapter_model.safetensors").exists()
    assert trainings.run(tmp_path, dataset=rows, eval_rows=4).result["status"] == "done"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_and_the_same_command_goes_on(
    trainings: Trainings, rows: Path, tmp_path: Path, number: signal.Signals
) -> None:
    whole = trainings.run(tmp_path / "whole", dataset=rows, eval_rows=4)
    training = trainings.start(tmp_path / "asked", dataset=rows, eval_rows=4, checkpoint_minutes=60)
    training.wait_for("\nstep 2/5")
    training.send(number)
    asked = time.monotonic()
    first = training.end()
    assert time.monotonic() - asked < 10
    found = first.result
    assert (found["status"], found["stopped"]) == ("stopped", "signal")
    assert found["eval_loss"] is None
    assert first.checkpoints == [found["steps"]]
    second = trainings.run(tmp_path / "asked", dataset=rows, eval_rows=4, checkpoint_minutes=60)
    assert second.steps[0] == found["steps"] + 1
    require_same_course([first, second], whole)
    assert second.result["eval_loss_before"] == whole.result["eval_loss_before"]
    assert distance(weights(tmp_path / "whole"), weights(tmp_path / "asked")) <= TOLERANCE
