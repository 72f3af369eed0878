"""A tokenizer read from its files: what is trained on is what Unsloth trains on, for every family of the catalog."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from family_models import FAMILIES, _shrunk, text_rows, write_tokenizer
from parts.chat_text import Encoder
from parts.labels import marked
from parts.say import UserError

from launcher.errors import RequestError
from launcher.look.tokenizer import FILES, Tokenizer

# What the training stack made of the first rows, by family; a slow test of tests/unit/catalog holds it.
KEPT = json.loads(Path(__file__).with_name("families.json").read_text(encoding="utf-8"))
ARGS = SimpleNamespace(model="me/model", train_on="assistant", max_length=2048)


def tokenizer(
    family: str, folder: Path, template: str | None = None, renamed: dict[str, str] | None = None
) -> Tokenizer:
    """A small one of that family, with another template and other names for its special tokens where so asked."""
    tokens, names = _shrunk(FAMILIES[family].tokens()), renamed or {}
    special = {id: names.get(token, token) for id, token in tokens.special.items()}
    tokens = replace(tokens, special=special, eos=names.get(tokens.eos, tokens.eos), stops=())
    write_tokenizer(tokens, template or KEPT[family]["template"], folder)
    return Tokenizer({path.name: path.read_bytes() for path in folder.iterdir() if path.name in FILES}, family)


def dateless(text: str) -> str:
    """A row without the day that a chat template writes into it."""
    return re.sub(r"Today Date: \d+ \w+ \d+", "Today Date: -", text)


@pytest.mark.parametrize("family", [name for name, kept in KEPT.items() if kept["marked"]])
def test_what_is_trained_on_is_what_the_training_stack_trains_on(family: str, tmp_path: Path) -> None:
    found = tokenizer(family, tmp_path)
    encoder = Encoder(found, ["messages"], ARGS)
    made = [encoder(row | {"row_number": number}) for number, row in enumerate(text_rows()[1:4])]
    shown = [dateless(marked(found, row["input_ids"], row["labels"])) for row in made]
    assert shown == list(map(dateless, KEPT[family]["marked"]))
    assert found.decode([encoder.stop]) in KEPT[family]["marked"][0]


# Templates of other kinds, with what is trained on of two turns; Unsloth's mask is the same.
OTHERS = {
    # It closes a chat that asks for nothing with the end of the text.
    "phi-4-mini": (
        "phi-4", {"<|im_start|>": "<|user|>", "<|im_sep|>": "<|assistant|>", "<|im_end|>": "<|end|>"},
        "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ '<|endoftext|>' }}{% endif %}",
        "<|user|>Hi<|end|><|assistant|>⟦Yes<|end|>⟧<|user|>Hi<|end|><|assistant|>⟦No<|end|>⟧<|endoftext|>",
    ),
    # Words mark its turns.
    "alpaca": (
        "mistral", {},
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '### Ask:\\n' + m.content + '\\n\\n' }}"
        "{% else %}{{ '### Tell:\\n' + m.content + eos_token + '\\n\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '### Tell:\\n' }}{% endif %}",
        "<s>### Ask:\nHi\n\n### Tell:\n⟦Yes</s>⟧\n\n### Ask:\nHi\n\n### Tell:\n⟦No</s>⟧\n\n",
    ),
    # It asks for no thoughts, unless the row has some.
    "thoughts": (
        "qwen3", {},
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
        "{% if m.role == 'assistant' and '<think>' not in m.content %}{{ '<think></think>' }}{% endif %}"
        "{{ m.content + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think></think>' }}{% endif %}",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦<think></think>Yes<|im_end|>⟧\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦<think></think>No<|im_end|>⟧\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_answers_are_found_whatever_marks_them(kind: str, tmp_path: Path) -> None:
    family, renamed, template, expected = OTHERS[kind]
    found = tokenizer(family, tmp_path, template, renamed)
    chat = [
        {"role": role, "content": text}
        for told in ("Yes", "No")
        for role, text in (("user", "Hi"), ("assistant", told))
    ]
    made = Encoder(found, ["messages"], ARGS)({"messages": chat, "row_number": 0})
    assert marked(found, made["input_ids"], made["labels"]) == expected


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "no markers around answers"),
        ("{{ raise_exception('never') }}", "never"),
    ],
)
def test_a_template_that_marks_no_answers_is_refused(template: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=says):
        Encoder(tokenizer("qwen3", tmp_path, template), ["messages"], ARGS)


def test_a_template_reads_nothing_but_its_messages(tmp_path: Path) -> None:
    found = tokenizer("qwen3", tmp_path, "{{ messages.__class__.__mro__[-1].__subclasses__() }}")
    with pytest.raises(Exception, match="unsafe"):
        found.apply_chat_template([{"role": "user", "content": "Hi"}])


def test_an_answer_may_begin_with_what_its_marker_ends_with(tmp_path: Path) -> None:
    found = tokenizer("qwen3", tmp_path)
    rows: list[dict[str, Any]] = [{"prompt": "Hi", "completion": text, "row_number": 0} for text in ("\nYes", " Yes")]
    encoder = Encoder(found, ["prompt", "completion"], ARGS)
    for row in rows:
        made = encoder(row)
        assert marked(found, made["input_ids"], made["labels"]).endswith("Yes<|im_end|>⟧\n")


def test_files_that_are_no_tokenizer_are_said() -> None:
    for files in ({}, {"tokenizer.json": b"{}"}, {"tokenizer.json": b"\xff"}):
        with pytest.raises(RequestError, match="me/model") as error:
            Tokenizer(files, "me/model")
        assert "only in the run" in error.value.hint


def test_a_model_without_a_template_says_so(tmp_path: Path) -> None:
    found = tokenizer("qwen3", tmp_path)
    found.chat_template = None
    with pytest.raises(UserError, match="no chat template") as error:
        Encoder(found, ["messages"], ARGS)
    assert error.value.status == 2
