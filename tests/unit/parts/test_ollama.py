"""What Ollama is told: a Go template that makes the same prompts, or none; the settings and the ends of an answer."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from parts import ollama

CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
THINKING = CHATML.replace("<|im_start|>assistant\n{% endif", "<|im_start|>assistant\n<think>\n{% endif")
# What stands around a message depends on how many there are.
COUNTING = "{% for m in messages %}[{{ loop.index }}/{{ messages | length }}]{{ m.content }}{% endfor %}"


class Tokenizer:
    """As much of one as a template needs."""

    bos_token, bos_token_id, eos_token, eos_token_id = "<bos>", 1, "<|im_end|>", 2

    def __init__(self, template: str) -> None:
        self.chat_template = template
        self.added_tokens_decoder: dict[int, Any] = {}

    def __call__(self, text: str, **_: Any) -> Any:
        return SimpleNamespace(input_ids=[1])

    def decode(self, ids: list[int]) -> str:
        return {1: "<bos>", 2: "<|im_end|>"}[ids[0]]

    def apply_chat_template(self, messages: Any, *, tokenize: bool, **shown: Any) -> str:
        def refuse(text: str) -> None:
            raise TemplateError(text)

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        template = environment.from_string(self.chat_template)
        return template.render(messages=messages, bos_token="<bos>", raise_exception=refuse, **shown)


def run_go(template: str, system: str | None, *turns: str) -> str:
    """What Ollama makes of a template of this form; Go's own engine has agreed on 65 of them."""
    token = re.compile(r"\{\{ (.*?) \}\}", re.DOTALL)
    parts = token.split(template)
    texts, actions = parts[0::2], parts[1::2]
    messages = [("system", system or "")] * (system is not None)
    messages += [("assistant" if number % 2 else "user", turn) for number, turn in enumerate(turns)]
    start = actions.index("range $i, $m := .Messages")

    def execute(begin: int, end: int, message: tuple[str, str] | None, last: bool) -> str:
        said, shown = texts[begin] if begin == 0 else "", [True]
        chosen = [True]
        for number in range(begin, end):
            action = actions[number]
            if action.startswith(("if ", "else")):
                holds = {
                    "if .System": bool(system), "if $last": last, "if not $last": not last,
                    'if eq $m.Role "user"': bool(message and message[0] == "user"),
                    'else if eq $m.Role "assistant"': bool(message and message[0] == "assistant"), "else": True,
                }[action]  # fmt: skip
                if action.startswith("if "):
                    chosen.append(holds)
                    shown.append(holds)
                else:
                    shown[-1] = holds and not chosen[-1]
                    chosen[-1] = chosen[-1] or holds
            elif action == "end":
                shown.pop()
                chosen.pop()
            elif all(shown) and action in (".System", "$m.Content"):
                said += (system or "") if action == ".System" else (message or ("", ""))[1]
            if all(shown):
                said += texts[number + 1]
        return said

    text = execute(0, start, None, False)
    for number, message in enumerate(messages):
        text += execute(start + 1, len(actions) - 1, message, number == len(messages) - 1)
    return text


@pytest.mark.parametrize("jinja", [CHATML, GEMMA, THINKING])
def test_ollamas_template_makes_the_same_prompts(jinja: str) -> None:
    tokenizer = Tokenizer(jinja)
    template = ollama.go_template(tokenizer, sees=False)
    assert template is not None
    for chat in ((None, "Hi"), ("Be brief.", "Hi"), ("Be brief.", "a", "b", "c"), (None, "a", "b", "c", "d", "e")):
        # The token at the beginning is put there by Ollama itself.
        assert run_go(template, *chat) == ollama.prompt_of(tokenizer, False, *chat).removeprefix("<bos>")


@pytest.mark.parametrize(
    "jinja", [COUNTING, CHATML.replace("Be kind.", "{{ '{{ .System }}' }}"), "{{ messages | length }}"]
)
def test_a_template_that_has_no_equal_is_left_out(jinja: str, tmp_path: Path) -> None:
    form = ollama.chat_form(Tokenizer(jinja), sees=False)
    assert form.template is None
    (tmp_path / "template").write_text("an old one", encoding="utf-8")
    ollama.write_modelfile(tmp_path, ["m.gguf"], {}, form)
    assert "TEMPLATE" not in (tmp_path / "Modelfile").read_text(encoding="utf-8")
    assert not (tmp_path / "template").exists()


def test_the_modelfile_holds_settings_and_stops(tmp_path: Path) -> None:
    form = ollama.chat_form(Tokenizer("{% for m in messages %}{{ m.content[0].text }}{% endfor %}"), sees=True)
    settings = {"temperature": 0.7, "top_k": 20, "repetition_penalty": 1.0, "presence_penalty": 1.5}
    ollama.write_modelfile(tmp_path, ["m.Q8_0.gguf", "m.F16-mmproj.gguf"], settings, form)
    lines = (tmp_path / "Modelfile").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("FROM")] == ["FROM ./m.Q8_0.gguf", "FROM ./m.F16-mmproj.gguf"]
    assert {"PARAMETER temperature 0.7", "PARAMETER top_k 20", "PARAMETER repeat_penalty 1.0"} <= set(lines)
    assert {"PARAMETER presence_penalty 1.5", 'PARAMETER stop "<|im_end|>"'} <= set(lines)
    params = json.loads((tmp_path / "params").read_text(encoding="utf-8"))
    assert (params["top_k"], params["stop"]) == (20, ["<|im_end|>"])


def test_without_a_chat_template_an_answer_ends_with_the_tokenizers_own_end() -> None:
    tokenizer = Tokenizer("")
    assert ollama.end_of_answer(tokenizer, sees=False) == tokenizer.eos_token_id
    assert ollama.chat_form(tokenizer, sees=False) == ollama.ChatForm(False, ("<|im_end|>",), None)
