"""Seconds from a container's start to its first training step: a bare image with uv against the `job` image.

    LAUNCH_CONTAINER_DIR=/var/tmp/images uv run --group container pytest -m container    # builds and keeps the images
    uv run python -m bench.container /var/tmp/images --turns 3

As root, on one machine, in turns, with a real small model on the CPU. The bare container is fresh and its cache empty:
what Jobs' default image does at every start. Ours has no network. "From disk" reads an image whose files are not in
the page cache, as on a machine that has pulled it some time ago. Pulling an image is no part of it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from launcher import demo
from tests.container.buildah import CHECKOUT, Store, size
from tests.container.sandbox import Container
from tests.e2e.test_train_cpu import chats, write

MARKS = {"script runs": "== ", "first step": "step 1/"}
COMMAND = (
    "uv", "run", "/data/sft_text.py", "--model", "/model", "--dataset", "/data/rows.jsonl", "--device", "cpu",
    "--max-steps", "1", "--batch-size", "4", "--gradient-accumulation", "1", "--max-length", "128", "--eval-rows", "0",
    "--output-dir", "/data/output",
)  # fmt: skip


def start(container: Container, model: Path, *, network: bool) -> dict[str, float]:
    """Seconds until each mark stands in the log of a run."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        data = Path(folder)
        shutil.copy(CHECKOUT / "job_scripts" / "sft_text.py", data)
        write(data / "rows.jsonl", [{"messages": chat} for chat in chats(16)])
        argv = container.argv(
            *COMMAND, network=network, read_only=False, binds={data: "/data", model: "/model"},
            env={"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        found: dict[str, float] = {}
        started = time.monotonic()
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            assert process.stdout is not None
            lines = []
            for line in process.stdout:
                lines.append(line)
                for name, mark in MARKS.items():
                    if line.startswith(mark):
                        found.setdefault(name, time.monotonic() - started)
        if process.returncode or found.keys() != MARKS.keys():
            raise SystemExit("".join(lines[-40:]))
    return found


def forget(root: Path) -> None:
    """Drop the files under a root from the page cache."""
    os.sync()
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink():
                descriptor = os.open(path, os.O_RDONLY)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)


def main() -> None:
    """Print the table for RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    store, model = Store(arguments.store), demo.model_folder()
    ours = Container(store.root("job"), store.config("job")["config"])
    bare = store.config("base-uv")["config"]
    seen: dict[str, list[dict[str, float]]] = {"bare, empty cache": [], "job, from disk": [], "job": []}
    for _ in range(arguments.turns):
        fresh = Store(arguments.store)
        seen["bare, empty cache"].append(start(Container(fresh.root("base-uv"), bare), model, network=True))
        fresh.close()  # 7 GB by now
        forget(ours.root)
        seen["job, from disk"].append(start(ours, model, network=False))
        seen["job"].append(start(ours, model, network=False))
    gigabytes = size(ours.root) / 1e9
    store.close()
    print(f"job image: {gigabytes:.2f} GB unpacked; {arguments.turns} turns")
    print("| container | " + " | ".join(f"{name}, median s | min | max" for name in MARKS) + " |")
    print("| --- |" + " ---: | ---: | ---: |" * len(MARKS))
    for name, turns in seen.items():
        cells = []
        for mark in MARKS:
            values = [turn[mark] for turn in turns]
            cells.append(f"{statistics.median(values):.1f} | {min(values):.1f} | {max(values):.1f}")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
