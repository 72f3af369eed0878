"""The Hub backend: what the client would send, what its errors become, and whole runs against the Hub stand-in."""

from __future__ import annotations

import json
import re
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub._jobs_api import DEFAULT_UV_IMAGE

from launcher import home, jobs
from launcher.errors import LauncherError, RefusedError, RequestError, ServiceError
from launcher.hub import client
from launcher.jobs import base, folder
from launcher.jobs.service import HubBackend
from launcher.plan.record import Plan
from tests.emulator import Hub
from tests.unit.sample import export_plan, plan, request

TOKEN = "hf_" + "s3cret" * 6
REPO = Path(__file__).parents[3]


def test_the_dry_run_knows_what_the_client_would_do() -> None:
    assert base.DEFAULT_IMAGE == DEFAULT_UV_IMAGE
    assert base.ARTIFACTS_BUCKET == constants.HF_JOBS_ARTIFACTS_BUCKET_NAME
    assert base.ARTIFACTS_MOUNT == constants.HF_JOBS_ARTIFACTS_MOUNT_PATH


def test_a_request_is_described_as_the_service_would_run_it(tmp_path: Path) -> None:
    data, other = tmp_path / "my rows.jsonl", tmp_path / "my-model"
    data.write_text("{}")
    other.write_text("a file that is called like a repo")
    args = ("--dataset", str(data), "--output-repo", str(other), str(data))
    described = request("pass", script_args=args, secrets=("HF_TOKEN",)).describe()
    assert described == {
        "image": base.DEFAULT_IMAGE,
        "command": ["uv", "run", "/data/sft_text.py", "--dataset", "/data/my_rows.jsonl",
                    "--output-repo", str(other), str(data)],
        "flavor": "cpu-basic",
        "timeout_s": 60,
        "attempts": 1,
        "env": {"LAUNCH_ARTIFACTS": "hf://buckets/<you>/jobs-artifacts/<a fresh folder>"},
        "secrets": ["HF_TOKEN"],
        "labels": {"name": "a-run", "launcher": "test", "model": "smollm2-135m", "request": "<a fresh id>",
                   "artifacts": "<a fresh folder>"},
        "volumes": [{"type": "bucket", "source": "<you>/jobs-artifacts", "path": "<a fresh folder>",
                     "mount_path": "/data", "read_only": False}],
    }  # fmt: skip


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that only records Jobs: the test plays the machine."""
    with Hub(tmp_path / "hub", run=False) as hub:
        for name, value in hub.env().items():
            monkeypatch.setenv(name, value)
        hub.add_repo("unsloth/SmolLM2-135M-Instruct", files={"config.json": '{"model_type": "llama"}'})
        hub.add_repo("trl-lib/Capybara", type="dataset")
        yield hub
        assert hub.unknown_requests == []


@pytest.fixture
def backend(hub: Hub) -> HubBackend:
    return HubBackend(client.Hub(0.05))


def refusal(backend: HubBackend, kind: type[LauncherError], **changes: Any) -> str:
    """Message and hint of the error with which `check` refuses a plan, before there is any Job."""
    with pytest.raises(kind) as raised:
        backend.check(request("pass", of=plan(**changes)))
    return f"{raised.value.message} {raised.value.hint}"


def test_a_submission_says_everything_and_leaves_a_record(
    hub: Hub, backend: HubBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "w" * 40)
    rows = tmp_path / "my rows.jsonl"
    rows.write_text('{"text": "x"}')
    asked = request(
        "pass", script_args=("--dataset", str(rows)), secrets=("HF_TOKEN", "WANDB_API_KEY"), env={"A": "b"},
        flavor="t4-small", timeout_s=5400,
    )  # fmt: skip
    backend.check(asked)
    job = backend.submit(asked)
    made = hub.jobs[job.id]
    described = asked.describe()
    assert made.spec["command"] == described["command"]
    assert made.spec["dockerImage"] == described["image"]
    place = made.labels["artifacts"]
    assert (made.spec["flavor"], made.spec["timeoutSeconds"], made.spec["attempts"], made.spec["environment"]) == (
        "t4-small",
        5400,
        1,
        {"A": "b", "LAUNCH_ARTIFACTS": f"hf://buckets/tester/jobs-artifacts/{place}", "LAUNCH_MARK": job.mark},
    )
    assert made.labels == job.labels == described["labels"] | {"request": made.labels["request"], "artifacts": place}
    assert re.fullmatch(r"[0-9a-f]{32}", made.labels["request"])
    assert job.mark and re.fullmatch(r"[0-9a-f]{8}", job.mark)
    assert made.secrets == {"HF_TOKEN": hub.token, "WANDB_API_KEY": "w" * 40}
    kept = {path.removeprefix(f"{place}/"): data for path, data in hub.buckets["tester/jobs-artifacts"].files.items()}
    assert Plan.model_validate_json(kept.pop("plan.json")) == asked.plan
    assert kept == {"sft_text.py": asked.script.encode(), "my_rows.jsonl": b'{"text": "x"}'}
    assert (job.backend, job.stage, job.flavor, job.url) == (
        "hub",
        "SCHEDULING",
        "t4-small",
        f"{hub.url}/jobs/tester/{job.id}",
    )
    assert job.run_dir and folder.load(job.id).plan() == asked.plan
    assert stat.S_IMODE(job.run_dir.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in job.run_dir.iterdir()} == {0o600}
    assert not any(hub.token in path.read_text() or "w" * 40 in path.read_text() for path in job.run_dir.iterdir())
    assert capsys.readouterr() == ("", "")


def test_a_namespace_and_an_image_of_ones_own(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.add_user("member", orgs=("ours",)).token)
    backend = HubBackend()
    asked = request("pass", namespace="ours", image="ghcr.io/us/train:1", of=plan(output_repo="ours/model"))
    backend.check(asked)
    job = backend.submit(asked)
    assert hub.jobs[job.id].namespace == "ours"
    assert hub.jobs[job.id].spec["dockerImage"] == "ghcr.io/us/train:1"
    fresh = HubBackend()
    assert fresh.inspect(job.id) == job
    assert fresh.inspect(f"ours/{job.id}") == fresh.inspect(job.address) == job
    assert [found.id for found in fresh.list()] == [job.id]


def test_only_the_launchers_own_jobs_are_listed(hub: Hub, backend: HubBackend) -> None:
    mine = [backend.submit(request("pass")).id for _ in range(3)]
    strange = backend.submit(request("pass", labels={}))
    hub.jobs[mine[0]].finish("COMPLETED")
    assert {job.id for job in backend.list()} == set(mine[1:])
    assert {job.id for job in backend.list(all=True)} == set(mine)
    assert strange.id in hub.jobs
    assert {job.id for job in jobs.list_jobs(every=True)} == set(mine)


def test_a_log_is_followed_to_the_end_of_the_job_and_kept(hub: Hub, backend: HubBackend) -> None:
    job = backend.submit(request("pass"))
    made = hub.jobs[job.id]
    sent = [
        "\x1b[32m== train\x1b[0m",
        f"my token is {hub.token}",
        "x" * (1 << 20),
        "step 1/1 | loss 0.5",
        "",
        "end\ud800",
    ]
    lines = backend.logs(job.id, follow=True)
    made.log(*sent[:3])
    assert [next(lines), next(lines)] == ["== train", "my token is ***"]
    assert next(lines) == "x" * ((1 << 18) - 30) + " … [cut: 1,048,576 characters]"
    made.log(*sent[3:])
    made.finish("COMPLETED")
    assert list(lines) == ["step 1/1 | loss 0.5", "", "end?"]
    assert backend.inspect(job.id).succeeded
    kept = folder.load(job.id).log
    assert kept.read_text().split("\n")[3:] == ["step 1/1 | loss 0.5", "", "end?", ""]
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert len(list(backend.logs(job.id, follow=False))) == 6


@pytest.mark.parametrize("failure", [503, 500, 429, "cut", "reset"])
def test_following_survives_a_service_that_fails(hub: Hub, backend: HubBackend, failure: int | str) -> None:
    job = backend.submit(request("pass"))
    made = hub.jobs[job.id]
    hub.fail_next(failure, "GET /api/jobs", times=3)
    made.log("one", "two")
    threading.Timer(1.5, made.log, ["three"]).start()
    threading.Timer(2.0, made.finish, ["ERROR", "Job timeout"]).start()
    assert list(backend.logs(job.id, follow=True)) == ["one", "two", "three"]
    assert backend.inspect(job.id).stage == "ERROR"


def test_following_gives_up_in_the_end_and_says_how_to_go_on(hub: Hub, backend: HubBackend) -> None:
    backend = HubBackend(client.Hub(0.001))
    job = backend.submit(request("pass"))
    hub.fail_next(503, "GET /api/jobs", times=100)
    with pytest.raises(ServiceError, match="503") as raised:
        list(backend.logs(job.id, follow=True))
    assert f"launch logs -f tester/{job.id}" in raised.value.hint
    assert not hub.jobs[job.id].ended


def test_two_followers_and_one_transcript(hub: Hub, backend: HubBackend) -> None:
    job = backend.submit(request("pass"))
    made = hub.jobs[job.id]
    made.log("one")
    first, second = (backend.logs(job.id, follow=True) for _ in range(2))
    assert [next(first), next(second)] == ["one", "one"]
    made.log("two")
    made.finish("COMPLETED")
    assert [list(second), list(first)] == [["two"], ["two"]]
    assert folder.load(job.id).log.read_text() == "one\ntwo\n"


def test_a_follower_that_leaves_early_shortens_no_transcript(hub: Hub, backend: HubBackend) -> None:
    job = backend.submit(request("pass"))
    hub.jobs[job.id].log("one", "two")
    hub.jobs[job.id].finish("COMPLETED")
    list(backend.logs(job.id, follow=True))
    again = backend.logs(job.id, follow=True)
    assert next(again) == "one"
    again.close()  # type: ignore[attr-defined]
    assert folder.load(job.id).log.read_text() == "one\ntwo\n"
    assert not (folder.load(job.id).folder / "log.part").exists()


def test_a_job_is_canceled_once(hub: Hub, backend: HubBackend) -> None:
    job = backend.submit(request("pass"))
    assert backend.cancel(job.id).stage == "CANCELED"
    assert hub.jobs[job.id].stage == "CANCELED"
    assert backend.cancel(job.id).stage == "CANCELED"


def test_waiting_outlasts_a_service_that_fails(hub: Hub, backend: HubBackend) -> None:
    job = backend.submit(request("pass"))
    hub.fail_next(503, "GET /api/jobs", times=3)
    threading.Timer(0.5, hub.jobs[job.id].finish, ["COMPLETED"]).start()
    assert base.wait(backend, job.id, pause_s=0.05).succeeded


def test_an_unknown_job(hub: Hub, backend: HubBackend) -> None:
    for wrong in ("687fb701029421ae5549d998", "tester/687fb701029421ae5549d998"):
        for ask in (backend.inspect, backend.cancel, lambda name: backend.logs(name, follow=True)):
            with pytest.raises(RequestError, match="no Job '687fb701029421ae5549d998'"):
                ask(wrong)
    with pytest.raises(RequestError, match="not the id of a Job"):
        backend.inspect("../../etc/passwd")


def test_check_refuses_what_the_account_may_not_do(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.add_user("tester", role="read").token)
    assert "can only read" in refusal(HubBackend(), RefusedError)
    scopes = hub.add_user("tester", role="fineGrained", permissions=("job.write",)).token
    monkeypatch.setenv("HF_TOKEN", scopes)
    HubBackend().check(request("pass"))
    assert "may not write to tester/m" in refusal(HubBackend(), RefusedError, output_repo="tester/m")
    monkeypatch.setenv("HF_TOKEN", "hf_" + "nobody" * 5)
    told = refusal(HubBackend(), RefusedError)
    assert "does not accept your token" in told and "nobody" not in told
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert "not a member" in refusal(HubBackend(), RefusedError, output_repo="strangers/m")
    assert hub.jobs == {}


def test_two_names_of_one_repo_are_told_when_the_account_is_known(hub: Hub, backend: HubBackend) -> None:
    """A local run is planned without an account, so a name without a namespace stays one until here."""
    with pytest.raises(RequestError, match="tester/m is the adapter's repo"):
        backend.check(request("pass", of=plan(output_repo="m", merged_repo="tester/m")))
    with pytest.raises(RequestError, match="tester/m is the adapter's repo"):
        backend.check(request("pass", of=export_plan(adapter="tester/m", output_repo=None, merged_repo="m")))
    backend.check(request("pass", of=plan(output_repo="m", merged_repo="tester/m-merged")))


def test_check_needs_a_login(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", "/nowhere")
    assert "hf auth login" in refusal(HubBackend(), RefusedError)
    assert [job.backend for job in jobs.list_jobs(every=True)] == []


def test_check_refuses_repos_that_are_missing_or_closed(hub: Hub, backend: HubBackend, tmp_path: Path) -> None:
    hub.add_repo("meta/closed", gated="manual")
    hub.add_repo("meta/hidden", private=True)
    hub.add_repo("lab/closed", type="dataset", gated="auto")
    hub.add_repo("meta/open", gated="manual", granted=("tester",))
    backend.check(request("pass", of=plan(repo="meta/open")))
    assert "the model 'meta/no' does not exist" in refusal(backend, RequestError, repo="meta/no")
    assert "the model 'meta/hidden' does not exist" in refusal(backend, RequestError, repo="meta/hidden")
    assert "https://huggingface.co/meta/closed" in refusal(backend, RefusedError, repo="meta/closed")
    assert "the dataset 'lab/no' does not exist" in refusal(backend, RequestError, dataset="lab/no")
    assert "https://huggingface.co/datasets/lab/closed" in refusal(backend, RefusedError, dataset="lab/closed")
    assert "no such revision" in refusal(backend, RequestError, repo="meta/open", revision="v9")
    assert "can't see" in refusal(backend, RequestError, repo=str(tmp_path))
    assert "is a folder" in refusal(backend, RequestError, dataset=str(tmp_path))
    assert "is not there" in refusal(backend, RequestError, dataset="rows.jsonl")
    assert hub.jobs == {}


@pytest.mark.parametrize(("failure", "words"), [(503, "503"), (429, "too many"), ("reset", "can't be reached")])
def test_a_service_that_is_away_is_no_fault_of_the_request(
    hub: Hub, backend: HubBackend, failure: int | str, words: str
) -> None:
    hub.fail_next(failure, times=3)
    assert words in refusal(backend, ServiceError)
    backend.check(request("pass"))


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: every connection is refused
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        assert "can't be reached" in refusal(HubBackend(), ServiceError)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        assert "HF_HUB_OFFLINE" in refusal(HubBackend(), ServiceError)


@pytest.mark.parametrize(
    ("failure", "kind", "words"),
    [
        (402, RefusedError, "payment is required"),
        (403, RefusedError, "may not do that"),
        (400, RequestError, "refused the request"),
        (503, ServiceError, "503"),
    ],
)
def test_a_submission_that_fails_leaves_nothing(
    hub: Hub, backend: HubBackend, failure: int | str, kind: type[LauncherError], words: str
) -> None:
    hub.fail_next(failure, "POST /api/jobs", times=100)
    with pytest.raises(kind, match=words) as raised:
        HubBackend(client.Hub(0.001)).submit(request("pass", secrets=("HF_TOKEN",)))
    assert hub.token not in raised.value.message + raised.value.hint
    assert ("hf jobs ps" in raised.value.hint) == (kind is ServiceError)
    assert list((home.data() / "runs").iterdir()) == []
    assert hub.jobs == {}


def test_a_secret_without_a_value_is_named(hub: Hub, backend: HubBackend) -> None:
    with pytest.raises(RequestError, match="WANDB_API_KEY"):
        backend.submit(request("pass", secrets=("WANDB_API_KEY",)))
    assert hub.jobs == {}


def test_a_whole_run_on_the_stand_in_followed_from_two_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Hub(tmp_path / "hub", python=sys.executable) as hub:
        for name, value in hub.env().items():
            monkeypatch.setenv(name, value)
        rows = tmp_path / "rows.jsonl"
        rows.write_text("a row\n")
        body = "import os, sys\nprint(open(sys.argv[2]).read().strip(), len(os.environ['HF_TOKEN']))\nprint('last')"
        backend = HubBackend(client.Hub(0.05))
        job = backend.submit(request(body, script_args=("--dataset", str(rows)), secrets=("HF_TOKEN",)))
        code = (
            "from launcher import jobs; import sys;"
            "[print(line) for line in jobs.get('hub').logs(sys.argv[1], follow=True)]"
        )
        other = subprocess.run(
            [sys.executable, "-c", code, job.id], cwd=REPO, capture_output=True, text=True, check=True
        )
        lines = list(backend.logs(job.id, follow=True))
        assert lines[-2:] == other.stdout.splitlines()[-2:] == [f"a row {len(hub.token)}", "last"]
        assert backend.inspect(job.id).succeeded
        assert json.loads((folder.load(job.id).folder / folder.STATUS).read_text())["stage"] == "COMPLETED"
