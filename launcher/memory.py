"""Peak VRAM of a run, as a pure function of the model's dimensions and the training setup.

Deliberately simple: rounded up, good to about a quarter. Sources: QLoRA (arXiv 2305.14314) for the quantised weights,
`peft.LoraConfig` for the adapter's shapes, `unsloth_zoo.gradient_checkpointing` for what stays on the GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from launcher.catalog import Gpu, Model

GIB = 2**30

# NF4 weights are half a byte each, plus one absmax per 64 weights, itself quantised to a byte per 256 (double
# quantisation): 0.5 + 1/64 + 4/(64 * 256) bytes.
_NF4_BYTES = 0.516
# An adapter weight trains in float32 with its gradient and two 8-bit Adam moments.
_ADAPTER_BYTES = 4 + 4 + 2
# The CUDA context and the allocator's unused blocks: not torch's allocations, but not free either.
_RESERVE_GIB = 0.8
_RESERVE_SHARE = 0.04


@dataclass(frozen=True, slots=True)
class Setup:
    """What about a run decides its memory; lengths in tokens, batch in rows per GPU and forward pass."""

    load_in: Literal["4bit", "16bit"]
    engine: Literal["unsloth", "trl"]
    max_length: int
    batch_size: int
    lora_r: int


@dataclass(frozen=True, slots=True)
class Footprint:
    """GiB by part; `peak` is what torch's peak allocated memory should read."""

    weights: float
    adapter: float
    activations: float
    logits: float

    @property
    def peak(self) -> float:
        """The sum of the parts, in GiB."""
        return self.weights + self.adapter + self.activations + self.logits


def available(gpu: Gpu) -> float:
    """GiB of a GPU that a run may plan with: its total less the CUDA context and fragmentation."""
    return gpu.memory_gib * (1 - _RESERVE_SHARE) - _RESERVE_GIB


def footprint(model: Model, setup: Setup) -> Footprint:
    """The parts of a run's peak VRAM on one GPU."""
    tokens = setup.batch_size * setup.max_length
    return Footprint(
        weights=_weights(model, setup) / GIB,
        adapter=adapter_parameters(model, setup.lora_r) * _ADAPTER_BYTES / GIB,
        activations=_activations(model, setup, tokens) / GIB,
        logits=_logits(model, setup, tokens) / GIB,
    )


def adapter_parameters(model: Model, rank: int) -> int:
    """Parameters of a LoRA adapter on every linear layer: rank * (inputs + outputs) each."""
    experts = model.arch.experts
    plain = sum((inputs + outputs) * count for inputs, outputs, count in model.arch.linears().values())
    if experts is None:
        return rank * plain
    layers = (model.arch.num_layers - experts.dense_layers) * experts.num
    return rank * (plain + layers * 3 * (model.arch.hidden_size + experts.intermediate_size))


def _weights(model: Model, setup: Setup) -> float:
    linear = model.arch.linear_parameters()
    rest = max(model.params - linear, 0)
    return linear * (_NF4_BYTES if setup.load_in == "4bit" else 2) + rest * 2


def _activations(model: Model, setup: Setup, tokens: int) -> float:
    """One layer's recomputed activations; with plain checkpointing also every layer's kept input (2 bytes each)."""
    arch = model.arch
    width = arch.intermediate_size if arch.experts is None else arch.experts.active * arch.experts.intermediate_size
    layer = 2 * tokens * (16 * arch.hidden_size + 8 * max(width, arch.hidden_size))
    kept = 2 * tokens * arch.hidden_size * arch.num_layers
    return layer + (kept if setup.engine == "trl" else 0)


def _logits(model: Model, setup: Setup, tokens: int) -> float:
    """Unsloth's fused loss keeps a chunk of the logits; plain TRL keeps all of them, in float32 and with gradients."""
    if setup.engine == "trl":
        return 10 * tokens * model.arch.vocab_size
    return 10 * min(tokens, 2048) * model.arch.vocab_size
