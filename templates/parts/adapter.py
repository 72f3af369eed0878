"""The adapter and the model that it is for: found, read, and refused where they can't be what is asked for."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from parts.models import check_model
from parts.push import persist
from parts.say import UserError, note, reason

# What the files of an adapter are called, its weights first.
ADAPTER_FILES = ["adapter_model*", "*.json", "*.jinja", "*.model", "*.txt", "README.md"]
# Of a model's repo, what is loaded; not what other programs have in it.
MODEL_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.py"]
NOT_LOADED = ["*/*", "consolidated*"]


@dataclass(frozen=True)
class Base:
    """The model that was trained on, the one of 16 bits that copies are merged into, and whether it is shown pictures.

    `whole` is `name`, or what that 4-bit upload was made of; `config` is the model's config.json.
    """

    name: str
    revision: str | None
    whole: str
    whole_revision: str | None
    config: dict[str, Any]
    sees: bool


def fetch_adapter(adapter: str, revision: str | None) -> Path:
    """The adapter's folder; a repo's is that of its commit in the Hub's cache."""
    from huggingface_hub import snapshot_download

    folder = Path(adapter)
    if not folder.is_dir():
        wanted: dict[str, Any] = {"allow_patterns": ADAPTER_FILES, "ignore_patterns": ["*/*"]}
        fetch = partial(snapshot_download, adapter, revision=revision, **wanted)
        try:
            folder = Path(persist(f"fetching {adapter}", fetch))
        except Exception as error:
            hint = "Check the name, the revision, the token and the network."
            raise UserError(f"the adapter {adapter} can't be read ({reason(error)}).", hint, status=3) from error
    if not (folder / "adapter_config.json").is_file() or not any(folder.glob("adapter_model*")):
        hint = "One has adapter_config.json and adapter_model.safetensors."
        raise UserError(f"{adapter} is no adapter.", hint, status=3)
    return folder


def find_base(
    adapter: Path | None, name: str | None, revision: str | None, modality: str | None, trusted: bool, needs_whole: bool
) -> Base:
    """The model of that name, else what the adapter in the folder and its record say that it was trained on."""
    settings, record = (
        json.loads((adapter / file).read_text(encoding="utf-8")) if adapter and (adapter / file).is_file() else {}
        for file in ("adapter_config.json", "run.json")
    )
    name = name or settings["base_model_name_or_path"]
    revision = revision or settings.get("revision") or record.get("revisions", {}).get("model")
    if Path(name).is_absolute() and not Path(name).is_dir():
        hint = "Name the model that it was trained on with --model."
        raise UserError(f"the adapter was trained on {name}, which is not here.", hint, status=3)
    config = check_model(name, revision, trusted)
    modality = modality or (record.get("plan") or {}).get("modality")
    if modality == "vision" and "vision_config" not in config:
        raise UserError(f"{name} sees no pictures.", "Add --modality text.", status=2)
    whole, whole_revision = name, revision
    if needs_whole and (config.get("quantization_config") or {}).get("quant_method") == "bitsandbytes":
        whole, whole_revision = find_whole(name)
    return Base(name, revision, whole, whole_revision, config, modality != "text" and "vision_config" in config)


def find_whole(name: str) -> tuple[str, str | None]:
    """Name and commit of the 16-bit model that a 4-bit upload was made of; `UserError` of status 2 where not known."""
    from huggingface_hub import HfApi

    short = re.sub(r"-(unsloth-)?bnb-4bit$", "", name, flags=re.IGNORECASE)
    if short == name or Path(name).is_dir():
        message = f"--model {name} is in 4 bits itself, and its 16-bit original, which copies need, is not known"
        raise UserError(f"{message}.", "Name that one, and add --load-in 4bit.", status=2)
    candidates = [short]
    try:
        card = persist(f"looking up {name}", lambda: HfApi().model_info(name)).card_data
        told = card.base_model if card else None
        candidates += [told] if isinstance(told, str) else told or []
    except Exception as error:
        note(f"the card of {name} can't be read ({reason(error)})")
    for candidate in candidates:
        try:
            return candidate, persist(f"looking up {candidate}", partial(HfApi().model_info, candidate)).sha
        except Exception as error:
            note(f"the commit of {candidate} is not known ({reason(error)})")
    # It may lie in the cache all the same.
    return short, None


def model_bytes(name: str, revision: str | None, config: dict[str, Any]) -> float:
    """What that model's weights take in 16 bits, by the sizes of its files; 0 where they are not known."""
    from huggingface_hub import HfApi

    if Path(name).is_dir():
        sizes = {path.name: path.stat().st_size for path in Path(name).iterdir()}
    else:
        try:
            look = partial(HfApi().model_info, name, revision=revision, files_metadata=True)
            sizes = {file.rfilename: file.size or 0 for file in persist(f"looking up {name}", look).siblings or ()}
        except Exception as error:
            # Without the network it may lie in the cache all the same.
            note(f"the size of {name} is not known ({reason(error)})")
            return 0
    found = sum(size for path, size in sizes.items() if re.fullmatch(r"model.*\.safetensors", path))
    kinds = [part.get("dtype") or part.get("torch_dtype") for part in (config, config.get("text_config") or {})]
    return found / 2 if "float32" in kinds else found


def fetch_model(name: str, revision: str | None) -> Path:
    """The folder of that model's files; a repo's is that of its commit in the Hub's cache."""
    from huggingface_hub import snapshot_download

    if Path(name).is_dir():
        return Path(name).absolute()
    wanted: dict[str, Any] = {"allow_patterns": MODEL_FILES, "ignore_patterns": NOT_LOADED}
    return Path(persist(f"fetching {name}", lambda: snapshot_download(name, revision=revision, **wanted)))
