"""Files of rows on this machine: read row by row, each refused with what it is and the line at which it is none."""

from __future__ import annotations

import csv
import json
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from parts.options import FILE_LOADERS
from parts.say import UserError

# Of a file's beginning, enough to say what it is.
HEAD = 4096
UTF16 = (b"\xff\xfe", b"\xfe\xff")
KINDS = {
    b"version https://git-lfs.github.com/spec": (
        "a pointer of Git LFS and not the file itself", "Fetch it with `git lfs pull`, or download it anew."),
    b"PAR1": ("a parquet file", "Name it .parquet."),
    b"\x1f\x8b": ("packed with gzip", "Unpack it with `gunzip`."),
    b"PK\x03\x04": ("a zip archive (or a workbook)", "Unpack it, or save it as CSV in UTF-8."),
    b"\x28\xb5\x2f\xfd": ("packed with zstd", "Unpack it with `unzstd`."),
    b"SQLite format 3": ("a database of SQLite", "Write its rows to a file of JSON lines."),
}  # fmt: skip


def rows_of(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a json, jsonl or csv file, each with its line (of a JSON array: its place, from 1).

    Raises `UserError` of status 2 for what is no such file, or no row of one.
    """
    require_kind(path)
    rows = csv_rows(path) if path.suffix == ".csv" else json_rows(path)
    first = next(rows, None)
    if first is None:
        raise wrong(path, "it holds no rows", "Give a file with at least one row.")
    yield first
    yield from rows


def require_kind(path: Path) -> None:
    """Raise `UserError` of status 2 where the file's beginning shows that it is something else than its name says."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            kind = (
                "a named pipe" if stat.S_ISFIFO(mode) else "a device or a socket" if not path.is_dir() else "a folder"
            )
            raise wrong(path, f"it is {kind}, and is read more than once", "Write the rows to a file first.")
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        hint = "Give a file that is there and that you may read."
        raise wrong(path, error.strerror or str(error), hint) from error
    begun = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not begun:
        raise wrong(path, "it is empty", "Give a file with at least one row.")
    for mark, (what, hint) in KINDS.items():
        if head.startswith(mark) and not (mark == b"PAR1" and path.suffix == ".parquet"):
            raise wrong(path, f"it is {what}", hint)
    if head.startswith(UTF16):
        raise wrong(path, "it is in UTF-16", "Save it in UTF-8.")
    if begun[:15].lower().startswith((b"<!doctype html", b"<html", b"<?xml")):
        raise wrong(
            path, "it is a web page", "Download the file itself: on the Hub with `hf download`, not from its page."
        )
    if path.suffix not in FILE_LOADERS:
        raise wrong(path, f"its name ends in {path.suffix or 'nothing'}", f"Use {', '.join(FILE_LOADERS)}, as it is.")
    if path.suffix == ".parquet" and not head.startswith(b"PAR1"):
        raise wrong(path, "it is no parquet file", "Download it anew, or name it for what it is.")


def json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of JSON lines, blank ones left out, or of one array."""
    with path.open("rb") as file:
        if file.read(HEAD).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
            yield from array_rows(path)
            return
        file.seek(0)
        for number, line in enumerate(file, 1):
            if line.isspace():
                continue
            row = parsed(path, line.removeprefix(b"\xef\xbb\xbf"), number)
            if not isinstance(row, dict):
                raise wrong(
                    path, f"line {number} is no object", 'Each line should be a row, such as {"messages": […]}.'
                )
            yield number, row


def array_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, row in enumerate(parsed(path, path.read_bytes(), None), 1):
        if not isinstance(row, dict):
            raise wrong(path, f"item {number} of its array is no object", 'Each should be a row: {"messages": […]}.')
        yield number, row


def parsed(path: Path, text: bytes, number: int | None) -> Any:
    """The JSON of a line, or of the whole file."""
    try:
        return json.loads(decoded(path, text, number))
    except (ValueError, RecursionError) as error:
        line = number or getattr(error, "lineno", 1)
        said = getattr(error, "msg", "it is nested too deeply")
        place = getattr(error, "colno", None)
        hint = "Each line should be one JSON object, or the whole file one array of them: mend the line."
        raise wrong(path, f"line {line} is not JSON ({said}{f', column {place}' if place else ''})", hint) from error


def decoded(path: Path, text: bytes, number: int | None) -> str:
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = number or text.count(b"\n", 0, error.start) + 1
        hint = f"Save it in UTF-8, such as with `iconv -f latin1 -t utf-8 {path.name}` where it is Latin-1."
        raise wrong(path, f"line {line} is not in UTF-8", hint) from error


def csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a table with commas, by the names in its first line; every cell is a text."""
    lines = csv_lines(path)
    _, names = next(lines)
    for number, cells in lines:
        if len(cells) > len(names):
            problem = f"line {number} has {len(cells)} cells for {len(names)} columns"
            raise wrong(path, problem, "Put texts with commas in quotes.")
        yield number, dict(zip(names, cells + [""] * (len(names) - len(cells)), strict=True))


def csv_lines(path: Path) -> Iterator[tuple[int, list[Any]]]:
    """The cells of each line of a table, its columns' names first; blank lines are left out."""
    csv.field_size_limit(sys.maxsize)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.reader(file, strict=True)
            names = next(table)
            if len(names) == 1 and any(sign in names[0] for sign in ";\t"):
                sign = "semicolons" if ";" in names[0] else "tabs"
                raise wrong(path, f"its columns are parted by {sign}", "Save it with commas.")
            yield 1, names
            yield from ((table.line_num, cells) for cells in table if cells)
    except csv.Error as error:
        raise wrong(path, f"line {table.line_num} is no row of a table ({error})", "Mend the line.") from error
    except UnicodeDecodeError:
        # The file is decoded in pieces: only the whole says which line it is.
        decoded(path, path.read_bytes(), None)


def wrong(path: Path, problem: str, hint: str) -> UserError:
    return UserError(f"--dataset {path}: {problem}.", hint, status=2)


def check_file(path: Path) -> None:
    """Raise `UserError` of status 2 where a file of rows is none, with the line; for parquet by its beginning only."""
    if FILE_LOADERS.get(path.suffix) == "parquet":
        require_kind(path)
        return
    for _ in rows_of(path):
        pass
