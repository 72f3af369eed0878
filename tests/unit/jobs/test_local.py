"""Local runs with the real uv and real processes; what is asserted is what is on disk and what still runs."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

import pytest

from launcher import jobs
from launcher.errors import RefusedError, RequestError
from launcher.jobs import folder, supervise
from launcher.jobs.base import Job, wait
from launcher.jobs.local import LocalBackend
from launcher.runs import why
from tests.unit.sample import SAY, plan, request

T = TypeVar("T")
REPO = Path(__file__).parents[3]
ENDLESS = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open("pids", "w").write(f"{os.getpid()} {child.pid}")
print("ready")
time.sleep(600)
"""
STUBBORN = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"


@pytest.fixture
def backend() -> LocalBackend:
    return LocalBackend(grace_s=3)


def until(look: Callable[[], T | Literal[False] | None], hangs_s: float = 300) -> T:
    """The first true value of `look`; fails when there is none."""
    deadline = time.monotonic() + hangs_s
    while not (value := look()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
    return value


def pids(job: Job) -> list[int]:
    """The script and the process it started, once both are there."""
    assert job.run_dir
    file = job.run_dir / "pids"
    return until(lambda: file.exists() and [int(pid) for pid in file.read_text().split()])


def gone(pid: int) -> bool:
    return supervise.identity(pid) is None


def supervisor_of(job: Job) -> int:
    return int(folder.load(job.id).read(folder.STATUS)["supervisor"]["pid"])


def test_a_run_leaves_its_lines_its_outputs_and_its_stage(backend: LocalBackend) -> None:
    body = 'open("made.txt", "w").write("x"); print("== train"); print("step 1/1 | loss 0.5")'
    job = backend.submit(request(body))
    assert list(backend.logs(job.id, follow=True))[-2:] == ["== train", "step 1/1 | loss 0.5"]
    job = wait(backend, job.id, pause_s=0.05)
    assert (job.stage, job.succeeded, job.message) == ("COMPLETED", True, None)
    assert job.started_at and job.finished_at and job.created_at <= job.started_at <= job.finished_at
    assert job.run_dir and (job.run_dir / "made.txt").read_text() == "x"
    assert job.url == job.run_dir.as_uri()
    assert Job.from_dict(job.as_dict(), run_dir=job.run_dir) == job


def test_the_launcher_may_end_while_the_run_goes_on(backend: LocalBackend, tmp_path: Path) -> None:
    body = 'import os, time\nwhile not os.path.exists("go"): time.sleep(0.05)\nprint("done")'
    code = (
        "from launcher import jobs; from tests.unit.sample import request; import sys;"
        "sys.stdout.write(jobs.get('local').submit(request(sys.argv[1])).id)"
    )
    # With the folders that pytest looks into.
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, body]
    started = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True, check=True)
    assert [job.id for job in backend.list()] == [started.stdout]
    (folder.load(started.stdout).folder / "go").touch()
    assert wait(backend, started.stdout, pause_s=0.05).stage == "COMPLETED"
    assert list(backend.logs(started.stdout, follow=False))[-1] == "done"
    assert backend.list() == []
    assert [job.id for job in backend.list(all=True)] == [started.stdout]


def test_another_process_follows_every_line_to_the_end(backend: LocalBackend) -> None:
    body = "import time\nfor i in range(300):\n    print(i)\n    time.sleep(0.005)\nprint('é ' * 10, end='')"
    job = backend.submit(request(body))
    code = (
        "from launcher import jobs; import sys;"
        "[print(line) for line in jobs.get('local').logs(sys.argv[1], follow=True)]"
    )
    other = subprocess.run([sys.executable, "-c", code, job.id], cwd=REPO, capture_output=True, text=True, check=True)
    assert other.stdout.splitlines()[-301:] == [*map(str, range(300)), "é " * 10]
    assert backend.inspect(job.id).succeeded


def test_a_failing_script_is_an_error_with_its_status(backend: LocalBackend) -> None:
    job = wait(backend, backend.submit(request("import sys; sys.exit(7)")).id, pause_s=0.05)
    assert (job.stage, job.message) == ("ERROR", "exit status 7")


def test_cancel_leaves_no_process_behind(backend: LocalBackend) -> None:
    job = backend.submit(request(ENDLESS))
    running = pids(job)
    canceled = backend.cancel(job.id)
    assert (canceled.stage, canceled.message) == ("CANCELED", "canceled")
    assert all(gone(pid) for pid in running)
    until(lambda: gone(supervisor_of(job)))
    assert backend.cancel(job.id) == canceled


def test_a_script_that_ignores_the_request_to_end_is_killed(backend: LocalBackend) -> None:
    job = LocalBackend(grace_s=0.5).submit(request(STUBBORN + ENDLESS))
    running = pids(job)
    assert backend.cancel(job.id).stage == "CANCELED"
    assert all(gone(pid) for pid in running)


def test_a_script_may_save_its_work_when_it_is_stopped(backend: LocalBackend) -> None:
    body = """
import signal, sys, time
def save(*_):
    time.sleep(0.5)
    open("saved", "w").write("yes")
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
time.sleep(600)
"""
    job = backend.submit(request(body))
    next(line for line in backend.logs(job.id, follow=True) if line == "ready")
    assert backend.cancel(job.id).stage == "CANCELED"
    assert job.run_dir and (job.run_dir / "saved").read_text() == "yes"


def test_the_timeout_ends_a_run(backend: LocalBackend) -> None:
    job = backend.submit(request(ENDLESS, timeout_s=4))
    running = pids(job)
    job = wait(backend, job.id, pause_s=0.05)
    assert (job.stage, job.message) == ("ERROR", "timeout: stopped after 4 seconds")
    assert all(gone(pid) for pid in running)


def test_a_run_that_saved_its_work_at_the_timeout_has_stopped_and_not_failed(backend: LocalBackend) -> None:
    """The supervisor's clock runs while uv installs, the script's does not: its own deadline is a later one."""
    body = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # uv passes it on too
signal.sigwait({signal.SIGTERM})
say('RESULT {"steps": 3, "stopped": "signal"}')
"""
    job = backend.submit(request(SAY + body, timeout_s=4))
    job = wait(backend, job.id, pause_s=0.05)
    assert (job.stage, job.message) == ("COMPLETED", None)
    assert why.explain(backend, job, why.read(backend, job)).status == "stopped"


def test_what_a_script_leaves_running_is_ended_with_it(backend: LocalBackend) -> None:
    body = ENDLESS.replace("time.sleep(600)\n", "").replace('print("ready")', 'print("left")')
    job = backend.submit(request(body))
    running = pids(job)
    assert list(backend.logs(job.id, follow=True))[-1] == "left"
    assert backend.inspect(job.id).succeeded
    assert all(gone(pid) for pid in running)


def test_a_killed_supervisor_is_noticed_and_cleared_up(backend: LocalBackend) -> None:
    job = backend.submit(request(ENDLESS))
    running = pids(job)
    os.kill(supervisor_of(job), signal.SIGKILL)
    job = wait(backend, job.id, pause_s=0.05)
    assert job.stage == "ERROR"
    assert job.message and "supervisor died" in job.message
    assert all(gone(pid) for pid in running)
    assert list(backend.logs(job.id, follow=True)) == list(backend.logs(job.id, follow=False))


def test_a_number_given_out_again_is_not_taken_for_the_run(backend: LocalBackend) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    try:
        job = backend.submit(request("pass"))
        job = wait(backend, job.id, pause_s=0.05)
        run = folder.load(job.id)
        other = {"pid": bystander.pid, "identity": "of another boot:1"}
        run.write(folder.STATUS, run.read(folder.STATUS) | {"stage": "RUNNING", "supervisor": other, "child": other})
        assert backend.inspect(job.id).stage == "ERROR"
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.skipif(shutil.which("ps") is None, reason="the way of systems without /proc needs ps")
def test_processes_are_known_without_proc_too(backend: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "_BOOT_ID", Path("/nowhere"))
    group = subprocess.Popen([sys.executable, "-c", ENDLESS.replace('"pids"', "os.devnull")], start_new_session=True)
    known = supervise.describe(group.pid)
    assert supervise.is_alive(known)
    assert not supervise.is_alive(known | {"identity": "Thu Jan  1 00:00:00 1970"})
    supervise.end_group(known, grace_s=5, reap=group.poll)
    assert not supervise.is_alive(known)
    assert group.wait() == -signal.SIGTERM


def test_two_runs_at_once_are_kept_apart(backend: LocalBackend) -> None:
    body = 'import os, sys, time\nwhile not os.path.exists("go"): time.sleep(0.05)\nprint(sys.argv[1])'
    jobs = [backend.submit(request(body, script_args=(name,))) for name in ("one", "two")]
    assert {job.id for job in backend.list()} == {job.id for job in jobs}
    for job in jobs:
        (folder.load(job.id).folder / "go").touch()
    assert [list(backend.logs(job.id, follow=True))[-1] for job in jobs] == ["one", "two"]


def test_secrets_reach_the_script_and_nothing_else(
    backend: LocalBackend, launch_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"HF_TOKEN": "hf_" + "q" * 34, "WANDB_API_KEY": "k3y-" * 8}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    body = """
import os, sys, time
for name in ("HF_TOKEN", "WANDB_API_KEY"):
    for part in (os.environ[name][:5], os.environ[name][5:], " end\\n"):
        sys.stdout.write(part); sys.stdout.flush(); time.sleep(0.1)
print(len(os.environ["HF_TOKEN"]), os.environ["CUSTOM"])
"""
    asked = request(body, secrets=tuple(values), env={"CUSTOM": "seen"})
    backend.check(asked)
    job = backend.submit(asked)
    assert list(backend.logs(job.id, follow=True))[-3:] == ["*** end", "*** end", "37 seen"]
    found = subprocess.run(
        ["grep", "-rlE", "|".join(values.values()), str(launch_home)], stdout=subprocess.PIPE, check=False
    )
    assert (found.returncode, found.stdout) == (1, b"")


def test_only_the_owner_can_read_a_run(backend: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.umask(0)
    try:
        job = wait(backend, backend.submit(request("print('x')")).id, pause_s=0.05)
    finally:
        os.umask(before)
    assert job.run_dir
    kept = [job.run_dir, *(path for path in job.run_dir.iterdir())]
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in kept}
    assert modes.pop(job.id) == 0o700
    assert set(modes.values()) == {0o600}
    assert {"plan.json", "request.json", "status.json", "sft_text.py", "log"} <= set(modes)


def test_the_child_is_free_of_the_launchers_environment(backend: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIRTUAL_ENV", "/nowhere")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    monkeypatch.setenv("UV_PYTHON", "2.7")
    monkeypatch.setenv("MINE", "kept")
    body = "import os; print(*map(os.environ.get, ('PYTHONPATH', 'UV_PYTHON', 'MINE')), os.getcwd())"
    job = backend.submit(request(body))
    assert list(backend.logs(job.id, follow=True))[-1] == f"None None kept {job.run_dir}"


def test_a_relative_file_is_found_from_the_runs_folder(
    backend: LocalBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("a row")
    Path("outputs").mkdir()
    asked = request(
        "import sys; print(open(sys.argv[2]).read(), sys.argv[4])",
        script_args=("--dataset", "rows.jsonl", "--output-dir", "outputs"),
    )
    assert list(backend.logs(backend.submit(asked).id, follow=True))[-1] == "a row outputs"


def test_long_and_broken_lines_do_no_harm(backend: LocalBackend) -> None:
    body = r"""
import sys
out = sys.stdout.buffer
out.write(b"x" * (1 << 20) + b"\n\xff\xfe\x1b[31mred\x1b[0m\x1b]0;title\x07\n 10%|#\r100%|##\rstep 1/1 | loss 1.0\n")
"""
    *_, long, broken, overwritten = backend.logs(backend.submit(request(body)).id, follow=True)
    assert long == "x" * ((1 << 18) - 30) + " … [cut: 1,048,576 characters]"
    assert broken == "\ufffd\ufffdred"
    assert overwritten == "step 1/1 | loss 1.0"


def test_unknown_and_impossible_ids(backend: LocalBackend) -> None:
    job = wait(backend, backend.submit(request("pass")).id, pause_s=0.05)
    for wrong in ("local-20200101-000000-abcd", "../../etc", ""):
        with pytest.raises(RequestError, match="unknown run"):
            backend.inspect(wrong)
    with pytest.raises(RequestError) as raised:
        backend.logs(job.id[:-1] + "z", follow=False)
    assert job.id in raised.value.hint


def test_a_name_leads_to_its_backend() -> None:
    assert [jobs.get(name).name for name in ("hub", "local")] == ["hub", "local"]
    with pytest.raises(RequestError, match="unknown backend 'hff'") as raised:
        jobs.get("hff")
    assert "hub" in raised.value.hint


def test_check_refuses_what_can_be_known_to_fail(
    backend: LocalBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.check(request("pass"))
    with pytest.raises(RequestError, match="no such file or folder"):
        backend.check(request("pass", of=plan(repo=str(tmp_path / "nothing"))))
    with pytest.raises(RequestError, match="no such file or folder"):
        backend.check(request("pass", of=plan(dataset="./rows.jsonl")))
    with pytest.raises(RequestError, match="MISSING_KEY"):
        backend.check(request("pass", secrets=("MISSING_KEY",)))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**9))
    with pytest.raises(RefusedError, match=r"1\.0 GB free"):
        backend.check(request("pass"))


def test_following_does_not_end_before_the_run(backend: LocalBackend) -> None:
    job = backend.submit(request("import time\nprint('first', flush=True)\ntime.sleep(1)\nprint('last')"))
    lines: list[str] = []
    follower = threading.Thread(target=lambda: lines.extend(backend.logs(job.id, follow=True)))
    follower.start()
    follower.join(timeout=600)
    assert lines[-2:] == ["first", "last"]
    assert backend.inspect(job.id).ended
