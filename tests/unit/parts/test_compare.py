"""What makes a copy the trained model: its prompt, its logits, and what llama.cpp answers from its file."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from parts import compare
from parts.compare import DifferentError, Seen
from parts.llama_cpp import ANSWERER, SEEING_ANSWERER

SEEN = Seen(
    prompt="p", ids=[1, 2, 3, 4], likeliest=[5, 6, 7, 8], last=[0.0, 1.0], answer=[8, 9, 2], words="", stop=2, eos=2,
    template=None, led={},
)  # fmt: skip


def test_the_same_answer_is_told_with_how_far_the_logits_are() -> None:
    told = compare.compare(SEEN, replace(SEEN, last=[0.25, 1.0], likeliest=[5, 6, 7, 9]))
    assert "the same answer of 3 tokens" in told
    assert "the same at 3 of 4 places" in told
    assert "differ by 0.25 at most" in told


@pytest.mark.parametrize(("answer", "place"), [([8, 9, 3], 2), ([8, 9], 2), ([1], 0)])
def test_another_answer_is_told_by_its_first_other_token(answer: list[int], place: int) -> None:
    assert f"the same for {place} tokens, then differ" in compare.compare(SEEN, replace(SEEN, answer=answer))


def test_another_model_and_another_prompt_are_errors() -> None:
    with pytest.raises(DifferentError, match="does not answer as the trained model"):
        compare.compare(SEEN, replace(SEEN, likeliest=[5, 6, 0, 0], last=[1.0, 0.0]))
    # Other likeliest tokens of logits that are alike, as 4 bits make them, are not.
    compare.compare(SEEN, replace(SEEN, likeliest=[5, 6, 0, 0], last=[0.1, 0.9]))
    with pytest.raises(DifferentError, match="another prompt"):
        compare.compare(SEEN, replace(SEEN, ids=[1, 2, 3]))


SAID = "The capital of France is Paris."
MERGED = replace(SEEN, words=SAID, led={3: ["The", "capital", "of"], 6: ["The"]})
OTHER = "it does not answer as the merged model"


@pytest.mark.parametrize("sees", [False, True])
@pytest.mark.parametrize(
    ("kind", "does", "told", "problem"),
    [
        ("f16", f"echo '{SAID}'", "the same answer in llama.cpp", None),
        ("q4_k_m", f"echo '<think> {SAID} [end of text]'", "another answer", None),
        ("q8_0", "echo 'The capital is somewhere in France.'", "another answer: in llama.cpp it answers 'The", None),
        ("f16", "echo '@@ xi xi'", None, OTHER),
        ("q8_0", "true", None, OTHER),
        ("q4_k_m", "echo '@@ xi xi'", None, OTHER),
        # Of a model that knows little, 2 bits may leave this: the file is kept, and that is told.
        ("q2_k", "echo '@@ xi xi'", "another answer: in llama.cpp it answers '@@ xi xi'", None),
        ("f16", "kill -9 $$", "not run, for want of memory", None),
        ("f16", "echo 'ggml: failed to allocate buffer' >&2; exit 1", "not run, for want of memory", None),
        ("f16", "exec sleep 9", "not run, for want of time", None),
        ("f16", "echo 'no such architecture' >&2; exit 3", None, "ended with status 3: no such architecture"),
    ],
)
def test_what_llama_cpp_answers_decides_on_a_gguf_file(
    sees: bool, kind: str, does: str, told: str | None, problem: str | None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(compare, "COMPLETE_S", 1)
    monkeypatch.setattr(compare, "picture", lambda: SimpleNamespace(save=lambda *_: None))
    fields = {"tokenizer.ggml.eos_token_id": SimpleNamespace(contents=lambda: 2)}
    monkeypatch.setitem(sys.modules, "gguf", SimpleNamespace(GGUFReader=lambda _: SimpleNamespace(fields=fields)))
    monkeypatch.setattr(sys, "path", list(sys.path))
    program = tmp_path / (SEEING_ANSWERER if sees else ANSWERER)
    program.write_text(f"#!/bin/sh\ncase $1 in --help) echo usage; exit;; esac\n{does}\n", encoding="utf-8")
    program.chmod(0o755)
    (tmp_path / "m.F16-mmproj.gguf").touch()
    path = tmp_path / f"m.{kind.upper()}.gguf"
    if problem:
        with pytest.raises(DifferentError if problem == OTHER else RuntimeError, match=problem):
            compare.check_gguf(path, kind, MERGED, sees, tmp_path)
    else:
        assert str(told) in compare.check_gguf(path, kind, MERGED, sees, tmp_path)


@pytest.mark.parametrize(
    ("changes", "says"), [({"eos": 7, "stop": 8}, "end token"), ({"template": "{{ x }}"}, "chat template")]
)
def test_a_file_with_another_end_or_template_is_refused(
    changes: dict[str, Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"tokenizer.ggml.eos_token_id": SimpleNamespace(contents=lambda: 2)}
    monkeypatch.setitem(sys.modules, "gguf", SimpleNamespace(GGUFReader=lambda _: SimpleNamespace(fields=fields)))
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(DifferentError, match=says):
        compare.check_gguf(tmp_path / "m.F16.gguf", "f16", replace(MERGED, **changes), False, tmp_path)


# Takes its prompt as llama.cpp does (common/arg.cpp), and answers to one prompt only.
EXACT = """\
#!{python}
import sys
said = dict(zip(sys.argv, sys.argv[1:]))["-p"]
print("yes" if said == {prompt!r} and "--no-escape" in sys.argv else "no")
"""


def test_llama_cpp_is_given_the_prompt_to_its_last_character(tmp_path: Path) -> None:
    prompt = "<|im_start|>user\nWho\\n?<|im_end|>\n<|im_start|>assistant\n"
    program = tmp_path / ANSWERER
    program.write_text(EXACT.format(python=sys.executable, prompt=prompt), encoding="utf-8")
    program.chmod(0o755)
    assert compare.answer_text(program, tmp_path / "m.gguf", prompt, {}) == "yes"


@pytest.mark.parametrize("sees", [False, True])
def test_an_answer_that_the_model_is_not_sure_of_binds_no_file(sees: bool) -> None:
    """A random or barely trained one may say anything else after the smallest rounding."""
    for said in ("@@ xi xi", ""):
        told = compare.compare_words("zu ab ke", said, [], "so", sees)
        assert f"answers {said!r}, and the merged model 'zu ab ke'" in told


def test_the_words_that_lead_are_whole_ones() -> None:
    tokens = {1: "<think>", 2: " The", 3: " cap", 4: "ital", 5: " is"}

    def said(ids: list[int]) -> str:
        return "".join(tokens[token] for token in ids)

    def leading(*leads: float) -> list[str]:
        return compare.leading_words([1, 2, 3, 4, 5], [(lead, 0.0) for lead in leads], 3, said)

    assert leading(9, 9, 9, 9, 9) == ["The", "capital", "is"]
    assert leading(9, 9, 9, 1, 9) == ["The"]
    assert leading(9, 9, 9, 9, 1) == ["The"]
    assert leading(1, 9, 9, 9, 9) == []
