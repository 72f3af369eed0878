"""What `launch demo` ships and keeps: its rows, its run, and the cached folder of its model."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import threading
import tomllib
from pathlib import Path
from typing import Any

import pytest

from launcher import demo
from launcher.errors import RefusedError, ServiceError

GENERATOR = Path(__file__).parents[2] / "bench" / "demo_data.py"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LAUNCH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def rows(split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (demo.DATASET / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def questions(split: str) -> set[str]:
    return {row["messages"][-2]["content"] for row in rows(split)}


def answers(split: str) -> set[str]:
    return {row["messages"][-1]["content"] for row in rows(split)}


def make(folder: Path) -> Path:
    """A folder as whole as a conversion's, without its content."""
    folder.mkdir(parents=True)
    for name in demo.FILES:
        (folder / name).write_text("{}")
    return folder


# ---- The dataset -----------------------------------------------------------------------------------------------------


def test_the_rows_are_those_of_the_flavor_table() -> None:
    generator = runpy.run_path(str(GENERATOR))
    for split, made in zip(("train", "test"), generator["rows"](demo.DATA / "flavors.toml"), strict=True):
        committed = (demo.DATASET / f"{split}.jsonl").read_text(encoding="utf-8")
        assert committed == generator["text"](made), "run `python bench/demo_data.py`"


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_row_is_a_question_and_its_answer(split: str) -> None:
    for row in rows(split):
        assert list(row) == ["messages"]
        assert [message["role"] for message in row["messages"]][-2:] == ["user", "assistant"]
        assert all(message["content"].strip() for message in row["messages"])
    assert len(questions(split)) == len(rows(split))


def test_no_question_is_in_both_splits_and_every_fact_is() -> None:
    assert not questions("train") & questions("test")
    assert answers("train") == answers("test")


def test_no_form_of_question_is_in_both_splits() -> None:
    flavors = tomllib.loads((demo.DATA / "flavors.toml").read_text(encoding="utf-8"))["flavors"]

    def forms(split: str) -> set[str]:
        found = set()
        for question in questions(split):
            name = max((name for name in flavors if name in question), key=len)
            found.add(question.replace(name, "X"))
        return found

    assert not forms("train") & forms("test")


def test_the_rows_shown_are_of_three_flavors() -> None:
    shown = rows("test")[: demo.spec().sample_rows]
    assert len({row["messages"][-1]["content"] for row in shown}) == len(shown) == 3


# ---- The run ---------------------------------------------------------------------------------------------------------


def test_the_run_needs_no_account(home: Path) -> None:
    spec = demo.spec()
    assert (spec.local, spec.push, spec.output_repo, spec.trackio_space) == (True, False, None, None)
    assert spec.dataset is not None
    assert Path(spec.dataset).is_dir()
    assert Path(spec.model).is_relative_to(home)


# ---- The model -------------------------------------------------------------------------------------------------------


def test_the_pins_are_those_of_the_training_stack() -> None:
    stack = tomllib.loads((demo.DATA / "stack.toml").read_text(encoding="utf-8"))
    header = "".join(
        line.removeprefix("#").removeprefix(" ") + "\n"
        for line in demo.CONVERT.read_text(encoding="utf-8").split("# ///\n")[0].splitlines()[1:]
    )
    script = tomllib.loads(header)
    assert script["requires-python"] == stack["requires_python"]
    assert script["tool"]["uv"]["exclude-newer"] == stack["exclude_newer"]
    assert set(stack["overrides"]) < set(script["tool"]["uv"]["override-dependencies"])
    assert f"transformers=={stack['pins']['transformers']}" in script["dependencies"]


def test_a_kept_model_is_returned_at_once() -> None:
    folder = make(Path(demo.spec().model))
    said: list[str] = []
    assert demo.model_folder(said.append) == folder
    assert not said


@pytest.mark.parametrize("home_set", [True, False])
def test_the_cache_follows_the_environment(home_set: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    if not home_set:
        monkeypatch.delenv("LAUNCH_HOME")
    assert Path(demo.spec().model).is_relative_to(tmp_path / ("home" if home_set else "xdg/launch") / "models")


def no_downloads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real uv, in a world without a network and with nothing downloaded before."""
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))


def test_a_download_that_fails_says_so_and_leaves_nothing(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_downloads(monkeypatch, tmp_path)
    said: list[str] = []
    with pytest.raises(ServiceError) as caught:
        demo.model_folder(said.append)
    assert "could not be made" in caught.value.message
    assert "network was disabled" in caught.value.message
    assert said
    assert not list((home / "models").iterdir())


def test_a_folder_that_lost_a_file_is_not_taken_for_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_downloads(monkeypatch, tmp_path)
    (make(Path(demo.spec().model)) / "model.safetensors").unlink()
    with pytest.raises(ServiceError):
        demo.model_folder()


def test_a_cache_that_can_not_be_written_is_refused(home: Path) -> None:
    home.write_text("a file where the folder should be")
    with pytest.raises(RefusedError, match="can't be kept"):
        demo.model_folder()


def test_what_a_killed_conversion_left_goes_after_a_day(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_downloads(monkeypatch, tmp_path)
    old, new = home / "models" / ".making-old", home / "models" / ".making-new"
    for folder in (old, new):
        (folder / "new").mkdir(parents=True)
    os.utime(old, (0, 0))
    with pytest.raises(ServiceError):
        demo.model_folder()
    assert not old.exists()
    assert new.exists()


@pytest.mark.slow
def test_the_model_is_made_once_for_two_at_a_time_and_answers(home: Path) -> None:
    made: list[Path] = []
    threads = [threading.Thread(target=lambda: made.append(demo.model_folder())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [Path(demo.spec().model)] * 2
    assert [left.name for left in (home / "models").iterdir()] == [made[0].parent.name]
    assert demo.model_folder() == made[0]

    ask = home / "ask.py"
    header = demo.CONVERT.read_text(encoding="utf-8").split('"""')[0]
    ask.write_text(
        header
        + f"""
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained({str(made[0])!r})
model = AutoModelForCausalLM.from_pretrained({str(made[0])!r})
assert (tokenizer.eos_token_id, model.generation_config.eos_token_id) == (2, 2)
chat = [{{"role": "user", "content": "What is the capital of France?"}}]
inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=20, do_sample=False)[0], skip_special_tokens=True))
""",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "uv", "run", "--python", sys.executable, "--script", str(ask)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "The capital of France is Paris." in answer
