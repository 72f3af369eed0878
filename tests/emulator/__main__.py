"""Runs the stand-in until Ctrl-C, and prints what points the client at it."""

from __future__ import annotations

import argparse
import shlex
import tempfile
import time
from pathlib import Path

from tests.emulator.server import Hub


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.emulator", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one")
    parser.add_argument("--root", type=Path, help="where jobs and buckets live; a temporary folder by default")
    parser.add_argument("--no-run", action="store_true", help="record jobs without running them")
    args = parser.parse_args()
    root = args.root or Path(tempfile.mkdtemp(prefix="hub-"))
    with Hub(root, port=args.port, run=not args.no_run) as hub:
        for name, value in hub.env().items():
            print(f"export {name}={shlex.quote(value)}", flush=True)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
