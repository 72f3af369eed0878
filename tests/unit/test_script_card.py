"""The model card: what anybody named stays a value; and Ollama's template makes the chat template's prompts."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tests.emulator.cards import problems
from tests.unit.sample import load_script

RESULT: dict[str, Any] = {
    "stopped": None, "attempt": 1, "steps": 500, "rows": 2000, "eval_rows": None, "batch_size": 4,
    "gradient_accumulation": 1, "tokens_seen": 1234567, "tokens_trained": 456, "train_loss": 1.25,
    "eval_loss_before": None, "eval_loss": None, "tokens_per_second": 1234.5, "train_s": 980.0, "peak_gib": 7.12,
    "predicted_peak_gib": None, "device": "NVIDIA A10G", "output_repo": "me/model", "versions": {"torch": "2.9"},
}  # fmt: skip
GGUF = {"kind": "gguf", "name": "q4_k_m", "path": "m.Q4_K_M.gguf", "repo": "me/model", "gib": 5.0, "checked": None}
MERGED = {"kind": "merged", "name": "16bit", "path": "merged", "repo": "me/model", "gib": 15.2, "checked": "it answers"}


@pytest.fixture(scope="module", params=["sft_text.py", "sft_vlm.py"])
def script(request: pytest.FixtureRequest) -> ModuleType:
    return load_script(request.param)


def card(script: ModuleType, folder: Path, *argv: str, exports: tuple[dict[str, Any], ...] = (), **changes: Any) -> str:
    (folder / "chat_template.jinja").write_text("", encoding="utf-8")
    text: str = script.make_card(folder, script.parse_args(list(argv)), RESULT | changes, exports, True)
    return text


def test_what_is_unknown_is_left_out(script: ModuleType, tmp_path: Path) -> None:
    text = card(script, tmp_path)
    assert problems(text) == ([], [])
    for missing in ("None", "Evaluation loss", "predicted", "Cost", "Copies", "llama.cpp", " at `"):
        assert missing not in text
    assert "| GPU memory | 7.12 GiB at most |" in text


def test_with_few_seconds_left_there_is_a_card_without_a_picture(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("", encoding="utf-8")
    (tmp_path / "loss.png").write_bytes(b"of an earlier run")
    script.write_card(tmp_path, script.parse_args([]), RESULT, [], [], left_s=10)
    assert not (tmp_path / "loss.png").exists()
    assert "loss.png" not in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_every_snippet_is_python(script: ModuleType, tmp_path: Path) -> None:
    text = card(script, tmp_path, "--model", "me/bäse", exports=(MERGED, GGUF))
    found = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(found) == 3
    for snippet in found:
        ast.parse(snippet)
    assert "llama-cli -hf me/model:Q4_K_M" in text
    assert "ollama run hf.co/me/model:Q4_K_M" in text


def test_llama_cpp_is_told_the_file_where_the_type_finds_another(script: ModuleType, tmp_path: Path) -> None:
    pair = (GGUF | {"name": "f16", "path": "m.F16.gguf"}, GGUF | {"name": "bf16", "path": "m.BF16.gguf"}, GGUF)
    text = card(script, tmp_path, exports=pair)
    # It looks for the type anywhere in a name, and BF16 comes first.
    assert "llama-cli -hf me/model -hff m.F16.gguf " in text
    assert "llama-cli -hf me/model:BF16 " in text
    assert "llama-cli -hf me/model:Q4_K_M " in text
    assert "ollama run hf.co/me/model:m.F16.gguf\n" in text
    assert "llama-cli -hf me/model:F16 " in card(script, tmp_path, exports=pair[:1])


def test_what_sees_is_shown_a_picture_in_llama_cpp(tmp_path: Path) -> None:
    script = load_script("sft_vlm.py")
    shown = '--image picture.jpg -p "What is shown here?"\n'
    assert f"llama-cli -hf me/model:Q4_K_M {shown}" in card(script, tmp_path, exports=(GGUF,))
    text = card(script, tmp_path, exports=(GGUF | {"repo": None},))
    assert f"llama-cli -m m.Q4_K_M.gguf --mmproj m.F16-mmproj.gguf {shown}" in text


def test_another_model_has_neither_licence_nor_settings_of_the_chosen_one(script: ModuleType, tmp_path: Path) -> None:
    text = card(script, tmp_path, "--model", "somebody/else")
    assert "license" not in text
    assert "Sampling" not in text
    assert "base_model: somebody/else" in text


def test_a_folder_is_no_model_of_the_hub(script: ModuleType, tmp_path: Path) -> None:
    text = card(script, tmp_path, "--model", str(tmp_path), "--dataset", str(tmp_path / "rows.jsonl"))
    assert "base_model:" not in text
    assert "datasets:" not in text
    assert problems(text) == ([], [])


def test_a_name_breaks_out_of_nothing(script: ModuleType, tmp_path: Path) -> None:
    evil = "x | `y`\n---\nlicense: mit\n```\n# h\n{{ title }} <b>"
    text = card(
        script, tmp_path, "--dataset-split", evil, "--dataset", f"./{evil}", exports=(MERGED | {"error": evil},)
    )
    assert problems(text) == ([], [])
    assert text.count("---\n") == 2 or text.count("\n---\n") == 1
    assert "\n# h" not in text
    assert "\nlicense: mit" not in text
    assert text.count("```") % 2 == 0
    assert [line for line in text.splitlines() if line.startswith("| Data")] == [
        "| Data | `x ¦ ˋyˋ --- license: mit ˋˋˋ # h {{ title }} <b>`, 2,000 rows |"
    ]


def test_a_card_that_fails_costs_nothing_and_leaves_no_foreign_one(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "README.md").write_text("base_model: /a/path", encoding="utf-8")
    script.write_card(tmp_path, script.parse_args([]), {}, [], [])
    assert not (tmp_path / "README.md").exists()
    assert "README.md could not be written" in capsys.readouterr().out


# ---- Ollama ----------------------------------------------------------------------------------------------------------

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
        from types import SimpleNamespace

        return SimpleNamespace(input_ids=[1])

    def decode(self, ids: list[int]) -> str:
        return {1: "<bos>", 2: "<|im_end|>"}[ids[0]]

    def apply_chat_template(self, messages: Any, *, tokenize: bool, **shown: Any) -> str:
        from jinja2 import TemplateError

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
    script = load_script("sft_text.py")
    tokenizer = Tokenizer(jinja)
    template = script.go_template(tokenizer, tokenizer)
    assert template is not None
    for chat in ((None, "Hi"), ("Be brief.", "Hi"), ("Be brief.", "a", "b", "c"), (None, "a", "b", "c", "d", "e")):
        # The token at the beginning is put there by Ollama itself.
        assert run_go(template, *chat) == script.prompt(tokenizer, *chat).removeprefix("<bos>")


@pytest.mark.parametrize(
    "jinja", [COUNTING, CHATML.replace("Be kind.", "{{ '{{ .System }}' }}"), "{{ messages | length }}"]
)
def test_a_template_that_has_no_equal_is_left_out(jinja: str, tmp_path: Path) -> None:
    script = load_script("sft_text.py")
    tokenizer = Tokenizer(jinja)
    assert script.go_template(tokenizer, tokenizer) is None
    (tmp_path / "template").write_text("an old one", encoding="utf-8")
    script.write_modelfile(tmp_path, script.parse_args([]), tokenizer, "m.gguf")
    assert "TEMPLATE" not in (tmp_path / "Modelfile").read_text(encoding="utf-8")
    assert not (tmp_path / "template").exists()


def test_the_modelfile_holds_settings_and_stops(tmp_path: Path) -> None:
    script = load_script("sft_vlm.py")
    # Of another model, or as an earlier export called it.
    for name in ("m.F16-mmproj.gguf", "old.F16-mmproj.gguf"):
        (tmp_path / name).touch()
    tokenizer = Tokenizer("{% for m in messages %}{{ m.content[0].text }}{% endfor %}")
    script.write_modelfile(tmp_path, script.parse_args([]), tokenizer, "m.Q8_0.gguf")
    lines = (tmp_path / "Modelfile").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("FROM")] == ["FROM ./m.Q8_0.gguf", "FROM ./m.F16-mmproj.gguf"]
    assert {"PARAMETER temperature 0.7", "PARAMETER top_k 20", "PARAMETER repeat_penalty 1.0"} <= set(lines)
    assert {"PARAMETER presence_penalty 1.5", 'PARAMETER stop "<|im_end|>"'} <= set(lines)
    params = json.loads((tmp_path / "params").read_text(encoding="utf-8"))
    assert (params["top_k"], params["stop"]) == (20, ["<|im_end|>"])


def test_a_licence_of_its_makers_own_has_its_name_and_its_place(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"LICENCE": "other", "LICENCE_NAME": "lfm1.0", "LICENCE_LINK": "https://example.org/LICENSE"}
    for name, value in told.items():
        monkeypatch.setattr(script, name, value)
    text = card(script, tmp_path)
    assert problems(text) == ([], [])
    assert "license: other\nlicense_name: lfm1.0\nlicense_link: https://example.org/LICENSE\n" in text
    assert "The base model's licence holds for it too: `lfm1.0`." in text
    assert "license" not in card(script, tmp_path, "--model", "somebody/else")
