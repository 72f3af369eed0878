"""Records of any shape, of strangers and of this machine: each is read, or refused by name, and never a traceback."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launcher import catalog
from launcher.hub import client
from launcher.jobs import folder as runs
from launcher.jobs.service import HubBackend
from launcher.render import render
from tests.emulator import Hub
from tests.faults.command import run
from tests.unit.sample import plan, request

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**400), 10**400) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)
# Each asks several commands; HYPOTHESIS_PROFILE=search asks 250 of them.
ANY = settings(
    max_examples=(settings.default or settings()).max_examples // 8,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture
def hub(hub: Hub) -> Hub:
    """With what a submission looks up."""
    hub.add_repo("unsloth/SmolLM2-135M-Instruct", files={"config.json": "{}"})
    hub.add_repo("trl-lib/Capybara", type="dataset")
    return hub


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in the value something stands."""
    yield at
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*at, key))


def changed(value: Any, at: tuple[Any, ...], to: Any) -> Any:
    """The value with something else at that place."""
    if not at:
        return to
    whole = dict(value) if isinstance(value, dict) else list(value)
    whole[at[0]] = changed(value[at[0]], at[1:], to)
    return whole


PLAN = plan(flavor="t4-small", timeout_s=5400, labels={"a": "b"}).model_dump(mode="json")
SCRIPT = render(plan(flavor="t4-small", timeout_s=5400), catalog.load().stack)
RECORD = {
    "version": 1, "launcher": "0.1.0", "plan": PLAN, "args": [], "inputs": {"a": "b"}, "env": ["A"],
    "script": {"name": "sft_text.py", "sha256": hashlib.sha256(SCRIPT.encode()).hexdigest()}, "flavor": "t4-small",
    "revisions": {"model": "a" * 40, "dataset": None}, "packages": {"torch": "2"}, "python": "3.12",
    "platform": "Linux", "device": "T4", "files": {}, "result": {"steps": 5, "eval_loss": 1.0, "samples": []},
}  # fmt: skip


def ask(*args: str) -> None:
    answer = run(*args)
    assert "Traceback" not in answer.stderr, answer.stderr
    assert answer.returncode in (0, 1, 2, 3, 4)


@ANY
@given(st.sampled_from(list(places(RECORD))), JSON)
def test_a_strangers_record_of_any_shape(hub: Hub, tmp_path: Path, at: tuple[Any, ...], value: Any) -> None:
    for name, record in (("one", RECORD), ("two", changed(RECORD, at, value))):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "run.json").write_text(json.dumps(record))
        (tmp_path / name / "sft_text.py").write_text(SCRIPT)
    ask("diff", str(tmp_path / "one" / "run.json"), str(tmp_path / "two" / "run.json"), "--all")
    ask("rerun", str(tmp_path / "two" / "run.json"), "--detach")


@ANY
@given(st.sampled_from([runs.PLAN, runs.REQUEST, runs.STATUS]), st.data(), JSON)
def test_a_record_of_this_machine_of_any_shape(hub: Hub, name: str, data: st.DataObject, value: Any) -> None:
    of = plan(flavor="t4-small", timeout_s=5400)
    job = HubBackend(client.Hub(0.001)).submit(request(SCRIPT, of=of, flavor="t4-small", timeout_s=5400))
    hub.jobs[job.id].say('RESULT {"steps": 1}')
    hub.jobs[job.id].finish("ERROR", "node lost")
    path = runs.load(job.id).folder / name
    told = json.loads(path.read_text())
    at = data.draw(st.sampled_from(list(places(told))))
    path.write_text(json.dumps(changed(told, at, value)))
    command = data.draw(
        st.sampled_from(
            [("why", job.id), ("logs", job.id), ("wait", job.id, "--json"), ("resume", job.id, "-d"), ("ps", "--all"),
             ("rerun", job.id, "-d"), ("diff", job.id, job.id), ("cancel", job.id), ("export", job.id, "--dry-run")]
        )
    )  # fmt: skip
    ask(*command)
    hub.jobs.clear()
    runs.load(job.id).discard()
