"""The model card: what anybody named stays a value."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from parts import card as part

from tests.emulator.cards import problems
from tests.unit.sample import options

RESULT: dict[str, Any] = {
    "stopped": None, "attempt": 1, "steps": 500, "rows": 2000, "eval_rows": None, "batch_size": 4,
    "gradient_accumulation": 1, "tokens_seen": 1234567, "tokens_trained": 456, "train_loss": 1.25,
    "eval_loss_before": None, "eval_loss": None, "tokens_per_second": 1234.5, "train_s": 980.0, "peak_gib": 7.12,
    "predicted_peak_gib": None, "device": "NVIDIA A10G", "output_repo": "me/model", "versions": {"torch": "2.9"},
}  # fmt: skip
PLANNED: dict[str, Any] = {
    "generation": {"temperature": 0.7}, "generation_source": "https://example.org/card",
    "licence": {"license": "apache-2.0"},
}  # fmt: skip


@pytest.fixture(params=["sft_text.py", "sft_vlm.py"])
def script(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def card(script: str, folder: Path, *argv: str, planned: dict[str, Any] = PLANNED, **changes: Any) -> str:
    (folder / "chat_template.jinja").write_text("", encoding="utf-8")
    return part.make_card(folder, options(*argv, script=script), planned, RESULT | changes)


def test_what_is_unknown_is_left_out(script: str, tmp_path: Path) -> None:
    text = card(script, tmp_path)
    assert problems(text) == ([], [])
    for missing in ("None", "Evaluation loss", "predicted", "Cost", "Copies", "llama.cpp", " at `"):
        assert missing not in text
    assert "| GPU memory | 7.12 GiB at most |" in text


def test_with_few_seconds_left_there_is_a_card_without_a_picture(script: str, tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("", encoding="utf-8")
    (tmp_path / "loss.png").write_bytes(b"of an earlier run")
    part.write_card(tmp_path, options(script=script), PLANNED, RESULT, [], left_s=10)
    assert not (tmp_path / "loss.png").exists()
    assert "loss.png" not in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_the_snippet_is_python(script: str, tmp_path: Path) -> None:
    text = card(script, tmp_path, "--model", "me/bäse")
    [snippet] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    ast.parse(snippet)


def test_another_model_has_neither_licence_nor_settings_of_the_chosen_one(script: str, tmp_path: Path) -> None:
    text = card(script, tmp_path, "--model", "somebody/else")
    assert "license" not in text
    assert "Sampling" not in text
    assert "base_model: somebody/else" in text


def test_a_folder_is_no_model_of_the_hub(script: str, tmp_path: Path) -> None:
    text = card(script, tmp_path, "--model", str(tmp_path), "--dataset", str(tmp_path / "rows.jsonl"))
    assert "base_model:" not in text
    assert "datasets:" not in text
    assert problems(text) == ([], [])


def test_a_name_breaks_out_of_nothing(script: str, tmp_path: Path) -> None:
    evil = "x | `y`\n---\nlicense: mit\n```\n# h\n{{ title }} <b>"
    text = card(script, tmp_path, "--dataset-split", evil, "--dataset", f"./{evil}")
    assert problems(text) == ([], [])
    assert text.count("---\n") == 2 or text.count("\n---\n") == 1
    assert "\n# h" not in text
    assert "\nlicense: mit" not in text
    assert text.count("```") % 2 == 0
    assert [line for line in text.splitlines() if line.startswith("| Data")] == [
        "| Data | `x ¦ ˋyˋ --- license: mit ˋˋˋ # h {{ title }} <b>`, 2,000 rows |"
    ]


def test_a_card_that_fails_costs_nothing_and_leaves_no_foreign_one(
    script: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "README.md").write_text("base_model: /a/path", encoding="utf-8")
    part.write_card(tmp_path, options(script=script), PLANNED, {}, [], left_s=10)
    assert not (tmp_path / "README.md").exists()
    assert "README.md could not be written" in capsys.readouterr().out


def test_a_licence_of_its_makers_own_has_its_name_and_its_place(script: str, tmp_path: Path) -> None:
    told = {"license": "other", "license_name": "lfm1.0", "license_link": "https://example.org/LICENSE"}
    text = card(script, tmp_path, planned=PLANNED | {"licence": told})
    assert problems(text) == ([], [])
    assert "license: other\nlicense_name: lfm1.0\nlicense_link: https://example.org/LICENSE\n" in text
    assert "The base model's licence holds for it too: `lfm1.0`." in text
    assert "license" not in card(script, tmp_path, "--model", "somebody/else")
