"""Saves an adapter of 1 MiB with the script's own function, in the script's own environment.

    python disk_driver.py SCRIPT FOLDER SEED [LIMIT]

The adapter is written by the library that writes the real ones; all of its weights equal SEED. LIMIT is the size in
bytes that no file may pass, as a quota of the system has it. Says `saved`, or the error as the script does.
"""

from __future__ import annotations

import resource
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.faults.script_driver import load


class Adapter:
    def __init__(self, seed: float) -> None:
        self.seed = seed

    def save_pretrained(self, folder: Path) -> None:
        import numpy  # type: ignore[import-not-found]
        from safetensors.numpy import save_file

        (folder / "adapter_config.json").write_text(f'{{"seed": {self.seed}}}', encoding="utf-8")
        weights = numpy.full((512, 512), self.seed, dtype=numpy.float32)
        save_file({"lora_A": weights}, folder / "adapter_model.safetensors")


def main() -> int:
    script, folder, seed, *limit = sys.argv[1:]
    module = load(script)
    if limit:
        # Without the signal that would end the process: the write itself fails, as on a full disk.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit[0]), int(limit[0])))
    try:
        module.save(Path(folder), Adapter(float(seed)))
    except module.UserError as problem:
        print(f"error: {problem.paragraph}", file=sys.stderr, flush=True)
        return int(problem.status)
    print("saved", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
