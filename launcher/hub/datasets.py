"""How large a Hub dataset is, from the dataset viewer: exact rows, and a row's tokens from a sample of its text."""

from __future__ import annotations

import os
from typing import Any

from launcher.errors import LauncherError
from launcher.estimate import dataset
from launcher.estimate.dataset import DataSize
from launcher.hub.client import Hub, library, read_token, told
from launcher.text import mask, plain

VIEWER = "https://datasets-server.huggingface.co"
"""Of huggingface.co only; LAUNCH_DATASET_VIEWER names that of another endpoint."""
_HUB = "https://huggingface.co"
# A plan can do without: it does not wait long.
_TIMEOUT_S = 5.0
# At most 100 in one answer; pictures among them are made ready first.
_SAMPLE_ROWS = 50


class _Unknown(Exception):
    """Why the viewer does not say it."""


def size(hub: Hub, name: str, config: str | None, split: str, revision: str | None) -> DataSize:
    """The size of one split; whatever goes wrong is said in `source`."""
    endpoint = hub.api.endpoint
    address = os.environ.get("LAUNCH_DATASET_VIEWER") or (VIEWER if endpoint.rstrip("/") == _HUB else None)
    if address is None:
        return DataSize(None, None, f"could not be looked up: {endpoint} has no dataset viewer that is known")
    try:
        answer = _ask(address, "size", dataset=name)
        found = _split(answer["size"]["splits"], config, split)
        rows, counted = _rows(found, is_partial=bool(answer.get("partial")))
    except (_Unknown, LauncherError, KeyError, TypeError, ValueError) as error:
        return DataSize(None, None, f"could not be looked up: {_reason(error)}")
    if revision not in (None, "main"):
        counted += f", on its main branch and not at {revision}"
    try:
        asked = {"dataset": name, "config": found["config"], "split": split, "offset": "0", "length": str(_SAMPLE_ROWS)}
        sample = [entry["row"] for entry in _ask(address, "rows", **asked)["rows"]]
        tokens = dataset.mean_tokens(row for row in sample if isinstance(row, dict))
    except (_Unknown, LauncherError, KeyError, TypeError, ValueError):
        return DataSize(rows, None, counted)
    return DataSize(rows, tokens, f"{counted}; tokens from its first {len(sample)} rows" if tokens else counted)


def _split(splits: list[dict[str, Any]], config: str | None, split: str) -> dict[str, Any]:
    """The entry of one split of the dataset's only, default or named configuration."""
    configs = sorted({str(entry["config"]) for entry in splits})
    if config is None:
        config = configs[0] if len(configs) == 1 else "default"
    if config not in configs:
        raise _Unknown(f"it has the configurations {_some(configs)}: name one with --dataset-config")
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
    if isinstance(error, KeyError | TypeError | ValueError):
        return "the dataset viewer's answer was not understood"
    text = error.message if isinstance(error, LauncherError) else str(error)
    return mask(plain(text), (read_token() or "",)).rstrip(".")[:200]


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
