"""The commit that a branch or a tag of a repo is at now, so that a run reads tomorrow what was planned today."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from launcher.hub.client import TIMEOUT_S
from launcher.hub.retry import Pace, persist
from launcher.plan.pins import Seen
from launcher.spec import COMMIT

if TYPE_CHECKING:
    from huggingface_hub import DatasetInfo, HfApi, ModelInfo


def look_up(api: HfApi, kind: str, name: str, revision: str | None, pace: Pace) -> ModelInfo | DatasetInfo:
    """What the Hub says of a model or a dataset at a revision (none: its main branch); raises where there is none."""
    ask = api.model_info if kind == "model" else api.dataset_info
    action, what = f"looking up the {kind} {name}", f"the {kind} '{name}'"
    return persist(action, lambda: ask(name, revision=revision, timeout=TIMEOUT_S), pace, what=what)


def see(api: HfApi, kind: str, name: str, revision: str | None, pace: Pace) -> Seen:
    """The commit, none where the answer holds none, and the licence of the repo's card, which is not checked."""
    info = look_up(api, kind, name, revision, pace)
    card = info.card_data
    said = [getattr(card, key, None) for key in ("license", "license_name", "license_link")]
    commit = info.sha if info.sha and COMMIT.fullmatch(info.sha) else None
    return Seen(commit, *(text if isinstance(text, str) else None for text in said))


def history(api: HfApi, repo: str, pace: Pace) -> list[tuple[str, datetime]]:
    """The commits of a model repo's main branch with their times, the newest first."""
    what = f"the model '{repo}'"
    found = persist(f"looking at the commits of {repo}", lambda: list(api.list_repo_commits(repo)), pace, what=what)
    return [(commit.commit_id, commit.created_at) for commit in found]
