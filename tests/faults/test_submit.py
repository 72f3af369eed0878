"""No double spending: each route of a submission fails in each way, and one Job is made, or none and it is said.

The real client against the Hub stand-in. Pauses are short; what is waited for is otherwise as in use.
"""

from __future__ import annotations

import logging
import re
import signal
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.utils import _http, _xet

from launcher import home
from launcher.errors import InterruptedSubmissionError, LauncherError, RefusedError, RequestError, ServiceError
from launcher.hub import client
from launcher.hub.client import Pace, persist
from launcher.jobs import folder as runs
from launcher.jobs.service import HubBackend
from launcher.jobs.submit import Submission
from tests.emulator import Hub
from tests.faults.command import launch
from tests.unit.sample import plan, request

BUCKET = "/api/buckets/{namespace}/{name}"
# Stage of a submission: the route that it asks.
STAGES = {
    "account": "GET /api/whoami-v2",
    "model": "GET /api/{kind}/{repo}",
    "bucket": f"POST {BUCKET}",
    "visibility": f"GET {BUCKET}",
    "upload token": f"GET {BUCKET}/xet-{{scope}}-token",
    "upload": "POST /cas/{store}/v1/xorbs/{prefix_}/{hash}",
    "batch": f"POST {BUCKET}/batch",
    "job": "POST /api/jobs/{namespace}",
    "look-up": "GET /api/jobs/{namespace}",
}
FAILURES: tuple[int | str, ...] = (429, 500, "after_commit", "reset", "cut")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that only records Jobs; the client's own pauses are cut short as ours are."""
    quick = {"MAX_ATTEMPTS": "3", "BASE_DELAY": "10ms", "MAX_DURATION": "2s"}
    for name, value in quick.items():
        monkeypatch.setenv(f"HF_XET_CLIENT_RETRY_{name}", value)
    brief = SimpleNamespace(**{name: getattr(time, name) for name in dir(time) if not name.startswith("_")})
    brief.sleep = lambda seconds: time.sleep(min(seconds, 0.01))
    monkeypatch.setattr(_http, "time", brief)
    _xet.abort_xet_session()  # type: ignore[no-untyped-call]  # it reads its settings when it is made
    with Hub(tmp_path / "hub", run=False) as hub:
        for name, value in hub.env().items():
            monkeypatch.setenv(name, value)
        for owner in ("unsloth", "HuggingFaceTB"):
            hub.add_repo(f"{owner}/SmolLM2-135M-Instruct", files={"config.json": "{}"})
        hub.add_repo("trl-lib/Capybara", type="dataset")
        yield hub
        assert hub.unknown_requests == []
    _xet.abort_xet_session()  # type: ignore[no-untyped-call]


@pytest.fixture
def impatient(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A client that gives a request up after a quarter of a second."""
    monkeypatch.setattr(client, "TIMEOUT_S", 0.25)
    _http.close_session()
    yield
    _http.close_session()


def submit(pause_s: float = 0.01, **changes: Any) -> Any:
    """One submission as the command line makes it: checked, then sent."""
    backend, asked = HubBackend(client.Hub(pause_s)), request("pass", secrets=("HF_TOKEN",), **changes)
    backend.check(asked)
    return backend.submit(asked)


def live(hub: Hub) -> list[str]:
    return [job.id for job in hub.jobs.values() if not job.ended]


def kept() -> list[str]:
    folder = home.data() / "runs"
    return [path.name for path in folder.iterdir()] if folder.exists() else []


def retry_after(kind: int | str) -> int | None:
    return 0 if kind == 429 else None


@pytest.mark.parametrize("kind", FAILURES)
@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "look-up"])
def test_a_stage_that_fails_for_a_while_leaves_exactly_one_job(hub: Hub, stage: str, kind: int | str) -> None:
    hub.fail_next(kind, STAGES[stage], times=2, retry_after=retry_after(kind))
    job = submit()
    # A request that took effect is not made a second time, to fail again.
    assert len(hub.failures.queue) == (stage == "job" and kind in ("after_commit", "cut"))
    assert live(hub) == [job.id] == list(hub.jobs)
    assert kept() == [job.id]
    assert runs.load(job.id).read(runs.STATUS)["id"] == job.id
    folder = hub.jobs[job.id].labels["artifacts"]
    assert hub.buckets["tester/jobs-artifacts"].paths() == [f"{folder}/plan.json", f"{folder}/sft_text.py"]


@pytest.mark.parametrize("kind", FAILURES)
def test_a_look_up_that_fails_is_repeated_before_anything_is_asked_again(hub: Hub, kind: int | str) -> None:
    hub.fail_next("after_commit", STAGES["job"])
    hub.fail_next(kind, STAGES["look-up"], times=2, retry_after=retry_after(kind))
    job = submit()
    assert hub.failures.queue == []
    assert list(hub.jobs) == [job.id]


def test_no_look_up_no_second_request(hub: Hub) -> None:
    hub.fail_next("after_commit", STAGES["job"])
    hub.fail_next(503, STAGES["look-up"], times=100)
    with pytest.raises(ServiceError, match="503") as raised:
        submit()
    (made,) = hub.jobs.values()
    assert f"--label request={made.labels['request']}" in raised.value.hint and "hf jobs ps" in raised.value.hint


def test_a_list_that_lags_is_given_time(hub: Hub) -> None:
    hub.listing_delay_s = 0.2
    hub.fail_next("after_commit", STAGES["job"])
    job = submit(pause_s=0.1)
    assert list(hub.jobs) == [job.id]


def test_of_two_jobs_of_one_request_the_elder_stays(hub: Hub) -> None:
    """The list lags longer than is waited for: a second Job is made, and is canceled when both are seen."""
    hub.listing_delay_s = 0.45
    hub.fail_next("after_commit", STAGES["job"])
    job = submit(pause_s=0.04)
    first, second = hub.jobs
    assert (live(hub), job.id, hub.jobs[second].stage) == ([first], first, "CANCELED")
    assert kept() == [first]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("stage", ["account", "bucket", "visibility", "batch", "job"])
def test_an_answer_that_comes_too_late(hub: Hub, stage: str) -> None:
    hub.fail_next("slow", STAGES[stage], seconds=0.4)
    job = submit(pause_s=0.1)
    assert live(hub) == [job.id]
    assert len(hub.jobs) == 1


@pytest.mark.parametrize("kind", [400, 401, 402, 403, 404, 409, 413, 422])
def test_a_request_that_is_refused_is_asked_once(hub: Hub, kind: int) -> None:
    hub.fail_next(kind, STAGES["job"])
    with pytest.raises(LauncherError) as raised:
        submit()
    assert not isinstance(raised.value, ServiceError)
    assert (hub.jobs, kept()) == ({}, [])
    assert [asked.path for asked in hub.requests].count("/api/jobs/tester") == 1


@pytest.mark.parametrize("kind", [429, 503, "reset"])
@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage not in ("look-up", "upload")])
def test_a_stage_that_fails_for_good_says_so_and_leaves_nothing(hub: Hub, stage: str, kind: int | str) -> None:
    hub.fail_next(kind, STAGES[stage], times=1000, retry_after=retry_after(kind))
    with pytest.raises(ServiceError) as raised:
        submit(pause_s=0.001)
    assert raised.value.exit_code == 4
    assert (hub.jobs, kept()) == ({}, [])
    assert re.search(r"It was tried \d times in \d+ s\.", raised.value.message)
    if stage == "job":
        assert "may have started all the same" in raised.value.hint
    elif stage not in ("account", "model"):
        assert raised.value.hint.startswith("No Job was started.")
    assert hub.token not in raised.value.message + raised.value.hint


@pytest.fixture
def waited(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the launcher and its client would have slept, each time."""
    naps: list[float] = []
    clock = SimpleNamespace(monotonic=time.monotonic, time=time.time, sleep=naps.append)
    for module in (client, _http):
        monkeypatch.setattr(module, "time", clock)
    return naps


def test_a_pause_that_is_asked_for_is_kept(hub: Hub, waited: list[float]) -> None:
    hub.fail_next(429, STAGES["job"], retry_after=50)
    submit(pause_s=0.001)
    assert [seconds for seconds in waited if seconds >= 1] == [50]


@pytest.mark.parametrize("stage", ["batch", "job"])
def test_a_pause_of_two_minutes_is_cut_short(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, waited: list[float], stage: str
) -> None:
    monkeypatch.setattr(client, "LONGEST_WAIT_S", 0.2)
    hub.fail_next(429, STAGES[stage], retry_after=120)
    submit()
    assert hub.failures.queue == []
    assert max(waited, default=0) < 60


def in_an_hour() -> str:
    return format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)


@pytest.mark.parametrize("after", ["seconds", "date"])
@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("stage", ["account", "batch", "job"])
def test_for_an_hour_nobody_waits_and_it_is_said(hub: Hub, stage: str, status: int, after: str) -> None:
    asked = 3600 if after == "seconds" else in_an_hour()
    hub.fail_next(status, STAGES[stage], times=1000, retry_after=asked)
    with pytest.raises(ServiceError, match="asks to wait 60 minutes") as raised:
        submit(pause_s=0.001)
    assert raised.value.exit_code == 4
    [failure] = hub.failures.queue
    assert failure.times == 999  # asked once
    assert hub.jobs == {}


def test_a_pause_until_a_date_is_kept(hub: Hub, waited: list[float]) -> None:
    when = datetime.now(UTC) + timedelta(seconds=1000)
    hub.fail_next(429, STAGES["job"], retry_after=format_datetime(when, usegmt=True))
    with pytest.raises(ServiceError, match="asks to wait"):
        submit(pause_s=0.001)
    when = datetime.now(UTC) + timedelta(seconds=100)
    hub.fail_next(429, STAGES["job"], retry_after=format_datetime(when, usegmt=True))
    submit(pause_s=0.001)
    assert any(0 < seconds <= 100 for seconds in waited)
    waited.clear()
    hub.fail_next(429, STAGES["job"], retry_after="Wed, 21 Oct 2015 07:28:00 GMT")
    hub.fail_next(429, STAGES["job"], retry_after="soon")
    submit(pause_s=0.001)
    assert len(hub.jobs) == 2
    assert max(waited) < 1


def test_clients_that_fail_together_do_not_come_together_again() -> None:
    for number, least, most in ((1, 0.75, 1.25), (3, 3.0, 5.0), (50, 22.5, 37.5)):
        waits = {Pace(pause_s=1.0).pause(number) for _ in range(50)}
        assert len(waits) > 1
        assert least <= min(waits) and max(waits) <= most


def test_the_time_is_bounded_whatever_the_number_of_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    now, naps = [0.0], list[float]()

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        now[0] += seconds

    def fail() -> None:
        raise ConnectionResetError("reset")

    monkeypatch.setattr(client, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    with pytest.raises(ServiceError, match=r"tried \d+ times in \d+ s"):
        persist("asking", fail, Pace(pause_s=2, tries=1000, total_s=30))
    assert 2 <= len(naps) <= 4
    assert naps == sorted(naps)
    assert 7 < sum(naps) <= 30


def test_what_is_tried_again_is_said_and_holds_no_token(
    hub: Hub, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.fail_next(503, STAGES["job"], times=2, message=f"bad {hub.token}")
    with caplog.at_level(logging.WARNING, "launcher"):
        submit()
    assert [f"({number} of 6)" in said for number, said in zip((2, 3), caplog.messages, strict=True)] == [True, True]
    assert hub.token not in caplog.text
    assert capsys.readouterr().out == ""


def test_a_public_bucket_is_refused(hub: Hub) -> None:
    client.Hub().api.create_bucket("tester/jobs-artifacts", private=False)
    with pytest.raises(RefusedError, match="tester/jobs-artifacts is public") as raised:
        submit()
    assert "hf buckets settings tester/jobs-artifacts --private" in raised.value.hint
    assert (hub.jobs, hub.buckets["tester/jobs-artifacts"].paths()) == ({}, [])


def test_a_new_bucket_is_private(hub: Hub) -> None:
    submit()
    assert hub.buckets["tester/jobs-artifacts"].private


def test_a_data_file_that_is_gone_is_named(hub: Hub, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    asked = request("pass", script_args=("--dataset", str(rows)))
    submission = Submission(client.Hub(0.001), asked, "tester")
    hub.fail_next("slow", STAGES["visibility"], seconds=1.0)

    def remove() -> None:
        while not hub.buckets:
            time.sleep(0.01)
        rows.unlink()

    threading.Thread(target=remove, daemon=True).start()
    with pytest.raises(RequestError, match=r"No such file.*rows\.jsonl"):
        submission.send()
    assert hub.jobs == {}


def interrupted_at(hub: Hub, stage: str, seconds: float) -> InterruptedSubmissionError:
    """What Ctrl-C leads to while a stage takes its time."""
    hub.fail_next("slow", STAGES[stage], seconds=seconds)
    timer = threading.Timer(seconds / 2, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT])
    timer.start()
    try:
        with pytest.raises(InterruptedSubmissionError) as raised:
            HubBackend(client.Hub(0.01)).submit(request("pass"))
    finally:
        timer.cancel()
    assert raised.value.exit_code == 130
    return raised.value


def test_ctrl_c_before_the_job_is_asked_for(hub: Hub) -> None:
    error = interrupted_at(hub, "bucket", 1.0)
    assert "no Job was started" in error.message
    assert (hub.jobs, kept()) == ({}, [])


def test_ctrl_c_while_the_job_is_asked_for_names_its_label(hub: Hub) -> None:
    error = interrupted_at(hub, "job", 2.0)
    assert "may have started" in error.hint
    while not hub.jobs:
        time.sleep(0.02)
    (made,) = hub.jobs.values()
    assert f"request={made.labels['request']}" in error.hint


def test_ctrl_c_after_the_job_was_made_names_it(hub: Hub) -> None:
    hub.fail_next("after_commit", STAGES["job"])
    error = interrupted_at(hub, "look-up", 1.0)
    (made,) = hub.jobs
    assert f"the Job tester/{made} was started" in error.message
    assert f"launch cancel tester/{made}" in error.hint


COMMAND = ("--model", "smollm2-135m", "--flavor", "t4-small", "--timeout", "40m", "--detach", "-q")


def test_the_command_says_the_job_once(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.fail_next("after_commit", STAGES["job"])
    assert launch(monkeypatch, *COMMAND) == 0
    (made,) = hub.jobs.values()
    assert capsys.readouterr().out == f"tester/{made.id}\n"
    assert made.spec["attempts"] == 2


def test_the_command_ends_with_4_and_what_is_known(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.fail_next(502, STAGES["job"], times=100)
    assert launch(monkeypatch, *COMMAND, "--attempts", "3") == 4
    said = capsys.readouterr()
    words = " ".join(said.err.split())
    assert said.out == ""
    assert words.count("error: ") == words.count("may have started all the same") == 1
    assert "It was tried 6 times" in words
    assert hub.jobs == {}


def test_attempts_are_the_jobs_and_stand_in_a_dry_run(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch(monkeypatch, *COMMAND[:-2], "--attempts", "3", "--dry-run", "--json") == 0
    assert '"attempts": 3' in capsys.readouterr().out
    assert launch(monkeypatch, *COMMAND, "--attempts", "1") == 0
    (made,) = hub.jobs.values()
    assert made.info()["retry"] == 0
    assert plan().decisions.attempts.value == 2
