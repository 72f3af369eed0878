"""A training that is killed goes on from its newest whole checkpoint, as if nothing had happened."""

from __future__ import annotations

import json
import random
import signal
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest

from tests.faults.trainings import Ended, Trainings, distance, weights

# The same sums in the same order on the same machine: what is left is the last bit.
TOLERANCE = 1e-6


def require_each_step_once(attempts: list[Ended], last: int) -> None:
    """What an attempt learned after its last checkpoint is lost with it: what is kept of all is every step, once."""
    learned: list[int] = []
    for attempt, after in zip_longest(attempts, attempts[1:]):
        kept = last if after is None else after.resumed_from
        # It may have been killed before it could say that a checkpoint is whole.
        assert kept in {max([attempt.resumed_from, *attempt.checkpoints]), *attempt.steps[-1:]}
        learned += [step for step in attempt.steps if step <= kept]
    assert learned == list(range(1, last + 1))


def require_same_course(attempts: list[Ended], uninterrupted: Ended) -> None:
    """Every step that was logged, by whichever attempt, has the loss and learning rate of the run without a fault."""
    for attempt in attempts:
        for step, logged in attempt.losses.items():
            assert logged == uninterrupted.losses[step], step


def test_a_killed_run_goes_on_from_its_newest_whole_checkpoint(
    trainings: Trainings, rows: Path, tmp_path: Path
) -> None:
    whole = trainings.run(tmp_path / "whole", dataset=rows, eval_rows=4)
    death = {"signal": {"checkpoint step 3 |": signal.SIGKILL}}
    first = trainings.run(tmp_path / "killed", dataset=rows, eval_rows=4, fate=death)
    assert first.code == -signal.SIGKILL
    folder = tmp_path / "killed" / "checkpoints"
    newest = max(first.checkpoints)
    # The newest is torn, and another was being written.
    optimizer = folder / f"checkpoint-{newest}" / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:-1000])
    (folder / "checkpoint-9").mkdir()
    second = trainings.run(tmp_path / "killed", dataset=rows, eval_rows=4)

    assert f"the checkpoint of step {newest} is not whole" in second.log
    assert f"resumed from step {newest - 1}\n" in second.log
    assert second.steps == list(range(newest, 6))
    require_same_course([first, second], whole)
    assert distance(weights(tmp_path / "whole"), weights(tmp_path / "killed")) <= TOLERANCE
    found = second.result
    assert (found["status"], found["steps"], found["attempt"]) == ("done", 5, 2)
    assert found["resumed_from"] == newest - 1
    for name in ("tokens_seen", "tokens_trained", "eval_loss_before", "eval_loss", "train_loss"):
        assert found[name] == whole.result[name], name
    assert "eval step 0/" not in second.log
    assert sorted(path.name for path in folder.iterdir()) == ["attempt", "checkpoint-4", "checkpoint-5", "done"]


def test_an_attempt_of_a_job_goes_on_from_what_the_one_before_it_left_in_data(
    trainings: Trainings, rows: Path, tmp_path: Path
) -> None:
    # Each attempt has a machine of its own, and the volume is all that it finds again.
    job = {"LAUNCH_DATA_DIR": str(tmp_path), "JOB_ID": "7"}
    death = {"signal": {"checkpoint step 2 |": signal.SIGKILL}}
    first = trainings.run(None, dataset=rows, max_steps=3, env=job, fate=death)
    assert first.code == -signal.SIGKILL
    assert (tmp_path / "checkpoints" / "checkpoint-2" / "manifest.json").is_file()
    second = trainings.run(None, dataset=rows, max_steps=3, env=job)
    assert (second.resumed_from, second.steps, second.result["attempt"]) == (2, [3], 2)
    assert (tmp_path / "output" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(("passed_s", "kept"), [(590, [4]), (610, [3, 4])])
def test_a_checkpoint_is_made_every_ten_minutes_and_at_the_end(
    trainings: Trainings, rows: Path, tmp_path: Path, passed_s: int, kept: list[int]
) -> None:
    waits = {"skip": {"step 2/4 |": passed_s}}
    found = trainings.run(tmp_path, dataset=rows, max_steps=4, checkpoint_minutes=None, fate=waits)
    assert found.checkpoints == kept


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        {"max_steps": 24},
        {"num_train_epochs": 2, "max_steps": None},
        # Seven and a half steps a pass.
        {"max_steps": 24, "batch_size": 4, "gradient_accumulation": 1, "streaming": True},
    ],
    ids=["steps", "epochs", "streamed"],
)
def test_ten_kills_change_nothing(trainings: Trainings, rows: Path, tmp_path: Path, how: dict[str, Any]) -> None:
    asked = {name: value for name, value in how.items() if name != "streaming"} | {"dataset": rows}
    flags = ["--streaming"] if "streaming" in how else []
    whole = trainings.run(tmp_path / "whole", *flags, **asked)
    moments, attempts = random.Random(5), list[Ended]()
    for _ in range(10):
        training = trainings.start(tmp_path / "killed", *flags, **asked)
        training.wait_for("== train\n")
        training.kill_after(moments.uniform(0.3, 2.5))
        attempts.append(training.end())
        assert attempts[-1].code == -signal.SIGKILL
    last = trainings.run(tmp_path / "killed", *flags, **asked)
    attempts.append(last)
    require_each_step_once(attempts, last=whole.result["steps"])
    require_same_course(attempts, whole)
    assert last.result["attempt"] == 11
    for name in ("status", "steps", "tokens_seen", "tokens_trained", "train_loss"):
        assert last.result[name] == whole.result[name], name
    assert distance(weights(tmp_path / "whole"), weights(tmp_path / "killed")) <= TOLERANCE


@pytest.mark.slow
def test_what_a_job_has_done_is_not_done_again(trainings: Trainings, rows: Path, tmp_path: Path) -> None:
    job = {"LAUNCH_DATA_DIR": str(tmp_path), "JOB_ID": "1"}
    first = trainings.run(None, dataset=rows, max_steps=2, env=job)
    assert first.result["steps"] == 2
    # The machine went down before its end was seen: another attempt is made of the same.
    again = trainings.run(None, dataset=rows, max_steps=2, env=job)
    assert again.result == first.result
    assert "== prepare data" not in again.log


@pytest.mark.slow
def test_exports_of_a_run_that_had_trained_to_its_end_are_made(
    trainings: Trainings, rows: Path, tmp_path: Path
) -> None:
    assert trainings.run(tmp_path, dataset=rows, max_steps=2).result["steps"] == 2
    (tmp_path / "checkpoints" / "done").unlink()
    again = trainings.run(tmp_path, dataset=rows, max_steps=2, merge="16bit")
    assert again.steps == []
    [export] = again.result["exports"]
    assert export["error"] is None
    assert (tmp_path / "merged" / "model.safetensors").is_file()


@pytest.mark.slow
def test_what_was_done_is_not_gone_on_with(trainings: Trainings, rows: Path, tmp_path: Path) -> None:
    assert trainings.run(tmp_path, dataset=rows, max_steps=2).result["attempt"] == 1
    again = trainings.run(tmp_path, dataset=rows, max_steps=3)
    assert again.steps == [1, 2, 3]
    assert (again.result["attempt"], again.result["resumed_from"]) == (1, None)


@pytest.mark.slow
def test_a_run_killed_after_its_last_step_only_saves(trainings: Trainings, rows: Path, tmp_path: Path) -> None:
    trainings.run(tmp_path, dataset=rows, max_steps=3, fate={"signal": {"checkpoint step 3 |": signal.SIGKILL}})
    (tmp_path / "checkpoints" / "done").unlink(missing_ok=True)
    again = trainings.run(tmp_path, dataset=rows, max_steps=3)
    assert again.steps == []
    assert (again.result["status"], again.result["steps"]) == ("done", 3)
    state = json.loads((tmp_path / "checkpoints" / "checkpoint-3" / "trainer_state.json").read_text(encoding="utf-8"))
    assert state["global_step"] == 3
    assert distance(weights(tmp_path), weights(tmp_path / "checkpoints" / "checkpoint-3")) == 0
