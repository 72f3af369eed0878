"""The scripts' checkpoints as files, and their clock: a torn checkpoint is never whole, another run's is refused."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
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
    (folder / "done").write_text('{"status": "done"}', encoding="utf-8")
    args = asked(script, tmp_path)
    assert script.result_before(args) is None
    assert script.open_checkpoints(args)[1] is None
    assert args.attempt == 1
    write(script, tmp_path, 4)
    assert script.open_checkpoints(asked(script, tmp_path, "--resume", "never"))[1] is None
    assert not (folder / "step-4").exists()


@pytest.mark.parametrize(
    ("left", "again"),
    [('{"status": "done"}', False), ('{"status": "do', True), ('{"status": "stopped"}', True), ("", True)],
)
def test_a_job_that_was_done_is_not_trained_again(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str, again: bool
) -> None:
    monkeypatch.setenv("LAUNCH_DATA_DIR", str(tmp_path))
    args = script.parse_args(["--batch-size", "8", "--gradient-accumulation", "2"])
    assert script.result_before(args) is None
    write(script, tmp_path, 4, settings=script.settings(args))
    (tmp_path / "checkpoints" / "done").write_text(left, encoding="utf-8")
    assert script.result_before(args) == (None if again else left)
    # Torn, it costs the end of the run once more, and not the training.
    assert script.open_checkpoints(args)[1]["step"] == 4
    args.resume = "never"
    assert script.result_before(args) is None


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
    assert script.deadline(60) == pytest.approx(script.STARTED + 60)
    # The first process of this machine is older than a minute's Job can be, and younger than a year's.
    monkeypatch.setenv("JOB_ID", "1")
    assert script.deadline(1) == pytest.approx(script.STARTED + 1)
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


@pytest.fixture
def clock(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script's clock, not started."""
    found = script.Clock()
    monkeypatch.setattr(script, "CLOCK", found)
    return found


def guard(script: ModuleType, timeout_s: float, **state: float) -> Any:
    """What decides when to stop, without a trainer around it."""
    made = script.Guard()
    made.asked = Namespace(timeout_s=timeout_s)
    made.checkpoint_s, made.push_s, made.step_began = 2.0, 0.0, time.monotonic()
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
    script: ModuleType, clock: Any, timeout_s: float, left_s: float, state: dict[str, float], stops: bool
) -> None:
    made = guard(script, timeout_s, **state)
    clock.deadline = time.monotonic() + left_s
    assert made.must_stop() is stops
    assert made.stopped == ("deadline" if stops else None)


def test_a_signal_stops_it_at_once_and_only_a_quick_push_follows(
    script: ModuleType, clock: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    made = guard(script, 0)
    clock.on_signal(signal.SIGTERM, None)
    clock.on_signal(signal.SIGTERM, None)
    assert made.must_stop()
    assert made.must_stop()
    assert made.stopped == "signal"
    assert capsys.readouterr().out == "asked to stop: saving\n"
    assert 24 < clock.left_s() <= 25
    assert made.can_push()
    made.push_s = 60.0
    assert not made.can_push()


@pytest.mark.parametrize(
    ("longest_s", "begun_s", "since_s", "leaves"),
    [
        (1.0, 0.0, 0.0, False),  # it ends in time
        (40.0, 0.0, 0.0, True),
        (40.0, 35.0, 0.0, False),  # nearly at its end
        (10.0, 0.0, 12.0, True),  # the signal came long ago
        (0.0, 0.0, 0.0, True),  # nobody knows how long one takes
    ],
)
def test_a_step_that_would_not_end_in_time_is_left(
    script: ModuleType, clock: Any, longest_s: float, begun_s: float, since_s: float, leaves: bool
) -> None:
    made = guard(script, 0, longest_step_s=longest_s, step_began=time.monotonic() - begun_s)
    assert made.must_leave_step() is False
    clock.signalled = time.monotonic() - since_s
    assert made.must_leave_step() is leaves


def test_a_second_interrupt_ends_it(clock: Any) -> None:
    clock.on_signal(signal.SIGINT, None)
    clock.on_signal(signal.SIGINT, None)  # uv passes on what the terminal has sent already
    clock.signalled -= 2
    with pytest.raises(KeyboardInterrupt):
        clock.on_signal(signal.SIGINT, None)


# A library that does not return, in a process of its own: the clock's thread ends it.
STUCK = """
import runpy, sys, threading, time
script = runpy.run_path(sys.argv[1], run_name="stuck")
clock = script["Clock"]()
clock.start(time.monotonic() + float(sys.argv[2]))
def last_words():
    print("last words", flush=True)
    return 7
with clock.or_else(last_words, at_once=sys.argv[3] == "at once"):
    print("stuck", flush=True)
    time.sleep(float(sys.argv[4]))
print("on time", flush=True)
"""


def stuck(script: ModuleType, left_s: float, how: str, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", STUCK, str(script.__file__), str(left_s), how, str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_what_does_not_return_in_time_is_ended_with_last_words(script: ModuleType) -> None:
    with stuck(script, 5.5, "", 60) as late, stuck(script, 60, "", 0) as early:
        assert late.stdout and early.stdout
        assert (late.stdout.read(), late.wait(30)) == ("stuck\nlast words\n", 7)
        assert (early.stdout.read(), early.wait(30)) == ("stuck\non time\n", 0)


def test_before_the_training_a_signal_is_enough(script: ModuleType) -> None:
    with stuck(script, math.inf, "at once", 60) as asked:
        assert asked.stdout
        assert asked.stdout.readline() == "stuck\n"
        asked.send_signal(signal.SIGTERM)
        assert (asked.stdout.read(), asked.wait(30)) == ("last words\n", 7)


@pytest.mark.parametrize(
    ("said", "is_memory"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB.", True),
        ("CUDA error: out of memory", True),
        ("CUDA driver error: out of memory", True),
        ("Triton Error [CUDA]: out of memory", True),
        ("CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("CUDA error: an illegal memory access was encountered", False),
    ],
)
def test_memory_that_runs_out_has_many_names(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, said: str, is_memory: bool
) -> None:
    # torch is not of the launcher's environment; of it only the error's class is asked for.
    monkeypatch.setitem(sys.modules, "torch", Namespace(OutOfMemoryError=MemoryError))
    assert script.out_of_memory(RuntimeError(said)) is is_memory


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
