"""The scripts' checkpoints as files, and their clock: a torn checkpoint is never whole, another run's is refused."""

from __future__ import annotations

import json
import math
import shutil
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.unit.sample import load_script


@pytest.fixture(scope="module", params=["sft_text.py", "sft_vlm.py"])
def script(request: pytest.FixtureRequest) -> ModuleType:
    return load_script(request.param)


def asked(script: ModuleType, folder: Path, *args: str) -> Namespace:
    found: Namespace = script.parse_args(
        ["--output-dir", str(folder), "--batch-size", "8", "--gradient-accumulation", "2", *args]
    )
    return found


def write(script: ModuleType, folder: Path, step: int, **changes: Any) -> Path:
    """A whole checkpoint of that step, of a run with the flags of `asked`."""
    fresh, path = folder / "checkpoints" / ".new" / "checkpoint-1", folder / "checkpoints" / f"step-{step}"
    fresh.mkdir(parents=True)
    (fresh / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 8)
    (fresh / "optimizer.pt").write_bytes(b"moments" * 100)
    record = {
        "step": step, "batch_size": 8, "gradient_accumulation": 2, "known": {},
        "settings": script.settings(asked(script, folder)),
    }  # fmt: skip
    size = script.seal(fresh, path, record | changes)
    assert size > 2048 + 700
    assert not fresh.exists()
    return path


def test_the_newest_whole_checkpoint_is_found(script: ModuleType, tmp_path: Path) -> None:
    write(script, tmp_path, 9)
    write(script, tmp_path, 10)
    folder, found = script.open_checkpoints(asked(script, tmp_path))
    assert folder == tmp_path / "checkpoints"
    assert found["step"] == 10


def no_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def half_manifest(path: Path) -> None:
    content = (path / "manifest.json").read_bytes()
    (path / "manifest.json").write_bytes(content[: len(content) // 2])


def cut(path: Path) -> None:
    (path / "optimizer.pt").write_bytes((path / "optimizer.pt").read_bytes()[:-1])


def changed(path: Path) -> None:
    content = bytearray((path / "optimizer.pt").read_bytes())
    content[50] ^= 1
    (path / "optimizer.pt").write_bytes(content)


def missing(path: Path) -> None:
    (path / "adapter_model.safetensors").unlink()


def empty(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


@pytest.mark.parametrize("tear", [no_manifest, half_manifest, cut, changed, missing, empty])
def test_a_torn_checkpoint_is_left_out(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], tear: Callable[[Path], None]
) -> None:
    write(script, tmp_path, 4)
    tear(write(script, tmp_path, 6))
    (tmp_path / "checkpoints" / ".new" / "checkpoint-8").mkdir(parents=True)
    folder, found = script.open_checkpoints(asked(script, tmp_path))
    assert found["step"] == 4
    assert "the checkpoint of step 6 is not whole and left out" in capsys.readouterr().out
    assert not (folder / ".new").exists()


def test_a_folder_of_another_name_is_no_checkpoint(script: ModuleType, tmp_path: Path) -> None:
    shutil.move(write(script, tmp_path, 4), tmp_path / "checkpoints" / "step-x")
    assert script.open_checkpoints(asked(script, tmp_path))[1] is None


@pytest.mark.parametrize(
    ("args", "flag"),
    [
        (["--model", "other/model"], "--model is other/model here"),
        (["--dataset", "other/rows"], "--dataset is other/rows here"),
        (["--seed", "9"], "--seed is 9 here"),
        (["--max-length", "99"], "--max-length is 99 here"),
        (["--max-steps", "99"], "--max-steps is 99 here"),
        (["--learning-rate", "0.5"], "--learning-rate is 0.5 here"),
        (["--batch-size", "4"], "--batch-size times --gradient-accumulation is 8 here and 16 in"),
    ],
)
def test_a_run_with_other_settings_is_refused(script: ModuleType, tmp_path: Path, args: list[str], flag: str) -> None:
    write(script, tmp_path, 4)
    with pytest.raises(script.UserError) as error:
        script.open_checkpoints(asked(script, tmp_path, *args))
    assert flag in error.value.paragraph
    assert "in the checkpoint of step 4" in error.value.paragraph
    assert "--resume never" in error.value.paragraph
    assert error.value.status == 2


@pytest.mark.parametrize(
    "args", [["--logging-steps", "3"], ["--timeout-s", "99"], ["--checkpoint-minutes", "3"], ["--run-name", "other"]]
)
def test_what_is_not_learned_from_may_change(script: ModuleType, tmp_path: Path, args: list[str]) -> None:
    write(script, tmp_path, 4)
    assert script.open_checkpoints(asked(script, tmp_path, *args))[1]["step"] == 4


def test_a_smaller_batch_is_taken_over_and_a_larger_one_is_not(script: ModuleType, tmp_path: Path) -> None:
    write(script, tmp_path, 4, batch_size=2, gradient_accumulation=8)
    args = asked(script, tmp_path)
    script.open_checkpoints(args)
    assert (args.batch_size, args.gradient_accumulation) == (2, 8)
    args = asked(script, tmp_path, "--batch-size", "1", "--gradient-accumulation", "16")
    script.open_checkpoints(args)
    assert (args.batch_size, args.gradient_accumulation) == (1, 16)


def test_attempts_are_counted_and_a_finished_run_begins_anew(script: ModuleType, tmp_path: Path) -> None:
    for attempt in (1, 2):
        args = asked(script, tmp_path)
        folder, _ = script.open_checkpoints(args)
        assert args.attempt == attempt
    write(script, tmp_path, 4)
    (folder / "done").touch()
    args = asked(script, tmp_path)
    assert script.open_checkpoints(args)[1] is None
    assert args.attempt == 1
    write(script, tmp_path, 4)
    assert script.open_checkpoints(asked(script, tmp_path, "--resume", "never"))[1] is None
    assert not (folder / "step-4").exists()


def test_checkpoints_of_a_job_lie_beside_its_output(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAUNCH_DATA_DIR", str(tmp_path))
    args = script.parse_args([])
    assert script.output_folder(args) == tmp_path / "output"
    assert script.checkpoint_folder(args) == tmp_path / "checkpoints"
    monkeypatch.delenv("LAUNCH_DATA_DIR")
    assert script.checkpoint_folder(args) == Path("outputs", args.run_name, "checkpoints")


def test_the_timeout_counts_from_the_beginning(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert script.deadline(0) == math.inf
    assert script.deadline(60) == script.STARTED + 60
    # The first process of this machine is older than a minute's Job can be, and younger than a year's.
    monkeypatch.setenv("JOB_ID", "1")
    assert script.deadline(1) == script.STARTED + 1
    year = 365 * 86400
    assert time.monotonic() < script.deadline(year) <= script.STARTED + year


def test_a_second_attempt_has_what_the_first_left_of_the_timeout(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert script.spent_before(tmp_path, 3600, 3600) == 0
    monkeypatch.setenv("JOB_ID", "job")
    assert script.spent_before(tmp_path, 3600, 3600) == 0
    began = next(tmp_path.glob("began-*"))
    began.write_text(str(float(began.read_text()) - 600))
    assert script.spent_before(tmp_path, 3600, 3600) == pytest.approx(600, abs=5)
    # A Job that resumes this one has a timeout of its own.
    monkeypatch.setenv("JOB_ID", "another")
    assert script.spent_before(tmp_path, 3600, 3600) == 0


def test_only_a_job_has_the_timeout_that_was_planned(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert script.parse_args([]).timeout_s == 0
    assert script.parse_args(["--timeout-s", "70"]).timeout_s == 70
    monkeypatch.setenv("JOB_ID", "1")
    assert script.parse_args([]).timeout_s == script.CHOSEN["timeout_s"] > 0


def guard(script: ModuleType, timeout_s: float, left_s: float, **state: float) -> Any:
    """What decides when to stop, without a trainer around it."""
    made = script.Guard()
    made.asked, made.deadline = Namespace(timeout_s=timeout_s), time.monotonic() + left_s
    made.checkpoint_s, made.push_s = 2.0, 0.0
    for name, value in state.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("timeout_s", "left_s", "state", "stops"),
    [
        (3600, 3600, {}, False),
        (3600, 67, {}, False),
        (3600, 65, {}, True),
        (3600, 67, {"longest_step_s": 30.0}, True),
        (3600, 67, {"push_s": 60.0}, True),
        (60, 13, {}, False),
        (60, 11, {}, True),
        (60, -5, {}, True),
    ],
)
def test_it_stops_while_there_is_time_to_save(
    script: ModuleType, timeout_s: float, left_s: float, state: dict[str, float], stops: bool
) -> None:
    made = guard(script, timeout_s, left_s, **state)
    assert made.must_stop() is stops
    assert made.stopped == ("deadline" if stops else None)


def test_a_signal_stops_it_at_once_and_only_a_quick_push_follows(
    script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    made = guard(script, 0, math.inf)
    made.on_signal(script.signal.SIGTERM, None)
    made.on_signal(script.signal.SIGTERM, None)
    assert made.must_stop()
    assert made.must_stop()
    assert made.stopped == "signal"
    assert capsys.readouterr().out == "asked to stop: saving\n"
    assert 24 < made.left_s() <= 25
    assert made.can_push()
    made.push_s = 60.0
    assert not made.can_push()


def test_a_second_interrupt_ends_it(script: ModuleType) -> None:
    made = guard(script, 0, math.inf)
    made.on_signal(script.signal.SIGINT, None)
    made.on_signal(script.signal.SIGINT, None)  # uv passes on what the terminal has sent already
    made.signalled -= 2
    with pytest.raises(KeyboardInterrupt):
        made.on_signal(script.signal.SIGINT, None)


@pytest.mark.parametrize(("batch", "smaller", "accumulation"), [(8, 4, 2), (6, 3, 2), (5, 1, 5), (9, 3, 3), (2, 1, 2)])
def test_halving_keeps_the_rows_of_a_step(
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    batch: int,
    smaller: int,
    accumulation: int,
) -> None:
    monkeypatch.setattr(script, "free_memory", lambda: 21.34)
    made = script.Guard()
    nothing = Namespace(zero_grad=lambda: None, free_memory=lambda: None)
    made.model = made.accelerator = nothing
    made.args = Namespace(per_device_train_batch_size=batch, gradient_accumulation_steps=1)
    made.asked = Namespace()
    made.halve()
    assert (made.args.per_device_train_batch_size, made.args.gradient_accumulation_steps) == (smaller, accumulation)
    assert smaller * accumulation == batch
    assert (made.asked.batch_size, made.asked.gradient_accumulation) == (smaller, accumulation)
    said = capsys.readouterr().out
    assert said.startswith(f"out of memory: batch {batch} -> {smaller}, accumulation 1 -> {accumulation} (the GPU held")
    assert "21.3 GiB at most" in said
    made.args.per_device_train_batch_size = 1
    with pytest.raises(script.UserError, match="one row at a time"):
        made.halve()


def test_a_record_is_json(script: ModuleType, tmp_path: Path) -> None:
    assert json.loads(json.dumps(script.settings(asked(script, tmp_path)))) == script.settings(asked(script, tmp_path))
