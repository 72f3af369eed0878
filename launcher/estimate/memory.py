"""Peak VRAM of a run, as a pure function of the model's dimensions and the training setup.

What lies on the GPU all the time (`_resident`) plus the most that a moment of a step adds to it (`activations`). Every
term was read off torch's own record of what was allocated when most was in use, for whole models on an H100; the runs
are in `bench/measurements.csv`, and a test holds the formula to them. The engine "trl" is from theory alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from launcher.catalog import Gpu, Model
from launcher.estimate import activations
from launcher.estimate.setup import GIB, MEASURED_TYPES, Setup, fast, largest_linear

# NF4 weights are half a byte each, plus one absmax per 64 weights, itself quantised to a byte per 256 (double
# quantisation, QLoRA, arXiv 2305.14314). Unsloth's plain 4-bit uploads have this size to 0.02 %.
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
# Its "dynamic" uploads keep some layers in 16 bits: the eight whose size is known are 5 to 36 % larger, mostly 13 %.
_DYNAMIC_UPLOAD = 1.13
# Towers that Unsloth quantises with the language model: what it leaves in 16 bits it knows by a module's name
# (`unsloth_zoo.peft_utils.SKIP_QUANTIZATION_MODULES`), and these are a `vision_model`.
_QUANTISED_TOWERS = ("mllama", "idefics3")
# An adapter's weights and their gradients are float32 in Unsloth, whatever the model's own type.
_ADAPTER_BYTES = _GRADIENT_BYTES = 4
# Two moments a weight: one byte each and a float32 per 256 of them (bitsandbytes' blockwise Adam), or float32. Paged
# ones lie in host memory, where torch does not count them.
_MOMENT_BYTES = {"adamw_8bit": 2 + 2 * 4 / 256, "adamw_torch": 8.0, "paged_adamw_8bit": 0.0}
# cuBLAS: two workspaces of 32 MiB, and what is small.
_WORKSPACE = 67 * 2**20
# Unsloth moves a layer's input to host memory where it is larger than this, through two buffers of its size.
_OFFLOADED_FROM = 2 * 2**20
# The CUDA context and blocks that the allocator can't use: not counted by torch, but not free either. An assumption.
_RESERVE_GIB = 0.8
_RESERVE_SHARE = 0.04


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
    moment, extra = activations.highest(model, setup, gpu)
    parts = _resident(model, setup) | {moment: extra}
    return Footprint({name: size / GIB for name, size in parts.items() if size})


def adapter_parameters(model: Model, setup: Setup) -> int:
    """Weights of the LoRA adapter: rank * (inputs + outputs) for each linear layer that it is on."""
    return setup.lora_r * (_language_adapter(model, setup) + _vision_adapter(model, setup))


def weights(model: Model, load_in: str) -> float:
    """Bytes of the frozen model as it is loaded."""
    if load_in == "16bit":
        return 2.0 * model.params
    if model.quantized and model.bytes_4bit:
        return float(model.bytes_4bit)
    linear = model.arch.linear_parameters()
    if model.vision and model.vision.processor in _QUANTISED_TOWERS:
        linear += model.vision.linear_parameters()
    # The embedding, the output head, norms and most towers stay in 16 bits.
    plain = linear * NF4_BYTES + max(model.params - linear, 0) * 2.0
    return plain * (_DYNAMIC_UPLOAD if is_dynamic(model) else 1)


def is_dynamic(model: Model) -> bool:
    """Whether it is an upload that keeps some layers in 16 bits and nobody said how many bytes that makes."""
    return bool(model.quantized) and not model.bytes_4bit and model.repo.endswith("-unsloth-bnb-4bit")


def doubts(model: Model, setup: Setup) -> tuple[str, ...]:
    """What this estimate stands on that was not measured, as sentences without a capital and a full stop."""
    found = []
    if setup.engine == "trl":
        found.append("the memory of plain TRL is from theory, not measured")
    elif model.model_type not in MEASURED_TYPES[setup.modality]:
        found.append(f"no {model.model_type} was measured: its memory is taken to be like that of those that were")
    if setup.load_in == "4bit" and is_dynamic(model):
        found.append(f"the size of {model.repo} is assumed, {_DYNAMIC_UPLOAD - 1:.0%} above plain 4 bits")
    return tuple(found)


def _resident(model: Model, setup: Setup) -> dict[str, float]:
    """Bytes that stay through every step."""
    adapter = adapter_parameters(model, setup)
    return {
        "weights": weights(model, setup.load_in),
        "adapter": _ADAPTER_BYTES * adapter,
        "gradients": _GRADIENT_BYTES * adapter,
        "optimizer": _MOMENT_BYTES.get(setup.optim, 8.0) * adapter,
        "buffers": _buffers(model, setup),
    }


def _buffers(model: Model, setup: Setup) -> float:
    """Where a layer's input comes back to, a dequantised matrix and its scales, the rotary tables, cuBLAS."""
    arch = model.arch
    # One workspace and one buffer were seen with LFM2, two of each with all others.
    copies = 1 if model.model_type.startswith("lfm2") else 2
    total = copies / 2 * _WORKSPACE
    if setup.engine == "unsloth":
        layer_input = 2.0 * setup.batch_size * setup.max_length * arch.hidden_size
        total += copies * layer_input if layer_input > _OFFLOADED_FROM else 0
        if fast(model, setup):
            total += 4.0 * arch.max_position * arch.head_dim
            if setup.load_in == "4bit":
                total += largest_linear(model) * 2 * (1 + 1 / 32)
    return total


def _language_adapter(model: Model, setup: Setup) -> int:
    if setup.modality == "vision" and not setup.finetune_language_layers:
        return 0
    arch, experts, total = model.arch, model.arch.experts, 0
    for name, (inputs, outputs, count) in arch.linears().items():
        wanted = setup.finetune_mlp_modules if _is_mlp(name) else setup.finetune_attention_modules
        total += (inputs + outputs) * count * (wanted or setup.modality == "text")
    if experts is not None and (setup.finetune_mlp_modules or setup.modality == "text"):
        layers = (arch.num_layers - experts.dense_layers) * experts.num
        total += layers * 3 * (arch.hidden_size + experts.intermediate_size)
    return total


def _is_mlp(name: str) -> bool:
    return any(word in name for word in ("gate", "up_proj", "down", "mlp", "fc"))


def _vision_adapter(model: Model, setup: Setup) -> int:
    tower = model.vision
    if tower is None or setup.modality != "vision" or not setup.finetune_vision_layers:
        return 0
    hidden, width = tower.hidden_size, tower.intermediate_size
    # Qwen's towers have one matrix for queries, keys and values; Pixtral's MLPs have a gate.
    attention = (4 if tower.processor == "qwen2_vl" else 6) * hidden + 2 * hidden
    mlp = (3 if tower.processor == "pixtral" else 2) * (hidden + width)
    layer = attention * setup.finetune_attention_modules + mlp * setup.finetune_mlp_modules
    return tower.num_layers * layer
