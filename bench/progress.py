"""The scripts' lines of progress, for trainers that are not the scripts'."""

from __future__ import annotations

import time
from typing import Any

STARTED = time.monotonic()


class Progress:
    """Mixed into a trainer: counts tokens, and prints a line for every log."""

    tokens_seen: Any = 0
    mark = (0, 0, 0.0)
    startup_s: float | None = None

    def training_step(self, model: Any, inputs: Any, *rest: Any) -> Any:
        if self.startup_s is None:
            now = time.monotonic()
            self.startup_s, self.mark = now - STARTED, (0, 0, now)
        # Sums stay on the GPU, so that counting never makes it wait.
        mask = inputs.get("attention_mask")
        self.tokens_seen = self.tokens_seen + (inputs["input_ids"].numel() if mask is None else mask.sum())
        return super().training_step(model, inputs, *rest)  # type: ignore[misc]

    def log(self, logs: dict[str, float], *rest: Any) -> None:
        super().log(logs, *rest)  # type: ignore[misc]
        state: Any = self.state  # type: ignore[attr-defined]
        step, now, seen = state.global_step, time.monotonic(), int(self.tokens_seen)
        last_step, last_seen, last_time = self.mark
        if "eval_loss" in logs:
            print(f"eval step {step}/{state.max_steps} | loss {logs['eval_loss']:.4f}", flush=True)
        elif "loss" in logs:
            speed = (seen - last_seen) / (now - last_time)
            eta = (state.max_steps - step) * (now - last_time) / max(step - last_step, 1)
            line = f"step {step}/{state.max_steps} | loss {logs['loss']:.4f} | lr {logs['learning_rate']:.2e}"
            print(f"{line} | {speed:.0f} tok/s | eta {eta:.0f}s", flush=True)
        self.mark = (step, seen, now)
