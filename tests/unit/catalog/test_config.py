"""Any model's size follows from its config.json.

`configs/` holds configs as published ones are, with what their classes leave out; `counts.json` the parameters that
transformers 5.17's class has when it is built from each on the meta device, those that see counted apart.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launcher import catalog
from launcher.catalog import Model, tensors
from launcher.catalog import config_text as decoder
from launcher.catalog import config_vision as tower
from launcher.catalog.architecture import Arch
from launcher.errors import RequestError

TABLES = catalog.load()
CONFIGS = Path(__file__).parent / "configs"
COUNTS: dict[str, dict[str, int]] = json.loads((CONFIGS / "counts.json").read_text())


def config(name: str, **changes: Any) -> dict[str, Any]:
    """A published config with some values changed; none takes one away."""
    values = json.loads((CONFIGS / f"{name}.json").read_text()) | changes
    return {key: value for key, value in values.items() if value is not None}


def model(values: dict[str, Any]) -> Model:
    return TABLES.model("someone/model", None, lambda repo, revision: values)


def arch(values: dict[str, Any]) -> Arch:
    return decoder.read_text(values, "it")[0]


@pytest.mark.parametrize("name", COUNTS)
def test_a_config_gives_the_parameters_of_its_class(name: str) -> None:
    counted, values = COUNTS[name], config(name)
    read = arch(values)
    assert read.parameters() == pytest.approx(counted["parameters"] - counted["vision"], rel=0.01)
    seen, notes = tower.read_vision(values, read.hidden_size)
    assert (seen.params if seen else 0) == pytest.approx(counted["vision"], rel=0.01)
    assert notes == []
    assert model(values).params == pytest.approx(counted["parameters"], rel=0.01)


@pytest.mark.parametrize("name", sorted(set(COUNTS) - {"gpt_oss"}))
def test_nothing_is_unsure_of_a_type_that_was_counted(name: str) -> None:
    assert model(config(name)).notes == ()


def test_a_mixture_of_experts_has_its_whole_and_its_active_size() -> None:
    read = arch(config("qwen3_moe"))
    assert read.linear_parameters() / 1e9 == pytest.approx(29.9, abs=0.1)
    assert read.active_linear_parameters() / 1e9 == pytest.approx(3.0, abs=0.1)  # A3B
    assert arch(config("mixtral")).active_linear_parameters() / 1e9 == pytest.approx(12.7, abs=0.1)
    v3 = arch(config("deepseek_v3"))
    assert v3.active_linear_parameters() / 1e9 == pytest.approx(37, abs=1)
    assert v3.experts is not None
    assert (v3.experts.num, v3.experts.active, v3.experts.dense_layers) == (256, 8, 3)


def test_some_layers_of_a_mixture_may_be_dense() -> None:
    """Every second layer is sparse, less those that are named; layer 1 and 7 would have been."""
    read = arch(config("qwen3_moe_mixed"))
    assert read.experts is not None
    assert read.num_layers - read.experts.dense_layers == 4


def test_tied_embeddings_are_counted_once_and_the_whole_model_says_so() -> None:
    untied = arch(config("llama", tie_word_embeddings=False))
    tied = arch(config("llama"))
    assert untied.parameters() - tied.parameters() == tied.vocab_size * tied.hidden_size
    assert not arch(config("llama", tie_word_embeddings=None)).tied_embeddings
    assert arch(config("gemma3")).tied_embeddings, "what the class says where neither part does"
    assert not arch(config("mistral3")).tied_embeddings


@pytest.mark.parametrize("name", sorted(set(TABLES.models)))
def test_the_dimensions_of_the_catalog_come_from_a_plain_config(name: str) -> None:
    """A config in the usual names gives what the table says; the special ones have their own names."""
    known = TABLES.models[name].arch
    if known.attention_layers or known.cross_attention_layers or known.experts:
        return
    read = arch({
        "model_type": "llama", "hidden_size": known.hidden_size, "intermediate_size": known.intermediate_size,
        "num_hidden_layers": known.num_layers, "num_attention_heads": known.num_heads, "head_dim": known.head_dim,
        "num_key_value_heads": known.num_kv_heads, "vocab_size": known.vocab_size,
        "max_position_embeddings": known.max_position, "tie_word_embeddings": known.tied_embeddings,
    })  # fmt: skip
    assert read.linears() == known.linears()
    assert read.parameters() == known.parameters()


def test_null_is_a_value_and_what_is_absent_is_the_class_s() -> None:
    mistral = config("llama", model_type="mistral", head_dim=96)
    assert arch(mistral).sliding_window == 4096
    assert arch(mistral | {"sliding_window": None}).sliding_window is None
    assert arch(mistral | {"head_dim": None}).head_dim == 64


def test_what_an_unknown_type_leaves_open_is_said() -> None:
    read = model({
        "model_type": "brand_new", "hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8,
        "vocab_size": 1000, "vision_config": {"model_type": "new_eyes"},
    })  # fmt: skip
    notes = " / ".join(read.notes)
    assert "'brand_new'" in notes
    assert "2048 assumed" in notes
    assert "4096 tokens assumed" in notes
    assert "how wide its vision tower is" in notes
    assert read.vision is None
    assert read.modalities[0] == "vision"
    assert read.arch.intermediate_size == 2048


def test_an_unknown_tower_is_planned_and_its_guesses_are_said() -> None:
    eyes = {"model_type": "new_eyes", "hidden_size": 768, "num_hidden_layers": 12, "patch_size": 16, "image_size": 384}
    read = model(config("llama", vision_config=eyes))
    assert read.vision is not None
    assert read.vision.tokens(1000) == 24**2
    assert read.vision.params == pytest.approx(12 * 12 * 768**2, rel=0.1)
    assert any("new_eyes" in note for note in read.notes)
    assert any("square of 384 pixels" in note for note in read.notes)


def test_an_architecture_that_was_never_counted_is_an_estimate() -> None:
    read = model({"model_type": "jamba"})
    assert any("jamba" in note and "estimate" in note for note in read.notes)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "a T5ForConditionalGeneration"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "a BertForMaskedLM"),
        ({"model_type": "whisper"}, "a whisper"),
        ({"model_type": "siglip_vision_model"}, "a siglip_vision_model"),
        ({"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}, "a LlamaForSequence"),
        ({"model_type": "own", "is_encoder_decoder": True}, "an own"),
        ({"_class_name": "UNet2DConditionModel"}, "no causal language model"),
    ],
)
def test_what_is_no_language_model_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        model(values)
    assert "no causal language model" in caught.value.message


@pytest.mark.parametrize("key", ["hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size"])
def test_a_dimension_that_nothing_says_is_named(key: str) -> None:
    values = config("llama", model_type="own", **{key: None})
    with pytest.raises(RequestError, match=f"does not say {key}"):
        model(values)


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("phi3", "qkv_proj"),
        ("gpt2", "c_attn"),
        ("gpt_neox", "query_key_value"),
        ("lfm2_vl", "w1"),
        ("llama", "up_proj"),
    ],
)
def test_adapters_go_on_the_layers_of_the_type(name: str, targets: str) -> None:
    assert targets in decoder.lora_targets(config(name))


@pytest.mark.parametrize(
    ("name", "side", "tokens"),
    [
        ("qwen2_vl_flat", 448, 256), ("qwen3_vl", 448, 196), ("gemma3", 512, 256), ("mistral3", 600, 22 * 23),
        ("llava", 512, 576), ("mllama", 512, 1), ("lfm2_vl", 512, 256), ("internvl", 896, 5 * 256),
        ("qwen3_5", 448, 196), ("gemma4_31b", 2000, 256),
    ],
)  # fmt: skip
def test_a_tower_from_a_config_knows_its_image_processor(name: str, side: int, tokens: int) -> None:
    read = model(config(name))
    assert read.vision is not None
    assert read.vision.tokens(side) == tokens


@pytest.mark.parametrize("method", ["gptq", "awq", "hqq", "bitsandbytes"])
def test_no_adapter_is_trained_on_other_quantisations(method: str) -> None:
    stored = config("llama", quantization_config={"quant_method": method, "bits": 4, "load_in_8bit": True})
    with pytest.raises(RequestError, match=method) as caught:
        model(stored)
    assert "16-bit model" in caught.value.hint
    with pytest.raises(RequestError) as caught:
        tensors.read_precision(stored, "it", base="lab/base")
    assert "lab/base" in caught.value.hint


@pytest.mark.parametrize("method", ["fp8", "compressed-tensors", "mxfp4"])
def test_what_unsloth_unpacks_is_planned_with_a_note(method: str) -> None:
    read = model(config("llama", quantization_config={"quant_method": method}))
    assert any("16-bit" in note for note in read.notes)
    assert read.quantized is None
