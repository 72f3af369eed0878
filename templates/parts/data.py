"""The dataset's rows: from the Hub or from here, whole or as a stream, each with its number."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from parts.files import check_file, csv_lines, require_kind
from parts.options import FILE_LOADERS
from parts.say import UserError, note, reason

# Held out of a large dataset where nobody said how many.
EVAL_ROWS = 64


def read_split(args: Any, split: str) -> Any:
    """One split of the dataset, from the Hub or from here, whole or as a stream."""
    from datasets import DatasetDict, Features, Value, exceptions, load_dataset, load_dataset_builder, load_from_disk
    from httpx import HTTPError
    from pyarrow.dataset import ParquetFragmentScanOptions

    path = Path(args.dataset).expanduser()
    if path.is_file():
        # A stream meets a broken line in the middle of the training, and a table with a cell too many is shifted.
        (check_file if args.streaming or path.suffix == ".csv" else require_kind)(path)
    try:
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            saved = load_from_disk(path)
            saved = saved[split] if isinstance(saved, DatasetDict) else saved
            check_own({split: [file["filename"] for file in saved.cache_files]}, path, args.dataset)
            return saved.to_iterable_dataset() if args.streaming else saved
        if path.is_file():
            loader, options = FILE_LOADERS[path.suffix], dict[str, Any]()
            if loader == "parquet":
                # Arrow would read ahead over the whole file, which is as large as its pictures.
                options = {"fragment_scan_options": ParquetFragmentScanOptions(pre_buffer=False)}
            elif loader == "csv":
                # Every cell as it is written: no number, date or null is made of it.
                texts = Features({name: Value("string") for name in next(csv_lines(path))[1]})
                options = {"features": texts, "keep_default_na": False}
            return load_dataset(loader, data_files=str(path), split=split, streaming=args.streaming, **options)
        name = str(path) if path.is_dir() else args.dataset
        builder = load_dataset_builder(name, args.dataset_config, revision=args.dataset_revision)
        check_own(builder.config.data_files or {}, path if path.is_dir() else None, args.dataset)
        if args.streaming:
            return builder.as_streaming_dataset(split=split)
        builder.download_and_prepare()
        return builder.as_dataset(split=split)
    except (HTTPError, exceptions.DatasetsError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        if path.is_file():
            check_file(path)
        hint = "Check the name, the configuration, the split, the token and the network."
        raise UserError(f"the split {split} of {args.dataset} can't be read ({reason(error)}).", hint, 3) from error


def check_own(files: dict[str, list[str]], folder: Path | None, name: str) -> None:
    """Refuse a dataset whose README names files that are not its own: of this machine, of other repos, of the web."""
    for path in (path for split in files.values() for path in split):
        if folder is not None:
            # What lies in the Hub's cache is linked to.
            linked = folder.parent.name == "snapshots" and folder.parents[1].name.startswith("datasets--")
            places = [folder.resolve(), *([folder.parents[1].resolve()] if linked else [])]
            own = "://" not in path and any(Path(path).resolve().is_relative_to(place) for place in places)
        else:
            own = path.startswith(f"hf://datasets/{name}@")
        if not own:
            hint = "Its author chose that: use another dataset, or give the file itself as --dataset."
            raise UserError(f"the dataset {name} names {path}, which is no file of its own.", hint, status=3)


def number_rows(rows: Any, args: Any, pictures: bool) -> Any:
    """The rows with their place in the split, `row_number`, which errors name."""
    if "row_number" in (rows.column_names or ()):
        rows = rows.remove_columns("row_number")
    # Pictures stay encoded until they are used: a buffer of rows stays small, and an error can name the row.
    if args.streaming:
        rows = rows.decode(False) if pictures else rows
        return rows.map(lambda row, number: {"row_number": number}, with_indices=True)
    if pictures:
        from datasets import Features

        features = json.dumps(rows.features.to_dict()).replace('"_type": "Image"', '"_type": "Image", "decode": false')
        rows.info.features = Features.from_dict(json.loads(features))
    if not len(rows):
        raise UserError(f"{args.dataset} holds no rows in this split.", "Choose another one.", status=2)
    return rows.add_column("row_number", list(range(len(rows))))


def held_out(rows: int, asked: int | None) -> int:
    """Of so many rows those that are not trained on: a tenth at most unless more was asked for, and never over half."""
    return min(EVAL_ROWS, rows // 10) if asked is None else min(asked, rows // 2)


def drawn(args: Any, rows: int, count: int) -> list[int]:
    """The numbers of the rows that are read, those held out first: no more are prepared than the steps will read."""
    order = random.Random(args.seed).sample(range(rows), rows)
    if args.max_steps and not getattr(args, "packing", False):
        order = order[: count + args.max_steps * args.batch_size * args.gradient_accumulation]
    return order


def read_rows(args: Any, pictures: bool = False) -> tuple[Any, Any]:
    """The rows to train on and those to evaluate on, or none: the head of a stream, else drawn with the seed."""
    rows, eval_rows = number_rows(read_split(args, args.dataset_split), args, pictures), None
    count = 0 if args.eval_split else EVAL_ROWS if args.eval_rows is None else args.eval_rows
    if not args.streaming:
        wanted, count = count, 0 if args.eval_split else held_out(len(rows), args.eval_rows)
        if count < wanted:
            note(f"{count} of {len(rows)} rows are held out, not {wanted}: there are too few")
        rows = rows.select(drawn(args, len(rows), count))
    if args.eval_split:
        eval_rows = number_rows(read_split(args, args.eval_split), args, pictures)
        if args.eval_rows:
            eval_rows = eval_rows.take(args.eval_rows if args.streaming else min(args.eval_rows, len(eval_rows)))
    elif count:
        rows, eval_rows = rows.skip(count), rows.take(count)
    if args.streaming:
        rows = rows.shuffle(seed=args.seed, buffer_size=100 if pictures else 1000)
    return rows, eval_rows
