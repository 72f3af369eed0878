"""The watchdog: a run in which no step ends any more is ended, so that the next attempt goes on from the checkpoint."""

from __future__ import annotations

import faulthandler
import os
import statistics
import sys
import threading
import time

from parts.say import tell


class Watchdog:
    """Ends the process when nothing was heard for `least_s`, 20 median steps, or twice what compiling takes."""

    def __init__(self, compile_s: float = 0.0, least_s: float = 900.0) -> None:
        self.floor_s, self.steps, self.heard = max(least_s, 2 * compile_s), list[float](), time.monotonic()
        self.watching = threading.Event()
        threading.Thread(target=self.watch, daemon=True).start()

    def beat(self, step_s: float | None = None) -> None:
        """Say that it goes on; `step_s` is what a step took that has just ended."""
        self.heard = time.monotonic()
        if step_s is not None:
            self.steps = [*self.steps[-99:], step_s]

    def limit_s(self) -> float:
        return max(self.floor_s, 20 * statistics.median(self.steps) if self.steps else 0.0)

    def watch(self) -> None:
        while self.watching.wait():
            time.sleep(min(self.limit_s() / 10, 5))
            silent_s = time.monotonic() - self.heard
            if self.watching.is_set() and silent_s > self.limit_s():
                faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
                told = f"error: stalled: no step has ended for {silent_s:.0f} s. The stacks above show where it hangs;"
                tell(f"{told} run this again: it goes on from the last checkpoint.", sys.stderr)
                os._exit(1)
