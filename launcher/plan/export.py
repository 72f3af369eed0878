"""From an adapter that was trained before to the plan of its export: where, how long, for how much, and why."""

from __future__ import annotations

import re
from datetime import date

from launcher import __version__, spec
from launcher.catalog import Catalog, FetchConfig, FetchWeights, Flavor, Modality, Model
from launcher.errors import RefusedError, RequestError
from launcher.estimate import copies, duration
from launcher.estimate.copies import Copies
from launcher.estimate.values import Vram
from launcher.plan import budget, choices, export_place, make, pins
from launcher.plan.adapter import Adapter
from launcher.plan.export_place import Export, Place
from launcher.plan.record import ASKED, Decision, ExportDecisions, ExportPlan, Plan
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
) -> ExportPlan:
    """Decide where the copies are made and where they go; `of` is the plan of the run that trained the adapter.

    Raises `RequestError` for what a Job can't see or the model can't be, `RefusedError` where it does not fit.
    """
    _require_seen(asked, adapter, of)
    model = _base(asked, adapter, catalog, fetch_config, fetch_weights)
    choices.require_convertible(model, asked.gguf, catalog)
    modality = _modality(adapter, of, model)
    payer = of.decisions.namespace.value if of else None
    merged = choices.owned(asked.merged_repo, payer or user) if asked.merged_repo else None
    output = _output_repo(asked, adapter, of, user)
    spec.require_apart(merged, output.value, adapter.place)
    pushed = bool(output.value or merged)
    made = Copies(asked.merge, tuple(dict.fromkeys(asked.gguf)), pushed=pushed, volume=not asked.local)
    container = pins.container(asked, image, catalog.stack)
    export = Export(model, modality.value, made, adapter.rank, warm_image=container.warm, local=asked.local)
    placed = export_place.choose(export, catalog, _given(asked, here, catalog))
    place = placed.place
    timeout_s = budget.seconds(asked, place.duration.total_s)
    if asked.timeout:
        budget.require_start(timeout_s.value, place.duration.startup_s, asked)
    said = copies.words(model, made, place.load_in)
    decisions = ExportDecisions(
        adapter=Decision(adapter.place, ASKED if asked.source == adapter.place else f"of {asked.source}"),
        adapter_revision=Decision(adapter.revision),
        model=Decision(adapter.base, "what the adapter was trained on"), revision=Decision(adapter.base_revision),
        modality=modality, load_in=placed.load_in,
        output_repo=output, private=_private(asked, adapter), merge=Decision(made.merge, said.get("merge", "")),
        merged_repo=Decision(merged, ASKED if merged else ""), gguf=Decision(made.gguf, said.get("gguf", "")),
        run_name=_run_name(adapter, today),
        flavor=placed.flavor, image=container.image, namespace=Decision(payer), secrets=_secrets(asked, made),
        timeout_s=timeout_s, attempts=Decision(1),
    )  # fmt: skip
    return ExportPlan(
        launcher=__version__,
        asked=asked,
        decisions=decisions,
        facts=make.facts(model, model.repo),
        num_gpus=place.flavor.num_gpus,
        vram=Vram.of(place.parts, available_gib=place.room_gib, reserve_gib=place.reserve_gib, fits=place.fits),
        host=place.host,
        host_reason=placed.host_reason,
        duration=place.duration,
        duration_reason=placed.duration_reason,
        cost=duration.cost(place.flavor, place.duration.total_s, timeout_s.value),
        warnings=_warnings(asked, adapter, model, place),
        offers=tuple(other.offer() for other in export_place.survey(export, catalog.flavors.values())),
    )


def _require_seen(asked: ExportSpec, adapter: Adapter, of: Plan | None) -> None:
    """Raise for a folder of this machine that a Job would need, or that a repo alone says is to be published."""
    if asked.local:
        pushed = asked.output_repo or asked.merged_repo
        if of is None and pushed and adapter.local_base and not adapter.local:
            raise RefusedError(
                f"{adapter.place} says that it was trained on {adapter.base}, a folder of this machine, and the copies "
                "would publish that model.",
                "Leave --output-repo and --merged-repo away, or give the folder of an adapter that is here.",
            )
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


def _modality(adapter: Adapter, of: Plan | None, model: Model) -> Decision[Modality]:
    """What it was trained as, where that is known and can be."""
    known = of.decisions.modality.value if of else adapter.modality
    return Decision(next((kind for kind in model.modalities if kind == known), model.modalities[0]))


def _run_name(adapter: Adapter, today: date) -> Decision[str]:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", adapter.name)[:70].strip("-.") or "adapter"
    return Decision(f"{name}-export-{today:%Y%m%d}", "the adapter, export and the date")


def _given(asked: ExportSpec, here: Flavor | None, catalog: Catalog) -> Flavor | None:
    if asked.local:
        assert here is not None, "a local plan needs to know this machine"
        return here
    return None if asked.flavor == "auto" else catalog.flavor(asked.flavor)


def _output_repo(asked: ExportSpec, adapter: Adapter, of: Plan | None, user: str | None) -> Decision[str | None]:
    """Where the copies are pushed, but for the merged model where that has a repo of its own."""
    if asked.output_repo:
        return Decision(choices.owned(asked.output_repo, (of.decisions.namespace.value if of else None) or user), ASKED)
    if asked.local:
        return Decision(None, "nothing is pushed but to --merged-repo" if asked.merged_repo else "nothing is pushed")
    own = of is not None and of.decisions.output_repo.value == adapter.place
    if own or user in (None, adapter.place.split("/")[0]):
        return Decision(adapter.place, "where the adapter is")
    return Decision(f"{user}/{adapter.name[:80]}-export", f"the adapter's repo is not {user}'s")


def _private(asked: ExportSpec, adapter: Adapter) -> Decision[bool]:
    if asked.private is not None:
        return Decision(asked.private, ASKED)
    return Decision(adapter.private, "as the adapter's repo is" if adapter.private else "")


def _secrets(asked: ExportSpec, made: Copies) -> Decision[tuple[str, ...]]:
    if asked.local and not made.pushed:
        return Decision(())
    return Decision(("HF_TOKEN",), "HF_TOKEN reads the adapter and its model and pushes the copies")


def _warnings(asked: ExportSpec, adapter: Adapter, model: Model, place: Place) -> tuple[str, ...]:
    found = list(model.notes)
    if place.flavor.num_gpus > 1:
        found.append(f"an export uses one GPU: {place.flavor.num_gpus - 1} of {place.flavor.name}'s would idle")
    if asked.timeout and not asked.local and spec.seconds(asked.timeout) < place.duration.total_s:
        minutes = round(place.duration.total_s / 60)
        found.append(f"the export is expected to take {minutes} minutes: it would be killed after {asked.timeout}")
    return tuple(found)
