"""A tiny random twin of a model, for a rehearsal; runs in the environment of the training scripts.

    python twin.py make FOLDER              # of a model whose config.json and tokenizer lie in the folder
    python twin.py load ADAPTER             # an adapter that was trained on a twin
    python twin.py look SCRIPT [FLAG …]     # the rows of sft_vlm.py, as far as a CPU can take them

The twin is of the same architecture, with the model's own vocabulary and its own tokenizer: every kind of layer that
the model has is there once, queries share keys as there, and positions are scaled as there. Only widths and counts are
small.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.update(CUDA_VISIBLE_DEVICES="", UNSLOTH_FORCE_CPU="1", TQDM_DISABLE="1", HF_HUB_DISABLE_PROGRESS_BARS="1")

HEAD, EXPERTS, ACTIVE = 16, 4, 2
# What is not a multiple of the width, by the names of transformers' configs.
SMALL = {
    "head_dim": HEAD, "global_head_dim": HEAD, "qk_nope_head_dim": HEAD, "qk_rope_head_dim": HEAD, "v_head_dim": HEAD,
    "kv_lora_rank": 2 * HEAD, "q_lora_rank": 2 * HEAD, "moe_intermediate_size": 4 * HEAD,
    "shared_expert_intermediate_size": 4 * HEAD, "linear_key_head_dim": HEAD, "linear_value_head_dim": HEAD,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "hidden_size_per_layer_input": HEAD, "rotary_dim": HEAD,
    "num_experts": EXPERTS, "num_local_experts": EXPERTS, "n_routed_experts": EXPERTS, "num_experts_per_tok": ACTIVE,
    "top_k_experts": ACTIVE, "n_group": 1, "topk_group": 1, "num_dense_layers": 1, "first_k_dense_replace": 1,
    "num_kv_shared_layers": 0,
}  # fmt: skip
WIDTHS = ("hidden_size", "block_dim", "conv_dim", "conv_dim_out", "word_embed_proj_dim")
INNER = ("intermediate_size", "block_ff_dim", "ffn_dim", "intermediate_size_mlp")
HEADS, KEYS, LAYERS = "num_attention_heads", "num_key_value_heads", "num_hidden_layers"


# ---- Make ------------------------------------------------------------------------------------------------------------


def make(folder: Path) -> None:
    """Put weights into a folder that has a model's config.json and tokenizer; the config becomes the twin's."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, set_seed

    whole = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    config = tiny(whole.get_text_config(decoder=True))
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, getattr(config, name, None) or getattr(whole, name, None))
    set_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    # How the model is sampled stays in its own file.
    made = folder / ".made"
    model.save_pretrained(made)
    for path in made.iterdir():
        if path.name != "generation_config.json":
            path.replace(folder / path.name)
    layers, before = getattr(config, LAYERS), getattr(whole.get_text_config(decoder=True), LAYERS)
    print(f"{config.model_type}: {model.num_parameters() / 1e6:.1f} M parameters, {layers} of {before} layers")


def tiny(config: Any) -> Any:
    """The config of the same architecture with few layers, and narrow ones."""
    from transformers import AutoConfig

    values = config.to_dict()
    # How the weights are stored, and what follows from the rest.
    for name in ("quantization_config", "full_attn_idxs", "per_layer_config"):
        values.pop(name, None)

    def own(name: str) -> str:
        return str(config.attribute_map.get(name, name))

    def known(name: str) -> Any:
        return values.get(own(name))

    heads, keys = known(HEADS), known(KEYS) or known("num_kv_heads") or known(HEADS)
    shared = min(max(heads // (max(keys) if isinstance(keys, list) else keys), 1), 16)
    few = 1 if shared > 2 else 2
    width = shared * few * HEAD
    before = known("head_dim") or known("qk_rope_head_dim") or known("hidden_size") // heads
    small = {HEADS: shared * few, KEYS: few, "num_kv_heads": few, **SMALL}
    small |= dict.fromkeys(WIDTHS, width) | dict.fromkeys(INNER, 2 * width)
    changed: dict[str, Any] = {own(name): value for name, value in small.items() if known(name)}
    kinds = kinds_of(values, known(LAYERS))
    changed[own(LAYERS)] = len(kinds)
    for name, value in values.items():
        if isinstance(value, list) and len(value) == known(LAYERS):
            changed[name] = [changed.get(name, value[layer]) for layer in kinds]
    if known("cross_attention_layers"):
        changed["cross_attention_layers"] = [1]
    if known("mlp_only_layers"):
        changed["mlp_only_layers"] = [0]
    changed |= {name: scaled(values[name], before) for name in ("rope_parameters", "rope_scaling") if values.get(name)}
    return AutoConfig.for_model(**values | changed)


def kinds_of(values: dict[str, Any], count: int) -> list[int]:
    """The first layer of each kind that the config tells apart, two at least."""
    told = [value for value in values.values() if isinstance(value, list) and len(value) == count]
    first: dict[str, int] = {}
    for layer in range(count):
        first.setdefault(repr([value[layer] for value in told]), layer)
    return list(first.values()) if len(first) > 1 else [*range(min(count, 2))]


def scaled(rope: Any, before: int) -> Any:
    """How positions are scaled, for narrower heads: what is given for each frequency, or counts them, is shortened."""
    if isinstance(rope, dict):
        return {name: scaled(value, before) for name, value in rope.items()}
    if not isinstance(rope, list):
        return rope
    if sum(rope) == before // 2 and len(rope) < 8:
        parts = [part * HEAD // before for part in rope]
        return [parts[0] + HEAD // 2 - sum(parts), *parts[1:]]
    return rope[: len(rope) * HEAD // before]


# ---- Load ------------------------------------------------------------------------------------------------------------


def load(folder: Path) -> None:
    """Load a saved adapter with PEFT alone, as whoever downloads it does, and let the model read a chat with it.

    It is looked at once the standard input has ended.
    """
    import torch
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Asked for while all that was imported.
    sys.stdin.read()
    base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    saved = load_file(folder / "adapter_model.safetensors")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    loaded = get_peft_model_state_dict(model)
    wrong = [name for name in saved.keys() | loaded.keys() if name not in saved or name not in loaded]
    wrong += [
        name for name in saved.keys() & loaded.keys() if not torch.equal(saved[name].float(), loaded[name].float())
    ]
    if wrong:
        sys.exit(f"error: PEFT does not load {len(wrong)} of the adapter's weights as they were saved: {min(wrong)}.")
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    chat = [{"role": "user", "content": "Hello"}]
    words = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    if not torch.isfinite(model(**words).logits).all():
        sys.exit("error: with the adapter, what the model says is no number.")
    print(f"{len(saved)} weights of the adapter, each as it was saved")


# ---- Look ------------------------------------------------------------------------------------------------------------


def look(path: Path, words: list[str]) -> None:
    """Read, template and collate the rows, and check the labels, with the script's own functions in its own order."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    # Where its dataclass looks for the types of its fields.
    sys.modules[spec.name] = script
    spec.loader.exec_module(script)
    with script.errors_told():
        args = script.read_options(script.Options, words)
        script.check_options(args)
        script.check_data(args)
        script.set_environment(args)
        script.phase("load processor")
        from unsloth.chat_templates import get_chat_template  # isort: skip
        import torch
        from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

        processor = AutoProcessor.from_pretrained(args.model, trust_remote_code=False)
        # As the trainer has it; makers of chat models pad for generation.
        processor.tokenizer.padding_side = "right"
        if not processor.chat_template and args.chat_template:
            processor = get_chat_template(processor, args.chat_template)
        script.require_template(processor, args.model)
        # Of its real size, and without any weights.
        config = AutoConfig.from_pretrained(args.model, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config)
        script.phase("prepare data")
        rows, held_out = script.read_rows(args, pictures=True)
        reader = script.Reader(processor, list(next(iter(rows), {})), args)
        mask = script.find_mask(processor) if args.train_on == "assistant" else None
        for part in (rows, held_out):
            if part is not None and not args.streaming:
                script.check_rows(part, reader)
        collator = script.make_collator(model, reader, args, mask)
        script.phase("check labels")
        parts = ([*islice(rows, start, start + args.batch_size)] for start in range(0, 8, args.batch_size))
        batches = [collator(part) for part in parts if part]
        given = SimpleNamespace(get_train_dataloader=lambda: batches)
        script.check_labels(given, processor.tokenizer, reader.stop, masked_wanted=mask is not None)


if __name__ == "__main__":
    what, where, *rest = sys.argv[1:]
    if what == "look":
        look(Path(where), rest)
    else:
        {"make": make, "load": load}[what](Path(where))
