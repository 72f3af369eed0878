"""What keeps the work from being lost: when a run stops, leaves a step, begins again, and ends where it stalls."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from parts import guard as part
from parts.checkpoints import Checkpoints
from parts.clock import Clock
from parts.guard import Careful, Guard
from parts.say import UserError

TEMPLATES = Path(__file__).parents[3] / "templates"


class Weight:
    """A parameter of four numbers."""

    requires_grad = True

    def __init__(self, is_number: bool = True) -> None:
        self.is_number = is_number

    def numel(self) -> int:
        return 4

    def element_size(self) -> int:
        return 4

    def isfinite(self) -> Any:
        return Namespace(all=lambda: self.is_number)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The script's clock, not started."""
    found = Clock()
    monkeypatch.setattr(part, "CLOCK", found)
    return found


def guard(folder: Path, timeout_s: float = 0, **state: Any) -> Guard:
    """One around a trainer of which there is as much as is asked for."""
    args = Namespace(timeout_s=timeout_s, checkpoint_minutes=1, seed=1, batch_size=1, gradient_accumulation=1)
    trainer = Namespace(
        model=Namespace(parameters=lambda: [Weight()]), state=Namespace(global_step=0, max_steps=10),
        tokens_seen=0, tokens_trained=0, largest_batch=0,
    )  # fmt: skip
    planned = {"compile_s": 0, "peak_gib": 20.0}
    run = Namespace(
        args=args, planned=planned, checkpoints=Checkpoints(folder, {}, 1, {}), output_repo=None, tracker=None
    )
    made = Guard(run, trainer, None, [], str)
    made.checkpoint_s = 2.0
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
    clock: Clock, tmp_path: Path, timeout_s: float, left_s: float, state: dict[str, float], stops: bool
) -> None:
    made = guard(tmp_path, timeout_s, **state)
    clock.deadline = time.monotonic() + left_s
    control = Namespace(should_training_stop=False, should_evaluate=True)
    made.step_began = time.monotonic()
    made.on_step_end(None, Namespace(global_step=9), control)
    assert control.should_training_stop is stops
    assert control.should_evaluate is not stops
    assert made.stopped == ("deadline" if stops else None)


def test_a_signal_stops_it_at_once(clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = guard(tmp_path)
    clock.on_signal(15, None)
    clock.on_signal(15, None)
    assert made.must_stop()
    assert made.must_stop()
    assert made.stopped == "signal"
    assert capsys.readouterr().out == "asked to stop: saving\n"
    assert 24 < clock.left_s() <= 25


def test_a_step_is_left_where_a_signal_asks_to_stop(clock: Clock, tmp_path: Path) -> None:
    made, control = guard(tmp_path, timeout_s=3600), Namespace(should_training_stop=False)
    # Of the deadline it has known for long: the step ends before it.
    clock.deadline = time.monotonic() + 60
    made.on_substep_end(None, None, control)
    assert not control.should_training_stop
    clock.signalled = time.monotonic()
    made.on_substep_end(None, None, control)
    assert control.should_training_stop
    assert made.stopped == "signal"


# ---- Losses that are no numbers --------------------------------------------------------------------------------------


def log(made: Guard, step: int, loss: float, grad_norm: float = 1.0) -> bool:
    """Whether the trainer is told to stop after that log."""
    control = Namespace(should_training_stop=False)
    state = Namespace(global_step=step, max_steps=10)
    logs = {"loss": loss, "learning_rate": 1e-4, "grad_norm": grad_norm}
    time.sleep(0.001)
    made.on_log(Namespace(max_steps=10), state, control, logs)
    return bool(control.should_training_stop)


NAN = float("nan")


def test_three_losses_in_a_row_that_are_no_numbers_end_it(clock: Clock, tmp_path: Path) -> None:
    made = guard(tmp_path)
    assert [log(made, 1, NAN), log(made, 2, NAN), log(made, 3, 1.0)] == [False] * 3
    assert [log(made, 4, NAN), log(made, 5, 1.0, grad_norm=float("inf")), log(made, 6, NAN)] == [False, False, True]
    assert made.diverged == 6


def test_weights_that_are_no_numbers_become_no_checkpoint(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", Namespace())
    made, saved = guard(tmp_path), list[str]()
    made.trainer.save_model = saved.append
    made.trainer.model.parameters = lambda: [Weight(), Weight(is_number=False)]
    made.trainer.state.global_step = 3
    made.save()
    assert not saved
    # The loss was none already.
    made.trainer.model.parameters = lambda: [Weight()]
    log(made, 3, NAN)
    made.save()
    assert not saved
    log(made, 3, 1.0)
    made.save()
    assert saved == [str(tmp_path / "checkpoint-3")]


# ---- A checkpoint that fails -----------------------------------------------------------------------------------------


def test_a_checkpoint_that_fails_is_said_and_costs_no_run(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def save_model(path: str) -> None:
        Path(path).mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(sys.modules, "torch", Namespace())
    made = guard(tmp_path)
    made.trainer.state.global_step, made.trainer.save_model = 3, save_model
    made.save()
    assert "step 3 could not be kept" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


# ---- Memory ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> None:
    # It is not of the launcher's environment; of it only the error's class and the figures are asked for.
    cuda = Namespace(is_initialized=lambda: True, max_memory_allocated=lambda: 21.34 * 2**30, empty_cache=lambda: None)
    monkeypatch.setitem(sys.modules, "torch", Namespace(OutOfMemoryError=MemoryError, cuda=cuda))


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
def test_memory_that_runs_out_has_many_names(torch: None, said: str, is_memory: bool) -> None:
    assert part.out_of_memory(RuntimeError(said)) is is_memory


@pytest.mark.parametrize(("batch", "smaller", "accumulation"), [(8, 4, 2), (6, 3, 2), (5, 1, 5), (9, 3, 3), (2, 1, 2)])
def test_it_begins_again_with_the_same_rows_a_step(
    torch: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], batch: int, smaller: int,
    accumulation: int,
) -> None:  # fmt: skip
    begun: list[list[str]] = []

    def execv(path: str, words: list[str]) -> None:
        begun.append(words)
        raise SystemExit

    monkeypatch.setattr(os, "execv", execv)
    monkeypatch.setattr(sys, "argv", ["sft.py", "--seed", "1"])
    monkeypatch.setenv("LAUNCH_STARTED", "")
    with pytest.raises(SystemExit):
        part.begin_again(Namespace(batch_size=batch, gradient_accumulation=1), 20.0)
    assert smaller * accumulation == batch
    assert begun[0][2:] == ["--seed", "1", "--batch-size", str(smaller), "--gradient-accumulation", str(accumulation)]
    said = capsys.readouterr().out
    assert said.startswith(f"out of memory: batch {batch} -> {smaller}, accumulation 1 -> {accumulation} (the GPU held")
    assert "21.3 GiB at most" in said


def test_a_single_row_that_does_not_fit_is_an_error_with_what_to_change(torch: None) -> None:
    with pytest.raises(UserError, match="one row at a time") as error:
        part.begin_again(Namespace(batch_size=1, gradient_accumulation=4, image_size=64), 20.0)
    assert "--max-length, --image-size or --lora-r" in error.value.paragraph


def test_an_evaluation_takes_fewer_rows_where_memory_runs_out(torch: None, capsys: pytest.CaptureFixture[str]) -> None:
    class Trainer:
        def __init__(self, fits: int) -> None:
            self.args, self.fits = Namespace(per_device_eval_batch_size=4), fits

        def evaluate(self) -> dict[str, float]:
            if self.args.per_device_eval_batch_size > self.fits:
                raise RuntimeError("CUDA error: out of memory")
            return {"eval_loss": 1.0}

    class Both(Careful, Trainer):
        pass

    assert Both(2).evaluate() == {"eval_loss": 1.0}
    assert "out of memory in evaluation: batch 4 -> 2\n" in capsys.readouterr().out
    assert Both(0).evaluate() == {}
    assert "the evaluation failed, the run goes on without it" in capsys.readouterr().out


# ---- A run that stalls -----------------------------------------------------------------------------------------------

STALLED = """
import time
from parts.clock import CLOCK
CLOCK.start(float("inf"), lambda: 0)
CLOCK.heard, CLOCK.patience_s = time.monotonic(), 1
def hang_here():
    for _ in range(3):
        time.sleep(0.3)
        CLOCK.heard = time.monotonic()
    print("heard", flush=True)
    time.sleep(120)
hang_here()
"""


def test_a_run_that_stalls_is_ended_with_its_stacks() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STALLED], cwd=TEMPLATES, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 1
    assert done.stdout == "heard\n"
    assert "in hang_here" in done.stderr
    assert "error: stalled: no step has ended for" in done.stderr.splitlines()[-1]


def test_its_patience_grows_with_the_steps_and_with_compiling(clock: Clock, tmp_path: Path) -> None:
    made = guard(tmp_path)
    assert made.patience_s() == 900
    made.planned["compile_s"] = 600
    assert made.patience_s() == 1200
    for step, seconds in enumerate((10, 100, 130), 1):
        made.step_began = time.monotonic() - seconds
        made.on_step_end(None, Namespace(global_step=step), Namespace())
    assert clock.patience_s == pytest.approx(20 * 100, rel=0.01)
    # Only while it trains.
    made.args.checkpoint_minutes = 0
    made.on_train_end(None, None, None)
    assert clock.patience_s == math.inf
