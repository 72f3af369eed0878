"""Trains with a rendered script many times, importing the training stack once: each training is a fork of this process.

    python train_driver.py

Reads one request a line, `{"script": PATH, "args": [...], "cwd": PATH, "out": PATH, "error": PATH, "env": {...},
"fate": {...}}`, answers `pid N` when that training runs and `exit CODE` when it has ended, negative for a signal. Each
runs the script as its users do, as `__main__`; where it begins again in its own place (`os.execv`) there is another
`pid N`, and it does so here, without a second import.

What `fate` holds happens to it at a moment of its own course, whatever the machine's speed:

    most_rows, from_step   the GPU that is not here runs out of memory in every training step and every evaluation of
                           more rows than that, once so many steps are done
    backward               it does so in the backward passes instead
    row_s                  every batch takes so many seconds, of its clock only
    skip                   {LINE: SECONDS}: so much of its time passes once it has printed a line with that
    slow_step              [STEP, SECONDS]: so much of its time passes in that step
    signal                 {LINE: NUMBER}: it gets that signal once it has printed a line with that
    signal_in              [STEP, BATCH, NUMBER]: it gets that signal in that batch of that step

`HF_ENDPOINT` is what it was when this process began, since the client reads it once.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TextIO

# What the client and its users have read from the environment when they were imported.
OFFLINE = ("huggingface_hub.constants", "datasets.config")


def import_stack() -> None:
    """What the script imports until it has ended, in its order, under the settings that it makes for a CPU."""
    from unsloth import FastLanguageModel  # noqa: F401, I001
    from unsloth.chat_templates import get_chat_template  # noqa: F401
    import trackio  # noqa: F401
    from transformers import PrinterCallback  # noqa: F401
    from trl import SFTConfig, SFTTrainer  # noqa: F401
    import datasets  # noqa: F401
    from matplotlib.figure import Figure  # noqa: F401

    # The models come with the first that is asked of them, and take as long as all the rest.
    import unsloth.models.loader_utils  # noqa: F401


class Spoken:
    """In the place of `sys.stdout`: says what the training says, and acts after the lines that it was told."""

    def __init__(self, stream: TextIO, then: Callable[[str], None]) -> None:
        self.stream, self.then, self.line = stream, then, ""

    def write(self, text: str) -> int:
        self.stream.write(text)
        *lines, self.line = (self.line + text).split("\n")
        for line in lines:
            self.stream.flush()
            self.then(line)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def meet(fate: dict[str, Any]) -> None:
    """Let it happen: the clock that the script reads is moved, not waited for."""
    import torch
    from transformers import Trainer

    clock, skipped, batches, held = time.monotonic, [0.0], [0, 0], [0]
    time.monotonic = lambda: clock() + skipped[0]

    def heard(line: str) -> None:
        for text in [text for text in fate.get("skip", {}) if text in line]:
            skipped[0] += fate["skip"].pop(text)
        for text in [text for text in fate.get("signal", {}) if text in line]:
            os.kill(os.getpid(), fate["signal"].pop(text))

    prepare = Trainer._prepare_inputs

    def limited(self: Any, inputs: Any) -> Any:
        step = self.state.global_step
        most = fate.get("most_rows")
        held[0] = inputs["input_ids"].shape[0]
        if most and held[0] > most and step >= fate.get("from_step", 0) and not fate.get("backward"):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        batches[:] = [step, batches[1] + 1 if batches[0] == step else 1]
        skipped[0] += fate.get("row_s", 0)
        if fate.get("slow_step", [None])[0] == step + 1:
            skipped[0] += fate.pop("slow_step")[1]
        if fate.get("signal_in", [])[:2] == [step + 1, batches[1]]:
            os.kill(os.getpid(), fate.pop("signal_in")[2])
        return prepare(self, inputs)

    def backward(self: Any, loss: Any, **more: Any) -> Any:
        if held[0] > fate["most_rows"] and batches[0] >= fate.get("from_step", 0):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        return gone_back(self, loss, **more)

    # Where a batch is moved to the device, in training and in evaluation.
    Trainer._prepare_inputs = limited
    if fate.get("backward"):
        from accelerate import Accelerator

        gone_back, Accelerator.backward = Accelerator.backward, backward
    sys.stdout = Spoken(sys.stdout, heard)


def begin_again(request: dict[str, Any], told: Path) -> Any:
    """In the place of `os.execv`: the next fork does what the new program would."""

    def execv(program: str, words: list[str]) -> NoReturn:
        args = words[words.index(request["script"]) + 1 :]
        told.write_text(json.dumps(request | {"args": args, "env": dict(os.environ)}), encoding="utf-8")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)

    return execv


def train(request: dict[str, Any], told: Path) -> NoReturn:
    # The next requests are not meant for it.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for name, number in (("out", 1), ("error", 2)):
        with open(request[name], "ab", buffering=0) as file:  # noqa: PTH123
            os.dup2(file.fileno(), number)
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    for name in OFFLINE:
        sys.modules[name].HF_HUB_OFFLINE = os.environ["HF_HUB_OFFLINE"] == "1"  # type: ignore[attr-defined]
    if request["fate"]:
        meet(request["fate"])
    os.execv = begin_again(request, told)
    sys.argv = [request["script"], *request["args"]]
    sys.path[:1] = [str(Path(request["script"]).parent), *filter(None, request["env"].get("PYTHONPATH", "").split(":"))]
    code = 0
    try:
        runpy.run_path(request["script"], run_name="__main__")
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    # Taking the imported stack down object by object would take longer than most of these trainings.
    os._exit(code)


def main() -> int:
    os.environ.update(CUDA_VISIBLE_DEVICES="", UNSLOTH_FORCE_CPU="1", TQDM_DISABLE="1", HF_HUB_OFFLINE="1")
    os.environ["UNSLOTH_COMPILE_LOCATION"] = tempfile.mkdtemp(prefix="unsloth-")
    os.environ.pop("CI", None)
    import_stack()
    gc.freeze()  # what all forks share is not looked through by each
    print("ready", flush=True)
    for line in sys.stdin:
        request, code = json.loads(line), 0
        while request:
            told = Path(f"{request['out']}.again")
            pid = os.fork()
            if not pid:
                train(request, told)
            print("pid", pid, flush=True)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            request = json.loads(told.read_text(encoding="utf-8")) if told.exists() else None
            told.unlink(missing_ok=True)
        print("exit", code, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
