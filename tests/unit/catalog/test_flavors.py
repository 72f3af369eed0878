"""The service's list of machines: read, kept, laid over the shipped one, and what of it has changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher import catalog
from launcher.catalog import Flavor
from launcher.catalog import flavors as hardware
from launcher.catalog.flavors import Change, Listed
from launcher.errors import RefusedError, ServiceError
from launcher.hub import client
from launcher.jobs import service
from tests.emulator import Hub
from tests.faults import command

SHIPPED = catalog.shipped().flavors


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path / "hub", run=False) as stand_in:
        yield stand_in


def launch(hub: Hub | None, *args: str) -> command.Ran:
    return command.run(*args, env=hub.env() if hub else {"HF_ENDPOINT": "http://127.0.0.1:9"})


def listed(name: str = "l4x1", **changes: Any) -> Listed:
    values: dict[str, Any] = {
        "name": name, "accelerator": "L4", "num_gpus": 1, "vram_gb": 24.0, "vcpu": 8, "ram_gb": 30.0, "disk_gb": 400.0,
        "usd_per_hour": 0.8,
    }  # fmt: skip
    return Listed(**values | changes)


def merged(*items: Listed) -> dict[str, Flavor]:
    return hardware.merged(SHIPPED, items)


def test_the_words_of_the_service_become_numbers() -> None:
    read = hardware.read(
        "a10g-largex2", cpu="24 vCPU", ram="92 GB", disk="1.5 TB", unit_usd=0.05, unit="minute",
        accelerator="A10G", quantity="2", vram="48 GB",
    )  # fmt: skip
    assert read == Listed(
        name="a10g-largex2", accelerator="A10G", num_gpus=2, vram_gb=48, vcpu=24, ram_gb=92, disk_gb=1500,
        usd_per_hour=3.0,
    )  # fmt: skip
    bare = hardware.read("cpu-basic", cpu="2 vCPU", ram="16 GB", disk="N/A", unit_usd=0.000167, unit="minute")
    assert (bare.num_gpus, bare.disk_gb, bare.usd_per_hour) == (0, None, 0.01)
    with pytest.raises(ValueError, match="fortnight"):
        hardware.read("x", cpu="", ram="", disk="", unit_usd=1, unit="fortnight")


def test_the_same_list_from_the_service_changes_nothing(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    items, problems = service.hardware(client.Hub())
    assert problems == []
    assert hardware.changes(SHIPPED, hardware.merged(SHIPPED, items)) == []


def test_what_the_list_does_not_say_is_kept_from_the_shipped_one() -> None:
    [flavor] = merged(listed(vram_gb=None, ram_gb=None, disk_gb=None, vcpu=None, usd_per_hour=0.7)).values()
    assert flavor == SHIPPED["l4x1"].model_copy(update={"usd_per_hour": 0.7})


@pytest.mark.parametrize(
    ("item", "gpu"),
    [
        (listed("new", accelerator="Nvidia L4"), "L4"),
        (listed("new", accelerator="NVIDIA-L4", num_gpus=4, vram_gb=96), "L4"),
        (listed("new", accelerator="L4", num_gpus=4, vram_gb=24), None),
        (listed("new", accelerator="A100", vram_gb=40), None),
        (listed("new", accelerator="B200", vram_gb=180), None),
        (listed("rtx-pro-6000", accelerator="RTX PRO 6000 Blackwell", vram_gb=96), "RTX PRO 6000"),
        (listed("l4x4", accelerator="L4", num_gpus=4, vram_gb=24), "L4"),
        (listed("l4x1", accelerator="A10G", vram_gb=24), "A10G"),
        (listed("h200", accelerator="B200", vram_gb=180), None),
    ],
)
def test_a_gpu_is_known_by_its_name_and_size(item: Listed, gpu: str | None) -> None:
    [flavor] = merged(item).values()
    assert (flavor.gpu.title if flavor.gpu else None) == gpu
    assert (flavor.accelerator is None) == (gpu is not None)
    assert flavor.num_gpus == item.num_gpus


def test_machines_with_gpus_come_first_and_cheap_ones_before_dear_ones() -> None:
    cpu = listed("cpu", accelerator=None, num_gpus=0, vram_gb=None, usd_per_hour=0.01)
    assert list(merged(cpu, listed("b", usd_per_hour=2), listed("a"))) == ["a", "b", "cpu"]


def test_every_change_is_named() -> None:
    after = merged(listed(usd_per_hour=0.9, ram_gb=32), listed("l4x9", num_gpus=9, vram_gb=216))
    changes = hardware.changes({name: SHIPPED[name] for name in ("l4x1", "t4-small")}, after)
    assert changes == [
        Change("l4x9", "new"),
        Change("t4-small", "gone"),
        Change("l4x1", "changed", "usd_per_hour", 0.8, 0.9),
        Change("l4x1", "changed", "ram_gb", 30, 32),
    ]


def test_a_refreshed_list_wins_and_says_what_has_changed(hub: Hub) -> None:
    assert "August 2026" in launch(None, "flavors").stderr
    hub.flavors["l4x1"] |= {"unitCostUSD": 0.02, "unitCostMicroUSD": 20_000}
    hub.flavors["b200"] = hub.flavors["h200"] | {
        "name": "b200",
        "accelerator": {"type": "gpu", "model": "B200", "quantity": "1", "vram": "180 GB", "manufacturer": "Nvidia"},
    }
    del hub.flavors["t4-small"]
    answer = launch(hub, "flavors", "--refresh")
    assert answer.returncode == 0, answer.stderr
    said = " ".join(answer.stderr.split())
    for words in ("l4x1 $0.80 → $1.20 per hour", "b200 new", "t4-small gone", "nothing can be planned on b200"):
        assert words in said
    assert "B200 180 GB, not known here" in answer.stdout
    assert "t4-small" not in answer.stdout
    # From here on without the service.
    flavors = {flavor["name"]: flavor for flavor in json.loads(launch(None, "flavors", "--json").stdout)}
    assert flavors["l4x1"]["usd_per_hour"] == 1.2
    assert flavors["b200"]["accelerator"] == "B200 180 GB"
    plan = json.loads(launch(None, "plan", "--model", "qwen3-8b", "--flavor", "l4x1", "--json").stdout)
    assert plan["cost"]["usd_per_hour"] == 1.2
    assert {"b200", "t4-small"}.isdisjoint(offer["flavor"] for offer in plan["offers"])
    refused = launch(None, "plan", "--model", "qwen3-8b", "--flavor", "b200")
    assert refused.returncode == 3
    assert "B200 180 GB" in refused.stderr
    again = launch(hub, "flavors", "--refresh", "--json")
    assert "nothing has changed" in again.stderr
    assert json.loads(again.stdout) == list(flavors.values())


def test_a_machine_without_a_price_that_is_understood_is_said_and_left_out(hub: Hub) -> None:
    hub.flavors["l4x1"] |= {"unitLabel": "fortnight"}
    answer = launch(hub, "flavors", "--refresh")
    assert answer.returncode == 0
    assert "fortnight" in answer.stderr
    assert "l4x1" not in answer.stdout


@pytest.mark.parametrize(
    ("flavors", "said"),
    [({}, "lists no flavor"), ({"x": {"name": "x"}}, "not of the form"), ({"x": "a string"}, "not of the form")],
)
def test_a_list_that_can_not_be_used_leaves_what_was_there(hub: Hub, flavors: dict[str, Any], said: str) -> None:
    hub.flavors = flavors
    answer = launch(hub, "flavors", "--refresh")
    assert answer.returncode == ServiceError.exit_code
    assert said in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not hardware.path().exists()


def test_without_a_network_refresh_fails_and_nothing_else_does(launch_home: Path) -> None:
    answer = launch(None, "flavors", "--refresh")
    assert (answer.returncode, answer.stdout) == (4, "")
    assert launch(None, "flavors").returncode == 0


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"flavors": []}', '{"format": "launch flavors 2"}', "\ud83d", "🚀"]
)
def test_a_file_that_is_no_such_list_is_left_aside_with_a_notice(content: str) -> None:
    hardware.path().parent.mkdir(parents=True, exist_ok=True)
    hardware.path().write_text(content, encoding="utf-8", errors="surrogatepass")
    tables = catalog.load()
    assert tables.flavors == SHIPPED
    [notice] = tables.notices
    assert str(hardware.path()) in notice and "--refresh" in notice


def test_a_file_that_can_not_be_read_does_not_stop_a_plan() -> None:
    hardware.path().mkdir(parents=True)
    answer = launch(None, "plan", "--model", "qwen3-8b", "--json")
    assert answer.returncode == 0
    assert "left aside" in answer.stderr
    assert json.loads(answer.stdout)["repo"] == "unsloth/Qwen3-8B"
    with pytest.raises(RefusedError, match="can't be kept"):
        hardware.keep([listed()])
