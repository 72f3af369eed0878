"""In what two runs differ, and that they do not where they do not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from launcher import catalog, spec
from launcher.jobs import folder as runs
from launcher.jobs.local import LocalBackend
from launcher.plan import export
from launcher.plan import make as planner
from launcher.plan.adapter import Adapter
from launcher.plan.record import Plan
from launcher.runs import diff
from launcher.spec import build_export
from tests.emulator import Hub
from tests.faults.command import launch
from tests.unit import sample
from tests.unit.runs.test_again import files, planned, write

TABLES = catalog.shipped()
Printed = pytest.CaptureFixture[str]


def plan(**options: Any) -> Plan:
    asked = spec.build({"model": "qwen3-8b", **options})
    return planner.make_plan(asked, TABLES, today=date(2026, 11, 24))


def side(name: str, **values: Any) -> diff.Side:
    return diff.Side(name, **({"plan": plan()} | values))


def answer(monkeypatch: pytest.MonkeyPatch, printed: Printed, *args: object) -> dict[str, Any]:
    printed.readouterr()
    assert launch(monkeypatch, "diff", *map(str, args), "--json") == 0
    found: dict[str, Any] = json.loads(printed.readouterr().out)
    return found


def shown(monkeypatch: pytest.MonkeyPatch, printed: Printed, *args: object) -> str:
    printed.readouterr()
    assert launch(monkeypatch, "diff", *map(str, args)) == 0
    return printed.readouterr().out


def test_every_decision_of_a_plan_has_its_section() -> None:
    sections = [name for names in diff.SECTIONS.values() for name in names]
    assert len(sections) == len(set(sections))
    asked = build_export(source="me/model", merge="16bit")
    adapter = Adapter("me/model", None, "unsloth/Qwen3-8B", None, 16, 16)
    made = export.make_plan(asked, adapter, TABLES, today=date(2026, 11, 24))
    known = {*plan().model_dump(), *made.model_dump()}
    assert {*sections, *diff.FOLLOWS, *diff.LEFT_OUT} == known | {"replaced"}


def test_equal_plans_differ_in_nothing() -> None:
    found = diff.compare(side("a"), side("b"), everything=True)
    assert found.same
    assert found.decisions == found.reasons == {}


def test_what_was_decided_differently_and_why() -> None:
    found = diff.compare(side("a"), side("b", plan=plan(lora_r=32, max_steps=100)))
    assert found.decisions == {"max_steps": (500, 100), "lora_r": (16, 32), "lora_alpha": (16, 32)}
    assert found.reasons == {"max_steps": (plan().reasons["max_steps"], "asked for")}
    assert not found.same


def test_time_and_price_only_where_they_are_asked_for() -> None:
    one, other = (side(str(steps), plan=plan(max_steps=steps, flavor="a10g-large")) for steps in (500, 5000))
    assert set(diff.compare(one, other).decisions) == {"max_steps"}
    everything = diff.compare(one, other, everything=True).decisions
    assert {"max_steps", "timeout_s", "cost.expected_usd", "duration.train_s"} <= set(everything)
    assert everything["cost.expected_usd"] == (one.plan.cost.expected_usd, other.plan.cost.expected_usd)


def test_packages_revisions_and_results_beside_each_other() -> None:
    one = side("a", packages={"torch": "2.13.0", "peft": "0.21.2"}, revisions={"model": "a" * 40},
               result={"train_loss": 1.5, "steps": 5, "samples": ["long"]})  # fmt: skip
    other = side("b", packages={"torch": "2.14.0", "peft": "0.21.2", "wheel": "1"}, revisions={"model": "b" * 40},
                 result={"train_loss": 1.25, "steps": 5})  # fmt: skip
    found = diff.compare(one, other)
    assert found.packages == {"torch": ("2.13.0", "2.14.0"), "wheel": (None, "1")}
    assert found.revisions == {"model": ("a" * 40, "b" * 40)}
    assert found.result == {"steps": (5, 5), "train_loss": (1.5, 1.25)}
    assert not found.same
    assert found.unknown == ()


def test_unknown_packages_are_no_difference() -> None:
    found = diff.compare(side("a", packages={"torch": "2.13.0"}), side("b"))
    assert (found.packages, found.unknown) == ({}, ("b",))


# ---- From wherever a run is kept -------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub(tmp_path / "hub", run=False) as hub:
        for name, value in hub.env().items():
            monkeypatch.setenv(name, value)
        yield hub
        assert hub.unknown_requests == []


def test_plans_in_files(monkeypatch: pytest.MonkeyPatch, capsys: Printed, tmp_path: Path) -> None:
    asked = ("plan", "--model", "qwen3-8b", "--json")
    for name, more in (("a", ()), ("b", ("--seed", "7"))):
        capsys.readouterr()
        assert launch(monkeypatch, *asked, *more) == 0
        (tmp_path / f"{name}.json").write_text(capsys.readouterr().out)
    assert answer(monkeypatch, capsys, tmp_path / "a.json", tmp_path / "b.json")["decisions"] == {"seed": [3407, 7]}
    said = shown(monkeypatch, capsys, tmp_path / "a.json", tmp_path / "b.json")
    assert "seed" in said
    assert "learning_rate" not in said
    said = shown(monkeypatch, capsys, tmp_path / "a.json", tmp_path / "a.json")
    assert "no decision differs" in said


def test_a_record_and_a_repo(hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: Printed, tmp_path: Path) -> None:
    commits = {"model": "c" * 40, "dataset": "d" * 40}
    result = {"train_loss": 2.0, "peak_gib": 7.5}
    here = write(tmp_path / "model", files(planned(), packages={"torch": "2.13.0"}, result=result))
    hub.add_repo("me/model", files=files(planned(seed=9), revisions=commits, args=["--batch-size", "4"]))
    found = answer(monkeypatch, capsys, here, "me/model")
    assert found["decisions"] == {"seed": [1, 9], "batch_size": [2, 4]}
    assert found["revisions"] == {"model": [None, "c" * 40], "dataset": [None, "d" * 40]}
    assert found["packages"] == {"torch": ["2.13.0", "2.14.0"]}
    assert found["result"]["peak_gib"] == [7.5, None]
    assert found["script"][0] != found["script"][1]
    assert "the scripts differ" in shown(monkeypatch, capsys, here, "me/model")


def test_the_same_file_where_a_job_had_it_is_no_difference(
    monkeypatch: pytest.MonkeyPatch, capsys: Printed, tmp_path: Path
) -> None:
    of = planned(dataset="rows.jsonl")
    one = write(tmp_path / "one", files(of, args=["--dataset", "/data/rows.jsonl"]))
    other = write(tmp_path / "other", files(of, args=["--dataset", "rows.jsonl"]))
    found = answer(monkeypatch, capsys, one, other)
    assert found["decisions"] == {}


def test_a_script_run_by_hand_and_one_of_another_version(
    monkeypatch: pytest.MonkeyPatch, capsys: Printed, tmp_path: Path
) -> None:
    script = (sample.JOB_SCRIPTS / "sft_text.py").read_text(encoding="utf-8")
    by_hand = write(tmp_path / "hand", files(None, script, args=["--max-steps", "3"]))
    changed = write(tmp_path / "old", files(planned(seed=2), "print('of another version')\n"))
    of = write(tmp_path / "new", files(planned(seed=1), args=["--max-steps", "3"]))
    assert answer(monkeypatch, capsys, of, changed)["decisions"] == {"max_steps": [3, 5], "seed": [1, 2]}
    assert launch(monkeypatch, "diff", str(by_hand), str(changed)) == 2
    assert "hf jobs uv run" in " ".join(capsys.readouterr().err.split())


def test_a_run_of_this_machine_with_how_it_ended(
    monkeypatch: pytest.MonkeyPatch, capsys: Printed, tmp_path: Path
) -> None:
    ids = []
    for seed in (1, 2):
        run = runs.create(sample.request("pass", of=planned(seed=seed)), LocalBackend.name)
        ids.append(run.rename(f"local-20261124-10301{seed}-ab12").id)
    of_first = {"train_loss": 1.25, "steps": 5, "output_dir": str(tmp_path / "output")}
    runs.load(ids[0]).log.write_text(f"step 5/5 | loss 1.2500\nRESULT {json.dumps(of_first)}\n")
    write(tmp_path / "output", files(planned(seed=1), revisions={"model": "c" * 40}))
    found = answer(monkeypatch, capsys, *ids)
    assert found["decisions"] == {"seed": [1, 2]}
    assert found["result"] == {"steps": [5, None], "train_loss": [1.25, None]}
    assert found["packages_unknown"] == [ids[1]]
    assert found["revisions"] == {"model": ["c" * 40, None]}
    assert found["script"][0] == found["script"][1]
    assert "the scripts are the same, byte for byte" in shown(monkeypatch, capsys, *ids)


def test_a_variable_is_named_and_not_shown(monkeypatch: pytest.MonkeyPatch, capsys: Printed, tmp_path: Path) -> None:
    for name, env in (("a", {}), ("b", {"NAME": "a value"})):
        (tmp_path / f"{name}.json").write_text(planned(env=env).model_dump_json())
    said = shown(monkeypatch, capsys, tmp_path / "a.json", tmp_path / "b.json")
    assert "NAME" in said
    assert "a value" not in said


def test_a_plan_of_anybody_moves_no_terminal(monkeypatch: pytest.MonkeyPatch, capsys: Printed, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(planned().model_dump_json())
    vram = planned().vram.model_copy(update={"parts": {"\x1b[2Jpart": 1.0}})
    strange = planned(vram=vram, run_name="\x1b[2J", reasons={"run_name": "\x1b[2J"})
    (tmp_path / "b.json").write_text(strange.model_dump_json())
    said = shown(monkeypatch, capsys, "--all", tmp_path / "a.json", tmp_path / "b.json")
    assert "vram.parts.part" in said
    assert "\x1b" not in said


@pytest.mark.parametrize("content", ["{}", "[]", "no JSON", '{"reasons": {}}', '{"plan": {"reasons": 1}}'])
def test_what_is_neither_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: Printed, tmp_path: Path, content: str
) -> None:
    path = tmp_path / "some.json"
    path.write_text(content)
    assert launch(monkeypatch, "diff", str(path), str(path)) == 2
    said = capsys.readouterr().err
    assert "some.json" in said.replace("\n", "")
    assert "Traceback" not in said
