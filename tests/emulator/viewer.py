"""The dataset viewer: sizes and rows of datasets, read from their files of JSON lines.

`train.jsonl` is the split `train` of the configuration `default`; `french/test.jsonl` the split `test` of `french`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from tests.emulator.http import HubError, Request, Response, reply
from tests.emulator.repos import find_repo
from tests.emulator.state import State

_LONGEST = 100
_SPLITS = ("train", "validation", "test")


def size(state: State, request: Request) -> Response:
    """Rows and bytes of a dataset, its configurations and its splits."""
    name = _required(request, "dataset")
    tables = _tables(state, request, name)

    def entry(lines: list[bytes], **names: str) -> dict[str, Any]:
        weight = sum(map(len, lines))
        columns = len(json.loads(lines[0])) if lines else 0
        sizes = {"num_bytes_parquet_files": weight, "num_bytes_memory": weight, "num_rows": len(lines)}
        return {"dataset": name, **names, **sizes, "num_columns": columns}

    configs = sorted({config for config, _ in tables})
    together = {
        config: [line for (of, _), lines in tables.items() if of == config for line in lines] for config in configs
    }
    everything = [line for lines in together.values() for line in lines]
    whole = entry(everything)
    del whole["num_columns"]
    answer = {
        "dataset": whole,
        "configs": [entry(lines, config=config) for config, lines in together.items()],
        "splits": [entry(lines, config=config, split=split) for (config, split), lines in tables.items()],
    }
    return reply({"size": answer, "pending": [], "failed": [], "partial": False})


def rows(state: State, request: Request) -> Response:
    """A slice of a split's rows, a hundred at most."""
    name, config, split = (_required(request, key) for key in ("dataset", "config", "split"))
    offset, length = _number(request, "offset", 0), _number(request, "length", _LONGEST)
    if length > _LONGEST:
        raise HubError(422, f"Parameter 'length' must not be greater than {_LONGEST}", "InvalidParameter")
    lines = _tables(state, request, name).get((config, split))
    if lines is None:
        raise HubError(404, f"Not found: {name}, {config}, {split}.", "ResponseNotFound")
    parsed = [json.loads(line) for line in lines]
    first = parsed[0] if parsed else {}
    features = [
        {"feature_idx": number, "name": column, "type": {"dtype": "string", "_type": "Value"}}
        for number, column in enumerate(first)
    ]
    cut = [
        {"row_idx": number, "row": row, "truncated_cells": []}
        for number, row in enumerate(parsed)
        if offset <= number < offset + length
    ]
    return reply(
        {
            "features": features,
            "rows": cut,
            "num_rows_total": len(parsed),
            "num_rows_per_page": _LONGEST,
            "partial": False,
        }
    )


def _required(request: Request, name: str) -> str:
    value = request.one(name)
    if not value:
        raise HubError(422, f"Parameter '{name}' is required", "MissingRequiredParameter")
    return value


def _number(request: Request, name: str, default: int) -> int:
    text = request.one(name, str(default))
    if not text.isdigit():
        raise HubError(422, f"Parameter '{name}' must be an integer of at least 0", "InvalidParameter")
    return int(text)


def _tables(state: State, request: Request, name: str) -> dict[tuple[str, str], list[bytes]]:
    """The lines of every split, by configuration and split; refused where the user may not read the dataset."""
    try:
        repo = find_repo(state, replace(request, params={"kind": "datasets", "repo": name}), content=True)
    except HubError as error:
        # As the viewer does, nobody learns whether what he may not see is there.
        if request.user is None:
            raise HubError(
                401, "The dataset does not exist, or needs authentication.", "ExternalUnauthenticatedError"
            ) from error
        raise HubError(
            404, "The dataset does not exist, or these credentials may not read it.", "ExternalAuthenticatedError"
        ) from error
    found: dict[tuple[str, str], list[bytes]] = {}
    for path, data in sorted(repo.files.items()):
        place = PurePosixPath(path)
        if place.suffix == ".jsonl":
            config = place.parts[0] if len(place.parts) > 1 and place.parts[0] != "data" else "default"
            split = next((split for split in _SPLITS if place.stem.startswith(split)), "train")
            found.setdefault((config, split), []).extend(line for line in data.splitlines() if line.strip())
    if not found:
        raise HubError(500, "The dataset viewer has no data files to show.", "EmptyDatasetError")
    return found
