"""The record: run.json and the script itself beside the model, all that it takes to run this again."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from parts.places import is_commit, is_hub_id, sha256
from parts.say import finite, note, reason

# The card is written after the record, and made of it.
RECORD, PLAN, CARD, PICTURE = "run.json", "plan.json", "README.md", "loss.png"
# A path of this machine, and rows of a dataset that may be private.
NOT_RECORDED = ("output_dir", "samples")


def write_record(folder: Path, args: Any, result: dict[str, Any], model: Any, saved: list[str]) -> None:
    """Write run.json and the script itself into the folder; of environment variables the names only. Raises nothing."""
    # One that was there is of other weights.
    with spared(folder / RECORD):
        script = Path(__file__).resolve()
        (folder / script.name).write_bytes(script.read_bytes())
        plan, dataset, named = read_plan(script), Path(args.dataset).expanduser(), args.dataset
        variables = sorted(plan["env"]) if plan else []
        if plan:
            plan["env"] = {}
            # A file that was sent along lies elsewhere here, under its own name.
            if dataset.exists() and Path(plan["dataset"]).name.replace(" ", "_") == dataset.name.replace(" ", "_"):
                named = plan["dataset"]
        commit = getattr(model.config, "_commit_hash", None) or commit_of(args.model, args.revision, "model")
        words = {args.dataset: named, f"--dataset={args.dataset}": f"--dataset={named}"}
        record = {
            "version": 1,
            "launcher": (plan or {}).get("launcher"),
            "plan": plan,
            "script": {"name": script.name, "sha256": sha256(script)},
            "args": [words.get(word, word) for word in sys.argv[1:]],
            "inputs": {named: sha256(dataset)} if dataset.is_file() else {},
            "env": variables,
            "flavor": plan["flavor"] if plan else os.environ.get("ACCELERATOR"),
            "revisions": {"model": commit, "dataset": commit_of(args.dataset, args.dataset_revision, "dataset")},
            "packages": {found.name: found.version for found in distributions()},
            "python": platform.python_version(),
            "platform": platform.platform(),
            "device": result["device"],
            "files": {path: sha256(folder / path) for path in (*saved, script.name) if path != CARD},
            "result": finite({name: value for name, value in result.items() if name not in NOT_RECORDED}),
        }
        draft = folder / f".{RECORD}"
        draft.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        draft.replace(folder / RECORD)


@contextmanager
def spared(path: Path) -> Iterator[None]:
    """Whatever fails inside, where the file is written, costs that file only, and an earlier one in its place."""
    try:
        yield
    except Exception as error:
        path.unlink(missing_ok=True)
        note(f"{path.name} could not be written, the run goes on without it ({reason(error)})")


def read_plan(script: Path) -> dict[str, Any] | None:
    """The launcher's plan beside the script, or none where it was run by hand."""
    try:
        text = script.with_name(PLAN).read_text(encoding="utf-8")
        plan = json.loads(text, parse_constant=lambda _: None)
        return plan if isinstance(plan, dict) and {"repo", "dataset", "flavor", "env", "cost"} <= plan.keys() else None
    except (OSError, ValueError):
        return None


def commit_of(name: str, revision: str | None, kind: str) -> str | None:
    """The commit of a Hub repo that was loaded; none for a local one, and where the Hub's client kept none.

    Whoever loads by the name of a branch or tag asks for a file first, and the client notes what commit that was.
    """
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    if not is_hub_id(name):
        return None
    if is_commit(revision):
        return revision
    cache = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type=kind))
    try:
        commit = (cache / "refs" / (revision or "main")).read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return commit if is_commit(commit) else None
