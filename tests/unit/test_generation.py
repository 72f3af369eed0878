"""The catalog's generation settings: the published values, and none that a sampler could not take."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from launcher import catalog
from launcher.catalog import Model

TABLES = catalog.load()
LFM = {"temperature": 0.1, "top_k": 50, "top_p": 0.1, "repetition_penalty": 1.05}
QWEN_VL = {"temperature": 0.7, "top_p": 0.8, "presence_penalty": 1.5}
# The page of a family whose address does not hold the family's name.
FAMILY_PAGES = {"lfm2.5": "docsliquidai", "llama-3.2-vision": "llama3211bvision"}
RANGES = {
    "temperature": (0, 2), "top_p": (0.05, 1), "top_k": (1, 200), "min_p": (0, 0.5), "repetition_penalty": (1, 1.5),
    "presence_penalty": (0, 2),
}  # fmt: skip


@pytest.mark.parametrize(
    ("alias", "exactly"),
    [
        ("lfm2.5-1.2b", LFM),
        ("lfm2.5-350m", LFM),
        ("lfm2.5-1.2b-thinking", {"temperature": 0.05, "top_k": 50, "repetition_penalty": 1.05}),
    ],
)
def test_lfm(alias: str, exactly: dict[str, float]) -> None:
    assert TABLES.models[alias].generation == exactly


@pytest.mark.parametrize("alias", ["qwen3-vl-2b", "qwen3-vl-4b", "qwen3-vl-8b", "qwen3-vl-32b", "qwen3-vl-8b-thinking"])
def test_qwen_vl(alias: str) -> None:
    model = TABLES.models[alias]
    thinking = {"temperature": 1.0, "top_p": 0.95, "presence_penalty": 0.0}
    assert model.generation.items() >= (thinking if model.kind == "thinking" else QWEN_VL).items()
    # Beside the three, what changes nothing or is Qwen's own for both.
    assert set(model.generation) == {*thinking, "top_k", "repetition_penalty"}


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


@pytest.mark.parametrize("model", TABLES.models.values(), ids=lambda model: model.alias)
def test_every_setting_is_one_that_a_sampler_takes_and_published_for_that_family(model: Model) -> None:
    assert bool(model.generation) == bool(model.generation_source)
    if model.generation:
        assert "temperature" in model.generation
        assert str(model.generation_source).startswith("https://")
        family = FAMILY_PAGES.get(str(model.family), _letters(str(model.family)))
        assert family in _letters(str(model.generation_source))
    for name, value in model.generation.items():
        least, most = RANGES[name]
        assert least <= value <= most, name
    assert isinstance(model.generation.get("top_k", 1), int) or model.generation["top_k"].is_integer()


@pytest.mark.parametrize("alias", ["phi-4", "mistral-7b", "pixtral-12b", "gemma-2-2b", "gemma-2-27b", "qwen2.5-1.5b"])
def test_nothing_is_recommended_where_nothing_is_published(alias: str) -> None:
    """A card would say that the makers recommend it."""
    assert TABLES.models[alias].generation == {}


def test_no_setting_is_remembered_or_another_models() -> None:
    text = (Path(catalog.__file__).parents[1] / "data" / "models.toml").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("generation")]
    assert len(lines) > 40
    assert [line for line in lines if re.search(r"verif|remember|'s[:;]", line.lower())] == []
