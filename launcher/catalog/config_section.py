"""The parts of a `config.json`, over what transformers' config classes say where it says nothing.

A saved config leaves out much of what its class has by default: `data/config_defaults.json` holds what the classes of
the pinned transformers say (`bench/config_defaults.py` writes it).
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

Json = dict[str, Any]

_OTHER_NAMES = {
    "hidden_size": ("n_embd", "d_model", "hidden_dim", "dim"),
    "intermediate_size": ("n_inner", "ffn_dim", "block_ff_dim", "ffn_hidden_size", "d_ff"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("n_head", "n_heads", "num_heads"),
    "num_key_value_heads": ("num_kv_heads", "n_kv_heads"),
    "max_position_embeddings": ("n_positions", "n_ctx", "seq_length", "max_seq_len", "max_sequence_length"),
}

# Of anything that a config counts, positions and words included; a larger number is no fact but an attack or a slip.
_LARGEST = 2**27


@cache
def known() -> Json:
    """The table of transformers' config classes: `types`, and `other_types` that are no language models."""
    table: Json = json.loads((files("launcher") / "data" / "config_defaults.json").read_text(encoding="utf-8"))
    return table


class Section:
    """One part of a config (its text, its vision), over what the class of its type says by default."""

    def __init__(self, values: Json, model_type: str) -> None:
        self.values = values
        self.type = model_type
        self.defaults: Json = known()["types"].get(model_type, {})

    def get(self, key: str) -> Any:
        """The value under its usual name or the class's own, else the class's default, else none; null is a value."""
        for name in (key, self.defaults.get("aka", {}).get(key), *_OTHER_NAMES.get(key, ())):
            if name in self.values:
                return self.values[name]
        return self.defaults.get(key)

    def number(self, key: str) -> int | None:
        """A whole number above zero; of a list with one value for each layer, the mean."""
        value = self.get(key)
        if isinstance(value, list) and value and all(isinstance(item, int) for item in value):
            return round(sum(value) / len(value))
        return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _LARGEST else None

    def counts(self, *keys: str) -> tuple[int, ...] | None:
        """All of these numbers, or none where one is missing."""
        found = tuple(number for key in keys if (number := self.number(key)) is not None)
        return found if len(found) == len(keys) else None


def part(config: Json, name: str) -> Section | None:
    """The section `text_config` or `vision_config` of a config; none where a config without parts has no such one."""
    inner, model_type = config.get(name), str(config.get("model_type", ""))
    expected = known()["types"].get(model_type, {}).get("parts", {}).get(name)
    if isinstance(inner, dict):
        own = str(inner.get("model_type") or "")
        # Qwen's uploads name a part as the whole is named.
        return Section(inner, expected if expected and own in ("", model_type) else own)
    return Section(config, expected or model_type) if name == "text_config" else None
