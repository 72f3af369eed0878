"""What a model's files say of it: whether it can be trained here, its precision, and the size of its weights."""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from launcher.catalog.config_section import Json, known, part
from launcher.errors import RequestError

Quantized = Literal["bnb-4bit"]

_BITS = {"F64": 64, "I64": 64, "F32": 32, "I32": 32, "F16": 16, "BF16": 16, "I16": 16, "F4": 4}
# A 4-bit weight is half a byte, and one byte of scale for 64 of them (bitsandbytes, nested quantisation).
_U8_PER_WEIGHT = 1 / 2 + 1 / 64
_LARGEST_SIDE = 2**40
_HEADER_LIMIT = 100_000_000  # of the safetensors format
_UNPACKED = {
    "fp8": "8-bit floats", "fbgemm_fp8": "8-bit floats", "compressed-tensors": "a compressed format", "mxfp4": "MXFP4",
}  # fmt: skip
_TRAINED = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForVision2Seq", "ForImageTextToText")


@dataclass(frozen=True, slots=True)
class Weights:
    """The tensors of a model's safetensors files.

    `parameters` counts what 4-bit tensors stand for; `bytes_total` is the size of the files' tensors, `loaded_bytes`
    what they take on a GPU when they are loaded as they are (anything that is not 4-bit in 16 bits); `base` the repo
    that the model card says they were made from.
    """

    parameters: int
    bytes_total: int
    loaded_bytes: int
    base: str | None = None


def count(elements: dict[str, int], *, four_bits: bool, base: str | None = None) -> Weights:
    """Read the number of elements by dtype, as the Hub gives it; `four_bits` where bitsandbytes wrote them."""
    total = sum(number * _BITS.get(dtype, 8) // 8 for dtype, number in elements.items())
    if not four_bits:
        number = sum(elements.values())
        return Weights(number, total, 2 * number, base)
    # In such files the 32-bit floats are the scales' scales, which stay so.
    packed, scales = elements.get("U8", 0), elements.get("F32", 0)
    plain = sum(number for dtype, number in elements.items() if dtype in ("F16", "BF16"))
    return Weights(round(packed / _U8_PER_WEIGHT) + plain, total, packed + 4 * scales + 2 * plain, base)


def read_folder(folder: Path, *, four_bits: bool) -> Weights | None:
    """The weights of a folder that `save_pretrained` wrote, from the headers of its files; none without any."""
    paths = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.safetensors"))
    elements: Counter[str] = Counter()
    try:
        for path in paths:
            for tensor in _header(path):
                elements[tensor["dtype"]] += _product(tensor["shape"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise RequestError(
            f"{path} can't be read as safetensors ({str(error) or type(error).__name__}).", "Save the model again."
        ) from error
    return count(dict(elements), four_bits=four_bits) if elements else None


def require_trainable(config: Json, name: str) -> None:
    """Raise `RequestError` for what is no causal language model: an encoder, a diffusion or a speech model."""
    model_type, types = str(config.get("model_type", "")), known()
    classes = [str(item) for item in config.get("architectures") or []]
    said = classes[0] if classes else model_type
    text = part(config, "text_config")
    entry = types["types"].get(model_type)
    other = model_type in types["other_types"] or (entry is not None and entry["kind"] == "other")
    wrong_head = bool(classes) and entry is not None and not any(item.endswith(_TRAINED) for item in classes)
    encodes = config.get("is_encoder_decoder") or (text is not None and text.get("is_encoder_decoder"))
    if other or wrong_head or encodes or "_class_name" in config:  # the last is diffusers' word
        raise RequestError(
            f"{name} is {_article(said)}, which is no causal language model: it can't be fine-tuned on chats.",
            "Use a model that answers in text; `launch models` lists the ones that are known.",
        )


def read_precision(config: Json, name: str, base: str | None = None) -> tuple[Quantized | None, list[str]]:
    """How the weights are stored, and what to say of it; `RequestError` where no adapter can be trained on them.

    Unsloth trains on 16-bit and on bitsandbytes' 4-bit weights, and unpacks some others into those.
    """
    stored = config.get("quantization_config")
    if not isinstance(stored, dict):
        return None, []
    method = str(stored.get("quant_method") or ("bitsandbytes" if stored.get("load_in_4bit") else "an unknown way"))
    if method == "bitsandbytes" and (stored.get("load_in_4bit") or stored.get("_load_in_4bit")):
        return "bnb-4bit", []
    if method in _UNPACKED:
        return None, [f"its weights are stored in {_UNPACKED[method]}: planned as if they were 16-bit ones"]
    named = f"{base}, from which it was made" if base else "the 16-bit model it was made from"
    raise RequestError(
        f"{name} is quantised with {method}{' in 8 bits' if method == 'bitsandbytes' else ''}: no adapter can be "
        "trained on it here.",
        f"Use {named}; --load-in 4bit quantises it while it loads.",
    )


def _header(path: Path) -> list[Json]:
    """The tensors of one file: 8 bytes of length, then JSON from names to dtype, shape and place."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > _HEADER_LIMIT:
            raise ValueError("its header is too long")
        header = json.loads(file.read(length))
    return [tensor for name, tensor in header.items() if name != "__metadata__"]


def _product(shape: list[int]) -> int:
    if not all(isinstance(side, int) and 0 <= side <= _LARGEST_SIDE for side in shape):
        raise ValueError("a tensor has an impossible shape")
    return math.prod(shape)


def _article(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}" if noun else "a model of no known type"
