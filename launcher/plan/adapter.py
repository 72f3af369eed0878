"""A LoRA adapter that was trained before, as its own files describe it; pure but for the reading of a folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import RequestError
from launcher.spec import COMMIT, REPO_ID, check_place
from launcher.text import check_text

_SHA256 = re.compile(r"[0-9a-f]{64}")
CONFIG, RECORD = "adapter_config.json", "run.json"


@dataclass(frozen=True, slots=True)
class Adapter:
    """Where it is (a Hub repo at a commit, or a folder's absolute path), what it was trained on, and how large it is.

    `base` is a Hub repo, or the path of a folder where that is what it was trained on; `modality` and `base_revision`
    are None where no record of the training says them. `private` where only some may see the repo. `script` and
    `inputs` are the SHA-256 of what trained it, and of the files that it was trained on, by that record.
    """

    place: str
    revision: str | None
    base: str
    base_revision: str | None
    rank: int
    alpha: int
    modality: str | None = None
    private: bool = False
    script: str | None = None
    inputs: frozenset[str] = frozenset()

    @property
    def local(self) -> bool:
        """Whether it is a folder of this machine."""
        return Path(self.place).is_absolute()

    @property
    def local_base(self) -> bool:
        """Whether its base model is a folder."""
        return not REPO_ID.fullmatch(self.base)

    @property
    def name(self) -> str:
        """The last part of its repo or folder."""
        return Path(self.place).name


def read(
    place: str,
    config: Mapping[str, Any],
    record: Mapping[str, Any] | None,
    *,
    revision: str | None,
    private: bool = False,
) -> Adapter:
    """The adapter of an `adapter_config.json` and of the `run.json` beside it, if there is one.

    Both may be anybody's: what is taken of them is checked. Raises `RequestError` for what can't be merged.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise RequestError(
            f"the adapter in {place} is of the kind {str(kind)[:40]!r}, and only LoRA adapters can be merged.",
            "Use one that `launch` or PEFT's LoraConfig made.",
        )
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not _is_place(base):
        raise RequestError(
            f"the {CONFIG} in {place} does not say which model it was trained on.",
            "Write the model's repo into it as base_model_name_or_path.",
        )
    record = record or {}
    plan = _part(record, "plan")
    seen = _part(record, "revisions").get("model") or config.get("revision")
    modality = plan.get("modality")
    return Adapter(
        place=place,
        revision=revision,
        base=base,
        base_revision=seen if isinstance(seen, str) and COMMIT.fullmatch(seen) else None,
        rank=_whole(config.get("r"), 16),
        alpha=_whole(config.get("lora_alpha"), 16),
        modality=modality if modality in ("text", "vision") else None,
        private=private,
        script=next(_digests([_part(record, "script").get("sha256")]), None),
        inputs=frozenset(_digests(_part(record, "inputs").values())),
    )


def read_folder(folder: Path) -> Adapter:
    """The adapter in a folder that `launch` or PEFT saved; `RequestError` where there is none."""
    folder = folder.expanduser().resolve()
    if not (folder / CONFIG).is_file():
        raise RequestError(
            f"{folder} holds no {CONFIG}: it is no LoRA adapter.", "Give the folder that a run saved its adapter in."
        )
    try:
        config = as_object((folder / CONFIG).read_bytes(), f"{folder / CONFIG}")
        record = as_object((folder / RECORD).read_bytes(), "") if (folder / RECORD).is_file() else None
    except OSError as error:
        raise RequestError(f"{folder} can't be read: {error.strerror or error}.", "Make it readable.") from error
    return read(str(folder), config, record, revision=None)


def as_object(content: bytes, name: str) -> dict[str, Any]:
    """The JSON object in a file; `RequestError` with its name for anything else, or empty where it has no name."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        if not name:
            return {}
        raise RequestError(f"{name} is not JSON.", "Save the adapter again.") from error
    return found if isinstance(found, dict) else {}


def _part(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = record.get(name)
    return found if isinstance(found, dict) else {}


def _digests(found: Iterable[object]) -> Iterator[str]:
    return (item for item in found if isinstance(item, str) and _SHA256.fullmatch(item))


def _whole(value: object, otherwise: int) -> int:
    return value if isinstance(value, int) and 0 < value <= 2**16 else otherwise


def _is_place(text: str) -> bool:
    """Whether it may be the name of a repo or a folder."""
    try:
        check_text(text)
        check_place(text)
    except ValueError:
        return False
    return True
