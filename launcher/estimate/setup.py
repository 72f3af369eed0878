"""What about a run decides its memory and its speed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from launcher.catalog import Model

GIB = 2**30

# Architectures that Unsloth trains with kernels of its own (`unsloth.models.loader`); the rest it compiles.
FAST_TYPES = ("llama", "mistral", "gemma", "gemma2", "qwen2", "qwen3")
# Those with rows in `bench/measurements.csv`; a test holds the two together.
MEASURED_TYPES = {
    "text": ("llama", "mistral", "gemma2", "qwen2", "qwen3", "gemma3_text", "lfm2"),
    "vision": ("gemma3", "llava", "mllama", "qwen3_vl"),
}


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


def fast(model: Model, setup: Setup) -> bool:
    """Whether Unsloth's own kernels train it: text models of a few architectures."""
    return setup.modality == "text" and model.model_type in FAST_TYPES


def largest_linear(model: Model) -> int:
    """Weights of the largest matrix that is dequantised as a whole."""
    return max(inputs * outputs for inputs, outputs, _ in model.arch.linears().values())
