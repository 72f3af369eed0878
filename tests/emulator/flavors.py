"""The machines that Jobs can ask for: the launcher's own table where it is there, else a few."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

TABLE = Path(__file__).parents[2] / "launcher" / "data" / "flavors.toml"
FEW = """
[gpus.t4]
title = "T4"
nominal_gb = 16
[gpus.a10g]
title = "A10G"
nominal_gb = 24
[flavors]
cpu-basic = { num_gpus = 0, vcpu = 2, ram_gb = 16, disk_gb = 50, usd_per_hour = 0.01 }
t4-small = { gpu = "t4", num_gpus = 1, vcpu = 4, ram_gb = 15, disk_gb = 50, usd_per_hour = 0.40 }
a10g-large = { gpu = "a10g", num_gpus = 1, vcpu = 12, ram_gb = 46, disk_gb = 200, usd_per_hour = 1.50 }
"""


def load() -> dict[str, dict[str, Any]]:
    """Each flavor by name, in the form of `GET /api/jobs/hardware`."""
    table = tomllib.loads(TABLE.read_text() if TABLE.exists() else FEW)
    return {name: _hardware(name, flavor, table["gpus"]) for name, flavor in table["flavors"].items()}


def _hardware(name: str, flavor: dict[str, Any], gpus: dict[str, Any]) -> dict[str, Any]:
    count, usd = flavor["num_gpus"], flavor["usd_per_hour"] / 60
    accelerator = None
    if count:
        gpu = gpus[flavor["gpu"]]
        accelerator = {
            "type": "gpu",
            "model": gpu["title"],
            "quantity": str(count),
            "vram": f"{gpu['nominal_gb'] * count} GB",
            "manufacturer": "Nvidia",
        }
    return {
        "name": name,
        "prettyName": f"{accelerator['model']} - {name}" if accelerator else name,
        "cpu": f"{flavor['vcpu']} vCPU",
        "ram": f"{flavor['ram_gb']} GB",
        "ephemeralStorage": f"{flavor['disk_gb']} GB",
        "accelerator": accelerator,
        "unitCostMicroUSD": round(usd * 1e6),
        "unitCostUSD": usd,
        "unitLabel": "minute",
    }
