"""The end of a run is the service's and is named: through the real command, here and from another machine."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from launcher.cli import app as cli
from launcher.jobs import folder as runs
from launcher.jobs import stream
from launcher.jobs.local import LocalBackend
from launcher.jobs.service import HubBackend
from tests.emulator import Hub
from tests.emulator.job import Job
from tests.unit.sample import SAY, plan, request

Launch = Callable[..., "Answer"]
LOGS = "GET /api/jobs/{namespace}/{id}/logs"
DONE = '{"stopped": null, "steps": 5, "tokens_per_second": 10.0, "train_s": 3.0, "output_dir": "/data/output"}'


@pytest.fixture
def hub(hub: Hub) -> Hub:
    """With what a submission looks up."""
    hub.add_repo("unsloth/SmolLM2-135M-Instruct", files={"config.json": '{"model_type": "llama"}'})
    return hub


def start(hub: Hub, **changes: Any) -> Job:
    asked = plan(**{"flavor": "t4-small", "timeout_s": 5400, **changes})
    return hub.jobs[HubBackend().submit(request("pass", of=asked, flavor="t4-small", timeout_s=5400)).id]


class Answer(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def launch(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Launch:
    """The whole command line in this process, which saves starting it anew for each question."""
    monkeypatch.setattr(stream, "DRAINED_S", 0.5)

    def run(*args: str, **env: str) -> Answer:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in env.items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["launch", *args])
            with pytest.raises(SystemExit) as ended:
                cli.main()
        return Answer(int(ended.value.code or 0), *capsys.readouterr())

    return run


def why(launch: Launch, job: Job, **env: str) -> dict[str, Any]:
    answer = launch("why", job.id, "--json", **env)
    assert answer.status == 0, answer.err
    found: dict[str, Any] = json.loads(answer.out)
    return found


def keep(hub: Hub, job: Job, path: str) -> None:
    """Puts a file where the Job has it under /data."""
    volume = job.spec["volumes"][0]
    target = hub.buckets[volume["source"]].folder / volume["path"] / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(b"content")


def words(text: str) -> str:
    return " ".join(text.split())


def test_a_job_at_its_timeout_is_explained_here_and_elsewhere(hub: Hub, launch: Launch, tmp_path: Path) -> None:
    job = start(hub)
    job.say("== train", "step 7/50 | loss 2.0", "checkpoint step 5 | 1.2s | 35 MB")
    job.finish("ERROR", "Job timeout")
    answer = launch("why", job.id)
    assert answer.status == 0, answer.err
    assert "cause: timeout" in answer.out
    assert "The checkpoint of step 5 is kept." in answer.out
    assert f"Next: launch resume tester/{job.id} --timeout 180m" in answer.out
    here, elsewhere = why(launch, job), why(launch, job, LAUNCH_HOME=str(tmp_path / "another"))
    assert here == elsewhere
    assert (here["cause"], here["stage"], here["step"], here["checkpoint"]) == ("timeout", "ERROR", 7, 5)
    waited = launch("wait", job.id)
    assert waited.status == 1
    assert f"launch resume tester/{job.id} --timeout 180m" in words(waited.err)


def test_a_job_that_is_not_there_and_a_service_that_is_not(hub: Hub, launch: Launch) -> None:
    job = start(hub)
    job.finish("ERROR", "Job failed with exit code: 1")
    assert launch("why", "687fb701029421ae5549d998").status == 2
    assert launch("why", "../x").status == 2
    assert launch("why", "local-20260101-000000-abcd").status == 2
    away = launch("why", job.id, HF_ENDPOINT="http://127.0.0.1:9")
    assert (away.status, "Traceback" in away.err) == (4, False)


def test_a_log_that_is_gone_is_read_from_the_transcript(hub: Hub, launch: Launch) -> None:
    job = start(hub)
    job.say("== evaluate", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.")
    job.finish("ERROR", "Job failed with exit code: 1")
    list(HubBackend().logs(job.id, follow=True))
    hub.fail_next(503, LOGS, times=50)
    found = why(launch, job)
    assert found["cause"] == "cuda-memory-evaluation"
    assert found["next"][0] == f"launch resume tester/{job.id} --flavor l4x1"
    assert runs.load(job.id).log.read_text().startswith("== evaluate")


def test_a_run_that_stopped_in_time_is_a_success_with_a_notice(hub: Hub, launch: Launch) -> None:
    job = start(hub)
    stopped = DONE.replace('"stopped": null', '"stopped": "deadline"')
    job.say("step 5/50 | loss 1.0", "deadline in 60s: stopping", "checkpoint step 5 | 1s | 3 MB", f"RESULT {stopped}")
    job.finish("COMPLETED")
    waited = launch("wait", job.id)
    assert waited.status == 0, waited.err
    assert f"launch resume tester/{job.id}" in waited.err
    assert "at step 5 of 50" in words(waited.err)
    ended = launch("wait", job.id, "--json")
    assert (json.loads(ended.out)["status"], json.loads(ended.out)["result"]["stopped"]) == (
        "stopped",
        "deadline",
    )
    assert why(launch, job)["status"] == "stopped"


@pytest.mark.parametrize("steps", ['"steps": 0, "resumed_from": null', '"steps": 40, "resumed_from": 40'])
def test_a_run_that_had_no_time_for_a_step_is_given_more(hub: Hub, launch: Launch, tmp_path: Path, steps: str) -> None:
    """With the same timeout it would come as far again, and be paid for each time."""
    job = start(hub)
    job.say("deadline in 60s: stopping", f"RESULT {DONE[:-1]}, {steps}, " + '"stopped": "deadline"}')
    job.finish("COMPLETED")
    command = f"launch resume tester/{job.id} --timeout 180m"
    waited = launch("wait", job.id)
    assert (waited.status, command in words(waited.err)) == (0, True), waited.err
    assert json.loads(launch("wait", job.id, "--json").out)["next"] == [command]
    assert why(launch, job, LAUNCH_HOME=str(tmp_path / "another"))["next"] == [command]


def test_a_run_that_was_asked_to_stop_before_a_step_needs_no_more_time(hub: Hub, launch: Launch) -> None:
    job = start(hub)
    job.say(f"RESULT {DONE[:-1]}, " + '"steps": 0, "stopped": "signal"}')
    job.finish("COMPLETED")
    assert why(launch, job)["next"] == [f"launch resume tester/{job.id}"]


def test_what_a_result_holds_moves_no_terminal(hub: Hub, launch: Launch) -> None:
    """JSON's own escapes are ASCII in the line, and become what they stand for when it is read."""
    job = start(hub)
    job.spec["labels"]["model"] = "m\x1b[2J"
    escape = "\x1b]52;c;ZXZpbA==\x07"
    sample = {name: escape + name for name in ("prompt", "expected", "before", "after")}
    ending = {
        "stopped": "dead\x1b[2Jline",
        "url": escape,
        "samples": [sample],
        "exports": [{"kind": "\x1b[1m", "path": "p"}],
    }
    job.say(f"RESULT {json.dumps(json.loads(DONE) | ending)}")
    job.finish("COMPLETED")
    for command in ("wait", "why", "logs"):
        answer = launch(command, job.id)
        assert "\x1b" not in answer.out + answer.err
    assert "\\u001b" not in launch("wait", job.id, "--json").out
    assert "\x1b" not in launch("ps", "--all").out


def test_a_result_that_the_stream_lost_is_read_again(hub: Hub, launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage changes before the last lines are in the log, as it does where a machine is slow to say its last."""
    job = start(hub)
    job.say("step 5/5 | loss 1.0")
    real, asked = job.follow, []

    def late(*args: Any) -> Iterator[dict[str, str] | None]:
        asked.append(args)
        events = list(real(*args))
        yield from (events if len(asked) > 2 else events[:1])

    monkeypatch.setattr(job, "follow", late)
    job.say(f"RESULT {DONE}")
    job.finish("COMPLETED")
    waited = launch("wait", job.id, "--json")
    assert waited.status == 0, waited.err
    assert len(asked) > 2
    assert json.loads(waited.out)["status"] == "completed"


def test_a_log_without_a_result_is_made_up_for_by_what_is_on_the_hub(hub: Hub, launch: Launch) -> None:
    hub.add_repo("tester/m", files={"adapter_model.safetensors": b"of an earlier run"})
    time.sleep(0.01)  # the Hub's clock counts milliseconds
    job = start(hub, output_repo="tester/m")
    job.say("step 5/5 | loss 1.0")
    job.finish("COMPLETED")
    nothing = why(launch, job)
    assert (nothing["status"], nothing["result"]) == ("completed", None)
    assert "no model of it was found" in nothing["message"]
    keep(hub, job, "output/adapter_model.safetensors")
    assert "/data/output" in why(launch, job)["message"]
    hub.add_repo("tester/m", files={"adapter_model.safetensors": b"weights"})
    waited = launch("wait", job.id)
    assert waited.status == 0
    assert "https://huggingface.co/tester/m" in words(waited.err)


def test_a_job_that_failed_after_its_result_is_a_failure_that_lost_nothing(hub: Hub, launch: Launch) -> None:
    job = start(hub)
    job.say(f"RESULT {DONE[:-1]}, " + '"url": "https://huggingface.co/tester/m"}', "Segmentation fault")
    job.finish("ERROR", "Job failed with exit code: 139")
    waited = launch("wait", job.id)
    assert waited.status == 1
    assert "https://huggingface.co/tester/m" in words(waited.err)


def test_what_is_in_data_is_found_where_the_log_says_nothing(hub: Hub, launch: Launch) -> None:
    job = start(hub)
    job.start()
    job.finish("ERROR", "Job failed with exit code: 137")
    for name in ("checkpoint-5/manifest.json", "checkpoint-40/manifest.json", "checkpoint-60/trainer_state.json"):
        keep(hub, job, f"checkpoints/{name}")
    found = why(launch, job)
    assert found["cause"] == "host-memory"
    assert "checkpoint of step 40 is kept" in found["message"]  # the one of step 60 was never sealed
    assert found["next"][0] == f"launch resume tester/{job.id} --flavor t4-medium"


def test_a_job_that_still_runs(hub: Hub, launch: Launch) -> None:
    job = start(hub)
    job.say("step 1/5 | loss 1.0")
    timer = threading.Timer(300, job.finish, ["CANCELED"])  # were the log followed, this test would take that long
    timer.start()
    found = why(launch, job)
    timer.cancel()
    assert (found["status"], found["cause"], found["step"]) == ("running", None, 1)
    assert not job.ended


def test_a_run_of_this_machine(launch: Launch) -> None:
    body = "say('== check labels'); say('error: every token is masked: nothing to learn.'); raise SystemExit(1)"
    run = LocalBackend().submit(request(SAY + body))
    list(LocalBackend().logs(run.id, follow=True))
    answer = launch("why", run.id, "--json")
    found = json.loads(answer.out)
    assert (answer.status, found["cause"], found["phase"]) == (0, "labels", "check labels")
