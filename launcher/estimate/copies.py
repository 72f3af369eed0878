"""The copies that are made of a trained model, merged or for llama.cpp: their size and their time, as pure functions.

A GGUF file is made as Unsloth and llama.cpp make it: the adapter is merged into the 16-bit weights, these are written
anew as one 16-bit file, and each type is quantised from that. Every constant says where it is from, or is assumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from launcher.catalog import Model
from launcher.estimate import duration, memory
from launcher.estimate.values import Duration

# Bits a weight takes, as the scripts count them (a test holds the two together): a little above what llama.cpp's
# `examples/quantize/README.md` gives for Llama 2 7B, since embeddings and other parts are kept more exactly.
GGUF_BITS = {
    "f16": 16.0, "bf16": 16.0, "q8_0": 8.6, "q6_k": 6.7, "q5_k_m": 5.9, "q4_k_m": 5.1, "q3_k_m": 4.3, "q2_k": 3.7,
}  # fmt: skip
CONVERTED = ("f16", "bf16", "q8_0")
"""The types that llama.cpp's converter writes by itself, without quantising."""

# Assumed of a cloud machine's own disk, read and written at once, with the additions of a merge in between.
_DISK_BYTES_PER_S = 250e6
# Assumed of a Job's /data, which is a bucket: what is written there travels.
_VOLUME_BYTES_PER_S = 100e6
# Built in five minutes on two cores of a cloud machine (templates/_llama_cpp.py.j2), where the image has none.
_TOOLS_CORE_S = 600
# Assumed of llama-quantize: weights of a k-quant that one core makes in a second.
_QUANTISE_PER_CORE_S = 8e6
# Assumed: a copy is loaded once more, and answers one prompt.
_CHECK_S, _CHECK_BYTES_PER_S = 20, 1e9
ASSUMED = "of the disk, of llama.cpp's quantiser and of the upload"
"""What the times below stand on."""
PARTS = ("16-bit weights", "merge", "llama.cpp", "convert", "quantise", "check copies", "keep copies", "upload copies")
"""The names that `seconds` gives."""


@dataclass(frozen=True, slots=True)
class Copies:
    """What was asked for: a merged copy of that precision, GGUF files of those types, and whether they are pushed.

    `volume` where what is not pushed stays in a Job's /data; what is pushed is made on the machine's own disk.
    """

    merge: Literal["16bit", "4bit"] | None = None
    gguf: tuple[str, ...] = ()
    pushed: bool = True
    volume: bool = True

    @property
    def any(self) -> bool:
        """Whether there is anything to make."""
        return bool(self.merge or self.gguf)

    @property
    def whole(self) -> bool:
        """Whether the 16-bit weights are needed: a 4-bit merge is made of the weights that are loaded."""
        return bool(self.gguf) or self.merge == "16bit"


def full_bytes(model: Model) -> float:
    """The model in 16 bits."""
    return 2.0 * model.params


def merged_bytes(model: Model, copies: Copies) -> float:
    """The merged copy that stays."""
    if copies.merge is None:
        return 0
    return full_bytes(model) if copies.merge == "16bit" else memory.weights(model, "4bit")


def gguf_bytes(model: Model, kind: str) -> float:
    """A GGUF file of that type, without what sees."""
    return (model.params - _seeing(model)) * GGUF_BITS[kind] / 8


def kept_bytes(model: Model, copies: Copies) -> float:
    """All that stays, and is pushed: the merged copy, the GGUF files and, once, the vision tower beside them."""
    files = sum(gguf_bytes(model, kind) for kind in copies.gguf)
    return merged_bytes(model, copies) + files + (2 * _seeing(model) if copies.gguf else 0)


def download_bytes(model: Model, load_in: str, copies: Copies) -> float:
    """The 16-bit weights, where they are needed and the run has loaded others."""
    there = not model.quantized and (Path(model.repo).is_absolute() or model.loads(load_in) == model.repo)
    return full_bytes(model) if copies.whole and not there else 0


def disk_bytes(model: Model, load_in: str, copies: Copies) -> float:
    """What the copies take at most: all that stays, with the 16-bit weights and files that they are made from."""
    if not copies.any:
        return 0
    total = kept_bytes(model, copies) + download_bytes(model, load_in, copies)
    if copies.gguf and copies.merge != "16bit":
        total += full_bytes(model)
    if any(kind not in CONVERTED for kind in copies.gguf):
        total += full_bytes(model)
    return total


def seconds(model: Model, load_in: str, copies: Copies, vcpu: int) -> dict[str, int]:
    """What each part takes on a machine of so many cores; parts of no length are left out."""
    if not copies.any:
        return {}
    whole, kept = full_bytes(model), kept_bytes(model, copies)
    quantised = [kind for kind in copies.gguf if kind not in CONVERTED]
    # Those that are quantised are so from one 16-bit file.
    converted = [kind for kind in copies.gguf if kind in CONVERTED] + (["bf16"] if quantised else [])
    merges = (whole if copies.whole else 0) + (merged_bytes(model, copies) if copies.merge == "4bit" else 0)
    found = {
        "16-bit weights": download_bytes(model, load_in, copies) / duration.DOWNLOAD_BYTES_PER_S,
        "merge": 2 * merges / _DISK_BYTES_PER_S,
        "llama.cpp": _TOOLS_CORE_S / vcpu if copies.gguf else 0,
        "convert": len(converted) * 2 * whole / _DISK_BYTES_PER_S,
        "quantise": len(quantised) * model.params / (_QUANTISE_PER_CORE_S * vcpu),
        "check copies": _CHECK_S * (bool(copies.merge) + len(copies.gguf)) + kept / _CHECK_BYTES_PER_S,
        "keep copies": kept / _VOLUME_BYTES_PER_S if copies.volume and not copies.pushed else 0,
        "upload copies": kept / duration.PUSH_BYTES_PER_S if copies.pushed else 0,
    }
    return {name: round(took) for name, took in found.items() if round(took)}


def added(expected: Duration, parts: dict[str, int]) -> Duration:
    """A run's duration with these parts at its end."""
    if not parts:
        return expected
    total = expected.total_s + sum(parts.values())
    return expected.model_copy(update={"total_s": total, "parts": expected.parts | parts})


def words(model: Model, copies: Copies, load_in: str) -> dict[str, str]:
    """The reason for each copy: what it adds to the disk and the run."""
    said = {}
    fetched = download_bytes(model, load_in, copies) / 1e9
    again = f"; the 16-bit weights are downloaded for it, {fetched:.1f} GB" if fetched else ""
    if copies.merge:
        said["merge"] = f"asked for: a copy of about {merged_bytes(model, copies) / 1e9:.1f} GB"
        said["merge"] += again if copies.merge == "16bit" else ", of the 4-bit weights that were trained on"
    if copies.gguf:
        sizes = ", ".join(f"{kind} {gguf_bytes(model, kind) / 1e9:.1f} GB" for kind in copies.gguf)
        tower = f", and {2 * _seeing(model) / 1e9:.1f} GB for what sees" if _seeing(model) else ""
        said["gguf"] = f"asked for: about {sizes}{tower}" + ("" if copies.merge == "16bit" else again)
    return said


def _seeing(model: Model) -> int:
    return model.vision.params if model.vision else 0
