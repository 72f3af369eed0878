"""A Hub dataset from the dataset viewer: how many rows it has, the first of them, and a row's tokens from these."""

from __future__ import annotations

import os
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from launcher.errors import LauncherError, ServiceError
from launcher.estimate import dataset
from launcher.estimate.dataset import DataSize
from launcher.hub import repos
from launcher.hub.client import Hub, library, read_token, told
from launcher.text import mask, plain

VIEWER = "https://datasets-server.huggingface.co"
"""Of huggingface.co only; LAUNCH_DATASET_VIEWER names that of another endpoint."""
_HUB = "https://huggingface.co"
# A plan can do without: it does not wait long.
_TIMEOUT_S = 5.0
# At most 100 in one answer; pictures among them are made ready first.
_SAMPLE_ROWS, _MOST_ROWS = 50, 100
# Of a file that is fetched to be looked at: seconds, not minutes.
_LARGEST_FILE = 100_000_000


class _Unknown(Exception):
    """Why the viewer does not say it."""


@dataclass(frozen=True, slots=True)
class Head:
    """The first rows of a split, each with its number, and how many rows there are in all, where that is known.

    `cut` are the columns of those rows, by number, whose values are too long for the viewer.
    """

    rows: list[tuple[int, dict[str, Any]]]
    total: int | None
    counted: str
    cut: dict[int, tuple[str, ...]]


def size(hub: Hub, name: str, config: str | None, split: str, revision: str | None) -> DataSize:
    """The size of one split; whatever goes wrong is said in `source`."""
    try:
        address = _address(hub)
        found, rows, counted = _size(address, name, config, split)
    except (_Unknown, LauncherError, KeyError, TypeError, ValueError) as error:
        return DataSize(None, None, f"could not be looked up: {_reason(error)}")
    counted += _elsewhere(revision)
    try:
        sample = [entry["row"] for entry in _first(address, name, found["config"], split, _SAMPLE_ROWS)]
        tokens = dataset.mean_tokens(row for row in sample if isinstance(row, dict))
    except (_Unknown, LauncherError, KeyError, TypeError, ValueError):
        return DataSize(rows, None, counted)
    return DataSize(rows, tokens, f"{counted}; tokens from its first {len(sample)} rows" if tokens else counted)


def head(hub: Hub, name: str, config: str | None, split: str, revision: str | None) -> Head:
    """The first rows of one split; `ServiceError` with the reason where the viewer does not show them."""
    try:
        address = _address(hub)
        found, total, counted = _size(address, name, config, split)
        entries = _first(address, name, found["config"], split, _MOST_ROWS)
        rows = [(int(entry["row_idx"]), dict(entry["row"])) for entry in entries]
        cut = {int(entry["row_idx"]): tuple(entry.get("truncated_cells") or ()) for entry in entries}
    except (_Unknown, LauncherError, KeyError, TypeError, ValueError) as error:
        raise ServiceError(f"the rows of {name} can't be seen from here: {_reason(error)}.", "") from error
    return Head(rows, total, counted + _elsewhere(revision), {number: names for number, names in cut.items() if names})


def first_file(hub: Hub, name: str, config: str | None, split: str, revision: str | None) -> tuple[Path, int]:
    """The first file of one split, in the client's cache, and how many there are: for what no viewer shows.

    Raises `ServiceError` where it is not known, or too large to be had in seconds.
    """
    info = repos.look_up(hub, "dataset", name, revision)
    try:
        files = _files(info, config, split)
        with told(f"looking at {files[0]} of {name}"):
            found: list[Any] = hub.api.get_paths_info(name, [files[0]], repo_type="dataset", revision=info.sha)
            if found[0].size > _LARGEST_FILE:
                raise _Unknown(f"{files[0]} has {found[0].size / 1e6:,.0f} MB")
            path = hub.api.hf_hub_download(name, files[0], repo_type="dataset", revision=info.sha)
    except (_Unknown, LauncherError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ServiceError(f"the rows of {name} can't be seen from here: {_reason(error)}.", "") from error
    return Path(path), len(files)


def _files(info: Any, config: str | None, split: str) -> list[str]:
    """The files of a split: as the dataset's card names them, else as `datasets` finds them by their names."""
    names = [item.rfilename for item in info.siblings or ()]
    configs = info.card_data.to_dict().get("configs") if info.card_data else None
    if not configs:
        files, problem = dataset.names_of(names, split)
        if problem:
            raise _Unknown(problem)
        return files
    known = {str(entry["config_name"]): entry["data_files"] for entry in configs}
    listed = known[_config(sorted(known), config)]
    entries = [{"split": "train", "path": listed}] if isinstance(listed, str) else listed
    paths = [entry["path"] for entry in entries if entry["split"] == split]
    patterns = [each for path in paths for each in ([path] if isinstance(path, str) else path)]
    files = [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]
    if not files:
        raise _Unknown(f"no file of the split {split} was found")
    return files


def _config(known: list[str], config: str | None) -> str:
    """The only, default or named configuration."""
    if config is None:
        config = known[0] if len(known) == 1 else "default"
    if config not in known:
        raise _Unknown(f"it has the configurations {_some(known)}: name one with --dataset-config")
    return config


def _address(hub: Hub) -> str:
    endpoint = hub.api.endpoint
    address = os.environ.get("LAUNCH_DATASET_VIEWER") or (VIEWER if endpoint.rstrip("/") == _HUB else None)
    if address is None:
        raise _Unknown(f"{endpoint} has no dataset viewer that is known")
    return address


def _size(address: str, name: str, config: str | None, split: str) -> tuple[dict[str, Any], int | None, str]:
    """The split's entry, its rows, and how they are known."""
    answer = _ask(address, "size", dataset=name)
    found = _split(answer["size"]["splits"], config, split)
    return found, *_rows(found, is_partial=bool(answer.get("partial")))


def _first(address: str, name: str, config: str, split: str, count: int) -> list[dict[str, Any]]:
    asked = {"dataset": name, "config": config, "split": split, "offset": "0", "length": str(count)}
    return list(_ask(address, "rows", **asked)["rows"])


def _elsewhere(revision: str | None) -> str:
    return "" if revision in (None, "main") else f", on its main branch and not at {revision}"


def _split(splits: list[dict[str, Any]], config: str | None, split: str) -> dict[str, Any]:
    """The entry of one split of the dataset's only, default or named configuration."""
    config = _config(sorted({str(entry["config"]) for entry in splits}), config)
    entries = {str(entry["split"]): entry for entry in splits if entry["config"] == config}
    if split not in entries:
        raise _Unknown(f"{config} has no split {split}, only {_some(sorted(entries))}")
    return dict(entries[split])


def _rows(entry: dict[str, Any], is_partial: bool) -> tuple[int | None, str]:
    """The split's rows and how they are known: where the viewer has read only the beginning, it estimates the whole."""
    if estimate := entry.get("estimated_num_rows"):
        return int(estimate), "estimated by the dataset viewer"
    if is_partial and "estimated_num_rows" not in entry:
        return None, "too large for the dataset viewer to count"
    return int(entry["num_rows"]), "counted by the dataset viewer"


def _ask(address: str, endpoint: str, **parameters: str) -> dict[str, Any]:
    client = library().utils
    url, headers = f"{address.rstrip('/')}/{endpoint}", client.build_hf_headers()
    with told("asking the dataset viewer"):
        response = client.get_session().get(url, params=parameters, headers=headers, timeout=_TIMEOUT_S)
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if response.status_code != 200 or not isinstance(answer, dict):
        said = answer.get("error") if isinstance(answer, dict) else None
        raise _Unknown(str(said or f"the dataset viewer answered with status {response.status_code}"))
    return answer


def _reason(error: Exception) -> str:
    if isinstance(error, AttributeError | LookupError | TypeError | ValueError):
        return "the answer was not understood"
    text = error.message if isinstance(error, LauncherError) else str(error)
    return mask(plain(text), (read_token() or "",)).rstrip(".")[:200]


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
