"""How long a run takes: the speed formula against what was measured, and the parts of a run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from launcher import catalog
from launcher.catalog import Gpu
from launcher.estimate import duration, speed
from launcher.estimate.duration import Work
from launcher.estimate.setup import Setup
from launcher.estimate.speed import Batch

TABLES = catalog.load()
GPUS = {flavor.gpu.title: flavor.gpu for flavor in TABLES.flavors.values() if flavor.gpu}
H100 = Gpu(
    title="H100", memory_gib=79.18, nominal_gb=80, bf16=True, compute_capability="9.0",
    bf16_tflops=989, matmul_tflops=788, bandwidth_gbs=3352,
)  # fmt: skip
CPU = Gpu(
    title="host memory", memory_gib=8, nominal_gb=0, bf16=True, compute_capability="", bf16_tflops=0.8, bandwidth_gbs=1
)
QWEN3_4B = TABLES.models["qwen3-4b"]


def setup(**changes: Any) -> Setup:
    return replace(Setup("4bit", "unsloth", 2048, 8, 16), **changes)


def rate(model: str = "qwen3-4b", gpu: Gpu = H100, tokens: float = 530, **changes: Any) -> float:
    work = Work(steps=100, rows_per_step=64, tokens_per_row=tokens)
    return duration.expected(TABLES.models[model], gpu, setup(**changes), work).tokens_per_second


# ---- Against measurements --------------------------------------------------------------------------------------------


# Seconds of an optimizer step through the whole script, rows of 529 tokens on average (the shared facts page); with a
# torch that attends row by row.
@pytest.mark.parametrize(("accumulate", "rows", "measured"), [(4, 2, 2.44), (1, 8, 0.98), (1, 4 * 2048 / 529, 1.07)])
def test_steps_take_what_they_took(accumulate: int, rows: float, measured: float) -> None:
    micro = speed.micro_step(QWEN3_4B, H100, setup(), Batch(rows, 529, by_row=True))
    apart = 504 * 5e-5  # the optimizer's
    assert accumulate * micro + apart == pytest.approx(measured, rel=0.15)


# Seconds of one forward and backward pass where the GPU is the bottleneck: bench/speed.py, 24 November 2026.
@pytest.mark.parametrize(
    ("load_in", "batch", "length", "measured"),
    [("4bit", 8, 2048, 0.991), ("4bit", 1, 16384, 1.521), ("16bit", 8, 2048, 0.978), ("16bit", 1, 16384, 1.516)],
)
def test_the_gpu_takes_what_it_took(load_in: str, batch: int, length: int, measured: float) -> None:
    seconds = speed.gpu_seconds(QWEN3_4B, H100, setup(load_in=load_in), Batch(batch, length))
    assert seconds == pytest.approx(measured, rel=0.08)


def test_a_small_model_on_a_cpu_takes_what_it_took() -> None:
    assert 144 < rate("smollm2-135m", CPU, load_in="16bit") < 256


# ---- How it moves ----------------------------------------------------------------------------------------------------


def test_more_takes_longer() -> None:
    def total(**changes: Any) -> int:
        work = replace(Work(steps=200, rows_per_step=16, tokens_per_row=1500), **changes)
        return duration.expected(QWEN3_4B, H100, setup(), work).total_s

    assert total() < total(tokens_per_row=2048) < total(tokens_per_row=2048, steps=400)
    assert total() < total(rows_per_step=32)
    assert total() < total(eval_rows=64, evaluations=2) < total(eval_rows=64, evaluations=5)


def test_a_larger_batch_is_faster_until_the_card_is_full() -> None:
    rates = [rate(batch_size=size) for size in (1, 2, 4, 8, 16, 32, 64)]
    assert rates == sorted(rates)
    assert rates[2] > 1.6 * rates[1]
    assert rates[-1] < 1.3 * rates[-2]


def test_packing_is_faster_than_the_same_rows_in_small_batches() -> None:
    packed = speed.optimizer_step(QWEN3_4B, H100, setup(batch_size=4), 4, 2048, 2048 / 512)
    apart = speed.optimizer_step(QWEN3_4B, H100, setup(batch_size=2), 16, 512)
    assert packed < apart / 3


def test_dequantising_weighs_most_where_there_is_little_to_compute() -> None:
    def slowdown(tokens: int) -> float:
        four, sixteen = (
            speed.gpu_seconds(QWEN3_4B, H100, setup(load_in=load_in), Batch(1, tokens)) for load_in in ("4bit", "16bit")
        )
        return four / sixteen

    assert slowdown(128) > 1.3 > 1.05 > slowdown(16384) > 1


def test_every_model_has_a_rate_on_every_card() -> None:
    for title, gpu in GPUS.items():
        for name, model in TABLES.models.items():
            modality, size = ("vision", 768) if model.vision else ("text", None)
            assert 1 < rate(name, gpu, modality=modality, image_size=size) < 200_000, f"{name} on {title}"


def test_faster_cards_are_faster() -> None:
    order = ["T4", "L4", "A10G", "L40S", "H200"]
    # Where the host is not what is waited for.
    rates = [rate(gpu=GPUS[title], tokens=2048, batch_size=16) for title in order]
    assert rates == sorted(rates)
    assert rates[-1] > 5 * rates[0]
    assert rate(gpu=GPUS["H200"]) > rate()


def test_a_long_row_costs_more_per_token_unless_the_attention_slides() -> None:
    qwen, gemma = QWEN3_4B, TABLES.models["gemma-3-27b"]
    assert gemma.arch.sliding_window == 1024
    long, short = (speed.flops_per_token(qwen, setup(), length) for length in (16384, 512))
    assert long > 1.5 * short
    assert speed.flops_per_token(gemma, setup(), 16384) == speed.flops_per_token(gemma, setup(), 1024)


def test_pictures_cost_more_where_the_tower_trains() -> None:
    model = TABLES.models["qwen3-vl-8b"]
    seen = setup(modality="vision", image_size=768)
    trained, frozen = (
        speed.flops_of_pictures(model, replace(seen, finetune_vision_layers=trains)) for trains in (True, False)
    )
    assert trained == 3 * frozen > 0
    assert speed.flops_of_pictures(model, replace(seen, image_size=1536)) > 4 * trained
    assert speed.flops_of_pictures(model, replace(seen, images=2)) == 2 * trained
    assert speed.flops_of_pictures(model, setup()) == 0


def test_only_rows_with_padding_are_longer_than_themselves() -> None:
    assert speed.padded(setup(), 8, 500) == 500
    assert speed.padded(setup(engine="trl"), 8, 500) > 1000
    assert speed.padded(setup(engine="trl"), 64, 1500) == 2048
    assert 500 < speed.padded(setup(modality="vision"), 8, 500) < 1000


def test_what_is_measured_is_told_from_what_is_derived() -> None:
    work = Work(steps=1, rows_per_step=8, tokens_per_row=500)
    measured = {
        title for title, gpu in GPUS.items() if duration.expected(QWEN3_4B, gpu, setup(), work).measured
    }  # fmt: skip
    assert measured == {"H200"}
    assert duration.expected(QWEN3_4B, H100, setup(), work).measured
    assert not duration.expected(QWEN3_4B, H100, setup(engine="trl"), work).measured
    assert not duration.expected(TABLES.models["qwen3-vl-8b"], H100, setup(modality="vision"), work).measured


def test_a_card_of_70_watts_is_not_taken_at_its_peak() -> None:
    four, ten = GPUS["L4"], GPUS["A10G"]
    assert four.bf16_tflops > ten.bf16_tflops
    assert rate(gpu=four, batch_size=16) < rate(gpu=ten, batch_size=16)


# ---- The parts of a run ----------------------------------------------------------------------------------------------


def test_the_parts_are_all_of_the_run() -> None:
    work = Work(steps=300, rows_per_step=16, tokens_per_row=530, eval_rows=64, evaluations=2)
    made = duration.expected(QWEN3_4B, H100, setup(), work)
    assert made.total_s == made.train_s + sum(made.parts.values())
    assert made.startup_s == sum(seconds for name, seconds in made.parts.items() if name not in ("evaluate", "save"))
    assert made.train_s == pytest.approx(work.tokens / made.tokens_per_second, rel=0.01)
    assert all(seconds > 0 for seconds in made.parts.values())


def test_a_warm_image_installs_nothing() -> None:
    work = Work(steps=300, rows_per_step=16, tokens_per_row=530)
    cold, warm = (
        duration.expected(QWEN3_4B, H100, setup(), work, warm_image=warm).parts for warm in (False, True)
    )  # fmt: skip
    assert warm["install"] == 0 < cold["install"]
    assert warm["machine"] > cold["machine"]
    assert {name for name in cold if cold[name] != warm[name]} == {"install", "machine"}


def test_a_plain_4_bit_upload_is_downloaded_where_there_is_one() -> None:
    model = TABLES.models["qwen3-32b"]
    whole, small = (duration.download_bytes(model, load_in) for load_in in ("16bit", "4bit"))
    assert whole == 2 * model.params
    assert 0.25 * whole < small < 0.4 * whole
    # The one of Qwen3-4B is "dynamic", so its 16-bit weights are quantised while they load.
    assert duration.download_bytes(QWEN3_4B, "4bit") == 2 * QWEN3_4B.params


def test_what_compiles_long_starts_late() -> None:
    def compiling(model: str, **changes: Any) -> int:
        work = Work(steps=1, rows_per_step=8, tokens_per_row=500)
        return duration.expected(TABLES.models[model], H100, setup(**changes), work).parts["compile"]

    seen = {"modality": "vision", "image_size": 768}
    assert compiling("qwen3-4b") <= 15 < compiling("lfm2-1.2b") < compiling("gemma-3-1b")
    assert compiling("gemma-3-4b") < compiling("gemma-3-4b", **seen)
    assert compiling("qwen3-vl-8b", **seen) > 60


def test_a_run_is_given_time_and_its_price_is_bounded() -> None:
    assert duration.timeout(60) == 1800
    assert duration.timeout(10_000) == 15_600
    flavor = TABLES.flavors["a10g-large"]
    cost = duration.cost(flavor, 3600, 7200)
    assert (cost.expected_usd, cost.max_usd) == (flavor.usd_per_hour, 2 * flavor.usd_per_hour)
