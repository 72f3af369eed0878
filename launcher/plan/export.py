"""From an adapter that was trained before to the plan of its export: where, how long, for how much, and why."""

from __future__ import annotations

import re
import shlex
from datetime import date
from typing import Any

from launcher import __version__, spec
from launcher.catalog import Catalog, FetchConfig, FetchWeights, Flavor, Modality, Model
from launcher.catalog.machine import LOCAL
from launcher.errors import RequestError
from launcher.estimate import copies, duration
from launcher.estimate.copies import Copies
from launcher.estimate.values import Vram
from launcher.plan import budget, choices, export_place, images
from launcher.plan.adapter import Adapter
from launcher.plan.export_place import Export, Place
from launcher.plan.record import Plan
from launcher.spec import ExportSpec


def make_plan(
    asked: ExportSpec,
    adapter: Adapter,
    catalog: Catalog,
    *,
    today: date,
    user: str | None = None,
    here: Flavor | None = None,
    of: Plan | None = None,
    fetch_config: FetchConfig | None = None,
    fetch_weights: FetchWeights | None = None,
    image: str | None = None,
) -> Plan:
    """Decide where the copies are made and where they go; `of` is the plan of the run that trained the adapter.

    Raises `RequestError` for what a Job can't see or the model can't be, `RefusedError` where it does not fit.
    """
    why = {"adapter": "asked for" if asked.source == adapter.place else f"of {asked.source}"}
    why["model"] = "what the adapter was trained on"
    _require_seen(asked, adapter)
    model = _base(asked, adapter, catalog, fetch_config, fetch_weights)
    choices.require_convertible(model, asked.gguf, catalog)
    modality: Modality = _modality(adapter, of, model)
    output, merged = _repos(asked, adapter, of, user, why)
    spec.require_apart(merged, output, adapter.place)
    made = Copies(asked.merge, tuple(dict.fromkeys(asked.gguf)), pushed=bool(output or merged), volume=not asked.local)
    container = images.choose(asked, image, catalog.stack, why)
    export = Export(model, modality, made, adapter.rank, warm_image=container.warm, local=asked.local)
    place = export_place.choose(export, catalog, _given(asked, here, catalog), why)
    timeout_s = budget.seconds(asked, place.duration.total_s, why)
    why |= copies.words(model, made, place.load_in)
    fits = export_place.survey(export, catalog.flavors.values())
    flavor = place.flavor
    run_name = f"{re.sub(r'[^A-Za-z0-9._-]+', '-', adapter.name)[:70].strip('-.') or 'adapter'}-export-{today:%Y%m%d}"
    return Plan(
        launcher=__version__, task="export", adapter=adapter.place, adapter_revision=adapter.revision,
        model=adapter.base, repo=model.repo, revision=adapter.base_revision, modality=modality, engine="unsloth",
        load_in=place.load_in, chat_template=None,
        generation=model.generation, generation_source=model.generation_source, licence=model.licence,
        merge=made.merge, gguf=made.gguf, output_repo=output, merged_repo=merged, private=_private(asked, adapter, why),
        lora_r=adapter.rank, lora_alpha=adapter.alpha, lora_dropout=0.0, lora_targets=model.lora_targets,
        run_name=run_name, flavor=flavor.name, num_gpus=flavor.num_gpus, image=container.name,
        namespace=of.namespace if of else None, labels={}, env={}, secrets=_secrets(asked, made, why),
        timeout_s=timeout_s, attempts=1,
        vram=_vram(place), host=place.host, duration=place.duration,
        cost=duration.cost(flavor, place.duration.total_s, timeout_s),
        reasons=why, warnings=_warnings(asked, adapter, model, place),
        offers=tuple(other.offer() for other in fits),
        **_NO_TRAINING,
    )  # fmt: skip


# What a plan says of a training, where there is none.
_NO_TRAINING: dict[str, Any] = {
    "dataset": "", "dataset_config": None, "dataset_split": "train", "dataset_revision": None, "eval_split": None,
    "eval_rows": 0, "streaming": False, "train_on": "assistant", "max_steps": None, "num_train_epochs": None,
    "max_length": 0, "batch_size": 1, "gradient_accumulation": 1, "packing": False, "learning_rate": 0.0,
    "lr_scheduler_type": "constant", "warmup_ratio": 0.0, "weight_decay": 0.0, "optim": "adamw_torch", "seed": 0,
    "logging_steps": 1, "eval_steps": None, "sample_rows": 0, "trackio_project": "", "trackio_space": None,
}  # fmt: skip


def command(plan: Plan) -> str:
    """The command line that starts such an export again."""
    words = ["launch export", shlex.quote(str(plan.adapter))]
    words += [f"--merge {plan.merge}"] if plan.merge else []
    words += [f"--gguf {kind}" for kind in plan.gguf]
    words += [f"--merged-repo {plan.merged_repo}"] if plan.merged_repo else []
    words += [f"--output-repo {plan.output_repo}"] if plan.output_repo else []
    words += ["--local"] if plan.flavor == LOCAL else []
    return " ".join(words)


def _require_seen(asked: ExportSpec, adapter: Adapter) -> None:
    """Raise for a folder of this machine that a Job would need."""
    if asked.local:
        return
    if adapter.local:
        raise RequestError(
            f"the adapter in {adapter.place} is a folder on this machine, which a Job can't see.",
            f"Push it to the Hub (`hf upload {adapter.name} {adapter.place} .`) and name the repo, or add --local.",
        )
    if adapter.local_base:
        raise RequestError(
            f"{adapter.place} was trained on {adapter.base}, a folder of the machine it was trained on, which a Job "
            "can't see.",
            "Use --local there, or push that model to the Hub and name it as base_model_name_or_path in the "
            "adapter_config.json.",
        )


def _base(
    asked: ExportSpec, adapter: Adapter, catalog: Catalog, fetch_config: FetchConfig | None,
    fetch_weights: FetchWeights | None,
) -> Model:  # fmt: skip
    """The model that the adapter was trained on."""
    try:
        return catalog.model(adapter.base, adapter.base_revision, fetch_config, fetch_weights)
    except RequestError as error:
        message = error.message.removeprefix(f"--model {adapter.base}: ")
        raise RequestError(f"{asked.source} was trained on {adapter.base}: {message}", error.hint) from error


def _modality(adapter: Adapter, of: Plan | None, model: Model) -> Modality:
    """What it was trained as, where that is known and can be."""
    known = of.modality if of else adapter.modality
    return next((kind for kind in model.modalities if kind == known), model.modalities[0])


def _given(asked: ExportSpec, here: Flavor | None, catalog: Catalog) -> Flavor | None:
    if asked.local:
        assert here is not None, "a local plan needs to know this machine"
        return here
    return None if asked.flavor == "auto" else catalog.flavor(asked.flavor)


def _repos(
    asked: ExportSpec, adapter: Adapter, of: Plan | None, user: str | None, why: dict[str, str]
) -> tuple[str | None, str | None]:
    """Where the copies are pushed: the repo of all of them, and another one for the merged model if there is one."""

    def owned(name: str) -> str:
        owner = (of.namespace if of else None) or user
        return name if "/" in name or owner is None else f"{owner}/{name}"

    merged = owned(asked.merged_repo) if asked.merged_repo else None
    if merged:
        why["merged_repo"] = "asked for"
    if asked.output_repo:
        why["output_repo"] = "asked for"
        return owned(asked.output_repo), merged
    if asked.local:
        why["output_repo"] = "nothing is pushed but to --merged-repo" if merged else "nothing is pushed"
        return None, merged
    if (of and of.output_repo == adapter.place) or user in (None, adapter.place.split("/")[0]):
        why["output_repo"] = "where the adapter is"
        return adapter.place, merged
    why["output_repo"] = f"the adapter's repo is not {user}'s"
    return f"{user}/{adapter.name[:80]}-export", merged


def _private(asked: ExportSpec, adapter: Adapter, why: dict[str, str]) -> bool:
    if asked.private is None and adapter.private:
        why["private"] = "as the adapter's repo is"
    return adapter.private if asked.private is None else asked.private


def _secrets(asked: ExportSpec, made: Copies, why: dict[str, str]) -> tuple[str, ...]:
    if asked.local and not made.pushed:
        return ()
    why["secrets"] = "HF_TOKEN reads the adapter and its model and pushes the copies"
    return ("HF_TOKEN",)


def _vram(place: Place) -> Vram:
    return Vram(
        weights_gib=round(place.parts["weights"], 2),
        peak_gib=round(place.peak_gib, 2),
        available_gib=round(place.room_gib, 2),
        fits=place.fits,
        reserve_gib=round(place.reserve_gib, 2),
        parts={name: round(gib, 2) for name, gib in place.parts.items()},
    )


def _warnings(asked: ExportSpec, adapter: Adapter, model: Model, place: Place) -> tuple[str, ...]:
    found = list(model.notes)
    if place.flavor.num_gpus > 1:
        found.append(f"an export uses one GPU: {place.flavor.num_gpus - 1} of {place.flavor.name}'s would idle")
    if asked.timeout and not asked.local and spec.seconds(asked.timeout) < place.duration.total_s:
        minutes = round(place.duration.total_s / 60)
        found.append(f"the export is expected to take {minutes} minutes: it would be killed after {asked.timeout}")
    return tuple(found)
