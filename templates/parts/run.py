"""A run from its first second to its last words: what it goes on from, where it saves, and what its RESULT says."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from parts.card import write_card
from parts.checkpoints import DONE, Checkpoints, open_checkpoints, result_before
from parts.clock import CLOCK, LAST_S, deadline
from parts.guard import Guard
from parts.models import device_name, free, set_environment
from parts.places import claim, output_folder
from parts.push import push, rescue
from parts.record import CARD, PICTURE, RECORD, write_record
from parts.say import UserError, finite, note, phase, reason, tell
from parts.second import make_copies, not_made

DECIDES_MEMORY = ("model", "load_in", "max_length", "batch_size", "lora_r", "optim", "image_size")
# What an earlier attempt left, where this one came to nothing.
ADAPTER = ("adapter_model.safetensors", "adapter_config.json", "tokenizer*", "README.md", RECORD)
# Characters of a sample's texts: a longer line than all of them would be cut, and its mark with it.
SHOWN = 2000
PACKAGES = ("unsloth", "trl", "transformers", "datasets", "peft", "torch")


@dataclass
class Run:
    """One attempt. Until it is `ready` to train, a signal or the deadline ends it at once: there is nothing to save."""

    args: Any
    planned: dict[str, Any]
    output_dir: Path
    checkpoints: Checkpoints
    output_repo: str | None = None
    saved: list[str] = field(default_factory=list)
    """The files of the model, as they were saved in the output folder."""
    result: dict[str, Any] = field(default_factory=dict)
    push_s: float = 0.0
    stopped: str | None = None
    tracker: Any = None
    again: bool = False
    """Whether this process began once more with a smaller batch."""
    url: str | None = None
    push_error: UserError | None = None
    copies_error: UserError | None = None
    setup: ExitStack = field(default_factory=ExitStack)

    def ready(self) -> None:
        self.setup.close()

    def leave(self, where: str) -> int:
        """The last words of a run that has to stop before its training ended; the process's status."""
        stopped, whole = "signal" if CLOCK.signalled else "deadline", self.checkpoints.whole
        tell(f"stopped {where} ({stopped}): {next_attempt(bool(whole))}")
        if self.args.output_repo and whole and (self.output_dir / "adapter_config.json").is_file():
            left = {path.name for pattern in ADAPTER for path in self.output_dir.glob(pattern)}
            note(rescue(self.output_dir, self.args.output_repo, left))
        result = {
            "status": "stopped", "stopped": stopped, "attempt": self.checkpoints.attempt,
            "resumed_from": self.checkpoints.found.get("step"), "steps": whole[-1] if whole else 0,
            "output_dir": str(self.output_dir.resolve()), "output_repo": self.args.output_repo, "url": None,
            "pushed": False, "push_error": None,
        }  # fmt: skip
        tell(f"RESULT {json.dumps(result)}")
        return 0

    def describe(
        self, guard: Guard, asked: list[Any], words: Callable[[Any], str], rows: int | None, eval_rows: int | None
    ) -> None:
        """Note what the RESULT says of the training; `asked` are the chats that were answered."""
        args, trainer, steps = self.args, guard.trainer, guard.trainer.state.global_step
        chosen = type(args)()
        as_planned = all(getattr(args, name, None) == getattr(chosen, name, None) for name in DECIDES_MEMORY)
        first_step_s, own_steps = guard.first_step_s or guard.trained_s, steps - guard.start
        logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry][-10:]
        train_s = guard.before_s + guard.trained_s
        stopped = guard.stopped if steps < trainer.state.max_steps or not steps else None
        self.push_s, self.stopped = guard.push_s, guard.stopped
        # Another attempt may have been asked for fewer.
        known = [*guard.known["answers"], *(None for _ in asked)][: len(asked)]
        told = [(words(messages[-2]), words(messages[-1])) for messages in asked]
        samples = [
            {"prompt": prompt[:SHOWN], "expected": expected[:SHOWN], "before": before, "after": after}
            for (prompt, expected), before, after in zip(told, known, guard.answers_after, strict=True)
        ]
        self.result = {
            "status": "stopped" if stopped else "done",
            "stopped": stopped,
            "attempt": self.checkpoints.attempt,
            "resumed_from": guard.resumed_from,
            "steps": steps,
            "rows": rows,
            "eval_rows": eval_rows,
            "batch_size": args.batch_size,
            "gradient_accumulation": args.gradient_accumulation,
            "tokens_seen": int(trainer.tokens_seen),
            "tokens_trained": int(trainer.tokens_trained),
            "train_loss": sum(logged) / len(logged) if logged else None,
            "eval_loss_before": guard.known.get("loss"),
            "eval_loss": guard.loss_after,
            "samples": samples,
            "tokens_per_second": int(trainer.tokens_seen) / max(train_s, 1e-3),
            "train_s": train_s,
            "startup_s": guard.startup_s,
            "first_step_s": first_step_s,
            "step_s": (guard.trained_s - first_step_s) / (own_steps - 1) if own_steps > 1 else None,
            "largest_batch_tokens": trainer.largest_batch,
            "peak_gib": max(guard.peaks.values(), default=None),
            "peaks_gib": guard.peaks,
            "predicted_peak_gib": self.planned["peak_gib"] if as_planned else None,
            "device": device_name(),
            "output_dir": str(self.output_dir.resolve()),
            "output_repo": self.output_repo,
            "versions": {name: version(name) for name in PACKAGES},
        }

    def write(self, model: Any, history: list[Any]) -> None:
        """Write the record and the card beside the model."""
        if self.result["steps"]:
            write_record(self.output_dir, self.args, self.result, model, self.saved)
            left_s = CLOCK.left_s() - 1.5 * self.push_s
            write_card(self.output_dir, self.args, self.planned, self.result, history, left_s)

    def push(self) -> None:
        """Push the model, as far as there is time."""
        if self.tracker:
            import trackio

            # Not the run's own method: at the process's end Trackio would finish it again, behind the RESULT.
            trackio.finish()
        if self.result["stopped"]:
            kept = self.result["steps"] in self.checkpoints.whole
            tell(f"stopped after step {self.result['steps']}: {next_attempt(kept)}")
        if not self.output_repo or not self.result["steps"]:
            return
        if CLOCK.signalled and CLOCK.left_s() <= LAST_S + 1.5 * self.push_s:
            return
        phase("push")
        with CLOCK.or_else(self.cut_off):
            try:
                self.url = push(self.output_dir, self.output_repo, self.written())
            except UserError as problem:
                self.push_error = problem

    def written(self) -> list[str]:
        """What this run wrote into its folder, and nothing that lies beside it."""
        written = [*self.saved, RECORD, CARD, PICTURE, Path(__file__).name]
        return [name for name in written if (self.output_dir / name).is_file()]

    def copy(self) -> None:
        """Let the copies be made that were asked for, of a model that is trained and pushed."""
        if not (self.args.merge or self.args.gguf):
            return
        why = {"deadline": "no time is left", "signal": "asked to stop", None: "nothing was trained"}
        stopped = self.stopped or ("signal" if CLOCK.signalled else None)
        if self.push_error or stopped or not self.result["steps"]:
            told = "its push failed" if self.push_error else why[stopped]
            self.result["exports"] = not_made(self.args, f"left out: {told}")
            return
        self.result["exports"] = not_made(self.args, "left out: the time was up")
        made, self.copies_error = make_copies(self.args, self.output_dir, self.output_repo)
        self.result |= made

    def finish(self) -> None:
        """Make the copies and print the RESULT line; raise the error of a run that did not do all it was asked to."""
        with CLOCK.or_else(self.cut_off):
            free()
            self.copy()
        error = self.tell()
        if error:
            # Not done, and not lost: the last line is the command that goes on.
            raise error

    def tell(self) -> UserError | None:
        """Print the RESULT line; the error of a run that did not do all that it was asked to, or none."""
        problem = self.push_error.args[0] if self.push_error else None
        pushed = {"url": self.url, "pushed": self.url is not None, "push_error": problem}
        line = json.dumps(finite(self.result | pushed), allow_nan=False)
        tell(f"RESULT {line}")
        error = self.push_error or (None if self.result["stopped"] else self.copies_error)
        if not self.result["stopped"] and not error:
            try:
                (self.checkpoints.folder / DONE).write_text(line, encoding="utf-8")
            except OSError as full:
                note(f"that it is done can't be noted ({reason(full)})")
        return error

    def cut_off(self) -> int:
        """The last words of a run whose time was up before the Hub had answered."""
        if self.output_repo and self.result["steps"] and not self.url and not self.push_error:
            kept = rescue(self.output_dir, self.output_repo, self.written())
            self.push_error = UserError(f"the push to {self.output_repo} did not end in time.", kept)
        error = self.tell()
        if error:
            error.tell()
        return error.status if error else 0


def begin(args: Any, planned: dict[str, Any]) -> Run | None:
    """The run that these options ask for; none where an earlier attempt of this Job did all there was to do."""
    earlier = result_before(args)
    if earlier:
        note("an earlier attempt did all there was to do: nothing is left")
        tell(f"RESULT {earlier}")
        return None
    claim(args)
    args, checkpoints = open_checkpoints(args)
    run = Run(args, planned, output_folder(args), checkpoints, again="LAUNCH_STARTED" in os.environ)
    CLOCK.start(deadline(args.timeout_s, checkpoints.folder))
    run.setup.enter_context(CLOCK.or_else(partial(run.leave, "before the training began"), at_once=True))
    set_environment(args)
    return run


def next_attempt(kept: bool) -> str:
    """What to do after a stop, where a checkpoint is `kept` or not."""
    # Whoever pays: hf://buckets/NAMESPACE/…
    payer = os.environ.get("LAUNCH_ARTIFACTS", "").removeprefix("hf://buckets/").partition("/")[0]
    name = f"{payer}/" * bool(payer) + os.environ.get("JOB_ID", "")
    again = f"`launch resume {name}`" if os.environ.get("JOB_ID") else "the same command"
    return f"{again} {'goes on from there' if kept else 'starts over, since no checkpoint was made'}"
