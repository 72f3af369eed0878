"""Checkpoints, in folders as transformers has them: whole once their manifest is there, and of the same settings."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from parts.places import is_jobs_own, output_folder, sha256
from parts.say import UserError, note, reason

# `checkpoint-N/` is what the trainer goes on from, with what this script knows beside it (run.json) and, written last,
# manifest.json with every file's size and SHA-256. Beside them lie `attempt`, the number of times that the run was
# started, and, once nothing is left to do, `done`, its RESULT.
KEPT, DONE = 2, "done"
# Free to change between two attempts: nothing that is learned depends on them.
NOT_LEARNED_FROM = {
    "checkpoint_minutes", "eval_steps", "gguf", "logging_steps", "merge", "merged_repo", "output_dir", "output_repo",
    "private", "resume", "run_name", "sample_rows", "timeout_s", "trackio_project", "trackio_space", "batch_size",
    "gradient_accumulation",
}  # fmt: skip


@dataclass
class Checkpoints:
    """A run's folder of checkpoints: `found` is what the newest whole one knew when this attempt began, or empty."""

    folder: Path
    found: dict[str, Any]
    attempt: int

    def at(self, step: int) -> Path:
        return self.folder / f"checkpoint-{step}"

    @property
    def whole(self) -> list[int]:
        """The steps of those with a manifest."""
        paths = self.folder.glob("checkpoint-*/manifest.json")
        return sorted(int(path.parent.name.removeprefix("checkpoint-")) for path in paths)

    def seal(self, step: int, known: dict[str, Any]) -> int:
        """Make a whole checkpoint of what the trainer wrote for that step, and remove the older ones; its bytes."""
        place = self.at(step)
        (place / "run.json").write_text(json.dumps(known), encoding="utf-8")
        files = [file for file in sorted(place.rglob("*")) if file.is_file()]
        sizes = {file.relative_to(place).as_posix(): (file.stat().st_size, sha256(file, sync=True)) for file in files}
        # Last, and not renamed, which not every volume can: half of it is no JSON.
        with (place / "manifest.json").open("w", encoding="utf-8") as file:
            json.dump(sizes, file)
            file.flush()
            os.fsync(file.fileno())
        kept = [self.at(step) for step in self.whole[-KEPT:]]
        for path in self.folder.glob("checkpoint-*"):
            if path not in kept:
                shutil.rmtree(path, ignore_errors=True)
        return sum(size for size, _ in sizes.values())


def checkpoint_folder(args: Any) -> Path:
    """Where the checkpoints lie."""
    output = output_folder(args)
    return output.with_name("checkpoints") if is_jobs_own(args) else output / "checkpoints"


def settings(args: Any) -> dict[str, Any]:
    """What a checkpoint's steps depend on, by flag; how an optimizer step's rows are split may change."""
    chosen = {name: value for name, value in vars(args).items() if name not in NOT_LEARNED_FROM}
    return chosen | {"batch_size": args.batch_size * args.gradient_accumulation}


def result_before(args: Any) -> str | None:
    """The RESULT of an earlier attempt of this Job that did all there was to do, or none: nobody pays for it twice."""
    path = checkpoint_folder(args) / DONE
    if args.resume == "never" or not is_jobs_own(args) or not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    try:
        return text if json.loads(text)["status"] == "done" else None
    except (ValueError, KeyError, TypeError):
        return None


def open_checkpoints(args: Any) -> tuple[Any, Checkpoints]:
    """The options, with the batch that fitted the memory before, and the folder, ready for this attempt.

    Raises `UserError` where the newest is of a run with other settings. An earlier run that was done is started anew.
    """
    folder = checkpoint_folder(args)
    if args.resume == "never" or ((folder / DONE).exists() and not is_jobs_own(args)):
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    steps = [path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")]
    found: dict[str, Any] = {}
    for step in sorted((int(step) for step in steps if step.isdecimal()), reverse=True):
        problem = flaw(folder / f"checkpoint-{step}")
        if problem is None:
            found = json.loads((folder / f"checkpoint-{step}" / "run.json").read_text(encoding="utf-8"))
            args = same_run(found, args)
            break
        note(f"the checkpoint of step {step} is not whole and left out ({problem})")
        (folder / f"checkpoint-{step}" / "manifest.json").unlink(missing_ok=True)
    if not found and any(folder.glob("step-*/manifest.json")):
        hint = "Go on with the script that made them, or give --resume never to start over."
        raise UserError(f"the checkpoints in {folder} are of an earlier version of this script.", hint, status=2)
    counter = folder / "attempt"
    earlier = counter.read_text(encoding="utf-8") if counter.exists() else ""
    # Begun again with a smaller batch, it is the same attempt.
    attempt = int(earlier if earlier.isdecimal() else 0) + (0 if os.environ.get("LAUNCH_STARTED") else 1)
    counter.write_text(str(attempt), encoding="utf-8")
    return args, Checkpoints(folder, found, attempt)


def same_run(found: dict[str, Any], args: Any) -> Any:
    """The options with the checkpoint's batch where that is smaller; `UserError` with the first flag that differs."""
    for name, value in settings(args).items():
        before, flag = found["settings"].get(name), f"--{name.replace('_', '-')}"
        if before != value:
            if name == "batch_size":
                flag = "--batch-size times --gradient-accumulation"
            message = f"{flag} is {value} here and {before} in the checkpoint of step {found['step']}"
            raise UserError(f"{message}.", "Give what it had, or --resume never to start over.", status=2)
    # What did not fit in the memory before would not now.
    if found["batch_size"] < args.batch_size:
        return replace(args, batch_size=found["batch_size"], gradient_accumulation=found["gradient_accumulation"])
    return args


def flaw(path: Path) -> str | None:
    """What keeps a checkpoint from being whole, or none."""
    try:
        for name, (size, digest) in json.loads((path / "manifest.json").read_text(encoding="utf-8")).items():
            if (path / name).stat().st_size != size or sha256(path / name) != digest:
                return f"{name} is not as it was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError) as error:
        return reason(error)
    return None
