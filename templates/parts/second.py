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


def make_copies(args: Any, folder: Path, output_repo: str | None) -> tuple[dict[str, Any], UserError | None]:
    """What export.py's RESULT says of the copies of the adapter in that folder, and the error of those that failed."""
    result, status, problem = run_exporter(args, output_repo, "--adapter", str(folder))
    if not status:
        return result, None
    said = f"{EXPORTER} ended with status {status}"
    if output_repo:
        # Where the adapter can be found from elsewhere.
        problem = problem.replace(f"launch export {folder}", f"launch export {output_repo}")
    return {"exports": not_made(args, said)} | result, UserError(problem or f"the adapter is whole, and {said}.")


def not_made(args: Any, problem: str) -> list[dict[str, Any]]:
    """The copies that were asked for, as RESULT has them, none of which is there."""
    asked = [("merged", args.merge)] * bool(args.merge) + [("gguf", kind) for kind in args.gguf]
    rest = dict.fromkeys(("path", "repo", "gib", "checked")) | {"error": problem}
    return [{"kind": kind, "name": name} | rest for kind, name in asked]


def run_exporter(args: Any, output_repo: str | None, *words: str) -> tuple[dict[str, Any], int, str]:
    """Run it with this run's options: its RESULT, its exit status, and what its `error:` line says."""
    command = [sys.executable, str(Path(__file__).with_name(EXPORTER)), *words, "--model", args.model]
    command += ["--load-in", args.load_in, "--run-name", args.run_name, "--device", args.device]
    command += ["--modality", "vision" if hasattr(args, "image_size") else "text"]
    command += ["--private" if args.private else "--no-private", "--timeout-s", str(args.timeout_s)]
    command += ["--trust-remote-code" if args.trust_remote_code else "--no-trust-remote-code"]
    named = {"revision": args.revision, "merge": args.merge, "output-repo": output_repo}
    named |= {"merged-repo": args.merged_repo, "output-dir": args.output_dir}
    command += [word for name, value in named.items() if value for word in (f"--{name}", str(value))]
    command += [word for kind in args.gguf for word in ("--gguf", kind)]
    # Its deadline is this run's.
    began = {"LAUNCH_STARTED": str(CLOCK.deadline - args.timeout_s)} if args.timeout_s else {}
    result, problem = dict[str, Any](), ""
    with subprocess.Popen(command, env=os.environ | began, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:

        def pass_on(number: int, frame: FrameType | None) -> None:
            CLOCK.on_signal(number, frame)
            process.terminate()

        handlers = {number: signal.signal(number, pass_on) for number in SIGNALS}
        if CLOCK.signalled:
            process.terminate()
        assert process.stdout is not None
        for said in process.stdout:
            line = said.decode("utf-8", "replace").rstrip("\n")
            told = heard(line) or ""
            if told.startswith("RESULT "):
                result = json.loads(told.removeprefix("RESULT "))
            elif told.startswith("error: "):
                problem = told.removeprefix("error: ")
            else:
                note(line)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return {name: result[name] for name in ("exports",) if name in result}, process.returncode, problem
