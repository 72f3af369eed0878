"""The linear layers that only some families have, and what else of them is large, from their config's text."""

from __future__ import annotations

from launcher.catalog.architecture import Shape
from launcher.catalog.config_section import Section

_LEARNED_POSITIONS = {"gpt2", "gpt_bigcode", "gpt_neo", "opt", "biogpt"}
_GEMMA4 = {"gemma4_text", "gemma4_unified_text"}
_GLOBAL_HEAD_DIM = 512  # of Gemma 4's layers that see everything, where its config says nothing


def special_linears(text: Section, hidden: int, heads: int, head_dim: int, kinds: list[str]) -> dict[str, Shape]:
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


def special_parameters(text: Section, hidden: int, layers: int, positions: int) -> int:
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
