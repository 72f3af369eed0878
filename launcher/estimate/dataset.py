"""How large a dataset is: its rows exactly where that can be read, a row's tokens as an estimate from a sample.

A plan reads no tokenizer: tokens are estimated from the characters of the texts that the scripts would train on.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from launcher.spec import DATA_SUFFIXES

# Of English chat data in vocabularies of 100,000 tokens and more; other languages and code have fewer. Assumed.
CHARS_PER_TOKEN = 3.7
# What a chat template puts around one message: <|im_start|>, the role, <|im_end|> and two line ends, in ChatML.
TURN_TOKENS = 5
SAMPLE_ROWS = 200
# A JSON array is read whole: larger ones take too long for a plan.
_LARGEST_ARRAY = 100_000_000
# Columns that the scripts know, in their order (templates/parts/chat.py).
_SHAPES = (("messages",), ("conversations",), ("prompt", "completion"), ("instruction", "input", "output"),
           ("instruction", "input", "response"), ("question", "answer"), ("text",))  # fmt: skip
# How `datasets` knows a file's split by its name.
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


@dataclass(frozen=True, slots=True)
class DataSize:
    """Rows and mean tokens of a row's text, None where unknown; `source` says how they are known, or why they are not.

    The tokens are an estimate, before a cut at the length limit and without those of pictures.
    """

    rows: int | None
    tokens_per_row: float | None
    source: str


def measure(path: str | Path, split: str = "train") -> DataSize:
    """The size of a local file or folder; what can't be read is said in `source`, never raised."""
    place = Path(path).expanduser()
    if place.exists() and not (place.is_file() or place.is_dir()):
        # Whoever opens a pipe waits for what another writes into it.
        return DataSize(None, None, f"{place.name} is no regular file")
    try:
        return _folder(place, split) if place.is_dir() else _files([place])
    except (OSError, ValueError, KeyError, TypeError, csv.Error, RecursionError) as error:
        return DataSize(None, None, f"{place.name} could not be read: {error}")


def mean_tokens(rows: Iterable[dict[str, Any]]) -> float | None:
    """Estimated tokens of a row's text, on average; none without rows."""
    counts = [_tokens(row) for row in rows]
    return round(sum(counts) / len(counts), 1) if counts else None


def _tokens(row: dict[str, Any]) -> float:
    shape = next((shape for shape in _SHAPES if set(shape) - {"input"} <= set(row)), tuple(row))
    texts = [text for column in shape for text in _texts(row.get(column))]
    return sum(len(text) / CHARS_PER_TOKEN + TURN_TOKENS for text in texts)


def _texts(value: Any) -> Iterator[str]:
    """Every text that is trained on: a string, the contents of messages, the texts of their parts."""
    if isinstance(value, str) and value:
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        for key in ("content", "value", "text"):
            yield from _texts(value.get(key))


@dataclass(slots=True)
class Sample:
    """At most twice as many as it is `wanted` of what it is given, spread evenly over all of it."""

    wanted: int = SAMPLE_ROWS
    kept: list[Any] = field(default_factory=list)
    seen: int = 0
    every: int = 1

    def add(self, item: Any) -> None:
        if self.seen % self.every == 0:
            self.kept.append(item)
            if len(self.kept) > 2 * self.wanted:
                self.kept, self.every = self.kept[::2], 2 * self.every
        self.seen += 1


def _folder(folder: Path, split: str) -> DataSize:
    arrow = saved_files(folder, split)
    if arrow:
        return DataSize(sum(_arrow_rows(path) for path in arrow), None, "counted in its arrow files")
    files, problem = files_of(folder, split)
    return DataSize(None, None, problem) if problem else _files(files)


def saved_files(folder: Path, split: str) -> list[Path]:
    """The files of a split that `save_to_disk` wrote, or none."""
    if (folder / "dataset_dict.json").is_file():
        folder = folder / split
    if not (folder / "state.json").is_file():
        return []
    names = [entry["filename"] for entry in json.loads((folder / "state.json").read_bytes())["_data_files"]]
    if any(Path(name).name != name or name.startswith(".") for name in names):
        raise ValueError("its state.json names files outside of it")
    return [folder / name for name in names]


def files_of(folder: Path, split: str) -> tuple[list[Path], str]:
    """The files of a split as `datasets` finds them in a folder; or why they are not known."""
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return [], "it is in arrow files"
    if "\nconfigs:" in _card(folder):
        return [], "its README.md says which files belong to it, which was not read"
    found = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    names, problem = names_of([path.as_posix() for path in found], split)
    return [folder / name for name in names], problem and f"{problem} in {folder.name}"


def names_of(paths: Iterable[str], split: str) -> tuple[list[str], str]:
    """Of the files of a dataset those of a split, by their names; or why they are not known."""
    found = [Path(path) for path in paths if _is_data(Path(path))]
    kinds = Counter(path.suffix for path in found)
    if len({".json" if kind == ".jsonl" else kind for kind in kinds}) > 1:
        return [], f"there are files of several kinds ({', '.join(sorted(kinds))})"
    words = {path: set(re.split(r"[^a-z0-9]+", path.as_posix().lower())) for path in found}
    known = [path for path in found if any(words[path] & set(names) for names in _SPLITS.values())]
    files = [path for path in known if words[path] & set(_SPLITS.get(split, (split,)))]
    if not known and split == "train":
        files = found
    return [path.as_posix() for path in files], "" if files else f"no file of the split {split} was found"


def _card(folder: Path) -> str:
    try:
        return (folder / "README.md").read_text(encoding="utf-8", errors="replace")[:20_000]
    except OSError:
        return ""


def _is_data(path: Path) -> bool:
    return path.suffix in DATA_SUFFIXES and not any(part.startswith((".", "__")) for part in path.parts)


def _files(paths: list[Path]) -> DataSize:
    sample, rows = Sample(), 0
    for path in paths:
        count = _READERS.get(path.suffix)
        if count is None:
            return DataSize(None, None, f"{path.name} is none of {', '.join(DATA_SUFFIXES)}")
        rows += count(path, sample)
    name = paths[0].name if len(paths) == 1 else f"{len(paths)} files"
    objects = [json.loads(item) if isinstance(item, bytes) else item for item in sample.kept]
    tokens = mean_tokens(item for item in objects if isinstance(item, dict))
    if tokens is None:
        return DataSize(rows, None, f"counted in {name}")
    return DataSize(
        rows, tokens, f"counted in {name}; tokens from {CHARS_PER_TOKEN} characters each, {len(objects)} rows"
    )


def _json_rows(path: Path, sample: Sample) -> int:
    """The lines of a file of JSON lines, blank ones left out, or the items of one array."""
    with path.open("rb") as file:
        start = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
        if start.startswith(b"["):
            return _array_rows(path, sample)
        file.seek(0)
        count = 0
        for line in file:
            if not line.isspace():
                count += 1
                sample.add(line.removeprefix(b"\xef\xbb\xbf"))
    return count


def _array_rows(path: Path, sample: Sample) -> int:
    if path.stat().st_size > _LARGEST_ARRAY:
        raise ValueError(f"a JSON array of more than {_LARGEST_ARRAY // 10**6} MB takes too long to count")
    items = json.loads(path.read_bytes())
    for item in items:
        sample.add(item)
    return len(items)


def _csv_rows(path: Path, sample: Sample) -> int:
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8", newline="", errors="replace") as file:
        count = 0
        for row in csv.DictReader(file):
            count += 1
            sample.add(row)
    return count


def _parquet_rows(path: Path, sample: Sample) -> int:
    rows: int = _pyarrow("parquet").read_metadata(path).num_rows
    return rows


def _arrow_rows(path: Path) -> int:
    """The rows of an arrow stream, as `Dataset.save_to_disk` writes them."""
    with path.open("rb") as file:
        return sum(batch.num_rows for batch in _pyarrow("ipc").open_stream(file))


def _pyarrow(part: str) -> Any:
    """That module of pyarrow; `ValueError` where it is not installed, as the launcher needs it for nothing else."""
    try:
        return import_module(f"pyarrow.{part}")
    except ImportError as error:
        raise ValueError("its rows are counted only where pyarrow is installed; --dataset-rows N says them") from error


_READERS: dict[str, Callable[[Path, Sample], int]] = {
    ".json": _json_rows,
    ".jsonl": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}
