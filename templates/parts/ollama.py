"""What Ollama needs beside a GGUF file: how it is sampled, where an answer ends, and the chat template in Go."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    stops, template = [tokenizer.eos_token], None
    if reader.chat_template:
        stops.insert(0, tokenizer.decode([end_of_answer(reader, sees)]))
        template = go_template(reader, sees)
    usable = (stop for stop in dict.fromkeys(stops) if stop and not re.search(r'["\\\n]', stop))
    return ChatForm(bool(reader.chat_template), tuple(usable), template)


def write_modelfile(folder: Path, ggufs: list[str], settings: dict[str, float], form: ChatForm) -> None:
    """Write what Ollama needs beside the GGUF files of one model: the Modelfile for `ollama create`.

    `ollama run hf.co/USER/MODEL` reads the files `template` and `params` of the repo instead.
    """
    named = {OLLAMA_NAMES.get(name, name): value for name, value in settings.items()}
    lines = [f"FROM ./{name}" for name in ggufs]
    lines += [f"PARAMETER {name} {value}" for name, value in named.items()]
    lines += [f'PARAMETER stop "{stop}"' for stop in form.stops]
    if form.template is not None:
        lines.append(f'TEMPLATE """{form.template}"""')
        (folder / "template").write_text(form.template, encoding="utf-8")
    else:
        (folder / "template").unlink(missing_ok=True)
        if form.has_template:
            lines.append("# No template: none makes the prompts of this chat template. Ollama looks for one like it.")
    (folder / "Modelfile").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "params").write_text(json.dumps(named | {"stop": form.stops}, indent=2) + "\n", encoding="utf-8")


def end_of_answer(reader: Any, sees: bool) -> int:
    """The id of the token that ends an answer in this chat template; without one, the tokenizer's own."""
    tokenizer = getattr(reader, "tokenizer", reader)
    if not reader.chat_template:
        return int(tokenizer.eos_token_id)
    said = {"user": "Hi", "assistant": "ANSWER"}
    chat = [{"role": role, "content": content_of(text, sees)} for role, text in said.items()]
    tail = reader.apply_chat_template(chat, tokenize=False).rpartition("ANSWER")[2]
    ids = tokenizer(tail, add_special_tokens=False).input_ids
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return int(next((id for id in ids if id in special), tokenizer.eos_token_id))


def go_template(reader: Any, sees: bool) -> str | None:
    """The chat template as Ollama writes one, or none where no such template makes the same prompts.

    It is read off a prompt: what stands before, between and after the messages. Then other prompts must come out equal.
    """
    from jinja2 import TemplateError

    tokenizer, asked = getattr(reader, "tokenizer", reader), ("SYSTEM0", "USER1", "ANSWER1", "USER2")
    try:
        whole, bare = prompt_of(reader, sees, *asked), prompt_of(reader, sees, None, *asked[1:])
        parts, others = re.split("|".join(asked), whole), re.split("|".join(asked[1:]), bare)
        if len(parts) != 5 or len(others) != 4 or parts[2:] != others[1:]:
            return None
        head, after_system, after_user, after_answer, tail = parts
        start = others[0]

        def put_together(system: str | None, *turns: str) -> str:
            text = start if system is None else head + system + after_system
            for number, turn in enumerate(turns):
                last = number == len(turns) - 1
                text += turn + (tail if last else after_answer if number % 2 else after_user)
            return text

        for chat in ((None, "a"), ("s", "a"), ("s", *"abc"), (None, *"abcde"), ("s", *"abcdefg")):
            if put_together(*chat) != prompt_of(reader, sees, *chat):
                return None
    except TemplateError:
        return None
    bos = tokenizer.bos_token
    if bos and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]:
        # Ollama puts it there too.
        head, start = head.removeprefix(bos), start.removeprefix(bos)
    pieces = {"head": head, "after_system": after_system, "start": start,
              "after_user": after_user, "after_answer": after_answer, "tail": tail}  # fmt: skip
    if any('"""' in piece or "{{" in piece + "{" for piece in pieces.values()):
        return None
    return re.sub("⟨([a-z_]+)⟩", lambda found: pieces[found[1]], GO_TEMPLATE)


def prompt_of(reader: Any, sees: bool, system: str | None, *turns: str) -> str:
    """The prompt for an answer to these turns, the user's and the assistant's, with a system message or none."""
    roles = itertools.cycle(("user", "assistant"))
    said = list(zip(roles, turns, strict=False))
    if system is not None and takes_system(reader, sees):
        said.insert(0, ("system", system))
    elif system is not None:
        # At the head of the first user's message, as the training did for such a chat template.
        said[0] = ("user", f"{system}\n\n{turns[0]}")
    messages = [{"role": role, "content": content_of(text, sees)} for role, text in said]
    return str(reader.apply_chat_template(messages, tokenize=False, **SHOWN))


def takes_system(reader: Any, sees: bool) -> bool:
    """Whether the chat template shows a system message: some refuse it, some drop it from a finished chat."""
    from jinja2 import TemplateError

    asked: Any = [{"type": "image"}, *content_of("Hi", sees)] if sees else "Hi"
    contents = {"system": content_of("PROBE", sees), "user": asked, "assistant": content_of("ANSWER", sees)}
    chat = [{"role": role, "content": content} for role, content in contents.items()]
    try:
        return "PROBE" in reader.apply_chat_template(chat, tokenize=False)
    except TemplateError:
        return False


def content_of(text: str, sees: bool) -> Any:
    """A message's content that is only this text."""
    return [{"type": "text", "text": text}] if sees else text
