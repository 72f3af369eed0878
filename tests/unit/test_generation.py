"""The catalog's generation settings: the published values, and none that a sampler could not take."""

from __future__ import annotations

import pytest

from launcher import catalog
from launcher.catalog import Model

TABLES = catalog.load()
LFM = {"temperature": 0.1, "top_k": 50, "top_p": 0.1, "repetition_penalty": 1.05}
QWEN_VL = {"temperature": 0.7, "top_p": 0.8, "presence_penalty": 1.5}
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


@pytest.mark.parametrize("model", TABLES.models.values(), ids=lambda model: model.alias)
def test_every_model_has_settings_that_a_sampler_takes_and_their_source(model: Model) -> None:
    assert "temperature" in model.generation
    assert (model.generation_source or "").startswith("https://")
    for name, value in model.generation.items():
        least, most = RANGES[name]
        assert least <= value <= most, name
    assert isinstance(model.generation.get("top_k", 1), int) or model.generation["top_k"].is_integer()
