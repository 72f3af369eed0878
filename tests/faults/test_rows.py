"""Rows that can't be trained on end the real script with one line and status 2, and never with a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.faults.trainings import Trainings

ROW = {"prompt": "Hi", "completion": "Hello"}
PART = [{"role": "user", "content": ["Hi"]}, {"role": "assistant", "content": "Hello"}]
NUMBER = [{"role": "user", "content": [{"type": "text", "text": 5}]}, {"role": "assistant", "content": "Hello"}]


@pytest.mark.parametrize(
    ("lines", "stream", "says"),
    [
        ([ROW, {"prompt": "Hi", "completion": 42}], False, "row 1: completion is"),
        pytest.param([{"messages": PART}], False, "row 0: a part of the user's message", marks=pytest.mark.slow),
        pytest.param([{"messages": NUMBER}], False, "row 0: a part of the user's message", marks=pytest.mark.slow),
        pytest.param([{"text": "Hi"}, {"text": 5}], False, "row 1: text is", marks=pytest.mark.slow),
        pytest.param([{"text": "Hi"}, {"text": None}], False, "row 1: text is empty", marks=pytest.mark.slow),
        pytest.param([], False, "it is empty", marks=pytest.mark.slow),
        pytest.param([ROW, None], False, "line 2 is not JSON", marks=pytest.mark.slow),
        ([ROW, None], True, "line 2 is not JSON"),
    ],
)
def test_a_row_that_is_none_is_named(
    trainings: Trainings, tmp_path: Path, lines: list[object], stream: bool, says: str
) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" if row else '{"prompt": "H\n' for row in lines), encoding="utf-8")
    streamed = "--streaming" if stream else "--no-streaming"
    ended = trainings.run(tmp_path / "out", streamed, dataset=data)
    assert ended.code == 2, ended.log[-2000:]
    assert "Traceback" not in ended.log
    assert ended.log.splitlines()[-1].startswith("error: ")
    assert says in ended.log.splitlines()[-1]


def test_the_next_attempt_of_a_job_ends_at_once(trainings: Trainings, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps(ROW | {"completion": 42}) + "\n", encoding="utf-8")
    env = {"JOB_ID": "job", "LAUNCH_DATA_DIR": str(tmp_path / "volume")}
    (tmp_path / "volume").mkdir()
    first, second = (trainings.run(None, dataset=data, env=env) for _ in range(2))
    assert (first.code, second.code) == (2, 2)
    assert "== load model" in first.log
    assert "==" not in second.log
    assert second.log.splitlines()[-1] == first.log.splitlines()[-1]


@pytest.mark.slow
def test_a_table_is_read_as_it_is_written(trainings: Trainings, tmp_path: Path) -> None:
    data = tmp_path / "rows.csv"
    data.write_text("question,answer\nHow many?,007\nWhich?,NA\nWhen?,2026-01-02\n", encoding="utf-8")
    ended = trainings.run(tmp_path / "out", dataset=data, max_steps=1)
    assert ended.code == 0, ended.log[-2000:]
    data.write_text("question,answer\nHow many?,1,000\n", encoding="utf-8")
    ended = trainings.run(tmp_path / "other", dataset=data, max_steps=1)
    assert ended.code == 2
    assert "line 2 has 3 cells for 2 columns" in ended.log


@pytest.mark.slow
def test_rows_that_are_cut_before_their_answer_are_counted_out(trainings: Trainings, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    rows = [ROW, ROW | {"prompt": "word " * 200}, ROW]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    ended = trainings.run(tmp_path / "out", dataset=data, max_steps=2)
    assert ended.result["rows"] == 2
    assert "nothing left to learn once they are cut: 1 rows" in ended.log


def test_a_column_called_row_number_is_the_datasets_own(trainings: Trainings, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text((json.dumps(ROW | {"row_number": "seventh"}) + "\n") * 4, encoding="utf-8")
    ended = trainings.run(tmp_path / "out", dataset=data, max_steps=1)
    assert ended.code == 0, ended.log[-2000:]
