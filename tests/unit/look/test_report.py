"""A look at a run's rows: what is read and learned, what is refused with the row, and what could not be looked at."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from launcher import api
from launcher.errors import RequestError, ServiceError
from launcher.look.report import Look
from launcher.plan.record import Plan
from tests.emulator import Hub
from tests.unit.look.test_tokenizer import tokenizer

CONFIGS = Path(__file__).parents[1] / "catalog" / "configs"
Looks = Callable[..., Look]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a model that are read here: no weights."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer("qwen3", folder)
    shutil.copyfile(CONFIGS / "llama.json", folder / "config.json")
    return folder


@pytest.fixture
def looks(model: Path, tmp_path: Path) -> Looks:
    """A look at rows that are written to a file first."""

    def write_and_look(rows: list[Any], **options: Any) -> Look:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return api.look(planned(model, path, **options))

    return write_and_look


def planned(model: Path | str, data: Path | str, **options: Any) -> Plan:
    return api.plan(model=str(model), dataset=str(data), local=True, **options)


def pair(question: str, answer: Any = "Yes.") -> dict[str, Any]:
    return {"prompt": question, "completion": answer}


def test_what_is_read_and_what_is_not(looks: Looks) -> None:
    asked = {"role": "user", "content": "Hi", "name": "Ada", "weight": None}
    rows = [{"messages": [asked, {"role": "assistant", "content": "Hello"}], "source": "a"}, {"id": 7, "messages": []}]
    found = looks([rows[0], rows[0]])
    assert (found.rows, found.whole, found.rendered, found.duplicates) == (2, True, 2, 1)
    assert found.columns == {"messages": "the messages of a chat"}
    assert found.unread == ("source", "messages[].name")
    assert found.example_row == 0
    assert "user\nHi<|im_end|>" in found.example
    assert "Hello<|im_end|>⟧" in found.example
    assert 0 < found.trained < found.masked
    assert found.refusal == ""
    found.require()


def test_messages_that_nobody_answers_are_counted(looks: Looks) -> None:
    chat = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    found = looks([{"conversations": chat}, {"conversations": [*chat, chat[0]]}])
    assert (found.rows, found.unanswered) == (2, 1)
    assert found.lengths[0] == found.lengths[1]


def test_a_pairs_input_is_put_below_its_question(looks: Looks) -> None:
    found = looks([{"instruction": "Add", "input": "1 2", "output": "3", "response": "4"}])
    assert list(found.columns) == ["instruction", "output", "input"]
    assert found.unread == ("response",)
    assert "Add\n\n1 2<|im_end|>" in found.example


def test_rows_that_are_none_are_all_named_and_refused(looks: Looks) -> None:
    found = looks([pair("a"), pair("b", 7), pair("c"), pair("d", " "), {"prompt": "e"}], num_train_epochs=1)
    assert [(bad.number, bad.place) for bad in found.bad] == [(1, "line 2"), (3, "line 4"), (4, "line 5")]
    assert found.bad_rows == 3
    with pytest.raises(RequestError, match=r"row 1 \(line 2\): completion is a number \(7\), not a text; 2 more"):
        found.require()


def test_a_row_that_the_run_does_not_come_to_is_only_said(looks: Looks) -> None:
    rows = [pair(str(number)) for number in range(30)]
    asked = {"max_steps": 1, "batch_size": 1, "gradient_accumulation": 1, "eval_rows": 0}
    found = [looks([*rows[:place], pair("x", 7), *rows[place:]], **asked) for place in (0, 10, 20)]
    assert [look.bad[0].number for look in found] == [0, 10, 20]
    # One row is drawn of them all.
    assert sum(bool(look.refusal) for look in found) < 2
    assert [look.bad[0].read for look in found] == [bool(look.refusal) for look in found]


@pytest.mark.parametrize(
    ("rows", "options", "says"),
    [
        ([pair("a b c d e f g h i j k l m n o p q r s t u v w x y z")], {"max_length": 16}, "every token is masked"),
        ([pair("a", "yes " * 200)], {"max_length": 64}, "never trained on"),
        ([{"text": "a"}, {"text": ""}], {}, "text is empty"),
        ([{"messages": [{"role": "wizard", "content": "a"}]}], {}, "unknown role 'wizard'"),
    ],
)
def test_what_the_script_would_refuse_is_refused(
    looks: Looks, rows: list[Any], options: dict[str, Any], says: str
) -> None:
    found = looks(rows, **options)
    with pytest.raises(RequestError, match=says):
        found.require()


def test_rows_that_are_cut_are_counted(looks: Looks) -> None:
    found = looks([pair("a"), pair("b", "yes " * 200), pair("c " * 300)], max_length=128)
    assert (found.rendered, found.cut, found.unlearned) == (3, 2, 1)
    assert found.lengths == tuple(sorted(found.lengths))
    assert found.trained + found.masked == found.lengths[0] + 128


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"review": "a", "label": 1}], "no usable column among label, review"),
        ([pair("a"), "b"], "line 2 is no object"),
    ],
)
def test_what_holds_no_rows_is_refused_at_once(looks: Looks, rows: list[Any], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        looks(rows)


def test_all_tokens_may_be_trained_on_if_so_asked(looks: Looks) -> None:
    found = looks([pair("a"), pair("b")], train_on="all")
    assert found.masked == found.rows
    assert found.example.startswith("⟦<|im_start|>")


def test_without_a_tokenizer_the_shape_is_looked_at(model: Path, looks: Looks, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copyfile(model / "config.json", bare / "config.json")
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text(json.dumps(pair("a")) + "\n")
    bad.write_text(json.dumps(pair("a", 7)) + "\n")
    found = api.look(planned(bare, good))
    assert found.rendered == 0
    assert "no row was rendered" in found.notes[0]
    found.require()
    assert "completion is a number" in api.look(planned(bare, bad)).refusal


def test_a_folder_and_a_table_are_looked_at(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("train-1.csv", "train-2.csv", "test.csv"):
        (folder / name).write_text("question,answer\nHow many?,007\nAny?,NA\n")
    found = api.look(planned(model, folder))
    assert (found.rows, found.duplicates) == (4, 2)
    # Every cell is what is written in it.
    assert "007<|im_end|>⟧" in found.example
    assert not found.bad
    table = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"question": ["a", "b"], "answer": ["c", "d"]}), table)
    assert api.look(planned(model, table)).rows == 2
    table.write_bytes(table.read_bytes()[:-40])
    with pytest.raises(RequestError, match=r"rows.parquet: its rows can't be read"):
        api.look(planned(model, table))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub(tmp_path / "hub", run=False) as hub:
        for name, value in (hub.env() | {"LAUNCH_DATASET_VIEWER": hub.url}).items():
            monkeypatch.setenv(name, value)
        yield hub


def test_of_a_hub_dataset_the_first_rows_are_looked_at(hub: Hub, model: Path) -> None:
    lines = "".join(json.dumps(pair(str(number))) + "\n" for number in range(250))
    hub.add_repo("them/rows", type="dataset", files={"train.jsonl": lines})
    files = {path.name: path.read_bytes() for path in model.iterdir()}
    hub.add_repo("me/model", files=files)
    found = api.look(planned("me/model", "them/rows"))
    assert (found.rows, found.total, found.whole) == (100, 250, False)
    assert found.source == "the first 100 of 250 rows (counted by the dataset viewer)"
    assert found.example.count("⟦") == 1
    assert json.loads(json.dumps(asdict(found)))["refusal"] == ""


def test_a_hub_dataset_that_is_not_shown_is_said(hub: Hub, model: Path) -> None:
    hub.add_repo("them/rows", type="dataset")
    with pytest.raises(ServiceError, match="can't be seen from here"):
        api.look(planned(model, "them/rows"))
