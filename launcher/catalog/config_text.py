"""A language model's dimensions from its `config.json`. What had to be assumed is collected as notes."""

from __future__ import annotations

from launcher.catalog.architecture import Arch, Experts, Latent, Shape
from launcher.catalog.config_section import Json, Section, known, part
from launcher.errors import RequestError

_USUAL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_LFM2 = ("q_proj", "k_proj", "v_proj", "out_proj", "in_proj", "w1", "w2", "w3")
_FUSED = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
_LATENT = ("q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", *_USUAL[3:])
_TARGETS = {
    "lfm2": _LFM2, "lfm2_moe": _LFM2, "lfm2_vl": _LFM2,
    "phi3": ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
    "phi": ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"),
    "gpt2": ("c_attn", "c_proj", "c_fc"), "gpt_bigcode": ("c_attn", "c_proj", "c_fc"),
    "starcoder2": ("q_proj", "k_proj", "v_proj", "o_proj", "c_fc", "c_proj"),
    "gpt_neox": _FUSED, "falcon": _FUSED, "bloom": _FUSED,
    "gptj": ("q_proj", "k_proj", "v_proj", "out_proj", "fc_in", "fc_out"),
    "gpt_neo": ("q_proj", "k_proj", "v_proj", "out_proj", "c_fc", "c_proj"),
    "opt": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
    "deepseek_v2": _LATENT, "deepseek_v3": _LATENT,
}  # fmt: skip
_TWO_MATRIX_MLP = {
    "apertus", "bloom", "codegen", "falcon", "fuyu", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox",
    "gpt_neox_japanese", "gptj", "biogpt", "nemotron", "opt", "persimmon", "phi", "starcoder2", "xglm", "arcee",
    "mpt", "nanochat",
}  # fmt: skip
_QK_NORM = {
    "gemma3_text", "gemma3n_text", "lfm2", "lfm2_moe", "olmo2", "olmo3", "qwen3", "qwen3_moe", "qwen3_next",
    "qwen3_vl_text", "qwen3_vl_moe_text", "qwen3_5_text", "qwen3_5_moe_text", "smollm3",
}  # fmt: skip
_ATTENTION_BIAS = {"gpt_oss", "qwen2", "qwen2_moe", "qwen2_vl_text", "qwen2_5_vl_text"}
_MOST_LAYERS = 10_000
_UNSAID_POSITIONS = 4096


def lora_targets(config: Json) -> tuple[str, ...]:
    """The linear layers an adapter goes on, by the config's `model_type`."""
    text = part(config, "text_config")
    return _TARGETS.get(str(config.get("model_type")), _TARGETS.get(text.type if text else "", _USUAL))


def is_vision(config: Json) -> bool:
    """Whether a config describes a model that sees."""
    return isinstance(config.get("vision_config"), dict)


def unsure(config: Json) -> tuple[str, ...]:
    """A note where the parameters of this type of model were never held against transformers' own class."""
    text = part(config, "text_config")
    if text is None or not text.defaults or text.type in known()["counted_types"]:
        return ()
    return (f"the size of a '{text.type}' model is an estimate from its dimensions",)


def read_text(config: Json, name: str) -> tuple[Arch, list[str]]:
    """The language model's dimensions, and what had to be assumed.

    `name` is for the message of the `RequestError` where a needed dimension is missing.
    """
    text = part(config, "text_config")
    assert text is not None
    notes: list[str] = []

    def need(key: str) -> int:
        if (number := text.number(key)) is not None:
            return number
        raise RequestError(
            f"the config.json of {name} does not say {key}, so its memory can't be planned.",
            "Use a causal language model in transformers' format; `launch models` lists the ones that are known.",
        )

    hidden, heads, layers = need("hidden_size"), need("num_attention_heads"), need("num_hidden_layers")
    if layers > _MOST_LAYERS:
        raise RequestError(f"the config.json of {name} speaks of {layers} layers.", "Choose another model.")
    if not text.defaults:
        kind = f"model_type '{text.type}'" if text.type else "no model_type"
        notes.append(f"its config has {kind}, which is not known here: read by the usual names, so this is an estimate")
    width = text.number("intermediate_size") or text.number("moe_intermediate_size")
    if width is None:
        width = 4 * hidden
        if not text.defaults:
            notes.append(f"its config does not say how wide its MLPs are: {width} assumed, four times the hidden size")
    positions = text.number("max_position_embeddings")
    if positions is None:
        positions = _UNSAID_POSITIONS
        notes.append(f"its config does not say how long a text it takes: {positions} tokens assumed")
    head_dim = text.number("head_dim") or hidden // heads
    kinds = _kinds(text, layers)
    attending = sum("attention" in kind and kind != "linear_attention" for kind in kinds)
    recurrent = sum(kind in ("linear_attention", "mamba", "mamba2", "recurrent") for kind in kinds)
    if any("mamba" in kind or kind == "recurrent" for kind in kinds):
        notes.append(f"{recurrent} of its {layers} layers are recurrent: their size is a guess")
    crossing = text.get("cross_attention_layers")
    return Arch(
        hidden_size=hidden,
        intermediate_size=_dense_width(text, width),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=_kv_heads(text, heads),
        head_dim=head_dim,
        vocab_size=need("vocab_size"),
        max_position=positions,
        tied_embeddings=_tied(config, text),
        attention_bias=bool(text.get("attention_bias")) or text.type in _ATTENTION_BIAS,
        qk_norm=text.type in _QK_NORM,
        sliding_window=text.number("sliding_window") if text.values.get("use_sliding_window") is not False else None,
        logit_softcap=text.get("final_logit_softcapping"),
        attention_layers=attending if attending != layers else None,
        recurrent_layers=recurrent,
        cross_attention_layers=len(crossing) if isinstance(crossing, list) else 0,
        gated_mlp=text.type not in _TWO_MATRIX_MLP,
        latent=_latent(text),
        experts=_experts(text, layers, width),
        other_linears=_special_linears(text, hidden, heads, head_dim, kinds),
        other_parameters=_special_parameters(text, hidden, layers, positions),
    ), notes


def _kinds(text: Section, layers: int) -> list[str]:
    """What each layer is, in the words of `layer_types`."""
    for key in ("layer_types", "layers_block_type"):
        if isinstance(text.get(key), list):
            return [str(kind) for kind in text.get(key)][:layers]
    if text.counts("linear_num_key_heads", "linear_num_value_heads"):
        every = text.number("full_attention_interval") or 4
        return ["linear_attention" if (layer + 1) % every else "full_attention" for layer in range(layers)]
    if text.type.startswith("gemma4"):
        sees = [layer % 6 == 5 or layer == layers - 1 for layer in range(layers)]
        return ["full_attention" if all_of_it else "sliding_attention" for all_of_it in sees]
    return ["full_attention"] * layers


def _dense_width(text: Section, width: int) -> int:
    """LFM2's configs give the width before its own rounding (transformers' `Lfm2MLP`): two thirds, up to a multiple."""
    if mlp := text.number("intermediate_size_mlp"):
        return mlp
    if not text.values.get("block_auto_adjust_ff_dim", text.type == "lfm2"):
        return width
    multiple = text.values.get("block_multiple_of") or 256
    return -(-int((text.values.get("block_ffn_dim_multiplier") or 1) * int(2 * width / 3)) // multiple) * multiple


def _kv_heads(text: Section, heads: int) -> int:
    """Falcon and StarCoder say `multi_query` where all queries share one key."""
    if text.get("multi_query") and not text.get("new_decoder_architecture"):
        return 1
    if text.type == "falcon" and not text.get("new_decoder_architecture"):
        return heads
    return text.number("num_key_value_heads") or heads


def _tied(config: Json, text: Section) -> bool:
    """The whole model's word wins over its text's."""
    top = Section(config, str(config.get("model_type", "")))
    for value in (config.get("tie_word_embeddings"), text.values.get("tie_word_embeddings")):
        if value is not None:
            return bool(value)
    return bool(top.defaults.get("tie_word_embeddings", text.defaults.get("tie_word_embeddings", False)))


def _latent(text: Section) -> Latent | None:
    ranks = text.counts("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    if ranks is None:
        return None
    kv_rank, nope, rope, value = ranks
    return Latent(
        q_rank=text.number("q_lora_rank"), kv_rank=kv_rank, nope_head_dim=nope, rope_head_dim=rope, value_head_dim=value
    )


def _experts(text: Section, layers: int, width: int) -> Experts | None:
    num = next((n for key in ("num_experts", "num_local_experts", "n_routed_experts") if (n := text.number(key))), None)
    if num is None:
        return None
    each = text.number("moe_intermediate_size") or width
    shared = text.number("shared_expert_intermediate_size") or text.number("shared_intermediate_size")
    if shared is None:
        shared = (text.number("n_shared_experts") or (1 if text.type == "llama4_text" else 0)) * each
    return Experts(
        num=num,
        active=text.number("num_experts_per_tok") or text.number("top_k_experts") or 1,
        intermediate_size=each,
        dense_layers=sum(not routed for routed in _routed(text, layers)),
        shared_intermediate_size=shared,
    )


def _routed(text: Section, layers: int) -> list[bool]:
    """For each layer, whether its MLP is a mixture of experts."""
    if isinstance(kinds := text.get("mlp_layer_types"), list):
        return [kind == "sparse" for kind in kinds][:layers]
    if isinstance(chosen := text.get("moe_layers"), list):
        return [layer in chosen for layer in range(layers)]
    first = text.number("first_k_dense_replace") or text.number("num_dense_layers") or 0
    step = text.number("decoder_sparse_step") or text.number("interleave_moe_layer_step") or 1
    dense = text.get("mlp_only_layers") or ()
    return [layer >= first and layer not in dense and (layer + 1) % step == 0 for layer in range(layers)]


# ---- Linear layers that only some families have ---------------------------------------------------------------------

_LEARNED_POSITIONS = {"gpt2", "gpt_bigcode", "gpt_neo", "opt", "biogpt"}
_GEMMA4 = {"gemma4_text", "gemma4_unified_text"}
_GLOBAL_HEAD_DIM = 512  # of Gemma 4's layers that see everything, where its config says nothing


def _special_linears(text: Section, hidden: int, heads: int, head_dim: int, kinds: list[str]) -> dict[str, Shape]:
    """What goes over, or comes to, the usual linear layers; `kinds` is what each layer is."""
    table: dict[str, Shape] = {}
    mamba = sum("mamba" in kind or kind == "recurrent" for kind in kinds)
    if recurrent := kinds.count("linear_attention"):
        table |= _delta_net(text, hidden, heads * head_dim, recurrent, len(kinds) - recurrent)
    elif mamba:  # a guess: twice the width, and a gate
        table |= {"mamba_in_proj": (hidden, 4 * hidden, mamba), "mamba_out_proj": (2 * hidden, hidden, mamba)}
    if extra := text.number("hidden_size_per_layer_input"):
        layers = len(kinds)
        table |= {
            "per_layer_input_gate": (hidden, extra, layers),
            "per_layer_projection": (extra, hidden, layers),
            "per_layer_model_projection": (hidden, extra * layers, 1),
        }
    return table | (_gemma4(text, hidden, heads, head_dim, kinds) if text.type in _GEMMA4 else {})


def _special_parameters(text: Section, hidden: int, layers: int, positions: int) -> int:
    """Learned positions, and the embeddings that Gemma 3n and 4 have for each layer."""
    found = positions * hidden if text.type in _LEARNED_POSITIONS else 0
    if sizes := text.counts("vocab_size_per_layer_input", "hidden_size_per_layer_input"):
        found += sizes[0] * sizes[1] * layers
    return found


def _delta_net(text: Section, hidden: int, queries: int, recurrent: int, attending: int) -> dict[str, Shape]:
    """Gated DeltaNet and gated attention (Qwen3-Next, Qwen3.5)."""
    sizes = text.counts(
        "linear_num_key_heads", "linear_key_head_dim", "linear_num_value_heads", "linear_value_head_dim"
    )
    if sizes is None:
        return {}
    keys, values = sizes[0] * sizes[1], sizes[2] * sizes[3]
    return {
        "in_proj_qkv": (hidden, 2 * keys + values, recurrent),
        "in_proj_z": (hidden, values, recurrent),
        "in_proj_ba": (hidden, 2 * sizes[2], recurrent),
        "out_proj": (values, hidden, recurrent),
        "q_gate_proj": (hidden, queries, attending),
    }


def _gemma4(text: Section, hidden: int, heads: int, head_dim: int, kinds: list[str]) -> dict[str, Shape]:
    """Wider heads where a layer sees everything; no keys of their own in the last layers, whose MLPs may be wider.

    An MLP stands beside the experts in every layer.
    """
    kv_heads, layers = text.number("num_key_value_heads") or heads, len(kinds)
    shared = text.number("num_kv_shared_layers") or 0
    wide = text.number("global_head_dim") or _GLOBAL_HEAD_DIM
    one_for_both = bool(text.get("attention_k_eq_v"))
    wide_kv_heads = (text.number("num_global_key_value_heads") if one_for_both else None) or kv_heads
    own = kinds[: layers - shared]
    near, far = (sum((kind == "full_attention") == sees for kind in kinds) for sees in (False, True))
    own_near, own_far = (sum((kind == "full_attention") == sees for kind in own) for sees in (False, True))
    width = text.number("intermediate_size") or 4 * hidden
    wider = shared if text.get("use_double_wide_mlp") else 0
    return {
        "q_proj": (hidden, heads * head_dim, near),
        "k_proj": (hidden, kv_heads * head_dim, own_near),
        "v_proj": (hidden, kv_heads * head_dim, own_near),
        "o_proj": (heads * head_dim, hidden, near),
        "global_q_proj": (hidden, heads * wide, far),
        "global_k_proj": (hidden, wide_kv_heads * wide, own_far),
        "global_v_proj": (hidden, wide_kv_heads * wide, 0 if one_for_both else own_far),
        "global_o_proj": (heads * wide, hidden, far),
        "gate_proj": (hidden, width, layers - wider),
        "up_proj": (hidden, width, layers - wider),
        "down_proj": (width, hidden, layers - wider),
        "wide_gate_proj": (hidden, 2 * width, wider),
        "wide_up_proj": (hidden, 2 * width, wider),
        "wide_down_proj": (2 * width, hidden, wider),
    }
