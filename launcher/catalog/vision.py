"""What turns a picture into language-model tokens, and how many a picture becomes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

Processor = Literal["qwen2_vl", "square", "mllama", "pixtral", "lfm2_vl", "idefics3", "got_ocr2"]


class VisionTower(BaseModel):
    """A vision transformer with its projector, and what its image processor makes of a picture.

    `processor` names the rule, after transformers' image processors; `square` makes every picture one square of
    `image_size`. `image_size` is in pixels: the fixed side, the side of a tile, or the longest side allowed (pixtral).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    patch_size: int
    merge_size: int = 1
    """Patches a side that become one language-model token."""
    image_size: int | None = None
    tokens_per_image: int | None = None
    """What a square picture always becomes, where that does not follow from the patches."""
    params: int
    processor: Processor = "square"
    min_pixels: int = 0
    max_pixels: int | None = None
    max_tiles: int = 1
    max_side: int | None = None
    """The side that a picture is scaled to before it is cut into tiles (idefics3)."""
    class_token: bool = False

    def linear_parameters(self) -> int:
        """Weights of the layers' matrices: four of the attention, two of the MLP."""
        return self.num_layers * (4 * self.hidden_size**2 + 2 * self.hidden_size * self.intermediate_size)

    def patches(self, side: int) -> int:
        """Positions that the tower runs on for one square picture of `side` pixels, class tokens and padding too."""
        return _RULES[self.processor](self, side).patches

    def tokens(self, side: int) -> int:
        """Tokens that one square picture of `side` pixels has in the text, the separators of its rows included."""
        return _RULES[self.processor](self, side).tokens

    def states(self, side: int) -> int:
        """What the language model's cross-attention sees of the picture; 0 where pictures are tokens of the text."""
        return _RULES[self.processor](self, side).states


class _Seen(NamedTuple):
    patches: int
    tokens: int
    states: int = 0


def _side(tower: VisionTower) -> int:
    """Patches along the fixed side."""
    if tower.image_size is None:
        raise ValueError(f"a vision tower of processor {tower.processor!r} needs image_size")
    return tower.image_size // tower.patch_size


def _square(tower: VisionTower, side: int) -> _Seen:
    patches = _side(tower)
    tokens = tower.tokens_per_image or (patches // tower.merge_size) ** 2
    return _Seen(patches**2 + tower.class_token, tokens)


def _rounded(side: int, step: int, low: float, high: float) -> int:
    """A side as a multiple of `step` whose square has between `low` and `high` pixels (Qwen's `smart_resize`)."""
    near = max(round(side / step), 1) * step
    if near**2 > high:
        return max(step, math.floor(math.sqrt(high) / step) * step)
    return math.ceil(math.sqrt(low) / step) * step if near**2 < low else near


def _qwen2_vl(tower: VisionTower, side: int) -> _Seen:
    step = tower.patch_size * tower.merge_size
    merged = _rounded(side, step, tower.min_pixels, tower.max_pixels or math.inf) // step
    return _Seen((merged * tower.merge_size) ** 2, merged**2)


def _mllama(tower: VisionTower, side: int) -> _Seen:
    """Always `max_tiles` tiles, the missing ones zero; each has a class token, and is padded to a multiple of 8."""
    states = _side(tower) ** 2 + 1
    return _Seen(tower.max_tiles * math.ceil(states / 8) * 8, 1, tower.max_tiles * states)


def _pixtral(tower: VisionTower, side: int) -> _Seen:
    """At most `image_size` a side, up to whole tokens; each row of tokens ends with one more."""
    merged = math.ceil(min(side, tower.image_size or side) / (tower.patch_size * tower.merge_size))
    return _Seen((merged * tower.merge_size) ** 2, merged * (merged + 1))


def _grid(tower: VisionTower, side: int, least: int) -> int:
    """Tiles a side for a square: as many as `max_tiles` allows, up to twice the picture's own area."""
    tiles = least
    while (tiles + 1) ** 2 <= tower.max_tiles and side**2 > 0.5 * ((tower.image_size or 0) * (tiles + 1)) ** 2:
        tiles += 1
    return tiles


def _got_ocr2(tower: VisionTower, side: int) -> _Seen:
    """InternVL: a grid of tiles, and the whole picture as one more where there are several."""
    grid = _grid(tower, side, 1) ** 2
    tiles, one = grid + (grid > 1), _square(tower, side)
    return _Seen(tiles * one.patches, tiles * one.tokens)


def _lfm2_vl(tower: VisionTower, side: int) -> _Seen:
    """Up to twice a tile's pixels whole, else a grid of tiles and the whole picture; each is padded to a tile."""
    step, tile = tower.patch_size * tower.merge_size, tower.image_size or 0
    whole = (_rounded(side, step, tower.min_pixels, tile**2) // step) ** 2
    if (round(side / step) * step) ** 2 <= 2 * tile**2 or tower.max_tiles < 4:
        return _Seen(_side(tower) ** 2, whole)
    grid = _grid(tower, side, 2) ** 2
    # Every tile has a token that says its row and column, and the whole picture one that says what it is.
    return _Seen((grid + 1) * _side(tower) ** 2, grid * ((tile // step) ** 2 + 1) + whole + 1)


def _idefics3(tower: VisionTower, side: int) -> _Seen:
    """SmolVLM too: scaled to `max_side` whatever its size, cut into tiles, and the whole picture as one more."""
    one = _square(tower, side)
    grid = math.ceil((tower.max_side or 0) / (tower.image_size or 1)) if tower.max_side else 1
    if grid == 1:
        return _Seen(one.patches, one.tokens + 3)
    # A token for the tile's place and one before it or at the row's end; five around the whole picture.
    return _Seen((grid**2 + 1) * one.patches, (grid**2 + 1) * one.tokens + grid * (2 * grid + 1) + 4)


_RULES: dict[Processor, Callable[[VisionTower, int], _Seen]] = {
    "qwen2_vl": _qwen2_vl,
    "square": _square,
    "mllama": _mllama,
    "pixtral": _pixtral,
    "lfm2_vl": _lfm2_vl,
    "idefics3": _idefics3,
    "got_ocr2": _got_ocr2,
}
