"""How fast a card trains, as pure functions: FLOPs and bytes of a forward and backward pass, and the host's own time.

One micro-step takes the GPU its arithmetic, its memory traffic and the dequantisation of 4-bit weights; and it takes
the host the time to launch the kernels of every layer, whatever is in them, which bounds small batches. Both run at the
same time, so the longer one counts. The coefficients are fitted by `bench/fit_speed.py` on an H100; other cards follow
from what matrix products reach on them, else from their published dense peak, and from their bandwidth.

Sources: 2 FLOPs per weight and token forward, 2 for the gradient of the activations, 2 for the forward pass that
checkpointing repeats (Kaplan et al., arXiv 2001.08361; Chen et al., arXiv 1604.06174); attention after FlashAttention-2
(arXiv 2307.08691): 2 matrix products forward, 5 backward, half of each where it is causal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from launcher.catalog import Gpu, Model
from launcher.estimate.memory import adapter_parameters
from launcher.estimate.setup import Setup

# The share of the matrix products' rate and of the bandwidth that are reached: fitted on 31 micro-steps (H100, 24
# November 2026, bench/speed.py), those of 8,192 tokens and more of Qwen3-4B to 6 %. The host's seconds for one layer's
# passes, and for one layer and row where attention is launched row by row: from Qwen3-4B through the whole script on
# the same card with torch 2.11, which attends so (batch 2, 8 and packed: 1, 10 and 13 % off). Blocks that Unsloth
# compiles whole, which it does for padded batches only, took 0.0098 s a layer.
COEFFICIENTS = {"compute_share": 0.73, "bandwidth_share": 0.71, "layer_s": 0.0142, "row_s": 0.0012}
# Of its dense peak, what an H100's matrix products reach (788 of 989 TFLOP/s), for cards where it was not measured.
_MATMUL_SHARE = 0.8
# Rows without padding attend row by row where torch's variable-length kernel does not run (Unsloth's
# attention_dispatch): below torch 2.12, which the scripts are above, and on cards before this capability.
_VARLEN_CAPABILITY = 8.0
# How sharply the longer of host and GPU decides: two that are equal take 2 ** (1 / 4) as long as one.
_OVERLAP = 4
# Measured (H100, 24 November 2026, bench/speed.py): the host's share of a micro-step for the forward pass alone, and
# the 8-bit optimizer's seconds for one tensor: 20 to 34 ms for Qwen3-4B's 504.
_FORWARD_HOST_SHARE = 0.3
_OPTIMIZER_TENSOR_S = 5e-5
# Reads and writes of a value of that width by the element-wise kernels of one layer and pass: norms, rotary embedding,
# residuals, LoRA's additions; and the gate. Counted in transformers' Qwen3 and Unsloth's kernels, not measured.
_HIDDEN_PASSES, _WIDE_PASSES = 16, 8
# A 4-bit weight is read as half a byte, written as two, and read again by the matrix product.
_DEQUANTISE_BYTES = 0.5 + 2 + 2
# Plain TRL and PEFT, without Unsloth's kernels: assumed, for comparison only; the launcher never runs it.
_ENGINE_SLOWDOWN = {"unsloth": 1.0, "trl": 1.6}
# Measured: SmolLM2-135M reaches 144 to 256 tokens a second on two cores that `offers` takes for 0.4 TFLOP/s each.
_CPU_SHARE = 0.2
# The H100 and the H200 are one chip.
_MEASURED_CAPABILITY = "9.0"
# How much longer than the mean the longest row of a batch is, for each doubling of the batch. Assumed: log-normal
# lengths with a sigma of 0.7; rows with pictures differ by their text only.
_LONGEST = {"text": 0.44, "vision": 0.1}


@dataclass(frozen=True, slots=True)
class Batch:
    """What one forward pass is given: `rows` of `length` tokens each, which attend to none but themselves.

    `by_row` says that each row's attention is launched for itself.
    """

    rows: float
    length: float
    by_row: bool = False

    @property
    def tokens(self) -> float:
        """Tokens in all."""
        return self.rows * self.length


def is_measured(gpu: Gpu, setup: Setup) -> bool:
    """Whether the speed was measured: text under Unsloth on the H100's chip; all else is derived from it."""
    return (gpu.compute_capability, setup.engine, setup.modality) == (_MEASURED_CAPABILITY, "unsloth", "text")


def is_cpu(gpu: Gpu) -> bool:
    """Whether this is a CPU in the terms of a GPU."""
    return not gpu.compute_capability


def optimizer_step(
    model: Model, gpu: Gpu, setup: Setup, rows: int, tokens_per_row: float, packed: float = 1
) -> float:  # fmt: skip
    """Seconds of one optimizer step on `rows` rows, in micro-steps of the setup's batch.

    `packed` is how many of the dataset's rows one of them holds.
    """
    if is_cpu(gpu):
        per_token = 6 * model.arch.active_linear_parameters()
        return rows * tokens_per_row * per_token / (gpu.bf16_tflops * 1e12 * _CPU_SHARE)
    size = min(setup.batch_size, rows)
    batch = _batch(gpu, setup, size * packed, padded(setup, size, tokens_per_row) / packed)
    micro = micro_step(model, gpu, setup, batch)
    tensors = 2 * sum(count for _, _, count in model.arch.linears().values())
    return micro * rows / size + tensors * _OPTIMIZER_TENSOR_S


def padded(setup: Setup, size: int, tokens_per_row: float) -> float:
    """Tokens that a row takes up in a batch: its own in text batches of Unsloth, which have no padding."""
    if setup.engine == "unsloth" and setup.modality == "text":
        return tokens_per_row
    longest = tokens_per_row * (1 + _LONGEST[setup.modality] * math.log2(size))
    return max(tokens_per_row, min(longest, setup.max_length))


def evaluation(model: Model, gpu: Gpu, setup: Setup, rows: int, tokens_per_row: float) -> float:
    """Seconds of one evaluation: forward passes only."""
    if is_cpu(gpu):
        return optimizer_step(model, gpu, setup, rows, tokens_per_row) / 3
    size = max(setup.eval_batch_size, 1)
    batch = _batch(gpu, setup, size, padded(setup, size, tokens_per_row))
    host, card = _FORWARD_HOST_SHARE * host_seconds(model, setup, batch), gpu_seconds(model, gpu, setup, batch) / 3
    return math.ceil(rows / size) * _longer(host, card)


def micro_step(model: Model, gpu: Gpu, setup: Setup, batch: Batch, fitted: dict[str, float] = COEFFICIENTS) -> float:
    """Seconds of one forward and backward pass."""
    return _longer(host_seconds(model, setup, batch, fitted), gpu_seconds(model, gpu, setup, batch, fitted))


def host_seconds(model: Model, setup: Setup, batch: Batch, fitted: dict[str, float] = COEFFICIENTS) -> float:
    """Seconds that the host launches kernels for one forward and backward pass."""
    layers = model.arch.num_layers + (model.vision.num_layers if model.vision and setup.modality == "vision" else 0)
    by_row = batch.rows * fitted["row_s"] if batch.by_row else 0
    return layers * (fitted["layer_s"] + by_row) * _ENGINE_SLOWDOWN[setup.engine]


def gpu_seconds(
    model: Model, gpu: Gpu, setup: Setup, batch: Batch, fitted: dict[str, float] = COEFFICIENTS
) -> float:  # fmt: skip
    """Seconds that the GPU computes for one forward and backward pass: its arithmetic and its memory traffic."""
    flops = batch.tokens * flops_per_token(model, setup, batch.length) + batch.rows * flops_of_pictures(model, setup)
    reached = gpu.matmul_tflops or gpu.bf16_tflops * _MATMUL_SHARE
    compute = flops / (reached * 1e12 * fitted["compute_share"])
    moved = batch.tokens * _bytes_per_token(model) + 3 * _weight_bytes(model, setup)
    return (compute + moved / (gpu.bandwidth_gbs * 1e9 * fitted["bandwidth_share"])) * _ENGINE_SLOWDOWN[setup.engine]


def flops_per_token(model: Model, setup: Setup, length: float) -> float:
    """FLOPs for one token of a row of that length: forward, recomputed forward, backward."""
    arch = model.arch
    head = arch.embedding_parameters(1)
    layers = 6 * (arch.active_linear_parameters() - head)
    # The fused loss computes the logits once and their gradient once, and nothing is recomputed.
    loss = 4 * head
    adapter = 8 * _active_adapter(model, setup)
    seen = min(length, arch.sliding_window or length)
    attending = arch.num_layers if arch.attention_layers is None else arch.attention_layers
    # Forward 2 products, again 2, backward 5: each 2 * seen / 2 FLOPs per head dimension, as half is masked.
    attention = 9 * attending * arch.num_heads * arch.head_dim * seen
    return layers + loss + adapter + attention


def flops_of_pictures(model: Model, setup: Setup) -> float:
    """FLOPs of one row's pictures in the vision tower: three passes where it trains, else one."""
    if model.vision is None or setup.modality != "vision" or not setup.image_size:
        return 0
    tower, patches = model.vision, model.vision.patches(setup.image_size)
    weights = 2 * tower.params * patches
    attention = 4 * tower.num_layers * tower.hidden_size * patches**2
    return setup.images * (weights + attention) * (3 if setup.finetune_vision_layers else 1)


def _batch(gpu: Gpu, setup: Setup, rows: float, length: float) -> Batch:
    without_padding = setup.engine == "unsloth" and setup.modality == "text"
    return Batch(rows, length, by_row=without_padding and float(gpu.compute_capability) < _VARLEN_CAPABILITY)


def _active_adapter(model: Model, setup: Setup) -> float:
    """Adapter parameters that one token passes through."""
    arch = model.arch
    plain = sum((inputs + outputs) * count for inputs, outputs, count in arch.linears().values())
    return min(adapter_parameters(model, setup), setup.lora_r * plain * (2 if arch.experts else 1))


def _bytes_per_token(model: Model) -> float:
    """Bytes that element-wise kernels move for one token in three passes of all layers."""
    arch = model.arch
    width = arch.intermediate_size if arch.experts is None else arch.experts.active * arch.experts.intermediate_size
    return 3 * arch.num_layers * 2 * (_HIDDEN_PASSES * arch.hidden_size + _WIDE_PASSES * width)


def _weight_bytes(model: Model, setup: Setup) -> float:
    """Bytes of weights that one pass reads, dequantised first where they are in 4 bits."""
    return model.arch.linear_parameters() * (_DEQUANTISE_BYTES if setup.load_in == "4bit" else 2)


def _longer(host: float, card: float) -> float:
    return float((host**_OVERLAP + card**_OVERLAP) ** (1 / _OVERLAP))
