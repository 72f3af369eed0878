"""A run of anybody, known by its record: what of it is taken over, and what has to be looked at first.

Its script gets the user's token, so it has to be exactly what this launcher renders from the run's own plan, or to be
trusted by its hash.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from launcher import __version__
from launcher.catalog import Catalog
from launcher.errors import RefusedError
from launcher.estimate import duration
from launcher.jobs import request as requests
from launcher.jobs.base import ARTIFACTS_MOUNT, JobRequest
from launcher.plan.record import Decision, Plan
from launcher.runs import record
from launcher.runs.record import Kept, flags, is_rendered, with_args, without


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
    plan = with_args(recorded, args)
    if plan.decisions.dataset.value.startswith(f"{ARTIFACTS_MOUNT}/"):
        plan = plan.changed({"dataset": recorded.decisions.dataset.value})
    record.require_seen(record.shown(plan), kept.where)  # the script's own values too
    _require_harmless(kept, plan)
    if not trusts:
        _require_data(kept, plan)
    notes = _left_out(kept, plan, trusts)
    plan = _own(plan, tables, trusts)
    made = requests.from_plan(plan, tables)
    given = without(args, (name for name, _ in flags(made.script_args)))
    found = replace(
        made, script=kept.text, script_name=known.script.name, script_args=(*given, *made.script_args),
        secrets=tuple(name for name in made.secrets if trusts or name == "HF_TOKEN"),
    )  # fmt: skip
    _require_no_files(kept, found, plan)
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


def _require_harmless(kept: Kept, plan: Plan) -> None:
    """Refuse what runs code that stands in neither the script nor this launcher."""
    if plan.asked.trust_remote_code:
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


def _require_no_files(kept: Kept, request: JobRequest, plan: Plan) -> None:
    """Refuse arguments that would send other files along than the dataset."""
    dataset = Path(plan.decisions.dataset.value).expanduser()
    others = [name for name in request.files if Path(name).resolve() != dataset.resolve()]
    if others:
        raise RefusedError(
            f"{kept.where}: its arguments name {', '.join(others)}, which would be sent along.",
            "Start a run of your own with the options that you want.",
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
