"""The launcher as a library: the functions and their values, and the page that documents them."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import assert_type

import pytest

import launcher
import launcher.plan.make  # which binds `launcher.plan` to nothing else than the function
from launcher.jobs import folder
from launcher.jobs.base import Job
from launcher.spec import RunSpec
from tests.emulator import Hub

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
SAID = ("== train", "step 1/2 | loss 1.5", "a line", "step 2/2 | loss 1.25", 'RESULT {"steps": 2, "train_loss": 1.25}')


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub whose Jobs the test plays, with what a plan of Qwen3-8B reads."""
    with Hub(tmp_path / "hub", run=False) as hub:
        for name, value in hub.env().items():
            monkeypatch.setenv(name, value)
        hub.add_repo(launcher.plan(model="qwen3-8b").facts.repo, files={"config.json": "{}"})
        hub.add_repo("trl-lib/Capybara", type="dataset")
        monkeypatch.chdir(tmp_path)
        yield hub
        assert hub.unknown_requests == []


def play(hub: Hub, stage: str = "COMPLETED") -> threading.Thread:
    """Let the first Job say its lines and end as soon as there is one."""

    def machine() -> None:
        while not hub.jobs:
            time.sleep(0.02)
        [job] = hub.jobs.values()
        job.say(*SAID)
        job.finish(stage)

    thread = threading.Thread(target=machine, daemon=True)
    thread.start()
    return thread


def test_the_functions_are_what_the_package_exports() -> None:
    code = """
import sys, launcher
heavy = [name for name in ("torch", "huggingface_hub", "jinja2", "rich") if name in sys.modules]
import launcher.plan.make, launcher.render
from launcher.plan import make
print(heavy, callable(launcher.plan), callable(launcher.render), make.make_plan.__name__)
print(all(hasattr(launcher, name) for name in launcher.__all__))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[] True True make_plan", "True"]


def test_what_a_type_checker_sees() -> None:
    """Held by mypy, which checks this file too: an ignore that nothing needs is an error there."""
    made = assert_type(launcher.plan(model="qwen3-8b"), launcher.Plan)
    assert_type(launcher.render(made), str)
    with pytest.raises(AttributeError):
        launcher.plan(7)  # type: ignore[arg-type]
    assert Path(launcher.__file__).with_name("py.typed").is_file()


def test_a_spec_and_options_are_one_request() -> None:
    spec = RunSpec(model="qwen3-8b", max_steps=7, seed=1)
    assert launcher.plan(spec) == launcher.plan(model="qwen3-8b", max_steps=7, seed=1)
    assert launcher.plan(spec, seed=2) == launcher.plan(model="qwen3-8b", max_steps=7, seed=2)
    with pytest.raises(launcher.RequestError, match="--max-steps -1"):
        launcher.plan(spec, max_steps=-1)
    with pytest.raises(launcher.RequestError, match="no model"):
        launcher.plan()


def test_a_run_is_followed_as_values(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    plan = launcher.plan(model="qwen3-8b", max_steps=2)
    assert launcher.render(plan).startswith("# /// script")
    play(hub)
    job = launcher.submit(plan)
    assert isinstance(job, Job)
    assert_type(launcher.follow(job), Iterator[launcher.Event | launcher.Outcome])
    *events, outcome = launcher.follow(job)
    assert events[0] == launcher.Phase("train")
    assert [event.loss for event in events if isinstance(event, launcher.Step)] == [1.5, 1.25]
    assert isinstance(outcome, launcher.Outcome)
    assert (outcome.status, outcome.result) == ("completed", {"steps": 2, "train_loss": 1.25})
    assert outcome.job and outcome.job.succeeded
    assert list(launcher.follow("last")) == list(launcher.follow(job.address)) == [*events, outcome]
    assert capsys.readouterr() == ("", "")


def test_a_run_that_fails_is_an_outcome_and_no_exception(hub: Hub) -> None:
    play(hub, "ERROR")
    *_, outcome = launcher.follow(launcher.submit(launcher.plan(model="qwen3-8b", max_steps=2)))
    assert isinstance(outcome, launcher.Outcome)
    assert (outcome.status, outcome.exit_code) == ("failed", 1)


def test_what_can_not_be_started_is_an_exception(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(launcher.RequestError, match="'lab/none' does not exist"):
        launcher.submit(launcher.plan(model="qwen3-8b", dataset="lab/none", max_steps=2))
    monkeypatch.setenv("HF_TOKEN", "hf_" + "nobody" * 5)
    with pytest.raises(launcher.LauncherError, match="does not accept your token"):
        launcher.submit(launcher.plan(model="qwen3-8b", max_steps=2))
    assert hub.jobs == {}
    assert folder.every() == []


def test_the_page_runs_as_it_stands(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(EXAMPLES) == 2
    play(hub)
    space: dict[str, object] = {}
    for example in EXAMPLES:
        exec(compile(example, str(PAGE), "exec"), space)
    printed = capsys.readouterr().out
    assert "step 2: 1.25" in printed
    assert "completed {'steps': 2" in printed
    assert "does not fit on t4-small" in printed
    [job] = hub.jobs.values()
    assert f"/jobs/tester/{job.id}" in printed
    sent = next(data for path, data in hub.buckets["tester/jobs-artifacts"].files.items() if path.endswith(".py"))
    assert Path("train.py").read_bytes() == sent
