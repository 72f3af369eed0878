"""What `sft_vlm.py` does before its heavy imports: it refuses fast, and it puts every picture in its place."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from parts.chat import end_of_turn, find_shape
from parts.chat_vision import attached, conversation, images_of
from parts.say import UserError

from tests.unit.sample import JOB_SCRIPTS

SCRIPT = JOB_SCRIPTS / "sft_vlm.py"
TEXT = {"type": "text", "text": "What is this?"}
ANSWER = {"role": "assistant", "content": [{"type": "text", "text": "A seven."}]}


def placed(row: dict[str, Any]) -> Any:
    row = row | {"row_number": 41}
    return conversation(row, find_shape(list(row)), attached(row))


@pytest.mark.parametrize(
    "row",
    [
        {"images": ["P"], "messages": [{"role": "user", "content": [{"type": "image"}, TEXT]}, ANSWER]},
        {"images": ["P"], "messages": [{"role": "user", "content": "<image>\nWhat is this?"}, ANSWER]},
        {"images": ["P"], "messages": [{"role": "user", "content": "What is this?"}, ANSWER]},
        {"image": "P", "messages": [{"role": "user", "content": "What is this?"}, ANSWER]},
        {"messages": [{"role": "user", "content": [{"type": "image", "image": "P"}, TEXT]}, ANSWER]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "P"}}, TEXT]}, ANSWER]},
        {"images": ["P"], "conversations": [{"from": "human", "value": "<image>What is this?"}, ANSWER]},
        {"images": ["P"], "prompt": [{"role": "user", "content": "What is this?"}], "completion": [ANSWER]},
        {"image": "P", "question": "What is this?", "answer": "A seven."},
        # Tables fill the fields that a part does not have.
        {
            "images": ["P"],
            "messages": [
                {"role": "user", "content": [{"type": "image", "text": None}, TEXT | {"image": None}]},
                ANSWER,
            ],
        },
    ],
)
def test_every_shape_becomes_the_same_messages(row: dict[str, Any]) -> None:
    assert placed(row) == [{"role": "user", "content": [{"type": "image", "image": "P"}, TEXT]}, ANSWER]


def test_pictures_stay_in_order_over_turns() -> None:
    row = {
        "images": ["A", "B", "C"],
        "messages": [
            {"role": "user", "content": "<image> and <image>?"},
            {"role": "assistant", "content": "Two."},
            {"role": "user", "content": [{"type": "text", "text": "And"}, {"type": "image"}]},
            {"role": "assistant", "content": "Three."},
        ],
    }
    assert [part["image"] for part in images_of(placed(row))] == ["A", "B", "C"]


def test_a_row_without_pictures_is_only_text() -> None:
    row = {"images": [], "messages": [{"role": "user", "content": "Hi"}, ANSWER]}
    assert images_of(placed(row)) == []


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            {"images": ["A", "B"], "messages": [{"role": "user", "content": "<image> hm"}, ANSWER]},
            "2 images for 1 place",
        ),
        (
            {"images": [], "messages": [{"role": "user", "content": "<image> hm"}, ANSWER]},
            "0 images for 1 placeholders",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}, ANSWER]}, "part of type 'video'"),
        (
            {"messages": [{"role": "user", "content": "hm"}, {"role": "assistant", "content": [{"type": "image"}]}]},
            "a picture stands in the assistant's message",
        ),
        ({"images": ["A"], "messages": [{"role": "wizard", "content": "hm"}, ANSWER]}, "unknown role 'wizard'"),
        ({"images": ["A"], "messages": [{"role": "user", "content": "hm"}]}, "no message of the assistant"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}]}, ANSWER]},
            "user's message is empty",
        ),
    ],
)
def test_a_bad_row_is_named(row: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as error:
        placed(row)
    assert error.value.paragraph.startswith("row 41: ")
    assert says in error.value.paragraph


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--image-size", "10"], "--image-size 10"),
        (["--streaming", "--num-train-epochs", "1"], "--max-steps"),
        (["--dataset", "missing.parquet"], "missing.parquet"),
        (["--packing"], "--packing"),
        (["--lora-targets", "q_proj"], "--lora-targets"),
    ],
)
def test_bad_arguments_are_one_paragraph(args: list[str], says: str) -> None:
    done = subprocess.run(
        [sys.executable, "-S", SCRIPT, *args], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert says in done.stderr


def test_a_tokenizer_without_an_end_is_an_error_with_what_to_do() -> None:
    def tokenize(text: str, **_: Any) -> Any:
        return SimpleNamespace(input_ids=[5, 6])

    processor = SimpleNamespace(apply_chat_template=lambda probe, tokenize: "Hi ANSWER\n")
    tokenizer: Any = tokenize
    tokenizer.added_tokens_decoder, tokenizer.eos_token_id = {}, None
    with pytest.raises(UserError, match="no token that ends a text") as error:
        end_of_turn(processor, tokenizer, str)
    assert "eos_token" in error.value.paragraph
    tokenizer.eos_token_id = 2
    assert end_of_turn(processor, tokenizer, str) == 2
