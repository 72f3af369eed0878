"""What this machine is, in the terms of a flavor."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from launcher.catalog.tables import Flavor, Gpu

LOCAL = "local"
_GIB = 2**30
_QUERY = "name,memory.total,compute_cap"


def here() -> Flavor:
    """This machine as a flavor that costs nothing; its GPUs are what `nvidia-smi` says, if there is one."""
    gpus = _gpus()
    return Flavor(
        name=LOCAL,
        gpu=gpus[0] if gpus else None,
        num_gpus=len(gpus),
        vcpu=os.cpu_count() or 1,
        ram_gb=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        disk_gb=round(shutil.disk_usage(Path.home()).free / 1e9, 1),
        usd_per_hour=0,
    )


def _gpus() -> list[Gpu]:
    command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [_gpu(*(cell.strip() for cell in line.split(","))) for line in answer.splitlines() if line.count(",") == 2]


def _gpu(title: str, total_mib: str, capability: str) -> Gpu:
    """A card whose speed is not claimed: nothing is paid for it by the hour."""
    return Gpu(
        title=title,
        memory_gib=float(total_mib) * 2**20 / _GIB,
        nominal_gb=round(float(total_mib) / 1000),
        bf16=float(capability) >= 8,
        compute_capability=capability,
        bf16_tflops=1,
        bandwidth_gbs=1,
    )
