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
    """What about a run decides its memory.

    `max_length` in tokens per row, a picture's included; `batch_size` in rows per GPU and forward pass; `image_size`
    the longest side of a picture in pixels, `images` how many a row has; `eval_batch_size` 0 where nothing is
    evaluated. The `finetune_` flags are those of vision models.
    """

    load_in: Literal["4bit", "16bit"]
    engine: Literal["unsloth", "trl"]
    max_length: int
    batch_size: int
    lora_r: int
    modality: Literal["text", "vision"] = "text"
    image_size: int | None = None
    images: int = 1
    optim: str = "adamw_8bit"
    eval_batch_size: int = 2
    finetune_vision_layers: bool = True
    finetune_language_layers: bool = True
    finetune_attention_modules: bool = True
    finetune_mlp_modules: bool = True


@dataclass(frozen=True, slots=True)
class Footprint:
    """GiB by part, of what is alive when the memory in use is at its highest."""

    parts: dict[str, float]

    @property
    def peak(self) -> float:
        """The sum of the parts, in GiB: what torch's peak allocated memory should read."""
        return sum(self.parts.values())

    @property
    def weights(self) -> float:
        """The frozen model alone, in GiB."""
        return self.parts["weights"]


def reserve(gpu: Gpu) -> float:
    """GiB of a GPU that no run gets: the CUDA context and the allocator's unused blocks."""
    return gpu.memory_gib * _RESERVE_SHARE + _RESERVE_GIB


def available(gpu: Gpu) -> float:
    """GiB of a GPU that a run may plan with: its total less the reserve."""
    return gpu.memory_gib - reserve(gpu)


def footprint(model: Model, setup: Setup, gpu: Gpu | None = None) -> Footprint:
    """The parts of a run's peak VRAM on one GPU (the loss adapts to the card's size; a large one where not given)."""
    tokens = setup.batch_size * setup.max_length
    return Footprint(
        {
            "weights": _weights(model, setup) / GIB,
            "adapter": adapter_parameters(model, setup.lora_r) * _ADAPTER_BYTES / GIB,
            "activations": _activations(model, setup, tokens) / GIB,
            "loss": _logits(model, setup, tokens) / GIB,
        }
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
