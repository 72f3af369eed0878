"""Breaks each promise of docs/reliability.md on purpose, and shows which of its tests notice.

    uv run python bench/mutants.py                 # all of them, with one run of the named tests on the unbroken tree
    uv run python bench/mutants.py kept disk       # those whose name holds one of these words
    uv run python bench/mutants.py --list

Works on a copy of the tree with an environment of its own. A mutant is caught where every test that it names fails;
one that no test catches, and a test that fails on the unbroken tree, make the exit status 1. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from uv import find_uv_bin

ROOT = Path(__file__).parents[1]
TABLE = Path(__file__).with_suffix(".toml")
PAGE = ROOT / "docs" / "reliability.md"
PYTEST = ["-m", "pytest", "-q", "-n0", "-m", "", "-p", "no:cacheprovider"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One promise, broken: in `file` the text `old`, which is there once, becomes `new`, and each of `tests` fails."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def read() -> list[Mutant]:
    """The mutants of bench/mutants.toml."""
    rows = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    return [Mutant(name=name, **row | {"tests": tuple(row["tests"])}) for name, row in rows.items()]


def promises() -> dict[str, set[str]]:
    """The tests that hold each promise of the page, by its text."""
    _, _, table = PAGE.read_text(encoding="utf-8").partition("| promise | held by |\n")
    rows = [row.strip("| ").split(" | ") for row in table.partition("\n\n")[0].splitlines()[1:]]
    return {promise: set(re.findall(r"`(tests/[\w/]+\.py::\w+)`", held_by)) for promise, held_by in rows}


class Copy:
    """A copy of the tree in which anything may be broken."""

    def __init__(self, folder: Path) -> None:
        listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\n")
        for name in filter(None, names):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        self.folder, self.python = folder, folder / ".venv" / "bin" / "python"
        self.env = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
        subprocess.run([find_uv_bin(), "sync", "--quiet"], cwd=folder, env=self.env, check=True)

    def failed(self, tests: list[str]) -> tuple[set[str], str]:
        """Those of the tests that do not pass, and the end of what pytest said."""
        report = self.folder / "report.xml"
        report.unlink(missing_ok=True)
        done = subprocess.run(
            [str(self.python), *PYTEST, f"--junitxml={report}", *tests],
            cwd=self.folder, env=self.env, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if "KeyboardInterrupt" in done.stdout:
            # One that interrupts, and is not understood, ends them all.
            return {*tests}, done.stdout
        if done.returncode not in (0, 1):
            raise SystemExit(f"pytest ended with status {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
        failed = set()
        for case in ElementTree.parse(report).iter("testcase"):
            if case.find("failure") is not None or case.find("error") is not None:
                path = case.attrib["classname"].replace(".", "/")
                failed.add(f"{path}.py::{case.attrib['name'].partition('[')[0].partition('@')[0]}")
        return failed, done.stdout

    def broken(self, mutant: Mutant) -> set[str]:
        """The tests that fail while the mutant lives."""
        path = self.folder / mutant.file
        text = path.read_text(encoding="utf-8")
        assert text.count(mutant.old) == 1, mutant.name
        try:
            path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
            self._render()
            return self.failed([*mutant.tests])[0]
        finally:
            path.write_text(text, encoding="utf-8")
            self._render()

    def _render(self) -> None:
        render = [str(self.python), "bench/committed.py"]
        subprocess.run(render, cwd=self.folder, env=self.env, check=True, capture_output=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="Only the mutants whose name holds one of these.")
    parser.add_argument("--list", action="store_true", help="Only say which there are.")
    parser.add_argument("--unbroken", action=argparse.BooleanOptionalAction, default=True,
                        help="First run the named tests on the tree as it is.")  # fmt: skip
    asked = parser.parse_args()
    chosen = [mutant for mutant in read() if not asked.words or any(word in mutant.name for word in asked.words)]
    if asked.list:
        print("\n".join(f"{mutant.name}: {mutant.file}" for mutant in chosen))
        return 0
    survivors = 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as place:
        copy = Copy(Path(place))
        if asked.unbroken:
            tests = sorted({test for mutant in chosen for test in mutant.tests})
            failed, said = copy.failed(tests)
            print(f"unbroken: {len(tests) - len(failed)} of {len(tests)} named tests pass", flush=True)
            if failed:
                print(said[-5000:])
                return 1
        print("| broken on purpose | noticed by | s |\n| --- | --- | ---: |", flush=True)
        for mutant in chosen:
            began = time.monotonic()
            missed = {*mutant.tests} - copy.broken(mutant)
            survivors += bool(missed)
            names = ", ".join(f"`{test.partition('::')[2]}`{' **passed**' * (test in missed)}" for test in mutant.tests)
            print(f"| {mutant.name} | {names} | {time.monotonic() - began:.0f} |", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
