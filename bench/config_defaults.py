"""Write launcher/data/config_defaults.json: what transformers' config classes say where a config.json says nothing.

    HF_HUB_OFFLINE=1 PYTHONPATH=. $PYTHON_WITH_TRANSFORMERS bench/config_defaults.py launcher/data/config_defaults.json

Each model type has `kind` (text, image, or other), `aka` (the class's own names for the usual ones), the defaults of
the dimensions that are read, and for a model with parts the types of its parts. `counted_types` are those whose
parameters, built on the meta device, are within a hundredth of what launcher/decoder.py makes of their config.
"""

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

READ = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "vocab_size", "max_position_embeddings", "tie_word_embeddings", "attention_bias", "sliding_window",
    "use_sliding_window", "final_logit_softcapping", "is_encoder_decoder", "num_experts", "num_local_experts",
    "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", "first_k_dense_replace", "num_dense_layers",
    "decoder_sparse_step", "moe_layer_freq", "n_shared_experts", "shared_expert_intermediate_size",
    "shared_intermediate_size",
    "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "multi_query",
    "new_decoder_architecture", "num_kv_heads", "ffn_config", "linear_num_key_heads", "linear_num_value_heads",
    "linear_key_head_dim", "linear_value_head_dim", "full_attention_interval", "hidden_size_per_layer_input",
    "vocab_size_per_layer_input", "intermediate_size_mlp", "interleave_moe_layer_step", "attn_output_gate",
    "patch_size", "image_size", "spatial_merge_size", "merge_size", "depth", "num_heads", "embed_dim", "mlp_ratio",
    "out_hidden_size", "downsample_ratio", "downsample_factor", "scale_factor", "mm_tokens_per_image",
    "max_num_tiles", "num_global_layers", "vision_output_dim", "attention_heads", "word_embed_proj_dim",
    "num_patches", "projector_hidden_size", "num_position_embeddings", "temporal_patch_size",
    "pooling_kernel_size", "position_embedding_size",
)  # fmt: skip

# What the defaults of a class lack, where nothing can be built with them.
NEEDED: dict[str, dict[str, Any]] = {
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "nemotron": {"head_dim": 128},
}
SEES = re.compile(r"visi|visual|projector|connector|merger|audio|align|embedder|patch|image|resampler|perceiver")


def flat(config: Any) -> dict[str, Any]:
    """What the class itself sets, under the usual names; not what follows from other values."""
    own = getattr(type(config), "attribute_map", None) or {}
    back = {theirs: usual for usual, theirs in own.items()}
    names = {name: (name, own.get(name), back.get(name)) for name in READ}
    found = {name: first(getattr(type(config), known, None) for known in names[name] if known) for name in READ}
    return {name: value for name, value in found.items() if isinstance(value, int | float) and value is not False}


def first(values: Iterable[Any]) -> int | float | None:
    values = (value[0] if isinstance(value, tuple | list) and value else value for value in values)
    return next((value for value in values if isinstance(value, int | float)), None)


def counted(name: str, config: Any) -> bool:
    """Whether our reading of the config, whole and with nothing but its type, gives the class's parameters."""
    import torch

    from launcher.catalog import config_text as decoder

    sees = name in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    auto = transformers.AutoModelForImageTextToText if sees else transformers.AutoModelForCausalLM
    try:
        with torch.device("meta"):
            model = auto.from_config(config)
        model.tie_weights()
        real = sum(weights.numel() for part, weights in model.named_parameters() if not SEES.search(part))
        whole = config.to_dict()
        read = [decoder.read_text(values, name)[0] for values in ([whole] if sees else [whole, {"model_type": name}])]
    except Exception as error:
        print(name, type(error).__name__, str(error)[:80], file=sys.stderr)
        return False
    return all(abs(arch.parameters() / real - 1) < 0.01 for arch in read)


def entry(name: str, config: Any) -> dict[str, Any]:
    aka = {usual: own for usual, own in (getattr(type(config), "attribute_map", None) or {}).items() if usual in READ}
    causal = name in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    # An encoder that can be made to decode, or an encoder with a decoder, is no chat model.
    causal = causal and name not in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    causal = causal and not vars(config).get("is_encoder_decoder")
    image = name in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    classes = getattr(type(config), "sub_configs", None) or {}
    parts = {
        part: found
        for part in ("text_config", "vision_config")
        if (found := getattr(type(getattr(config, part, None)), "model_type", ""))
        or (found := getattr(classes.get(part), "model_type", ""))
    }
    kind = "image" if image else "text" if causal else "other"
    return {"kind": kind} | ({"aka": aka} if aka else {}) | ({"parts": parts} if parts else {}) | flat(config)


def main(path: str) -> None:
    configs: dict[str, Any] = {}
    for name in CONFIG_MAPPING:
        try:
            needed: dict[str, Any] = NEEDED.get(name, {})
            configs[name] = CONFIG_MAPPING[name](**needed)
        except Exception as error:
            print(name, type(error).__name__, str(error)[:80], file=sys.stderr)
    inner: list[Any] = [
        getattr(config, part, None) for config in configs.values() for part in ("text_config", "vision_config")
    ]
    configs = {type(config).model_type: config for config in inner if getattr(type(config), "model_type", "")} | configs
    table = {name: entry(name, config) for name, config in configs.items()}
    wanted = {name for name, values in table.items() if values["kind"] != "other"}
    wanted |= {part for name in wanted for part in table[name].get("parts", {}).values() if part in table}
    write(path, table, wanted, [])
    # Of a model with parts, what is counted is its text.
    right = {
        table[name].get("parts", {}).get("text_config", name)
        for name in wanted
        if table[name]["kind"] != "other" and counted(name, configs[name])
    }
    write(path, table, wanted, right)


def write(path: str, table: dict[str, Any], wanted: set[str], right: Iterable[str]) -> None:
    lines = [f"    {json.dumps(name)}: {json.dumps(table[name], sort_keys=True)}" for name in sorted(wanted)]
    text, others = ",\n".join(lines), sorted(name for name in table if name not in wanted)
    Path(path).write_text(
        f'{{\n  "transformers": "{transformers.__version__}",\n  "types": {{\n{text}\n  }},\n'
        f'  "counted_types": {json.dumps(sorted(right))},\n  "other_types": {json.dumps(others)}\n}}\n'
    )


if __name__ == "__main__":
    main(sys.argv[1])
