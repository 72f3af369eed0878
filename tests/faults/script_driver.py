"""Calls one function of a rendered script, in the script's own environment and without its waits.

    python script_driver.py SCRIPT REPO [FOLDER] [--private]

Prints `repo NAME`, `url ADDRESS` and `waits [SECONDS, …]`; a `UserError` is shown as the script shows it. It is a
program of its own because the training stack pins another release of the Hub's client than the launcher has.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any, SupportsIndex

WAITS: list[float] = []
SLEEP = time.sleep


def load(path: str) -> Any:
    spec = importlib.util.spec_from_file_location("script", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Where its dataclass looks for the types of its fields.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def brief(seconds: float | SupportsIndex) -> None:
    """In the place of `time.sleep`: the client's own waits are made short too."""
    length = float(seconds)
    if length >= 0.5:
        WAITS.append(round(length, 2))
    SLEEP(min(length, 0.01))


def main() -> int:
    path, repo, *rest = [word for word in sys.argv[1:] if word != "--private"]
    script = load(path)
    time.sleep = brief
    try:
        name = script.open_repo(repo, "--private" in sys.argv)
        print("repo", name, flush=True)
        for folder in rest:
            paths = [path.relative_to(folder) for path in sorted(Path(folder).rglob("*")) if path.is_file()]
            files = [path.as_posix() for path in paths if not path.as_posix().startswith((".", "checkpoints/"))]
            print("url", script.push(folder, name, files), flush=True)
    except script.UserError as problem:
        print(f"error: {problem.paragraph}", file=sys.stderr, flush=True)
        return int(problem.status)
    finally:
        print("waits", json.dumps(WAITS), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
