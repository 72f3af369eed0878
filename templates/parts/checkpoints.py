"""Checkpoints, in folders as transformers has them: whole once their manifest is there, and of the same settings."""

from __future__ import annotations

import hashlib
import json
import os
import re
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
    settings: dict[str, Any]

    def at(self, step: int) -> Path:
        return self.folder / f"checkpoint-{step}"

    @property
    def whole(self) -> list[int]:
        """The steps of those with a manifest."""
        return [step for step in steps_in(self.folder) if (self.at(step) / "manifest.json").is_file()]

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
        for other in {*steps_in(self.folder)}.difference(self.whole[-KEPT:]):
            shutil.rmtree(self.at(other), ignore_errors=True)
        return sum(size for size, _ in sizes.values())


def steps_in(folder: Path) -> list[int]:
    """The steps that the folder has checkpoints of, whole or not."""
    names = [path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")]
    return sorted(int(name) for name in names if re.fullmatch("[1-9][0-9]{0,9}", name))


def checkpoint_folder(args: Any) -> Path:
    """Where the checkpoints lie."""
    output = output_folder(args)
    return output.with_name("checkpoints") if is_jobs_own(args) else output / "checkpoints"


def settings(args: Any) -> dict[str, Any]:
    """What a checkpoint's steps depend on, by flag; how an optimizer step's rows are split may change.

    Rows of this machine are known by their bytes, wherever they lie.
    """
    chosen = {name: value for name, value in vars(args).items() if name not in NOT_LEARNED_FROM}
    data = Path(args.dataset).expanduser()
    if data.exists():
        files = sorted(path for path in [data, *data.rglob("*")] if path.is_file())
        hashes = " ".join(f"{path.relative_to(data).as_posix()} {sha256(path)}" for path in files)
        chosen["dataset"] = f"data of the SHA-256 {hashlib.sha256(hashes.encode()).hexdigest()[:16]}"
    return chosen | {"batch_size": args.batch_size * args.gradient_accumulation}


def result_before(args: Any) -> str | None:
    """The RESULT of an earlier attempt of this Job that did all there was to do, or none: nobody pays for it twice."""
    path = checkpoint_folder(args) / DONE
    if args.resume == "never" or not is_jobs_own(args) or not path.is_file():
        return None
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        return text if json.loads(text)["status"] == "done" else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def open_checkpoints(args: Any) -> tuple[Any, Checkpoints]:
    """The options, with the batch that fitted the memory before, and the folder, ready for this attempt.

    Raises `UserError` where the newest is of a run with other settings, and of status 3 where nothing can be written.
    An earlier run that was done is started anew.
    """
    folder, chosen, found = checkpoint_folder(args), settings(args), dict[str, Any]()
    if args.resume == "never" or ((folder / DONE).exists() and not is_jobs_own(args)):
        forget(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for step in reversed(steps_in(folder)):
            try:
                found = read_checkpoint(folder / f"checkpoint-{step}")
                break
            # Whatever lies there, of whatever shape.
            except Exception as error:
                note(f"the checkpoint of step {step} is not whole and left out ({reason(error)})")
                (folder / f"checkpoint-{step}" / "manifest.json").unlink(missing_ok=True)
        args = same_run(found, args, chosen) if found else args
        counter = folder / "attempt"
        earlier = counter.read_text(encoding="utf-8", errors="replace") if counter.exists() else ""
        # Begun again with a smaller batch, it is the same attempt.
        before = int(earlier) if re.fullmatch("[0-9]{1,9}", earlier) else 0
        attempt = before + (0 if os.environ.get("LAUNCH_STARTED") else 1)
        counter.write_text(str(attempt), encoding="utf-8")
    except OSError as error:
        hint = "Make room on its disk and remove what stands in its way, or give --output-dir another folder."
        raise UserError(f"{folder} can't be written ({reason(error)}).", hint, status=3) from error
    if not found and any(folder.glob("step-*/manifest.json")):
        hint = "Go on with the script that made them, or give --resume never to start over."
        raise UserError(f"the checkpoints in {folder} are of an earlier version of this script.", hint, status=2)
    return args, Checkpoints(folder, found, attempt, chosen)


def forget(folder: Path) -> None:
    """Remove the checkpoints and what else a run notes there, and nothing besides."""
    for path in folder.glob("*"):
        if re.fullmatch(r"(checkpoint|step)-[0-9]+", path.name):
            shutil.rmtree(path, ignore_errors=True)
        elif re.fullmatch(rf"attempt|{DONE}|began-[0-9a-f]+", path.name) and not path.is_dir():
            path.unlink(missing_ok=True)


def same_run(found: dict[str, Any], args: Any, chosen: dict[str, Any]) -> Any:
    """The options with the checkpoint's batch where that is smaller; `UserError` with the first flag that differs."""
    for name, value in chosen.items():
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


def read_checkpoint(place: Path) -> dict[str, Any]:
    """What a whole checkpoint knows; an error of any kind where it is not whole."""
    manifest = json.loads((place / "manifest.json").read_text(encoding="utf-8"))
    for name, (size, digest) in manifest.items():
        if (place / name).stat().st_size != size or sha256(place / name) != digest:
            raise ValueError(f"{name} is not as it was written")
    found: dict[str, Any] = json.loads((place / "run.json").read_text(encoding="utf-8"))
    if place.name != f"checkpoint-{found['step']}":
        raise ValueError(f"it is of step {found['step']}")
    numbers = [found[name] for name in ("step", "steps", "batch_size", "gradient_accumulation")]
    if not (isinstance(found["settings"], dict) and isinstance(found["known"], dict) and min(numbers) > 0):
        raise ValueError("run.json is of another form")
    if "adapter_model.safetensors" not in manifest:
        raise ValueError("it holds no adapter")
    return found
