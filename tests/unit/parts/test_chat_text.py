"""What `sft_text.py` does before its heavy imports: it refuses fast, and it knows every shape of chat data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from parts.chat import find_shape
from parts.chat_text import TEXT_SHAPES, conversation
from parts.say import UserError, finite

from tests.unit.sample import JOB_SCRIPTS, options

SCRIPT = JOB_SCRIPTS / "sft_text.py"


def run(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-S", str(SCRIPT), *args],
        env=os.environ | {"PYTHONIOENCODING": "ascii"} | env, capture_output=True, text=True, timeout=10, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--streaming", "--num-train-epochs", "1"], "--max-steps"),
        (["--max-steps", "5", "--num-train-epochs", "1"], "give one of them"),
        (["--max-steps", "-5"], "--max-steps -5"),
        (["--learning-rate", "nan"], "--learning-rate nan"),
        (["--learning-rate", "-1"], "--learning-rate -1"),
        (["--batch_size", "0"], "--batch-size 0"),
        (["--eval-rows", "-1"], "--eval-rows -1"),
        (["--warmup-ratio", "1"], "--warmup-ratio 1"),
        (["--max-length", "3"], "--max-length 3"),
        (["--load-in", "8bit"], "8bit"),
        (["--output-repo", "a/b/c"], "NAMESPACE/NAME"),
        (["--dataset", "missing.jsonl"], "missing.jsonl"),
        (["--dataset", "./missing"], "./missing"),
        (["--dataset", str(Path(__file__))], ".parquet"),
        (["--model", "./missing"], "./missing"),
        (["--nonsense"], "--nonsense"),
        (["--max-steps", "many"], "many"),
        (["--seed", "9" * 5000], "--seed"),
        (["--timeout-s", "9" * 400], "--timeout-s"),
        (["--checkpoint-minutes", "1e308"], "--checkpoint-minutes 1e+308"),
        (["--run-name", "caf\udce9 x"], "--run-name caf"),
        (["--dataset", "⟦ missing ⟧.jsonl"], "missing"),
    ],
)
def test_bad_arguments_are_one_paragraph(args: list[str], says: str) -> None:
    done = run(*args)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert says in done.stderr


def test_help_shows_every_chosen_value_as_a_flag() -> None:
    shown = run("--help").stdout
    for name in vars(options()):
        assert f"--{name.replace('_', '-')}" in shown


def test_flags_may_be_spelled_as_in_python() -> None:
    args = options("--max_steps=7", "--lora_r", "4", "--dataset", "some_name/with_underscores")
    assert (args.max_steps, args.lora_r, args.dataset) == (7, 4, "some_name/with_underscores")


def test_a_given_stop_criterion_replaces_the_chosen_one() -> None:
    args = options("--num-train-epochs", "2")
    assert (args.max_steps, args.num_train_epochs) == (None, 2)
    args, chosen = options(), type(options())
    assert (args.max_steps, args.num_train_epochs) == (chosen.max_steps, chosen.num_train_epochs)


EXPECTED = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": EXPECTED},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, EXPECTED[1]]},
        {"messages": [*EXPECTED, {"role": "user", "content": "never answered"}]},
        {"messages": [{"role": "system", "content": ""}, *EXPECTED]},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        {"conversations": EXPECTED},
        {"prompt": "Hi", "completion": "Hello"},
        {"prompt": EXPECTED[:1], "completion": EXPECTED[1:]},
        {"instruction": "Hi", "input": "", "output": "Hello"},
        {"instruction": "Hi", "input": None, "output": "Hello"},
        {"instruction": "Hi", "response": "Hello"},
        {"question": "Hi", "answer": "Hello"},
    ],
)
def test_every_shape_becomes_the_same_messages(row: dict[str, Any]) -> None:
    assert conversation(row | {"row_number": 0}, find_shape(list(row), TEXT_SHAPES)) == EXPECTED


def test_alpaca_input_follows_the_instruction() -> None:
    row = {"instruction": "Add", "input": "1 2", "output": "3"}
    assert conversation(row | {"row_number": 0}, find_shape(list(row), TEXT_SHAPES))[0]["content"] == "Add\n\n1 2"


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        (None, "not a list"),
        ([], "not a list"),
        (["Hi"], "not a role"),
        ([{"role": "wizard", "content": "Hi"}, EXPECTED[1]], "'wizard'"),
        ([{"role": "user", "content": " "}, EXPECTED[1]], "user's message is empty"),
        ([EXPECTED[0], {"role": "assistant", "content": None}], "assistant's message is empty"),
        ([{"role": "user", "content": [{"type": "text", "text": ""}]}, EXPECTED[1]], "user's message is empty"),
        ([{"role": "user", "content": [{"type": "image"}]}, EXPECTED[1]], "more than text"),
        ([{"role": "user", "content": ["Hi"]}, EXPECTED[1]], "a part of the user's message is a text ('Hi')"),
        ([{"role": "user", "content": [{"type": "text", "text": 5}]}, EXPECTED[1]], "has no type with a text"),
        ([EXPECTED[0], {"role": "assistant", "content": 42}], "the assistant's message is a number (42), not a text"),
        ([EXPECTED[0], {"role": "assistant", "content": {"a": 1}}], "is an object ({'a': 1}), not a text"),
        (EXPECTED[:1], "no message of the assistant"),
    ],
)
def test_a_bad_row_is_named(messages: Any, says: str) -> None:
    with pytest.raises(UserError) as error:
        conversation({"messages": messages, "row_number": 41}, ("messages",))
    assert error.value.paragraph.startswith("row 41: ")
    assert says in error.value.paragraph
    # The next attempt would meet the same row.
    assert error.value.status == 2


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "Hi", "completion": 42}, "completion is a number (42), not a text"),
        ({"prompt": {"a": 1}, "completion": "Hello"}, "prompt is an object"),
        ({"prompt": None, "completion": "Hello"}, "no message of the assistant"),
        ({"question": "Hi", "answer": True}, "answer is a truth value (True)"),
        ({"prompt": ["Hi"], "completion": "Hello"}, "a message is not a role with a content but a text ('Hi')"),
    ],
)
def test_a_pair_is_two_texts_or_two_lists_of_messages(row: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as error:
        conversation(row | {"row_number": 3}, find_shape(list(row), TEXT_SHAPES))
    assert error.value.paragraph.startswith("row 3: ")
    assert says in error.value.paragraph


def test_no_usable_column_names_those_there_are() -> None:
    with pytest.raises(UserError, match="label, review"):
        find_shape(["review", "label"])
    with pytest.raises(UserError, match="preferences"):
        find_shape(["prompt", "chosen", "rejected"])


def test_result_is_json_without_nan() -> None:
    line = json.dumps(finite({"a": float("nan"), "b": [1.0, float("inf")], "c": {"d": -0.5}}), allow_nan=False)
    assert json.loads(line) == {"a": None, "b": [1.0, None], "c": {"d": -0.5}}
