"""What the machine around the GPU must hold, RAM and disk, as a pure function; GB are 10^9 bytes.

Measured on this project's machines where it says so; what is assumed says that too.
"""

from __future__ import annotations

from pathlib import Path

from launcher.catalog import Flavor, Model
from launcher.estimate import copies, duration
from launcher.estimate.copies import Copies
from launcher.estimate.memory import adapter_parameters
from launcher.estimate.setup import Setup
from launcher.estimate.values import Host
from launcher.plan.workload import Workload

_GB = 1e9
# `du` of the script's environment, CUDA libraries included (torch 2.14, Python 3.11): 5.9 GB. The image and the
# caches of the kernels that are compiled come on top.
_STACK_GB = 7.0
# Python with torch, CUDA, Unsloth and the workers that compile kernels; assumed, rounded up.
_PROCESS_GB = 5.0
# Weights are read through a memory map, a shard at a time; this is how large uploads make them.
_SHARD_GB = 5.0
_STREAM_GB = 1.0
# A saved adapter weight in float32 and, in a checkpoint, its two 8-bit moments.
_ADAPTER_BYTES = 4 + 2


def needs(workload: Workload, setup: Setup, *, gpu: bool = True, installed: bool = False) -> Host:
    """RAM and disk of a run with that micro-batch, and of the copies that are made after it.

    `installed` where the training stack is on the machine already. A dataset of unknown size counts nothing.
    """
    model = workload.model
    weights = model.params * 2 / _GB
    loading = min(weights, _SHARD_GB)
    training = _offloaded(workload, setup) if gpu else 0
    # A shard of the 16-bit weights and what it becomes.
    merging = min(2 * weights, 2 * _SHARD_GB) if workload.copies.any else 0
    disk = (
        (0 if installed else _STACK_GB)
        + download_gb(workload, setup.load_in)
        + (workload.dataset_gb or 0)
        + adapter_parameters(model, setup) * _ADAPTER_BYTES / _GB
        + copies.disk_bytes(model, setup.load_in, workload.copies) / _GB
    )
    ram = _PROCESS_GB + max(loading, training, merging) + (_STREAM_GB if workload.streaming else 0)
    return Host(ram_gb=round(ram, 1), disk_gb=round(disk, 1))


def of_export(
    model: Model, load_in: str, wanted: Copies, *, loaded_gb: float, adapter_gb: float, installed: bool = False
) -> Host:
    """RAM and disk of an export; `loaded_gb` of the model's memory lie in RAM, where there is no GPU.

    Measured there: 4.5 GB for 0.81 billion weights (bfloat16, two cores, job_scripts/export.py), which are Python, the
    model, and the merged one beside it until it is written, with a shard in the making.
    """
    shard = min(copies.full_bytes(model) / _GB, _SHARD_GB)
    disk = (
        (0 if installed else _STACK_GB)
        + (0 if Path(model.repo).is_absolute() else duration.download_bytes(model, load_in) / _GB)
        + copies.disk_bytes(model, load_in, wanted) / _GB
        + adapter_gb
    )
    merged = copies.full_bytes(model) / _GB if loaded_gb else shard
    ram = _PROCESS_GB + loaded_gb + merged + shard
    return Host(ram_gb=round(ram, 1), disk_gb=round(disk, 1))


def download_gb(workload: Workload, load_in: str) -> float:
    """GB of weights that are downloaded; none for a local folder."""
    model = workload.model
    return 0 if Path(model.repo).is_absolute() else duration.download_bytes(model, load_in) / _GB


def lacking(needed: Host, flavor: Flavor) -> str | None:
    """What the machine has too little of, in words; None where it holds the run."""
    for name, need, has in (("RAM", needed.ram_gb, flavor.ram_gb), ("disk", needed.disk_gb, flavor.disk_gb)):
        if need > has:
            return f"{name}: needs {need:.0f} GB, has {has:.0f} GB"
    return None


def _offloaded(workload: Workload, setup: Setup) -> float:
    """GB of layer inputs that checkpointing keeps in pinned host memory, a block a layer but the last.

    Source: unsloth_zoo 2026.10.9, `gradient_checkpointing.py`: `CPU_BUFFERS`, in 16 bits; torch's pinned allocator
    rounds each block up to a power of two (`CachingHostAllocator.h`). Plain TRL keeps them on the GPU.
    """
    if setup.engine == "trl":
        return 0
    model, side = workload.model, setup.image_size
    rows = setup.batch_size
    total = (model.arch.num_layers - 1) * _pinned(rows * setup.max_length * model.arch.hidden_size * 2)
    if setup.modality == "vision" and model.vision is not None and side:
        patches = rows * setup.images * model.vision.patches(side)
        total += model.vision.num_layers * _pinned(patches * model.vision.hidden_size * 2)
    return total / _GB


def _pinned(size: int) -> int:
    """Bytes that a pinned block of that size takes."""
    return 1 << (size - 1).bit_length()
