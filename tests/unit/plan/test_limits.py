"""A refusal's hints: each change really makes the run fit."""

from __future__ import annotations

import re
from datetime import date
from typing import Any

import pytest

from launcher import catalog, spec
from launcher.catalog import Flavor
from launcher.errors import RefusedError
from launcher.plan import limits as remedies
from launcher.plan import make as planner
from launcher.plan.record import Plan

TABLES = catalog.shipped()
CASES: list[dict[str, Any]] = [
    {"model": "llama-3.3-70b", "flavor": "t4-small"},
    {"model": "qwen3-14b", "flavor": "a10g-large", "load_in": "16bit"},
    {"model": "qwen3-32b", "flavor": "l4x1", "max_length": 32768},
    {"model": "qwen3-8b", "flavor": "a10g-large", "load_in": "16bit", "max_length": 16384, "batch_size": 4},
    {"model": "qwen3-8b", "flavor": "l4x1", "max_length": 4096, "batch_size": 32},
    {"model": "qwen3-8b", "flavor": "l4x1", "batch_size": 64, "gradient_accumulation": 2},
    {"model": "qwen3-8b", "flavor": "l4x1", "batch_size": 64, "packing": True},
    {"model": "qwen3-14b", "flavor": "l4x1", "lora_r": 1024},
    {"model": "qwen3-vl-32b", "flavor": "t4-medium"},
    {"model": "qwen3-vl-8b", "flavor": "l4x1", "image_size": 4096, "max_length": 32768, "batch_size": 8},
    {"model": "llama-3.2-90b-vision", "flavor": "l40sx1"},
    {"model": "qwen3-30b-a3b", "flavor": "t4-medium"},
    {"model": "llama-3.1-70b", "load_in": "16bit", "batch_size": 64},
    {"model": "qwen2.5-72b", "load_in": "16bit", "max_length": 32768},
]


def plan(here: Flavor | None = None, **options: Any) -> Plan:
    return planner.make_plan(spec.build(options), TABLES, today=date(2026, 11, 24), here=here)


def applied(line: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    words = line.split(": ")[0].split()
    while words:
        flag = words.pop(0)
        if words and not words[0].startswith("--"):
            value = words.pop(0)
            options[flag[2:].replace("-", "_")] = int(value) if value.isdigit() else value
        else:
            options[flag.removeprefix("--no-").removeprefix("--").replace("-", "_")] = not flag.startswith("--no-")
    return options


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(str(value) for value in case.values()))
def test_each_change_that_is_offered_makes_the_run_fit(case: dict[str, Any]) -> None:
    with pytest.raises(RefusedError, match="does not fit on") as caught:
        plan(**case)
    lines = [line.strip() for line in caught.value.hint.splitlines() if line.startswith("  --")]
    assert 1 <= len(lines) <= remedies.SHOWN
    for line in lines:
        options = applied(line)
        changed = case | options
        assert plan(**changed).vram.fits, line
        # A change on the same machine is worked out in the precision that was refused.
        made = plan(**changed if "flavor" in options else {"load_in": "4bit"} | changed)
        peak, room = (float(text) for text in re.findall(r"([0-9.]+) of ([0-9.]+) GiB", line)[0])
        assert made.vram.peak_gib == pytest.approx(peak, abs=0.06)
        assert made.vram.available_gib == pytest.approx(room, abs=0.06)
        flavor, batch = TABLES.flavors[made.decisions.flavor.value], made.decisions.batch_size.value
        assert f" on {flavor.name}, batch {batch}, about ${made.cost.expected_usd:.2f}" in line
        assert made.host.ram_gb <= flavor.ram_gb
        assert made.host.disk_gb <= flavor.disk_gb


def test_a_smaller_batch_comes_before_what_changes_the_result() -> None:
    with pytest.raises(RefusedError) as caught:
        plan(model="qwen3-8b", flavor="l4x1", max_length=4096, batch_size=32)
    first = applied(caught.value.hint.splitlines()[1].strip())
    assert first["batch_size"] < 32
    assert first.get("effective_batch_size", 16) == 32


def test_4bit_comes_before_another_machine() -> None:
    with pytest.raises(RefusedError) as caught:
        plan(model="qwen3-14b", flavor="a10g-large", load_in="16bit")
    assert caught.value.hint.splitlines()[1].startswith("  --load-in 4bit: ")
    assert "--flavor" in caught.value.hint


def test_the_largest_length_that_fits_is_offered() -> None:
    card = TABLES.flavors["l4x1"].model_copy(update={"name": "local", "ram_gb": 900, "usd_per_hour": 0})
    asked: dict[str, Any] = {"model": "qwen3-14b", "local": True, "load_in": "4bit", "batch_size": 8, "packing": False}
    with pytest.raises(RefusedError) as caught:
        plan(here=card, **asked, max_length=32768)
    line = next(line for line in caught.value.hint.splitlines() if line.startswith("  --max-length"))
    length = applied(line.strip())["max_length"]
    assert plan(here=card, **asked, max_length=length).vram.fits
    with pytest.raises(RefusedError):
        plan(here=card, **asked, max_length=min(longer for longer in remedies.LENGTHS if longer > length))


def test_what_fits_nowhere_says_so() -> None:
    here = Flavor(name="local", vcpu=8, ram_gb=16, disk_gb=200, usd_per_hour=0)
    with pytest.raises(RefusedError, match="does not fit on this machine") as caught:
        plan(model="qwen3-8b", local=True, here=here)
    assert "Without --local it fits on" in caught.value.hint


def test_a_disk_that_the_data_fills_is_helped_by_a_stream() -> None:
    card = TABLES.flavors["l4x1"].model_copy(update={"name": "local", "disk_gb": 20, "usd_per_hour": 0})
    asked: dict[str, Any] = {"model": "qwen3-vl-2b", "local": True, "max_steps": 100}
    with pytest.raises(RefusedError, match="disk: needs") as caught:
        plan(here=card, **asked, streaming=False)
    assert caught.value.hint.splitlines()[1].startswith("  --streaming: ")
    assert plan(here=card, **asked, streaming=True).vram.fits
