"""The tables hold together: every name resolves, and the dimensions give the parameters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher import catalog
from launcher.catalog import Model
from launcher.errors import RequestError
from launcher.spec import REPO_ID

TABLES = catalog.load()


@pytest.mark.parametrize("model", TABLES.models.values(), ids=lambda model: model.alias)
def test_the_dimensions_of_a_model_give_its_parameters(model: Model) -> None:
    """The norms, biases and convolution kernels that the formula leaves out are under half a percent."""
    computed = model.arch.parameters() + (model.vision.params if model.vision else 0)
    assert computed == pytest.approx(model.params, rel=0.005)


@pytest.mark.parametrize("model", TABLES.models.values(), ids=lambda model: model.alias)
def test_a_model_can_be_found_under_each_of_its_names(model: Model) -> None:
    assert TABLES.model(model.alias.upper()) is model
    for name in (model.repo, model.repo_4bit, model.upstream):
        if name:
            assert REPO_ID.fullmatch(name)
            assert TABLES.model(name).arch == model.arch
    assert model.source.startswith("https://")
    assert model.licence
    assert ("vision" in model.modalities) == (model.vision is not None)


def test_every_family_of_the_mission_has_a_model() -> None:
    families = {model.family for model in TABLES.models.values()}
    assert families == set(TABLES.families)
    aliases = " ".join(TABLES.models)
    for name in ("llama-3.1", "llama-3.2", "llama-3.3", "qwen2.5", "qwen3-8b", "mistral", "phi-4", "gemma-2", "gemma-3",
                 "lfm2-", "lfm2.5", "smollm2", "qwen3-vl-8b", "llama-3.2-11b-vision", "pixtral-12b"):  # fmt: skip
        assert name in aliases


def test_every_flavor_is_whole() -> None:
    for flavor in TABLES.flavors.values():
        assert (flavor.gpu is None) == (flavor.num_gpus == 0)
        assert flavor.usd_per_hour > 0
        if flavor.gpu:
            assert 0.85 * flavor.gpu.nominal_gb < flavor.gpu.memory_gib * 2**30 / 1e9 < 1.08 * flavor.gpu.nominal_gb
    assert {name for name, flavor in TABLES.flavors.items() if flavor.gpu and not flavor.gpu.bf16} == {
        "t4-small",
        "t4-medium",
    }


def test_upstream_names_load_the_upstream_repo() -> None:
    model = TABLES.model("meta-llama/Llama-3.1-8B-Instruct")
    assert model.repo == "meta-llama/Llama-3.1-8B-Instruct"
    assert model.gated


@pytest.mark.parametrize(
    ("name", "said", "hint"),
    [
        ("qwen3-8", "unknown model 'qwen3-8'", "qwen3-8b"),
        ("zzzz", "unknown model 'zzzz'", "launch models"),
        ("./absent", "no such folder", "alias"),
        ("a/b/c", "no such folder", "alias"),
    ],
)
def test_an_unknown_model_is_answered_with_what_comes_near(name: str, said: str, hint: str) -> None:
    with pytest.raises(RequestError) as caught:
        TABLES.model(name)
    assert said in caught.value.message
    assert hint in caught.value.hint


def test_a_repo_outside_the_catalog_is_read_from_its_config() -> None:
    config = {
        "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    }  # fmt: skip
    model = TABLES.model("someone/small", None, lambda repo, revision: config)
    assert model.params == pytest.approx(TABLES.models["smollm2-135m"].params, rel=0.005)
    assert model.modalities == ("text",)


def test_nested_and_hybrid_configs_are_read() -> None:
    config = {
        "model_type": "lfm2_vl",
        "vision_config": {"hidden_size": 768},
        "text_config": {
            "model_type": "lfm2", "hidden_size": 1024, "intermediate_size": 4608, "num_hidden_layers": 3,
            "num_attention_heads": 16, "num_key_value_heads": 8, "vocab_size": 65536,
            "max_position_embeddings": 128000, "layer_types": ["conv", "full_attention", "conv"],
        },
    }  # fmt: skip
    model = TABLES.model("someone/eyes", None, lambda repo, revision: config)
    assert model.modalities[0] == "vision"
    assert model.arch.attention_layers == 1
    assert model.arch.linears()["in_proj"][2] == 2


def test_the_feed_forward_width_of_lfm2_is_its_real_one() -> None:
    config = {
        "model_type": "lfm2", "hidden_size": 2048, "intermediate_size": 12288, "block_auto_adjust_ff_dim": True,
        "block_ffn_dim_multiplier": 1.0, "block_multiple_of": 256, "num_hidden_layers": 16, "num_attention_heads": 32,
        "vocab_size": 65536, "max_position_embeddings": 128000,
    }  # fmt: skip
    model = TABLES.model("someone/lfm", None, lambda repo, revision: config)
    assert model.arch.intermediate_size == TABLES.models["lfm2-1.2b"].arch.intermediate_size


def test_a_folder_is_read_from_its_config(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"no readable config\.json"):
        TABLES.model(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(RequestError, match="not JSON"):
        TABLES.model(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 64}))
    with pytest.raises(RequestError, match="does not say num_attention_heads"):
        TABLES.model(str(tmp_path))
