"""A plan on one screen: its decisions with their reasons, its memory, time and price, and what each flavor would do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from launcher.catalog import Catalog, Flavor
from launcher.estimate import copies
from launcher.estimate.duration import AFTER
from launcher.estimate.values import Offer
from launcher.plan.record import AnyPlan, ExportPlan, Plan
from launcher.text import plain
from launcher.view.tables import gpus, grid, minutes, passes, table

if TYPE_CHECKING:
    from launcher.hub.repos import Place
    from launcher.jobs.base import Checked

CELLS = 60
_VALUES = 29
_MOST_FITTING = 7
_MOST_OTHERS = 3
_COLORS = ("blue", "cyan", "magenta", "green", "yellow", "red", "bright_blue", "bright_magenta")
# The cells of each part where there is no colour to tell them apart, and where there are no such characters either.
_MARKS = ("█▓▒░▞▤▥▦", "#=+x%o@&")
_RESERVE, _FREE = ("╱", "/"), ("·", ".")


def plan_view(plan: AnyPlan, catalog: Catalog, checked: Checked | None = None) -> RenderableType:
    """The whole screen; `checked` is what the Hub said of where the result goes, where it was asked."""
    repo, doubts = (checked.repo, checked.doubts) if checked else (None, ())
    parts: list[RenderableType] = [_decisions(plan, catalog, repo), Text(), _resources(plan, catalog)]
    parts += [Text(plain(f"warning: {text}"), style="yellow") for text in (*doubts, *plan.warnings)]
    # Without a price there is nothing to compare: this machine costs nothing.
    if plan.cost.usd_per_hour and plan.offers:
        parts += [Text(), _offers(plan, catalog)]
    return Group(*parts)


def _decisions(plan: AnyPlan, catalog: Catalog, repo: Place | None) -> Table:
    made = plan.decisions
    rows = _export(plan, catalog) if plan.task == "export" else _training(plan, catalog)
    if made.image.value:
        rows.append(("image", made.image.value, made.image.reason))
    if plan.cost.usd_per_hour:
        rows.append(("timeout", minutes(made.timeout_s.value), made.timeout_s.reason))
    if made.merge.value:
        rows.append(("merged", f"{made.merge.value}, in {made.merged_repo.value or 'merged/'}", made.merge.reason))
    if made.gguf.value:
        rows.append(("gguf", ", ".join(made.gguf.value), made.gguf.reason))
    rows.append(("result", made.output_repo.value or "stays where it was made", made.output_repo.reason))
    if made.output_repo.value or made.merged_repo.value:
        # An existing repo stays as it is.
        state = ("existing, " if repo.exists else "new, ") if repo else ""
        private = repo.private if repo and repo.exists else made.private.value
        rows.append(("", state + ("private" if private else "public"), made.private.reason))
    view = grid("bold", "")
    for name, value, reason in rows:
        # A long name pushes its reason aside instead of narrowing the column of all the others.
        view.add_row(name, Text.assemble(value.ljust(_VALUES), "  ", (_after(reason, value), "dim")))
    return view


def _export(plan: ExportPlan, catalog: Catalog) -> list[tuple[str, str, str]]:
    made = plan.decisions
    return [
        ("adapter", str(made.adapter.value), made.adapter.reason),
        ("model", plan.facts.repo, made.model.reason),
        ("weights", made.load_in.value, made.load_in.reason),
        ("machine", _machine(plan, catalog), made.flavor.reason),
    ]


def _training(plan: Plan, catalog: Catalog) -> list[tuple[str, str, str]]:
    made, packing = plan.decisions, plan.decisions.packing
    data = made.dataset.value + (", streamed" if made.streaming.value else "")
    packed = "packed rows" if packing.value else "rows"
    batch = f"{made.batch_size.value} {packed} x {made.gradient_accumulation.value} a step"
    rows = [
        ("model", plan.facts.repo, made.modality.reason),
        ("weights", f"{made.load_in.value}, LoRA r={plan.asked.lora_r}", made.load_in.reason),
        ("dataset", data, made.dataset.reason),
        ("held out", _held_out(plan), made.eval_rows.reason),
        ("steps", _stop(plan), made.max_steps.reason),
        ("rows", f"at most {made.max_length.value} tokens", made.max_length.reason),
        ("batch", batch, made.batch_size.reason),
        ("packing", "on" if packing.value else "off", packing.reason),
        ("machine", _machine(plan, catalog), made.flavor.reason),
    ]
    if side := made.image_size.value:
        rows.insert(5, ("pictures", f"at most {side} pixels a side", made.image_size.reason))
    return rows


def _after(reason: str, value: str) -> str:
    """The reason without the value that stands before it: of `on`, `on: rows leave room` only `rows leave room`."""
    return reason.removeprefix(f"{value}: ")


def _stop(plan: Plan) -> str:
    steps = plan.decisions.max_steps.value
    amount = plan.amount
    if steps is None:
        return f"{plan.decisions.num_train_epochs.value:g} epochs" + (f", {amount.steps} steps" if amount else "")
    return f"{steps}" + (f", {passes(amount.passes)}" if amount and amount.passes else "")


def _held_out(plan: Plan) -> str:
    if plan.asked.eval_split:
        return f"the split {plan.asked.eval_split}"
    rows = plan.amount.rows if plan.amount else None
    of = f" of {rows} rows" if rows else ""
    return f"{plan.amount.held_out if plan.amount else plan.decisions.eval_rows.value}{of}"


def _machine(plan: AnyPlan, catalog: Catalog) -> str:
    flavor = catalog.flavors.get(plan.decisions.flavor.value)
    return f"{flavor.name}, {gpus(flavor)}, ${flavor.usd_per_hour:.2f}/h" if flavor else "this one"


# ---- What it takes ---------------------------------------------------------------------------------------------------


def _resources(plan: AnyPlan, catalog: Catalog) -> Table:
    view = grid("bold", "")
    vram = plan.vram
    free = vram.available_gib - vram.peak_gib
    share = free / vram.available_gib if vram.available_gib else 0
    view.add_row(
        "VRAM" if plan.num_gpus else "memory",
        Text(f"{vram.peak_gib:.2f} of {vram.available_gib:.2f} GiB, {share:.0%} left"),
    )
    view.add_row("", Bar(vram.parts or {"in use": vram.peak_gib}, vram.reserve_gib, free))
    if plan.host.ram_gb or plan.host.disk_gb:
        view.add_row("host", Text(_host(plan, catalog.flavors.get(plan.decisions.flavor.value))))
    if plan.cost.usd_per_hour:
        for number, text in enumerate(_time(plan)):
            view.add_row("" if number else "time", Text(text))
        cost = f"about ${plan.cost.expected_usd:.2f}; ${plan.cost.max_usd:.2f} if it runs into its timeout"
        view.add_row("cost", Text(cost))
        view.add_row("", Text(f"prices are those of {catalog.flavors_from}", style="dim"))
    return view


def _host(plan: AnyPlan, flavor: Flavor | None) -> str:
    ram, disk = f"{plan.host.ram_gb:.0f}", f"{plan.host.disk_gb:.0f}"
    if flavor:
        ram, disk = f"{ram} of {flavor.ram_gb:g}", f"{disk} of {flavor.disk_gb:g}"
    return f"{ram} GB of RAM, {disk} GB of disk"


def _time(plan: AnyPlan) -> list[str]:
    took, work = plan.duration, plan.duration_reason
    after = {name: seconds for name, seconds in took.parts.items() if name in (*AFTER, *copies.PARTS)}
    before = {name: seconds for name, seconds in took.parts.items() if name not in after}
    lines = [f"about {minutes(took.total_s)}" + (f": {work}" if work else "")]
    lines.append(f"start-up {minutes(took.startup_s)}" + _parts(before))
    if plan.task == "sft":
        source = "measured on an H100" if took.measured else "derived from the card's published figures"
        speed = f" at {took.tokens_per_second:,.0f} tokens/s" if took.tokens_per_second else ""
        lines.append(f"training {minutes(took.train_s)}{speed}, {source}")
    if any(after.values()):
        lines.append(f"then {minutes(sum(after.values()))}" + _parts(after))
    return lines


def _parts(parts: Mapping[str, int]) -> str:
    shown = ", ".join(f"{name} {minutes(seconds)}" for name, seconds in parts.items() if seconds)
    return f": {shown}" if shown else ""


@dataclass(frozen=True, slots=True)
class Bar:
    """A card's memory as a line of cells with a legend: the parts of the peak, the reserve, what is free; in GiB."""

    parts: Mapping[str, float]
    reserve_gib: float
    free_gib: float

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        ascii_only = options.ascii_only
        colored = not ascii_only and console.color_system is not None and not console.no_color
        sizes = [*self.parts.values(), self.reserve_gib, max(self.free_gib, 0)]
        marks = [_MARKS[ascii_only][0 if colored else number % 8] for number in range(len(self.parts))]
        marks += [_RESERVE[ascii_only], _FREE[ascii_only]]
        styles = [_COLORS[number % 8] for number in range(len(self.parts))] + ["dim", "dim"]
        names = [*self.parts, "reserve", "free"]
        drawn = list(zip(names, sizes, marks, styles, cells(sizes, min(CELLS, options.max_width)), strict=True))
        for _, _, mark, style, count in drawn:
            yield Segment(mark * count, Style.parse(style))
        yield Segment.line()
        room = options.max_width
        for name, size, mark, style, _ in drawn:
            entry = f"{mark} {name} {size:.2f}"
            if len(entry) > room and room < options.max_width:
                yield Segment.line()
                room = options.max_width
            yield Segment(mark, Style.parse(style))
            yield Segment(f"{entry[1:]}   " if len(entry) + 3 <= room else entry[1:])
            room -= len(entry) + 3
        yield Segment.line()


def cells(sizes: list[float], total: int) -> list[int]:
    """How many of `total` cells each size gets: in proportion, all of them given out, the largest remainders first."""
    scale = total / (sum(sizes) or 1)
    given = [int(size * scale) for size in sizes]
    by_rest = sorted(range(len(sizes)), key=lambda place: given[place] - sizes[place] * scale)
    for place in by_rest[: total - sum(given)]:
        given[place] += 1
    return given


# ---- What other flavors would do -------------------------------------------------------------------------------------


def _offers(plan: AnyPlan, catalog: Catalog) -> RenderableType:
    fitting = [offer for offer in plan.offers if offer.fits]
    others = [offer for offer in plan.offers if not offer.fits]
    chosen = [offer for offer in fitting if offer.flavor == plan.decisions.flavor.value]
    shown = fitting[:_MOST_FITTING]
    if chosen and chosen[0] not in shown:
        shown = [*shown[:-1], *chosen]
    batch = [">batch"] if plan.task == "sft" else []
    view = table("flavor", "GPU", "fits", ">headroom", *batch, ">time", ">cost", "")
    for offer in shown:
        here = offer.flavor == plan.decisions.flavor.value
        row = [*_columns(offer, catalog), *([f"{offer.batch_size}"] if batch else [])]
        row += [minutes(offer.total_s or 0), f"${offer.expected_usd:.2f}", "chosen" if here else ""]
        view.add_row(*row, style="bold" if here else "")
    for offer in others[:_MOST_OTHERS]:
        view.add_row(*_columns(offer, catalog), style="dim")
    parts: list[RenderableType] = [view]
    parts += [Text(line, style="dim") for line in _why_not(others[:_MOST_OTHERS])]
    if left := _left_out(len(fitting) - len(shown), len(others) - _MOST_OTHERS):
        parts.append(Text(f"and {left}; --json has them all", style="dim"))
    return Group(*parts)


def _why_not(others: Iterable[Offer]) -> list[str]:
    """What is missing, with the flavors that miss it."""
    names: dict[str, list[str]] = {}
    for offer in others:
        if offer.why_not:
            names.setdefault(offer.why_not, []).append(offer.flavor)
    return [f"{', '.join(flavors)}: {why_not}" for why_not, flavors in names.items()]


def _columns(offer: Offer, catalog: Catalog) -> tuple[str, str, str, str]:
    flavor = catalog.flavors.get(offer.flavor)
    card = gpus(flavor) if flavor else ""
    return offer.flavor, card, "yes" if offer.fits else "no", f"{offer.headroom:.0%}"


def _left_out(fitting: int, others: int) -> str:
    words = [f"{fitting} more that fit"] if fitting > 0 else []
    return " and ".join(words + ([f"{others} more that do not"] if others > 0 else []))
