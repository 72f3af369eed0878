"""Answers of the service that no version of it should give: each is an error of its own, and no Job is lost by one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launcher.errors import LauncherError, ServiceError
from launcher.hub import client
from launcher.jobs.service import HubBackend
from tests.emulator import Hub
from tests.faults.command import run
from tests.unit.sample import request

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
NOT_JSON = [b"", b"{", b"\xff\xfe{}", b"[" * 100_000, b"null", b"[]", b'"text"', b"7", b"<html>", b"{}"]
# Each asks the stand-in a dozen times; HYPOTHESIS_PROFILE=search asks 500 of them.
FEW = (settings.default or settings()).max_examples // 4
POST, LIST, ONE = "POST /api/jobs/{namespace}", "GET /api/jobs/{namespace}", "GET /api/jobs/{namespace}/{id}"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A Hub that only records Jobs, for all the questions of this file."""
    with Hub(tmp_path_factory.mktemp("hub"), run=False) as hub, pytest.MonkeyPatch.context() as patch:
        for name, value in hub.env().items():
            patch.setenv(name, value)
        yield hub


@pytest.fixture(autouse=True)
def answers(hub: Hub, monkeypatch: pytest.MonkeyPatch, launch_home: Path) -> None:
    for name, value in hub.env().items():
        monkeypatch.setenv(name, value)
    hub.failures.queue.clear()
    hub.jobs.clear()


def body(content: bytes) -> Callable[[bytes], bytes]:
    return lambda _: content


def field(path: tuple[str, ...], value: Any) -> Callable[[bytes], bytes]:
    """The answer with another value at that place, in the object or in each of a list."""

    def change(answer: bytes) -> bytes:
        told = json.loads(answer)
        for item in told if isinstance(told, list) else [told]:
            for key in path[:-1]:
                item = item[key]
            item[path[-1]] = value
        return json.dumps(told).encode()

    return change


FIELDS = [
    ("id",), ("createdAt",), ("startedAt",), ("finishedAt",), ("dockerImage",), ("spaceId",), ("command",),
    ("environment",), ("secrets",), ("flavor",), ("labels",), ("volumes",), ("status",), ("status", "stage"),
    ("status", "message"), ("owner",), ("owner", "name"), ("initiator",), ("durations",), ("retry",),
]  # fmt: skip
WRONG = [None, 5, "text", [], {}, [5], {"a": 5}, "2026-13-45T99:99:99Z", True]


@pytest.mark.parametrize("content", NOT_JSON)
def test_a_job_whose_answer_can_not_be_read_is_found_by_its_label(hub: Hub, content: bytes) -> None:
    hub.fail_next("odd", POST, change=body(content))
    job = HubBackend(client.Hub(0.001)).submit(request("pass"))
    assert list(hub.jobs) == [job.id]


@settings(max_examples=2 * FEW, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(FIELDS), st.sampled_from(WRONG))
def test_a_field_of_another_form_loses_no_job(hub: Hub, path: tuple[str, ...], value: Any) -> None:
    hub.jobs.clear()
    hub.fail_next("odd", POST, change=field(path, value))
    job = HubBackend(client.Hub(0.001)).submit(request("pass"))
    # What is of the right type is believed, an id too.
    assert len(hub.jobs) == 1
    assert job.id in hub.jobs or path == ("id",)


@pytest.mark.parametrize("content", [item for item in NOT_JSON if item not in (b"", b"{", b"<html>")])
def test_a_job_that_can_not_be_found_either_is_named_by_its_label(hub: Hub, content: bytes) -> None:
    hub.fail_next("odd", POST, change=body(content))
    hub.fail_next("odd", LIST, times=100, change=body(content if content != b"[]" else b"{}"))
    with pytest.raises(ServiceError) as raised:
        HubBackend(client.Hub(0.001)).submit(request("pass"))
    [job] = hub.jobs.values()
    assert f"`hf jobs ps --all --namespace tester --label request={job.labels['request']}`" in raised.value.hint
    assert raised.value.exit_code == 4


COMMANDS = (("ps", "--all"), ("wait", "-q", "{id}"), ("why", "{id}"), ("cancel", "{id}"), ("resume", "{id}", "-d"))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize("content", NOT_JSON)
def test_no_answer_of_another_form_is_a_traceback(hub: Hub, command: tuple[str, ...], content: bytes) -> None:
    job = hub.jobs[HubBackend(client.Hub(0.001)).submit(request("pass", labels={"launcher": "test"})).id]
    if command[0] != "cancel":
        job.finish("ERROR", "node lost")
    for route in (ONE, LIST, "POST /api/jobs/{namespace}/{id}/cancel"):
        hub.fail_next("odd", route, times=100, change=body(content))
    answer = run(*(word.format(id=job.id) for word in command))
    assert "Traceback" not in answer.stderr, answer.stderr
    assert answer.returncode in (0, 4), answer.stderr
    assert command[0] != "cancel" or job.stage == "CANCELED"


@pytest.mark.parametrize(
    ("change", "came"),
    [
        (body(b"<html>\n Please log in"), "begins with '<html> Please log in'"),
        (body(b""), "Nothing came."),
        (field(("createdAt",), 5), "not of the form that this version knows"),
        (field(("labels",), [5]), "labels: Input should be"),
    ],
    ids=["html", "nothing", "a date", "labels"],
)
def test_what_was_asked_and_what_came_is_said(hub: Hub, change: Callable[[bytes], bytes], came: str) -> None:
    job = HubBackend(client.Hub(0.001)).submit(request("pass"))
    hub.fail_next("odd", ONE, times=100, change=change)
    answer = run("why", job.id)
    said = " ".join(answer.stderr.split())
    assert answer.returncode == 4 and "looking at the Job failed" in said and came in said


@pytest.mark.parametrize("command", [item for item in COMMANDS if item[0] != "resume"], ids=lambda command: command[0])
def test_a_redirection_without_end_is_an_error_of_the_service(hub: Hub, command: tuple[str, ...]) -> None:
    job = HubBackend(client.Hub(0.001)).submit(request("pass"))
    for route, path in ((ONE, f"/api/jobs/tester/{job.id}"), (LIST, "/api/jobs/tester")):
        hub.fail_next(302, route, times=1000, location=path)
    answer = run(*(word.format(id=job.id) for word in command))
    assert (answer.returncode, "Traceback" in answer.stderr) == (4, False), answer.stderr


@settings(max_examples=FEW, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(FIELDS), JSON, st.sampled_from([command for command in COMMANDS if command[0] != "resume"]))
def test_no_field_of_another_form_is_a_traceback(
    hub: Hub, path: tuple[str, ...], value: Any, command: tuple[str, ...]
) -> None:
    hub.jobs.clear()
    hub.failures.queue.clear()
    job = hub.jobs[HubBackend(client.Hub(0.001)).submit(request("pass", labels={"launcher": "test"})).id]
    job.say("== train", 'RESULT {"steps": 1}')
    job.finish("ERROR", "node lost")
    for route in (ONE, LIST):
        hub.fail_next("odd", route, times=100, change=field(path, value))
    answer = run(*(word.format(id=job.id) for word in command))
    assert "Traceback" not in answer.stderr, answer.stderr


REPO = [
    ("id",), ("sha",), ("private",), ("gated",), ("siblings",), ("cardData",), ("safetensors",), ("lastModified",),
    ("baseModels",), ("tags",), ("config",),
]  # fmt: skip
ROUTES = [
    "GET /api/{kind}/{repo}", "GET /api/{kind}/{repo}/revision/{revision}", "POST /api/{kind}/{repo}/paths-info",
    "GET /api/buckets/{namespace}/{name}", "GET /api/buckets/{namespace}/{name}/tree",
    "POST /api/buckets/{namespace}/{name}", "POST /api/buckets/{namespace}/{name}/batch", "GET /api/jobs/hardware",
]  # fmt: skip
ASKED = [
    ("--model", "smollm2-135m", "--flavor", "t4-small", "--no-push", "-d"), ("why", "{id}"), ("rerun", "tester/made"),
    ("export", "tester/made", "--merge", "16bit", "--dry-run"), ("diff", "tester/made", "{id}"),
    ("plan", "--model", "tester/made", "--online"), ("flavors", "--refresh"),
]  # fmt: skip


@settings(max_examples=FEW, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(ROUTES),
    st.sampled_from(REPO),
    JSON,
    st.sampled_from(NOT_JSON),
    st.booleans(),
    st.sampled_from(ASKED),
)
def test_no_answer_about_repos_or_buckets_is_a_traceback(
    hub: Hub, route: str, path: tuple[str, ...], value: Any, content: bytes, whole: bool, command: tuple[str, ...]
) -> None:
    hub.jobs.clear()
    hub.failures.queue.clear()
    for name in ("HuggingFaceTB/SmolLM2-135M-Instruct", "tester/made"):
        hub.add_repo(name, files={"config.json": "{}", "adapter_config.json": "{}", "run.json": "{}"})
    hub.add_repo("trl-lib/Capybara", type="dataset")
    job = hub.jobs[HubBackend(client.Hub(0.001)).submit(request("pass", labels={"launcher": "test"})).id]
    job.finish("ERROR", "node lost")
    hub.fail_next("odd", route, times=100, change=body(content) if whole else tolerant(path, value))
    answer = run(*(word.format(id=job.id) for word in command))
    assert "Traceback" not in answer.stderr, answer.stderr


def tolerant(path: tuple[str, ...], value: Any) -> Callable[[bytes], bytes]:
    """The same change where the answer is an object or a list of them, else none."""

    def change(answer: bytes) -> bytes:
        told = json.loads(answer or b"null")
        if isinstance(told, dict) or (isinstance(told, list) and all(isinstance(item, dict) for item in told)):
            return field(path, value)(answer)
        return answer

    return change


@settings(max_examples=FEW, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(JSON, st.sampled_from(["", "name", "auth", "orgs", "type"]))
def test_an_account_of_another_form_is_an_error(hub: Hub, value: Any, name: str) -> None:
    hub.failures.queue.clear()
    change = field((name,), value) if name else body(json.dumps(value).encode())
    hub.fail_next("odd", "GET /api/whoami-v2", times=100, change=change)
    answer = run("ps", "--all")
    assert "Traceback" not in answer.stderr, answer.stderr
    try:
        HubBackend(client.Hub(0.001)).check(request("pass"))
    except LauncherError as error:
        assert re.search(r"\w", error.message)
