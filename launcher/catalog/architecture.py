"""The dimensions of a model that decide its size, and how many parameters follow from them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

Shape = tuple[int, int, int]
"""A kind of linear layer: inputs, outputs, how many of them the whole model has."""


class _Dimensions(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Experts(_Dimensions):
    """Mixture of experts: `active` of `num` see a token; `dense_layers` of the model have an ordinary MLP instead."""

    num: int
    active: int
    intermediate_size: int
    dense_layers: int = 0
    shared_intermediate_size: int = 0
    """Width of the experts that every token passes, all of a layer together."""


class Latent(_Dimensions):
    """Multi-head latent attention (DeepSeek): queries, keys and values through narrow projections."""

    q_rank: int | None
    kv_rank: int
    nope_head_dim: int
    rope_head_dim: int
    value_head_dim: int


class Arch(_Dimensions):
    """A decoder's dimensions, in the names of transformers' configs."""

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
    """How many of `num_layers` attend; all where not given. The rest are short convolutions or recurrent."""
    recurrent_layers: int = 0
    conv_kernel: int = 3
    cross_attention_layers: int = 0
    """How many of `num_layers` attend to the image instead of the text."""
    gated_mlp: bool = True
    """Three matrices in an MLP; two where not."""
    latent: Latent | None = None
    experts: Experts | None = None
    other_linears: dict[str, Shape] = {}
    """Linear layers that the dimensions above don't give, as those of recurrent layers."""
    other_parameters: int = 0
    """Parameters that are in no linear layer and no embedding of the vocabulary, where they are many."""

    def linears(self) -> dict[str, Shape]:
        """Each kind of linear layer outside the experts: (inputs, outputs, how many in the whole model)."""
        attending = self.num_layers if self.attention_layers is None else self.attention_layers
        convolving = self.num_layers - attending - self.recurrent_layers
        dense = self.experts.dense_layers if self.experts else self.num_layers
        hidden, width = self.hidden_size, self.intermediate_size
        shared = self.experts.shared_intermediate_size if self.experts else 0
        routed = self.num_layers - dense if shared else 0
        table = {
            **(self._latent_linears(self.latent) if self.latent else self._attention_linears(attending)),
            "gate_proj": (hidden, width, dense if self.gated_mlp else 0),
            "up_proj": (hidden, width, dense),
            "down_proj": (width, hidden, dense),
            "shared_gate_proj": (hidden, shared, routed),
            "shared_up_proj": (hidden, shared, routed),
            "shared_down_proj": (shared, hidden, routed),
            "in_proj": (hidden, 3 * hidden, convolving),
            "conv_out_proj": (hidden, hidden, convolving),
            **self.other_linears,
        }
        return {name: shape for name, shape in table.items() if shape[2]}

    def linear_parameters(self) -> int:
        """Parameters in linear layers, experts included: what 4-bit loading quantises."""
        return self._plain_linear_parameters() + self._expert_parameters(self.experts.num if self.experts else 0)

    def active_linear_parameters(self) -> int:
        """Parameters in linear layers that one token passes through, the output head included."""
        experts = self._expert_parameters(self.experts.active if self.experts else 0)
        return self._plain_linear_parameters() + experts + self.embedding_parameters(1)

    def embedding_parameters(self, copies: int | None = None) -> int:
        """Parameters of the token embedding and, where it is not the same tensor, of the output head."""
        return self.vocab_size * self.hidden_size * (copies or (1 if self.tied_embeddings else 2))

    def parameters(self) -> int:
        """All parameters but the norms and biases, which are less than one in a hundred."""
        return self.linear_parameters() + self.embedding_parameters() + self.other_parameters

    def _attention_linears(self, attending: int) -> dict[str, Shape]:
        hidden, queries, keys = self.hidden_size, self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return {
            "q_proj": (hidden, queries, attending),
            "k_proj": (hidden, keys, attending),
            "v_proj": (hidden, keys, attending),
            "o_proj": (queries, hidden, attending),
        }

    def _latent_linears(self, latent: Latent) -> dict[str, Shape]:
        hidden, layers, heads = self.hidden_size, self.num_layers, self.num_heads
        queries = heads * (latent.nope_head_dim + latent.rope_head_dim)
        return {
            "q_proj": (hidden, queries, 0 if latent.q_rank else layers),
            "q_a_proj": (hidden, latent.q_rank or 0, layers if latent.q_rank else 0),
            "q_b_proj": (latent.q_rank or 0, queries, layers if latent.q_rank else 0),
            "kv_a_proj_with_mqa": (hidden, latent.kv_rank + latent.rope_head_dim, layers),
            "kv_b_proj": (latent.kv_rank, heads * (latent.nope_head_dim + latent.value_head_dim), layers),
            "o_proj": (heads * latent.value_head_dim, hidden, layers),
        }

    def _plain_linear_parameters(self) -> int:
        return sum(inputs * outputs * count for inputs, outputs, count in self.linears().values())

    def _expert_parameters(self, experts: int) -> int:
        if self.experts is None:
            return 0
        layers = self.num_layers - self.experts.dense_layers
        return layers * (3 * experts * self.experts.intermediate_size + self.experts.num) * self.hidden_size
