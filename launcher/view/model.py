"""One model of the catalog on one screen: where it is, what it is, how it is trained, how it is best asked."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import RenderableType
from rich.text import Text

from launcher.catalog import Catalog, Model
from launcher.errors import unknown
from launcher.view.tables import grid


def find(name: str, catalog: Catalog) -> Model:
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
    for name, value in _rows(model):
        view.add_row(name, Text(value))
    return view


def settings(generation: Mapping[str, float]) -> str:
    """Generation settings as they are written in an option or a config: `temperature 0.7, top_k 20`."""
    return ", ".join(f"{name} {value:g}" for name, value in generation.items())


def _rows(model: Model) -> list[tuple[str, str]]:
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
        ("generation", settings(model.generation) or "none are known"),
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
