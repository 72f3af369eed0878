"""Files of rows: each kind that is none is refused with what it is, and a broken line with its number."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest
from parts.files import check_file, rows_of
from parts.say import UserError

ROW = b'{"prompt": "Hi", "completion": "Hello"}\n'
# What is wrong by name: the file's name, its bytes, what is said of it, and what to do.
BROKEN: dict[str, tuple[str, bytes, str, str]] = {
    "pointer": (
        "a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS", "git lfs pull",
    ),
    "page": ("a.jsonl", b"\n<!DOCTYPE html>\n<html>", "a web page", "hf download"),
    "empty": ("a.jsonl", b"", "it is empty", "at least one row"),
    "blank": ("a.csv", b"\xef\xbb\xbf \n\n", "it is empty", "at least one row"),
    "no-items": ("a.json", b" []", "it holds no rows", "at least one row"),
    "header-only": ("a.csv", b"prompt,completion\n", "it holds no rows", "at least one row"),
    "utf-16": ("a.csv", "prompt,completion\nHi,Hello\n".encode("utf-16"), "UTF-16", "UTF-8"),
    "latin-1": ("a.jsonl", ROW + ROW.replace(b"Hello", b"caf\xe9"), "line 2 is not in UTF-8", "iconv -f latin1"),
    "latin-1-table": ("a.csv", b"prompt,completion\nHi,caf\xe9\n", "line 2 is not in UTF-8", "iconv"),
    "cut": ("a.jsonl", ROW + ROW[:20], "line 2 is not JSON", "mend the line"),
    "cut-array": ("a.json", b"[" + ROW + b"," + ROW[:20], "is not JSON", "mend the line"),
    "texts": ("a.jsonl", ROW + b'"Hi"\n', "line 2 is no object", "a row"),
    "numbers": ("a.json", b"[1, 2]", "item 1 of its array", "a row"),
    "semicolons": ("a.csv", b"prompt;completion\nHi;Hello\n", "semicolons", "commas"),
    "ragged": ("a.csv", b"prompt,completion\nHi,a, b\n", "line 2 has 3 cells for 2 columns", "quotes"),
    "quote": ("a.csv", b'prompt,completion\nHi,"Hel\n', "no row of a table", "Mend the line"),
    "packed": ("a.jsonl", gzip.compress(ROW), "gzip", "gunzip"),
    "other-kind": ("a.jsonl", b"PAR1....PAR1", "a parquet file", ".parquet"),
    "no-parquet": ("a.parquet", ROW, "no parquet file", "what it is"),
    "deep": ("a.jsonl", b"[" * 100_000, "line 1 is not JSON", "mend the line"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_holds_no_rows_is_refused_with_what_it_is(tmp_path: Path, kind: str) -> None:
    name, content, says, hint = BROKEN[kind]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        check_file(path)
    assert error.value.status == 2
    assert str(path) in error.value.args[0]
    assert says in error.value.args[0]
    assert hint in error.value.args[1]


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    pipe, folder = tmp_path / "pipe.jsonl", tmp_path / "folder.jsonl"
    os.mkfifo(pipe)
    folder.mkdir()
    for path, says in ((pipe, "a named pipe"), (folder, "a folder"), (tmp_path / "none.jsonl", "No such file")):
        with pytest.raises(UserError, match=says) as error:
            next(rows_of(path))
        assert error.value.status == 2


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [
        ("a.jsonl", b"\xef\xbb\xbf" + ROW + b"\n" + ROW, [1, 3]),
        ("a.jsonl", ROW + ROW.rstrip(), [1, 2]),
        ("a.json", b" [" + ROW + b"," + ROW + b"]", [1, 2]),
        ("a.csv", b'\xef\xbb\xbfprompt,completion\nHi,Hello\n\n"Hi",Hello\n', [2, 4]),
    ],
)
def test_rows_have_their_lines(tmp_path: Path, name: str, content: bytes, lines: list[int]) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert list(rows_of(path)) == [(line, {"prompt": "Hi", "completion": "Hello"}) for line in lines]
