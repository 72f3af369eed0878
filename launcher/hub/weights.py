"""The size of a model's weights, from what the Hub says of its repo in one request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from launcher.catalog import tensors
from launcher.catalog.tensors import Weights
from launcher.errors import LauncherError, RequestError
from launcher.hub.client import TIMEOUT_S, told

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def read(api: HfApi, repo: str, revision: str | None, four_bits: bool) -> Weights | None:
    """The weights, or none where the Hub does not say; `RequestError` for a repo that holds llama.cpp's files only."""
    try:
        with told(f"looking up the weights of {repo}", what=f"the model '{repo}'"):
            info = api.model_info(repo, revision=revision, timeout=TIMEOUT_S)
    except LauncherError:
        return None
    names = [item.rfilename for item in info.siblings or ()]
    if any(name.endswith(".gguf") for name in names) and not any(
        name.endswith((".safetensors", ".bin", ".pt", ".pth")) for name in names
    ):
        base = _base(info.base_models, info.card_data)
        raise RequestError(
            f"{repo} holds GGUF files only, which can be run but not trained.",
            f"Use {base or 'the model they were made from'}.",
        )
    found = info.safetensors
    if found is None or not all(isinstance(number, int) for number in found.parameters.values()):
        return None
    base = _base(info.base_models, info.card_data)
    return tensors.count(found.parameters, four_bits=four_bits, base=base)


def _base(models: object, card: object) -> str | None:
    """The repo that a card names as what the model was made from; the Hub gives it in two ways."""
    if isinstance(models, dict):
        models = [item.get("id") for item in models.get("models") or () if isinstance(item, dict)]
    named = models or getattr(card, "base_model", None)
    first = named[0] if isinstance(named, list) and named else named
    return first if isinstance(first, str) else None
