"""Attempts and `launch resume`: Jobs that run on the Hub stand-in, fail, and go on from what they left in /data."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from launcher import catalog
from launcher.errors import LauncherError, RefusedError, RequestError
from launcher.estimate.values import Vram
from launcher.hub import client
from launcher.jobs import folder as runs
from launcher.jobs.base import Job, JobRequest
from launcher.jobs.local import LocalBackend
from launcher.jobs.service import HubBackend
from launcher.render import render
from launcher.runs import again as reruns
from tests.emulator import Hub
from tests.faults import command
from tests.unit.sample import plan, request

launch = partial(command.launch, pause_s=0.02)

# As a training does it: what is done is kept in /data, and a run goes on from there. It fails until 3 steps are done.
BODY = """
import json, os, pathlib, sys
data = pathlib.Path(os.environ.get("LAUNCH_DATA_DIR", "."))
done = data / "steps"
steps = int(done.read_text()) + 1 if done.exists() else 1
done.write_text(str(steps))
print("step", steps, *sys.argv[1:], flush=True)
if steps < 3:
    sys.exit(1)
print("RESULT", json.dumps({"steps": steps, "stopped": STOPPED}))
"""


def body(stopped: str | None = None) -> str:
    return BODY.replace("STOPPED", repr(stopped))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub(tmp_path / "hub", python=sys.executable) as hub:
        for name, value in hub.env().items():
            monkeypatch.setenv(name, value)
        hub.add_repo("unsloth/SmolLM2-135M-Instruct", files={"config.json": "{}"})
        hub.add_repo("trl-lib/Capybara", type="dataset")
        yield hub
        assert hub.unknown_requests == []


@pytest.fixture
def recorded(hub: Hub) -> Hub:
    """The same Hub, where the test plays the machine."""
    hub.runner = None
    return hub


def start(backend: HubBackend, text: str | None = None, **changes: Any) -> Job:
    return backend.submit(request(text or body(), **({"labels": {"launcher": "test"}} | changes)))


def again(backend: HubBackend, job: Job, **changes: str | None) -> JobRequest:
    return reruns.adapt(backend.recall(job.id), catalog.load(), **({"timeout": None, "flavor": None} | changes))


def refused(backend: HubBackend, job: Job, kind: type[LauncherError], **changes: str | None) -> str:
    with pytest.raises(kind) as raised:
        again(backend, job, **changes)
    return f"{raised.value.message} {raised.value.hint}"


def test_an_attempt_finds_what_the_one_before_it_left(hub: Hub) -> None:
    job = start(HubBackend(client.Hub(0.02)), attempts=3)
    assert hub.jobs[job.id].wait() == "COMPLETED"
    assert hub.jobs[job.id].logs[-4:-1] == ["step 1", "step 2", "step 3"]
    assert hub.jobs[job.id].attempts_made == 3


def test_a_resumed_job_finds_what_the_failed_one_left(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = start(HubBackend(), attempts=2, secrets=("HF_TOKEN",), env={"A": "b"}, of=plan(attempts=2))
    assert hub.jobs[first.id].wait() == "ERROR"
    assert launch(monkeypatch, "resume", first.id, "--json", "-q") == 0
    second = next(job for job in hub.jobs.values() if job.id != first.id)
    assert (second.stage, second.attempts_made, second.logs[-2]) == ("COMPLETED", 1, "step 3")
    assert f'"id": "{second.id}"' in capsys.readouterr().out
    before, after = hub.jobs[first.id].spec, second.spec
    differ = {name for name in before if before[name] != after[name]}
    assert differ == {"labels", "environment"}
    assert {name for name, value in before["environment"].items() if after["environment"][name] != value} == {
        "LAUNCH_MARK"
    }
    told = {name: value for name, value in second.labels.items() if before["labels"].get(name) != value}
    assert told == {"request": second.labels["request"], "resumes": first.id}
    assert second.secrets == {"HF_TOKEN": hub.token}
    kept = runs.load(second.id)
    assert (kept.folder / "sft_text.py").read_bytes() == (runs.load(first.id).folder / "sft_text.py").read_bytes()
    # Its price is that of the machine, whatever a plan in a bucket says.
    rate = catalog.shipped().flavors["cpu-basic"].usd_per_hour
    assert kept.plan().cost.usd_per_hour == rate
    assert kept.plan() == runs.load(first.id).plan().model_copy(update={"cost": kept.plan().cost})
    assert launch(monkeypatch, "logs", second.id) == 0
    assert "step 3" in capsys.readouterr().out
    assert launch(monkeypatch, "ps", "--all", "--json") == 0
    assert second.id in capsys.readouterr().out


def test_from_another_laptop(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the run is kept here: its script and its plan come out of its bucket, its data file stays there."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("a row\n")
    of = plan(dataset=str(rows), run_name="elsewhere", attempts=2)
    backend = HubBackend(client.Hub(0.02))
    first = start(backend, of=of, attempts=2, script_args=("--dataset", str(rows)), secrets=("HF_TOKEN",))
    assert hub.jobs[first.id].wait() == "ERROR"
    monkeypatch.setenv("LAUNCH_HOME", str(tmp_path / "another"))
    rows.unlink()
    asked = again(backend, first)
    assert asked.plan == of.model_copy(update={"cost": asked.plan.cost})
    assert asked.script == request(body()).script
    backend.check(asked)
    second = backend.submit(asked)
    assert hub.jobs[second.id].wait() == "COMPLETED"
    folder = hub.jobs[second.id].labels["artifacts"]
    assert hub.jobs[second.id].spec["command"] == hub.jobs[first.id].spec["command"]
    assert hub.jobs[second.id].logs[-2].startswith("step 3 --dataset /")
    assert hub.buckets["tester/jobs-artifacts"].files[f"{folder}/rows.jsonl"] == b"a row\n"
    assert hub.buckets["tester/jobs-artifacts"].files[f"{folder}/sft_text.py"] == asked.script.encode()


def id_of(printed: str) -> str:
    """The Job's id, of NAMESPACE/ID as it is printed."""
    return printed.strip().removeprefix("tester/")


def test_what_a_stage_allows(
    recorded: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only an end that left work undone is gone on with; one Job at a time works in a folder."""
    first = start(HubBackend(), timeout_s=2400, of=plan(flavor="cpu-basic", timeout_s=2400))
    made = recorded.jobs[first.id]
    for stage in ("SCHEDULING", "RUNNING"):
        made.stage = stage
        assert launch(monkeypatch, "resume", first.id, "-d") == 2
        said = " ".join(capsys.readouterr().err.split())
        assert f"still goes on (stage {stage})" in said and f"launch cancel tester/{first.id}" in said
    made.say('RESULT {"steps": 5, "stopped": null}')
    made.finish("COMPLETED")
    assert launch(monkeypatch, "resume", first.id, "-d") == 2
    assert "has ended well" in capsys.readouterr().err
    assert list(recorded.jobs) == [first.id]
    made.say('RESULT {"steps": 5, "stopped": "deadline"}')
    assert launch(monkeypatch, "resume", first.id, "-d", "-q", "--timeout", "2h") == 0
    second = id_of(capsys.readouterr().out)
    spec = recorded.jobs[second].spec
    assert (spec["timeoutSeconds"], spec["command"][-2:]) == (7200, ["--timeout-s", "7200"])
    assert launch(monkeypatch, "resume", first.id, "-d") == 2
    assert f"Job {second} is at it" in " ".join(capsys.readouterr().err.split())
    recorded.jobs[second].finish("ERROR", "node lost")
    assert launch(monkeypatch, "resume", second, "-d", "-q", "--timeout", "90m") == 0
    third = recorded.jobs[id_of(capsys.readouterr().out)]
    assert third.spec["command"] == [*made.spec["command"], "--timeout-s", "5400"]
    assert (third.labels["resumes"], third.labels["artifacts"]) == (second, made.labels["artifacts"])
    third.finish("CANCELED")
    assert launch(monkeypatch, "resume", third.id, "-d", "-q") == 0
    assert recorded.jobs[id_of(capsys.readouterr().out)].spec["timeoutSeconds"] == 5400


def test_a_run_that_another_job_has_finished_is_not_paid_for_again(
    recorded: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = start(HubBackend(), of=plan(flavor="cpu-basic", timeout_s=2400))
    recorded.jobs[first.id].finish("ERROR", "node lost")
    assert launch(monkeypatch, "resume", first.id, "-d", "-q") == 0
    second = recorded.jobs[id_of(capsys.readouterr().out)]
    second.say('RESULT {"steps": 2, "stopped": "deadline"}')
    second.finish("COMPLETED")
    assert launch(monkeypatch, "resume", first.id, "-d", "-q") == 0
    third = recorded.jobs[id_of(capsys.readouterr().out)]
    third.say('RESULT {"steps": 3, "stopped": null}')
    third.finish("COMPLETED")
    for job in (first.id, second.id):
        assert launch(monkeypatch, "resume", job, "-d") == 2
        said = " ".join(capsys.readouterr().err.split())
        assert f"Job {third.id} has come to the end of the run" in said
    assert list(recorded.jobs) == [first.id, second.id, third.id]
    assert HubBackend().recall(first.id).resumes == first.id  # whoever only wants to read it can


@pytest.mark.parametrize("content", [b"", b"{", b'{"task": "sft"}'])
def test_a_plan_that_is_damaged_here_is_fetched_from_the_bucket(recorded: Hub, content: bytes) -> None:
    first = start(HubBackend(), of=plan(flavor="cpu-basic", timeout_s=2400))
    whole = HubBackend().recall(first.id)
    (runs.load(first.id).folder / runs.PLAN).write_bytes(content)
    assert HubBackend().recall(first.id) == whole


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b'{"script_name": 5}', b'{"script_name": "sft_text.py"}', b'{"script_name": "..", "script_args": 5}'],
)
def test_a_request_of_this_machine_that_is_damaged_is_an_error(content: bytes, launch_home: Path) -> None:
    run = runs.create(request("pass", of=plan(flavor="local")), "local").rename("local-20261124-103012-ab12")
    (run.folder / runs.REQUEST).write_bytes(content)
    with pytest.raises(RequestError, match="the request of run"):
        LocalBackend().recall(run.id)


def test_whether_a_run_is_finished_is_not_guessed(
    recorded: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = start(HubBackend(), of=plan(flavor="cpu-basic", timeout_s=2400))
    recorded.jobs[first.id].finish("ERROR", "node lost")
    second = HubBackend().submit(again(HubBackend(), first))
    recorded.jobs[second.id].say("a line")
    recorded.jobs[second.id].finish("COMPLETED")
    assert launch(monkeypatch, "resume", first.id, "-d") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"launch why tester/{second.id}" in said and "has no RESULT" in said
    recorded.fail_next(503, "GET /api/jobs/{namespace}/{id}/logs", times=50)
    assert launch(monkeypatch, "resume", first.id, "-d") == 4
    assert "its log can't be read now" in " ".join(capsys.readouterr().err.split())
    folder = recorded.buckets["tester/jobs-artifacts"].folder / recorded.jobs[first.id].labels["artifacts"]
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "done").touch()
    assert launch(monkeypatch, "resume", first.id, "-d") == 2
    assert f"Job {second.id} has come to the end of the run" in " ".join(capsys.readouterr().err.split())
    assert list(recorded.jobs) == [first.id, second.id]


def test_another_flavor_must_hold_the_run(recorded: Hub) -> None:
    backend = HubBackend(client.Hub(0.02))
    vram = Vram(weights_gib=6, peak_gib=18, available_gib=20, fits=True)
    job = start(backend, flavor="l4x1", of=plan(flavor="l4x1", num_gpus=1, vram=vram, timeout_s=3600))
    recorded.jobs[job.id].finish("ERROR")
    assert "18.0 GiB" in refused(backend, job, RefusedError, flavor="t4-small")
    assert "0 GPUs" in refused(backend, job, RequestError, flavor="cpu-basic")
    assert "4 GPUs" in refused(backend, job, RequestError, flavor="l4x4")
    assert "a100-large" in refused(backend, job, RequestError, flavor="a100-lage")
    assert "--timeout 'soon'" in refused(backend, job, RequestError, timeout="soon")
    changed = again(backend, job, flavor="a100-large", timeout="2h")
    assert (changed.flavor, changed.plan.decisions.flavor.value, changed.timeout_s) == (
        "a100-large",
        "a100-large",
        7200,
    )
    assert changed.plan.cost.max_usd == 2 * catalog.load().flavors["a100-large"].usd_per_hour
    asked = plan(num_gpus=1, vram=vram, flavor="l4x1", timeout_s=3600)
    assert render(changed.plan.as_rendered, catalog.load().stack) == render(asked, catalog.load().stack)
    backend.submit(changed)
    assert [made.spec["flavor"] for made in recorded.jobs.values()] == ["l4x1", "a100-large"]


def test_secrets_are_given_again(recorded: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = HubBackend(client.Hub(0.02))
    monkeypatch.setenv("WANDB_API_KEY", "w" * 40)
    job = start(backend, secrets=("HF_TOKEN", "WANDB_API_KEY"))
    recorded.jobs[job.id].finish("ERROR")
    monkeypatch.delenv("WANDB_API_KEY")
    asked = again(backend, job)
    assert asked.secrets == ("HF_TOKEN", "WANDB_API_KEY")
    with pytest.raises(RequestError, match="WANDB_API_KEY"):
        backend.submit(asked)
    assert len(recorded.jobs) == 1


def test_jobs_that_there_is_nothing_to_go_on_with(
    recorded: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    backend = HubBackend(client.Hub(0.02))
    strange, stray, lost, torn = (start(backend, labels=labels) for labels in ({}, *[{"launcher": "test"}] * 3))
    for job in (strange, stray, lost, torn):
        recorded.jobs[job.id].finish("ERROR")
    assert "not started by this launcher" in refused(backend, strange, RequestError)
    recorded.jobs[stray.id].spec["volumes"] = []
    assert "has no /data" in refused(backend, stray, RequestError)
    monkeypatch.setenv("LAUNCH_HOME", str(tmp_path / "another"))
    bucket = recorded.buckets["tester/jobs-artifacts"].folder
    (bucket / recorded.jobs[torn.id].labels["artifacts"] / "plan.json").write_text('{"model": 1}')
    assert "another version" in refused(backend, torn, RequestError)
    (bucket / recorded.jobs[lost.id].labels["artifacts"] / "sft_text.py").unlink()
    assert "lacks a file" in (said := refused(backend, lost, RequestError)) and lost.id in said


@pytest.mark.parametrize(
    "route", ["GET /api/jobs/{namespace}/{id}", "GET /api/jobs/{namespace}", "POST /api/jobs/{namespace}"]
)
@pytest.mark.parametrize("kind", [429, 500, "after_commit", "reset", "cut"])
def test_resuming_in_a_bad_hour_makes_one_job(recorded: Hub, route: str, kind: int | str) -> None:
    backend = HubBackend(client.Hub(0.02))
    job = start(backend)
    recorded.jobs[job.id].finish("ERROR")
    # The client waits by itself for an answer to the list.
    recorded.fail_next(kind, route, times=1, retry_after=0 if kind == 429 else None)
    second = backend.submit(again(backend, job))
    assert [made.id for made in recorded.jobs.values() if not made.ended] == [second.id]
    assert recorded.failures.queue == []


def at_once(code: str, job: Job, homes: list[Path]) -> list[subprocess.CompletedProcess[str]]:
    """What processes end with that begin at the same moment, each with the home at its place."""
    program = f"import sys; sys.stdin.readline(); {code}"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, "launch", "resume", job.id, "--detach", "--quiet"],
            env=os.environ | {"LAUNCH_HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for home in homes
    ]  # fmt: skip
    for process in started:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    ended = []
    for process in started:
        out, error = process.communicate(timeout=200)
        assert "Traceback" not in error, error
        ended.append(subprocess.CompletedProcess(process.args, process.returncode, out, error))
    return ended


RESUME = "from launcher.cli import app; sys.argv = sys.argv[1:]; app.main()"


@pytest.mark.parametrize("delay_s", [0.0, pytest.param(3.0, marks=pytest.mark.slow)])
def test_one_machine_goes_on_with_a_run_once(recorded: Hub, launch_home: Path, delay_s: float) -> None:
    job = start(HubBackend(), of=plan(flavor="cpu-basic", timeout_s=2400))
    recorded.jobs[job.id].finish("ERROR", "node lost")
    recorded.listing_delay_s = delay_s
    ended = at_once(RESUME, job, [launch_home] * 4)
    assert sorted(item.returncode for item in ended) == [0, 2, 2, 2]
    [second] = [made for made in recorded.jobs.values() if made.id != job.id]
    assert [id_of(item.stdout) for item in ended if not item.returncode] == [second.id]
    assert all(f"Job {second.id} is at it" in " ".join(item.stderr.split()) for item in ended if item.returncode)


@pytest.mark.slow
@pytest.mark.parametrize("delay_s", [0.0, 3.0])
def test_of_two_machines_that_go_on_with_a_run_the_first_does(
    recorded: Hub, launch_home: Path, tmp_path: Path, delay_s: float
) -> None:
    """The list of Jobs lags behind, so that neither sees the other's Job before it has made its own."""
    job = start(HubBackend(), of=plan(flavor="cpu-basic", timeout_s=2400))
    recorded.jobs[job.id].finish("ERROR", "node lost")
    recorded.listing_delay_s = delay_s
    homes = [tmp_path / name for name in ("one", "two", "three")]
    ended = at_once(RESUME, job, homes)
    made = sorted((made.created_at, made.id) for made in recorded.jobs.values() if made.id != job.id)
    alive = [made.id for made in recorded.jobs.values() if not made.ended]
    assert alive == [made[0][1]]
    assert sorted(item.returncode for item in ended) == [0, 2, 2]
    assert [id_of(item.stdout) for item in ended if not item.returncode] == alive
    assert all(alive[0] in item.stderr for item in ended if item.returncode)


def test_one_after_the_other_while_the_list_lags(
    recorded: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    job = start(HubBackend(), of=plan(flavor="cpu-basic", timeout_s=2400))
    recorded.jobs[job.id].finish("ERROR", "node lost")
    recorded.listing_delay_s = 2.0
    assert launch(monkeypatch, "resume", job.id, "-d", "-q", pause_s=0.2) == 0
    second = id_of(capsys.readouterr().out)
    monkeypatch.setenv("LAUNCH_HOME", str(tmp_path / "another"))
    assert launch(monkeypatch, "resume", job.id, "-d", "-q", pause_s=0.2) == 2
    assert f"Job {second}" in " ".join(capsys.readouterr().err.split())
    assert [made.id for made in recorded.jobs.values() if not made.ended] == [second]


def test_a_local_run_is_gone_on_with_once(launch_home: Path, tmp_path: Path) -> None:
    backend = LocalBackend()
    text = """
import os, time
open("began", "a").write("x")
while not os.path.exists("go"):
    time.sleep(0.05)
raise SystemExit(1)
"""
    job = backend.submit(request(text, flavor="local", of=plan(flavor="local", repo=str(tmp_path))))
    folder = runs.load(job.id).folder
    (folder / "go").touch()
    assert list(backend.logs(job.id, follow=True)) == []
    (folder / "go").unlink()
    ended = at_once(RESUME, job, [launch_home] * 4)
    assert sorted(item.returncode for item in ended) == [0, 2, 2, 2]
    assert all("still goes on" in item.stderr for item in ended if item.returncode)
    (folder / "go").touch()
    list(backend.logs(job.id, follow=True))
    assert (folder / "began").read_text() == "xx"
    assert sorted(path.name for path in folder.glob("log*")) == ["log", "log.1"]


def test_a_local_run_goes_on_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = LocalBackend()
    asked = request(body(), flavor="local", of=plan(flavor="local", repo=str(tmp_path)))
    job = backend.submit(asked)
    assert list(backend.logs(job.id, follow=True))[-1] == "step 1"
    failed = backend.inspect(job.id)
    assert failed.stage == "ERROR"
    reruns.require_unfinished(failed, None)
    asked = reruns.adapt(backend.recall(job.id), catalog.load(), "1h", None)
    for steps in ("step 2 --timeout-s 3600", "step 3 --timeout-s 3600"):
        assert backend.submit(asked).id == job.id
        assert steps in list(backend.logs(job.id, follow=True))
    run = runs.load(job.id)
    assert backend.inspect(job.id).succeeded
    assert (run.folder / "log.1").read_text().endswith("step 1\n")
    assert (run.folder / "log.2").read_text().endswith("step 2 --timeout-s 3600\n")
    assert run.plan().decisions.timeout_s.value == 3600
    with pytest.raises(RequestError, match="has ended well"):
        reruns.require_unfinished(backend.inspect(job.id), {"stopped": None})
    with pytest.raises(RequestError, match="a local run has no flavor"):
        reruns.adapt(backend.recall(job.id), catalog.load(), None, "l4x1")


def test_a_local_run_that_goes_on_is_not_started_twice(tmp_path: Path) -> None:
    backend = LocalBackend(grace_s=1)
    job = backend.submit(request("import time; time.sleep(60)", flavor="local", of=plan(flavor="local")))
    with pytest.raises(RequestError, match="still goes on"):
        backend.submit(backend.recall(job.id))
    assert backend.cancel(job.id).stage == "CANCELED"


def test_the_attempts_are_shown() -> None:
    assert replace(request("pass"), attempts=4).describe()["attempts"] == 4
