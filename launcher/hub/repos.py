"""What the Hub holds of a model or a dataset: its commits, its files, the size of its weights, who may read it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from launcher.catalog import tensors
from launcher.catalog.tensors import Weights
from launcher.errors import LauncherError, RequestError
from launcher.hub import answers
from launcher.hub.client import TIMEOUT_S, Hub, told
from launcher.plan.pins import Seen
from launcher.spec import COMMIT

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime

    from huggingface_hub import DatasetInfo, ModelInfo

# What a model's tokenizer, processor and config are read from; an index of weights would be looked for them.
_SMALL = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken")
_WEIGHTS = ("*.index.json", "adapter_*", "original/*", "onnx/*", "params.json")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Some files of a model repo at one commit, by their names; `names` are those of all that there are."""

    repo: str
    commit: str | None
    private: bool
    names: frozenset[str]
    files: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class Place:
    """A model repo that something is pushed to, as it is now; without any files where it is not there yet."""

    name: str
    exists: bool = False
    private: bool = False
    files: frozenset[str] = frozenset()

    @property
    def holds_model(self) -> bool:
        """Whether there are weights in it."""
        return any(name.endswith((".safetensors", ".bin", ".gguf", ".pt", ".pth")) for name in self.files)


def place(hub: Hub, name: str) -> Place:
    """The model repo of that name, which may not be there; its name is the one that it has now."""
    try:
        info = look_up(hub, "model", name, None)
    except RequestError:
        return Place(name)
    return Place(info.id, True, bool(info.private), frozenset(item.rfilename for item in info.siblings or ()))


def look_up(hub: Hub, kind: str, name: str, revision: str | None) -> ModelInfo | DatasetInfo:
    """What the Hub says of a model or a dataset at a revision (none: its main branch); raises where there is none."""
    ask = hub.api.model_info if kind == "model" else hub.api.dataset_info
    action, what = _words(kind, name)
    return hub.ask(action, lambda: answers.repo(ask(name, revision=revision, timeout=TIMEOUT_S)), what)


def see(hub: Hub, kind: str, name: str, revision: str | None) -> Seen:
    """The commit, none where the answer holds none, and the licence of the repo's card, which is not checked."""
    info = look_up(hub, kind, name, revision)
    card = info.card_data
    said = [getattr(card, key, None) for key in ("license", "license_name", "license_link")]
    commit = info.sha if info.sha and COMMIT.fullmatch(info.sha) else None
    told = [text if isinstance(text, str) else None for text in said]
    return Seen(commit, told[0], told[1], told[2], private=bool(info.private))


def require_readable(hub: Hub, kind: str, name: str, revision: str | None) -> None:
    """Raise where the repo or the revision is not there, or its files may not be had."""
    info = look_up(hub, kind, name, revision)
    if info.gated:  # anyone may read of a gated repo; whether its files may be had is another question
        action, what = _words(kind, name)
        hub.ask(action, lambda: hub.api.auth_check(name, repo_type=kind), what)


def history(hub: Hub, repo: str) -> list[tuple[str, datetime]]:
    """The commits of a model repo's main branch with their times, the newest first."""
    what = f"the model '{repo}'"
    found = hub.ask(f"looking at the commits of {repo}", lambda: list(hub.api.list_repo_commits(repo)), what)
    return [(commit.commit_id, commit.created_at) for commit in found]


def config(hub: Hub, repo: str, revision: str | None) -> dict[str, Any]:
    """The `config.json` of a model."""
    # Not through the client's cache: a config of yesterday may be another one.
    with TemporaryDirectory() as folder, told(f"looking up the model {repo}", what=f"the model '{repo}'"):
        path = hub.api.hf_hub_download(repo, "config.json", revision=revision, local_dir=folder)
        text = Path(path).read_bytes()
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the config.json of {repo} is not JSON.", "Choose another model.") from error
    return found if isinstance(found, dict) else {}


def cached(hub: Hub, repo: str, revision: str | None, names: Collection[str]) -> dict[str, Path]:
    """Those of the named files that a model has, in the client's cache, where the next look finds them."""
    what = f"the model '{repo}'"
    info = look_up(hub, "model", repo, revision)
    there = {item.rfilename for item in info.siblings or ()}

    def fetch(name: str) -> Path:
        return Path(hub.api.hf_hub_download(repo, name, revision=info.sha or revision))

    return {name: hub.ask(f"reading {name} of {repo}", partial(fetch, name), what) for name in names if name in there}


def weights(hub: Hub, repo: str, revision: str | None, four_bits: bool) -> Weights | None:
    """The size of a model's weights, from one request; none where the Hub does not say, or can't be asked.

    Raises `RequestError` for a repo that holds llama.cpp's files only.
    """
    try:
        with told(f"looking up the weights of {repo}", what=f"the model '{repo}'"):
            info = answers.repo(hub.api.model_info(repo, revision=revision, timeout=TIMEOUT_S))
    except LauncherError:
        return None
    names = [item.rfilename for item in info.siblings or ()]
    if any(name.endswith(".gguf") for name in names) and not any(
        name.endswith((".safetensors", ".bin", ".pt", ".pth")) for name in names
    ):
        base = _base(info.base_models, info.card_data)
        raise RequestError(
            f"{repo} holds GGUF files only, which can be run but not trained.",
            f"Use {base or 'the model they were made from'}.",
        )
    found = info.safetensors
    if found is None or not all(isinstance(number, int) for number in found.parameters.values()):
        return None
    base = _base(info.base_models, info.card_data)
    return tensors.count(found.parameters, four_bits=four_bits, base=base)


def file(hub: Hub, repo: str, name: str, commit: str | None, largest: int) -> bytes:
    """A file of a model that `launch` made; `RequestError` where there is none of that name, or more bytes than that.

    Not the client's own error for a missing file: the name says here what kind of repo it is not.
    """
    what = f"the model '{repo}'"
    found = hub.ask(f"looking for {name} in {repo}", lambda: hub.api.get_paths_info(repo, name, revision=commit), what)
    size = next((getattr(entry, "size", None) for entry in found if entry.path == name), None)
    if not isinstance(size, int):
        raise RequestError(
            f"{what} has no {name}: it was not trained with launch, or with a version that kept none.",
            f"Look at https://huggingface.co/{repo}/tree/{commit or 'main'}.",
        )
    if size > largest:
        raise RequestError(f"{name} of {what} has {size} bytes, which is too many.", "It is not of launch.")
    with TemporaryDirectory() as folder:
        fetch = partial(_fetch, hub, repo, name, commit, folder)
        return hub.ask(f"reading {name} of {repo}", fetch, what).read_bytes()


def snapshot(hub: Hub, repo: str, revision: str | None, names: Collection[str], largest: int) -> Snapshot:
    """Those of the named files that are there and no larger than so many bytes, all of the commit that is there now."""
    action, what = f"looking up the adapter {repo}", f"the model '{repo}'"
    ask = partial(hub.api.model_info, repo, revision=revision, files_metadata=True, timeout=TIMEOUT_S)
    info: ModelInfo = hub.ask(action, lambda: answers.repo(ask()), what)
    sizes = {item.rfilename: item.size or 0 for item in info.siblings or ()}
    wanted = [name for name in names if sizes.get(name, largest + 1) <= largest]
    with TemporaryDirectory() as folder:
        paths = [hub.ask(action, partial(_fetch, hub, info.id, name, info.sha, folder), what) for name in wanted]
        files = {name: path.read_bytes() for name, path in zip(wanted, paths, strict=True)}
    return Snapshot(info.id, info.sha, bool(info.private), frozenset(sizes), files)


def fetch_all_but_weights(hub: Hub, repo: str, commit: str, folder: Path) -> None:
    """Put the small files of a model into the folder: its config, its tokenizer, its chat template; no code."""
    action, what = f"reading the tokenizer of {repo}", f"the model '{repo}'"
    ask = partial(hub.api.snapshot_download, repo, revision=commit, local_dir=folder, ignore_patterns=[*_WEIGHTS])
    hub.ask(action, partial(ask, allow_patterns=[*_SMALL]), what)
    rmtree(folder / ".cache", ignore_errors=True)  # what the client notes of a download that went on


def _words(kind: str, name: str) -> tuple[str, str]:
    return f"looking up the {kind} {name}", f"the {kind} '{name}'"


def _fetch(hub: Hub, repo: str, name: str, commit: str | None, folder: str) -> Path:
    # Not through the client's cache: nothing is left behind.
    return Path(hub.api.hf_hub_download(repo, name, revision=commit, local_dir=folder))


def _base(models: object, card: object) -> str | None:
    """The repo that a card names as what the model was made from; the Hub gives it in two ways."""
    if isinstance(models, dict):
        models = [item.get("id") for item in models.get("models") or () if isinstance(item, dict)]
    named = models or getattr(card, "base_model", None)
    first = named[0] if isinstance(named, list) and named else named
    return first if isinstance(first, str) else None
