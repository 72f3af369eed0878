"""The service's own list of machines: kept in a file once it was asked for, and laid over the shipped table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from launcher import home
from launcher.catalog.tables import Catalog, Flavor, Gpu, shipped
from launcher.errors import RefusedError

_NUMBER = re.compile(r"(\d+(?:\.\d+)?)\s*(vCPU|MB|MiB|GB|GiB|TB|TiB)?s?", re.IGNORECASE)
_GB = {"mb": 1e-3, "mib": 1e-3, "": 1, "gb": 1, "gib": 1, "tb": 1000, "tib": 1000}  # the service's GiB are its GB
_PER_HOUR = {"second": 3600, "minute": 60, "hour": 1}
# A card's memory is written rounded, with or without what its error correction takes.
_SAME_MEMORY = 0.1


class Listed(BaseModel):
    """One machine as the service lists it; none where it does not say. `vram_gb` is of all its GPUs together."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=100)
    accelerator: str | None
    num_gpus: int = Field(ge=0, le=1024)
    vram_gb: float | None
    vcpu: int | None
    ram_gb: float | None
    disk_gb: float | None
    usd_per_hour: float = Field(ge=0)


class Kept(BaseModel):
    """The file: the list and when it was taken."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["launch flavors 1"] = "launch flavors 1"
    taken: datetime
    flavors: tuple[Listed, ...] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Change:
    """What is different about one flavor: `new` and `gone` have no field; else a field's value before and after."""

    flavor: str
    kind: Literal["new", "gone", "changed"]
    field: str | None = None
    before: Any = None
    after: Any = None


def read(
    name: str, *, cpu: str, ram: str, disk: str, unit_usd: float, unit: str,
    accelerator: str | None = None, quantity: str = "0", vram: str = "",
) -> Listed:  # fmt: skip
    """A machine from the words of the service, such as `8 vCPU` and `30 GB`; `ValueError` where there is no price."""
    if unit not in _PER_HOUR or not isinstance(unit_usd, int | float):
        raise ValueError(f"{name}: no price is known from {unit_usd!r} per {unit!r}")
    vcpu, count = _number(cpu), _number(quantity)
    return Listed(
        name=name,
        accelerator=accelerator,
        num_gpus=round(count or 1) if accelerator else 0,
        vram_gb=_number(vram),
        vcpu=None if vcpu is None else round(vcpu),
        ram_gb=_number(ram),
        disk_gb=_number(disk),
        usd_per_hour=round(unit_usd * _PER_HOUR[unit], 3),
    )


def _number(text: str) -> float | None:
    match = _NUMBER.fullmatch(str(text).strip())  # a number where there was text is fine
    return float(match[1]) * _GB.get((match[2] or "").lower(), 1) if match else None


def path() -> Path:
    """Where the list is kept; it may not be there."""
    return home.cache() / "flavors.json"


def taken_now(listed: Iterable[Listed]) -> Kept:
    """The list with its time; `pydantic.ValidationError` for one of no machines."""
    return Kept(taken=datetime.now(UTC).replace(microsecond=0), flavors=tuple(listed))


def keep(listed: Iterable[Listed]) -> Kept:
    """Write the list to its file, whole or not at all; `RefusedError` where that can't be."""
    kept = taken_now(listed)
    try:
        path().parent.mkdir(parents=True, exist_ok=True)
        home.write(path(), kept.model_dump_json(indent=1) + "\n")
    except OSError as error:
        raise RefusedError(
            f"the list of flavors can't be kept at {path()}: {error.strerror or error}.",
            "Make room there, or set LAUNCH_HOME to another folder.",
        ) from error
    return kept


def load() -> Catalog:
    """Every table of the package; the list of flavors that `launch flavors --refresh` has kept wins over its own."""
    return laid_over(shipped())


def laid_over(tables: Catalog) -> Catalog:
    """The catalog with the kept list's machines, where there is one, in place of the shipped ones.

    Where the file can't be read as such a list, the shipped one stays and a notice of the catalog says so.
    """
    try:
        kept = Kept.model_validate_json(path().read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return tables
    except (OSError, ValidationError) as error:
        what = error.strerror if isinstance(error, OSError) else "it is not a list that this version wrote"
        notice = f"{path()} is left aside: {what}. `launch flavors --refresh` writes it anew."
        return tables.model_copy(update={"notices": (*tables.notices, notice)})
    return over(tables, kept)


def over(tables: Catalog, kept: Kept) -> Catalog:
    """The catalog with that list's machines in place of the shipped ones."""
    taken = f"the service's list of {kept.taken.day} {kept.taken:%B %Y, %H:%M} UTC"
    return tables.model_copy(update={"flavors": merged(tables.flavors, kept.flavors), "flavors_from": taken})


def merged(shipped: Mapping[str, Flavor], listed: Iterable[Listed]) -> dict[str, Flavor]:
    """The listed machines, each with what is shipped for it where the list is silent; with GPUs and cheap ones first.

    A machine with a GPU that no shipped flavor has keeps the service's words for it as its `accelerator`.
    """
    gpus = {_plain(flavor.gpu.title): flavor.gpu for flavor in shipped.values() if flavor.gpu}
    flavors = [_flavor(item, shipped.get(item.name), gpus) for item in listed]
    return {
        flavor.name: flavor
        for flavor in sorted(flavors, key=lambda flavor: (not flavor.num_gpus, flavor.usd_per_hour, flavor.name))
    }


def _flavor(item: Listed, known: Flavor | None, gpus: Mapping[str, Gpu]) -> Flavor:
    gpu = _gpu(item, known, gpus)
    memory = f" {item.vram_gb / item.num_gpus:g} GB" if item.vram_gb and item.num_gpus else ""
    return Flavor(
        name=item.name,
        gpu=gpu,
        num_gpus=item.num_gpus,
        accelerator=f"{item.accelerator}{memory}" if item.num_gpus and not gpu else None,
        vcpu=item.vcpu or (known.vcpu if known else 1),
        ram_gb=item.ram_gb or (known.ram_gb if known else 0),
        disk_gb=item.disk_gb or (known.disk_gb if known else 0),
        usd_per_hour=item.usd_per_hour,
    )


def _gpu(item: Listed, known: Flavor | None, gpus: Mapping[str, Gpu]) -> Gpu | None:
    """The card of that name and size; of a known flavor also the one it had, where the size says that it still is."""
    if not item.num_gpus:
        return None
    named = gpus.get(_plain(item.accelerator or ""))
    if named and _holds(named, item, item.num_gpus):
        return named
    if known and known.gpu and known.num_gpus == item.num_gpus:
        sizes = (item.num_gpus, 1)  # some write a card's memory where others write the sum
        return known.gpu if any(_holds(known.gpu, item, count) for count in sizes) else None
    return None


def _holds(gpu: Gpu, item: Listed, count: int) -> bool:
    whole = gpu.nominal_gb * count
    return item.vram_gb is None or abs(item.vram_gb - whole) <= _SAME_MEMORY * whole


def _plain(title: str) -> str:
    return re.sub(r"nvidia|[^a-z0-9]", "", title.lower())


def changes(before: Mapping[str, Flavor], after: Mapping[str, Flavor]) -> list[Change]:
    """What is different, flavor by flavor: new ones, gone ones, and each field that changed."""
    found = [Change(name, "new") for name in after if name not in before]
    found += [Change(name, "gone") for name in before if name not in after]
    for name, flavor in after.items():
        old = before.get(name, flavor)
        for field in ("usd_per_hour", "gpu", "num_gpus", "accelerator", "vcpu", "ram_gb", "disk_gb"):
            was, now = getattr(old, field), getattr(flavor, field)
            if was != now:
                found.append(Change(name, "changed", field, _words(was), _words(now)))
    return found


def _words(value: Any) -> Any:
    return value.title if isinstance(value, Gpu) else value
