"""Trains with a rendered script many times, importing the training stack once: each training is a fork of this process.

    python train_driver.py

Reads one request a line, `{"script": PATH, "args": [...], "log": PATH, "env": {...}, "most_rows": N or null,
"from_step": N, "row_s": S}`, and answers `pid N` when that training runs and `exit CODE` when it has ended, negative
for a signal. Each runs the script as its users do, as `__main__`. With `most_rows` the GPU that is not here runs out of
memory in every training step and every evaluation of more rows than that, once `from_step` steps are done. With
`row_s` every batch takes so many seconds longer.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import time
from typing import Any


def import_stack() -> None:
    """What the script imports when it trains, under the settings that it makes for a CPU."""
    import unsloth  # noqa: F401, I001
    import datasets  # noqa: F401
    import trackio  # noqa: F401
    import trl  # noqa: F401


def limit(most_rows: int | None, from_step: int, row_s: float) -> None:
    import torch
    from transformers import Trainer

    prepare = Trainer._prepare_inputs

    def limited(self: Any, inputs: Any) -> Any:
        if most_rows and inputs["input_ids"].shape[0] > most_rows and self.state.global_step >= from_step:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        time.sleep(row_s)
        return prepare(self, inputs)

    # Where a batch is moved to the device, in training and in evaluation.
    Trainer._prepare_inputs = limited


def train(request: dict[str, Any], told: int) -> None:
    def again(path: str, words: list[str]) -> None:
        """In the place of `os.execv`: the process that is started anew is another fork."""
        anew = {"args": words[2:], "env": request["env"] | {"LAUNCH_STARTED": os.environ["LAUNCH_STARTED"]}}
        os.write(told, json.dumps(anew).encode())
        os._exit(0)

    os.execv = again  # type: ignore[assignment]
    with open(request["log"], "ab", buffering=0) as log:  # noqa: PTH123
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.environ.update(request["env"])
    if request["most_rows"] or request["row_s"]:
        limit(request["most_rows"], request["from_step"], request["row_s"])
    sys.argv = [request["script"], *request["args"]]
    runpy.run_path(request["script"], run_name="__main__")


def main() -> int:
    os.environ.update(CUDA_VISIBLE_DEVICES="", UNSLOTH_FORCE_CPU="1", TQDM_DISABLE="1", HF_HUB_OFFLINE="1")
    import_stack()
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        code, anew = run(request, told=True)
        while anew:
            request |= anew
            code, anew = run(request)
        print("exit", code, flush=True)
    return 0


def run(request: dict[str, Any], told: bool = False) -> tuple[int, dict[str, Any]]:
    """One process: its exit code, and what it asks to be started anew with, if it does."""
    heard, says = os.pipe()
    pid = os.fork()
    if not pid:
        train(request, says)
        sys.exit(0)
    os.close(says)
    if told:
        print("pid", pid, flush=True)
    with os.fdopen(heard) as answer:
        anew = answer.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), json.loads(anew) if anew else {}


if __name__ == "__main__":
    sys.exit(main())
