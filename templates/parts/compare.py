"""A copy is loaded again and compared with the adapter on its model, by what each makes of one prompt."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path
from statistics import correlation
from typing import Any

from parts.llama_cpp import ANSWERER, SEEING_ANSWERER, last_line, program_of, sight_of
from parts.ollama import SHOWN

QUESTION, BEGINNING = "What is the capital of France?", "The capital of France is"
QUESTION_OF_PICTURE = "What is shown here?"
ANSWERED, COMPLETE_S = 24, 900
# How far a token's logit must lead the next one's for a GGUF file of that type to have to answer with it as well. Of a
# model of 135M q4_k_m moved a lead by 2.3 at most, in 91 tokens, and q2_k by 5.7: of the smallest types none has to.
LEADS = {"f16": 3, "bf16": 3, "q8_0": 3, "q6_k": 6, "q5_k_m": 6, "q4_k_m": 6}


class DifferentError(Exception):
    """The copy is not the trained model: it is not kept."""


@dataclass(frozen=True)
class Seen:
    """What a model makes of the prompt: the likeliest token at each place, the logits at its end, its likeliest answer.

    `led` are, by a lead, the words at the answer's beginning that lead all others by so much; `stop` is the token that
    ends an answer, `eos` the tokenizer's own.
    """

    prompt: str
    ids: list[int]
    likeliest: list[int]
    last: list[float]
    answer: list[int]
    words: str
    stop: int
    eos: int
    template: str | None
    led: dict[int, list[str]]


def picture() -> Any:
    """What a model that sees is shown: 256 pixels square, which most look at as they are."""
    from PIL import Image

    return Image.radial_gradient("L").convert("RGB")


def probe(model: Any, reader: Any, stop: int, sees: bool, led: bool = False) -> Seen:
    """What the model makes of the prompt, with a picture where it `sees`; `led` asks for the leading words too."""
    import torch

    tokenizer = getattr(reader, "tokenizer", reader)
    if sees:
        content = [{"type": "image"}, {"type": "text", "text": QUESTION_OF_PICTURE}]
        text = reader.apply_chat_template([{"role": "user", "content": content}], tokenize=False, **SHOWN)
        inputs = reader(text=[text], images=[[picture()]], add_special_tokens=False, return_tensors="pt")
        inputs = inputs.to(model.device, model.dtype)
    else:
        text, asked = BEGINNING, [{"role": "user", "content": QUESTION}]
        if reader.chat_template:
            text = reader.apply_chat_template(asked, tokenize=False, **SHOWN)
        inputs = reader([text], add_special_tokens=not reader.chat_template, return_tensors="pt").to(model.device)
    with torch.inference_mode():
        logits = model(**inputs).logits[0].float().cpu()
        # Greedy, and without what the recommended settings would change of it.
        made = model.generate(
            **inputs, max_new_tokens=ANSWERED, do_sample=False, repetition_penalty=1.0, eos_token_id=[stop],
            pad_token_id=tokenizer.pad_token_id,
            **({"return_dict_in_generate": True, "output_logits": True} if led else {}),
        )  # fmt: skip
    answer = (made.sequences if led else made)[0, inputs["input_ids"].shape[1] :].tolist()
    pairs = [step[0].float().topk(2).values.tolist() for step in made.logits] if led else []
    said = partial(tokenizer.decode, skip_special_tokens=True)
    return Seen(
        prompt=text,
        ids=inputs["input_ids"][0].tolist(),
        likeliest=logits.argmax(-1).tolist(),
        last=logits[-1].tolist(),
        answer=answer,
        words=said(answer),
        stop=stop,
        eos=tokenizer.eos_token_id,
        template=reader.chat_template,
        led={lead: leading_words(answer, pairs, lead, said) for lead in set(LEADS.values())} if led else {},
    )


def leading_words(
    answer: list[int], pairs: list[Sequence[float]], lead: float, said: Callable[[list[int]], str]
) -> list[str]:
    """The whole words at the beginning of an answer whose every token leads by so much; `pairs` are the best logits."""
    count = next((n for n, (first, second) in enumerate(pairs) if first - second < lead), len(answer))
    return words_of(said(answer) if count >= len(answer) else re.sub(r"\S*$", "", said(answer[:count])))


def words_of(text: str) -> list[str]:
    """The words of an answer, without tags, of which llama.cpp shows others than transformers."""
    return re.sub(r"<[^<>]*>", " ", text).split()


def compare(known: Seen, found: Seen) -> str:
    """How much the copy is the trained model, in a sentence; `DifferentError` where it is another."""
    if found.ids != known.ids:
        raise DifferentError("its tokenizer or chat template makes another prompt than the trained model's")
    pairs = list(zip(known.likeliest[::-1], found.likeliest[::-1], strict=False))
    same = sum(one == other for one, other in pairs)
    # Either may have room for more tokens than there are.
    one, other = zip(*zip(known.last, found.last, strict=False), strict=True)
    far = max(abs(a - b) for a, b in zip(one, other, strict=True))
    told = f"the likeliest next token is the same at {same} of {len(pairs)} places of a prompt"
    told += f", and the logits at its end differ by {far:.3g} at most"
    # Of a model that knows little, 4 bits change the likeliest token easily, and the logits as a whole much less.
    if same * 2 <= len(pairs) and correlation(one, other) < 0.5:
        raise DifferentError(f"it does not answer as the trained model: {told}")
    if found.answer == known.answer:
        return f"the same answer of {len(known.answer)} tokens; {told}"
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(known.answer, found.answer, strict=False))
    return f"the answers are the same for {len([*alike])} tokens, then differ; {told}"


def check_merged(folder: Path, known: Seen, sees: bool, trust_remote_code: bool) -> tuple[str, Seen]:
    """Load the merged model with plain transformers: what `compare` says, and what the copy makes of the prompt.

    In a process of its own, where Unsloth has patched nothing. A GGUF file is compared with what this one answers: it
    is made of it, and nearer to it than to what was trained in 4 bits.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    import transformers

    reader_class: Any = transformers.AutoProcessor if sees else transformers.AutoTokenizer
    model_class: Any = transformers.AutoModelForImageTextToText if sees else transformers.AutoModelForCausalLM
    where = {"device_map": "auto"} if torch.cuda.is_available() else {}
    reader = reader_class.from_pretrained(folder, trust_remote_code=trust_remote_code)
    model = model_class.from_pretrained(folder, dtype="auto", trust_remote_code=trust_remote_code, **where)
    found = probe(model, reader, known.stop, sees, led=True)
    return compare(known, found), found


def check_gguf(path: Path, kind: str, known: Seen, sees: bool, llama_cpp: Path) -> str:
    """What the file says of its tokens and template, and how llama.cpp answers from it where it is built.

    `known` is the 16-bit merged model's; `DifferentError` where it is another model. In a process of its own, since
    the reader is llama.cpp's.
    """
    sys.path.insert(0, str(llama_cpp / "gguf-py"))
    from gguf import GGUFReader

    fields = GGUFReader(path).fields
    names = ("tokenizer.ggml.eos_token_id", "tokenizer.chat_template")
    eos, template = (fields[name].contents() if name in fields else None for name in names)
    if eos not in (known.eos, known.stop):
        raise DifferentError(f"its end token is {eos}, and the trained model's {known.eos}")
    if (template or "").strip() != (known.template or "").strip():
        raise DifferentError("its chat template is not the trained model's")
    told = f"the end token and {'the chat template' if template else 'the lack of a chat template'} are the model's"
    name = SEEING_ANSWERER if sees else ANSWERER
    answerer = program_of(llama_cpp, name)
    if answerer is None:
        return f"{told}; not run, since {llama_cpp} has no {name}"
    try:
        said = answer_of_picture(answerer, path) if sees else answer_text(answerer, path, known.prompt, fields)
    except (MemoryError, subprocess.TimeoutExpired) as error:
        return f"{told}; not run, for want of {'memory' if isinstance(error, MemoryError) else 'time'}"
    return compare_words(known.words.strip(), said, known.led.get(LEADS.get(kind, 0), []), told, sees)


def compare_words(known: str, said: str, led: list[str], told: str, sees: bool) -> str:
    """What is told of an answer in llama.cpp; `DifferentError` where it lacks the words that `led` the model's."""
    if said == known:
        return f"the same answer in llama.cpp; {told}"
    differs = f"in llama.cpp it answers {said[:60]!r}, and the merged model {known[:60]!r}"
    needed = led[: math.ceil(len(led) / 2)]
    # Each makes a picture smaller in its own way: of such an answer one word is enough.
    lacks = not set(words_of(said)) & set(words_of(known)) if sees else words_of(said)[: len(needed)] != needed
    if needed and lacks:
        raise DifferentError(f"it does not answer as the merged model: {differs}")
    return f"another answer: {differs}; {told}"


def answer_text(answerer: Path, path: Path, prompt: str, fields: Any) -> str:
    """What llama.cpp answers to the prompt."""
    bos, adds = fields.get("tokenizer.ggml.bos_token_id"), fields.get("tokenizer.ggml.add_bos_token")
    if bos and adds and adds.contents():
        # It would be there twice.
        prompt = prompt.removeprefix(fields["tokenizer.ggml.tokens"].contents(bos.contents()))
    plain = ("--no-conversation", "--no-display-prompt", "--no-escape", "--simple-io")
    return complete(answerer, path, "-p", prompt, *plain)


def answer_of_picture(answerer: Path, path: Path) -> str:
    """What llama.cpp answers to the question about the picture; it makes the prompt by the file's template."""
    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        picture().save(file, "PNG")
        file.flush()
        asked = ("--image", file.name, "-p", QUESTION_OF_PICTURE, "--jinja")
        return complete(answerer, path, "--mmproj", str(sight_of(path)), *asked)


def complete(answerer: Path, path: Path, *asked: str) -> str:
    """The likeliest words after what is asked.

    `RuntimeError` where llama.cpp fails, `MemoryError` where it is for want of memory, `TimeoutExpired` where it takes
    too long, as with a file that is larger than the memory.
    """
    # The file holds the recommended settings, a penalty for repetition among them.
    greedy = ("-n", str(ANSWERED), "-c", "1024", "--temp", "0", "--repeat-penalty", "1", "--poll", "0", "--no-warmup")
    command = [str(answerer), "-m", str(path), *asked, *greedy]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=COMPLETE_S, check=False)
    starved = re.search("(failed|unable) to allocate|out of memory", done.stderr, re.IGNORECASE)
    if done.returncode == -signal.SIGKILL or (done.returncode and starved):
        raise MemoryError
    if done.returncode:
        raise RuntimeError(f"{answerer.name} ended with status {done.returncode}: {last_line(done.stderr)}")
    return done.stdout.removesuffix("\n").replace("[end of text]", "").strip()
