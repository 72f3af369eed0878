"""The memory formula: held to what was measured, and in the right direction everywhere else."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

import calibrate
import measurements
import pytest
from measurements import Measurement

from launcher import catalog
from launcher.estimate import memory
from launcher.estimate.setup import GIB, MEASURED_TYPES, Setup

TABLES = catalog.shipped()
ROWS = measurements.load()
QLORA = Setup("4bit", "unsloth", 2048, 2, 16)
# The least and the most by which the formula may miss a measured peak, as shares of it.
UNDER, OVER = -0.02, 0.08


def error(row: Measurement) -> float:
    return row.error(TABLES.models[row.model])


def test_no_measured_run_is_missed_by_much() -> None:
    for row in ROWS:
        assert UNDER <= error(row) <= OVER, f"{error(row):.1%}: {row}"


@pytest.mark.parametrize("held_out", [False, True])
def test_the_median_error_is_small_in_and_out_of_the_fit(held_out: bool) -> None:
    errors = [abs(error(row)) for row in ROWS if row.held_out == held_out]
    assert len(errors) >= len(ROWS) * 0.3
    assert statistics.median(errors) <= 0.01


def test_the_measurements_cover_what_the_formula_claims() -> None:
    for modality, types in MEASURED_TYPES.items():
        seen = {TABLES.models[row.model].model_type for row in ROWS if row.modality == modality}
        assert set(types) == seen
    assert {row.load_in for row in ROWS} == {"4bit", "16bit"}
    assert min(row.max_length for row in ROWS) <= 512
    assert max(row.max_length for row in ROWS) >= 16384


def test_calibrate_writes_the_columns_that_are_read() -> None:
    assert list(Measurement.model_fields) == list(calibrate.COLUMNS)


@pytest.mark.parametrize(
    ("more", "by"),
    [
        ({"batch_size": 4}, 1.0),
        ({"max_length": 4096}, 1.0),
        ({"lora_r": 64}, 1.0),
        ({"load_in": "16bit"}, 1.05),
        ({"optim": "adamw_torch"}, 1.0),
        ({"engine": "trl"}, 1.0),
    ],
)
def test_more_of_anything_needs_more_memory(more: dict[str, Any], by: float) -> None:
    for name, known in TABLES.models.items():
        setup = QLORA
        if known.modalities[0] == "vision":
            setup = replace(setup, modality="vision", image_size=768)
        assert memory.footprint(known, replace(setup, **more)).peak > by * memory.footprint(known, setup).peak, name


def test_parts_sum_to_the_peak_and_none_is_negative() -> None:
    for model in TABLES.models.values():
        found = memory.footprint(model, QLORA)
        assert found.peak == pytest.approx(sum(found.parts.values()))
        assert min(found.parts.values()) > 0
        assert found.weights == pytest.approx(memory.weights(model, "4bit") / GIB)


# Counted by Unsloth when it made the adapters: "Trainable parameters = ...".
@pytest.mark.parametrize(
    ("model", "modality", "rank", "trainable"),
    [
        ("qwen3-vl-8b", "vision", 16, 51_346_944),
        ("qwen3-8b", "text", 16, 43_646_976),
        ("smollm2-135m", "text", 16, 4_884_480),
    ],
)
def test_the_adapter_is_counted_exactly(model: str, modality: Any, rank: int, trainable: int) -> None:
    setup = replace(QLORA, modality=modality, lora_r=rank)
    assert memory.adapter_parameters(TABLES.models[model], setup) == trainable


def test_a_frozen_tower_or_language_model_has_no_adapter() -> None:
    model = TABLES.models["qwen3-vl-8b"]
    seen = replace(QLORA, modality="vision", image_size=768)
    whole = memory.adapter_parameters(model, seen)
    tower = memory.adapter_parameters(model, replace(seen, finetune_language_layers=False))
    language = memory.adapter_parameters(model, replace(seen, finetune_vision_layers=False))
    assert tower + language == whole
    assert memory.adapter_parameters(model, replace(seen, finetune_mlp_modules=False)) < whole


def test_a_larger_picture_needs_more_where_the_tower_takes_it() -> None:
    seen = replace(QLORA, modality="vision", max_length=4096)
    peaks = [
        memory.footprint(TABLES.models["qwen3-vl-8b"], replace(seen, image_size=side)).peak for side in (448, 896, 1792)
    ]
    assert peaks == sorted(peaks)
    assert peaks[0] < peaks[2]
    fixed = [memory.footprint(TABLES.models["gemma-3-4b"], replace(seen, image_size=side)).peak for side in (448, 1792)]
    assert fixed[0] == fixed[1]


def test_evaluation_counts_where_its_batch_is_the_larger() -> None:
    model = TABLES.models["qwen3-8b"]
    one = replace(QLORA, batch_size=1, eval_batch_size=0)
    assert memory.footprint(model, replace(one, eval_batch_size=16)).peak > memory.footprint(model, one).peak
    assert "evaluation" in memory.footprint(model, replace(one, eval_batch_size=16)).parts


def test_soft_capped_attention_grows_with_the_square_of_the_length() -> None:
    model = TABLES.models["gemma-2-2b"]
    short, long = (memory.footprint(model, replace(QLORA, max_length=length)) for length in (2048, 4096))
    assert long.parts["attention"] > 3 * short.parts["attention"]


def test_what_was_not_measured_is_said() -> None:
    known = TABLES.models
    assert memory.doubts(known["qwen3-8b"], QLORA) == ()
    assert memory.doubts(known["lfm2-1.2b"], QLORA) == ()
    assert "qwen3_moe" in memory.doubts(known["qwen3-30b-a3b"], QLORA)[0]
    assert "plain TRL" in memory.doubts(known["qwen3-8b"], replace(QLORA, engine="trl"))[0]
    dynamic = TABLES.model("unsloth/Qwen3-8B-unsloth-bnb-4bit")
    assert "unsloth/Qwen3-8B-unsloth-bnb-4bit is assumed" in memory.doubts(dynamic, QLORA)[-1]


def test_a_dynamic_upload_is_larger_and_exact_where_its_size_is_known() -> None:
    plain = memory.weights(TABLES.models["qwen3-14b"], "4bit")
    dynamic = TABLES.model("unsloth/Qwen3-14B-unsloth-bnb-4bit")
    assert dynamic.bytes_4bit == memory.weights(dynamic, "4bit") > 1.1 * plain
    unknown = TABLES.model("unsloth/Qwen3-8B-unsloth-bnb-4bit")
    assert memory.weights(unknown, "4bit") > 1.1 * memory.weights(TABLES.models["qwen3-8b"], "4bit")


def test_a_small_card_makes_the_loss_smaller() -> None:
    gpu = TABLES.flavors["l4x1"].gpu
    assert gpu is not None
    setup = replace(QLORA, max_length=512, batch_size=1, eval_batch_size=0)
    model = TABLES.models["qwen3-0.6b"]
    assert memory.footprint(model, setup, gpu).peak < memory.footprint(model, setup).peak
