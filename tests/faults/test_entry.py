"""The command from its first moment to its last: signals, encodings, arguments that are no text, no room for output."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.jobs import folder as runs
from launcher.jobs.local import LocalBackend
from launcher.jobs.service import HubBackend
from tests.emulator import Hub
from tests.faults.command import run
from tests.unit.sample import plan, request

LAUNCH = Path(sys.executable).with_name("launch")
ENDS = [
    pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
    (signal.SIGTERM, 143),
    pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow),
]


def begin(*args: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [LAUNCH, *args], env=os.environ | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize(("number", "status"), ENDS)
def test_what_ends_it_while_it_loads_is_one_line(tmp_path: Path, number: signal.Signals, status: int) -> None:
    (tmp_path / "typer.py").write_text("import time\nprint('loading', flush=True)\ntime.sleep(60)\n")
    process = begin("ps", PYTHONPATH=str(tmp_path))
    assert process.stdout and process.stdout.readline() == "loading\n"
    process.send_signal(number)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out, error) == (status, "", "interrupted.\n")


@pytest.mark.parametrize(("number", "status"), ENDS)
def test_a_question_that_is_ended_is_one_line(hub: Hub, number: signal.Signals, status: int) -> None:
    hub.fail_next("slow", "GET /api/whoami-v2", seconds=5)
    process = begin("ps")
    while not hub_was_asked(hub):
        time.sleep(0.02)
    process.send_signal(number)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out, error) == (status, "", "interrupted.\n")


def hub_was_asked(hub: Hub) -> bool:
    return not hub.failures.queue


@pytest.mark.parametrize(("number", "status"), ENDS)
def test_a_job_that_is_followed_goes_on_and_is_named(hub: Hub, number: signal.Signals, status: int) -> None:
    job = hub.jobs[HubBackend().submit(request("pass")).id]
    job.say("== train")
    process = begin("wait", job.id)
    assert process.stderr and process.stderr.readline().strip() == "== train"
    process.send_signal(number)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == status
    assert f"`launch wait tester/{job.id}` comes back to it" in error and "its bill" in error
    assert not job.ended


@pytest.mark.parametrize(("number", "status"), ENDS)
def test_a_run_of_this_machine_is_stopped_by_ctrl_c_alone(number: signal.Signals, status: int) -> None:
    body = "import os, time\nprint('ready', flush=True)\nwhile not os.path.exists('go'): time.sleep(0.05)\n"
    backend = LocalBackend(grace_s=2)
    job = backend.submit(request(body, flavor="local", of=plan(flavor="local")))
    process = begin("wait", job.id)
    assert process.stderr
    while process.stderr.readline().strip() != "ready":
        pass
    process.send_signal(number)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == status and job.id in error
    if number == signal.SIGINT:
        assert backend.inspect(job.id).stage == "CANCELED"
        return
    assert "goes on" in error and not backend.inspect(job.id).ended
    (runs.load(job.id).folder / "go").touch()
    list(backend.logs(job.id, follow=True))
    assert backend.inspect(job.id).succeeded


@pytest.mark.parametrize(
    "env",
    [
        pytest.param({"PYTHONIOENCODING": "ascii"}, marks=pytest.mark.slow),
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ],
)
def test_a_terminal_that_knows_ascii_only_is_no_reason_to_fail(hub: Hub, env: dict[str, str]) -> None:
    job = hub.jobs[HubBackend().submit(request("pass", labels={"launcher": "test"})).id]
    job.say("⟦ ⟧ é 火", 'RESULT {"steps": 1, "url": "https://é"}')
    job.finish("COMPLETED")
    # All at once: what each waits for is its own start.
    asked = [("logs", job.id), ("plan", "--model", "qwen3-8b")]
    for process in [begin(*args, **env) for args in asked]:
        out, error = process.communicate(timeout=100)
        assert (process.returncode, "Traceback" in error) == (0, False), error
        assert out.isascii() and error.isascii()
    assert "\\u27e6 \\u27e7 \\xe9" in begin("logs", job.id, **env).communicate(timeout=100)[0]


@pytest.mark.parametrize(
    "args",
    [
        ("plan", "--model", "a\udcff"),
        ("logs", "\ud800"),
        ("--label", "a=\udc80"),
        ("ps", "\udcff"),
        ("rerun", "\udcff"),
    ],
)
def test_an_argument_that_is_no_text_is_refused(args: tuple[str, ...]) -> None:
    answer = run(*args)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert "is not UTF-8" in answer.stderr


@pytest.mark.parametrize("digits", ["9" * 5000, "9" * 400, "1e308", "-" + "9" * 5000, "nan", "inf", "²"])
@pytest.mark.parametrize("option", ["--max-cost", "--timeout", "--max-steps", "--learning-rate", "--batch-size"])
def test_numbers_beyond_all_measure_are_refused(option: str, digits: str) -> None:
    for command in (("plan", "--model", "qwen3-8b"), ("--model", "qwen3-8b", "--dry-run")):
        answer = run(*command, option, digits)
        assert (answer.returncode in (2, 3), "Traceback" in answer.stderr) == (True, False), answer.stderr
        assert len(answer.stderr) < 4000


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_no_room_for_what_it_prints_is_said() -> None:
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(
            [LAUNCH, "models"], stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=100
        )
    assert ran.returncode == 4
    assert "No space left" in ran.stderr and "Traceback" not in ran.stderr
