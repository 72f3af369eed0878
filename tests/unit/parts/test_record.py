"""`run.json` as the script writes it: what ran, without secrets, paths of the machine or rows of the dataset."""

from __future__ import annotations

import json
import sys
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from parts import saving as part

from tests.unit.sample import JOB_SCRIPTS, options, plan

RESULT = {"device": "cpu", "steps": 3, "train_loss": float("nan"), "output_dir": "/secret/place", "samples": ["a row"]}


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The script in a folder of its own, with a plan beside it."""
    copy = tmp_path / "data" / "sft_text.py"
    copy.parent.mkdir()
    copy.write_bytes((JOB_SCRIPTS / "sft_text.py").read_bytes())
    monkeypatch.setattr(part, "__file__", str(copy))
    monkeypatch.setattr(part, "commit_of", lambda *_: None)
    return copy


def record(folder: Path, *argv: str, **config: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "of somebody else's").touch()
    sys.argv = ["sft_text.py", *argv]
    model = SimpleNamespace(config=SimpleNamespace(**config))
    part.write_record(folder, options(*argv), RESULT, model, ["adapter_model.safetensors"])
    found: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(autouse=True)
def argv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", sys.argv)


def test_by_hand_there_is_no_plan(beside: Path, tmp_path: Path) -> None:
    found = record(tmp_path / "out", "--max-steps", "3", _commit_hash="c" * 40)
    assert found["plan"] is None
    assert found["args"] == ["--max-steps", "3"]
    assert found["script"]["sha256"] == sha256(beside.read_bytes()).hexdigest()
    assert (tmp_path / "out" / "sft_text.py").read_bytes() == beside.read_bytes()
    assert found["revisions"] == {"model": "c" * 40, "dataset": None}
    assert found["files"] == {
        "adapter_model.safetensors": sha256(b"weights").hexdigest(), "sft_text.py": found["script"]["sha256"],
    }  # fmt: skip
    assert found["packages"]["pytest"] == pytest.__version__
    assert found["result"] == {"device": "cpu", "steps": 3, "train_loss": None}


def test_the_plan_is_recorded_without_what_its_variables_hold(beside: Path, tmp_path: Path) -> None:
    made = plan(env={"WANDB_API_KEY": "swordfish"}, learning_rate=1.5e-7)
    beside.with_name("plan.json").write_text(made.model_dump_json(), encoding="utf-8")
    found = record(tmp_path / "out")
    assert found["plan"] == made.model_dump(mode="json") | {"env": {}}
    assert found["env"] == ["WANDB_API_KEY"]
    assert "swordfish" not in (tmp_path / "out" / "run.json").read_text(encoding="utf-8")


def test_a_file_that_was_sent_along_has_the_name_that_the_user_gave(beside: Path, tmp_path: Path) -> None:
    beside.with_name("plan.json").write_text(plan(dataset="my rows.jsonl").model_dump_json(), encoding="utf-8")
    sent = beside.with_name("my_rows.jsonl")
    sent.write_text("{}", encoding="utf-8")
    found = record(tmp_path / "out", "--dataset", str(sent), "--device=cpu")
    assert found["args"] == ["--dataset", "my rows.jsonl", "--device=cpu"]
    assert found["inputs"] == {"my rows.jsonl": sha256(b"{}").hexdigest()}


def test_a_record_that_fails_costs_nothing_and_leaves_no_old_one(
    beside: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.json").write_text("of other weights", encoding="utf-8")
    beside.unlink()
    part.write_record(tmp_path, options(), RESULT, SimpleNamespace(config=SimpleNamespace()), [])
    assert not (tmp_path / "run.json").exists()
    assert "run.json could not be written" in capsys.readouterr().out


def test_the_commit_is_the_one_that_the_client_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    refs = tmp_path / "datasets--me--rows" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("a" * 40, encoding="utf-8")
    assert part.commit_of("me/rows", None, "dataset") == "a" * 40
    assert part.commit_of("me/rows", "v1", "dataset") is None
    assert part.commit_of("me/rows", "b" * 40, "dataset") == "b" * 40
    assert part.commit_of(str(tmp_path), None, "dataset") is None
