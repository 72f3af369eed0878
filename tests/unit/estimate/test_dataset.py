"""The size of datasets: local files and folders as they are written in practice, and the Hub's through the viewer."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.estimate import dataset
from launcher.estimate.dataset import DataSize, measure
from launcher.hub import client, datasets
from tests.emulator import Hub

CHAT = {"messages": [{"role": "user", "content": "a" * 37}, {"role": "assistant", "content": "b" * 37}]}
CHAT_TOKENS = 2 * (10 + dataset.TURN_TOKENS)


def lines(count: int, row: object = CHAT) -> str:
    return "".join(json.dumps(row) + "\n" for _ in range(count))


# ---- Local -----------------------------------------------------------------------------------------------------------


def test_lines_are_counted_and_blank_ones_are_not_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\ufeff" + lines(3) + "\n  \n" + lines(2).rstrip("\n"), encoding="utf-8")
    size = measure(path)
    assert (size.rows, size.tokens_per_row) == (5, CHAT_TOKENS)
    assert "rows.jsonl" in size.source


@pytest.mark.parametrize("text", [json.dumps([CHAT] * 4), json.dumps([CHAT] * 4, indent=2), lines(4)])
def test_a_json_file_may_be_an_array_or_lines(tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.json").write_text(text)
    assert measure(tmp_path / "rows.json").rows == 4


def test_csv_rows_may_span_lines(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('question,answer,note\n"one\ntwo","three",x\nfour,five,x\n')
    size = measure(tmp_path / "rows.csv")
    assert size.rows == 2
    expected = (len("one\ntwothreefourfive") / dataset.CHARS_PER_TOKEN + 4 * dataset.TURN_TOKENS) / 2
    assert size.tokens_per_row == pytest.approx(expected, abs=0.1)


def test_the_sample_reaches_all_of_a_file(tmp_path: Path) -> None:
    short, long = {"text": "x" * 37}, {"text": "x" * 37 * 9}
    (tmp_path / "rows.jsonl").write_text(lines(3000, short) + lines(3000, long))
    tokens = measure(tmp_path / "rows.jsonl").tokens_per_row
    assert tokens == pytest.approx(50 + dataset.TURN_TOKENS, rel=0.05)


@pytest.mark.parametrize(
    ("row", "characters"),
    [
        ({"conversations": [{"from": "human", "value": "x" * 10}, {"from": "gpt", "value": "y" * 5}]}, (10, 5)),
        ({"instruction": "x" * 10, "input": "", "output": "y" * 5, "source": "z" * 99}, (10, 5)),
        ({"prompt": "x" * 10, "completion": [{"role": "assistant", "content": "y" * 5}], "id": "z"}, (10, 5)),
        ({"messages": [{"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "xxx"}]}],
          "images": ["a.png"]}, (3,)),
        ({"title": "x" * 7, "body": "y" * 8, "n": 3}, (7, 8)),
    ],
)  # fmt: skip
def test_only_what_is_trained_on_counts_as_tokens(row: dict[str, object], characters: tuple[int, ...]) -> None:
    expected = sum(characters) / dataset.CHARS_PER_TOKEN + len(characters) * dataset.TURN_TOKENS
    assert dataset.mean_tokens([row]) == pytest.approx(expected, abs=0.06)


def test_a_folders_files_are_those_of_the_split(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name, count in (("train-00000-of-00002", 3), ("train-00001-of-00002", 4), ("test-00000-of-00001", 2)):
        (tmp_path / "data" / f"{name}.jsonl").write_text(lines(count))
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "train.jsonl").write_text(lines(9))
    assert measure(tmp_path).rows == 7
    assert measure(tmp_path, "test").rows == 2
    absent = measure(tmp_path, "validation")
    assert absent.rows is None
    assert "no file of the split validation" in absent.source


def test_files_without_a_splits_name_are_all_to_train_on(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(lines(3))
    assert measure(tmp_path).rows == 6


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.jsonl", b"{not json}\n", "could not be read"),
        ("rows.json", b"[1, 2", "could not be read"),
        ("rows.parquet", b"PAR1 but no more", "could not be read"),
        ("rows.parquet", b"", "could not be read"),
        ("rows.parquet", b"PAR1" + b"\xff" * 40 + struct.pack("<I", 40) + b"PAR1", "could not be read"),
        ("rows.txt", b"text", "none of .json"),
    ],
)
def test_what_cant_be_read_is_said(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    size = measure(tmp_path / name)
    assert (size.rows, size.tokens_per_row) == (None, None)
    assert said in size.source


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    assert measure(tmp_path / "none.jsonl").rows is None
    (tmp_path / "a.jsonl").write_text("{}\n")
    (tmp_path / "b.csv").write_text("a\n1\n")
    assert "several kinds (.csv, .jsonl)" in measure(tmp_path).source
    (tmp_path / "README.md").write_text("---\nlicense: mit\nconfigs:\n- config_name: x\n---\n")
    assert "README.md" in measure(tmp_path).source


def compact(number: int) -> bytes:
    """A number as thrift's compact protocol writes it."""
    value, out = number << 1, b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def test_files_that_the_training_stack_wrote() -> None:
    """`tables` was written by datasets 4.8.5: `to_parquet` in five row groups, and `save_to_disk` in two shards."""
    tables = Path(__file__).parent / "tables"
    assert measure(tables / "train.parquet").rows == 25
    assert measure(tables / "saved").rows == 15
    assert measure(tables / "saved", "test").rows == 7
    assert measure(tables / "saved" / "test").rows == 7
    assert measure(tables / "saved", "validation").rows is None


def test_a_cut_arrow_file_is_said_to_be_broken(tmp_path: Path) -> None:
    (tmp_path / "data.arrow").write_bytes(b"\xff\xff\xff\xff" + struct.pack("<I", 64) + b"\x10\0\0\0")
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    assert "could not be read" in measure(tmp_path).source
    (tmp_path / "state.json").write_text("{}")
    assert "could not be read" in measure(tmp_path).source


# ---- On the Hub ------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub(tmp_path / "hub", run=False) as hub:
        for name, value in hub.env().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("LAUNCH_DATASET_VIEWER", hub.url)
        yield hub
        assert hub.unknown_requests == []


def look_up(
    name: str, config: str | None = None, split: str = "train", revision: str | None = None
) -> DataSize:  # fmt: skip
    return datasets.size(client.Hub(), name, config, split, revision)


def test_a_hub_datasets_rows_are_exact_and_its_tokens_sampled(hub: Hub) -> None:
    hub.add_repo("team/chat", type="dataset", files={"train.jsonl": lines(700), "test.jsonl": lines(20)})
    size = look_up("team/chat")
    assert (size.rows, size.tokens_per_row) == (700, CHAT_TOKENS)
    assert "counted by the dataset viewer" in size.source
    assert look_up("team/chat", split="test").rows == 20
    assert "not at v1" in look_up("team/chat", revision="v1").source


def test_the_configuration_is_the_only_the_default_or_the_named_one(hub: Hub) -> None:
    hub.add_repo("team/two", type="dataset", files={"fr/train.jsonl": lines(3), "en/train.jsonl": lines(4)})
    hub.add_repo("team/one", type="dataset", files={"fr/train.jsonl": lines(5)})
    assert look_up("team/two", "en").rows == 4
    assert look_up("team/one").rows == 5
    unnamed = look_up("team/two")
    assert unnamed.rows is None
    assert "configurations en, fr: name one with --dataset-config" in unnamed.source
    assert "only train" in look_up("team/two", "en", "test").source


def test_a_private_dataset_needs_a_token_that_may_read_it(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add_repo("tester/mine", type="dataset", files={"train.jsonl": lines(6)}, private=True)
    assert look_up("tester/mine").rows == 6
    monkeypatch.setenv("HF_TOKEN", hub.add_user("other").token)
    stranger = look_up("tester/mine")
    assert (stranger.rows, hub.requests[-1].status) == (None, 404)
    monkeypatch.delenv("HF_TOKEN")
    nobody = look_up("tester/mine")
    assert (nobody.rows, hub.requests[-1].status) == (None, 401)
    assert nobody.source.startswith("could not be looked up: ")
    assert look_up("tester/absent").rows is None


@pytest.mark.parametrize("kind", [429, 500, 503, "reset", "cut"])
def test_a_viewer_that_fails_is_no_error(hub: Hub, kind: int | str) -> None:
    hub.add_repo("team/chat", type="dataset", files={"train.jsonl": lines(7)})
    hub.fail_next(kind, "GET /size", times=9)
    size = look_up("team/chat")
    assert (size.rows, size.tokens_per_row) == (None, None)
    assert size.source.startswith("could not be looked up: ")


def test_rows_without_a_sample_are_still_rows(hub: Hub) -> None:
    hub.add_repo("team/chat", type="dataset", files={"train.jsonl": lines(7)})
    hub.fail_next(500, "GET /rows", times=9)
    assert look_up("team/chat") == DataSize(7, None, "counted by the dataset viewer")


def test_another_endpoint_has_no_viewer_that_is_known(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAUNCH_DATASET_VIEWER")
    assert f"{hub.url} has no dataset viewer" in look_up("team/chat").source
    assert hub.requests == []


def test_a_viewer_that_is_away_is_no_error(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("LAUNCH_DATASET_VIEWER", f"http://127.0.0.1:{closed.getsockname()[1]}")
        assert "could not be looked up" in look_up("team/chat").source
    monkeypatch.setenv("LAUNCH_DATASET_VIEWER", "not a url")
    assert "could not be looked up" in look_up("team/chat").source


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("size", 422),
        ("size?dataset=team/none", 404),
        ("rows?dataset=team/chat&split=train", 422),
        ("rows?dataset=team/chat&config=default&split=none", 404),
        ("rows?dataset=team/chat&config=default&split=train&length=101", 422),
        ("rows?dataset=team/chat&config=default&split=train&offset=-1", 422),
        ("rows?dataset=team/chat&config=default&split=train&offset=5&length=9", 200),
    ],
)
def test_the_stand_in_refuses_what_the_viewer_refuses(hub: Hub, query: str, status: int) -> None:
    from huggingface_hub.utils import build_hf_headers, get_session  # type: ignore[attr-defined]

    hub.add_repo("team/chat", type="dataset", files={"train.jsonl": lines(7)})
    response = get_session().get(f"{hub.url}/{query}", headers=build_hf_headers())
    assert response.status_code == status
    answer = response.json()
    assert [row["row_idx"] for row in answer["rows"]] == [5, 6] if status == 200 else answer["error"]


def test_measuring_needs_no_library_for_tables() -> None:
    heavy = ("pyarrow", "datasets", "numpy")
    code = f"import sys, launcher.estimate.dataset; print([n for n in {heavy} if n in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_without_pyarrow_the_rows_of_a_table_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    found = measure(Path(__file__).parent / "tables" / "train.parquet")
    assert found.rows is None
    assert "--dataset-rows" in found.source
