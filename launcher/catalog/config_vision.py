"""A vision tower's dimensions from a `config.json`; its image processor's numbers are its family's usual ones."""

from __future__ import annotations

from typing import Any

from launcher.catalog.config_section import Json, Section, part
from launcher.catalog.vision import VisionTower

# What a family's preprocessor_config.json says, where the class's own default is another: as published.
_QWEN2 = {"processor": "qwen2_vl", "min_pixels": 56 * 56, "max_pixels": 14 * 14 * 4 * 16384}
_QWEN3 = {"processor": "qwen2_vl", "min_pixels": 65536, "max_pixels": 16777216}
_PROCESSORS: dict[str, dict[str, Any]] = {
    "qwen2_vl": _QWEN2, "qwen2_5_vl": _QWEN2,
    "qwen3_vl": _QWEN3, "qwen3_vl_moe": _QWEN3, "qwen3_5": _QWEN3, "qwen3_5_moe": _QWEN3,
    "gemma3": {"processor": "square"}, "paligemma": {"processor": "square"},
    # Any square is scaled to what 280 tokens allow: 16 of 48 pixels a side.
    "gemma4": {"processor": "square", "image_size": 768},
    "mllama": {"processor": "mllama"},
    "mistral3": {"processor": "pixtral"}, "pixtral": {"processor": "pixtral"},
    "lfm2_vl": {"processor": "lfm2_vl", "image_size": 512, "min_pixels": 256 * 256, "max_tiles": 10},
    "internvl": {"processor": "got_ocr2", "max_tiles": 12, "class_token": True},
}  # fmt: skip
_THREE_MATRIX_MLP = {"gemma4_vision", "pixtral", "qwen2_5_vl_vision"}


def read_vision(config: Json, text_hidden: int) -> tuple[VisionTower | None, list[str]]:
    """The tower, or none where its config does not say enough; and what had to be assumed."""
    vision, model_type = part(config, "vision_config"), str(config.get("model_type", ""))
    if vision is None:
        return None, []
    width = vision.number("embed_dim") or vision.number("hidden_size")
    layers = vision.number("depth") or vision.number("num_hidden_layers") or vision.number("num_layers")
    patch = _side(vision, "patch_size")
    if width is None or layers is None or patch is None:
        unsaid = "wide" if width is None else "deep" if layers is None else "finely cut"
        return None, [
            f"its config does not say how {unsaid} its vision tower is: the memory of pictures is not counted"
        ]
    notes: list[str] = []
    if not vision.defaults:
        notes.append(f"its vision tower '{vision.type}' is not known here: its size is an estimate")
    layers += vision.number("num_global_layers") or 0
    heads = vision.number("num_heads") or vision.number("num_attention_heads") or vision.number("attention_heads")
    inner = vision.number("intermediate_size") or int(width * float(vision.get("mlp_ratio") or 4))
    kind = "pixtral" if vision.type == "pixtral" else model_type
    rule = _PROCESSORS.get(kind)
    side = (rule or {}).get("image_size") or _side(vision, "image_size")
    merge, tokens = _merging(config, vision, model_type), _tokens(config, model_type)
    facts: dict[str, Any] = {"image_size": side, "class_token": vision.type == "clip_vision_model", **(rule or {})}
    if model_type in ("idefics3", "smolvlm") and side:
        facts |= {"processor": "idefics3", "max_side": 4 * side}
    elif kind == "mllama":
        facts["max_tiles"] = vision.number("max_num_tiles") or 4
    elif rule is None:
        if side is None:
            facts |= {"processor": "qwen2_vl"}
        if model_type != "llava":
            how = f"made a square of {side} pixels" if side else "taken as they are"
            notes.append(f"how '{model_type or 'its'}' pictures are cut is not known here: planned as {how}")
    return VisionTower(
        hidden_size=width,
        intermediate_size=inner,
        num_layers=layers,
        num_heads=heads or max(width // 64, 1),
        patch_size=patch,
        merge_size=merge,
        tokens_per_image=tokens,
        params=_parameters(config, vision, width, inner, layers, patch, merge, text_hidden),
        **facts,
    ), notes


def _side(section: Section, key: str) -> int | None:
    """A length that some configs give as height and width."""
    value = section.get(key)
    return int(value[0]) if isinstance(value, list) and value else section.number(key)


def _merging(config: Json, vision: Section, model_type: str) -> int:
    """Patches a side that become one token."""
    whole = Section(config, model_type)
    merge = (
        vision.number("spatial_merge_size")
        or vision.number("pooling_kernel_size")
        or whole.number("spatial_merge_size")
    )
    merge = merge or whole.number("downsample_factor") or whole.number("scale_factor")
    ratio = whole.get("downsample_ratio")
    return merge or (round(1 / ratio) if isinstance(ratio, float) and 0 < ratio < 1 else 1)


def _tokens(config: Json, model_type: str) -> int | None:
    return Section(config, model_type).number("mm_tokens_per_image")


def _parameters(
    config: Json, vision: Section, width: int, inner: int, layers: int, patch: int, merge: int, text_hidden: int
) -> int:
    """The tower's matrices, the patches' and positions' embeddings, and the projector to the text's width."""
    mlp = (3 if vision.type in _THREE_MATRIX_MLP else 2) * width * inner
    frames = vision.number("temporal_patch_size") or (2 if "qwen" in vision.type else 1)
    side = _side(vision, "image_size")
    positions = vision.number("num_position_embeddings") or vision.number("num_patches")
    if each_way := vision.number("position_embedding_size"):
        positions = 2 * each_way
    if positions is None:
        positions = (side // patch) ** 2 if side and vision.type != "pixtral" else 0
    tower = layers * (4 * width**2 + mlp) + 3 * frames * patch**2 * width + positions * width
    merged = width * merge**2
    if "qwen" in vision.type:
        deep = vision.get("deepstack_visual_indexes")
        mergers = 1 + (len(deep) if isinstance(deep, list) else 3 if "qwen3_vl" in vision.type else 0)
        return tower + mergers * (merged**2 + merged * text_hidden)
    if output := vision.number("vision_output_dim"):  # Llama 3.2: the last state and some before it, side by side
        tiles = (vision.number("max_num_tiles") or 4) * ((side or 0) // patch) ** 2
        return tower + output * text_hidden + 9 * tiles * width
    if config.get("model_type") in ("gemma3", "gemma4", "paligemma"):
        return tower + width * text_hidden
    if config.get("model_type") in ("idefics3", "smolvlm"):
        return tower + merged * text_hidden
    if bottleneck := Section(config, str(config.get("model_type", ""))).number("projector_hidden_size"):
        return tower + merged * bottleneck + bottleneck * text_hidden
    if config.get("model_type") == "mistral3":
        return tower + merged * width + width * text_hidden + text_hidden**2
    return tower + merged * text_hidden + text_hidden**2
