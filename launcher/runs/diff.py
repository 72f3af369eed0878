"""In what two runs differ: their decisions with the reasons, what they really read and ran with, and how they ended."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from launcher.errors import LauncherError, RequestError
from launcher.jobs import folder
from launcher.jobs.events import summarize
from launcher.jobs.folder import RECORD, REQUEST, Run
from launcher.plan.record import READ, AnyPlan
from launcher.runs import arguments, record
from launcher.runs.find import File, fetch, find
from launcher.runs.record import Kept

# The decisions of a plan, as its own sections have them.
SECTIONS = {
    "what is trained": ("task", "adapter", "adapter_revision", "model", "repo", "revision", "modality", "engine",
                        "load_in", "chat_template", "trust_remote_code", "generation", "generation_source", "licence",
                        "licence_name", "licence_link"),
    "on what": ("dataset", "dataset_config", "dataset_split", "dataset_revision", "eval_split", "eval_rows",
                "streaming", "train_on", "image_size"),
    "how": ("max_steps", "num_train_epochs", "max_length", "effective_batch_size", "batch_size",
            "gradient_accumulation", "packing", "learning_rate", "lr_scheduler_type", "warmup_ratio", "weight_decay",
            "optim", "seed", "logging_steps", "eval_steps", "checkpoint_minutes", "lora_r", "lora_alpha",
            "lora_dropout", "lora_targets", "finetune_vision_layers", "finetune_language_layers",
            "finetune_attention_modules", "finetune_mlp_modules"),
    "to where": ("output_repo", "private", "merge", "merged_repo", "gguf", "run_name", "sample_rows",
                 "trackio_project", "trackio_space"),
    "on which machine": ("flavor", "num_gpus", "image", "namespace", "labels", "env", "secrets", "attempts"),
}  # fmt: skip
# What follows from the rest, or is no decision.
FOLLOWS = ("launcher", "timeout_s", "amount", "vram", "host", "duration", "cost", "warnings")
# Compared as what they are, or as long as the table of flavors.
LEFT_OUT = ("reasons", "offers", "asked", "replaced")
_REASONS = {"timeout_s": "timeout", "num_train_epochs": "max_steps", "gradient_accumulation": "effective_batch_size"}
RESULTS = ("status", "steps", "train_loss", "eval_loss_before", "eval_loss", "tokens_seen", "tokens_trained", "train_s",
           "startup_s", "step_s", "tokens_per_second", "peak_gib", "device")  # fmt: skip

Pair = tuple[Any, Any]


@dataclass(frozen=True, slots=True)
class Side:
    """What is known of one run; packages are empty and the script's hash is none where nobody recorded them."""

    name: str
    plan: AnyPlan
    revisions: Mapping[str, str | None] = field(default_factory=dict)
    packages: Mapping[str, str | None] = field(default_factory=dict)
    script: str | None = None
    result: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Difference:
    """Pairs of what differs, by name; `result` holds all that either of the two reported."""

    names: tuple[str, str]
    decisions: dict[str, Pair]
    reasons: dict[str, Pair]
    revisions: dict[str, Pair]
    packages: dict[str, Pair]
    unknown: tuple[str, ...]
    script: Pair
    result: dict[str, Pair]

    @property
    def same(self) -> bool:
        """Whether no decision differs, and nothing that was read or ran with."""
        return not (self.decisions or self.revisions or self.packages)

    def as_dict(self) -> dict[str, Any]:
        """What `launch diff --json` prints."""
        return {
            "decisions": _lists(self.decisions),
            "reasons": _lists(self.reasons),
            "revisions": _lists(self.revisions),
            "packages": _lists(self.packages),
            "packages_unknown": list(self.unknown),
            "script": list(self.script),
            "result": _lists(self.result),
        }


def compare(one: Side, other: Side, everything: bool = False) -> Difference:
    """In what they differ; what follows from the other decisions only where `everything` is asked for."""
    fields = [name for names in SECTIONS.values() for name in names]
    left, right = (side.plan.model_dump(mode="json") for side in (one, other))
    decisions = _different(left, right, fields)
    if everything:
        follows = (_flat(left), _flat(right))
        decisions |= _different(*follows, {**follows[0], **follows[1]})
    why = {name: _REASONS.get(name, name) for name in decisions}
    reasons = {
        name: (one.plan.reasons.get(key), other.plan.reasons.get(key))
        for name, key in why.items()
        if one.plan.reasons.get(key) != other.plan.reasons.get(key)
    }
    known = bool(one.packages and other.packages)
    return Difference(
        names=(one.name, other.name),
        decisions=decisions,
        reasons=reasons,
        revisions=_different(one.revisions, other.revisions, ("model", "dataset")),
        packages=_different(one.packages, other.packages, sorted({*one.packages, *other.packages})) if known else {},
        unknown=tuple(side.name for side in (one, other) if not side.packages),
        script=(one.script, other.script),
        result={
            name: (one.result.get(name), other.result.get(name))
            for name in RESULTS
            if one.result.get(name) is not None or other.result.get(name) is not None
        },
    )


def load(name: str) -> Side:
    """One side: a run's id, a `run.json`, a `plan.json` or what `launch plan --json` printed, or USER/REPO."""
    named = find(name)
    if isinstance(named, File) and (plan := _plan_of(named.path)):
        return Side(name, plan, revisions=_planned(plan))
    found = fetch(named)
    if isinstance(found, Run):
        return _of_run(found)
    if isinstance(found, Kept):
        return _of_record(name, found)
    return Side(name, found.plan, revisions=_planned(found.plan), script=_hash(found.script.encode()))


def _plan_of(path: Path) -> AnyPlan | None:
    """The plan in a file that holds one; none for any other file."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if isinstance(content, dict) and "version" not in content:
        content = content["plan"] if isinstance(content.get("plan"), dict) else content
        if "reasons" in content:
            try:
                return READ.validate_python(content)
            except ValidationError as error:
                raise RequestError(
                    f"{path} is not a plan that this version of launch can read.", "Make it anew with `launch plan`."
                ) from error
    return None


def _of_run(run: Run) -> Side:
    plan, result = run.plan(), _result(run)
    script = run.folder / str(run.read(REQUEST).get("script_name", ""))
    beside = Path(str(result.get("output_dir", ""))) / RECORD
    packages: Mapping[str, str | None] = {}
    revisions = _planned(plan)
    if folder.is_local(run.id) and beside.is_file():
        try:
            kept = record.read(beside).record
            packages, revisions = kept.packages, revisions | _known(kept.revisions.model_dump())
        except LauncherError:
            pass  # the folder may hold a later run by now, or half of one
    return Side(run.id, plan, revisions, packages, _hash(script.read_bytes()) if script.is_file() else None, result)


def _of_record(name: str, kept: Kept) -> Side:
    known, plan = kept.record, record.plan_of(kept)
    args, dataset = known.args, plan.decisions.dataset.value
    named = arguments.read(plan, args).get("dataset")
    if named and Path(str(named)).name == Path(dataset).name:
        args = arguments.changed(plan, args, {"dataset": None})  # the same file, where the Job had it
    plan = record.with_args(plan, args)
    revisions = _planned(plan) | _known(known.revisions.model_dump())
    return Side(name, plan, revisions, known.packages, known.script.sha256, known.result)


def _result(run: Run) -> dict[str, Any]:
    """What the script reported at its end, by the transcript that is kept here."""
    with suppress(OSError), run.log.open(encoding="utf-8", errors="replace") as lines:
        return summarize((line.rstrip("\n") for line in lines), run.mark).result or {}
    return {}


def _planned(plan: AnyPlan) -> dict[str, str | None]:
    data = plan.decisions.dataset_revision.value if plan.task == "sft" else None
    return {"model": plan.decisions.revision.value, "dataset": data}


def _known(values: Mapping[str, str | None]) -> dict[str, str | None]:
    return {name: value for name, value in values.items() if value}


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _different(one: Mapping[str, Any], other: Mapping[str, Any], names: Iterable[str]) -> dict[str, Pair]:
    return {name: (one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)}


def _flat(plan: Mapping[str, Any]) -> dict[str, Any]:
    """What follows from the decisions, its numbers one by one."""
    found: dict[str, Any] = {}
    for name in FOLLOWS:
        found |= _leaves(name, plan[name])
    return found


def _leaves(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    found: dict[str, Any] = {}
    for key, item in value.items():
        found |= _leaves(f"{name}.{key}", item)
    return found


def _lists(pairs: Mapping[str, Pair]) -> dict[str, list[Any]]:
    return {name: list(pair) for name, pair in pairs.items()}
