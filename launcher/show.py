"""What a person sees: plans, tables and results as rich renderables. Nothing here prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from rich.console import Group, JustifyMethod, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from launcher.backends.base import Job
from launcher.catalog import Catalog, Flavor, Model
from launcher.plan import Plan

_SAMPLE_LENGTH = 120
_STAGE_STYLE = {"COMPLETED": "green", "ERROR": "red", "CANCELED": "yellow", "RUNNING": "cyan"}


def plan_view(plan: Plan, catalog: Catalog) -> RenderableType:
    """One screen: each decision with its reason, the memory, the time, the price and what other flavors would do."""
    decisions = _grid("bold", "", "dim")
    for name, value, reason in _decisions(plan, catalog):
        decisions.add_row(name, escape(value), escape(plan.reasons.get(reason, "")))
    parts: list[RenderableType] = [decisions]
    parts += [Text(f"warning: {text}", style="yellow") for text in plan.warnings]
    fitting = [offer for offer in plan.offers if offer.fits]
    if plan.cost.usd_per_hour and len(fitting) > 1:
        parts.append(_offers_table(plan, catalog))
    return Group(*parts)


def _decisions(plan: Plan, catalog: Catalog) -> list[tuple[str, str, str]]:
    rows = [
        ("model", f"{plan.repo}, {plan.load_in}, LoRA r={plan.lora_r}", "load_in"),
        ("dataset", plan.dataset + (", streamed" if plan.streaming else ""), "dataset"),
        ("length", f"{_stop(plan)}, rows of at most {plan.max_length} tokens", "max_steps"),
        ("batch", f"{plan.batch_size} rows x {plan.gradient_accumulation} per step", "batch_size"),
        ("packing", "on" if plan.packing else "off", "packing"),
        ("machine", _machine(plan, catalog), "flavor"),
        ("memory", f"about {plan.vram.peak_gib:.1f} of {plan.vram.available_gib:.1f} GiB", ""),
    ]
    if plan.cost.usd_per_hour:
        rows += [
            (
                "time",
                f"about {minutes(plan.duration.total_s)}, {minutes(plan.duration.startup_s)} to start",
                "duration",
            ),
            ("timeout", minutes(plan.timeout_s), "timeout"),
            ("cost", f"about ${plan.cost.expected_usd:.2f}, at most ${plan.cost.max_usd:.2f}", ""),
        ]
    return [*rows, ("result", plan.output_repo or "stays where it was trained", "output_repo")]


def _stop(plan: Plan) -> str:
    return f"{plan.max_steps} steps" if plan.max_steps is not None else f"{plan.num_train_epochs:g} epochs"


def _machine(plan: Plan, catalog: Catalog) -> str:
    flavor = catalog.flavors.get(plan.flavor)
    return f"{plan.flavor}, {gpus(flavor)}, ${flavor.usd_per_hour:.2f}/h" if flavor else "this one"


def _offers_table(plan: Plan, catalog: Catalog) -> Table:
    table = _table("flavor", "GPU", ">memory", ">time", ">cost")
    fitting = [offer for offer in plan.offers if offer.fits]
    shown = [*fitting[:6], *(offer for offer in fitting[6:] if offer.flavor == plan.flavor)]
    for offer in shown:
        table.add_row(
            offer.flavor,
            gpus(catalog.flavors[offer.flavor]),
            f"{offer.peak_gib:.1f} GiB",
            minutes(offer.total_s or 0),
            f"${offer.expected_usd:.2f}",
            style="bold" if offer.flavor == plan.flavor else "",
        )
    return table


def gpus(flavor: Flavor) -> str:
    """The flavor's cards in words: `4 x A10G 24 GB`."""
    if flavor.gpu is None:
        return "no GPU"
    count = f"{flavor.num_gpus} x " if flavor.num_gpus > 1 else ""
    return f"{count}{flavor.gpu.title} {flavor.gpu.nominal_gb} GB"


def minutes(total_s: float) -> str:
    """A duration a person reads at a glance: `45 s`, `12 min`, `3 h 20 min`."""
    if total_s < 90:
        return f"{total_s:.0f} s"
    whole = round(total_s / 60)
    return f"{whole} min" if whole < 90 else f"{whole // 60} h {whole % 60:02d} min"


def models_table(models: Iterable[Model]) -> Table:
    """The catalog's models, a line each."""
    table = _table("model", "repo", "for", ">parameters", ">context", "licence")
    for model in models:
        table.add_row(
            model.alias,
            model.repo,
            ", ".join(model.modalities),
            f"{model.params / 1e9:.2f} B",
            f"{model.arch.max_position:,}",
            (model.licence or "") + (" (gated)" if model.gated else ""),
        )
    return table


def flavors_table(flavors: Iterable[Flavor]) -> Table:
    """The service's machines, a line each."""
    table = _table("flavor", "GPU", ">vCPU", ">RAM", ">disk", ">$ / hour")
    for flavor in flavors:
        cells = (f"{flavor.vcpu}", f"{flavor.ram_gb:g} GB", f"{flavor.disk_gb:g} GB", f"{flavor.usd_per_hour:.2f}")
        table.add_row(flavor.name, gpus(flavor), *cells)
    return table


def jobs_table(jobs: Iterable[Job]) -> Table:
    """Runs, newest first."""
    table = _table("id", "model", "flavor", "stage", ">age")
    now = datetime.now(UTC)
    for job in sorted(jobs, key=lambda job: job.created_at, reverse=True):
        age = minutes((now - job.created_at).total_seconds())
        stage = Text(job.stage, style=_STAGE_STYLE.get(job.stage, ""))
        table.add_row(job.id, escape(job.labels.get("model", "")), job.flavor, stage, age)
    return table


def result_view(result: Mapping[str, Any]) -> RenderableType:
    """What a run says at its end: what changed, how fast it was, where the model is."""
    grid = _grid("bold", "")
    before, after = result.get("eval_loss_before"), result.get("eval_loss")
    if before is not None and after is not None:
        grid.add_row("loss on held-out rows", f"{before:.3f} before, {after:.3f} after")
    grid.add_row(
        "trained",
        f"{result['steps']} steps in {minutes(result['train_s'])}, {result['tokens_per_second']:,.0f} tokens/s",
    )
    if result.get("peak_gib"):
        grid.add_row("peak VRAM", f"{result['peak_gib']:.2f} GiB, predicted {result['predicted_peak_gib']:.2f}")
    grid.add_row("model", escape(str(result.get("url") or result["output_dir"])))
    samples = result.get("samples") or []
    return Group(grid, *([_samples_table(samples)] if samples else []))


def _samples_table(samples: Iterable[Mapping[str, Any]]) -> Table:
    table = _table("", "asked", "expected", "before", "after")
    table.show_lines = True
    for number, sample in enumerate(samples, 1):
        table.add_row(
            f"{number}", *(Text(_short(str(sample[key]))) for key in ("prompt", "expected", "before", "after"))
        )
    return table


def _short(text: str) -> str:
    return text if len(text) <= _SAMPLE_LENGTH else text[: _SAMPLE_LENGTH - 1].rstrip() + "…"


def _grid(*styles: str) -> Table:
    table = Table.grid(padding=(0, 2))
    for style in styles:
        table.add_column(style=style, overflow="fold")
    return table


def _table(*heads: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for index, head in enumerate(heads):
        justify: JustifyMethod = "right" if head.startswith(">") else "left"
        # The first column is what is typed or copied: it is never broken.
        table.add_column(head.lstrip(">"), justify=justify, overflow="fold", no_wrap=index == 0)
    return table
