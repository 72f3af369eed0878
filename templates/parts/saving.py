"""The model on the disk: there is room for it, it is saved whole, and run.json says how to make it again."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from parts.places import is_commit, is_hub_id, require_disk, sha256
from parts.say import UserError, finite, note, reason

# transformers knows no presence penalty.
ONLY_OLLAMA = {"presence_penalty"}
SAMPLING = ("temperature", "top_k", "top_p", "min_p")
# The card is written after the record, and made of it.
RECORD, PLAN, CARD, PICTURE = "run.json", "plan.json", "README.md", "loss.png"
# A path of this machine, and rows of a dataset that may be private.
NOT_RECORDED = ("output_dir", "samples")


def check_disk(folder: Path, model: Any, optim: str) -> None:
    """Refuse where the disk can't take what a run writes: the adapter, two checkpoints and the next one.

    A checkpoint is the adapter and the optimizer's two moments, of 1 byte a parameter in 8 bits, else of 4.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    adapter = sum(parameter.numel() * parameter.element_size() for parameter in trained)
    checkpoint = adapter + sum(parameter.numel() for parameter in trained) * (2 if "8bit" in optim else 8)
    told = [f"an adapter of {adapter / 1e9:.2f} GB, three checkpoints of {checkpoint / 1e9:.2f} GB"]
    # The tokenizer and the trainer's records take some too.
    require_disk(folder, adapter + 3 * checkpoint + 2**26, told, "Free some, or give --output-dir on another disk.")


def recommended(args: Any, planned: dict[str, Any]) -> dict[str, float]:
    """How the makers of the model say that it is best sampled; empty for another model than the chosen one."""
    return dict(planned["generation"]) if args.model == type(args).model else {}


def generation_of(known: Any, settings: dict[str, float], stop: int) -> Any:
    """The model's generation settings with the recommended ones, and with the token that ends an answer."""
    from transformers import GenerationConfig

    found: dict[str, Any] = {name: value for name, value in settings.items() if name not in ONLY_OLLAMA}
    if found:
        # A temperature of 0 is how others say that nothing is drawn.
        greedy = found.get("temperature") == 0
        found |= {"do_sample": not greedy} | (dict.fromkeys(SAMPLING) if greedy else {})
    known = known or GenerationConfig()
    ends = known.eos_token_id if isinstance(known.eos_token_id, list) else [known.eos_token_id]
    found["eos_token_id"] = [stop, *(token for token in ends if token not in (stop, None))]
    try:
        known.update(**found)
        known.validate(strict=True)
    except ValueError:
        # What the model brought contradicts itself, and would not be saved.
        known = GenerationConfig(bos_token_id=known.bos_token_id, pad_token_id=known.pad_token_id, **found)
    return known


def save(folder: Path, *parts: Any) -> list[str]:
    """Save the model and its tokenizer in the folder, whole or not at all: until they are written, all there stays.

    Returns the names of the files. Raises `UserError` where the disk is full or fails.
    """
    # Inside, where nothing has to be copied once it is whole.
    fresh = folder / ".saving"
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        for part in parts:
            part.save_pretrained(fresh)
        saved = [path.relative_to(fresh).as_posix() for path in sorted(fresh.rglob("*")) if path.is_file()]
        for path in fresh.iterdir():
            if (folder / path.name).is_dir():
                shutil.rmtree(folder / path.name)
            shutil.move(path, folder / path.name)
        fresh.rmdir()
        return saved
    # Some writers have errors of their own for a full disk.
    except Exception as error:
        shutil.rmtree(fresh, ignore_errors=True)
        hint = f"What was in {folder} is as it was. Make room and run this again: it goes on from the last checkpoint."
        raise UserError(f"the model could not be saved in {folder} ({reason(error)}).", hint) from error


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
