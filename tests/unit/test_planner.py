"""Decisions: what is chosen, why, and what is refused."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

import pytest

from launcher import catalog, memory, planner, spec
from launcher.catalog import Flavor, Gpu
from launcher.errors import LauncherError, RefusedError, RequestError
from launcher.memory import Setup
from launcher.plan import Plan

TABLES = catalog.load()
TODAY = date(2026, 11, 24)
LAPTOP = Flavor(name="local", vcpu=8, ram_gb=16, disk_gb=200, usd_per_hour=0)


def plan(model: str = "qwen3-8b", *, user: str | None = None, here: Flavor | None = None, **options: Any) -> Plan:
    asked = spec.build({"model": model, **options})
    return planner.make_plan(asked, TABLES, today=TODAY, user=user, here=here)


def test_a_model_alone_gets_sensible_defaults() -> None:
    made = plan(user="me")
    assert made.dataset == "trl-lib/Capybara"
    assert made.max_steps == 500
    assert made.output_repo == "me/qwen3-8b-sft-20261124"
    assert made.secrets == ("HF_TOKEN",)
    assert made.load_in == "4bit"
    assert made.vram.fits
    assert made.batch_size * made.gradient_accumulation == 16
    assert made.timeout_s >= max(1800, made.duration.total_s)


def test_every_decision_has_a_reason() -> None:
    reasons = plan().reasons
    for decision in ("flavor", "batch_size", "timeout", "load_in", "max_length", "packing", "max_steps", "dataset",
                     "output_repo", "secrets", "duration"):  # fmt: skip
        assert reasons[decision]


def test_the_plan_is_json_and_comes_back_equal() -> None:
    made = plan()
    assert Plan.model_validate_json(made.model_dump_json()) == made
    assert {"model", "repo", "modality", "engine", "flavor", "num_gpus", "load_in", "max_length", "batch_size",
            "gradient_accumulation", "packing", "lora_r", "vram", "duration", "timeout_s", "cost", "secrets", "reasons",
            "offers"} <= set(json.loads(made.model_dump_json()))  # fmt: skip


def test_the_same_request_gives_the_same_plan() -> None:
    assert plan() == plan()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 3),
        ("max_length", 1024),
        ("lora_r", 64),
        ("load_in", "16bit"),
        ("flavor", "h200"),
        ("packing", True),
    ],
)
def test_what_is_asked_for_is_kept(name: str, value: Any) -> None:
    assert getattr(plan(**{name: value}), name) == value


def test_the_offers_cover_every_gpu_flavor_and_the_cheapest_is_taken() -> None:
    made = plan()
    assert {offer.flavor for offer in made.offers} == {name for name, flavor in TABLES.flavors.items() if flavor.gpu}
    single = [
        o for o in made.offers if o.fits and TABLES.flavors[o.flavor].num_gpus == 1 and o.expected_usd is not None
    ]
    assert made.flavor == min(single, key=lambda offer: offer.expected_usd or 0).flavor


# The mission's own table: parameters, the least VRAM, the GPUs it names.
@pytest.mark.parametrize(
    ("model", "least_gib", "flavors"),
    [
        ("qwen2.5-3b", 8, ("t4-small", "l4x1")),
        ("qwen3-4b", 8, ("t4-small", "l4x1")),
        ("qwen2.5-7b", 16, ("a10g-small", "l4x1")),
        ("llama-3.1-8b", 16, ("a10g-small", "l4x1")),
        ("qwen3-8b", 16, ("a10g-large", "l4x1")),
        ("phi-4", 24, ("a10g-large",)),
        ("qwen3-32b", 48, ("a100-large",)),
        ("llama-3.3-70b", 80, ("a100-large",)),
    ],
)
def test_each_size_fits_the_gpus_that_are_named_for_it(model: str, least_gib: int, flavors: tuple[str, ...]) -> None:
    smallest = memory.footprint(TABLES.models[model], Setup("4bit", "unsloth", planner.DEFAULT_MAX_LENGTH, 1, 16))
    assert smallest.peak < least_gib * 0.95
    for flavor in flavors:
        assert plan(model, flavor=flavor).vram.fits


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    with pytest.raises(RefusedError) as caught:
        plan("llama-3.3-70b", flavor="t4-small")
    assert caught.value.exit_code == 3
    assert "does not fit on t4-small" in caught.value.message
    offered = caught.value.hint.removeprefix("It fits on ").split(" ")[0]
    assert plan("llama-3.3-70b", flavor=offered).vram.fits


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"flavor": "a10g-larg"}, RequestError, "unknown flavor"),
        ({"flavor": "cpu-basic"}, RefusedError, "does not fit on cpu-basic"),
        ({"modality": "vision"}, RequestError, "text model"),
        ({"max_length": 1_000_000}, RequestError, "at most"),
        ({"batch_size": 3, "effective_batch_size": 16}, RequestError, "does not divide"),
        ({"num_train_epochs": 2.0}, RequestError, "number of rows"),
        ({"chat_template": "chatmll"}, RequestError, "unknown chat template"),
    ],
)
def test_what_can_not_be_planned_is_refused(options: dict[str, Any], error: type[LauncherError], said: str) -> None:
    with pytest.raises(error, match=said):
        plan(**options)


def test_epochs_are_planned_from_the_number_of_rows() -> None:
    made = plan(num_train_epochs=2.0, dataset_rows=1000)
    assert made.max_steps is None
    assert made.duration.train_s > 0


def test_a_local_run_needs_no_flavor_no_token_and_costs_nothing() -> None:
    made = plan("smollm2-135m", local=True, here=LAPTOP)
    assert made.flavor == "local"
    assert made.num_gpus == 0
    assert made.secrets == ()
    assert made.output_repo is None
    assert made.cost.max_usd == 0
    assert made.load_in == "16bit"


def test_a_local_model_that_is_too_large_is_refused() -> None:
    with pytest.raises(RefusedError, match="does not fit on this machine"):
        plan("qwen3-8b", local=True, here=LAPTOP)


def test_vision_is_refused_on_a_cpu_and_planned_on_a_gpu() -> None:
    with pytest.raises(RefusedError, match="no GPU"):
        plan("qwen3-vl-2b", local=True, here=LAPTOP)
    card = Gpu(title="RTX 4090", memory_gib=23.5, nominal_gb=24, bf16=True, compute_capability="8.9", bf16_tflops=1,
               bandwidth_gbs=1)  # fmt: skip
    made = plan("qwen3-vl-2b", local=True, here=LAPTOP.model_copy(update={"gpu": card, "num_gpus": 1}))
    assert made.load_in == "4bit"
    assert made.modality == "vision"


def test_a_small_model_may_train_on_a_cpu_flavor() -> None:
    made = plan("smollm2-135m", flavor="cpu-upgrade")
    assert (made.load_in, made.num_gpus) == ("16bit", 0)
    assert made.cost.usd_per_hour == 0.03


def test_the_large_default_dataset_is_streamed() -> None:
    assert plan("qwen3-vl-8b").streaming
    assert not plan("qwen3-vl-8b", streaming=False).streaming
    assert not plan("qwen3-vl-8b", dataset="me/pictures").streaming
    assert not plan("qwen3-8b").streaming


def test_idle_gpus_and_missing_bfloat16_are_warned_about() -> None:
    assert "would idle" in plan(flavor="a10g-largex4").warnings[0]
    assert "bfloat16" in plan("qwen3-4b", flavor="t4-small").warnings[0]
