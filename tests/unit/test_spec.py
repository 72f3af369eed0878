"""What may be asked for, and how a wrong request is answered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launcher import spec
from launcher.errors import RequestError


def test_a_model_alone_is_a_complete_request() -> None:
    asked = spec.build({"model": "qwen3-8b"})
    assert asked.model == "qwen3-8b"
    assert asked.flavor == "auto"
    assert asked.max_steps is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_steps": -1}, "--max-steps -1"),
        ({"max_steps": 0}, "--max-steps 0"),
        ({"learning_rate": 5.0}, "--learning-rate 5.0"),
        ({"learning_rate": float("nan")}, "--learning-rate"),
        ({"lora_r": 100000}, "--lora-r 100000"),
        ({"lora_dropout": 1.0}, "--lora-dropout 1.0"),
        ({"timeout": "soon"}, "--timeout 'soon'"),
        ({"timeout": "0m"}, "--timeout '0m'"),
        ({"timeout": "2"}, "write 2h or 2m"),
        ({"timeout": "90"}, "write 90m or 90s"),
        ({"output_repo": "a/b/c"}, "NAMESPACE/NAME"),
        ({"output_repo": "me/../x"}, "NAMESPACE/NAME"),
        ({"trackio_space": "just-a-name"}, "--trackio-space"),
        ({"streaming": True}, "--max-steps"),
        ({"max_steps": 5, "num_train_epochs": 1.0}, "both say when to stop"),
        ({"batch_size": 2, "gradient_accumulation": 2, "effective_batch_size": 4}, "at most two"),
        ({"output_repo": "me/x", "push": False}, "contradict"),
        ({"env": {"HF_TOKEN": "x"}}, "--secrets HF_TOKEN"),
        ({"env": {"1A": "x"}}, "environment variable"),
        ({"secrets": ("NAME=value",)}, "name only"),
        ({"label": {"k": "v" * 101}}, "100 characters"),
        ({"label": {"k": "a/b"}}, "letters, digits"),
    ],
)
def test_a_wrong_value_is_named_with_its_option(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError) as caught:
        spec.build({"model": "qwen3-8b", **options})
    assert said in caught.value.message
    assert caught.value.exit_code == 2


def test_the_value_of_a_misplaced_secret_is_not_repeated() -> None:
    with pytest.raises(RequestError) as caught:
        spec.build({"model": "qwen3-8b", "env": {"MY_TOKEN": "s3cr3t-value"}})
    assert "s3cr3t-value" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize(("text", "expected"), [("90s", 90), ("90m", 5400), ("1.5h", 5400), ("1d", 86400)])
def test_durations_are_written_as_on_the_jobs_command_line(text: str, expected: int) -> None:
    assert spec.seconds(text) == expected


def test_the_command_line_wins_over_the_config(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text('model = "qwen3-4b"\nmax-steps = 10\nlora_r = 8\n[env]\nA = "1"\nB = "2"\n')
    asked = spec.build({"model": "qwen3-8b", "env": {"B": "3"}}, config)
    assert (asked.model, asked.max_steps, asked.lora_r) == ("qwen3-8b", 10, 8)
    assert asked.env == {"A": "1", "B": "3"}


@pytest.mark.parametrize(
    ("content", "said"),
    [("model = ", "not TOML"), ('model = "x"\nmax-stepz = 3\n', "no option --max-stepz"), ("lora_r = 8\n", "no model")],
)
def test_a_wrong_config_is_explained(tmp_path: Path, content: str, said: str) -> None:
    config = tmp_path / "run.toml"
    config.write_text(content)
    with pytest.raises(RequestError, match=said):
        spec.build({}, config)


def test_a_missing_config_is_explained(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="No such file"):
        spec.build({"model": "x"}, tmp_path / "absent.toml")


@pytest.mark.parametrize(
    ("name", "is_path"),
    [
        ("squad", False), ("me/rows", False), ("unsloth/Qwen3-8B", False), ("qwen3-8b", False), ("gpt2.v2", False),
        ("./squad", True), ("../squad", True), ("/squad", True), ("~/squad", True), ("squad/", True), ("a/b/c", True),
        ("rows.jsonl", True), ("me/rows.csv", True), ("my rows", True), (".", True),
    ],
)  # fmt: skip
def test_a_path_is_told_from_a_repo_by_its_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, is_path: bool
) -> None:
    """Whatever lies in the folder that one stands in: a folder of a repo's name changes nothing."""
    monkeypatch.chdir(tmp_path)
    assert (spec.path_of(name) is not None) is is_path
    if not name.startswith(("/", "~", "..")):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    assert (spec.path_of(name) is not None) is is_path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_config_file_is_read_as_it_is_written(tmp_path: Path, encoding: str) -> None:
    config = tmp_path / "run.toml"
    text = 'model = "qwen3-8b"\nsecrets = "WANDB_API_KEY"\ngguf = "q8_0"\nlearning-rate = 1\n[env]\nA = "b"\n'
    config.write_text(text, encoding=encoding)
    asked = spec.build({}, config)
    assert (asked.secrets, asked.gguf, asked.env) == (("WANDB_API_KEY",), ("q8_0",), {"A": "b"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('model = "qwen3-8b"\n\nmax-steps = -5\n', "run.toml, line 3: --max-steps -5"),
        ('model = "qwen3-8b"\n"lora_r" = "many"\n', "run.toml, line 2: --lora-r 'many'"),
        ('model = "qwen3-8b"\n[label]\nteam = "a/b"\n', "run.toml, line 2: --label"),
        ('model = "qwen3-8b"\nmax_stpes = 5\n', "run.toml, line 2: there is no option --max-stpes"),
        ('model = "qwen3-8b"\ntimeout = 0\n', "run.toml, line 2: --timeout"),
        ('model = "qwen3-8b"\nmax-steps = 5\nmax-steps = 6\n', "line 3"),
    ],
)
def test_what_is_wrong_in_a_config_file_is_said_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    config = tmp_path / "run.toml"
    config.write_text(text, encoding="utf-8-sig")
    with pytest.raises(RequestError) as caught:
        spec.build({}, config)
    assert said in caught.value.message and "run.toml" in caught.value.message


def test_what_the_command_line_says_is_not_the_files(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text('model = "qwen3-8b"\nmax-steps = 5\n')
    with pytest.raises(RequestError) as caught:
        spec.build({"max_steps": -1}, config)
    assert "run.toml" not in caught.value.message
