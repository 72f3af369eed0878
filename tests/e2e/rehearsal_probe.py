"""Models at their real sizes, of which launcher/data/twin.py makes twins: run by test_rehearsal.py.

    PYTHONPATH=bench python tests/e2e/rehearsal_probe.py shapes NAME …          # twins in memory, and one step of each
    PYTHONPATH=bench python tests/e2e/rehearsal_probe.py folders FOLDER NAME …  # a folder each, without any weights

A name is a family's, of bench/family_models.py, or of a config in tests/unit/catalog/configs. Runs in the training
stack's environment. Prints a line `SEEN {json}` for each.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import family_models as families
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "tests" / "unit" / "catalog" / "configs"
# Whose tokenizer and chat template come with a config that is no family's there: their own, or one like it.
TOKENIZERS = {"qwen3_moe": "qwen3", "lfm2_moe": "lfm2", "phi3": "phi-4"}


def twins() -> Any:
    spec = importlib.util.spec_from_file_location("twin", ROOT / "launcher" / "data" / "twin.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def published(name: str, ids: dict[str, Any], tokens: int) -> Any:
    """The config of a family's model at its real size, all its layers counted."""
    spec = families.FAMILIES[name]
    facts = families.catalog()["models"][spec.model]
    return spec.config(families._dims(spec, facts, ids, facts["arch"]["num_layers"], tokens, tiny=False))


def shape(name: str) -> dict[str, Any]:
    if name in families.FAMILIES:
        config = published(name, {"bos": 1, "pad": 0, "stops": [2]}, 0)
    else:
        config = AutoConfig.from_pretrained(str(CONFIGS / f"{name}.json"))
    whole = config.get_text_config(decoder=True)
    small = twins().tiny(whole)
    model = AutoModelForCausalLM.from_config(small, dtype=torch.float32)
    ids = torch.arange(1, 25)[None]
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    seen: dict[str, Any] = {"name": name, "loss": loss.item(), "parameters": model.num_parameters()}
    for when, one in (("before", whole), ("after", small)):
        # Of Gemma 4's they may be others in each layer, and are then not to be asked for.
        heads, keys = one.num_attention_heads, one.to_dict().get("num_key_value_heads")
        positions = getattr(one, "rope_parameters", None) or {}
        seen[when] = {
            "layers": one.num_hidden_layers, "kinds": sorted(set(getattr(one, "layer_types", None) or ["all"])),
            "shared": keys and heads // keys, "vocabulary": one.vocab_size, "experts": routed(one),
            "rope": sorted({str(part.get("rope_type")) for part in (positions, *positions.values()) if is_rope(part)}),
        }  # fmt: skip
    return seen


def is_rope(part: Any) -> bool:
    return isinstance(part, dict) and "rope_type" in part


def routed(config: Any) -> bool:
    """Whether tokens choose experts."""
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    return any(getattr(config, name, None) for name in names)


def folder(name: str, place: Path) -> dict[str, Any]:
    """What a model's repo holds besides its weights."""
    spec, made = families.FAMILIES[TOKENIZERS.get(name, name)], place / name
    made.mkdir(parents=True)
    if spec.processor:
        families.build(name, made, tiny=True)
        rows = families.write_vision_rows(place / "rows", system=spec.system)
        return {"name": name, "folder": str(made), "rows": str(rows)}
    ids = families.write_tokenizer(spec.tokens(), spec.template(), made)
    tokenizer = AutoTokenizer.from_pretrained(made)
    if name in TOKENIZERS:
        config = AutoConfig.from_pretrained(str(CONFIGS / f"{name}.json"))
        config.bos_token_id, config.eos_token_id, config.pad_token_id = ids["bos"], ids["stops"], ids["pad"]
    else:
        config = published(name, ids, len(tokenizer))
    config.save_pretrained(made)
    return {"name": name, "folder": str(made)}


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    place = Path(rest.pop(0)) if what == "folders" else Path()
    for asked in rest:
        print("SEEN " + json.dumps(shape(asked) if what == "shapes" else folder(asked, place)), flush=True)
