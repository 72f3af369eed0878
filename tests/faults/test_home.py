"""What is kept here never stops what the service can do: no room, no right to write, no folder at all."""

from __future__ import annotations

import io
import json
import logging
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launcher import home
from launcher.jobs import folder as runs
from launcher.jobs.local import LocalBackend
from launcher.jobs.service import HubBackend
from tests.emulator import Hub
from tests.emulator.job import Job
from tests.faults import command
from tests.unit.sample import plan, request

LAUNCH = Path(sys.executable).with_name("launch")
Break = Callable[[], dict[str, str]]


@pytest.fixture
def hub(hub: Hub) -> Hub:
    """With what a submission looks up."""
    for owner in ("unsloth", "HuggingFaceTB"):
        hub.add_repo(f"{owner}/SmolLM2-135M-Instruct", files={"config.json": '{"model_type": "llama"}'})
    hub.add_repo("trl-lib/Capybara", type="dataset")
    return hub


def mount(place: Path, *options: str) -> None:
    if os.getuid() or subprocess.run(["mount", *options, str(place)], check=False).returncode:
        pytest.skip("only root of a machine that lets it mount can make such a folder")


@pytest.fixture(params=["full", "read-only", pytest.param("too large", marks=pytest.mark.slow), "nowhere"])
def broken(request: pytest.FixtureRequest, launch_home: Path, tmp_path: Path) -> Iterator[Break]:
    """Breaks the folder of what is kept, with all that is in it, and returns what a command then finds."""
    mounted = []

    def breaks() -> dict[str, str]:
        match request.param:
            case "read-only":
                mount(launch_home, "--bind", str(launch_home))
                mounted.append(launch_home)
                subprocess.run(["mount", "-o", "remount,bind,ro", str(launch_home)], check=True)
            case "full":
                small = tmp_path / "small"
                small.mkdir()
                mount(small, "-t", "tmpfs", "-o", "size=256k", "none")
                mounted.append(small)
                subprocess.run(["cp", "-a", f"{launch_home}/runs", str(small)], check=True)
                with (small / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError, match="No space"):
                    while True:
                        filler.write(b"x" * 4096)
                return {"LAUNCH_HOME": str(small)}
            case "nowhere":
                (tmp_path / "file").touch()
                return {"LAUNCH_HOME": str(tmp_path / "file" / "home")}
        return {}

    yield breaks
    for place in mounted:
        subprocess.run(["umount", str(place)], check=True)


def start(hub: Hub) -> Job:
    of = plan(flavor="t4-small", timeout_s=5400)
    return hub.jobs[HubBackend().submit(request("pass", of=of, flavor="t4-small", timeout_s=5400)).id]


def launch(env: dict[str, str], *args: str, limited: bool = False) -> command.Ran:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    home._say.cache_clear()
    if not limited:
        said = io.StringIO()
        handler = logging.StreamHandler(said)
        logging.getLogger("launcher").addHandler(handler)
        answer = command.run(*args, env=env)
        logging.getLogger("launcher").removeHandler(handler)
        answer = answer._replace(stderr=answer.stderr + said.getvalue())
    else:
        done = subprocess.run(
            [LAUNCH, *args], env=os.environ | env, capture_output=True, text=True, timeout=200, check=False,
            preexec_fn=limit,
        )  # fmt: skip
        answer = command.Ran(done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in answer.stderr, answer.stderr
    return answer


def test_every_command_does_what_the_service_can_do(hub: Hub, broken: Break, request: pytest.FixtureRequest) -> None:
    going, ended = start(hub), start(hub)
    ended.say("== train", "step 4/5 | loss 1.0", "checkpoint step 4 | 1s | 3 MB")
    ended.finish("ERROR", "node lost")
    env, limited = broken(), request.node.callspec.params["broken"] == "too large"

    def ask(*args: str) -> command.Ran:
        answer = launch(env, *args, limited=limited)
        assert answer.stderr.count("nothing can be kept") <= 1
        return answer

    assert (ask("cancel", f"tester/{going.id}").returncode, going.stage) == (0, "CANCELED")
    assert ended.id in ask("ps", "--all", "--json").stdout
    assert ask("logs", ended.id).stdout.splitlines()[:2] == ["== train", "step 4/5 | loss 1.0"]
    assert "checkpoint of step 4 is kept" in ask("why", ended.id).stdout
    waited = ask("wait", ended.id)
    assert waited.returncode == 1 and "node lost" in waited.stderr
    if limited:  # the Hub's client itself writes a file when it uploads
        return
    resumed = ask("resume", ended.id, "--detach", "--json")
    assert resumed.returncode == 0, resumed.stderr
    assert "nothing can be kept" in resumed.stderr
    assert json.loads(resumed.stdout)["id"] in hub.jobs
    begun = ask("--model", "smollm2-135m", "--flavor", "t4-small", "--no-push", "--detach", "--quiet")
    assert begun.returncode == 0, begun.stderr
    assert begun.stdout.strip().removeprefix("tester/") in hub.jobs


def test_a_run_of_this_machine_is_refused_where_it_can_not_be_kept(
    broken: Break, request: pytest.FixtureRequest
) -> None:
    (home.data() / "runs").mkdir()
    env, limited = broken(), request.node.callspec.params["broken"] == "too large"
    begun = launch(env, "--model", "smollm2-135m", "--local", "--no-push", "--detach", limited=limited)
    assert begun.returncode == 3, begun.stderr
    assert "LAUNCH_HOME" in begun.stderr


def test_files_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    home.write(path, "before")
    code = f"from launcher import home; from pathlib import Path; home.write(Path({str(path)!r}), 'x' * 9)"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4, 4)),
    )  # fmt: skip
    assert "File too large" in ran.stderr
    assert [(item.name, item.read_text()) for item in tmp_path.iterdir()] == [("status.json", "before")]


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"id": "x"', b"[]", b"null", b"\xff", b"[" * 100_000, b'{"stage": 5}']
)
@pytest.mark.parametrize("name", [runs.STATUS, runs.REQUEST, runs.COMMAND])
def test_a_damaged_record_of_one_run_is_no_matter_of_the_others(
    hub: Hub, name: str, content: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    local = runs.create(request("pass", of=plan(flavor="local")), "local").rename("local-20261124-103012-ab12")
    whole = runs.create(request("pass", of=plan(flavor="local")), "local").rename("local-20261124-103013-ab12")
    job = start(hub)
    for run in (local, runs.load(job.id)):
        (run.folder / name).write_bytes(content)
    backend = LocalBackend()
    assert {job.id for job in backend.list(all=True)} == {local.id, whole.id}
    assert {job.id for job in HubBackend().list(all=True)} == {job.id}
    found = backend.inspect(local.id)
    assert found.stage == "ERROR" and found == backend.inspect(local.id) == backend.cancel(local.id)
    assert list(backend.logs(local.id, follow=True)) == []
    assert HubBackend().cancel(job.id).stage == "CANCELED"
    assert list(HubBackend().logs(job.id, follow=True)) == []
