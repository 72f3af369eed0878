"""What each machine would do with a run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from launcher import catalog
from launcher.catalog import Flavor
from launcher.estimate import memory
from launcher.estimate.setup import Setup
from launcher.plan import machines as offers
from launcher.plan.workload import Workload

TABLES = catalog.shipped()
FLAVORS = list(TABLES.flavors.values())


def workload(model: str = "qwen3-8b", *, length: int = 2048, load_in: str = "4bit", **changes: Any) -> Workload:
    known = TABLES.models[model]
    modality = known.modalities[0]
    setup = Setup(
        "4bit" if load_in == "4bit" else "16bit", "unsloth", length, 1, 16, modality=modality,
        image_size=768 if modality == "vision" else None,
    )  # fmt: skip
    made = Workload(model=known, setup=setup, rows_per_step=16, row_tokens=530, steps=500, eval_rows=64, dataset_gb=0)
    return replace(made, **changes)


@pytest.mark.parametrize("model", sorted(TABLES.models))
@pytest.mark.parametrize("load_in", ["4bit", "16bit"])
def test_a_run_fits_where_nothing_is_missing(model: str, load_in: str) -> None:
    fits = offers.survey(FLAVORS, workload(model, load_in=load_in))
    assert {fit.flavor.name for fit in fits} == {flavor.name for flavor in FLAVORS if flavor.gpu}
    for fit in fits:
        enough = (
            fit.footprint.peak <= fit.room
            and fit.host.ram_gb <= fit.flavor.ram_gb
            and fit.host.disk_gb <= fit.flavor.disk_gb
        )
        assert fit.fits == enough
        assert (fit.headroom >= 0) == (fit.footprint.peak <= fit.room)
        assert fit.footprint == memory.footprint(TABLES.models[model], fit.setup, fit.gpu)
        assert fit.step.rows % fit.setup.batch_size == 0


@pytest.mark.parametrize(("prefer", "key"), [("cheap", "usd"), ("fast", "total_s")])
def test_the_best_comes_first(prefer: Any, key: str) -> None:
    fits = offers.survey(FLAVORS, workload("qwen3-14b"), prefer)
    fitting = [fit for fit in fits if fit.fits]
    values = [fit.usd if key == "usd" else fit.duration.total_s for fit in fitting]
    assert values == sorted(values)
    assert fits[: len(fitting)] == fitting


def test_idle_gpus_are_offered_and_never_chosen() -> None:
    fits = offers.survey(FLAVORS, workload())
    assert any(fit.fits and fit.flavor.num_gpus > 1 for fit in fits)
    assert all(fit.flavor.num_gpus == 1 for fit in offers.single(fits))


def test_the_batch_stays_small_where_the_ram_is() -> None:
    card = TABLES.flavors["h200"]
    made = workload("llama-3.1-8b", packing=False, rows_per_step=64)
    roomy = offers.at(card, made)
    cramped = offers.at(card.model_copy(update={"ram_gb": 12}), made)
    assert cramped.fits
    assert cramped.setup.batch_size < roomy.setup.batch_size
    assert cramped.host.ram_gb <= 12


def test_too_little_ram_or_disk_is_no_fit_however_large_the_card() -> None:
    card = TABLES.flavors["h200"]
    for field, said in (("ram_gb", "RAM: needs"), ("disk_gb", "disk: needs")):
        fit = offers.at(card.model_copy(update={field: 6}), workload())
        assert not fit.fits
        assert fit.headroom > 0
        assert str(fit.why_not).startswith(said)


def test_this_machine_has_the_training_stack_already() -> None:
    here = Flavor(name="local", vcpu=8, ram_gb=32, disk_gb=5, usd_per_hour=0)
    small = workload("smollm2-135m", load_in="16bit")
    assert offers.at(here, small, local=True).fits
    assert not offers.at(here, small).fits


def test_evaluation_counts_only_where_there_is_one() -> None:
    flavor = TABLES.flavors["l4x1"]
    with_it, without = (offers.at(flavor, workload(eval_rows=rows)) for rows in (64, 0))
    assert with_it.setup.eval_batch_size == min(with_it.setup.batch_size, 2)
    assert without.setup.eval_batch_size == 0
    assert without.footprint.peak <= with_it.footprint.peak
