"""A small file of a model repo at one commit, such as the record of the run that made it."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from launcher.errors import RequestError
from launcher.hub.retry import Pace, persist

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def read(api: HfApi, repo: str, name: str, commit: str | None, largest: int, pace: Pace) -> bytes:
    """The file's bytes; `RequestError` where there is none of that name, or one that is too large to be meant."""
    what = f"the model '{repo}'"
    found = persist(
        f"looking for {name} in {repo}", lambda: api.get_paths_info(repo, name, revision=commit), pace, what=what
    )
    size = next((getattr(entry, "size", None) for entry in found if entry.path == name), None)
    if size is None:
        raise RequestError(
            f"{what} has no {name}: it was not trained with launch, or with a version that kept none.",
            f"Look at https://huggingface.co/{repo}/tree/{commit or 'main'}.",
        )
    if size > largest:
        raise RequestError(f"{name} of {what} has {size} bytes, which is too many.", "It is not of launch.")
    with TemporaryDirectory() as folder:

        def download() -> str:
            return str(api.hf_hub_download(repo, name, revision=commit, local_dir=folder))

        return Path(persist(f"reading {name} of {repo}", download, pace, what=what)).read_bytes()
