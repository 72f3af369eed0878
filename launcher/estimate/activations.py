"""The most that one moment of a step adds to what stays on the GPU, in bytes.

Written for Unsloth's checkpointing: a layer's input goes to host memory, and its activations are computed again when
its gradient is. So only the last layer counts, at its largest moment: inside the MLP, or inside the attention where
that makes a matrix of scores. T tokens of a forward pass, H, I and Q the widths of the hidden states, the MLP and all
query heads: the counts of such tensors are what torch's record of a peak showed (`bench/memory.py`, snapshots).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from launcher.catalog import Gpu, Model
from launcher.catalog.architecture import Arch
from launcher.catalog.vision import VisionTower
from launcher.estimate.setup import Setup, fast, largest_linear

# The embedding, the last hidden state and its gradient; of one layer two normed inputs, the residual and the output.
_HIDDEN = 7
# Attention keeps its inputs and its output, a row padded by so many tokens (`unsloth.utils.attention_dispatch`).
_PADDING = 128
# unsloth_zoo.fused_losses.fused_linear: the logits of so many rows at once, in float32 and in place of their gradients.
_LOSS_ROWS, _LOSS_VOCAB, _LOSS_TILE = (512, 4096), 151936, 256 * 2**20
_SMALL_CARD_GIB = 24.5


def highest(model: Model, setup: Setup, gpu: Gpu | None) -> tuple[str, float]:
    """The moment that needs most, and its bytes."""
    if setup.engine == "trl":
        return "activations", _plain(model, setup)
    trained = setup.batch_size * setup.max_length
    moments = {
        "activations": _layer(model, setup) + _pictures(model, setup),
        "attention": _scores(model, setup),
        "loss": _loss(model, trained, gpu) + _pictures(model, setup),
        "vision": _tower(model, setup),
        "evaluation": _evaluation(model, setup, gpu),
    }
    name = max(moments, key=moments.__getitem__)
    return name, moments[name]


@dataclass(frozen=True, slots=True)
class _Widths:
    """Bytes of one 16-bit tensor: of hidden states, of the MLP, of all queries, of all keys."""

    hidden: float
    mlp: float
    queries: float
    keys: float


def _widths(arch: Arch, tokens: int) -> _Widths:
    width = arch.intermediate_size
    if arch.experts:
        experts = arch.experts
        width = max(experts.active * experts.intermediate_size + experts.shared_intermediate_size, 1)
        width = max(width, arch.intermediate_size if experts.dense_layers else 0)
    unit = 2.0 * tokens
    keys = arch.num_kv_heads * arch.head_dim
    return _Widths(unit * arch.hidden_size, unit * width, unit * arch.num_heads * arch.head_dim, unit * keys)


def _layer(model: Model, setup: Setup) -> float:
    """The backward pass of an MLP, when the gate, the values and the gradient of their product are alive at once."""
    arch, tokens = model.arch, setup.batch_size * setup.max_length
    size = _widths(arch, tokens)
    matrix = 2.0 * largest_linear(model) if setup.load_in == "4bit" else 0.0
    if fast(model, setup):
        norm = (size.queries + size.keys) if arch.qk_norm else 0
        padded = 1 + _PADDING / setup.max_length
        kept = padded * (2 * size.queries + 2 * size.keys) + 4 * tokens * arch.num_heads
        return 3 * size.mlp + matrix + _HIDDEN * size.hidden + size.queries + norm + kept
    # Compiled: Gemma's GELU needs its input and two gradients where SwiGLU's are made in one place; a product of
    # 16-bit weights is kept, where one of 4-bit weights takes the place of the matrix.
    if arch.attention_layers is not None and model.model_type.startswith("lfm2"):
        # The last layer is a short convolution: its three inputs, and what the hidden states need.
        return 4 * size.mlp + matrix + 10 * size.hidden
    mlp = 6 * size.mlp if model.model_type.startswith("gemma3") else (4 if matrix else 5) * size.mlp + matrix
    other = 2.0 * arch.hidden_size * arch.num_heads * arch.head_dim if setup.load_in == "4bit" else 0
    tables = 2 * 4 * tokens * arch.head_dim
    return mlp + other + _HIDDEN * size.hidden + 4 * size.queries + 3 * size.keys + tables


def _scores(model: Model, setup: Setup) -> float:
    """Soft-capped attention (Gemma 2) makes the scores of a whole row: nine 16-bit matrices."""
    arch = model.arch
    if arch.logit_softcap is None or model.model_type != "gemma2":
        return 0.0
    size = _widths(arch, setup.batch_size * setup.max_length)
    scores = 2.0 * setup.batch_size * arch.num_heads * setup.max_length**2
    return 9 * scores + _HIDDEN * size.hidden + 2 * size.queries


def _loss(model: Model, tokens: int, gpu: Gpu | None) -> float:
    """The fused loss: hidden states, their gradient, and the logits of a chunk of rows."""
    arch = model.arch
    size = _widths(arch, tokens)
    low, high = _LOSS_ROWS
    least = min(max(_power_below(low * _LOSS_VOCAB / arch.vocab_size), low), high)
    rows = min(max(_power_below(tokens * arch.hidden_size / arch.vocab_size), least), high, tokens)
    logits = 4.0 * rows * arch.vocab_size
    small = gpu is not None and gpu.memory_gib <= _SMALL_CARD_GIB and gpu.bf16
    if tokens >= high or small:
        logits = min(logits, _LOSS_TILE)
    return 4 * size.hidden + logits + 4.0 * rows * arch.hidden_size


def _power_below(value: float) -> int:
    return 1 << max(int(math.log2(max(value, 1))), 0)


def _pictures(model: Model, setup: Setup) -> float:
    """What the language model's step keeps of the pictures: the tower's position table, outputs and projections."""
    tower = model.vision
    if tower is None or setup.modality != "vision" or setup.image_size is None:
        return 0.0
    hidden = 2.0 * _patches(tower, setup) * tower.hidden_size
    # Qwen 3 interpolates its positions from four neighbours, and taps three layers besides the last.
    kept = 12 * hidden if tower.processor == "qwen2_vl" else 4 * hidden
    states = 2.0 * setup.batch_size * setup.images * tower.states(setup.image_size) * model.arch.hidden_size
    # Llama's tower joins six layers' outputs; each cross-attention layer has keys and values of all its states.
    joined = 6 * hidden if states else 0
    return kept + joined + 3 * states


def _patches(tower: VisionTower, setup: Setup) -> int:
    assert setup.image_size is not None
    return setup.batch_size * setup.images * tower.patches(setup.image_size)


def _tower(model: Model, setup: Setup) -> float:
    """The forward pass of a tower that keeps every layer's output, or the backward pass of a layer that is trained."""
    tower = model.vision
    if tower is None or setup.modality != "vision" or setup.image_size is None:
        return 0.0
    patches = _patches(tower, setup)
    hidden, mlp = 2.0 * patches * tower.hidden_size, 2.0 * patches * tower.intermediate_size
    forward = 0.0
    if tower.processor == "mllama":
        # Its mask is a byte for each pair of patches of a picture.
        mask = float(patches * tower.patches(setup.image_size))
        forward = (tower.num_layers - 1 + 7) * hidden + 3 * mlp + mask
    if not setup.finetune_vision_layers:
        return forward
    text = 2.0 * setup.batch_size * setup.max_length * model.arch.hidden_size
    # The gradient of all the pictures' tokens is there, and what their projections need.
    return max(forward, 5 * mlp + 21 * hidden + 2 * text)


def _evaluation(model: Model, setup: Setup, gpu: Gpu | None) -> float:
    """A forward pass of the evaluation's batch: a layer's MLP and the chunk of logits; nothing is kept for later."""
    tokens = setup.eval_batch_size * setup.max_length
    if not tokens:
        return 0.0
    size = _widths(model.arch, tokens)
    matrix = 2.0 * largest_linear(model) if setup.load_in == "4bit" else 0.0
    return max(3 * size.mlp + 3 * size.hidden + matrix, _loss(model, tokens, gpu))


def _plain(model: Model, setup: Setup) -> float:
    """TRL with PEFT: every layer's input stays, the MLP's parts are separate, and adapters keep inputs in float32."""
    tokens = setup.batch_size * setup.max_length
    size = _widths(model.arch, tokens)
    matrix = 2.0 * largest_linear(model) if setup.load_in == "4bit" else 0.0
    kept = model.arch.num_layers * size.hidden
    logits = 10.0 * min(tokens, 4096) * model.arch.vocab_size
    return kept + max(8 * size.mlp + 12 * size.hidden + 5 * size.queries + matrix, logits) + _pictures(model, setup)
