"""The tables of `data/`, loaded once into frozen values and checked against each other."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from launcher import architecture
from launcher.architecture import Arch, VisionTower
from launcher.errors import RequestError, unknown
from launcher.spec import REPO_ID

Modality = Literal["text", "vision"]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Family(_Entry):
    """What all sizes of a family share."""

    title: str
    chat_template: str
    """A key of `unsloth.chat_templates.CHAT_TEMPLATES`, for models whose tokenizer brings no template."""
    end_of_turn: str
    lora_targets: tuple[str, ...]
    licence: str
    upstream_gated: bool
    generation: dict[str, float]
    generation_source: str


class Model(_Entry):
    """One size of a family, or a model read from its `config.json` (then without a family)."""

    alias: str
    repo: str
    repo_4bit: str | None = None
    upstream: str | None = None
    family: str | None = None
    modalities: tuple[Modality, ...]
    kind: Literal["instruct", "base", "thinking", "unknown"]
    params: int
    source: str
    gated: bool = False
    upstream_gated: bool = False
    licence: str | None = None
    chat_template: str | None = None
    end_of_turn: str | None = None
    lora_targets: tuple[str, ...]
    generation: dict[str, float] = {}
    generation_source: str | None = None
    arch: Arch
    vision: VisionTower | None = None


class Gpu(_Entry):
    """One kind of GPU; `memory_gib` is what torch reports as its total."""

    title: str
    memory_gib: float
    nominal_gb: int
    bf16: bool
    compute_capability: str
    bf16_tflops: float
    bandwidth_gbs: float


class Flavor(_Entry):
    """One machine of the Jobs service; without a GPU where `gpu` is none."""

    name: str
    gpu: Gpu | None = None
    num_gpus: int = 0
    vcpu: int
    ram_gb: float
    disk_gb: float
    usd_per_hour: float


class Stack(_Entry):
    """The pinned training stack of every script."""

    requires_python: str
    exclude_newer: str
    image: str
    overrides: tuple[str, ...]
    pins: dict[str, str]

    @property
    def dependencies(self) -> tuple[str, ...]:
        """The pins as requirements, in the table's order."""
        return tuple(f"{name}=={version}" for name, version in self.pins.items())


class Catalog(_Entry):
    """All tables together."""

    families: dict[str, Family]
    models: dict[str, Model]
    flavors: dict[str, Flavor]
    stack: Stack

    def flavor(self, name: str) -> Flavor:
        """The flavor of that name; `RequestError` with the near matches where there is none."""
        if name not in self.flavors:
            raise unknown("flavor", name, self.flavors, "launch flavors")
        return self.flavors[name]

    def model(self, name: str, revision: str | None = None, fetch_config: FetchConfig | None = None) -> Model:
        """The model of an alias, a Hub repo id or a local folder.

        A repo that the catalog knows under any of its names needs no network. `fetch_config(repo, revision)` reads the
        `config.json` of any other repo; without it such a repo is a `RequestError`.
        """
        if name.lower() in self.models:
            return self.models[name.lower()]
        if Path(name).expanduser().is_dir():
            return _from_folder(Path(name).expanduser().resolve())
        if name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise RequestError(f"--model {name}: there is no such folder.", "Give an alias, a Hub repo id or a folder.")
        for model in self.models.values():
            if name in (model.repo, model.repo_4bit):
                return model
            if name == model.upstream:
                return model.model_copy(update={"repo": name, "gated": model.upstream_gated})
        if not REPO_ID.fullmatch(name):
            raise unknown("model", name, self.models, "launch models")
        if fetch_config is None:
            raise RequestError(f"--model {name} is not in the catalog, and its config.json was not looked up.")
        return _from_config(fetch_config(name, revision), name, source=f"https://huggingface.co/{name}")


FetchConfig = Callable[[str, str | None], dict[str, Any]]


@cache
def load() -> Catalog:
    """Every table of the package; raises `pydantic.ValidationError` or `KeyError` where they don't fit together."""
    models, flavors = _read("models.toml"), _read("flavors.toml")
    families = {name: Family.model_validate(entry) for name, entry in models["families"].items()}
    gpus = {name: Gpu.model_validate(entry) for name, entry in flavors["gpus"].items()}
    return Catalog(
        families=families,
        models={
            alias: Model.model_validate(_inherited(families[entry["family"]], entry) | {"alias": alias})
            for alias, entry in models["models"].items()
        },
        flavors={
            name: Flavor.model_validate(entry | {"name": name, "gpu": gpus[entry["gpu"]] if "gpu" in entry else None})
            for name, entry in flavors["flavors"].items()
        },
        stack=Stack.model_validate(_read("stack.toml")),
    )


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((files("launcher") / "data" / name).read_text(encoding="utf-8"))


def _inherited(family: Family, entry: dict[str, Any]) -> dict[str, Any]:
    return family.model_dump(exclude={"title"}) | entry


def _from_folder(folder: Path) -> Model:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(
            f"--model {folder}: there is no readable config.json in that folder.",
            "Give a folder that `save_pretrained` wrote, or a Hub repo id.",
        ) from error
    except ValueError as error:
        raise RequestError(
            f"--model {folder}: its config.json is not JSON ({error}).", "Save the model again."
        ) from error
    return _from_config(config, str(folder), source=str(folder / "config.json"))


def _from_config(config: dict[str, Any], name: str, source: str) -> Model:
    arch = architecture.from_config(config, name)
    return Model(
        alias=name,
        repo=name,
        modalities=("vision", "text") if architecture.is_vision(config) else ("text",),
        kind="unknown",
        params=arch.parameters(),
        source=source,
        lora_targets=architecture.lora_targets(config),
        arch=arch,
    )
