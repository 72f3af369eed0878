"""A run from its first second to its last words: what it goes on from, where it saves, and what its RESULT says."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from parts.card import write_card
from parts.checkpoints import DONE, Checkpoints, open_checkpoints, result_before
from parts.clock import CLOCK, LAST_S, deadline
from parts.guard import Guard
from parts.models import free, set_environment
from parts.places import claim, output_folder
from parts.push import push, rescue
from parts.saving import CARD, PICTURE, RECORD, write_record
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
    """One attempt; `saved` are the files of the model, as they were saved in the output folder."""

    args: Any
    planned: dict[str, Any]
    output_dir: Path
    checkpoints: Checkpoints
    output_repo: str | None
    saved: list[str] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)
    guard: Guard | None = None
    tracker: Any = None
    url: str | None = None
    push_error: UserError | None = None
    copies_error: UserError | None = None

    def ready(self) -> None:
        """From now on a signal does not end it at once, and a step that never comes back is not waited for."""
        CLOCK.at_once, CLOCK.last_s = False, 1.5

    def known(self, stopped: str | None) -> dict[str, Any]:
        """What RESULT says wherever the run ends."""
        return {
            "status": "stopped" if stopped else "done",
            "stopped": stopped,
            "attempt": self.checkpoints.attempt,
            "resumed_from": self.checkpoints.found.get("step"),
            "output_dir": str(self.output_dir.resolve()),
            "output_repo": self.output_repo,
        }

    def describe(self, guard: Guard, words: Callable[[Any], str], rows: Any, eval_rows: Any) -> None:
        """Note what the RESULT says of the training, and write record and card beside the model.

        `words` are a message's, `rows` those that were trained on.
        """
        import torch

        self.guard, args, trainer, steps = guard, self.args, guard.trainer, guard.trainer.state.global_step
        chosen = type(args)()
        as_planned = all(getattr(args, name, None) == getattr(chosen, name, None) for name in DECIDES_MEMORY)
        first_step_s, own_steps = guard.first_step_s or guard.trained_s, steps - guard.start
        logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry][-10:]
        train_s, tokens = guard.earlier_s + guard.trained_s, int(guard.counts["tokens_seen"])
        # A stream has no length; another attempt may have been asked for fewer answers.
        count, eval_count = (len(data) if hasattr(data, "__len__") else None for data in (rows, eval_rows))
        before = [*guard.before["answers"], *(None for _ in guard.asked)]
        samples = [
            {"prompt": words(prompt)[:SHOWN], "expected": words(expected)[:SHOWN], "before": first, "after": last}
            for (*_, prompt, expected), first, last in zip(guard.asked, before, guard.after["answers"], strict=False)
        ]
        self.result = self.known(guard.stopped if steps < trainer.state.max_steps or not steps else None) | {
            "steps": steps, "rows": count, "eval_rows": eval_count,
            "batch_size": args.batch_size, "gradient_accumulation": args.gradient_accumulation,
            "tokens_seen": tokens, "tokens_trained": int(guard.counts["tokens_trained"]),
            "train_loss": sum(logged) / len(logged) if logged else None,
            "eval_loss_before": guard.before["loss"], "eval_loss": guard.after["loss"], "samples": samples,
            "tokens_per_second": tokens / max(train_s, 1e-3), "train_s": train_s, "startup_s": guard.startup_s,
            "first_step_s": first_step_s,
            "step_s": (guard.trained_s - first_step_s) / (own_steps - 1) if own_steps > 1 else None,
            "largest_batch_tokens": guard.counts["largest_batch"],
            "peak_gib": max(guard.peaks.values(), default=None), "peaks_gib": guard.peaks,
            "predicted_peak_gib": self.planned["peak_gib"] if as_planned else None,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "versions": {name: version(name) for name in PACKAGES},
        }  # fmt: skip
        if steps:
            write_record(self.output_dir, args, self.result, trainer.model, self.saved)
            left_s = CLOCK.left_s() - 1.5 * guard.push_s
            write_card(self.output_dir, args, self.planned, self.result, trainer.state.log_history, left_s)

    def push(self) -> None:
        """Push the model, as far as there is time."""
        if self.tracker:
            import trackio

            # Not the run's own method: at the process's end Trackio would finish it again, behind the RESULT.
            trackio.finish()
        steps = self.result["steps"]
        if self.result["stopped"]:
            tell(f"stopped after step {steps}: {next_attempt(steps in self.checkpoints.whole)}")
        no_time = CLOCK.signalled and self.guard and CLOCK.left_s() <= LAST_S + 1.5 * self.guard.push_s
        if not self.output_repo or not steps or no_time:
            return
        phase("push")
        CLOCK.last_s = LAST_S
        try:
            self.url = push(self.output_dir, self.output_repo, self.written())
        except UserError as problem:
            self.push_error = problem

    def written(self) -> list[str]:
        """What this run wrote into its folder, and nothing that lies beside it."""
        written = [*self.saved, RECORD, CARD, PICTURE, Path(__file__).name]
        return [name for name in written if (self.output_dir / name).is_file()]

    def finish(self) -> None:
        """Make the copies and print the RESULT line; raise the error of a run that did not do all it was asked to."""
        free()
        if self.args.merge or self.args.gguf:
            stopped = CLOCK.signalled or (self.guard and self.guard.stopped)
            why = "its push failed" if self.push_error else "" if self.result["steps"] else "nothing was trained"
            why = why or ("asked to stop" if CLOCK.signalled else "no time is left" if stopped else "")
            self.result["exports"] = not_made(self.args, f"left out: {why or 'the time was up'}")
            if not why:
                self.result["exports"], self.copies_error = make_copies(self.args, self.output_dir, self.output_repo)
        CLOCK.rest()
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
        """The last words where the time is up before the run has said them; the process's status."""
        pushes = self.output_repo and not self.url and not self.push_error
        if not self.result:
            stopped, whole = "signal" if CLOCK.signalled else "deadline", self.checkpoints.whole
            where = "before the training began" if CLOCK.at_once else "in a step that did not end"
            tell(f"stopped {where} ({stopped}): {next_attempt(bool(whole))}")
            if pushes and whole and (self.output_dir / "adapter_config.json").is_file():
                left = {path.name for pattern in ADAPTER for path in self.output_dir.glob(pattern)}
                note(rescue(self.output_dir, str(self.output_repo), left))
            self.result = self.known(stopped) | {"steps": whole[-1] if whole else 0}
        elif pushes and self.result["steps"]:
            kept = rescue(self.output_dir, str(self.output_repo), self.written())
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
    run = Run(args, planned, output_folder(args), checkpoints, args.output_repo or None)
    CLOCK.start(deadline(args.timeout_s, checkpoints.folder), run.cut_off)
    set_environment(args)
    return run


def next_attempt(kept: bool) -> str:
    """What to do after a stop, where a checkpoint is `kept` or not."""
    # Whoever pays: hf://buckets/NAMESPACE/…
    payer = os.environ.get("LAUNCH_ARTIFACTS", "").removeprefix("hf://buckets/").partition("/")[0]
    name = f"{payer}/" * bool(payer) + os.environ.get("JOB_ID", "")
    again = f"`launch resume {name}`" if os.environ.get("JOB_ID") else "the same command"
    return f"{again} {'goes on from there' if kept else 'starts over, since no checkpoint was made'}"
