"""What Ollama needs beside a GGUF file: how it is sampled, where an answer ends, and the chat template in Go."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parts.chat import end_of_turn, fold_system, takes_system

# Ollama's names of settings, where they differ from transformers'.
OLLAMA_NAMES = {"repetition_penalty": "repeat_penalty"}
# Llama's template would else hold the day on which this runs.
SHOWN: dict[str, Any] = {"add_generation_prompt": True, "date_string": "26 Jul 2024"}
# Beside GGUF files, for Ollama.
FOR_OLLAMA = ("Modelfile", "params", "template")

# A prompt in Ollama's language, Go's text/template; what stands between ⟨ and ⟩ is read off the chat template.
GO_TEMPLATE = (
    "{{ if .System }}⟨head⟩{{ .System }}⟨after_system⟩{{ else }}⟨start⟩{{ end }}"
    "{{ range $i, $m := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
    '{{ if eq $m.Role "user" }}{{ $m.Content }}{{ if $last }}⟨tail⟩{{ else }}⟨after_user⟩{{ end }}'
    '{{ else if eq $m.Role "assistant" }}{{ $m.Content }}{{ if not $last }}⟨after_answer⟩{{ end }}'
    "{{ end }}{{ end }}"
)


@dataclass(frozen=True)
class ChatForm:
    """What Ollama has to be told of the chat template: the tokens that end an answer, and the same template in Go.

    `template` is none where no such template makes the same prompts.
    """

    has_template: bool
    stops: tuple[str, ...]
    template: str | None


def chat_form(reader: Any, sees: bool) -> ChatForm:
    """What the tokenizer or processor knows of that."""
    tokenizer = getattr(reader, "tokenizer", reader)
    stops = dict.fromkeys((tokenizer.decode([end_of_answer(reader, sees)]), tokenizer.eos_token))
    usable = tuple(stop for stop in stops if stop and not re.search(r'["\\\n]', stop))
    return ChatForm(bool(reader.chat_template), usable, go_template(reader, sees) if reader.chat_template else None)


def write_modelfile(folder: Path, ggufs: list[str], settings: dict[str, float], form: ChatForm) -> None:
    """Write what Ollama needs beside the GGUF files of one model: the Modelfile for `ollama create`.

    `ollama run hf.co/USER/MODEL` reads the files `template` and `params` of the repo instead.
    """
    named = {OLLAMA_NAMES.get(name, name): value for name, value in settings.items()}
    lines = [f"FROM ./{name}" for name in ggufs]
    lines += [f"PARAMETER {name} {value}" for name, value in named.items()]
    lines += [f'PARAMETER stop "{stop}"' for stop in form.stops]
    (folder / "template").unlink(missing_ok=True)
    if form.template is not None:
        lines.append(f'TEMPLATE """{form.template}"""')
        (folder / "template").write_text(form.template, encoding="utf-8")
    elif form.has_template:
        lines.append("# No template: none makes the prompts of this chat template. Ollama looks for one like it.")
    (folder / "Modelfile").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "params").write_text(json.dumps(named | {"stop": form.stops}, indent=2) + "\n", encoding="utf-8")


def sayer(sees: bool) -> Callable[[str], Any]:
    """Makes of a text the content of a message."""
    return (lambda text: [{"type": "text", "text": text}]) if sees else str


def end_of_answer(reader: Any, sees: bool) -> int:
    """The id of the token that ends an answer in this chat template; without one, the tokenizer's own."""
    tokenizer = getattr(reader, "tokenizer", reader)
    return end_of_turn(reader, tokenizer, sayer(sees)) if reader.chat_template else int(tokenizer.eos_token_id)


def go_template(reader: Any, sees: bool) -> str | None:
    """The chat template as Ollama writes one, or none where no such template makes the same prompts.

    It is read off a prompt: what stands before, between and after the messages. Then other prompts must come out equal.
    """
    from jinja2 import TemplateError

    def put_together(system: str | None, *texts: str) -> str:
        text = start if system is None else head + system + after_system
        for number, turn in enumerate(texts, 1):
            text += turn + (tail if number == len(texts) else after_user if number % 2 else after_answer)
        return text

    asked = ("USER1", "ANSWER1", "USER2")
    try:
        pieces = re.split("SYSTEM0|USER1|ANSWER1|USER2", prompt_of(reader, sees, "SYSTEM0", *asked))
        if len(pieces) != 5:
            return None
        head, after_system, after_user, after_answer, tail = pieces
        start = prompt_of(reader, sees, None, *asked).partition("USER1")[0]
        for chat in ((None, "a"), ("s", "a"), ("s", *"abc"), (None, *"abcde"), ("s", *"abcdefg")):
            if put_together(*chat) != prompt_of(reader, sees, *chat):
                return None
    except TemplateError:
        return None
    tokenizer = getattr(reader, "tokenizer", reader)
    if tokenizer.bos_token and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]:
        # Ollama puts it there too.
        head, start = head.removeprefix(tokenizer.bos_token), start.removeprefix(tokenizer.bos_token)
    found = {"head": head, "after_system": after_system, "start": start,
             "after_user": after_user, "after_answer": after_answer, "tail": tail}  # fmt: skip
    if any('"""' in piece or "{{" in piece + "{" for piece in found.values()):
        return None
    return re.sub("⟨([a-z_]+)⟩", lambda name: found[name[1]], GO_TEMPLATE)


def prompt_of(reader: Any, sees: bool, system: str | None, *texts: str) -> str:
    """The prompt for an answer to these texts, the user's and the assistant's, with a system message or none."""
    said, roles = sayer(sees), itertools.cycle(("user", "assistant"))
    messages = [{"role": role, "content": said(text)} for role, text in zip(roles, texts, strict=False)]
    if system is not None:
        messages.insert(0, {"role": "system", "content": said(system)})
        if not takes_system(reader, said, [{"type": "image"}, *said("Hi")] if sees else "Hi"):
            # As the training did for such a chat template.
            messages = fold_system(messages, said)
    return str(reader.apply_chat_template(messages, tokenize=False, **SHOWN))
