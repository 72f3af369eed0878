"""From what was asked to what will be done: every decision, each with its reason."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

from launcher import __version__
from launcher.catalog import Catalog, FetchConfig, FetchWeights, Flavor, Model
from launcher.estimate import duration, memory
from launcher.estimate.values import Vram
from launcher.plan import budget, choices, demand, explain, images
from launcher.plan import machines as offers
from launcher.plan import pins as revisions
from launcher.plan import place as placement
from launcher.plan.demand import LookUp
from launcher.plan.machines import Fit
from launcher.plan.pins import Resolve
from launcher.plan.place import Placed
from launcher.plan.record import Plan
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
) -> Plan:
    """Decide everything that was left open.

    `user` is the Hub account that output repos without a namespace belong to, where it is known; `here` is this
    machine, for local runs. Where the network may be used, `look_up` answers how large a Hub dataset is and `resolve`
    at which commit a revision is. `image` is the user's own default. Raises `RequestError` for names that don't exist
    and `RefusedError` for a run that fits nowhere, not where it was asked to run, or not into `--max-cost`.
    """
    why: dict[str, str] = {}
    model = catalog.model(asked.model, asked.revision, fetch_config, fetch_weights)
    if asked.revision:
        # A revision is one of this repo, not of its 4-bit upload.
        model = model.model_copy(update={"repo_4bit": None})
    if look_up and fetch_weights:
        model = _with_upload(model, asked, fetch_weights)
    modality = choices.modality(asked, model, why)
    choices.require_convertible(model, asked.gguf, catalog)
    given = choices.place(asked, here, catalog, modality)
    workload = demand.workload(asked, model, modality, choices.load_in(asked, model, given), look_up, why)
    container = images.choose(asked, image, catalog.stack, why)
    workload = replace(workload, warm_image=container.warm)
    placed = placement.place(asked, workload, catalog.flavors.values(), given, why)
    explain.reasons(asked, placed, why)
    timeout_s = budget.timeout(asked, placed.fit, why)
    if not asked.local:
        why["attempts"] = "a failed Job starts again from its last checkpoint, all within the one timeout"
    warnings = (*model.notes, *explain.warnings(asked, placed, timeout_s))
    made = _record(asked, catalog, placed, timeout_s, warnings, image=container.name, user=user, today=today, why=why)
    return revisions.pin(made, resolve, today) if resolve else made


def _with_upload(model: Model, asked: RunSpec, fetch_weights: FetchWeights) -> Model:
    """A 4-bit upload with its size, which is looked up where the catalog does not know it."""
    if not memory.is_dynamic(model):
        return model
    found = fetch_weights(model.repo, asked.revision, True)
    return model.model_copy(update={"bytes_4bit": found.loaded_bytes}) if found else model


def _record(
    asked: RunSpec,
    catalog: Catalog,
    placed: Placed,
    timeout_s: int,
    warnings: tuple[str, ...],
    *,
    image: str | None,
    user: str | None,
    today: date,
    why: dict[str, str],
) -> Plan:
    """The plan of a run whose machine is known, with what is left to decide about its names."""
    workload, model = placed.workload, placed.workload.model
    fit = offers.without_time(placed.fit) if asked.local else placed.fit
    setup = fit.setup
    run_name = asked.run_name or f"{choices.slug(model)}-sft-{today:%Y%m%d}"
    output = choices.output_repo(asked, run_name, user, why)
    return Plan(
        launcher=__version__,
        model=asked.model,
        repo=model.loads(setup.load_in),
        revision=asked.revision,
        modality=setup.modality,
        engine=asked.engine,
        load_in=setup.load_in,
        trust_remote_code=asked.trust_remote_code,
        chat_template=choices.chat_template(asked, model, catalog, why),
        generation=model.generation,
        generation_source=model.generation_source,
        licence=model.licence,
        dataset=choices.dataset(asked, setup.modality, why),
        dataset_config=asked.dataset_config,
        dataset_split=asked.dataset_split,
        dataset_revision=asked.dataset_revision,
        eval_split=asked.eval_split,
        eval_rows=choices.eval_rows(asked, why),
        streaming=workload.streaming,
        train_on=asked.train_on,
        image_size=setup.image_size,
        max_steps=workload.steps,
        num_train_epochs=asked.num_train_epochs,
        max_length=setup.max_length,
        batch_size=setup.batch_size,
        gradient_accumulation=max(fit.step.rows // setup.batch_size, 1),
        packing=fit.step.packing,
        learning_rate=asked.learning_rate,
        lr_scheduler_type=asked.lr_scheduler_type,
        warmup_ratio=asked.warmup_ratio,
        weight_decay=asked.weight_decay,
        optim=asked.optim,
        seed=asked.seed,
        logging_steps=asked.logging_steps,
        eval_steps=asked.eval_steps,
        checkpoint_minutes=asked.checkpoint_minutes,
        lora_r=asked.lora_r,
        lora_alpha=asked.lora_alpha or asked.lora_r,
        lora_dropout=asked.lora_dropout,
        lora_targets=model.lora_targets,
        finetune_vision_layers=asked.finetune_vision_layers,
        finetune_language_layers=asked.finetune_language_layers,
        finetune_attention_modules=asked.finetune_attention_modules,
        finetune_mlp_modules=asked.finetune_mlp_modules,
        output_repo=output,
        private=asked.private,
        merge=asked.merge,
        merged_repo=choices.merged_repo(asked, output, user, why),
        gguf=asked.gguf,
        run_name=run_name,
        sample_rows=asked.sample_rows,
        trackio_project=asked.trackio_project or choices.slug(model),
        trackio_space=asked.trackio_space,
        flavor=fit.flavor.name,
        num_gpus=fit.flavor.num_gpus,
        image=image,
        namespace=asked.namespace,
        labels=asked.label,
        env=asked.env,
        secrets=choices.secrets(asked, why),
        timeout_s=timeout_s,
        attempts=asked.attempts,
        vram=_vram(fit),
        host=fit.host,
        duration=fit.duration,
        cost=duration.cost(fit.flavor, fit.duration.total_s, timeout_s),
        reasons=why,
        warnings=warnings,
        offers=tuple(other.offer() for other in placed.fits),
    )


def _vram(fit: Fit) -> Vram:
    return Vram(
        weights_gib=round(fit.footprint.weights, 2),
        peak_gib=round(fit.footprint.peak, 2),
        available_gib=round(fit.room, 2),
        fits=fit.fits,
        reserve_gib=round(memory.reserve(fit.gpu), 2),
        parts={name: round(gib, 2) for name, gib in fit.footprint.parts.items()},
    )
