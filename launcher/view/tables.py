"""What a person sees: tables and results as rich renderables. Nothing here prints."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.console import Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from launcher.catalog import Catalog, Flavor, Model
from launcher.errors import unknown

if TYPE_CHECKING:
    from launcher.catalog.flavors import Change
    from launcher.jobs.base import Job
    from launcher.jobs.rehearse import Rehearsed
    from launcher.plan.record import AnyPlan

_SAMPLE_LENGTH = 120
_STAGE_STYLE = {"COMPLETED": "green", "ERROR": "red", "CANCELED": "yellow", "RUNNING": "cyan"}


def gpus(flavor: Flavor) -> str:
    """The flavor's cards in words: `4 x A10G 24 GB`."""
    if not flavor.num_gpus:
        return "no GPU"
    count = f"{flavor.num_gpus} x " if flavor.num_gpus > 1 else ""
    card = f"{flavor.gpu.title} {flavor.gpu.nominal_gb} GB" if flavor.gpu else f"{flavor.accelerator}, not known here"
    return count + card


def minutes(total_s: float) -> str:
    """A duration a person reads at a glance: `45 s`, `12 min`, `3 h 20 min`."""
    if total_s < 90:
        return f"{total_s:.0f} s"
    whole = round(total_s / 60)
    return f"{whole} min" if whole < 90 else f"{whole // 60} h {whole % 60:02d} min"


def passes(count: float) -> str:
    """How often the data is read: `1 pass`, `0.53 passes`, `80 passes`."""
    return "1 pass" if count == 1 else f"{count:,.0f} passes" if count >= 10 else f"{count:.2g} passes"


def models_table(models: Iterable[Model]) -> Table:
    """The catalog's models, a line each."""
    view = table("model", "repo", "for", ">parameters", ">context", "licence")
    for model in models:
        view.add_row(
            model.alias,
            model.repo,
            ", ".join(model.modalities),
            f"{model.params / 1e9:.2f} B",
            f"{model.arch.max_position:,}",
            (model.licence or "") + (" (gated)" if model.gated else ""),
        )
    return view


def flavors_table(flavors: Iterable[Flavor]) -> Table:
    """The service's machines, a line each; those that can't be planned for are dimmed."""
    view = table("flavor", "GPU", ">vCPU", ">RAM", ">disk", ">$ / hour")
    for flavor in flavors:
        cells = (f"{flavor.vcpu}", f"{flavor.ram_gb:g} GB", f"{flavor.disk_gb:g} GB", f"{flavor.usd_per_hour:.2f}")
        style = "dim" if flavor.accelerator else ""
        view.add_row(*(Text(cell) for cell in (flavor.name, gpus(flavor), *cells)), style=style)
    return view


def changes_view(changes: Iterable[Change]) -> RenderableType:
    """What a refreshed list of flavors has that the earlier one had not, a line each."""
    view = grid("bold", "")
    for change in changes:
        view.add_row(Text(change.flavor), Text(change.kind if change.field is None else _change(change)))
    return view if view.row_count else Text("nothing has changed")


def _change(change: Change) -> str:
    if change.field == "usd_per_hour":
        return f"${change.before:.2f} → ${change.after:.2f} per hour"
    name = {"vcpu": "vCPU", "ram_gb": "GB of RAM", "disk_gb": "GB of disk", "num_gpus": "GPUs", "gpu": "GPU"}
    before, after = (f"{value:g}" if isinstance(value, float) else value for value in (change.before, change.after))
    return f"{before or 'none'} → {after or 'none'} {name.get(change.field or '', '')}".rstrip()


def jobs_table(jobs: Iterable[Job]) -> Table:
    """Runs, newest first."""
    view = table("id", "model", "flavor", "stage", ">age")
    now = datetime.now(UTC)
    for job in sorted(jobs, key=lambda job: job.created_at, reverse=True):
        age = minutes((now - job.created_at).total_seconds())
        stage = Text(job.stage, style=_STAGE_STYLE.get(job.stage, ""))
        view.add_row(job.address, Text(job.labels.get("model", "")), job.flavor, stage, age)
    return view


def result_view(
    result: Mapping[str, Any], plan: AnyPlan | None = None, took_s: float | None = None, usd_per_hour: float = 0
) -> RenderableType:
    """What a run says at its end: what changed, how fast it was, what was predicted, where the model is.

    `took_s` are the seconds that are paid for; what was predicted of the time is in the plan.
    """
    view = grid("bold", "")
    before, after = result.get("eval_loss_before"), result.get("eval_loss")
    if before is not None and after is not None:
        view.add_row("loss on held-out rows", f"{before:.3f} before, {after:.3f} after")
    steps, train_s, speed = (result.get(name) for name in ("steps", "train_s", "tokens_per_second"))
    if train_s is not None and steps is not None and speed is not None:
        view.add_row("trained", Text(f"{steps} steps in {minutes(train_s)}, {speed:,.0f} tokens/s"))
    if result.get("peak_gib"):
        view.add_row("peak VRAM", _peak(result))
    if plan and plan.duration.total_s:
        if train_s is not None:
            view.add_row("training time", _against(minutes, train_s, plan.duration.train_s))
        if took_s:
            view.add_row("whole run", _against(minutes, took_s, plan.duration.total_s))
            if usd_per_hour:
                spent = usd_per_hour * took_s / 3600
                view.add_row("cost", f"${spent:.2f}, ${plan.cost.expected_usd:.2f} predicted")
    for export in result.get("exports") or ():
        view.add_row(Text(f"{export.get('kind')} {export.get('name')}"), Text(_export(export)))
    view.add_row("model", Text(result.get("url") or result.get("output_dir") or "its RESULT does not say where"))
    samples = result.get("samples") or []
    return Group(view, *([_samples_table(samples)] if samples else []))


def rehearsal_view(rehearsed: Rehearsed) -> RenderableType:
    """What a rehearsal showed, and what it could not."""
    shown = [Text.assemble(("  ✓ ", "green"), line) for line in rehearsed.proved]
    left = [Text.assemble(("  – ", "dim"), line) for line in rehearsed.unproved]
    head = f"Rehearsed here in {minutes(rehearsed.seconds)}, for nothing. It showed:"
    return Group(Text(head, style="bold"), *shown, Text("What no CPU and no twin can show:", style="bold"), *left)


def _export(export: Mapping[str, Any]) -> str:
    """Where a copy of the model is and what was seen of it, or why there is none."""
    if export.get("error"):
        return f"failed: {export['error']}"
    size = f"{export['gib']:.2f} GiB, " if export.get("gib") else ""
    place = f"https://huggingface.co/{export['repo']}" if export.get("repo") else export.get("path")
    return f"{size}{place}" + (f"; {export['checked']}" if export.get("checked") else "")


def _peak(result: Mapping[str, Any]) -> str:
    predicted = result.get("predicted_peak_gib")
    if predicted is None:
        text = f"{result['peak_gib']:.2f} GiB seen; nothing was predicted for these options"
    else:
        text = _against(lambda gib: f"{gib:.2f} GiB", result["peak_gib"], predicted)
    tokens = result.get("largest_batch_tokens")
    return f"{text}, for batches of at most {tokens:,} tokens" if tokens else text


def _against(words: Callable[[float], str], seen: float, predicted: float) -> str:
    """`17.42 GiB seen, 17.90 GiB predicted (+2.8 %)`: by how much the prediction was too high."""
    off = f" ({predicted / seen - 1:+.1%})".replace("%", " %") if seen else ""
    return f"{words(seen)} seen, {words(predicted)} predicted{off}"


def _samples_table(samples: Iterable[Mapping[str, Any]]) -> Table:
    view = table("", "asked", "expected", "before", "after")
    view.show_lines = True
    for number, sample in enumerate(samples, 1):
        view.add_row(
            f"{number}", *(Text(_short(str(sample.get(key, "")))) for key in ("prompt", "expected", "before", "after"))
        )
    return view


def _short(text: str) -> str:
    return text if len(text) <= _SAMPLE_LENGTH else text[: _SAMPLE_LENGTH - 1].rstrip() + "…"


def grid(*styles: str) -> Table:
    """A table without heads, for names with their values; the names are never broken."""
    view = Table.grid(padding=(0, 2))
    for index, style in enumerate(styles):
        view.add_column(style=style, overflow="fold", no_wrap=index == 0)
    return view


def table(*heads: str) -> Table:
    """A table without lines; a head with `>` before it stands over numbers."""
    view = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for index, head in enumerate(heads):
        justify: JustifyMethod = "right" if head.startswith(">") else "left"
        # The first column is what is typed or copied: it is never broken.
        view.add_column(head.lstrip(">"), justify=justify, overflow="fold", no_wrap=index == 0)
    return view


# ---- One model ------------------------------------------------------------------------------------------------------


def find_model(name: str, catalog: Catalog) -> Model:
    """The model of an alias, or of any repo that the catalog knows it under; never looks at a disk or the network.

    Raises `RequestError` with the near matches for any other name.
    """
    names = {other for model in catalog.models.values() for other in (model.repo, model.repo_4bit, model.upstream)}
    if name.lower() in catalog.models:
        return catalog.models[name.lower()]
    if name in names:
        return catalog.model(name)
    raise unknown("model", name, {*filter(None, names)} if "/" in name else catalog.models, "launch models")


def model_view(model: Model) -> RenderableType:
    """The whole screen."""
    view = grid("bold", "")
    for name, value in _model_rows(model):
        view.add_row(name, Text(value))
    return view


def sampling(generation: Mapping[str, float]) -> str:
    """Generation settings as they are written in an option or a config: `temperature 0.7, top_k 20`."""
    return ", ".join(f"{name} {value:g}" for name, value in generation.items())


def _model_rows(model: Model) -> list[tuple[str, str]]:
    rows = [
        ("model", f"{model.alias} ({model.kind})"),
        ("repo", model.repo + _gate(model.gated)),
        ("4-bit upload", _four_bits(model)),
        ("upstream", _upstream(model)),
        ("parameters", f"{model.params / 1e9:.2f} B" + _experts(model)),
        ("context", f"{model.arch.max_position:,} tokens"),
        ("for", ", ".join(model.modalities)),
        ("licence", model.licence or "not known"),
        ("chat template", f"the tokenizer's own, else Unsloth's {model.chat_template}; a turn ends with "
                          f"{model.end_of_turn}"),
        ("LoRA targets", ", ".join(model.lora_targets)),
        ("generation", sampling(model.generation) or "none are known"),
        ("", f"from {model.generation_source}" if model.generation_source else ""),
        ("dimensions", model.source),
    ]  # fmt: skip
    return [row for row in rows if row[1]]


def _upstream(model: Model) -> str:
    if model.upstream in (None, model.repo):
        return "the repo itself"
    return f"{model.upstream}{_gate(model.upstream_gated)}"


def _gate(gated: bool) -> str:
    return ", gated: accept its licence on its page first" if gated else ""


def _experts(model: Model) -> str:
    experts = model.arch.experts
    return f", {experts.active} of {experts.num} experts a token" if experts else ""


def _four_bits(model: Model) -> str:
    if model.repo_4bit is None:
        return "none: quantised while it loads"
    size = f", {model.bytes_4bit / 2**30:.2f} GiB" if model.bytes_4bit else ""
    if model.quantized or model.loads("4bit") == model.repo_4bit:
        return f"{model.repo_4bit}{size}"
    return f"{model.repo_4bit}{size}, a dynamic one: loaded only where it is named"
