"""The twin of a model, for a rehearsal: its own tokenizer and chat template, and few weights, which are random."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from launcher import home
from launcher.errors import RequestError
from launcher.hub import repos
from launcher.hub.client import Hub
from launcher.plan.record import Plan
from launcher.spec import COMMIT

SCRIPT = Path(__file__).parent.parent / "data" / "twin.py"
"""What makes the weights, and all else that a rehearsal needs the training stack for besides the script."""

_SMALL = (".json", ".jinja", ".model", ".txt", ".tiktoken")


def folder_of(plan: Plan, hub: Hub, make: Callable[[Path], None]) -> Path:
    """The folder of the twin of a plan's model, kept in the cache; `make` gives weights to one that is new.

    A vision model's has its real config and no weights, since nothing is trained on it. Raises where the model's files
    can't be had.
    """
    repo, revision = plan.facts.repo, plan.decisions.revision.value
    source, sees = Path(repo), plan.decisions.modality.value == "vision"
    if source.is_absolute():
        key = repr([(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in _small(source)])
    else:
        if not COMMIT.fullmatch(revision or ""):
            revision = repos.see(hub, "model", repo, revision).commit
        if not revision:
            raise RequestError(f"the Hub names no commit of {repo}.", "Give one with --revision.")
        key = revision
    made_by = hashlib.sha256(SCRIPT.read_bytes()).hexdigest()
    name = hashlib.sha256(f"{repo} {key} {sees} {made_by}".encode()).hexdigest()[:12]
    folder = home.cache() / "twins" / name / source.name
    if folder.is_dir():
        return folder
    folder.parent.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".making-", dir=folder.parent.parent) as staging:
        fresh = Path(staging) / "new" / source.name
        fresh.mkdir(parents=True)
        if source.is_absolute():
            for path in _small(source):
                shutil.copy(path, fresh)
        else:
            assert revision is not None
            repos.fetch_all_but_weights(hub, repo, revision, fresh)
        if not sees:
            make(fresh)
        if not folder.is_dir():  # another rehearsal may have been faster
            fresh.parent.rename(folder.parent)
    return folder


def _small(folder: Path) -> list[Path]:
    """What lies in a model's folder besides its weights and their index."""
    found = [path for path in folder.iterdir() if path.suffix in _SMALL and not path.name.endswith(".index.json")]
    return sorted(path for path in found if path.is_file() and not path.name.startswith("adapter_"))
