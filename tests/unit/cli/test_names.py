"""Every command that takes a run takes it by any of its names, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.hub import client
from launcher.jobs.base import Job
from launcher.jobs.service import HubBackend
from tests.emulator import Hub
from tests.faults.command import launch
from tests.unit.sample import plan, request

Printed = pytest.CaptureFixture[str]
MODEL = "unsloth/SmolLM2-135M-Instruct"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub(tmp_path / "hub", run=False) as hub:
        for name, value in hub.env().items():
            monkeypatch.setenv(name, value)
        hub.add_repo(MODEL, files={"config.json": "{}"})
        hub.add_repo("trl-lib/Capybara", type="dataset")
        monkeypatch.chdir(tmp_path)
        yield hub
        assert hub.unknown_requests == []


@pytest.fixture
def job(hub: Hub) -> Job:
    """A Job that was started from here, and is done."""
    asked = plan(flavor="t4-small", output_repo="tester/none", trackio_space="tester/metrics")
    made = HubBackend(client.Hub(0.01)).submit(request("pass", of=asked, flavor="t4-small", secrets=("HF_TOKEN",)))
    hub.jobs[made.id].say("step 1/1 | loss 0.5", 'RESULT {"steps": 1}')
    hub.jobs[made.id].finish("COMPLETED")
    return made


@pytest.mark.parametrize("spelling", ["last", "{id}", "tester/{id}", "{url}"])
def test_a_run_by_every_name(
    hub: Hub, job: Job, monkeypatch: pytest.MonkeyPatch, capsys: Printed, spelling: str
) -> None:
    name = spelling.format(id=job.id, url=job.url)

    def said(*args: str, status: int = 0) -> str:
        assert launch(monkeypatch, *args) == status
        printed = capsys.readouterr()
        return printed.out if status == 0 else printed.err

    assert said("logs", name) == 'step 1/1 | loss 0.5\nRESULT {"steps": 1}\n'
    for args in (("wait", name, "--json"), ("why", name, "--json"), ("cancel", name, "--json")):
        assert json.loads(said(*args))["id"] == job.id
    assert json.loads(said("diff", name, job.id, "--json"))["decisions"] == {}
    assert said("dashboard", name, "--no-open") == "https://huggingface.co/spaces/tester/metrics\n"
    assert f"{job.id} has ended well" in said("resume", name, status=2)
    assert f"{job.id} was to push its adapter" in said("export", name, "--merge", "16bit", "--dry-run", status=2)
    again = json.loads(said("rerun", name, "--detach", "--json", "--quiet"))["id"]
    assert set(hub.jobs) == {job.id, again}


@pytest.mark.parametrize("command", ["logs", "wait", "why", "cancel", "resume", "dashboard"])
def test_what_is_no_run_is_none_to_any_command(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: Printed, command: str
) -> None:
    assert launch(monkeypatch, command, "tester/model") == 2
    assert "'tester/model' is a repo of the Hub, not a run." in capsys.readouterr().err
    assert launch(monkeypatch, command, "nothing-like-it") == 2
    assert "A NAME is a run's id" in capsys.readouterr().err
