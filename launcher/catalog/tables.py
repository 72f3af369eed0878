"""The tables of `data/`, loaded once into frozen values and checked against each other."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from launcher.catalog import config_text as decoder
from launcher.catalog import config_vision as tower
from launcher.catalog import tensors
from launcher.catalog.architecture import Arch
from launcher.catalog.tensors import Quantized, Weights
from launcher.catalog.vision import VisionTower
from launcher.errors import RefusedError, RequestError, unknown
from launcher.spec import REPO_ID, path_of

Modality = Literal["text", "vision"]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Family(_Entry):
    """What all sizes of a family share."""

    title: str
    model_type: str
    """transformers' name of the architecture, as in `config.json`."""
    chat_template: str
    """A key of `unsloth.chat_templates.CHAT_TEMPLATES`, for models whose tokenizer brings no template."""
    end_of_turn: str
    lora_targets: tuple[str, ...]
    licence: str
    upstream_gated: bool
    generation: dict[str, float] = {}
    generation_source: str | None = None
    gguf: bool = True
    """Whether the pinned llama.cpp can convert it."""


class Model(_Entry):
    """One size of a family, or a model read from its `config.json` (then without a family)."""

    alias: str
    repo: str
    repo_4bit: str | None = None
    upstream: str | None = None
    family: str | None = None
    model_type: str
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
    quantized: Quantized | None = None
    """How `repo` itself is stored, where not in 16 bits: it can be loaded no other way."""
    bytes_4bit: int | None = None
    """What the frozen model takes on a GPU when its 4-bit upload is loaded, where that size is known."""
    bytes_total: int | None = None
    """Size of the weights of `repo` as they are stored, where it was looked up."""
    notes: tuple[str, ...] = ()
    """What had to be assumed of the model, and what can't be known: sentences without a capital and a full stop."""

    def loads(self, load_in: str) -> str:
        """The repo that is loaded: the 4-bit upload where it is a plain one, of the size that quantising makes.

        Unsloth's "dynamic" uploads keep some layers in 16 bits, in most of them nobody knows how many; they are loaded
        where they are asked for by name.
        """
        plain = self.repo_4bit is not None and not self.repo_4bit.endswith("-unsloth-bnb-4bit")
        return str(self.repo_4bit) if plain and load_in == "4bit" and not self.quantized else self.repo


class Gpu(_Entry):
    """One kind of GPU; `memory_gib` is what torch reports as its total."""

    title: str
    memory_gib: float
    nominal_gb: int
    bf16: bool
    compute_capability: str
    bf16_tflops: float
    matmul_tflops: float | None = None
    """What large matrix products reach where that was measured, below the peak by what the card's power allows."""
    bandwidth_gbs: float


class Flavor(_Entry):
    """One machine of the Jobs service; without a GPU where `gpu` is none.

    `accelerator` are the service's words for what the table of GPUs does not know: nothing can be planned on it.
    """

    name: str
    gpu: Gpu | None = None
    num_gpus: int = 0
    accelerator: str | None = None
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

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that name the stack: what a script's header asks uv for decides them."""
        asked = (self.requires_python, self.dependencies, self.exclude_newer, self.overrides)
        return hashlib.sha256(repr(asked).encode()).hexdigest()[:12]


class Catalog(_Entry):
    """All tables together."""

    families: dict[str, Family]
    models: dict[str, Model]
    flavors: dict[str, Flavor]
    flavors_from: str
    """Whose list of flavors it is, and of when."""
    stack: Stack
    notices: tuple[str, ...] = ()
    """What a user should know about how the tables were read."""

    def flavor(self, name: str) -> Flavor:
        """The flavor of that name; `RequestError` with the near matches where there is none, `RefusedError` for one
        whose accelerator is not known.
        """
        if name not in self.flavors:
            raise unknown("flavor", name, self.flavors, "launch flavors")
        flavor = self.flavors[name]
        if flavor.accelerator:
            raise RefusedError(
                f"{name}: this version of launch knows nothing of its {flavor.accelerator}, so it can't plan there.",
                "`launch flavors` shows which machines it can plan for.",
            )
        return flavor

    def model(
        self,
        name: str,
        revision: str | None = None,
        fetch_config: FetchConfig | None = None,
        fetch_weights: FetchWeights | None = None,
    ) -> Model:
        """The model of an alias, a Hub repo id or a local folder.

        A repo that the catalog knows under any of its names needs no network. `fetch_config(repo, revision)` reads the
        `config.json` of any other repo; without it such a repo is a `RequestError`. `fetch_weights(repo, revision,
        four_bits)` makes the size of such a model exact.
        """
        if name.lower() in self.models:
            return self.models[name.lower()]
        if path := path_of(name):
            if path.is_dir():
                return _from_folder(path.resolve())
            raise RequestError(f"--model {name}: there is no such folder.", "Give an alias, a Hub repo id or a folder.")
        for model in self.models.values():
            if name == model.repo:
                return model
            if name == model.repo_4bit:
                return model.model_copy(update={"repo": name, "quantized": "bnb-4bit"})
            if name == model.upstream:
                return model.model_copy(update={"repo": name, "gated": model.upstream_gated})
        if not REPO_ID.fullmatch(name):
            error = unknown("model", name, self.models, "launch models")
            raise RequestError(error.message, f"The folder here is ./{name}.") if Path(name).is_dir() else error
        if fetch_config is None:
            raise RequestError(f"--model {name} is not in the catalog, and its config.json was not looked up.")
        config = fetch_config(name, revision)
        weights = fetch_weights(name, revision, _four_bits(config)) if fetch_weights else None
        model = _from_config(config, name, f"https://huggingface.co/{name}", weights)
        if fetch_weights and not weights:
            unsaid = "the Hub does not say how large its weights are: they are computed from its config"
            model = model.model_copy(update={"notes": (*model.notes, unsaid)})
        return model


_ANY_SIDE = 512


FetchConfig = Callable[[str, str | None], dict[str, Any]]
FetchWeights = Callable[[str, str | None, bool], Weights | None]


@cache
def shipped() -> Catalog:
    """The tables as they are in the package.

    Raises `pydantic.ValidationError` or `KeyError` where they don't fit together.
    """
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
        flavors_from=f"the list of {flavors['as_of']} that came with this version",
        stack=Stack.model_validate(_read("stack.toml")),
    )


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((files("launcher") / "data" / name).read_text(encoding="utf-8"))


def _inherited(family: Family, entry: dict[str, Any]) -> dict[str, Any]:
    # Settings of a model's own have a source of their own, or none.
    unshared = {"generation_source"} if "generation" in entry else set()
    return family.model_dump(exclude={"title", "gguf", *unshared}) | entry


def _from_folder(folder: Path) -> Model:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        if (folder / "model_index.json").is_file():
            raise RequestError(f"--model {folder} is a diffusion model, which makes pictures and no text.") from error
        raise RequestError(
            f"--model {folder}: there is no readable config.json in that folder.",
            "Give a folder that `save_pretrained` wrote, or a Hub repo id.",
        ) from error
    except (ValueError, RecursionError) as error:
        raise RequestError(
            f"--model {folder}: its config.json is not JSON ({error}).", "Save the model again."
        ) from error
    if not isinstance(config, dict):
        raise RequestError(f"--model {folder}: its config.json holds no object.", "Save the model again.")
    weights = tensors.read_folder(folder, four_bits=_four_bits(config))
    return _from_config(config, str(folder), str(folder / "config.json"), weights)


def _four_bits(config: dict[str, Any]) -> bool:
    stored = config.get("quantization_config")
    return isinstance(stored, dict) and bool(stored.get("load_in_4bit") or stored.get("_load_in_4bit"))


def _from_config(config: dict[str, Any], name: str, source: str, weights: Weights | None = None) -> Model:
    try:
        return _understood(config, name, source, weights)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, ArithmeticError) as error:
        raise RequestError(
            f"the config.json of {name} has a value that was not understood ({type(error).__name__}).",
            "Use a causal language model in transformers' format; `launch models` lists the ones that are known.",
        ) from error


def _understood(config: dict[str, Any], name: str, source: str, weights: Weights | None) -> Model:
    tensors.require_trainable(config, name)
    quantized, stored = tensors.read_precision(config, name, weights.base if weights else None)
    arch, assumed = decoder.read_text(config, name)
    vision, seen = tower.read_vision(config, arch.hidden_size)
    if vision:
        vision.tokens(_ANY_SIDE)  # raises where it lacks what its processor needs
    estimate = arch.parameters() + (vision.params if vision else 0)
    unsure = () if weights else decoder.unsure(config)
    return Model(
        alias=name,
        repo=name,
        model_type=str(config.get("model_type") or "unknown"),
        modalities=("vision", "text") if decoder.is_vision(config) else ("text",),
        kind="unknown",
        params=weights.parameters if weights else estimate,
        source=source,
        lora_targets=decoder.lora_targets(config),
        arch=arch,
        vision=vision,
        quantized=quantized,
        bytes_4bit=weights.loaded_bytes if weights and quantized else None,
        bytes_total=weights.bytes_total if weights else None,
        notes=(*stored, *assumed, *seen, *unsure),
    )
