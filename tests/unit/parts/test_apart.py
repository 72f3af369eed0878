"""A step in a process of its own: what it returns, how it fails, and that it ends when the time is up."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from parts.apart import TimeUpError, apart, require_time
from parts.clock import CLOCK
from parts.compare import DifferentError
from parts.say import UserError


@pytest.fixture
def clock() -> Iterator[None]:
    yield
    CLOCK.deadline, CLOCK.signalled = float("inf"), 0.0


def process_of(number: int) -> tuple[int, int]:
    return os.getpid(), number + 1


def fail(kind: str) -> None:
    if kind == "user":
        raise UserError("it is wrong.", "Mend it.", 3)
    if kind == "different":
        raise DifferentError("it is another")
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise ValueError("the first line\nand more of it")


def stay(folder: str) -> None:
    """Begins a child, notes both, and never ends."""
    child = subprocess.Popen(["sleep", "600"])
    Path(folder, "new").write_text(f"{os.getpid()} {child.pid}", encoding="utf-8")
    Path(folder, "new").rename(Path(folder, "pids"))
    time.sleep(600)


def test_a_step_returns_from_another_process() -> None:
    pid, number = apart(process_of, 1)
    assert (pid != os.getpid(), number) == (True, 2)


@pytest.mark.parametrize(
    ("kind", "error", "says"),
    [
        ("user", UserError, "it is wrong"),
        ("different", DifferentError, "it is another"),
        ("killed", RuntimeError, "it was killed by signal 9, as where memory does not suffice"),
        ("other", RuntimeError, "^the first line$"),
    ],
)
def test_a_step_that_fails_says_why(kind: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says) as found:
        apart(fail, kind)
    if isinstance(found.value, UserError):
        assert (found.value.status, found.value.paragraph) == (3, "it is wrong. Mend it.")


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_step_ends_with_its_children_when_the_run_is_asked_to_stop(tmp_path: Path, clock: None) -> None:
    def ask_to_stop() -> None:
        while not (tmp_path / "pids").exists():
            time.sleep(0.05)
        CLOCK.signalled = time.monotonic()

    threading.Thread(target=ask_to_stop, daemon=True).start()
    with pytest.raises(TimeUpError, match="asked to stop"):
        apart(stay, str(tmp_path))
    pids = [int(pid) for pid in (tmp_path / "pids").read_text(encoding="utf-8").split()]
    while any(map(is_alive, pids)):
        time.sleep(0.05)


def test_what_can_not_end_in_time_is_not_begun(clock: None) -> None:
    require_time(1e9)
    CLOCK.deadline = time.monotonic() + 100
    require_time(10)
    with pytest.raises(TimeUpError, match=r"s are left, and about 500 s are needed"):
        require_time(500)
    CLOCK.deadline = 0
    with pytest.raises(TimeUpError, match="the time is up"):
        require_time(0)
