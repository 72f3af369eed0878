"""What keeps the work from being lost: checkpoints by the clock, stops in time, smaller batches, an end to NaN."""

from __future__ import annotations

import math
import os
import re
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from parts.checkpoints import Checkpoints
from parts.clock import CLOCK, LAST_S, STARTED
from parts.models import free, take_peak
from parts.say import UserError, note, phase, reason, tell

# Bytes a second that a disk and an upload surely take, where nothing was measured yet.
DISK_SPEED, UPLOAD_SPEED = 50e6, 10e6
# Logged steps in a row whose loss or gradient is no number.
MOST_NAN = 3
COUNTS = ("tokens_seen", "tokens_trained", "largest_batch")


class Stop(Exception):
    """An evaluation is left, since the time is up."""


class Careful:
    """Mixed into a trainer: counts tokens, and evaluates as far as time and memory suffice."""

    tokens_seen: Any = 0
    tokens_trained: Any = 0
    largest_batch = 0

    def training_step(self, model: Any, inputs: Any, *rest: Any) -> Any:
        # Sums stay on the GPU, so that counting never makes it wait.
        mask = inputs.get("attention_mask")
        self.tokens_seen = self.tokens_seen + (inputs["input_ids"].numel() if mask is None else mask.sum())
        self.tokens_trained = self.tokens_trained + (inputs["labels"][:, 1:] != -100).sum()
        self.largest_batch = max(self.largest_batch, inputs["input_ids"].numel())
        return super().training_step(model, inputs, *rest)  # type: ignore[misc]

    def evaluate(self, *rest: Any, **more: Any) -> dict[str, Any]:
        """The metrics, from fewer rows at a time where memory runs out; empty where it can't be done, which is said."""
        args: Any = self.args  # type: ignore[attr-defined]
        try:
            return dict(super().evaluate(*rest, **more))  # type: ignore[misc]
        except Stop:
            note("no time to evaluate")
            return {}
        except Exception as error:
            batch = args.per_device_eval_batch_size
            if batch == 1 or not out_of_memory(error):
                note(f"the evaluation failed, the run goes on without it ({reason(error)})")
                return {}
        free()
        note(f"out of memory in evaluation: batch {batch} -> {batch // 2}")
        args.per_device_eval_batch_size = batch // 2
        return self.evaluate(*rest, **more)


class Guard:
    """Mixed into a `TrainerCallback`: decides when to keep what was learned, when to stop, and says how it goes.

    A step draws its random numbers from a seed of its own, so that whoever makes it anew makes the same. Before and
    after the training it gives the `answer` to each of the chats that are `asked`; `kind` is Unsloth's class of model.
    """

    stopped: str | None = None
    startup_s: float | None = None
    first_step_s: float | None = None
    diverged: int | None = None

    def __init__(self, run: Any, trainer: Any, kind: Any, asked: list[Any], answer: Callable[[Any], str]) -> None:
        self.run, self.args, self.planned, self.trainer = run, run.args, run.planned, trainer
        self.kind, self.asked, self.answer = kind, asked, answer
        self.checkpoints: Checkpoints = run.checkpoints
        found = self.checkpoints.found
        # What it looked like before the training and after it: the loss, answers.
        self.before: dict[str, Any] = found.get("known", {})
        self.after: dict[str, Any] = {}
        self.earlier_s, self.start = found.get("train_s", 0.0), found.get("step", 0)
        # Of the steps that are done: one that is left is made anew.
        self.counts: dict[str, Any] = {name: found.get(name, 0) for name in COUNTS}
        vars(trainer).update(self.counts)
        trained = [weight for weight in trainer.model.parameters() if weight.requires_grad]
        size = sum(weight.numel() * weight.element_size() for weight in trained)
        self.checkpoint_s, self.push_s = 3 * size / DISK_SPEED, size / UPLOAD_SPEED if run.output_repo else 0.0
        self.kept, self.due, self.trained_s, self.longest_step_s, self.nan_logs = self.start, False, 0.0, 0.0, 0
        self.began = self.saved_at = self.step_began = time.monotonic()
        self.mark = (self.start, 0, self.began)
        self.steps_s: list[float] = []
        self.peaks: dict[str, float] = {}

    def must_stop(self) -> bool:
        """Whether a signal came, or no time is left but for a step, a checkpoint, the model's saving and its push."""
        # Python takes seconds to end.
        floor = min(60, max(self.args.timeout_s / 10, LAST_S))
        reserve_s = 1.5 * (2 * self.checkpoint_s + self.push_s) + floor + self.longest_step_s
        if not self.stopped and CLOCK.signalled:
            self.stopped = "signal"
            note("asked to stop: saving")
        elif not self.stopped and CLOCK.left_s() < reserve_s:
            self.stopped = "deadline"
            tell(f"deadline in {CLOCK.left_s():.0f}s: stopping")
        return bool(self.stopped)

    def patience_s(self) -> float:
        """Seconds without the end of a step after which the run has stalled."""
        compile_s: float = self.planned["compile_s"]
        return max(900.0, 2 * compile_s, 20 * statistics.median(self.steps_s or [0.0]))

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.began = self.saved_at = CLOCK.heard = time.monotonic()
        CLOCK.patience_s = self.patience_s()

    def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        from transformers import set_seed

        # Only now has the trainer written down what the step before was like.
        if self.due:
            self.save()
        self.step_began = time.monotonic()
        if self.startup_s is None:
            self.startup_s, self.began = self.step_began - STARTED, self.step_began
            self.mark = (state.global_step, int(self.trainer.tokens_seen), self.began)
        set_seed(self.args.seed + state.global_step)

    def on_substep_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        # The rest of the step may take longer than a signal allows.
        control.should_training_stop = bool(CLOCK.signalled) and self.must_stop()

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        now = CLOCK.heard = time.monotonic()
        took = now - self.step_began
        self.counts = {name: getattr(self.trainer, name) for name in COUNTS}
        self.steps_s = [*self.steps_s[-99:], took]
        CLOCK.patience_s = self.patience_s()
        self.first_step_s = self.first_step_s or now - self.began
        # The first step compiles, which happens once: it counts until there is another.
        self.longest_step_s = max(self.longest_step_s if state.global_step > self.start + 2 else 0.0, took)
        if self.must_stop():
            control.should_training_stop, control.should_evaluate = True, False
        every = self.args.checkpoint_minutes * 60
        self.due = bool(every) and now >= self.saved_at + every

    def on_prediction_step(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        CLOCK.heard = time.monotonic()
        if self.must_stop():
            raise Stop

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        CLOCK.patience_s = math.inf
        if self.args.checkpoint_minutes and not self.diverged:
            self.save()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
        step, now, seen = state.global_step, time.monotonic(), int(self.trainer.tokens_seen)
        if self.run.tracker:
            self.run.tracker.log({re.sub("^eval_", "eval/", name): value for name, value in logs.items()}, step)
        if "eval_loss" in logs:
            total = state.max_steps or (args.max_steps if args.max_steps > 0 else "?")
            tell(f"eval step {step}/{total} | loss {logs['eval_loss']:.4f}")
        elif "loss" in logs:
            last_step, last_seen, last_time = self.mark
            speed, eta = (seen - last_seen) / (now - last_time), (state.max_steps - step) * (now - last_time)
            line = f"step {step}/{state.max_steps} | loss {logs['loss']:.4f} | lr {logs['learning_rate']:.2e}"
            tell(f"{line} | {speed:.0f} tok/s | eta {eta / max(step - last_step, 1):.0f}s")
            are_numbers = math.isfinite(logs["loss"]) and math.isfinite(logs.get("grad_norm") or 0.0)
            self.nan_logs = 0 if are_numbers else self.nan_logs + 1
            if self.nan_logs == MOST_NAN:
                self.diverged, control.should_training_stop = step, True
        self.mark = (step, seen, now)

    def save(self) -> None:
        """Keep this step as a checkpoint; where that fails, on a full disk, say, the training goes on."""
        import torch

        trainer, state, args, self.due = self.trainer, self.trainer.state, self.args, False
        began, step, place = time.monotonic(), state.global_step, self.checkpoints.at(state.global_step)
        # Weights may be numbers still where the loss is none any more, and of no use.
        if step == self.kept or not step or self.nan_logs or not is_finite(trainer.model):
            return
        known = {name: int(value) for name, value in self.counts.items()} | {
            "step": step, "steps": state.max_steps, "batch_size": args.batch_size,
            "gradient_accumulation": args.gradient_accumulation, "settings": self.checkpoints.settings,
            "train_s": self.earlier_s + began - self.began, "known": self.before,
        }  # fmt: skip
        try:
            shutil.rmtree(place, ignore_errors=True)
            # What `train(resume_from_checkpoint=…)` goes on from, by the names that it looks for.
            trainer.save_model(str(place))
            for name in ("optimizer", "lr_scheduler"):
                torch.save(getattr(trainer, name).state_dict(), place / f"{name.removeprefix('lr_')}.pt")
            if trainer.accelerator.scaler:
                torch.save(trainer.accelerator.scaler.state_dict(), place / "scaler.pt")
            state.save_to_json(str(place / "trainer_state.json"))
            size = self.checkpoints.seal(step, known)
        except Exception as error:
            shutil.rmtree(place, ignore_errors=True)
            note(f"step {step} could not be kept in {self.checkpoints.folder} ({reason(error)})")
        else:
            self.kept, self.checkpoint_s = step, time.monotonic() - began
            tell(f"checkpoint step {step} | {self.checkpoint_s:.1f}s | {size / 1e6:.0f} MB")
        self.saved_at = CLOCK.heard = time.monotonic()

    def train(self) -> None:
        """Train from the newest checkpoint, or the start, to the end or a stop; begin again where memory runs out."""
        from transformers import TrainerState, set_seed

        trainer, found, step = self.trainer, self.checkpoints.found, self.start
        path = self.checkpoints.at(step)
        if step:
            tell(f"resumed from step {step}")
        if self.args.streaming:
            # Skipped as rows: transformers would make batches of all that it skips, and only within one pass.
            seen = step * self.args.batch_size * self.args.gradient_accumulation
            trainer.train_dataset = trainer.train_dataset.repeat(None).skip(seen)
            trainer.args.ignore_data_skip = True
        # The same order of rows, whatever was drawn while checking.
        set_seed(self.args.seed)
        try:
            if not self.must_stop() and (not found or step < found["steps"]):
                trainer.train(resume_from_checkpoint=str(path) if step else None)
            elif found:
                from peft import load_peft_weights, set_peft_model_state_dict

                set_peft_model_state_dict(trainer.model, load_peft_weights(str(path)))
                trainer.state = TrainerState.load_from_json(str(path / "trainer_state.json"))
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            begin_again(self.args, self.planned["peak_gib"])
        self.trained_s = time.monotonic() - self.began
        take_peak(self.peaks, "train")
        if self.diverged:
            kept = f"The last checkpoint is of step {self.kept}." if self.kept else "No checkpoint was made."
            message = f"the loss is no number any more, at step {self.diverged} for the {MOST_NAN}rd time in a row"
            raise UserError(f"{message}: stopped. {kept}", "Lower --learning-rate, or raise --warmup-ratio.")
        if not is_finite(trainer.model):
            raise UserError("the trained weights are no numbers: nothing is saved.", "Lower --learning-rate.")

    def look(self, evaluates: bool) -> dict[str, Any]:
        """The loss on what is evaluated on, and the answers to what is asked, as far as time and memory suffice."""
        found: dict[str, Any] = {"loss": None, "answers": []}
        if not self.peaks:
            take_peak(self.peaks, "load")
        if evaluates and not self.stopped:
            phase("evaluate")
            found["loss"] = self.trainer.evaluate().get("eval_loss")
            take_peak(self.peaks, "evaluate")
        self.kind.for_inference(self.trainer.model)
        for messages in self.asked:
            try:
                found["answers"].append(None if self.must_stop() else self.answer(messages))
            # No sample is worth a run.
            except Exception as error:
                found["answers"].append(None)
                note(f"a sample is left without an answer ({reason(error)})")
                free()
        self.kind.for_training(self.trainer.model)
        take_peak(self.peaks, "answer")
        return found


def is_finite(model: Any) -> bool:
    """Whether every weight that is trained is a number."""
    return all(bool(weight.isfinite().all()) for weight in model.parameters() if weight.requires_grad)


def out_of_memory(error: BaseException) -> bool:
    """Whether a GPU's memory ran out, whichever library says so."""
    import torch

    said = re.search(r"CUDA[^\n]*out of memory|ALLOC_FAILED", str(error))
    return isinstance(error, torch.OutOfMemoryError) or said is not None


def begin_again(args: Any, planned_gib: float) -> NoReturn:
    """Start this script once more, from its newest checkpoint, with a step's rows in smaller batches.

    A new process has the whole memory. Raises `UserError` where the batches are single rows already.
    """
    import torch

    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_initialized() else 0.0
    said = f"the GPU held {peak:.1f} GiB at most, {planned_gib:.1f} GiB were planned"
    batch, accumulation = args.batch_size, args.gradient_accumulation
    if batch == 1:
        flags = "--max-length, --image-size" if hasattr(args, "image_size") else "--max-length"
        hint = f"Lower {flags} or --lora-r, or take a flavor with more memory."
        raise UserError(f"out of memory in training with one row at a time ({said}).", hint)
    smaller = next(size for size in range(batch // 2, 0, -1) if batch % size == 0)
    more = accumulation * batch // smaller
    tell(f"out of memory: batch {batch} -> {smaller}, accumulation {accumulation} -> {more} ({said})")
    sys.stderr.flush()
    os.environ["LAUNCH_STARTED"] = str(STARTED)
    words = ["--batch-size", str(smaller), "--gradient-accumulation", str(more)]
    os.execv(sys.executable, [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], *words])
