"""How long `launch --help` and `launch plan` take against `hf --help`: in turns, in fresh processes.

    python bench/startup.py [--runs 20]

Prints a markdown table. It claims nothing and fails on no figure: a busy machine makes all of them slow, so read the
rows against each other; the CPU's own time (user and system) says what the machine's other work does not touch. `hf` is
the yardstick because it is what people type to reach the same service.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

COMMANDS = (
    ("launch", "--help"),
    ("hf", "--help"),
    ("launch", "plan", "--model", "qwen3-8b", "--json"),
    ("launch", "plan", "--model", "qwen3-8b"),
)
_SHOWN = "launch plan --model qwen3-8b"
_IMPORT_TIME = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \|( +)(\S+)")


def main(runs: int) -> None:
    taken: dict[str, list[Taken]] = {" ".join(command): [] for command in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        environment = make_environment(Path(folder))
        for turn in range(runs + 1):  # the first turn only fills the disk's and Python's caches
            for command in COMMANDS:
                once = run(command, environment)
                if turn:
                    taken[" ".join(command)].append(once)
        imports = slowest_imports(COMMANDS[-1], 5, environment)
    print(f"Fresh processes, {runs} of each, in turns; milliseconds. {where()}\n")
    print("| command | median | min | max | CPU, median | CPU, min |\n| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, times in taken.items():
        walls, cpus = [each.wall_s for each in times], [each.cpu_s for each in times]
        figures = (statistics.median(walls), min(walls), max(walls), statistics.median(cpus), min(cpus))
        print(f"| `{name}` | {' | '.join(f'{1000 * figure:.0f}' for figure in figures)} |")
    medians = {name: statistics.median(each.wall_s for each in times) for name, times in taken.items()}
    print(
        f"\n`launch --help` takes {medians['launch --help'] / medians['hf --help']:.2f} times as long as hf's, ", end=""
    )
    print(f"a plan {medians[_SHOWN] / medians['hf --help']:.2f} times.\n")
    print(f"The slowest imports of `{_SHOWN}`, each without what it imports itself:\n")
    print("| module | ms | with its own imports, ms |\n| --- | ---: | ---: |")
    for module, own_us, total_us in imports:
        print(f"| `{module}` | {own_us / 1000:.1f} | {total_us / 1000:.1f} |")


@dataclass(frozen=True, slots=True)
class Taken:
    """Seconds of one process: on the clock, and of the CPU."""

    wall_s: float
    cpu_s: float


def make_environment(folder: Path) -> dict[str, str]:
    """An installed command's surroundings: compiled modules are kept, nothing is remembered of earlier runs.

    Neither command may ask the network for a newer version of itself, or find a terminal to draw for.
    """
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "NO_COLOR": "1",
        "LAUNCH_HOME": str(folder / "home"),
        "PYTHONPYCACHEPREFIX": str(folder / "compiled"),
    }


def run(command: tuple[str, ...], environment: dict[str, str]) -> Taken:
    """Run it once, from the start of the process to its end."""
    arguments = [str(executable(command[0])), *command[1:]]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    wall_s, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Taken(wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def slowest_imports(command: tuple[str, ...], count: int, environment: dict[str, str]) -> list[tuple[str, int, int]]:
    """Modules that the command imports, slowest first: name, its own microseconds, those with what it imports."""
    arguments = [sys.executable, "-X", "importtime", str(executable(command[0])), *command[1:]]
    report = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True).stderr
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
