"""The clock: how much time is left, over all attempts of a Job, and an end to what does not return."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from parts.clock import STARTED, Clock, deadline

from tests.unit.sample import options

TEMPLATES = Path(__file__).parents[3] / "templates"


def test_the_timeout_counts_from_the_beginning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("JOB_ID", raising=False)
    assert deadline(0, tmp_path) == math.inf
    assert deadline(60, tmp_path) == pytest.approx(STARTED + 60)
    # The first process of this machine is older than a minute's Job can be, and younger than a year's.
    monkeypatch.setenv("JOB_ID", "1")
    assert deadline(1, tmp_path) == pytest.approx(STARTED + 1, abs=0.1)
    monkeypatch.setenv("JOB_ID", "2")
    year = 365 * 86400
    assert time.monotonic() < deadline(year, tmp_path) <= STARTED + year + 0.1


def test_a_second_attempt_has_what_the_first_left_of_the_timeout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("JOB_ID", "job")
    first = deadline(3600, tmp_path)
    began = next(tmp_path.glob("began-*"))
    began.write_text(str(float(began.read_text()) - 600))
    assert deadline(3600, tmp_path) == pytest.approx(first - 600, abs=5)
    # A Job that resumes this one has a timeout of its own.
    monkeypatch.setenv("JOB_ID", "another")
    assert deadline(3600, tmp_path) == pytest.approx(first, abs=5)


@pytest.mark.parametrize("noted", ["", "half past", "\0", "nan", "-inf", "0", "-1e308", "inf", b"\xff"])
def test_a_beginning_that_can_not_be_read_is_this_attempts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, noted: str | bytes
) -> None:
    monkeypatch.setenv("JOB_ID", "job")
    first = deadline(3600, tmp_path)
    file = next(tmp_path.glob("began-*"))
    file.write_bytes(noted if isinstance(noted, bytes) else noted.encode())
    assert deadline(3600, tmp_path) == pytest.approx(first, abs=5)


def test_a_beginning_that_can_not_be_noted_is_said_and_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JOB_ID", "job")
    first = deadline(3600, tmp_path)
    file = next(tmp_path.glob("began-*"))
    file.unlink()
    file.mkdir()
    assert deadline(3600, tmp_path) == pytest.approx(first, abs=5)
    assert "does not say when this Job began" in capsys.readouterr().out


def test_only_a_job_has_the_timeout_that_was_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOB_ID", raising=False)
    assert options().timeout_s == 0
    assert options("--timeout-s", "70").timeout_s == 70
    monkeypatch.setenv("JOB_ID", "1")
    assert options().timeout_s == type(options()).timeout_s > 0


def test_a_second_interrupt_ends_it() -> None:
    clock = Clock()
    clock.on_signal(signal.SIGINT, None)
    clock.on_signal(signal.SIGINT, None)  # uv passes on what the terminal has sent already
    clock.signalled -= 2
    with pytest.raises(KeyboardInterrupt):
        clock.on_signal(signal.SIGINT, None)


# A library that does not return, in a process of its own: the clock's thread ends it.
STUCK = """
import sys, time
from parts.clock import Clock
clock = Clock()
def last_words():
    print("last words", flush=True)
    return 7
clock.start(time.monotonic() + float(sys.argv[1]), last_words)
clock.at_once = sys.argv[2] == "at once"
print("stuck", flush=True)
time.sleep(float(sys.argv[3]))
clock.rest()
print("on time", flush=True)
"""


def stuck(left_s: float, how: str, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", STUCK, str(left_s), how, str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=TEMPLATES)


def test_what_does_not_return_in_time_is_ended_with_last_words() -> None:
    with stuck(5.5, "", 60) as late, stuck(60, "", 0) as early:
        assert late.stdout and early.stdout
        assert (late.stdout.read(), late.wait(30)) == ("stuck\nlast words\n", 7)
        assert (early.stdout.read(), early.wait(30)) == ("stuck\non time\n", 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_before_the_training_a_signal_is_enough(number: signal.Signals) -> None:
    with stuck(math.inf, "at once", 60) as asked:
        assert asked.stdout
        assert asked.stdout.readline() == "stuck\n"
        asked.send_signal(number)
        assert (asked.stdout.read(), asked.wait(30)) == ("last words\n", 7)


# Deep in a library that Python can't interrupt, as a compiler on a GPU is.
DEAF = """
from parts.clock import CLOCK
import parts.clock
parts.clock.GRACE_S = 6
CLOCK.start(float("inf"), lambda: 9)
CLOCK.at_once = False
import hashlib, threading
# Said once the main thread is there: minutes in C, where it runs no handler of Python's.
threading.Timer(0.5, print, ["deaf"], {"flush": True}).start()
hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""


def test_a_signal_ends_it_within_its_grace_whatever_a_library_does() -> None:
    with subprocess.Popen([sys.executable, "-c", DEAF], stdout=subprocess.PIPE, text=True, cwd=TEMPLATES) as deaf:
        assert deaf.stdout
        assert deaf.stdout.readline() == "deaf\n"
        deaf.send_signal(signal.SIGTERM)
        try:
            assert deaf.wait(50) == 9
        finally:
            deaf.kill()


INTERRUPTED = """
import time
from parts.clock import errors_told
with errors_told():
    print("⟦ \\udcff ⟧", flush=True)
    time.sleep(60)
"""


def test_ctrl_c_in_the_first_moments_is_one_line_in_any_encoding() -> None:
    command, env = [sys.executable, "-c", INTERRUPTED], os.environ | {"PYTHONIOENCODING": "ascii"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=TEMPLATES, env=env
    ) as begun:
        assert begun.stdout and begun.stderr
        assert begun.stdout.readline() == "\\u27e6 \\udcff \\u27e7\n"
        begun.send_signal(signal.SIGINT)
        assert (begun.stderr.read(), begun.wait(30)) == ("error: interrupted.\n", 130)


REFUSE = """
import sys
from parts.clock import errors_told
from parts.say import UserError
with errors_told():
    print("looks at the rows")
    raise UserError("row 7: the user's message is empty.", "Mend it.", status=int(sys.argv[1]))
"""


def test_what_an_attempt_refused_is_refused_at_once_by_the_next(tmp_path: Path) -> None:
    def attempt(job: str, status: int = 2) -> tuple[int, bool, str]:
        env = os.environ | {"PYTHONPATH": str(TEMPLATES), "JOB_ID": job, "LAUNCH_DATA_DIR": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", REFUSE, str(status)], env=env, capture_output=True, text=True, check=False
        )
        return done.returncode, "looks" in done.stdout, done.stderr

    said = "error: row 7: the user's message is empty. Mend it.\n"
    assert attempt("one", 3) == (3, True, said)
    assert attempt("one") == (2, True, said)
    assert attempt("one") == (2, False, said)
    # Another Job may find other rows.
    assert attempt("other") == (2, True, said)
