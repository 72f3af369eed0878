"""`launch` from its first moment: it imports little, so that whatever ends it then finds it ready."""

from __future__ import annotations

import io
import sys

from launcher.cli import signals


def main() -> None:
    """Run the command line; what ends it before it has begun is said in one line, and becomes its exit status."""
    try:
        signals.catch()
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # what an encoding does not have is no reason to fail
                stream.reconfigure(errors="backslashreplace")
        from launcher.cli.app import main as run

        run()
    except KeyboardInterrupt as stop:
        sys.exit(signals.tell(stop))
