"""The dimensions of a model that decide its size, and how to read them from a `config.json`."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from launcher.errors import RequestError


class Experts(BaseModel):
    """Mixture of experts: `active` of `num` see a token; `dense_layers` at the start have an ordinary MLP."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num: int
    active: int
    intermediate_size: int
    dense_layers: int = 0


class Arch(BaseModel):
    """A decoder's dimensions, in the names of transformers' configs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position: int
    tied_embeddings: bool = False
    attention_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    logit_softcap: float | None = None
    attention_layers: int | None = None
    """How many of `num_layers` attend (the rest are short convolutions); all where not given."""
    conv_kernel: int = 3
    cross_attention_layers: int = 0
    """How many of `num_layers` attend to the image instead of the text."""
    experts: Experts | None = None

    def linears(self) -> dict[str, tuple[int, int, int]]:
        """Each kind of linear layer outside the experts: (inputs, outputs, how many in the whole model)."""
        attending = self.num_layers if self.attention_layers is None else self.attention_layers
        convolving = self.num_layers - attending
        dense = self.experts.dense_layers if self.experts else self.num_layers
        hidden, queries, keys = self.hidden_size, self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        table = {
            "q_proj": (hidden, queries, attending),
            "k_proj": (hidden, keys, attending),
            "v_proj": (hidden, keys, attending),
            "o_proj": (queries, hidden, attending),
            "gate_proj": (hidden, self.intermediate_size, dense),
            "up_proj": (hidden, self.intermediate_size, dense),
            "down_proj": (self.intermediate_size, hidden, dense),
            "in_proj": (hidden, 3 * hidden, convolving),
            "conv_out_proj": (hidden, hidden, convolving),
        }
        return {name: shape for name, shape in table.items() if shape[2]}

    def linear_parameters(self) -> int:
        """Parameters in linear layers, experts included: what 4-bit loading quantises."""
        plain = sum(inputs * outputs * count for inputs, outputs, count in self.linears().values())
        return plain + self._expert_parameters(self.experts.num if self.experts else 0)

    def active_linear_parameters(self) -> int:
        """Parameters in linear layers that one token passes through, the output head included."""
        plain = sum(inputs * outputs * count for inputs, outputs, count in self.linears().values())
        return (
            plain + self._expert_parameters(self.experts.active if self.experts else 0) + self.embedding_parameters(1)
        )

    def embedding_parameters(self, copies: int | None = None) -> int:
        """Parameters of the token embedding and, where it is not the same tensor, of the output head."""
        return self.vocab_size * self.hidden_size * (copies or (1 if self.tied_embeddings else 2))

    def parameters(self) -> int:
        """All parameters but the norms and biases, which are less than one in a thousand."""
        return self.linear_parameters() + self.embedding_parameters()

    def _expert_parameters(self, experts: int) -> int:
        if self.experts is None:
            return 0
        layers = self.num_layers - self.experts.dense_layers
        return layers * (3 * experts * self.experts.intermediate_size + self.experts.num) * self.hidden_size


class VisionTower(BaseModel):
    """What turns an image into language-model tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    patch_size: int
    merge_size: int = 1
    image_size: int | None = None
    """The fixed side in pixels; none where any resolution is taken."""
    tokens_per_image: int | None = None
    params: int


_UNKNOWN_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_TARGETS = {
    "lfm2": ("q_proj", "k_proj", "v_proj", "out_proj", "in_proj", "w1", "w2", "w3"),
    "lfm2_moe": ("q_proj", "k_proj", "v_proj", "out_proj", "in_proj", "w1", "w2", "w3"),
}


def lora_targets(config: dict[str, Any]) -> tuple[str, ...]:
    """The linear layers an adapter goes on, by the config's `model_type`."""
    return _TARGETS.get(str(config.get("model_type")), _UNKNOWN_TARGETS)


def is_vision(config: dict[str, Any]) -> bool:
    """Whether a config describes a model that sees."""
    return isinstance(config.get("vision_config"), dict)


def from_config(config: dict[str, Any], name: str) -> Arch:
    """Read a `config.json`; `name` is for the message of the `RequestError` where a needed dimension is missing."""
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    assert isinstance(text, dict)

    def need(*keys: str) -> int:
        for key in keys:
            value = text.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
        raise RequestError(
            f"the config.json of {name} does not say {' or '.join(keys)}, so its memory can't be planned.",
            "Use a causal language model in transformers' format; `launch models` lists the ones that are known.",
        )

    hidden, heads = need("hidden_size", "n_embd"), need("num_attention_heads", "n_head")
    layers = need("num_hidden_layers", "n_layer")
    kinds = text.get("layer_types")
    attending = sum("attention" in str(kind) for kind in kinds) if isinstance(kinds, list) else layers
    return Arch(
        hidden_size=hidden,
        intermediate_size=_adjusted(
            text, need("intermediate_size", "block_ff_dim", "ffn_dim", "moe_intermediate_size")
        ),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=text.get("num_key_value_heads") or heads,
        head_dim=text.get("head_dim") or hidden // heads,
        vocab_size=need("vocab_size"),
        max_position=need("max_position_embeddings", "n_positions"),
        tied_embeddings=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
        attention_bias=bool(text.get("attention_bias", False)),
        attention_layers=attending if attending != layers else None,
        experts=_experts(text),
    )


def _adjusted(text: dict[str, Any], width: int) -> int:
    """LFM2's configs give the width before its own rounding (transformers' `Lfm2MLP`): two thirds, up to a multiple."""
    if not text.get("block_auto_adjust_ff_dim"):
        return width
    multiple = int(text.get("block_multiple_of") or 256)
    return -(-int((text.get("block_ffn_dim_multiplier") or 1) * int(2 * width / 3)) // multiple) * multiple


def _experts(text: dict[str, Any]) -> Experts | None:
    num = text.get("num_experts") or text.get("num_local_experts") or text.get("n_routed_experts")
    if not isinstance(num, int):
        return None
    return Experts(
        num=num,
        active=int(text.get("num_experts_per_tok") or 1),
        intermediate_size=int(text.get("moe_intermediate_size") or text["intermediate_size"]),
        dense_layers=int(text.get("num_dense_layers") or text.get("first_k_dense_replace") or 0),
    )
