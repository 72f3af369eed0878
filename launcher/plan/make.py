"""From what was asked to what will be done: every decision, each with its reason."""

from __future__ import annotations

from datetime import date

from launcher import __version__
from launcher.catalog import Catalog, FetchConfig, FetchWeights, Flavor, Model
from launcher.estimate import duration, memory
from launcher.estimate.values import Vram
from launcher.plan import budget, choices, pins
from launcher.plan import machines as offers
from launcher.plan import place as places
from launcher.plan.demand import LookUp, demand
from launcher.plan.pins import Resolve
from launcher.plan.record import Decision, Decisions, Facts, Plan
from launcher.spec import RunSpec


def make_plan(
    asked: RunSpec,
    catalog: Catalog,
    *,
    today: date,
    user: str | None = None,
    here: Flavor | None = None,
    fetch_config: FetchConfig | None = None,
    fetch_weights: FetchWeights | None = None,
    look_up: LookUp | None = None,
    resolve: Resolve | None = None,
    image: str | None = None,
    unique: str | None = None,
) -> Plan:
    """Decide everything that was left open.

    `user` is the Hub account that output repos without a namespace belong to, where it is known; `here` is this
    machine, for local runs. Where the network may be used, `look_up` answers how large a Hub dataset is and `resolve`
    at which commit a revision is. `image` is the user's own default; `unique` ends the name of a run that is to be
    submitted. Raises `RequestError` for names that don't exist and `RefusedError` for a run that fits nowhere, not
    where it was asked to run, or not into `--max-cost`.
    """
    model = _model(asked, catalog, fetch_config, fetch_weights, online=look_up is not None)
    modality = choices.modality(asked, model)
    choices.require_convertible(model, asked.gguf, catalog)
    given = choices.place(asked, here, catalog, modality.value)
    load_in = choices.load_in(asked, model, given)
    container = pins.container(asked, image, catalog.stack)
    wanted = demand(asked, model, modality.value, load_in, look_up, container.warm)
    placed = places.place(asked, wanted.workload, catalog.flavors.values(), given)
    fit = offers.without_time(placed.fit) if asked.local else placed.fit
    timeout_s = budget.timeout(asked, placed.fit)
    run_name = choices.run_name(asked, model, today, unique)
    output = choices.output_repo(asked, run_name, user)
    merged = choices.merged_repo(asked, output.value, user)
    template = choices.chat_template(asked, model, catalog)
    dataset = choices.dataset(asked, modality.value)
    repo = model.loads(placed.load_in.value)
    read = pins.pin("model", repo, asked.revision, resolve, today, known=bool(model.licence))
    data = pins.pin("dataset", dataset.value, asked.dataset_revision, resolve, today, known=False)
    amount = wanted.amount(placed.fit.step)
    decisions = Decisions(
        modality=modality, revision=read.revision, load_in=placed.load_in, chat_template=template,
        dataset=dataset, dataset_revision=data.revision, streaming=wanted.streaming, eval_rows=wanted.eval_rows,
        image_size=wanted.image_size,
        max_steps=wanted.max_steps, num_train_epochs=wanted.num_train_epochs,
        max_length=wanted.max_length, effective_batch_size=wanted.effective_batch_size,
        batch_size=places.batch_size(asked, fit), gradient_accumulation=places.gradient_accumulation(fit),
        packing=Decision(fit.step.packing, fit.step.reason), lora_alpha=choices.lora_alpha(asked),
        output_repo=output, private=choices.private(asked, bool(output.value or merged.value), data.seen.private),
        merge=places.merge(asked, placed), merged_repo=merged, gguf=places.gguf(asked, placed),
        run_name=run_name, trackio_project=choices.trackio_project(asked, model),
        flavor=places.flavor(asked, placed), image=container.image, namespace=choices.namespace(asked),
        secrets=choices.secrets(asked), timeout_s=timeout_s, attempts=choices.attempts(asked),
    )  # fmt: skip
    return Plan(
        launcher=__version__,
        asked=asked,
        decisions=decisions,
        facts=facts(model, repo).model_copy(update=pins.licence(model.licence, read.seen)),
        num_gpus=fit.flavor.num_gpus,
        amount=amount,
        vram=Vram.of(fit.footprint.parts, available_gib=fit.room, reserve_gib=memory.reserve(fit.gpu), fits=fit.fits),
        host=fit.host,
        host_reason=places.host(placed),
        duration=fit.duration,
        duration_reason=places.duration(asked, placed.fit, wanted.words),
        cost=duration.cost(fit.flavor, fit.duration.total_s, timeout_s.value),
        warnings=(*choices.namesakes(asked), *places.warnings(asked, placed, amount), *model.notes),
        offers=tuple(other.offer() for other in placed.fits),
    )


def facts(model: Model, repo: str) -> Facts:
    """What a script is told of the model that it loads from that repo."""
    return Facts(
        repo=repo,
        lora_targets=model.lora_targets,
        generation=model.generation,
        generation_source=model.generation_source,
        licence=model.licence,
    )


def _model(
    asked: RunSpec, catalog: Catalog, fetch_config: FetchConfig | None, fetch_weights: FetchWeights | None, online: bool
) -> Model:
    """The model; `online` the size of a 4-bit upload is looked up where the catalog does not know it."""
    model = catalog.model(asked.model, asked.revision, fetch_config, fetch_weights)
    if asked.revision:
        # A revision is one of this repo, not of its 4-bit upload.
        model = model.model_copy(update={"repo_4bit": None})
    if not online or not fetch_weights or not memory.is_dynamic(model):
        return model
    found = fetch_weights(model.repo, asked.revision, True)
    return model.model_copy(update={"bytes_4bit": found.loaded_bytes}) if found else model
