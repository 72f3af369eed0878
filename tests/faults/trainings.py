"""Trainings in the real stack, which is imported once: run, killed, gone on with, and what they leave."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import time
from array import array
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DRIVER = Path(__file__).parent / "train_driver.py"
CHECKPOINT = re.compile(r"^checkpoint step (\d+) \| \d+\.\ds \| \d+ MB$", re.MULTILINE)
STEP = re.compile(r"^step (\d+)/\d+ \| loss (\S+) \| lr (\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Ended:
    """One attempt: its exit code, negative for a signal, and all that it printed."""

    code: int
    log: str
    error: str = ""
    """What it printed on stderr, where that was asked for apart."""

    @property
    def result(self) -> dict[str, Any]:
        assert self.code == 0, self.log[-3000:] + self.error[-3000:]
        found: dict[str, Any] = json.loads(self.log.strip().splitlines()[-1].removeprefix("RESULT "))
        return found

    @property
    def steps(self) -> list[int]:
        """The steps that were logged."""
        return [int(step) for step, _, _ in STEP.findall(self.log)]

    @property
    def losses(self) -> dict[int, tuple[str, str]]:
        """The logged loss and learning rate of each step."""
        return {int(step): (loss, rate) for step, loss, rate in STEP.findall(self.log)}

    @property
    def resumed_from(self) -> int:
        """The step after which it went on; 0 for a start."""
        found = re.search(r"^resumed from step (\d+)$", self.log, re.MULTILINE)
        return int(found[1]) if found else 0

    @property
    def checkpoints(self) -> list[int]:
        return [int(step) for step in CHECKPOINT.findall(self.log)]


class Training:
    """An attempt that runs."""

    def __init__(self, driver: subprocess.Popen[str], log: Path, error: Path) -> None:
        assert driver.stdout is not None
        self._answers, self._log, self._error = driver.stdout, log, error
        said, self.pid = self._answer()
        assert said == "pid", said

    def _answer(self) -> tuple[str, int]:
        said, _, value = self._answers.readline().partition(" ")
        return said, int(value)

    def wait_for(self, text: str, hangs_s: float = 600) -> None:
        """Until it has printed that."""
        end = time.monotonic() + hangs_s
        while text not in self._log.read_text(encoding="utf-8"):
            assert time.monotonic() < end, self._log.read_text(encoding="utf-8")[-3000:]
            time.sleep(0.02)

    def kill_after(self, seconds: float) -> None:
        """Kill it then, wherever it is, if it is still there."""
        time.sleep(seconds)
        with suppress(ProcessLookupError):
            self.send(signal.SIGKILL)

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def end(self) -> Ended:
        """Wait for its end; where it begins again in its own place, for that one's."""
        while (answer := self._answer())[0] == "pid":
            self.pid = answer[1]
        apart = self._error.read_text(encoding="utf-8") if self._error != self._log else ""
        return Ended(answer[1], self._log.read_text(encoding="utf-8"), apart)


class Trainings:
    """Runs attempts one after the other, each in the real training stack, which is imported once.

    A Hub stand-in that they are to see listens on `port`: the client reads its address when it is imported. What comes
    from it is kept below `home`.
    """

    def __init__(self, python: str, script: Path, model: Path, folder: Path) -> None:
        self._script, self._model, self._folder, self._count = script, model, folder, 0
        self.port, self.home = free_port(), folder / "huggingface"
        self._errors = (folder / "driver.log").open("w")
        # Compiling its layers takes longer than these few steps; the numbers are the same.
        env = os.environ | {
            "UNSLOTH_COMPILE_DISABLE": "1", "UNSLOTH_DISABLE_STATISTICS": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
            "OMP_NUM_THREADS": "1", "HF_HOME": str(self.home),
            "HF_ENDPOINT": f"http://127.0.0.1:{self.port}", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
        }  # fmt: skip
        self._driver = subprocess.Popen(
            [python, str(DRIVER)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, cwd=folder, env=env,
        )  # fmt: skip
        assert self._driver.stdout is not None
        for line in self._driver.stdout:
            if line == "ready\n":
                break

    def start(
        self,
        output: Path | None,
        *args: object,
        fate: dict[str, Any] | None = None,
        env: dict[str, str] | None = None,
        **flags: Any,
    ) -> Training:
        """Begin an attempt that writes to `output`, with some flags other than those of all these trainings.

        `fate`: what happens to it on its way, as train_driver.py knows it.
        """
        chosen: dict[str, object] = {
            "model": self._model, "output_dir": output, "eval_rows": 0, "sample_rows": 0, "max_steps": 5,
            "batch_size": 1, "gradient_accumulation": 2, "max_length": 64, "learning_rate": 1e-3, "logging_steps": 1,
            "lora_r": 4, "lora_dropout": 0.1, "checkpoint_minutes": 0.0001, "trackio_project": "", "device": "cpu",
        }  # fmt: skip
        chosen |= flags
        words = [word for name, value in chosen.items() if value is not None for word in (f"--{name}", str(value))]
        return self._begin(self._script, [*words, *map(str, args)], env or {}, None, fate or {})

    def run(self, output: Path | None, *args: object, **how: Any) -> Ended:
        """An attempt from its beginning to its end."""
        return self.start(output, *args, **how).end()

    def run_script(self, script: Path, folder: Path, *args: object, env: dict[str, str] | None = None) -> Ended:
        """Any script with no flags but these, in that folder, its stderr apart."""
        return self._begin(script, [*map(str, args)], env or {}, folder, {}).end()

    def _begin(
        self, script: Path, args: list[str], env: dict[str, str], folder: Path | None, fate: dict[str, Any]
    ) -> Training:
        self._count += 1
        log = self._folder / f"{self._count}.log"
        error = self._folder / f"{self._count}.error" if folder else log
        for path in (log, error):
            path.touch()
        request: dict[str, Any] = {
            "script": str(script), "args": args, "cwd": str(folder or self._folder), "out": str(log),
            "error": str(error), "env": {"HF_HUB_OFFLINE": "1"} | env, "fate": fate,
        }  # fmt: skip
        assert self._driver.stdin is not None
        self._driver.stdin.write(json.dumps(request) + "\n")
        self._driver.stdin.flush()
        return Training(self._driver, log, error)

    def close(self) -> None:
        assert self._driver.stdin is not None
        self._driver.stdin.close()
        assert self._driver.stdout is not None
        self._driver.wait(60)
        self._driver.stdout.close()
        self._errors.close()


def free_port() -> int:
    """A port below those that the system gives away by itself, to nobody else meanwhile."""
    for port in random.sample(range(20_000, 30_000), 100):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise OSError("no port of this machine is free")


def write_rows(path: Path, count: int) -> Path:
    """Short chats, no two of them the same."""
    rows = [
        {
            "prompt": f"What colour is house {number}?",
            "completion": f"House {number} is {'red' if number % 2 else 'blue'}.",
        }
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def weights(folder: Path) -> dict[str, list[float]]:
    """The adapter's weights, read without the library that wrote them."""
    content = (folder / "adapter_model.safetensors").read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            assert entry["dtype"] == "F32"
            first, last = entry["data_offsets"]
            found[name] = array("f", content[start + first : start + last]).tolist()
    return found


def distance(one: dict[str, list[float]], other: dict[str, list[float]]) -> float:
    """The largest difference between two weights of the same place."""
    assert set(one) == set(other)
    return max(abs(a - b) for name in one for a, b in zip(one[name], other[name], strict=True))
