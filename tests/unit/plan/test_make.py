"""Decisions: what is chosen, why, and what is refused."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from launcher import catalog, spec
from launcher.catalog import Flavor, Gpu
from launcher.errors import LauncherError, RefusedError, RequestError, ServiceError
from launcher.estimate import memory
from launcher.estimate.dataset import DataSize
from launcher.estimate.setup import Setup
from launcher.plan import budget, choices
from launcher.plan import machines as offers
from launcher.plan import make as planner
from launcher.plan.demand import TYPICAL_ROW_TOKENS, LookUp
from launcher.plan.record import Plan
from launcher.render import render

TABLES = catalog.shipped()
TODAY = date(2026, 11, 24)
LAPTOP = Flavor(name="local", vcpu=8, ram_gb=16, disk_gb=200, usd_per_hour=0)


def plan(
    model: str = "qwen3-8b",
    *,
    user: str | None = None,
    here: Flavor | None = None,
    look_up: LookUp | None = None,
    **options: Any,
) -> Plan:
    asked = spec.build({"model": model, **options})
    return planner.make_plan(asked, TABLES, today=TODAY, user=user, here=here, look_up=look_up)


def dataset_rows(made: Plan, tokens: float = TYPICAL_ROW_TOKENS) -> float:
    """Rows of the dataset that an optimizer step of the plan holds."""
    rows = made.decisions.batch_size.value * made.decisions.gradient_accumulation.value
    return rows * made.decisions.max_length.value / tokens if made.decisions.packing.value else rows


def test_a_model_alone_gets_sensible_defaults() -> None:
    made = plan(user="me")
    assert made.decisions.dataset.value == "trl-lib/Capybara"
    assert made.decisions.max_steps.value == 500
    assert made.decisions.output_repo.value == "me/qwen3-8b-sft-20261124"
    assert made.decisions.secrets.value == ("HF_TOKEN",)
    assert made.vram.fits
    assert dataset_rows(made) == pytest.approx(16, rel=0.25)
    assert made.decisions.timeout_s.value >= max(1800, made.duration.total_s)


def test_every_decision_has_a_reason() -> None:
    reasons = plan().reasons
    for decision in ("flavor", "batch_size", "timeout", "load_in", "max_length", "packing", "max_steps", "dataset",
                     "output_repo", "secrets", "duration", "host", "effective_batch_size"):  # fmt: skip
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
    assert getattr(plan(**{name: value}).options, name) == value


def test_the_offers_cover_every_gpu_flavor_and_the_cheapest_is_taken() -> None:
    made = plan()
    assert {offer.flavor for offer in made.offers} == {name for name, flavor in TABLES.flavors.items() if flavor.gpu}
    single = [
        o for o in made.offers if o.fits and TABLES.flavors[o.flavor].num_gpus == 1 and o.expected_usd is not None
    ]
    assert made.decisions.flavor.value == min(single, key=lambda offer: offer.expected_usd or 0).flavor


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
    smallest = memory.footprint(TABLES.models[model], Setup("4bit", "unsloth", choices.DEFAULT_MAX_LENGTH, 1, 16))
    assert smallest.peak < least_gib * 0.95
    for flavor in flavors:
        assert plan(model, flavor=flavor).vram.fits


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    with pytest.raises(RefusedError) as caught:
        plan("llama-3.3-70b", flavor="t4-small")
    assert caught.value.exit_code == 3
    assert "does not fit on t4-small" in caught.value.message
    offered = [line.split(":")[0].split()[-1] for line in caught.value.hint.splitlines()[1:]]
    assert 1 <= len(offered) <= 3
    for flavor in offered:
        assert plan("llama-3.3-70b", flavor=flavor).vram.fits


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


# Packing ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["qwen3-8b", "llama-3.2-1b", "smollm2-1.7b", "mistral-7b", "phi-4"])
def test_short_text_is_packed_and_a_step_keeps_its_rows(model: str) -> None:
    made = plan(model, flavor="a100-large")
    assert made.decisions.packing.value
    assert made.reasons["packing"].startswith("on: ")
    assert dataset_rows(made) == pytest.approx(16, rel=0.25)
    assert made.decisions.batch_size.value * made.decisions.gradient_accumulation.value < 16


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("qwen3-4b", {"flavor": "t4-small"}, "T4"),
        ("smollm2-135m", {"flavor": "cpu-upgrade"}, "GPU"),
        ("lfm2-1.2b", {"flavor": "a100-large"}, "convolutions"),
        ("gemma-2-9b", {"flavor": "a100-large"}, "soft-capped"),
        ("gemma-3-1b", {"flavor": "a100-large"}, "sliding-window"),
        ("gemma-3-4b", {"flavor": "a100-large", "modality": "text"}, "processor"),
        ("qwen3-vl-8b", {"flavor": "a100-large"}, "images"),
        ("qwen3-8b", {"flavor": "a100-large", "max_length": 768}, "fill 69%"),
        ("qwen3-8b", {"flavor": "a100-large", "max_length": 16384}, "no whole number"),
        ("qwen3-8b", {"flavor": "a100-large", "batch_size": 8}, "batch asked for"),
        ("qwen3-8b", {"flavor": "a100-large", "streaming": True, "max_steps": 10}, "stream"),
        ("qwen3-8b", {"flavor": "a100-large", "packing": False}, "asked"),
    ],
)
def test_rows_stay_as_they_are_where_packing_would_be_wrong_or_idle(
    model: str, options: dict[str, Any], said: str
) -> None:
    made = plan(model, **options)
    assert not made.decisions.packing.value
    assert made.reasons["packing"].startswith("off")
    assert said in made.reasons["packing"]
    assert made.decisions.batch_size.value * made.decisions.gradient_accumulation.value == 16


def test_packing_that_was_asked_for_is_kept_and_doubted_where_unsloth_would_not() -> None:
    made = plan("gemma-2-9b", packing=True, flavor="a100-large")
    assert made.decisions.packing.value
    assert any(text.startswith("--packing") for text in made.warnings)
    assert plan("qwen3-8b", packing=True, flavor="a100-large").warnings == ()


@pytest.mark.parametrize(("batch", "rows"), [(1, 16), (2, 16), (4, 64), (8, 64)])
def test_a_batch_asked_for_with_packing_counts_packed_rows(batch: int, rows: int) -> None:
    made = plan(packing=True, batch_size=batch, effective_batch_size=rows, flavor="h200")
    assert made.decisions.batch_size.value == batch
    assert dataset_rows(made) == pytest.approx(rows, rel=0.25)


def test_the_same_rows_are_trained_on_packed_or_not() -> None:
    packed, plain = (
        plan(flavor="a100-large", packing=packing, num_train_epochs=1, dataset_rows=10_000) for packing in (True, False)
    )
    assert packed.duration.train_s == pytest.approx(plain.duration.train_s, rel=0.15)


# Machine, precision and batch ---------------------------------------------------------------------------------------


def test_the_cheapest_run_is_not_the_cheapest_hour() -> None:
    made = plan("qwen3-8b", max_steps=5000)
    hour = {name: flavor.usd_per_hour for name, flavor in TABLES.flavors.items() if flavor.num_gpus == 1}
    fitting = {o.flavor: o.expected_usd or 0 for o in made.offers if o.fits and o.flavor in hour}
    assert made.cost.expected_usd <= min(fitting.values()) * 1.1 + 0.01
    assert hour[made.decisions.flavor.value] > min(hour[name] for name in fitting)


@pytest.mark.parametrize("model", ["qwen3-8b", "qwen3-vl-8b", "smollm2-135m", "llama-3.3-70b"])
def test_fast_is_the_shortest_run_and_cheap_the_cheapest(model: str) -> None:
    cheap, fast = plan(model), plan(model, prefer="fast")
    assert fast.num_gpus == cheap.num_gpus == 1
    single = [o for o in fast.offers if o.fits and TABLES.flavors[o.flavor].num_gpus == 1]
    assert fast.duration.total_s == min(offer.total_s or 0 for offer in single)
    assert fast.duration.total_s <= cheap.duration.total_s
    # 16-bit weights may take a little more time to download.
    assert cheap.cost.expected_usd <= fast.cost.expected_usd * 1.1 + 0.01


@pytest.mark.parametrize("model", sorted(TABLES.models))
def test_16bit_weights_take_no_bigger_card_and_no_more_time(model: str) -> None:
    chosen, narrow = plan(model), plan(model, load_in="4bit")
    if chosen.decisions.load_in.value == "4bit":
        assert "16-bit ones" in chosen.reasons["load_in"]
        return
    assert chosen.cost.expected_usd <= narrow.cost.expected_usd * 1.1 + 0.01
    assert (
        chosen.duration.train_s <= narrow.duration.train_s * 1.03
        or chosen.decisions.flavor.value != narrow.decisions.flavor.value
    )


def test_16bit_is_for_where_it_fits_well() -> None:
    assert plan("qwen3-1.7b", flavor="a100-large").decisions.load_in.value == "16bit"
    assert plan("qwen3-14b", flavor="a10g-large").decisions.load_in.value == "4bit"
    assert plan("qwen3-32b", flavor="l40sx1").decisions.load_in.value == "4bit"


@pytest.mark.parametrize("flavor", ["t4-small", "l4x1", "l40sx1", "h200"])
@pytest.mark.parametrize("rows", [1, 6, 16, 17, 64])
def test_the_batch_fills_the_card_and_the_step_keeps_its_rows(flavor: str, rows: int) -> None:
    made = plan("qwen3-4b", flavor=flavor, effective_batch_size=rows, packing=False, load_in="4bit")
    assert made.decisions.batch_size.value * made.decisions.gradient_accumulation.value == rows
    assert made.decisions.batch_size.value == 1 or made.vram.peak_gib <= made.vram.available_gib * offers.FILL + 0.01
    larger = [size for size in range(made.decisions.batch_size.value + 1, rows + 1) if rows % size == 0]
    for size in larger[:1]:
        with_more = plan(
            "qwen3-4b", flavor="h200", batch_size=size, effective_batch_size=rows, packing=False, load_in="4bit"
        )
        host = with_more.host.ram_gb > TABLES.flavors[flavor].ram_gb
        assert host or with_more.vram.peak_gib > made.vram.available_gib * offers.FILL - 0.3 or size > 64


def test_an_accumulation_asked_for_is_kept() -> None:
    made = plan(gradient_accumulation=4, packing=False)
    assert (made.decisions.batch_size.value, made.decisions.gradient_accumulation.value) == (4, 4)


# Money and time -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_cost", [0.3, 1.0, 2.0, 5.0, 20.0])
@pytest.mark.parametrize("prefer", ["cheap", "fast"])
@pytest.mark.parametrize("model", ["smollm2-135m", "qwen3-8b", "qwen3-32b"])
def test_a_limit_on_the_cost_holds_or_the_run_is_refused(model: str, prefer: str, max_cost: float) -> None:
    try:
        made = plan(model, prefer=prefer, max_cost=max_cost)
    except RefusedError as refused:
        assert refused.exit_code == 3
        assert f"--max-cost is ${max_cost:.2f}" in refused.message
        return
    assert made.cost.max_usd <= max_cost + 0.005
    assert made.decisions.timeout_s.value >= max(1800, made.duration.total_s * budget.LEAST_MARGIN - 1)


def applied(line: str) -> dict[str, Any]:
    """The options that one line of a hint names, as a spec takes them."""
    words = line.split(": ")[0].split()
    options: dict[str, Any] = {}
    for flag, value in zip(words[::2], words[1::2], strict=True):
        name = flag.removeprefix("--").replace("-", "_")
        options[name] = float(value) if name == "max_cost" else int(value) if value.isdigit() else value
    return options


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("qwen3-8b", {"max_steps": 5000, "max_cost": 3.0}),
        ("qwen3-8b", {"max_steps": 5000, "max_cost": 4.0, "flavor": "h200"}),
        ("qwen3-8b", {"max_cost": 1.5, "flavor": "h200"}),
        ("qwen3-8b", {"num_train_epochs": 3.0, "dataset_rows": 100_000, "max_cost": 2.0}),
        ("llama-3.3-70b", {"max_cost": 1.0}),
        ("qwen3-4b", {"flavor": "a10g-large", "timeout": "10h", "max_cost": 6.0, "max_steps": 100}),
        ("smollm2-135m", {"max_cost": 0.1}),
    ],
)
def test_what_is_too_dear_is_refused_with_the_nearest_that_is_not(model: str, options: dict[str, Any]) -> None:
    with pytest.raises(RefusedError, match="max-cost") as caught:
        plan(model, **options)
    lines = caught.value.hint.splitlines()[1:]
    assert 1 <= len(lines) <= 3
    for line in lines:
        kept = {name: value for name, value in options.items() if name not in ("num_train_epochs", "dataset_rows")}
        asked = (kept if "max-steps" in line else options) | applied(line.strip())
        made = plan(model, **asked)
        assert made.cost.max_usd <= asked["max_cost"] + 0.005


def test_no_more_steps_would_fit_than_are_offered() -> None:
    options: dict[str, Any] = {"max_steps": 5000, "max_cost": 3.0}
    with pytest.raises(RefusedError) as caught:
        plan(load_in="4bit", **options)
    offered = applied(caught.value.hint.splitlines()[1].strip())
    assert plan(load_in="4bit", **options | offered).decisions.max_steps.value == offered["max_steps"]
    with pytest.raises(RefusedError):
        plan(load_in="4bit", **options | {"max_steps": offered["max_steps"] + 2})


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("qwen3-4b", {"flavor": "t4-small"}, "bfloat16"),
        ("qwen3-8b", {"flavor": "a10g-largex4"}, "would idle"),
        ("qwen3-8b", {"flavor": "h200x8"}, "instead of"),
        ("qwen3-8b", {"flavor": "l4x1", "timeout": "10m"}, "killed after 10m"),
        ("smollm2-135m", {"flavor": "cpu-upgrade", "packing": True}, "no effect"),
    ],
)
def test_what_fits_badly_is_warned_about(model: str, options: dict[str, Any], said: str) -> None:
    assert any(said in text for text in plan(model, **options).warnings)


def test_little_headroom_is_warned_about() -> None:
    here = TABLES.flavors["l4x1"].model_copy(update={"name": "local", "ram_gb": 900, "usd_per_hour": 0})
    tight: Plan | None = None
    for length in range(1024, 40960, 256):
        try:
            tight = plan("qwen3-14b", here=here, local=True, load_in="4bit", batch_size=4, max_length=length)
        except RefusedError:
            break
    assert tight is not None
    assert tight.vram.peak_gib > tight.vram.available_gib * 0.95
    assert any("would stay free" in text for text in tight.warnings)


# The dataset's size -------------------------------------------------------------------------------------------------


def counted(rows: int | None, tokens: float | None) -> LookUp:
    return lambda name, config, split, revision: DataSize(rows, tokens, f"{name} was counted")


def test_epochs_are_planned_from_what_is_looked_up() -> None:
    made = plan(num_train_epochs=2.0, dataset="org/data", look_up=counted(10_000, 800.0), packing=False)
    assert "org/data was counted" in made.reasons["duration"]
    twice = plan(num_train_epochs=2.0, dataset="org/data", look_up=counted(20_000, 800.0), packing=False,
                 flavor=made.decisions.flavor.value, load_in=made.decisions.load_in.value)  # fmt: skip
    assert twice.duration.train_s > 1.8 * made.duration.train_s


def test_the_length_of_the_datasets_rows_counts_and_is_cut() -> None:
    short, long, cut = (
        plan(look_up=counted(None, tokens), packing=False, flavor="l40sx1", load_in="4bit", max_length=2048)
        for tokens in (100.0, 2048.0, 20_000.0)
    )
    assert short.duration.train_s < long.duration.train_s
    assert cut.duration.train_s == long.duration.train_s
    assert "about 100 tokens" in short.reasons["duration"]


def test_long_rows_are_not_packed_and_short_ones_are() -> None:
    assert not plan(look_up=counted(None, 1500.0), flavor="l40sx1").decisions.packing.value
    assert plan(look_up=counted(None, 300.0), flavor="l40sx1").decisions.packing.value


def test_a_service_that_does_not_answer_matters_only_for_epochs() -> None:
    def down(name: str, config: str | None, split: str, revision: str | None) -> DataSize:
        raise ServiceError("the dataset viewer did not answer.")

    assert "typical" in plan(look_up=down).reasons["duration"]
    with pytest.raises(RequestError, match="did not answer"):
        plan(look_up=down, num_train_epochs=1.0)


def test_a_local_file_is_measured(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "word " * 50}, {"role": "assistant", "content": "word " * 50}]}]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows * 40), encoding="utf-8")
    made = plan(dataset=str(path), num_train_epochs=2.0)
    assert "40 rows" in made.reasons["duration"]


def test_epochs_of_unknown_rows_may_run_where_nobody_pays() -> None:
    made = plan("smollm2-135m", local=True, here=LAPTOP, num_train_epochs=2.0, dataset="org/data")
    assert (made.options.num_train_epochs, made.decisions.max_steps.value) == (2.0, None)


def test_a_picture_is_part_of_a_row() -> None:
    small, large = (plan("qwen3-vl-8b", image_size=side, flavor="a100-large", load_in="4bit") for side in (448, 1280))
    assert small.duration.train_s < large.duration.train_s
    assert small.vram.peak_gib <= large.vram.peak_gib


# Host ---------------------------------------------------------------------------------------------------------------


def test_a_disk_that_is_too_small_is_no_offer() -> None:
    made = plan("qwen3-30b-a3b")
    t4 = next(offer for offer in made.offers if offer.flavor == "t4-small")
    assert not t4.fits
    assert made.host.disk_gb > 60
    assert made.host.disk_gb <= TABLES.flavors[made.decisions.flavor.value].disk_gb
    assert made.host.ram_gb <= TABLES.flavors[made.decisions.flavor.value].ram_gb


@pytest.mark.parametrize("model", sorted(TABLES.models))
def test_offers_that_fit_have_room_and_say_nothing_is_missing(model: str) -> None:
    made = plan(model)
    for offer in made.offers:
        assert offer.fits == (offer.why_not is None)
        assert offer.fits == (offer.total_s is not None) == (offer.expected_usd is not None)
        if offer.fits:
            assert offer.headroom >= 0
        elif offer.headroom < 0:
            assert offer.why_not is not None
            assert offer.why_not.startswith("memory: needs")
        else:
            assert offer.why_not is not None
            assert offer.why_not.startswith(("RAM: needs", "disk: needs"))


def test_epochs_are_planned_from_the_number_of_rows() -> None:
    made = plan(num_train_epochs=2.0, dataset_rows=1000)
    assert made.decisions.max_steps.value is None
    assert made.duration.train_s > 0


def test_a_local_run_needs_no_flavor_no_token_and_costs_nothing() -> None:
    made = plan("smollm2-135m", local=True, here=LAPTOP)
    assert made.decisions.flavor.value == "local"
    assert made.num_gpus == 0
    assert made.decisions.secrets.value == ()
    assert made.decisions.output_repo.value is None
    assert made.cost.max_usd == 0
    assert made.decisions.load_in.value == "16bit"


def test_a_local_model_that_is_too_large_is_refused() -> None:
    with pytest.raises(RefusedError, match="does not fit on this machine"):
        plan("qwen3-8b", local=True, here=LAPTOP)


def test_vision_is_refused_on_a_cpu_and_planned_on_a_gpu() -> None:
    with pytest.raises(RefusedError, match="no GPU"):
        plan("qwen3-vl-2b", local=True, here=LAPTOP)
    card = Gpu(title="RTX 4090", memory_gib=23.5, nominal_gb=24, bf16=True, compute_capability="8.9", bf16_tflops=1,
               bandwidth_gbs=1)  # fmt: skip
    made = plan("qwen3-vl-2b", local=True, here=LAPTOP.model_copy(update={"gpu": card, "num_gpus": 1}))
    assert made.decisions.load_in.value == "16bit"
    assert made.decisions.modality.value == "vision"


def test_a_small_model_may_train_on_a_cpu_flavor() -> None:
    made = plan("smollm2-135m", flavor="cpu-upgrade")
    assert (made.decisions.load_in.value, made.num_gpus) == ("16bit", 0)
    assert made.cost.usd_per_hour == 0.03


def test_the_large_default_dataset_is_streamed() -> None:
    assert plan("qwen3-vl-8b").decisions.streaming.value
    assert not plan("qwen3-vl-8b", streaming=False).decisions.streaming.value
    assert not plan("qwen3-vl-8b", dataset="me/pictures").decisions.streaming.value
    assert not plan("qwen3-8b").decisions.streaming.value


def test_idle_gpus_and_missing_bfloat16_are_warned_about() -> None:
    assert "would idle" in plan(flavor="a10g-largex4").warnings[0]
    assert "bfloat16" in plan("qwen3-4b", flavor="t4-small").warnings[0]


def test_a_plain_upload_is_loaded_and_a_dynamic_one_only_by_name() -> None:
    assert plan("qwen3-32b", load_in="4bit").facts.repo == "unsloth/Qwen3-32B-bnb-4bit"
    assert plan("qwen3-32b", load_in="4bit", revision="main").facts.repo == "unsloth/Qwen3-32B"
    assert plan("qwen3-8b", load_in="4bit").facts.repo == "unsloth/Qwen3-8B"
    named = plan("unsloth/Qwen3-8B-unsloth-bnb-4bit")
    assert (named.facts.repo, named.decisions.load_in.value) == ("unsloth/Qwen3-8B-unsloth-bnb-4bit", "4bit")
    assert any("is assumed" in text for text in named.warnings)
    with pytest.raises(RequestError, match="stored in 4 bits"):
        plan("unsloth/Qwen3-8B-unsloth-bnb-4bit", load_in="16bit")


# ---- How much is trained on ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "passes"), [(100, 3), (2_666, 3), (4_000, 2), (8_001, 1), (100_000, 1)])
def test_named_data_whose_rows_are_known_is_passed_over(rows: int, passes: int) -> None:
    made = plan(dataset="org/data", look_up=counted(rows, 500.0))
    assert (made.decisions.max_steps.value, made.options.num_train_epochs) == (None, passes)
    assert made.amount is not None
    assert (made.amount.rows, made.amount.passes) == (rows, passes)
    assert made.amount.held_out == made.decisions.eval_rows.value == min(64, rows // 10)
    assert made.reasons["max_steps"]
    assert f'num_train_epochs: Annotated[float | None, "Passes over the dataset."] = {passes}.0' in render(
        made, TABLES.stack
    )


def test_the_default_data_and_what_nobody_counted_get_steps() -> None:
    assert plan(look_up=counted(15_806, 500.0)).decisions.max_steps.value == 500
    made = plan(dataset="org/data")
    assert (made.decisions.max_steps.value, made.decisions.eval_rows.value) == (500, None)
    assert made.amount is not None and made.amount.passes is None
    assert "passes" in made.reasons["max_steps"]


def test_steps_are_said_as_passes_and_too_many_warned_about() -> None:
    made = plan(dataset="org/data", look_up=counted(100, 500.0), max_steps=500, packing=False)
    assert made.amount is not None and made.amount.passes == pytest.approx(500 * 16 / 90, abs=0.01)
    assert any(text.startswith("500 steps are 89 passes over 90 rows") for text in made.warnings)
    assert not any("passes over" in text for text in plan(dataset="org/data", look_up=counted(100, 500.0)).warnings)
    asked = plan(dataset="org/data", look_up=counted(100, 500.0), num_train_epochs=50)
    assert not any("passes over" in text for text in asked.warnings)


def test_what_was_learned_here_is_private_unless_it_is_said_otherwise(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a row"}\n')
    assert [plan(dataset=str(rows), private=said).decisions.private.value for said in (None, True, False)] == [
        True, True, False,
    ]  # fmt: skip
    assert plan(dataset="org/data").decisions.private.value is False
    assert plan(dataset=str(rows), push=False).decisions.private.value is False


def test_a_timeout_below_the_start_up_is_refused() -> None:
    with pytest.raises(RefusedError, match="before its first step") as caught:
        plan(timeout="1m")
    assert "at least" in caught.value.hint
    assert plan(timeout="20m").decisions.timeout_s.value == 1200
