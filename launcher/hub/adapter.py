"""An adapter's own description of itself, read from its repo on the Hub."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from launcher.errors import RequestError
from launcher.hub.client import TIMEOUT_S
from launcher.hub.retry import Pace, persist
from launcher.plan import adapter
from launcher.plan.adapter import CONFIG, RECORD, Adapter

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelInfo

# Both files are a few kilobytes; a larger one is not what its name says.
_LARGEST = 16 * 2**20


def read(api: HfApi, repo: str, revision: str | None, pace: Pace) -> Adapter:
    """The adapter in a repo, at the commit that the revision is now.

    Raises `RequestError` for a repo that holds none, and what the Hub's refusals become.
    """
    what, action = f"the model '{repo}'", f"looking up the adapter {repo}"

    def ask() -> ModelInfo:
        return api.model_info(repo, revision=revision, files_metadata=True, timeout=TIMEOUT_S)

    info = persist(action, ask, pace, what=what)
    sizes = {item.rfilename: item.size or 0 for item in info.siblings or ()}
    if CONFIG not in sizes:
        holds = "a whole model" if "config.json" in sizes else "no model"
        raise RequestError(
            f"{repo} holds no {CONFIG}: it is {holds}, not a LoRA adapter.",
            "Give the repo that a run pushed its adapter to, or the run's id (`launch ps --all`).",
        )
    wanted = [name for name in (CONFIG, RECORD) if sizes.get(name, _LARGEST + 1) <= _LARGEST]
    with TemporaryDirectory() as folder:
        paths = [persist(action, partial(_fetch, api, info, name, folder), pace, what=what) for name in wanted]
        found = {path.name: path.read_bytes() for path in paths}
    if CONFIG not in found:
        raise RequestError(f"the {CONFIG} of {repo} is too large to be one.", "Save the adapter again.")
    record = adapter.as_object(found[RECORD], "") if RECORD in found else None
    config = adapter.as_object(found[CONFIG], f"the {CONFIG} of {repo}")
    return adapter.read(info.id, config, record, revision=info.sha, private=bool(info.private))


def _fetch(api: HfApi, info: ModelInfo, name: str, folder: str) -> Path:
    # Not through the client's cache: nothing is left behind.
    return Path(api.hf_hub_download(info.id, name, revision=info.sha, local_dir=folder))
