"""Where a GPU's memory runs out, the same rows a step are trained on in smaller batches."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.faults.trainings import Trainings, distance, weights

FIRST = re.compile(r"^out of memory: batch 4 -> 2, accumulation 1 -> 2 \(the GPU held .* planned\)$", re.MULTILINE)
# Sums of the same numbers in another order, through a few steps of Adam.
CLOSE = 2e-3


@pytest.mark.parametrize(
    "moment", [pytest.param({}, marks=pytest.mark.slow), {"backward": True}], ids=["forward", "backward"]
)
def test_memory_that_runs_out_halves_the_batch_from_the_last_checkpoint(
    trainings: Trainings, rows: Path, tmp_path: Path, moment: dict[str, bool]
) -> None:
    found = trainings.run(
        tmp_path,
        dataset=rows,
        batch_size=4,
        gradient_accumulation=1,
        max_steps=3,
        fate={"most_rows": 1, "from_step": 1} | moment,
        eval_rows=4,
    )
    assert len(FIRST.findall(found.log)) == 1
    assert found.log.count("out of memory: batch 2 -> 1, accumulation 2 -> 4") == 1
    # What was learned before is neither lost nor done again.
    assert found.log.count("resumed from step 1\n") == 2
    assert found.steps == [1, 2, 3]
    assert (found.result["batch_size"], found.result["gradient_accumulation"]) == (1, 4)
    assert found.result["eval_loss"] is not None
    assert found.result["status"] == "done"


@pytest.mark.slow
def test_what_is_learned_is_the_same(trainings: Trainings, rows: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"dataset": rows, "lora_dropout": 0, "num_train_epochs": 1, "max_steps": None}
    whole = trainings.run(tmp_path / "whole", **asked, batch_size=6, gradient_accumulation=1)
    split = trainings.run(tmp_path / "split", **asked, batch_size=6, gradient_accumulation=1, fate={"most_rows": 3})
    assert split.steps == whole.steps
    assert split.result["tokens_trained"] == whole.result["tokens_trained"]
    assert (split.result["batch_size"], split.result["gradient_accumulation"]) == (3, 2)
    assert distance(weights(tmp_path / "whole"), weights(tmp_path / "split")) < CLOSE
    # The next attempt would not try what did not fit.
    (tmp_path / "split" / "checkpoints" / "done").unlink()
    again = trainings.run(tmp_path / "split", **asked, batch_size=6, gradient_accumulation=1, fate={"most_rows": 3})
    assert "out of memory" not in again.log
    assert again.result["batch_size"] == 3


@pytest.mark.slow
def test_memory_for_less_than_a_row_is_an_error_that_says_what_to_change(
    trainings: Trainings, rows: Path, tmp_path: Path
) -> None:
    # No row has so few rows: every step fails.
    found = trainings.run(tmp_path, dataset=rows, fate={"most_rows": -1})
    assert found.code == 1
    last = found.log.strip().splitlines()[-1]
    assert last.startswith("error: out of memory in training with one row at a time")
    assert "GiB were planned" in last
    assert "--max-length" in last
    assert "Traceback" not in found.log
