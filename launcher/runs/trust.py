"""A run of anybody, known by its record: what of it is taken over, and what has to be looked at first.

Its script gets the user's token, so it has to be exactly what this launcher renders from the run's own plan, or to be
trusted by its hash.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import NoReturn

from pydantic import ValidationError

from launcher import __version__
from launcher.catalog import Catalog
from launcher.catalog.machine import LOCAL
from launcher.errors import RefusedError, RequestError, from_validation
from launcher.jobs import request as requests
from launcher.jobs.base import ARTIFACTS_MOUNT, JobRequest
from launcher.plan.record import Decision, Plan
from launcher.runs import arguments, record
from launcher.runs.record import Kept, is_rendered, with_args
from launcher.spec import REPO_ID, RunSpec, path_of
from launcher.text import mask, plain

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
Planner = Callable[[RunSpec], Plan]
"""What this launcher itself makes of a request."""
_RECORDED = "as in its record"
UNASKED_USD = 20.0
"""What a stranger's run may cost at most without a question, whatever its record says of that."""
_RUN_NAME = re.compile(r"\w[\w .-]{0,95}")
"""What a script calls a run: its output folder is named by it."""
_TAKEN = ("num_gpus", "amount", "vram", "host", "host_reason", "duration", "duration_reason", "warnings", "offers")
"""Of a plan, what follows from its decisions."""
_LEFT_OPEN = (
    "effective_batch_size", "run_name", "output_repo", "merged_repo", "trackio_space", "image", "namespace", "timeout",
    "max_cost", "dataset_rows", "prefer", "label", "env", "secrets", "attempts",
)  # fmt: skip
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


def request(
    kept: Kept, args: tuple[str, ...], tables: Catalog, trusts: bool, planner: Planner
) -> tuple[JobRequest, tuple[str, ...]]:
    """The request of the run with these arguments, and what the user should know of it.

    What it takes and costs, `planner` says; the record is believed in none of it.

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
    plan = _own(plan, planner, trusts)
    made = requests.from_plan(plan, tables)
    own = arguments.read(plan, made.script_args)
    if made.timeout_s != recorded.decisions.timeout_s.value:
        own |= {"timeout_s": str(made.timeout_s)}
    given = {
        name: _spelled(plan, name, value) for name, value in told.items() if name not in LAUNCHERS and name not in own
    }
    notes += tuple(
        f"left out, since this launcher decides it: --{name.replace('_', '-')} {told[name]}."
        for name in sorted(LAUNCHERS & told.keys())
        if name not in own or own[name] != told[name]
    )
    notes += _told_otherwise(kept, plan)
    found = replace(
        made, script=kept.text, script_name=known.script.name, script_args=arguments.write(given | own),
        secrets=tuple(name for name in made.secrets if trusts or name == "HF_TOKEN"),
    )  # fmt: skip
    return found, notes


def _spelled(plan: Plan, name: str, value: arguments.Value) -> arguments.Value:
    """What was told of an option, a number as the script reads it: `7.0` is 7 to this launcher, and no step to it."""
    meant = plan.values.get(name)
    return str(meant) if isinstance(meant, int | float) and not isinstance(meant, bool) else value


def _own(plan: Plan, planner: Planner, trusts: bool) -> Plan:
    """The plan without what only who made it may decide: what it takes and costs is what `planner` says of it.

    A record's timeout is kept where it is within this launcher's own.
    """
    here = planner(_asked(plan))
    said, own = plan.decisions.timeout_s.value, here.decisions.timeout_s
    timeout_s = Decision(said, _RECORDED) if 0 < said < own.value else own
    image = Decision(plan.decisions.image.value, _RECORDED) if trusts and plan.decisions.image.value else Decision(None)
    none: dict[str, object] = {
        "env": {},
        "label": {},
        "namespace": None,
        "max_cost": None,
        "dataset_rows": None,
        "overwrite": False,
    }
    none |= {"image": image.value, "attempts": here.asked.attempts}
    plan = plan.changed({"timeout_s": timeout_s.value})
    values = {name: getattr(plan.decisions, name).value for name in type(plan.decisions).model_fields}
    decided = {name: Decision(value, _RECORDED if value else "") for name, value in values.items()}
    decided |= {"namespace": Decision(None), "image": image, "timeout_s": timeout_s}
    decided |= {"attempts": here.decisions.attempts}
    return plan.model_copy(
        update={
            "asked": plan.asked.model_copy(update=none),
            "decisions": plan.decisions.model_copy(update=decided),
            "cost": here.cost.model_copy(update={"max_usd": round(here.cost.usd_per_hour * timeout_s.value / 3600, 2)}),
        }
        | {name: getattr(here, name) for name in _TAKEN}
    )


def _asked(plan: Plan) -> RunSpec:
    """The plan as a request that leaves open only what the launcher decides of any run: where, how long, for how much.

    Raises `pydantic.ValidationError` for values that nobody could have asked for.
    """
    options, local = dict(plan.options), plan.decisions.flavor.value == LOCAL
    left = {name: RunSpec.model_fields[name].get_default() for name in _LEFT_OPEN}
    mine = {"model": plan.facts.repo, "push": any(plan.places[:2]), "local": local}
    return RunSpec.model_validate(options | left | mine | ({"flavor": "auto"} if local else {}))


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
    name = plan.decisions.run_name.value
    try:
        _asked(plan)
        if not _RUN_NAME.fullmatch(name):
            raise ValueError(f"--run-name {plain(name)[:100]!r}: the script takes no such name.")
    except ValueError as error:
        why = from_validation(error).message if isinstance(error, ValidationError) else str(error)
        raise RequestError(f"the plan in {kept.where} can't be meant: {why}", "The record was changed.") from error


def require_chosen_places(
    kept: Kept, plan: Plan, chosen: Collection[str], trusts: bool, user: Callable[[], str]
) -> None:
    """Refuse to push where the record alone says so: it could name any repo that this user may write to.

    The repo that it was read from is no such choice: whoever wrote the record could write there already.
    """
    for name, place in zip(("output_repo", "merged_repo"), plan.places[:2], strict=True):
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
    path = path_of(dataset)
    if path is None or not path.exists():
        return
    if path.is_dir() or record.recorded(kept.record.inputs, dataset) is None:
        raise RefusedError(
            f"{kept.where} trains on {dataset} of this machine, and does not say by a hash that it is the same.",
            f"Look at that file. To use it all the same, add\n--trust-script {kept.record.script.sha256}",
        )


def doubt(kept: Kept, plan: Plan) -> str:
    """What a user should say yes to first: that it may cost more than its record says, or much. Empty where not."""
    said = kept.record.plan.cost.max_usd if kept.record.plan else 0.0
    if plan.cost.max_usd <= min(said, UNASKED_USD):
        return ""
    return (
        f"the run may cost ${plan.cost.max_usd:.2f} on {plan.decisions.flavor.value}, and its record says "
        f"${said:,.2f} at most."
    )


def _told_otherwise(kept: Kept, plan: Plan) -> tuple[str, ...]:
    """In what the record's own word of time and money differs from what is true here."""
    record = kept.record.plan
    assert record is not None, "there is no plan without one in the record"
    said = (record.cost.max_usd, record.decisions.timeout_s.value)
    true = (plan.cost.max_usd, plan.decisions.timeout_s.value)
    if said == true or not plan.cost.usd_per_hour:
        return ()
    words = [f"${usd:,.2f} at most, a timeout of {(seconds + 30) // 60:,} minutes" for usd, seconds in (said, true)]
    return (f"its record says {words[0]}; by this launcher's own tables it is {words[1]}.",)


def _left_out(kept: Kept, plan: Plan, trusts: bool) -> tuple[str, ...]:
    """What of the run is not sent: what nobody recorded, and what a stranger may not decide."""
    names = dict.fromkeys((*kept.record.env, *plan.env))
    notes = [f"the run had the variables {', '.join(names)}: a record holds no values, so they are not set."] * bool(
        names
    )
    image, secrets = plan.decisions.image.value, plan.decisions.secrets.value
    said = [f"the image {image}"] if image else []
    said += [f"the secret {name}" for name in secrets if name != "HF_TOKEN"]
    if said and trusts:
        notes.append(f"taken over with the script that you trust, though it does not stand in it: {', '.join(said)}.")
    elif said:
        sha256 = kept.record.script.sha256
        notes.append(f"left out, since others chose it: {', '.join(said)}; --trust-script {sha256} takes it over.")
    return tuple(notes)
