"""What the script would refuse of a dataset is refused here, with status 2, before there is a Job."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher import home
from tests.emulator import Hub
from tests.faults.command import run
from tests.unit.look.test_tokenizer import tokenizer
from tests.unit.parts.test_files import BROKEN, ROW

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
KINDS = ("pointer", "page", "empty", "no-items", "utf-16", "latin-1", "cut", "semicolons")
CASES = {kind: BROKEN[kind] for kind in KINDS} | {
    "columns": ("a.jsonl", b'{"review": "a", "label": 1}\n', "no usable column among label, review", "Rows need"),
    "preferences": ("a.jsonl", b'{"chosen": [], "rejected": []}\n', "no usable column", "preferences"),
    "answer": ("a.jsonl", ROW + b'{"prompt": "Hi", "completion": ""}\n', "row 1 (line 2)", "Mend or remove"),
    "long": ("a.jsonl", b'{"prompt": "%s", "completion": "b"}\n' % (b"a b " * 5000), "every token is masked", "--max-"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer("qwen3", folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()} | {"config.json": b"{}"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]) -> Iterator[Hub]:
    with Hub(tmp_path / "hub", run=False) as hub:
        for name, value in (hub.env() | {"LAUNCH_DATASET_VIEWER": hub.url}).items():
            monkeypatch.setenv(name, value)
        hub.add_repo(MODEL, files=files)
        yield hub


def submit(data: Path | str, *more: str) -> tuple[int, str]:
    ended = run("--model", "smollm2-135m", "--dataset", str(data), "--max-steps", "5", "--detach", *more)
    return ended.returncode, " ".join(ended.stderr.split())


@pytest.mark.parametrize("kind", CASES)
def test_no_job_is_made_of_rows_that_teach_nothing(hub: Hub, tmp_path: Path, kind: str) -> None:
    name, content, says, hint = CASES[kind]
    path = tmp_path / name
    path.write_bytes(content)
    status, said = submit(path)
    assert (status, len(hub.jobs)) == (2, 0)
    assert says in said
    assert hint in said


def test_what_is_no_file_is_refused_and_not_waited_for(hub: Hub, tmp_path: Path) -> None:
    pipe, folder = tmp_path / "pipe.jsonl", tmp_path / "folder"
    os.mkfifo(pipe)
    folder.mkdir()
    for path, says in ((pipe, "is no regular file"), (folder, "is a folder"), (tmp_path / "a.csv", "no such file")):
        status, said = submit(path if path.suffix else f"{path}/")
        assert (status, len(hub.jobs)) == (2, 0)
        assert says in said


def test_a_run_of_this_machine_is_refused_too(hub: Hub, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(ROW + ROW[:20])
    status, said = submit(path, "--local")
    assert status == 2
    assert "line 2 is not JSON" in said
    assert not list((home.data() / "runs").glob("*"))


def test_good_rows_make_a_job(hub: Hub, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(ROW * 3)
    assert submit(path)[0] == 0
    assert len(hub.jobs) == 1


def test_a_hub_dataset_is_refused_by_its_first_rows(hub: Hub) -> None:
    good, bad = json.dumps({"messages": MESSAGES}), json.dumps({"messages": MESSAGES[:1]})
    hub.add_repo("them/bad", type="dataset", files={"train.jsonl": f"{good}\n{bad}\n"})
    status, said = submit("them/bad")
    assert (status, len(hub.jobs)) == (2, 0)
    assert "row 1: no message of the assistant answers another" in said


@pytest.mark.parametrize("card", ["", "---\nconfigs:\n- config_name: chats\n  data_files: rows/*.jsonl\n---\n"])
def test_without_a_viewer_its_first_file_is_looked_at(hub: Hub, monkeypatch: pytest.MonkeyPatch, card: str) -> None:
    monkeypatch.delenv("LAUNCH_DATASET_VIEWER")
    lines = f"{json.dumps({'messages': MESSAGES})}\n" * 2 + json.dumps({"messages": 7})
    found = {"README.md": card, "rows/train-0.jsonl": lines, "rows/train-1.jsonl": lines, "other/notes.json": "[]"}
    hub.add_repo("me/rows", type="dataset", files=found if card else {"train.jsonl": lines})
    status, said = submit("me/rows", "--streaming")
    assert (status, len(hub.jobs)) == (2, 0)
    assert "row 2 (line 3): messages is not a list of messages but a number (7)" in said


def test_rows_that_can_not_be_seen_stop_no_run(hub: Hub) -> None:
    hub.add_repo("them/rows", type="dataset", files={"rows.bin": "?"})
    assert submit("them/rows")[0] == 0
    ended = run("data", "them/rows", "--model", "smollm2-135m")
    assert ended.returncode == 4
    assert "can't be seen from here" in ended.stderr


def test_the_look_by_itself(hub: Hub, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(ROW * 2 + b'{"prompt": "Hi", "completion": 7, "id": 4}\n')
    ended = run("data", str(path), "--model", "smollm2-135m")
    assert ended.returncode == 2
    assert len(ended.stdout.splitlines()) < 40
    assert "Hello<|im_end|>⟧" in ended.stdout
    assert "unread     id" in ended.stdout
    assert "row 2 (line 3): completion is a number (7), not a text" in ended.stderr
    found = json.loads(run("data", str(path), "--model", "smollm2-135m", "--json").stdout)
    assert (found["rows"], found["duplicates"], found["bad"][0]["number"]) == (3, 1, 2)
    assert run("data", str(path)).returncode == 2


def test_a_tokenizer_is_fetched_once(hub: Hub, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(ROW)
    fetched = list[int]()
    for _ in range(2):
        assert run("data", str(path), "--model", "smollm2-135m").returncode == 0
        fetched.append(sum(asked.method == "GET" and "/tokenizer.json" in asked.path for asked in hub.requests))
    # By the first, or by an earlier test in this process.
    assert fetched[0] == fetched[1] <= 1
