"""How the model is sampled: what its makers recommend, as transformers knows it, and the token that ends an answer."""

from __future__ import annotations

from typing import Any

# transformers knows no presence penalty.
ONLY_OLLAMA = {"presence_penalty"}
SAMPLING = ("temperature", "top_k", "top_p", "min_p")


def recommended(args: Any, planned: dict[str, Any]) -> dict[str, float]:
    """How the makers of the model say that it is best sampled; empty for another model than the chosen one."""
    found = planned["generation"] if args.model == type(args).model else {}
    return {name: int(value) if name == "top_k" else value for name, value in found.items()}


def generation_of(known: Any, settings: dict[str, float], stop: int) -> Any:
    """The model's generation settings with the recommended ones, and with the token that ends an answer."""
    from transformers import GenerationConfig

    found: dict[str, Any] = {name: value for name, value in settings.items() if name not in ONLY_OLLAMA}
    # A temperature of 0 is how others say that nothing is drawn.
    greedy = found.get("temperature") == 0
    if found:
        found |= {"do_sample": not greedy} | (dict.fromkeys(SAMPLING) if greedy else {})
    known = known or GenerationConfig()
    ends = known.eos_token_id if isinstance(known.eos_token_id, list) else [known.eos_token_id]
    found["eos_token_id"] = [stop, *(token for token in ends if token not in (stop, None))]
    try:
        known.update(**found)
        known.validate(strict=True)
    except ValueError:
        # What the model brought contradicts itself, and would not be saved.
        kept = {name: getattr(known, name) for name in ("bos_token_id", "pad_token_id")}
        known = GenerationConfig(**kept | found)
    return known
