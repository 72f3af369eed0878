"""What image processors make of a square picture, against transformers 5.17's own (run once, on black squares)."""

from __future__ import annotations

import pytest

from launcher import catalog
from launcher.catalog.vision import VisionTower

TABLES = catalog.load()


def _tower(alias: str) -> VisionTower:
    tower = TABLES.models[alias].vision
    assert tower is not None
    return tower


def _made(**facts: object) -> VisionTower:
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_layers": 12, "num_heads": 12, "params": 1}
    return VisionTower.model_validate({**sizes, **facts})


# Number of patches by side: rows of `pixel_values`, a token for every 2 x 2.
@pytest.mark.parametrize(
    ("side", "patches"), [(56, 256), (224, 256), (336, 400), (448, 784), (600, 1444), (1000, 3844), (1792, 12544)]
)
def test_qwen3_vl_rounds_a_side_to_32_pixels(side: int, patches: int) -> None:
    tower = _tower("qwen3-vl-8b")
    assert (tower.patches(side), tower.tokens(side)) == (patches, patches // 4)


@pytest.mark.parametrize(("side", "patches"), [(56, 16), (336, 576), (600, 1764), (1000, 4900), (3000, 4900)])
def test_pixels_above_the_most_are_scaled_down(side: int, patches: int) -> None:
    tower = _made(patch_size=14, merge_size=2, processor="qwen2_vl", min_pixels=3136, max_pixels=1003520)
    assert (tower.patches(side), tower.tokens(side)) == (patches, patches // 4)


@pytest.mark.parametrize("side", [224, 896, 2048])
def test_a_square_processor_makes_every_picture_alike(side: int) -> None:
    gemma = _tower("gemma-3-4b")
    assert (gemma.patches(side), gemma.tokens(side), gemma.states(side)) == (4096, 256, 0)
    llava = _made(patch_size=14, image_size=336, class_token=True)
    assert (llava.patches(side), llava.tokens(side)) == (577, 576)


@pytest.mark.parametrize("side", [224, 1024, 2048])
def test_llama_vision_runs_on_four_tiles_whatever_the_picture(side: int) -> None:
    """1,601 positions a tile, which the tower pads to 1,608; the text has one token."""
    tower = _tower("llama-3.2-11b-vision")
    assert (tower.patches(side), tower.tokens(side), tower.states(side)) == (4 * 1608, 1, 4 * 1601)


@pytest.mark.parametrize(("side", "rows"), [(56, 4), (600, 38), (1000, 63), (1024, 64), (3000, 64)])
def test_pixtral_has_a_token_a_patch_and_one_a_row(side: int, rows: int) -> None:
    tower = _tower("pixtral-12b")
    assert (tower.patches(side), tower.tokens(side)) == (rows**2, rows * (rows + 1))


@pytest.mark.parametrize(("side", "rows"), [(56, 2), (600, 22), (1000, 36), (1540, 55), (2048, 55)])
def test_mistral_3_merges_patches(side: int, rows: int) -> None:
    tower = _made(patch_size=14, merge_size=2, processor="pixtral", image_size=1540)
    assert (tower.patches(side), tower.tokens(side)) == (4 * rows**2, rows * (rows + 1))


@pytest.mark.parametrize(
    ("side", "tiles", "whole"), [(224, 1, 8), (336, 1, 10), (600, 1, 16), (768, 5, 16), (1024, 5, 16), (1344, 10, 16)]
)
def test_lfm2_vl_cuts_large_pictures_into_tiles(side: int, tiles: int, whole: int) -> None:
    tower = _made(patch_size=16, merge_size=2, processor="lfm2_vl", image_size=512, min_pixels=256 * 256, max_tiles=10)
    assert tower.patches(side) == tiles * 1024
    places = tiles if tiles > 1 else 0
    assert tower.tokens(side) == (tiles - 1) * 256 + places + whole**2


@pytest.mark.parametrize(("side", "tiles"), [(448, 1), (600, 1), (640, 5), (896, 5), (1000, 10), (2048, 10)])
def test_internvl_cuts_pictures_into_a_grid(side: int, tiles: int) -> None:
    tower = _made(patch_size=14, merge_size=2, processor="got_ocr2", image_size=448, max_tiles=12, class_token=True)
    assert (tower.patches(side), tower.tokens(side)) == (tiles * 1025, tiles * 256)


@pytest.mark.parametrize("side", [224, 2048])
def test_smolvlm_scales_every_picture_to_a_grid_of_tiles(side: int) -> None:
    tower = _made(patch_size=14, merge_size=3, processor="idefics3", image_size=384, max_side=1536)
    assert tower.patches(side) == 17 * 27**2
    assert 17 * 81 < tower.tokens(side) < 17 * 85
