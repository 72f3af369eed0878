"""RAM and disk around the GPU."""

from __future__ import annotations

import pytest

from launcher import catalog
from launcher.catalog import Flavor
from launcher.estimate.copies import Copies
from launcher.estimate.setup import Setup
from launcher.estimate.values import Host
from launcher.plan import host
from launcher.plan.workload import Workload

TABLES = catalog.shipped()


def workload(
    model: str,
    load_in: str = "4bit",
    *,
    length: int = 2048,
    batch: int = 1,
    engine: str = "unsloth",
    wanted: Copies | None = None,
) -> Workload:
    setup = Setup("4bit" if load_in == "4bit" else "16bit", "trl" if engine == "trl" else "unsloth", length, batch, 16)
    return Workload(
        model=TABLES.models[model], setup=setup, rows_per_step=16, row_tokens=530, steps=100, dataset_gb=0,
        copies=wanted or Copies(),
    )  # fmt: skip


def needs(model: str, load_in: str = "4bit", *, merge: bool = False, gguf: bool = False, **changes: int | str) -> Host:
    wanted = Copies("16bit" if merge else None, ("q4_k_m",) if gguf else ())
    made = workload(model, load_in, wanted=wanted, **changes)  # type: ignore[arg-type]
    return host.needs(made, made.setup)


@pytest.mark.parametrize("model", ["qwen3-4b", "qwen3-8b", "llama-3.1-8b", "qwen2.5-7b"])
def test_the_small_machines_hold_a_4bit_run(model: str) -> None:
    assert host.lacking(needs(model), TABLES.flavors["t4-small"]) is None


def test_a_16bit_merge_of_8b_does_not_fit_everywhere() -> None:
    small = TABLES.flavors["t4-small"]
    assert str(host.lacking(needs("llama-3.1-8b", gguf=True), small)).endswith("GB, has 50 GB")
    assert host.lacking(needs("qwen3-14b", merge=True), small) is not None
    assert host.lacking(needs("qwen3-14b", merge=True), TABLES.flavors["l4x1"]) is None


def test_a_merge_of_a_4bit_run_downloads_the_16bit_weights_too() -> None:
    weights = TABLES.models["qwen3-32b"].params * 2 / 1e9
    narrow = needs("qwen3-32b", merge=True).disk_gb - needs("qwen3-32b").disk_gb
    wide = needs("qwen3-32b", "16bit", merge=True).disk_gb - needs("qwen3-32b", "16bit").disk_gb
    assert narrow == pytest.approx(2 * weights, abs=0.2)
    assert wide == pytest.approx(weights, abs=0.2)


def test_a_model_that_is_quantised_while_it_loads_has_its_16bit_weights_already() -> None:
    weights = TABLES.models["qwen3-8b"].params * 2 / 1e9
    assert TABLES.models["qwen3-8b"].loads("4bit") == TABLES.models["qwen3-8b"].repo
    assert needs("qwen3-8b", merge=True).disk_gb - needs("qwen3-8b").disk_gb == pytest.approx(weights, abs=0.2)


def test_the_offloaded_activations_of_a_long_batch_are_ram() -> None:
    # 35 layers' inputs of 16,384 x 4 tokens of 4,096 numbers in 16 bits.
    offloaded = 35 * 16384 * 4 * 4096 * 2 / 1e9
    assert needs("qwen3-8b", length=16384, batch=4).ram_gb == pytest.approx(5 + offloaded, abs=0.2)
    assert needs("qwen3-8b", length=16384, batch=4, engine="trl").ram_gb < 12


def test_a_model_without_a_4bit_upload_is_downloaded_whole() -> None:
    model = TABLES.models["qwen3-30b-a3b"]
    assert model.repo_4bit is None
    assert needs("qwen3-30b-a3b").disk_gb > model.params * 2 / 1e9
    assert needs("qwen3-32b").disk_gb < TABLES.models["qwen3-32b"].params * 1.0 / 1e9


def test_what_is_missing_is_said_with_both_figures() -> None:
    machine = Flavor(name="small", vcpu=2, ram_gb=8, disk_gb=20, usd_per_hour=1)
    assert host.lacking(Host(ram_gb=10, disk_gb=92), machine) == "RAM: needs 10 GB, has 8 GB"
    assert host.lacking(Host(ram_gb=8, disk_gb=92), machine) == "disk: needs 92 GB, has 20 GB"
    assert host.lacking(Host(ram_gb=8, disk_gb=20), machine) is None
