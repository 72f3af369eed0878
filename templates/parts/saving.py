"""The model on the disk: room for it is known before the training, and it is saved whole or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from parts.places import require_disk
from parts.say import UserError, reason

# transformers knows no presence penalty.
ONLY_OLLAMA = {"presence_penalty"}
SAMPLING = ("temperature", "top_k", "top_p", "min_p")


def check_disk(folder: Path, model: Any, optim: str) -> None:
    """Refuse where the disk can't take what a run writes: the adapter, two checkpoints and the next one.

    A checkpoint is the adapter and the optimizer's two moments, of 1 byte a parameter in 8 bits, else of 4.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    adapter = sum(parameter.numel() * parameter.element_size() for parameter in trained)
    checkpoint = adapter + sum(parameter.numel() for parameter in trained) * (2 if "8bit" in optim else 8)
    told = [f"an adapter of {adapter / 1e9:.2f} GB, three checkpoints of {checkpoint / 1e9:.2f} GB"]
    # The tokenizer and the trainer's records take some too.
    require_disk(folder, adapter + 3 * checkpoint + 2**26, told, "Free some, or give --output-dir on another disk.")


def recommended(args: Any, planned: dict[str, Any]) -> dict[str, float]:
    """How the makers of the model say that it is best sampled; empty for another model than the chosen one."""
    return dict(planned["generation"]) if args.model == type(args).model else {}


def generation_of(known: Any, settings: dict[str, float], stop: int) -> Any:
    """The model's generation settings with the recommended ones, and with the token that ends an answer."""
    from transformers import GenerationConfig

    found: dict[str, Any] = {name: value for name, value in settings.items() if name not in ONLY_OLLAMA}
    if found:
        # A temperature of 0 is how others say that nothing is drawn.
        greedy = found.get("temperature") == 0
        found |= {"do_sample": not greedy} | (dict.fromkeys(SAMPLING) if greedy else {})
    known = known or GenerationConfig()
    ends = known.eos_token_id if isinstance(known.eos_token_id, list) else [known.eos_token_id]
    found["eos_token_id"] = [stop, *(token for token in ends if token not in (stop, None))]
    try:
        known.update(**found)
        known.validate(strict=True)
    except ValueError:
        # What the model brought contradicts itself, and would not be saved.
        known = GenerationConfig(bos_token_id=known.bos_token_id, pad_token_id=known.pad_token_id, **found)
    return known


def save(folder: Path, *parts: Any) -> list[str]:
    """Save the model and its tokenizer in the folder, whole or not at all: until they are written, all there stays.

    Returns the names of the files. Raises `UserError` where the disk is full or fails.
    """
    # Inside, where nothing has to be copied once it is whole.
    fresh = folder / ".saving"
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        for part in parts:
            part.save_pretrained(fresh)
        saved = [path.relative_to(fresh).as_posix() for path in sorted(fresh.rglob("*")) if path.is_file()]
        for path in fresh.iterdir():
            if (folder / path.name).is_dir():
                shutil.rmtree(folder / path.name)
            shutil.move(path, folder / path.name)
        fresh.rmdir()
        return saved
    # Some writers have errors of their own for a full disk.
    except Exception as error:
        shutil.rmtree(fresh, ignore_errors=True)
        hint = f"What was in {folder} is as it was. Make room and run this again: it goes on from the last checkpoint."
        raise UserError(f"the model could not be saved in {folder} ({reason(error)}).", hint) from error
