"""A model of two layers that any machine trains in no time, written without the training stack."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

HIDDEN, HEADS, KEYS, MIDDLE, LAYERS = 64, 4, 2, 128, 2


def shrink(model: Path, folder: Path) -> Path:
    """`folder` with the model's own tokenizer and settings, and a few layers of seeded random weights."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("model.safetensors"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {
        "hidden_size": HIDDEN, "intermediate_size": MIDDLE, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KEYS, "head_dim": HIDDEN // HEADS, "tie_word_embeddings": True,
    }  # fmt: skip
    config.pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    write_weights(folder / "model.safetensors", shapes(config["vocab_size"]))
    return folder


def shapes(vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight of such a Llama."""
    keys = HIDDEN // HEADS * KEYS
    layer = {
        "input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,),
        "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (keys, HIDDEN), "self_attn.v_proj": (keys, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (MIDDLE, HIDDEN), "mlp.up_proj": (MIDDLE, HIDDEN),
        "mlp.down_proj": (HIDDEN, MIDDLE),
    }  # fmt: skip
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, HIDDEN)}
    for number in range(LAYERS):
        found |= {f"model.layers.{number}.{name}.weight": shape for name, shape in layer.items()}
    return found | {"model.norm.weight": (HIDDEN,)}


def write_weights(path: Path, weights: dict[str, tuple[int, ...]]) -> None:
    """Safetensors in bfloat16: norms are ones, all else lies between 1/64 and 1/32 on either side of zero."""
    header, parts, place = {"__metadata__": {"format": "pt"}}, [], 0
    chance = random.Random(0)
    for name, shape in weights.items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        # Of each number only the sign and the mantissa are random.
        noise = int.from_bytes(chance.randbytes(2 * count), "little")
        mask, base = (int.from_bytes(half * count, "little") for half in (b"\x7f\x80", b"\x80\x3c"))
        data = (noise & mask | base).to_bytes(2 * count, "little") if len(shape) > 1 else b"\x80\x3f" * count
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [place, place + len(data)]}  # type: ignore[dict-item]
        parts.append(data)
        place += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))
