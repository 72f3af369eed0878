"""The rows of a run that can be seen from this machine: of its own files all of them, of a Hub dataset the first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from parts.files import require_kind, rows_of

from launcher.errors import RequestError, ServiceError
from launcher.estimate.dataset import files_of, saved_files
from launcher.hub import datasets
from launcher.hub.client import Hub
from launcher.plan.record import Plan
from launcher.spec import path_of


class Seen(NamedTuple):
    """A row with its number in the split, as the script says it, and where it stands in its file."""

    number: int
    place: str
    row: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Source:
    """The rows, and in words where they are from; `total` where it is known how many there are in all.

    `whole` where these are all of them. `folder` is what paths in them are relative to.
    """

    said: str
    rows: Iterator[Seen]
    whole: bool
    total: int | None = None
    folder: Path | None = None
    left_out: int = 0


def open_rows(plan: Plan, hub: Hub) -> Source:
    """The rows of the split that a plan trains on.

    Raises `RequestError` for what is no file of rows, as `parts.say.UserError` does while they are read, and
    `ServiceError` where they can't be seen from here.
    """
    name, asked = plan.decisions.dataset.value, plan.asked
    path = path_of(name)
    if path is None:
        wanted = asked.dataset_config, asked.dataset_split, asked.dataset_revision
        try:
            head = datasets.head(hub, name, *wanted)
        except ServiceError:
            # Of a private dataset, say, or on a Hub without a viewer.
            file, count = datasets.first_file(hub, name, *wanted)
            said = f"all rows of {file.name}" if count == 1 else f"the rows of {file.name}, the first of {count} files"
            return Source(said, _rows([file]), whole=count == 1)
        rows = (Seen(number, "", row) for number, row in head.rows if number not in head.cut)
        whole, left_out = head.total == len(head.rows) and not head.cut, len(head.cut)
        of = f" of {head.total:,}" if head.total else ""
        said = f"the first {len(head.rows)}{of} rows ({head.counted})"
        return Source(said, rows, whole, head.total, None, left_out)
    path = path.expanduser()
    if not path.is_dir():
        require_kind(path)
        return Source(f"all rows of {path.name}", _rows([path]), True, folder=path.parent)
    files, problem = saved_files(path, asked.dataset_split), ""
    if not files:
        files, problem = files_of(path, asked.dataset_split)
    if problem:
        raise ServiceError(f"the rows of {name} can't be seen from here: {problem}.", "")
    together = "the file" if len(files) == 1 else f"{len(files)} files"
    return Source(f"all rows of {together} in {path.name}", _rows(files), True, folder=path)


def _rows(files: Iterable[Path]) -> Iterator[Seen]:
    number = 0
    for path in files:
        for place, row in _tables(path) if path.suffix in (".parquet", ".arrow") else _lines(path):
            yield Seen(number, place, row)
            number += 1


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for line, row in rows_of(path):
        yield f"line {line}", row


def _tables(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a file that only pyarrow reads."""
    try:
        parquet, ipc = import_module("pyarrow.parquet"), import_module("pyarrow.ipc")
    except ImportError as error:
        message = f"the rows of {path.name} can't be seen from here: pyarrow is not installed."
        raise ServiceError(message, "`pip install pyarrow` lets such files be looked at.") from error
    try:
        with path.open("rb") as file:
            if path.suffix == ".arrow":
                batches = ipc.open_stream(file)
            else:
                require_kind(path)
                batches = parquet.ParquetFile(file).iter_batches(256)
            for batch in batches:
                for row in batch.to_pylist():
                    yield "", row
    except (OSError, ValueError) as error:  # what pyarrow raises for a broken file are both
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        hint = "Download it anew, or write it again."
        raise RequestError(f"--dataset {path}: its rows can't be read ({said}).", hint) from error
