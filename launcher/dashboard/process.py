"""The process that serves Trackio's dashboard: Trackio as the scripts pin it, run with uv, to this machine only."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from launcher import catalog
from launcher.errors import RequestError
from launcher.jobs.environment import misleading, uv_run

SERVER = Path(__file__).with_name("server.py")
HOST = "127.0.0.1"

# A dashboard of this machine asks nobody and tells nobody, and needs no account for that.
_QUIET = {
    "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1", "GRADIO_ANALYTICS_ENABLED": "False",
    "PYTHONUNBUFFERED": "1",
}  # fmt: skip
_ACCOUNT = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
# Trackio takes a Space, a server, a bucket, a public link from its environment: of all that, only where its data is.
_PREFIXES = ("TRACKIO_", "GRADIO_", "SPACE_")
_KEPT = ("TRACKIO_DIR", "TRACKIO_COLOR_PALETTE", "TRACKIO_PLOT_ORDER", "TRACKIO_STORAGE_MODE")
_END_S = 10.0


def require_port(port: int) -> None:
    """Raise `RequestError` where nothing can listen on that port of this machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise RequestError(
                f"--port {port} can't be used: {error.strerror or error}.",
                "Give another one, or leave it away: the first free one from 7860 on is taken.",
            ) from error


@contextmanager
def started(places: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """The server, which ends when its stdin is closed; what it says on stderr is shown as it comes.

    `places` are variables that say where Trackio's data is.
    """
    stack = catalog.shipped().stack
    command = [
        *uv_run("--no-project"), "--exclude-newer", stack.exclude_newer,
        "--with", f"trackio=={stack.pins['trackio']}", str(SERVER),
    ]  # fmt: skip
    with subprocess.Popen(
        command, env=environment(os.environ, places), stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
    ) as process:
        try:
            yield process
        finally:
            with suppress(OSError):
                assert process.stdin is not None
                process.stdin.close()
            try:
                process.wait(_END_S)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                process.kill()


def environment(of: Mapping[str, str], places: Mapping[str, str]) -> dict[str, str]:
    """The variables that the server gets: no account, and nothing that would take the metrics anywhere else."""
    dropped = {*misleading(of), *_ACCOUNT, "SYSTEM"}
    kept = {name: value for name, value in of.items() if name in _KEPT or not name.startswith(_PREFIXES)}
    return {name: value for name, value in kept.items() if name not in dropped} | dict(places) | _QUIET


@contextmanager
def stopped_like_ctrl_c() -> Iterator[None]:
    """Take SIGTERM, and a terminal that is closed, as Ctrl-C: the server ends and what it was given goes."""
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def send(stdin: IO[str], item: Mapping[str, Any]) -> None:
    """Tell the server one thing."""
    stdin.write(json.dumps(item) + "\n")
    stdin.flush()
