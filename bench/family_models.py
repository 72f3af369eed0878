"""Build a local model folder for each promised family, and small datasets that it can learn.

    python bench/family_models.py qwen3 /tmp/qwen3                  # real widths and vocabulary, few layers, on the GPU
    python bench/family_models.py --tiny --device cpu gemma-3 /tmp/gemma-3

The weights are random, so a model knows nothing, but its size, its speed and everything around it are the family's:
widths and vocabulary from `launcher/data/models.toml`, special tokens at their published ids, the published chat
template, the processor with its published settings. The tokenizer is a small BPE, trained here, whose vocabulary is
filled up to the published size with entries that no text reaches. Runs in the training stack's environment.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

CATALOG = Path(__file__).parent.parent / "launcher" / "data" / "models.toml"
SEED = 3407
# The least that each architecture still is itself with.
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16}
TINY_VISION = {"hidden_size": 64, "intermediate_size": 128, "num_heads": 4}


# ---- The families ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tokens:
    """A family's tokenizer: its special tokens by id, and how it treats text.

    `total` is len(tokenizer). `plain` are added tokens that are not special: they are found whole, but decoded.
    """

    total: int
    special: dict[int, str]
    plain: dict[int, str] = field(default_factory=dict)
    sentencepiece: bool = False
    cls: str = "PreTrainedTokenizerFast"
    bos: str | None = None
    eos: str = ""
    pad: str = ""
    unk: str | None = None
    adds_bos: bool = False
    left: bool = False
    stops: tuple[str, ...] = ()
    named: dict[str, str] = field(default_factory=dict)
    """Further tokens that the processor asks the tokenizer for by name."""


@dataclass(frozen=True)
class Family:
    """What to build: the model of the catalog whose widths are taken, and how many layers are enough."""

    model: str
    layers: int
    config: Callable[[Dims], Any]
    tokens: Callable[[], Tokens]
    template: Callable[[], str]
    system: bool = True
    """Whether the chat template takes a system message."""
    processor: Callable[[Any, str, Dims], Any] | None = None
    vision_layers: int = 0


@dataclass(frozen=True)
class Dims:
    """The dimensions of one build, of the language model and (`vision`) of what sees; `ids` are token ids by name."""

    text: dict[str, Any]
    vision: dict[str, Any]
    ids: dict[str, Any]
    tiny: bool

    def decoder(self, **more: Any) -> dict[str, Any]:
        """What the configs of all decoders share."""
        text = self.text
        return {
            "vocab_size": text["vocab_size"],
            "hidden_size": text["hidden_size"],
            "intermediate_size": text["intermediate_size"],
            "num_hidden_layers": text["num_layers"],
            "num_attention_heads": text["num_heads"],
            "num_key_value_heads": text["num_kv_heads"],
            "head_dim": text["head_dim"],
            "max_position_embeddings": text["max_position"],
            "tie_word_embeddings": text["tied_embeddings"],
            "initializer_range": self.spread,
            "bos_token_id": self.ids["bos"],
            "eos_token_id": self.ids["stops"],
            "pad_token_id": self.ids["pad"],
        } | more

    @property
    def spread(self) -> float:
        """Standard deviation of the weights: narrow layers need more, or no logit could ever be large."""
        return 0.2 if self.tiny else 0.02


def _llama(dims: Dims, **more: Any) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(**dims.decoder(rms_norm_eps=1e-5, **more))


def _llama3_rope(factor: float) -> dict[str, Any]:
    return {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": factor, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip


def _plain_rope(theta: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta}


def _qwen2(dims: Dims) -> Any:
    from transformers import Qwen2Config

    shared = dims.decoder(rope_parameters=_plain_rope(1e6), sliding_window=None, use_sliding_window=False)
    shared.pop("head_dim")
    return Qwen2Config(**shared)


def _qwen3(dims: Dims) -> Any:
    from transformers import Qwen3Config

    return Qwen3Config(**dims.decoder(rope_parameters=_plain_rope(1e6)))


def _mistral(dims: Dims) -> Any:
    from transformers import MistralConfig

    return MistralConfig(**dims.decoder(rope_parameters=_plain_rope(1e6), sliding_window=None))


def _gemma2(dims: Dims) -> Any:
    from transformers import Gemma2Config

    return Gemma2Config(**dims.decoder(
        rope_parameters=_plain_rope(1e4), query_pre_attn_scalar=256, attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0, sliding_window=dims.text["sliding_window"],
    ))  # fmt: skip


def _gemma3(dims: Dims) -> Any:
    from transformers import Gemma3TextConfig

    return Gemma3TextConfig(**dims.decoder(query_pre_attn_scalar=256, sliding_window=dims.text["sliding_window"]))


def _lfm2(dims: Dims) -> Any:
    from transformers import Lfm2Config

    shared = dims.decoder(rope_parameters=_plain_rope(1e6))
    shared.pop("head_dim")
    # The config gives the width before the model takes two thirds of it.
    shared["intermediate_size"] = shared["intermediate_size"] * 3 // 2
    attends = [2, 5, 8, 10, 12, 14]
    kinds = ["full_attention" if layer in attends else "conv" for layer in range(dims.text["num_layers"])]
    return Lfm2Config(**shared, layer_types=kinds, conv_L_cache=3, block_auto_adjust_ff_dim=True)


def _qwen3_vl(dims: Dims) -> Any:
    from transformers import Qwen3VLConfig

    section = [4, 2, 2] if dims.tiny else [24, 20, 20]
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": section, "mrope_interleaved": True}
    tied, depth, vision = dims.text["tied_embeddings"], dims.vision["num_layers"], dims.vision
    text = dims.decoder(rope_parameters=rope, tie_word_embeddings=tied)
    return Qwen3VLConfig(
        text_config=text,
        vision_config={
            "depth": depth, "hidden_size": vision["hidden_size"], "intermediate_size": vision["intermediate_size"],
            "num_heads": vision["num_heads"], "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2,
            "out_hidden_size": dims.text["hidden_size"], "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [8, 16, 24] if depth > 24 else list(range(depth))[-3:],
            "initializer_range": dims.spread,
        },
        image_token_id=dims.ids["<|image_pad|>"], video_token_id=dims.ids["<|video_pad|>"],
        vision_start_token_id=dims.ids["<|vision_start|>"], vision_end_token_id=dims.ids["<|vision_end|>"],
        tie_word_embeddings=tied, eos_token_id=dims.ids["stops"], pad_token_id=dims.ids["pad"],
    )  # fmt: skip


def _gemma3_vision(dims: Dims) -> Any:
    from transformers import Gemma3Config

    side = 224 if dims.tiny else 896
    return Gemma3Config(
        text_config=_gemma3(dims).to_dict(),
        vision_config={
            "hidden_size": dims.vision["hidden_size"], "intermediate_size": dims.vision["intermediate_size"],
            "num_hidden_layers": dims.vision["num_layers"], "num_attention_heads": dims.vision["num_heads"],
            "patch_size": 14, "image_size": side, "vision_use_head": False,
        },
        mm_tokens_per_image=16 if dims.tiny else 256, initializer_range=dims.spread,
        boi_token_index=dims.ids["<start_of_image>"], eoi_token_index=dims.ids["<end_of_image>"],
        image_token_index=dims.ids["<image_soft_token>"], eos_token_id=dims.ids["stops"],
        pad_token_id=dims.ids["pad"], bos_token_id=dims.ids["bos"],
    )  # fmt: skip


def _mllama(dims: Dims) -> Any:
    from transformers import MllamaConfig

    layers, depth, width = dims.text["num_layers"], dims.vision["num_layers"], dims.vision["hidden_size"]
    # Five inner layers are read besides the last, as in the published model.
    inner = [3, 7, 15, 23, 30] if depth > 30 else [layer % depth for layer in range(5)]
    shared = dims.decoder(rope_parameters=_llama3_rope(8.0), rms_norm_eps=1e-5)
    shared.pop("head_dim")
    return MllamaConfig(
        text_config=shared | {"cross_attention_layers": list(range(3, layers, 5))},
        vision_config={
            "hidden_size": width, "intermediate_size": dims.vision["intermediate_size"],
            "attention_heads": dims.vision["num_heads"], "num_hidden_layers": depth - 8 if depth > 30 else depth,
            "num_global_layers": 8 if depth > 30 else 2, "intermediate_layers_indices": inner,
            "vision_output_dim": 6 * width, "image_size": 56 if dims.tiny else 560, "patch_size": 14,
            "initializer_range": dims.spread,
        },
        image_token_index=dims.ids["<|image|>"], pad_token_id=dims.ids["pad"], tie_word_embeddings=False,
    )  # fmt: skip


def _pixtral(dims: Dims) -> Any:
    from transformers import LlavaConfig

    vision = {
        "model_type": "pixtral", "hidden_size": dims.vision["hidden_size"],
        "intermediate_size": dims.vision["intermediate_size"], "num_hidden_layers": dims.vision["num_layers"],
        "num_attention_heads": dims.vision["num_heads"], "head_dim": dims.vision["hidden_size"]
        // dims.vision["num_heads"], "image_size": 1024, "patch_size": 16, "hidden_act": "silu",
        "rope_parameters": {"rope_type": "axial", "rope_theta": 1e4}, "initializer_range": dims.spread,
    }  # fmt: skip
    text = dims.decoder(rope_parameters=_plain_rope(1e9), rms_norm_eps=1e-5, sliding_window=None)
    return LlavaConfig(
        text_config=text | {"model_type": "mistral"}, vision_config=vision, image_token_index=dims.ids["[IMG]"],
        vision_feature_layer=-1, vision_feature_select_strategy="full", image_seq_length=1,
        eos_token_id=dims.ids["stops"], pad_token_id=dims.ids["pad"], bos_token_id=dims.ids["bos"],
    )  # fmt: skip


# ---- Tokenizers ------------------------------------------------------------------------------------------------------


def _llama3_tokens() -> Tokens:
    """Unsloth's uploads: <|finetune_right_pad_id|> pads, and the end of a turn is the end of the text."""
    first, reserved = 128000, iter(range(256))
    named = {
        0: "<|begin_of_text|>", 1: "<|end_of_text|>", 4: "<|finetune_right_pad_id|>", 6: "<|start_header_id|>",
        7: "<|end_header_id|>", 8: "<|eom_id|>", 9: "<|eot_id|>", 10: "<|python_tag|>",
    }  # fmt: skip
    special = {
        first + n: named[n] if n in named else f"<|reserved_special_token_{next(reserved)}|>" for n in range(256)
    }
    return Tokens(
        total=128256, special=special, bos="<|begin_of_text|>", eos="<|eot_id|>", pad="<|finetune_right_pad_id|>",
        adds_bos=True, left=True, stops=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
    )  # fmt: skip


def _mllama_tokens() -> Tokens:
    text = _llama3_tokens()
    return Tokens(**vars(text) | {"total": 128257, "special": text.special | {128256: "<|image|>"}})


_QWEN = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
_QWEN_PLAIN = (
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>",
)  # fmt: skip


def _qwen_tokens(plain: int = 12) -> Tokens:
    """Unsloth's uploads of Qwen pad with <|vision_pad|>; there is no beginning of the text."""
    return Tokens(
        total=151643 + 14 + plain,
        special={151643 + n: token for n, token in enumerate(_QWEN)},
        plain={151657 + n: token for n, token in enumerate(_QWEN_PLAIN[:plain])},
        cls="Qwen2Tokenizer", eos="<|im_end|>", pad="<|vision_pad|>", stops=("<|im_end|>", "<|endoftext|>"),
    )  # fmt: skip


def _mistral_tokens() -> Tokens:
    """Unsloth's upload of Mistral 7B v0.3 pads with its last control token."""
    names = [
        "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
        "[TOOL_RESULTS]", "[/TOOL_RESULTS]", *(f"[control_{n}]" for n in range(8, 769)),
    ]  # fmt: skip
    return Tokens(
        total=32768, special=dict(enumerate(names)), sentencepiece=True, cls="LlamaTokenizer", bos="<s>", eos="</s>",
        pad="[control_768]", unk="<unk>", adds_bos=True, left=True, stops=("</s>",),
    )  # fmt: skip


def _pixtral_tokens() -> Tokens:
    names = [
        "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
        "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]",
        "[SUFFIX]", *(f"<SPECIAL_{n}>" for n in range(17, 1000)),
    ]  # fmt: skip
    return Tokens(
        total=131072, special=dict(enumerate(names)), bos="<s>", eos="</s>", pad="<pad>", unk="<unk>", adds_bos=True,
        left=True, stops=("</s>",),
    )  # fmt: skip


def _phi4_tokens() -> Tokens:
    """Unsloth's upload of Phi 4 pads with its last dummy token."""
    first, dummy = 100256, iter(range(88))
    named = {
        1: "<|endoftext|>", 2: "<|fim_prefix|>", 3: "<|fim_middle|>", 4: "<|fim_suffix|>", 8: "<|im_start|>",
        9: "<|im_end|>", 10: "<|im_sep|>", 20: "<|endofprompt|>",
    }  # fmt: skip
    special = {first + n: named[n] if n in named else f"<|dummy_{next(dummy)}|>" for n in range(96)}
    return Tokens(
        total=100352, special=special, cls="GPT2Tokenizer", bos="<|endoftext|>", eos="<|im_end|>", pad="<|dummy_87|>",
        unk="<|endoftext|>", stops=("<|im_end|>",),
    )  # fmt: skip


def _gemma_tokens(total: int, turn: int, eos: str, more: dict[int, str], named: dict[str, str]) -> Tokens:
    head = {0: "<pad>", 1: "<eos>", 2: "<bos>", 3: "<unk>", 4: "<mask>", 5: "<2mass>", 6: "[@BOS@]"}
    unused = {n: f"<unused{n - 7}>" for n in range(7, turn)}
    return Tokens(
        total=total, special=head | unused | {turn: "<start_of_turn>", turn + 1: "<end_of_turn>"} | more,
        plain={turn + 1 + n: "\n" * n for n in range(1, 4)}, sentencepiece=True, cls="GemmaTokenizer", bos="<bos>",
        eos=eos, pad="<pad>", unk="<unk>", adds_bos=True, left=True, stops=("<eos>", "<end_of_turn>"), named=named,
    )  # fmt: skip


def _gemma2_tokens() -> Tokens:
    return _gemma_tokens(256000, 106, "<eos>", {}, {})


def _gemma3_tokens() -> Tokens:
    """Also the text-only sizes have <image_soft_token>, one id beyond the 1B's embeddings."""
    images = {255999: "<start_of_image>", 256000: "<end_of_image>", 262144: "<image_soft_token>"}
    named = {"boi_token": images[255999], "eoi_token": images[256000], "image_token": images[262144]}
    return _gemma_tokens(262145, 105, "<end_of_turn>", images, named)


def _lfm2_tokens() -> Tokens:
    names = [
        "<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|fim_pre|>", "<|fim_mid|>", "<|fim_suf|>", "<|im_start|>",
        "<|im_end|>", "<|tool_list_start|>", "<|tool_list_end|>", "<|tool_call_start|>", "<|tool_call_end|>",
        "<|tool_response_start|>", "<|tool_response_end|>", *(f"<|reserved_{n}|>" for n in range(4, 490)),
    ]  # fmt: skip
    return Tokens(
        total=64400, special=dict(enumerate(names)), bos="<|startoftext|>", eos="<|im_end|>", pad="<|pad|>",
        adds_bos=True, left=True, stops=("<|im_end|>",),
    )  # fmt: skip


# ---- Chat templates --------------------------------------------------------------------------------------------------


def _trl(name: str) -> Callable[[], str]:
    """The family's published template, of which TRL keeps a copy beside its code."""

    def read() -> str:
        spec = importlib.util.find_spec("trl")
        assert spec is not None and spec.origin is not None
        return (Path(spec.origin).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")

    return read


def _phi4_template() -> str:
    """microsoft/phi-4's, as unsloth.chat_templates has it."""
    parts = "".join(
        f"{word} (message['role'] == '{role}') %}}{{{{'<|im_start|>{role}<|im_sep|>' + message['content'] + "
        "'<|im_end|>'}}"
        for word, role in (("{% if", "system"), ("{% elif", "user"), ("{% elif", "assistant"))
    )
    return (
        "{% for message in messages %}" + parts + "{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
    )


def _mistral_template() -> str:
    """mistralai/Mistral-7B-Instruct-v0.3's, without its branches for tools; from public copies of it.

    It gives the system message to the last message if that is the user's: a row to train on loses it.
    """
    return """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
        {{- raise_exception("After the optional system message, conversation roles must alternate \
user/assistant/user/assistant/...") }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}

{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, with the exception of an initial optional \
system message!") }}
    {%- endif %}
{%- endfor %}
"""


def _pixtral_template() -> str:
    """mistral-community/pixtral-12b's later one, whose answers may be parts too; from public copies of it."""
    return """\
{%- if messages[0]["role"] == "system" %}{%- if messages[0]["content"] is not string %}\
{%- set system_message = messages[0]["content"][0]["text"] %}{%- else %}\
{%- set system_message = messages[0]["content"] %}{%- endif %}{%- set loop_messages = messages[1:] %}
{%- else %}{%- set loop_messages = messages %}{%- endif %}{{- bos_token }}{%- for message in loop_messages %}\
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{- raise_exception('After the optional system message, \
conversation roles must alternate user/assistant/user/assistant/...') }}{%- endif %}\
{%- if message["role"] == "user" %}{%- if loop.first and system_message is defined %}\
{{- "[INST]" + system_message + "\\n\\n" }}{%- else %}{{ "[INST]" }}{%- endif %}{%- endif %}\
{%- if message["content"] is not string %}{%- for chunk in message["content"] %}{%- if chunk["type"] == "text" %}\
{%- if "content" in chunk %}{{- chunk["content"] }}{%- elif "text" in chunk %}{{- chunk["text"] }}{%- endif %}\
{%- elif chunk["type"] == "image" %}{{- "[IMG]" }}{%- else %}{{- raise_exception("Unrecognized content type!") }}\
{%- endif %}{%- endfor %}{%- else %}{{- message["content"] }}{%- endif %}{%- if message["role"] == "user" %}\
{{- "[/INST]" }}{%- elif message["role"] == "assistant" %}{{- eos_token}}{%- else %}{{- raise_exception("Only user and \
assistant roles are supported, with the exception of an initial optional system message!") }}{%- endif %}\
{%- endfor %}"""


def _mllama_template() -> str:
    """meta-llama/Llama-3.2-11B-Vision-Instruct's: Llama 3.2's with images, which rule a system message out."""
    text = _trl("llama3_2")()
    before, system, after = text.partition("{#- System message #}\n")
    system_block, tools, after = after.partition("{#- Custom tools")
    one_message = "'<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim"
    assert system and tools and f"{{{{- {one_message} + '<|eot_id|>' }}}}" in after
    images = """\
{#- Find out if there are any images #}
{% set image_ns = namespace(has_images=false) %}
{%- for message in messages %}
    {%- for content in message['content'] %}
        {%- if content['type'] == 'image' %}
            {%- set image_ns.has_images = true %}
        {%- endif %}
    {%- endfor %}
{%- endfor %}

{#- Error out if there are images and system message #}
{%- if image_ns.has_images and not system_message == "" %}
    {{- raise_exception("Prompting with images is incompatible with system messages.") }}
{%- endif %}

{#- System message if there are no images #}
{%- if not image_ns.has_images %}
"""
    parts = """\
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {%- if message['content'] is string %}
            {{- message['content'] }}
        {%- else %}
            {%- for content in message['content'] %}
                {%- if content['type'] == 'image' %}
                    {{- '<|image|>' }}
                {%- elif content['type'] == 'text' %}
                    {{- content['text'] }}
                {%- endif %}
            {%- endfor %}
        {%- endif %}
        {{- '<|eot_id|>' }}"""
    after = after.replace(f"{{{{- {one_message} + '<|eot_id|>' }}}}", parts)
    return before + images + system_block.rstrip() + "\n{%- endif %}\n\n" + tools + after


# ---- Processors ------------------------------------------------------------------------------------------------------

_CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


def _qwen3_vl_processor(tokenizer: Any, template: str, dims: Dims) -> Any:
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    size = {"shortest_edge": 65536, "longest_edge": 16777216}
    shared: dict[str, Any] = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2, **_HALF}
    return Qwen3VLProcessor(
        Qwen2VLImageProcessor(size=size, **shared), tokenizer, Qwen3VLVideoProcessor(**shared), chat_template=template
    )


def _gemma3_processor(tokenizer: Any, template: str, dims: Dims) -> Any:
    from transformers import Gemma3ImageProcessor, Gemma3Processor

    side = 224 if dims.tiny else 896
    images = Gemma3ImageProcessor(size={"height": side, "width": side}, resample=2, **_HALF)
    return Gemma3Processor(images, tokenizer, chat_template=template, image_seq_length=16 if dims.tiny else 256)


def _mllama_processor(tokenizer: Any, template: str, dims: Dims) -> Any:
    from transformers import MllamaImageProcessor, MllamaProcessor

    side = 56 if dims.tiny else 560
    images = MllamaImageProcessor(size={"height": side, "width": side}, max_image_tiles=4, resample=2, **_CLIP)
    return MllamaProcessor(images, tokenizer, chat_template=template)


def _pixtral_processor(tokenizer: Any, template: str, dims: Dims) -> Any:
    from transformers import PixtralImageProcessor, PixtralProcessor

    images = PixtralImageProcessor(size={"longest_edge": 1024}, patch_size={"height": 16, "width": 16}, **_CLIP)
    return PixtralProcessor(images, tokenizer, patch_size=16, chat_template=template)


FAMILIES = {
    "llama-3.1": Family(
        "llama-3.1-8b", 2, lambda dims: _llama(dims, rope_parameters=_llama3_rope(8.0)), _llama3_tokens,
        _trl("llama3_1"),
    ),
    "llama-3.2": Family(
        "llama-3.2-1b", 4, lambda dims: _llama(dims, rope_parameters=_llama3_rope(32.0)), _llama3_tokens,
        _trl("llama3_2"),
    ),
    "qwen2.5": Family("qwen2.5-1.5b", 4, _qwen2, lambda: _qwen_tokens(plain=8), _trl("qwen2_5")),
    "qwen3": Family("qwen3-4b", 4, _qwen3, _qwen_tokens, _trl("qwen3")),
    "mistral": Family("mistral-7b", 2, _mistral, _mistral_tokens, _mistral_template),
    "phi-4": Family(
        "phi-4", 2, lambda dims: _llama(dims, rope_parameters=_plain_rope(250000.0)), _phi4_tokens, _phi4_template
    ),
    "gemma-2": Family("gemma-2-2b", 4, _gemma2, _gemma2_tokens, _trl("gemma"), system=False),
    "gemma-3": Family("gemma-3-1b", 6, _gemma3, _gemma3_tokens, _trl("gemma3")),
    "lfm2": Family("lfm2-1.2b", 4, _lfm2, _lfm2_tokens, _trl("lfm2")),
    "lfm2.5": Family("lfm2.5-1.2b", 4, _lfm2, _lfm2_tokens, _trl("lfm2_2_5")),
    "qwen3-vl": Family(
        "qwen3-vl-8b", 2, _qwen3_vl, _qwen_tokens, _trl("qwen3_vl"), processor=_qwen3_vl_processor, vision_layers=4
    ),
    "gemma-3-vision": Family(
        "gemma-3-4b", 6, _gemma3_vision, _gemma3_tokens, _trl("gemma3"), processor=_gemma3_processor, vision_layers=4
    ),
    "llama-3.2-vision": Family(
        "llama-3.2-11b-vision", 5, _mllama, _mllama_tokens, _mllama_template, system=False,
        processor=_mllama_processor, vision_layers=6,
    ),
    "pixtral": Family(
        "pixtral-12b", 2, _pixtral, _pixtral_tokens, _pixtral_template, processor=_pixtral_processor, vision_layers=4
    ),
}  # fmt: skip
TEXT = tuple(name for name, family in FAMILIES.items() if family.processor is None)
VISION = tuple(name for name in FAMILIES if name not in TEXT)


# ---- Building --------------------------------------------------------------------------------------------------------


def build(
    family: str, folder: Path, *, layers: int | None = None, model: str | None = None, tiny: bool = False,
    device: str = "cpu",
) -> Path:  # fmt: skip
    """Write a whole transformers folder of the family: config, weights (bfloat16), tokenizer or processor.

    With `tiny` the widths and the vocabulary are as small as the architecture allows, and the weights float32. With
    `model`, an alias of the catalog, all its layers are built at its own widths.
    """
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoTokenizer,
        GenerationConfig,
        set_seed,
    )

    spec = FAMILIES[family]
    if model:
        whole = catalog()["models"][model]
        depth = whole.get("vision", {}).get("num_layers", 0)
        spec = replace(spec, model=model, layers=whole["arch"]["num_layers"], vision_layers=depth)
    facts = catalog()["models"][spec.model]
    folder.mkdir(parents=True, exist_ok=True)
    tokens = _shrunk(spec.tokens()) if tiny else spec.tokens()
    ids = write_tokenizer(tokens, spec.template(), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    dims = _dims(spec, facts, ids, layers, len(tokenizer), tiny)
    config = spec.config(dims)
    config.save_pretrained(folder)
    # With the config there, the tokenizer is the one that a user of the model gets.
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if spec.processor:
        spec.processor(tokenizer, spec.template(), dims).save_pretrained(folder)

    auto = AutoModelForImageTextToText if spec.processor else AutoModelForCausalLM
    set_seed(SEED)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if tiny else torch.bfloat16)
    try:
        with torch.device(device):
            built = auto.from_config(config)
    finally:
        torch.set_default_dtype(before)
    built.generation_config = GenerationConfig(**_generation(spec, ids))
    built.save_pretrained(folder)
    return folder


@cache
def catalog() -> dict[str, Any]:
    """The launcher's table of models."""
    return tomllib.loads(CATALOG.read_text(encoding="utf-8"))


def facts_of(family: str) -> dict[str, Any]:
    """What the catalog says of the family that the build stands for: end_of_turn, lora_targets, chat_template."""
    table = catalog()
    model = table["models"][FAMILIES[family].model]
    return dict(table["families"][model["family"]]) | {"model": FAMILIES[family].model}


def _dims(
    spec: Family, facts: dict[str, Any], ids: dict[str, Any], layers: int | None, tokens: int, tiny: bool
) -> Dims:
    """The catalog's dimensions with fewer layers; `tokens` is len(tokenizer), which a tiny vocabulary just holds."""
    text = {"sliding_window": None} | facts["arch"]
    vision = dict(facts.get("vision", {}))
    text["num_layers"] = layers or spec.layers
    if vision:
        vision["num_layers"] = spec.vision_layers
    if tiny:
        text |= TINY | {"vocab_size": -(-tokens // 64) * 64, "max_position": 16384}
        text["sliding_window"] = text["sliding_window"] and 256
        vision |= TINY_VISION if vision else {}
    return Dims(text, vision, ids, tiny)


def _generation(spec: Family, ids: dict[str, Any]) -> dict[str, Any]:
    known = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    table = catalog()
    model = table["models"][spec.model]
    chosen = model.get("generation", table["families"][model["family"]].get("generation", {}))
    values = {name: value for name, value in chosen.items() if name in known}
    values = {"do_sample": True, **values} if values.get("temperature") else {}
    return values | {"bos_token_id": ids["bos"], "eos_token_id": ids["stops"], "pad_token_id": ids["pad"]}


# ---- The tokenizer's files -------------------------------------------------------------------------------------------

# Llama 3's; the others differ in how they split digits.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_RESERVED = re.compile(r"reserved|unused|control_|dummy_|SPECIAL_")


def write_tokenizer(tokens: Tokens, template: str, folder: Path) -> dict[str, Any]:
    """Write tokenizer.json, its config and the chat template; the ids of bos, pad, stops and every special token."""
    pieces, merges = _train(tokens.sentencepiece)
    added = tokens.special | tokens.plain
    fixed = set(added.values())
    free = iter([piece for piece in pieces if piece not in fixed])
    by_id = {n: added.get(n) or next(free, f"<filler_{n}>") for n in range(tokens.total)}
    if next(free, None) is not None:
        raise ValueError(f"{tokens.total} ids are too few for {len(pieces)} pieces and {len(added)} added tokens")
    ids = {token: n for n, token in by_id.items()}
    start = [{"SpecialToken": {"id": tokens.bos, "type_id": 0}}] if tokens.adds_bos else []
    specials = {tokens.bos: {"id": tokens.bos, "ids": [ids[tokens.bos]], "tokens": [tokens.bos]}} if tokens.bos else {}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    decoder = {n: {"content": token, "special": n in tokens.special, **flags} for n, token in sorted(added.items())}
    backend: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": n, **entry} for n, entry in decoder.items()],
        "normalizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [*start, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [*start, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": specials if tokens.adds_bos else {},
        },
        "model": {
            "type": "BPE", "dropout": None, "unk_token": tokens.unk if tokens.sentencepiece else None,
            "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": tokens.sentencepiece,
            "byte_fallback": tokens.sentencepiece, "ignore_merges": False, "vocab": ids, "merges": merges,
        },
    }  # fmt: skip
    if tokens.sentencepiece:
        prepend = "first" if tokens.cls == "LlamaTokenizer" else "never"
        backend["pre_tokenizer"] = {
            "type": "Metaspace", "replacement": "▁", "prepend_scheme": prepend, "split": False,
        }  # fmt: skip
        strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prepend == "first" else []
        replace = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
        backend["decoder"] = {
            "type": "Sequence", "decoders": [replace, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip],
        }  # fmt: skip
    else:
        split = {"type": "Split", "pattern": {"Regex": _SPLIT}, "behavior": "Isolated", "invert": False}
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
        backend["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, level]}
        backend["decoder"] = level | {"use_regex": True}
    config = {
        "tokenizer_class": tokens.cls, "added_tokens_decoder": {str(n): entry for n, entry in decoder.items()},
        "bos_token": tokens.bos, "eos_token": tokens.eos, "pad_token": tokens.pad, "unk_token": tokens.unk,
        "clean_up_tokenization_spaces": False, "model_max_length": 131072,
        "padding_side": "left" if tokens.left else "right", "extra_special_tokens": tokens.named,
    }  # fmt: skip
    if tokens.sentencepiece or not tokens.adds_bos:
        config["add_bos_token"] = tokens.adds_bos
    (folder / "tokenizer.json").write_text(json.dumps(backend, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False, indent=1), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    names = {token: ids[token] for token in fixed}
    stops = [ids[token] for token in tokens.stops]
    return names | {"bos": ids.get(tokens.bos or ""), "pad": ids[tokens.pad], "stops": stops}


def _shrunk(tokens: Tokens) -> Tokens:
    """The same tokenizer without the reserved tokens that nothing uses, the rest moved together, and no filling."""
    pieces, _ = _train(tokens.sentencepiece)
    added = sorted((tokens.special | tokens.plain).items())
    kept = {n: token for n, token in added if token == tokens.pad or not _RESERVED.search(token)}
    first = 0 if min(kept) < 100 else len(pieces) - len(set(pieces) & set(kept.values()))
    moved = {old: first + n for n, old in enumerate(kept)}
    return Tokens(**vars(tokens) | {
        "total": len(set(pieces) | set(kept.values())),
        "special": {moved[n]: token for n, token in kept.items() if n in tokens.special},
        "plain": {moved[n]: token for n, token in kept.items() if n in tokens.plain},
    })  # fmt: skip


@cache
def _train(sentencepiece: bool) -> tuple[list[str], list[list[str]]]:
    """The pieces and merges of a small BPE, byte-level or with byte fallback; the same every time."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE(byte_fallback=sentencepiece))
    if sentencepiece:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
        alphabet: list[str] = [chr(n) for n in range(33, 127)] + ["▁"]
    else:
        from tokenizers import Regex

        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(_SPLIT), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
        )
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, min_frequency=2, initial_alphabet=alphabet, show_progress=False, limit_alphabet=len(alphabet)
    )
    lines = [part for line in _corpus() for part in (line.split("\n") if sentencepiece else [line])]
    backend.train_from_iterator(lines, trainer)
    state = json.loads(backend.to_str())["model"]
    pieces = sorted(state["vocab"], key=state["vocab"].__getitem__)
    return [f"<0x{n:02X}>" for n in range(256)] * sentencepiece + pieces, state["merges"]


def _corpus() -> list[str]:
    """What the tokenizer is trained on: the rows, and the words of the templates, whole tokens in every family."""
    roles = "\n\n system user assistant model system\n\nuser\n\nassistant\n\nmodel\n"
    said = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\nYou are Qwen, created by Alibaba Cloud."
    rows = [turn["content"] for row in [*text_rows(), *text_rows(held_out=True)] for turn in row["messages"]]
    return [roles, said, "system", "user", "assistant", "model"] * 40 + rows


# ---- Rows to learn ---------------------------------------------------------------------------------------------------

_THINGS = ("crate", "barrel", "parcel", "bottle", "basket", "drawer", "locker", "shelf")
_COLOURS = ("red", "green", "blue", "white", "black", "brown", "silver", "golden")
_PLACES = ("the harbour", "the old mill", "the north gate", "the station", "the library", "the bakery", "the garden")
_SYSTEM = "You keep the inventory of a small town and answer in one sentence."


def text_rows(*, system: bool = True, held_out: bool = False) -> list[dict[str, Any]]:
    """64 conversations about 64 things, or 16 of the same questions again as the rows to evaluate on.

    One in four has a system message (where the family takes one), one in three a second question.
    """
    rows = []
    for n in range(64):
        thing, colour, place = _THINGS[n % 8], _COLOURS[n // 8], _PLACES[(3 * n) % 7]
        messages = [{"role": "system", "content": _SYSTEM}] if system and n % 4 == 0 else []
        messages += [
            {"role": "user", "content": f"Where is the {colour} {thing}?"},
            {"role": "assistant", "content": f"The {colour} {thing} stands beside {place}, under number {n + 10}."},
        ]
        if n % 3 == 0:
            messages += [
                {"role": "user", "content": "Who looks after it?"},
                {"role": "assistant", "content": f"Keeper {(n * 7) % 11} of {place} does, every morning."},
            ]
        rows.append({"messages": messages})
    return rows[::4] if held_out else rows


def write_text_rows(folder: Path, *, system: bool = True) -> Path:
    """Write the rows as train.jsonl (64) and test.jsonl (16), which `load_dataset(folder)` reads as two splits."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, held_out in (("train", False), ("test", True)):
        lines = [json.dumps(row) for row in text_rows(system=system, held_out=held_out)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


# Twenty handwritten digits of 8 x 8 pixels, one hexadecimal figure of ink each: two of each kind, from
# sklearn.datasets.load_digits (the UCI ML hand-written digits test set, CC BY 4.0), 16 levels instead of 17.
_DIGITS = (
    "005d910000dfaf5003f20b8004c008800580098004b01c7002e5ac00006da000",
    "0019fb0000bf8e6002fa099001f4088004f4088001f51b3000ccaa00001ad300",
    "000cd500000bf900003ff60007fff200001ff300001ff600001ff600000bfa00",
    "0000ed100005ff20000efc0001affc0003cef9000005ff000004fe000001df10",
    "0004fc00003ffe00008d8f000016fb00018df10009ff500003dffb500003bf90",
    "005c100000fe700000d1c00002a0e0000020f1000006f000009ff982003b8dc4",
    "007fd10008d6f400021dd000002fb1000001cc1000001a8000845e90007dd900",
    "029fe93004d89f800006ef30000be2000002fb0000002f400156df6002ccdb00",
    "0001b00000078000001d6220007f098005fa0f6004ffdf100003fa000002f400",
    "0008f100001ed11000af3fb007f71f8009fdef5001affe000001fa00000af400",
    "00ca000000effe0000dffa1000bff70000047f7000004f900054cf40009ffa00",
    "05cdff200bff840008eb100008ffe0000166f0000005f300015fd00004ff2000",
    "000cd000005f800000df300000ed000000fc720000dfdf30007fbf800019fb30",
    "0008f100000ce000003f7000006f2000007ffd5000ff99e0003e92f20007ffb0",
    "0078dff100774bc000008d100488ff6002bff400000f5000009f100000d50000",
    "0018fa0003dfee0005a0ac000035fa2000ffffc0018ce830000ad000000b9000",
    "009e810000ceec00009a0f40003fce20004ff20003f8ad2001f13f8000bffb10",
    "00a7d900009acf20004bab00001fa10000cd400000c1c00001a2e00000be5000",
    "00bc000002fffd0003fcae0001f1cf0000df9f20000309b000009f40009cd300",
    "006e400000bfa000008ef200001ccb0000000b30000005b0001447f2007ffdb1",
)
_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def picture(n: int, side: int = 320) -> bytes:
    """The n-th handwritten digit (of 20, its figure is n // 2) as a PNG of that side, dark on a tinted ground."""
    from PIL import Image

    ink = [15 - int(figure, 16) for figure in _DIGITS[n % len(_DIGITS)]]
    tint = (255, 250 - 5 * (n % 7), 235 - 9 * (n % 5))
    small = Image.new("RGB", (8, 8))
    for place, level in enumerate(ink):
        red, green, blue = (colour * level // 15 for colour in tint)
        small.putpixel((place % 8, place // 8), (red, green, blue))
    buffer = io.BytesIO()
    small.resize((side, side), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def vision_rows(*, system: bool = True, held_out: bool = False, side: int = 320) -> list[dict[str, Any]]:
    """64 conversations about pictures, or 16 of them to evaluate on: `images` as PNG bytes, `messages` with parts.

    One in four has a system message (where the family takes one), one in four two pictures, one in four two questions.
    """
    rows = []
    for n in range(64):
        shown = [n % 20, (7 * n + 3) % 20] if n % 4 == 1 else [n % 20]
        names = [_NAMES[picture_number // 2] for picture_number in shown]
        ask = "Which digit is this?" if len(shown) == 1 else "Which two digits are these?"
        told = f"This is the digit {names[0]}." if len(shown) == 1 else f"First {names[0]}, then {names[1]}."
        told_first = [_said("system", "You read handwriting and answer in one sentence.")] * (system and n % 4 == 0)
        messages = [*told_first, _said("user", ask, images=len(shown)), _said("assistant", told)]
        if n % 4 == 2:
            even = "even" if shown[0] // 2 % 2 == 0 else "odd"
            messages += [_said("user", "Is it even or odd?"), _said("assistant", f"It is {even}.")]
        images = [{"bytes": picture(picture_number, side), "path": None} for picture_number in shown]
        rows.append({"images": images, "messages": messages})
    return rows[::4] if held_out else rows


def _said(role: str, text: str, images: int = 0) -> dict[str, Any]:
    parts: list[dict[str, str | None]] = [{"type": "image", "text": None} for _ in range(images)]
    return {"role": role, "content": [*parts, {"type": "text", "text": text}]}


def write_vision_rows(folder: Path, *, system: bool = True, side: int = 320) -> Path:
    """Write the rows as train.parquet (64) and test.parquet (16) with an `images` column of pictures."""
    from datasets import Dataset, Features, Image, List, Value

    part = {"type": Value("string"), "text": Value("string")}
    features = Features({"images": List(Image()), "messages": List({"role": Value("string"), "content": List(part)})})
    folder.mkdir(parents=True, exist_ok=True)
    for split, held_out in (("train", False), ("test", True)):
        rows = vision_rows(system=system, held_out=held_out, side=side)
        Dataset.from_list(rows, features=features).to_parquet(folder / f"{split}.parquet")
    return folder


def main() -> None:
    """Build one family from the command line."""
    parser = argparse.ArgumentParser(description="Build a local model folder of one family.")
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--model", help="an alias of the catalog: whole, with all its layers")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    print(build(args.family, args.folder, layers=args.layers, model=args.model, tiny=args.tiny, device=args.device))


if __name__ == "__main__":
    main()
