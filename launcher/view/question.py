"""What a run will be, in the few lines that are read before money is spent; `launch plan` says everything."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.text import Text

from launcher.catalog import Catalog, Flavor, shipped
from launcher.estimate.values import Offer
from launcher.plan.record import AnyPlan, ExportPlan, Plan
from launcher.text import plain
from launcher.view.tables import gpus, minutes, passes

if TYPE_CHECKING:
    from launcher.hub.repos import Place
    from launcher.jobs.base import Checked, JobRequest

LINES = 12
"""That a screen of 80 columns has for the answer, the question among them."""
_LABEL = 10
_NAME = 40
# A machine that takes at most this share of the time is worth its mention.
_FASTER = 0.8


def answer(
    request: JobRequest, checked: Checked, catalog: Catalog, doubts: Iterable[str], *, width: int, asks: bool
) -> Text:
    """The lines: what, on which data, how often, where, for how much, and where it goes; then what to beware of.

    Where it `asks` they leave room for the question; else every warning is there.
    """
    plan = request.plan
    rows = _export(plan) if plan.task == "export" else _training(plan)
    if request.resumes:
        rows.insert(0, ("go on", f"with {request.resumes}, from its last checkpoint"))
    rows += _machine(plan, catalog) + (_cost(request, catalog) if plan.cost.usd_per_hour else [])
    rows += _result(plan, checked.repo)
    lines = [Text.assemble((name.ljust(_LABEL), "bold"), _cut(plain(value), width - _LABEL)) for name, value in rows]
    room = LINES - 1 - len(lines) if asks else math.inf
    return Text("\n").join([*lines, *_warnings([*doubts, *plan.warnings], room, width)])


def _training(plan: Plan) -> list[tuple[str, str]]:
    made, amount = plan.decisions, plan.amount
    copies = [f"merge {made.merge.value}"] if made.merge.value else []
    copies += [f"GGUF {', '.join(made.gguf.value)}"] if made.gguf.value else []
    then = f"; then {', '.join(copies)}" if copies else ""
    rows = [("train", f"{_name(plan.facts.repo)} in {made.load_in.value}, LoRA r={plan.asked.lora_r}{then}")]
    counted = f"{amount.rows:,} rows" if amount and amount.rows else "rows not counted"
    mine = "" if plan.asked.dataset else " (default, not yours)"
    rows.append(("data", f"{_name(made.dataset.value)}{mine}: {counted}, {_held_out(plan)}"))
    if amount and amount.passes:
        read = f" over {amount.rows - amount.held_out:,} rows" if amount.rows else ""
        rows.append(("passes", f"{amount.steps:,} steps = {passes(amount.passes)}{read}"))
    elif amount:
        rows.append(("passes", f"{amount.steps:,} steps; how many passes is not known"))
    return rows


def _held_out(plan: Plan) -> str:
    made, amount = plan.decisions, plan.amount
    if plan.asked.eval_split:
        return f"evaluated on {plan.asked.eval_split}"
    if made.eval_rows.value is None:
        return "at most 64 held out"
    return f"{amount.held_out if amount else made.eval_rows.value or 'none'} held out"


def _export(plan: ExportPlan) -> list[tuple[str, str]]:
    made = plan.decisions
    copies = [f"merged {made.merge.value}"] if made.merge.value else []
    copies += [f"GGUF {', '.join(made.gguf.value)}"] if made.gguf.value else []
    return [("make", f"{' and '.join(copies)} of {_name(made.adapter.value)}"), ("from", _name(plan.facts.repo))]


def _machine(plan: AnyPlan, catalog: Catalog) -> list[tuple[str, str]]:
    name = plan.decisions.flavor.value
    flavor = catalog.flavors.get(name)
    if flavor is None:
        return [("machine", "this one")]
    total_s = plan.duration.total_s
    usd = plan.cost.usd_per_hour * total_s / 3600
    # The cheapest first.
    others = sorted(
        (rate * offer.total_s / 3600, offer.total_s, offer.flavor)
        for offer in plan.offers
        if offer.total_s and offer.flavor != name and (rate := _rate(offer, catalog)) is not None
    )
    faster = next((other for other in others if other[1] <= total_s * _FASTER), None)
    cheaper = next((other for other in others if round(other[0], 2) < round(usd, 2)), None)
    return [
        ("machine", f"{name}, {gpus(flavor)}, ${flavor.usd_per_hour:.2f}/h: about {minutes(total_s)}"),
        ("  faster", _beside(faster) or "no machine is much faster"),
        ("  cheaper", _beside(cheaper) or "no machine does it for less"),
    ]


def _rate(offer: Offer, catalog: Catalog) -> float | None:
    """Dollars per hour of a machine that would be used whole."""
    flavor: Flavor | None = catalog.flavors.get(offer.flavor)
    return flavor.usd_per_hour if flavor and flavor.num_gpus <= 1 else None


def _beside(other: tuple[float, int, str] | None) -> str | None:
    return other and f"--flavor {other[2]}: {minutes(other[1])}, about ${other[0]:.2f}"


def _cost(request: JobRequest, catalog: Catalog) -> list[tuple[str, str]]:
    cost, payer = request.plan.cost, f", {request.namespace} pays" if request.namespace else ""
    whole = " in all" if request.resumes else ""
    most = f"at most ${cost.max_usd:.2f} (stopped after {minutes(request.timeout_s)})"
    return [
        ("cost", f"about ${cost.expected_usd:.2f}{whole}, {most}{payer}"),
        ("prices", f"{catalog.flavors_from}{_changed(request.flavor, catalog)}"),
    ]


def _changed(flavor: str, catalog: Catalog) -> str:
    """In what the list differs from the one that came with this version: in this machine's price, or how often else."""
    before, now = shipped().flavors, catalog.flavors
    rates = {name for name in before.keys() | now.keys() if _price(before, name) != _price(now, name)}
    if flavor in rates:
        was = _price(before, flavor)
        return f"; {flavor} was " + (f"${was:.2f}/h before" if was is not None else "not known before")
    return f"; {len(rates)} differ from {shipped().flavors_from.split(' that ')[0]}" if rates else ""


def _price(flavors: dict[str, Flavor], name: str) -> float | None:
    return flavors[name].usd_per_hour if name in flavors else None


def _result(plan: AnyPlan, repo: Place | None) -> list[tuple[str, str]]:
    made = plan.decisions
    output, merged = made.output_repo.value, made.merged_repo.value
    name = output or merged
    if not name:
        return [("result", f"nothing is pushed: {made.output_repo.reason}" if plan.cost.usd_per_hour else "stays here")]
    exists = repo is not None and repo.exists
    private = repo.private if repo and exists else made.private.value
    state = f"{'existing' if exists else 'new'}, {'private' if private else 'public'}"
    unless = "" if exists or not private or "--no-private" not in made.private.reason else " (--no-private)"
    rows = [("result", f"{_name(repo.name if repo else name)}: {state}{unless}")]
    return [*rows, ("merged", _name(merged))] if merged and merged != name else rows


def _warnings(texts: list[str], room: float, width: int) -> list[Text]:
    """As many of them as there is room for, whole; then how many more there are."""
    # What is copied is not broken, but left to the terminal.
    whole = textwrap.TextWrapper(width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    wrapped = [whole.wrap(f"! {plain(text)}") for text in texts]
    shown: list[str] = []
    for number, lines in enumerate(wrapped):
        more = len(wrapped) - number
        if sum(-(-len(line) // width) for line in shown + lines) + (more > 1) > room:
            shown.append(f"! {more} warning{'s' if more > 1 else ''}{' more' if number else ''}: ? shows all")
            break
        shown += lines
    return [Text(line, style="yellow") for line in shown]


def _name(text: str) -> str:
    """A name that may be long, with its middle left out."""
    keep = (_NAME - 3) // 2
    return text if len(text) <= _NAME else f"{text[:keep]}...{text[-keep:]}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."
