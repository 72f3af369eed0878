"""A run's last words."""

from __future__ import annotations

from pathlib import Path

import pytest
from parts.checkpoints import Checkpoints
from parts.run import Run

from tests.unit.sample import options


def test_that_it_is_done_can_be_said_with_no_room_to_note_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(options(script="sft_text.py"), {}, tmp_path, Checkpoints(tmp_path / "gone", {}, 1, {}), None)
    run.result = {"stopped": None, "steps": 5}
    assert run.tell() is None
    said = capsys.readouterr().out
    assert 'RESULT {"stopped": null, "steps": 5' in said and "can't be noted" in said


def test_a_job_that_is_stopped_keeps_what_an_earlier_attempt_saved_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, output = tmp_path / "data", tmp_path / "elsewhere"
    for path in (data / "x", output / "adapter_config.json", output / "tokenizer.json", output / "thesis.txt"):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    monkeypatch.setenv("JOB_ID", "j1")
    monkeypatch.setenv("LAUNCH_DATA_DIR", str(data))
    monkeypatch.setenv("LAUNCH_ARTIFACTS", "hf://buckets/me/b/x")
    made = Checkpoints(output / "checkpoints", {}, 2, {})
    made.at(4).mkdir(parents=True)
    (made.at(4) / "manifest.json").touch()
    args = options("--output-dir", str(output), "--output-repo", "me/m", script="sft_text.py")
    assert Run(args, {}, output, made, "me/m").cut_off() == 0
    assert {path.name for path in (data / "output").iterdir()} == {"adapter_config.json", "tokenizer.json"}
    said = capsys.readouterr().out
    assert "--include adapter_config.json --include tokenizer.json me/m" in said
    assert said.splitlines()[-1].startswith('RESULT {"status": "stopped"')
    assert "`launch resume me/j1` goes on from there" in said
