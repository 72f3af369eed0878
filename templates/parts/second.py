"""Copies of the model (merged, GGUF) are made by export.py, which lies beside this script, in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from parts.clock import CLOCK, SIGNALS
from parts.say import UserError, heard, note, phase

EXPORTER = "export.py"
# Options that both scripts have.
SHARED = ("model", "revision", "load_in", "trust_remote_code", "merge", "merged_repo", "gguf", "private", "run_name",
          "output_dir", "timeout_s", "device")  # fmt: skip


def check_copies(args: Any, output_repo: str | None) -> None:
    """Refuse, as it says it, what export.py can't make, before the training is paid for."""
    if not (args.merge or args.gguf):
        return
    phase("check copies")
    if not Path(__file__).with_name(EXPORTER).is_file():
        hint = f"Put job_scripts/{EXPORTER} there, or leave the copies away: `launch export` makes them later."
        raise UserError(f"--merge and --gguf need {EXPORTER} beside {Path(__file__).name}.", hint, status=2)
    _, status, problem = run_exporter(args, output_repo, "--dry-run")
    if status:
        raise UserError(problem or f"{EXPORTER} ended with status {status}.", status=status if status in (2, 3) else 1)


def make_copies(args: Any, folder: Path, output_repo: str | None) -> tuple[list[Any], UserError | None]:
    """The copies of the adapter in that folder, as export.py's RESULT has them, and the error of those that failed."""
    exports, status, problem = run_exporter(args, output_repo, "--adapter", str(folder))
    said = f"{EXPORTER} ended with status {status}"
    if output_repo:
        # Where the adapter can be found from elsewhere.
        problem = problem.replace(f"launch export {folder}", f"launch export {output_repo}")
    error = UserError(problem or f"the adapter is whole, and {said}.") if status else None
    return not_made(args, said) if exports is None else exports, error


def not_made(args: Any, problem: str) -> list[Any]:
    """The copies that were asked for, as RESULT has them, none of which is there."""
    asked = [("merged", args.merge)] * bool(args.merge) + [("gguf", kind) for kind in args.gguf]
    rest = dict.fromkeys(("path", "repo", "gib", "checked")) | {"error": problem}
    return [{"kind": kind, "name": name} | rest for kind, name in asked]


def run_exporter(args: Any, output_repo: str | None, *words: str) -> tuple[list[Any] | None, int, str]:
    """Run it with this run's options: the copies of its RESULT, its exit status, and what its `error:` line says."""
    options = {name: getattr(args, name) for name in SHARED} | {"output_repo": output_repo}
    options["modality"] = "vision" if hasattr(args, "image_size") else "text"
    command = [sys.executable, str(Path(__file__).with_name(EXPORTER)), *words]
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            command.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            command += [
                word for one in (value if isinstance(value, tuple) else [value]) for word in (f"--{flag}", str(one))
            ]
    # Its deadline is this run's.
    began = {"LAUNCH_STARTED": str(CLOCK.deadline - args.timeout_s)} if args.timeout_s else {}
    exports, problem = None, ""
    piped: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    with subprocess.Popen(command, env=os.environ | began, **piped) as process:

        def pass_on(number: int, frame: FrameType | None) -> None:
            CLOCK.on_signal(number, frame)
            process.terminate()

        handlers = {number: signal.signal(number, pass_on) for number in SIGNALS}
        if CLOCK.signalled:
            process.terminate()
        for line in process.stdout or ():
            told = heard(line.rstrip("\n")) or ""
            if told.startswith("RESULT "):
                exports = json.loads(told.removeprefix("RESULT ")).get("exports")
            elif told.startswith("error: "):
                problem = told.removeprefix("error: ")
            else:
                note(line.rstrip("\n"))
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return exports, process.returncode, problem
