"""What is said of a Job while it waits, where the service does not show it, and where it is over: never too little."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from launcher import api
from launcher.hub import client
from launcher.jobs import log, stream
from launcher.jobs.base import Job as Seen
from launcher.jobs.base import Left, looks
from launcher.jobs.events import summarize
from launcher.jobs.service import HubBackend
from launcher.runs.outcome import Outcome, outcome
from tests.emulator import Hub, jobs
from tests.emulator.job import Job
from tests.faults.command import run
from tests.unit.runs.test_outcome import job as ended_job
from tests.unit.sample import plan, request

ONE, LOGS = "GET /api/jobs/{namespace}/{id}", "GET /api/jobs/{namespace}/{id}/logs"
CANCEL = "POST /api/jobs/{namespace}/{id}/cancel"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pauses, and with few tries."""
    monkeypatch.setattr(client.Hub.__init__, "__defaults__", (0.001,))
    monkeypatch.setattr(looks, "__defaults__", (0.001,))
    monkeypatch.setattr(log, "ATTEMPTS", 4)
    monkeypatch.setattr(log, "_LOOK_S", 0.0)
    monkeypatch.setattr(log.read, "__defaults__", (0.001,))
    monkeypatch.setattr(stream, "DRAINED_S", 0.3)
    monkeypatch.setattr(jobs, "KEEP_ALIVE_S", 0.1)


def start(hub: Hub, **changes: Any) -> Job:
    of = plan(flavor="a10g-large", timeout_s=5400)
    return hub.jobs[HubBackend().submit(request("pass", of=of, flavor="a10g-large", timeout_s=5400, **changes)).id]


def ago(minutes: float) -> str:
    return (datetime.now(UTC) - timedelta(minutes=minutes)).isoformat().replace("+00:00", "Z")


def test_a_queue_is_free_and_the_bill_begins_with_the_machine(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    job = start(hub)
    job.created_at = ago(720)
    waits = api.inspect(f"tester/{job.id}")
    real, asked = Job.info, []

    def info(self: Job) -> dict[str, Any]:
        asked.append(self)
        if len(asked) > 6:  # the machine comes, and all that is to be done is soon done
            job.say("== train", 'RESULT {"steps": 5, "stopped": null}')
            job.finish("COMPLETED")
        return real(self)

    monkeypatch.setattr(Job, "info", info)
    waited = run("wait", job.id)
    assert waited.returncode == 0, waited.stderr
    assert "queued for 12 h 00 min, nothing billed" in waited.stderr
    assert "started after 12 h 00 min in the queue" in waited.stderr
    assert "$" not in waited.stderr
    assert waits.started_at is None
    seen = outcome(waits, summarize([]))
    assert "nothing is billed" in seen.message


def test_what_is_so_far_paid_counts_from_the_start() -> None:
    import io

    from rich.console import Console

    from launcher.view.live import Live

    began = datetime.now(UTC) - timedelta(hours=12)
    waits = Seen(
        id="abc", url="https://huggingface.co/jobs/lab/abc", backend="hub", stage="SCHEDULING", message=None,
        flavor="h200x8", labels={}, created_at=began,
    )  # fmt: skip
    live = Live(Console(file=io.StringIO()), waits, 40.0, quiet=False, terse=False)
    assert live._state() == "queued for 12 h 00 min, nothing billed"
    runs = {**waits.as_dict(), "stage": "RUNNING", "started_at": (began + timedelta(hours=11)).isoformat()}
    live.see(Seen.from_dict(runs))
    assert live._state() == "$40.00 so far"


BREAKS = [(404, "none"), (401, "revoked")]
ASKED = (("wait", "-q"), ("why",), ("logs",), ("logs", "-f"), ("cancel",))


@pytest.mark.parametrize(("status", "said"), BREAKS, ids=lambda value: str(value))
@pytest.mark.parametrize("command", ASKED, ids=" ".join)
def test_a_job_that_was_made_is_never_said_not_to_be(
    hub: Hub, command: tuple[str, ...], status: int, said: str
) -> None:
    job = start(hub)
    job.start()
    for route in (ONE, LOGS, CANCEL):
        hub.fail_next(status, route, times=200, message=said)
    answer = run(command[0], job.id, *command[1:])
    assert answer.returncode == 4, answer.stderr
    words = " ".join(answer.stderr.split())
    assert not job.ended
    if command[0] == "logs" and status in (404, 410):
        assert "reading the Job's log failed" in words and "no Job" not in words
    else:
        assert f"The Job tester/{job.id} was made: it may go on, and cost." in words
        assert f"/jobs/tester/{job.id}" in words and f"launch cancel tester/{job.id}" in words


def test_a_job_that_is_shown_a_moment_late_is_followed(hub: Hub) -> None:
    job = start(hub)
    seen = api.inspect(job.id)
    hub.fail_next(404, ONE, times=3)
    hub.fail_next(404, LOGS, times=2)
    job.say('RESULT {"steps": 5, "stopped": null}')
    job.finish("COMPLETED")
    *_, found = api.follow(seen)
    assert isinstance(found, Outcome) and found.exit_code == 0


@pytest.mark.parametrize("status", [404, 503])
def test_a_job_whose_log_is_gone_ended_as_its_stage_says(hub: Hub, status: int) -> None:
    done, failed = start(hub), start(hub)
    done.finish("COMPLETED")
    failed.finish("ERROR", "Job timeout")
    hub.fail_next(status, LOGS, times=1000)
    waited = run("wait", done.id)
    assert waited.returncode == 0, waited.stderr
    assert "is done; its log has no RESULT line" in waited.stderr
    assert run("wait", failed.id).returncode == 1
    found = json.loads(run("why", failed.id, "--json").stdout)
    assert (found["status"], found["cause"]) == ("failed", "timeout")


def test_a_stage_that_nobody_knows_is_said_with_the_jobs_page(hub: Hub) -> None:
    job = start(hub)
    job.log("one")
    job.stage = "PAUSED"
    for asked in ("wait", "why"):
        answer = run(asked, job.id)
        said = " ".join((answer.stderr + answer.stdout).split())
        assert answer.returncode == (4 if asked == "wait" else 0)
        assert "is in stage 'PAUSED'" in said and "it may go on, and cost" in said
        assert f"/jobs/tester/{job.id}" in said


@pytest.mark.parametrize("content", [b"<html>Please log in</html>", b"", b'{"ok": true}'])
def test_a_cancel_that_was_answered_and_not_done_is_no_success(
    hub: Hub, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = start(hub)
    job.start()
    monkeypatch.setattr(type(hub.jobs[job.id]), "finish", lambda *_: None)  # who answered was not the service
    hub.fail_next("odd", CANCEL, times=10, change=lambda _: content)
    answer = run("cancel", job.id)
    assert answer.returncode == 4
    said = " ".join(answer.stderr.split())
    assert "is still RUNNING: it goes on, and costs" in said and f"launch cancel tester/{job.id}" in said


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ({"steps": 53, "stopped": "deadline"}, "It had stopped at step 53 of 120 before that."),
        ({"steps": 120, "stopped": None}, "It had come to its end before that."),
    ],
)
def test_a_run_that_stopped_had_not_come_to_its_end(result: dict[str, Any], said: str) -> None:
    seen = summarize(["step 53/120 | loss 1.0", f"RESULT {json.dumps(result)}"])
    found = outcome(ended_job("node lost"), seen)
    assert said in found.message
    left = Left(repo="me/m", repo_files=("adapter_model.safetensors",))
    assert "come to its end" not in outcome(ended_job("node lost"), summarize([]), left=left).message
