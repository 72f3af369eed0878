"""A run of anybody, known by its record: what of it is taken over, and what has to be looked at first.

Its script gets the user's token, so it has to be exactly what this launcher renders from the run's own plan, or to be
trusted by its hash.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from pydantic import ValidationError

from launcher import __version__
from launcher.catalog import Catalog
from launcher.errors import RefusedError, RequestError, from_validation
from launcher.estimate import duration
from launcher.jobs import request as requests
from launcher.jobs.base import ARTIFACTS_MOUNT, JobRequest
from launcher.plan.record import Decision, Plan
from launcher.runs import arguments, record
from launcher.runs.record import Kept, is_rendered, with_args
from launcher.spec import REPO_ID, RunSpec
from launcher.text import mask

LEARNED = frozenset({
    "model", "revision", "load_in", "chat_template", "dataset", "dataset_config", "dataset_split", "dataset_revision",
    "eval_split", "eval_rows", "streaming", "train_on", "image_size", "max_steps", "num_train_epochs", "max_length",
    "batch_size", "gradient_accumulation", "packing", "learning_rate", "lr_scheduler_type", "warmup_ratio",
    "weight_decay", "optim", "seed", "logging_steps", "eval_steps", "checkpoint_minutes", "lora_r", "lora_alpha",
    "lora_dropout", "lora_targets", "finetune_vision_layers", "finetune_language_layers", "finetune_attention_modules",
    "finetune_mlp_modules", "merge", "gguf", "private", "run_name", "sample_rows", "trackio_project",
})  # fmt: skip
"""The options of a script that whoever made a run decides for everybody who runs it again: what is learned, and how."""
PLACES = frozenset({"output_repo", "merged_repo"})
"""Those that name where the result is pushed: whoever runs it says that anew."""
LAUNCHERS = frozenset({"timeout_s", "device"})
"""Those that this launcher gives a script by what it runs on. Any other option is refused where others chose it."""


def require_trust(kept: Kept, tables: Catalog, trusted: str | None) -> bool:
    """Whether the user trusts the script by its hash; `RefusedError` where they do not and it is not the launcher's."""
    digest = kept.record.script.sha256
    if trusted and trusted.lower() != digest:
        raise RefusedError(
            f"{kept.where}: the script's SHA-256 is {digest}, and --trust-script says {trusted}.",
            "It is not the script that you have read: read this one.",
        )
    if not trusted and not is_rendered(kept.script, record.plan_of(kept), tables):
        raise _untrusted(kept)
    return bool(trusted)


def request(kept: Kept, args: tuple[str, ...], tables: Catalog, trusts: bool) -> tuple[JobRequest, tuple[str, ...]]:
    """The request of the run with these arguments, and what the user should know of it.

    Raises `RefusedError` for what would run or read something else than the script and its data.
    """
    known, recorded = kept.record, record.plan_of(kept)
    told = arguments.read(recorded, args)
    _require_learned(kept, told)
    plan = with_args(recorded, args)
    if plan.decisions.dataset.value.startswith(f"{ARTIFACTS_MOUNT}/"):
        plan = plan.changed({"dataset": recorded.decisions.dataset.value})
    record.require_seen(record.shown(plan), kept.where)  # the script's own values too
    _require_valid(kept, plan)
    _require_harmless(kept, plan)
    _require_model(kept, plan, trusts and "model" not in told)
    if not trusts:
        _require_data(kept, plan)
    notes = _left_out(kept, plan, trusts)
    plan = _own(plan, tables, trusts)
    made = requests.from_plan(plan, tables)
    own = arguments.read(plan, made.script_args)
    given = {name: value for name, value in told.items() if name not in LAUNCHERS and name not in own}
    notes += tuple(
        f"left out, since this launcher decides it: --{name.replace('_', '-')} {told[name]}."
        for name in sorted(LAUNCHERS & told.keys())
        if name not in own or own[name] != told[name]
    )
    found = replace(
        made, script=kept.text, script_name=known.script.name, script_args=arguments.write(given | own),
        secrets=tuple(name for name in made.secrets if trusts or name == "HF_TOKEN"),
    )  # fmt: skip
    return found, notes


def _own(plan: Plan, tables: Catalog, trusts: bool) -> Plan:
    """The plan without what only who made it may decide, at the price that the machine has here."""
    image = plan.decisions.image if trusts else Decision(None)
    none: dict[str, object] = {"env": {}, "namespace": None, "image": image.value}
    decided = {"namespace": Decision(None), "image": image}
    machine = tables.flavors.get(plan.decisions.flavor.value)
    timeout_s = plan.decisions.timeout_s.value
    cost = duration.cost(machine, plan.duration.total_s, timeout_s) if machine else plan.cost
    return plan.model_copy(
        update={
            "asked": plan.asked.model_copy(update=none),
            "decisions": plan.decisions.model_copy(update=decided),
            "cost": cost,
            "offers": (),
        }
    )


def _untrusted(kept: Kept) -> RefusedError:
    known = kept.record
    if known.launcher is None:
        why = "somebody has changed it, or another version of launch made it"
    elif known.launcher != __version__:
        why = f"launch {known.launcher} made it, and this is {__version__}"
    else:
        why = "somebody has changed it"
    return RefusedError(
        f"{kept.where}: {known.script.name} is not what this launcher renders ({why}), and it would run with your "
        "token.",
        f"Read it first: {kept.page}\nTo run it all the same, add\n--trust-script {known.script.sha256}",
    )


def _require_learned(kept: Kept, told: Mapping[str, arguments.Value]) -> None:
    """Refuse arguments that decide anything beside what is learned, wherever they would lead."""
    others = [
        name
        for name, value in told.items()
        if name not in LEARNED | PLACES | LAUNCHERS and not (name == "trust_remote_code" and not value)
    ]
    if "trust_remote_code" in others:
        _refuse_code(kept, record.plan_of(kept))
    if others:
        said = " and ".join(f"--{name.replace('_', '-')} {mask(str(told[name]))[:120]}" for name in others)
        raise RefusedError(
            f"{kept.where}: its arguments say {said}, which nobody may decide for you.",
            "Start a run of your own with the options that you want; `launch diff` shows in what two runs differ.",
        )


def _require_valid(kept: Kept, plan: Plan) -> None:
    """Raise `RequestError` where a value is none that this launcher could have decided."""
    options = dict(plan.options)
    for of_the_script in ("run_name", "effective_batch_size"):  # a name with spaces; a product of two others
        del options[of_the_script]
    try:
        RunSpec.model_validate(options)
    except ValidationError as error:
        found = from_validation(error)
        raise RequestError(
            f"the plan in {kept.where} can't be meant: {found.message}", "The record was changed."
        ) from error


def require_chosen_places(
    kept: Kept, plan: Plan, chosen: Collection[str], trusts: bool, user: Callable[[], str]
) -> None:
    """Refuse to push where the record alone says so: it could name any repo that this user may write to.

    The repo that it was read from is no such choice: whoever wrote the record could write there already.
    """
    for name in sorted(PLACES, reverse=True):
        place = dict(zip(("output_repo", "merged_repo"), plan.places[:2], strict=True))[name]
        if not place or name in chosen:
            continue
        if name == "output_repo" and kept.repo == (place if "/" in place else f"{user()}/{place}"):
            continue
        hint = "Say where yours goes: --output-repo NAME"
        hint += " --merged-repo NAME (else merged/ there)." if plan.places[1] else "."
        raise RefusedError(f"{kept.where} pushes to {place}, which its record chose and not you.", hint)
    space = plan.asked.trackio_space
    if space and not trusts:
        raise RefusedError(
            f"{kept.where} sends its metrics to the Space {space}, which its record chose and not you.",
            "Start a run of your own with the same options; `launch diff` shows in what two runs differ.",
        )


def _require_model(kept: Kept, plan: Plan, trusts: bool) -> None:
    """Refuse a model of this machine, whose weights a merged copy would publish."""
    if not trusts and not REPO_ID.fullmatch(plan.facts.repo):
        raise RefusedError(
            f"{kept.where} trains {plan.facts.repo}, which is no repo of the Hub.",
            "Start a run of your own with --model, if you want to train that folder.",
        )


def _require_harmless(kept: Kept, plan: Plan) -> None:
    """Refuse what runs code that stands in neither the script nor this launcher."""
    if plan.asked.trust_remote_code:
        _refuse_code(kept, plan)


def _refuse_code(kept: Kept, plan: Plan) -> NoReturn:
    code = f"the Python of the repo {plan.facts.repo} at {plan.decisions.revision.value}"
    raise RefusedError(
        f"{kept.where} runs {code}, with your token.",
        "Read that, then start a run of your own with --trust-remote-code.",
    )


def _require_data(kept: Kept, plan: Plan) -> None:
    """Refuse a file of this machine that the run did not read: a record could name any, and publish what is in it."""
    dataset = plan.decisions.dataset.value
    path = Path(dataset).expanduser()
    if not path.exists():
        return
    if path.is_dir() or record.recorded(kept.record.inputs, dataset) is None:
        raise RefusedError(
            f"{kept.where} trains on {dataset} of this machine, and does not say by a hash that it is the same.",
            f"Look at that file. To use it all the same, add\n--trust-script {kept.record.script.sha256}",
        )


def _left_out(kept: Kept, plan: Plan, trusts: bool) -> tuple[str, ...]:
    """What of the run is not sent: what nobody recorded, and what a stranger may not decide."""
    names = dict.fromkeys((*kept.record.env, *plan.env))
    notes = [f"the run had the variables {', '.join(names)}: a record holds no values, so they are not set."] * bool(
        names
    )
    image, secrets = plan.decisions.image.value, plan.decisions.secrets.value
    said = [f"the image {image}"] if image else []
    said += [f"the secret {name}" for name in secrets if name != "HF_TOKEN"]
    if said and not trusts:
        sha256 = kept.record.script.sha256
        notes.append(f"left out, since others chose it: {', '.join(said)}; --trust-script {sha256} takes it over.")
    return tuple(notes)
