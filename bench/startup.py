"""How long `launch --help` takes against `hf --help`: both from this environment, in turns, in fresh processes.

    python bench/startup.py [--runs 20]

Prints a markdown table. It claims nothing and fails on no figure: a busy machine makes both slow, so read the two
columns against each other. `hf` is the yardstick because it is what people type to reach the same service.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

COMMANDS = {"launch": ("launch", "launcher.cli"), "hf": ("hf", "huggingface_hub.cli.hf")}
# Neither may ask the network for a newer version of itself, or find a terminal to draw for.
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1", "NO_COLOR": "1"}
_IMPORT_TIME = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \|( +)(\S+)")


def main(runs: int) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for turn in range(runs + 1):  # the first turn only fills the disk's and Python's caches
        for name in COMMANDS:
            taken = help_seconds(name)
            if turn:
                seconds[name].append(taken)
    print(f"`--help` in a fresh process, {runs} runs each, alternating. {where()}\n")
    print("| command | median ms | min ms | max ms |\n| --- | ---: | ---: | ---: |")
    for name, taken_s in seconds.items():
        figures = (statistics.median(taken_s), min(taken_s), max(taken_s))
        print(f"| `{name} --help` | {' | '.join(f'{1000 * figure:.0f}' for figure in figures)} |")
    medians = {name: statistics.median(taken_s) for name, taken_s in seconds.items()}
    print(f"\nlaunch takes {medians['launch'] / medians['hf']:.2f} times as long as hf.\n")
    print("The slowest imports of launch, each without what it imports itself:\n")
    print("| module | ms | with its own imports, ms |\n| --- | ---: | ---: |")
    for module, own_us, total_us in slowest_imports("launch", 5):
        print(f"| `{module}` | {own_us / 1000:.1f} | {total_us / 1000:.1f} |")


def help_seconds(name: str) -> float:
    """Wall seconds of one `NAME --help`, from the start of the process to its end."""
    command = [str(executable(name)), "--help"]
    start = time.perf_counter()
    subprocess.run(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def slowest_imports(name: str, count: int) -> list[tuple[str, int, int]]:
    """Modules that `NAME --help` imports, slowest first: name, its own microseconds, those with what it imports."""
    command = [sys.executable, "-X", "importtime", str(executable(name)), "--help"]
    report = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True).stderr
    found = [(module, int(own), int(total)) for own, total, _, module in _IMPORT_TIME.findall(report)]
    return sorted(found, key=lambda row: row[1], reverse=True)[:count]


def executable(name: str) -> Path:
    path = Path(sys.executable).parent / name
    if not path.exists():
        sys.exit(f"there is no {path}: install the launcher into this environment, `pip install -e .`")
    return path


def where() -> str:
    """Date, machine and versions, as one sentence."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("launch-sft", "huggingface_hub", "typer", "click"))
    return (
        f"{date.today():%d %B %Y}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}, {versions}."
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, help="processes of each command")
    main(parser.parse_args().runs)
