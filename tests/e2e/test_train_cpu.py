"""The real script trains on this CPU, with the real Unsloth: the real small model as users do it, and a tiny one."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from tests.faults.trainings import Trainings

SCRIPT = Path(__file__).parents[2] / "job_scripts" / "sft_text.py"
SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
LABELS = re.compile(r"^labels: (\d+) tokens trained on, (\d+) masked, over the first (\d+) rows", re.MULTILINE)


def chats(count: int) -> list[list[dict[str, str]]]:
    """Short conversations of one or two answers, the longer ones with a system message."""
    made = []
    for number in range(count):
        colour = "red" if number % 2 else "blue"
        chat = [
            {"role": "user", "content": f"What colour is house {number}?"},
            {"role": "assistant", "content": f"House {number} is {colour}."},
        ]
        if number % 3 == 0:
            chat = [
                {"role": "system", "content": "Answer in short."},
                *chat,
                {"role": "user", "content": "Are you sure?"},
                {"role": "assistant", "content": "Yes, house number " + str(number) + " is."},
            ]
        made.append(chat)
    return made


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def count_labels(model: Path, conversations: list[list[dict[str, str]]]) -> tuple[int, int]:
    """Trained and masked tokens, counted without any of the training code: ChatML by hand, tokens by their offsets."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    trained = masked = 0
    for chat in conversations:
        text, spans = "" if chat[0]["role"] == "system" else SYSTEM, []
        for message in chat:
            text += f"<|im_start|>{message['role']}\n"
            start = len(text)
            text += f"{message['content']}<|im_end|>"
            if message["role"] == "assistant":
                spans.append((start, len(text)))
            text += "\n"
        for start, end in tokenizer.encode(text, add_special_tokens=False).offsets:
            inside = any(first <= start and end <= last for first, last in spans)
            trained, masked = trained + inside, masked + (not inside)
    return trained, masked


def shown_labels(log: str) -> tuple[int, int, int]:
    found = LABELS.search(log)
    assert found is not None, log
    trained, masked, rows = map(int, found.groups())
    return trained, masked, rows


def test_trains_on_the_answers_and_learns(trainings: Trainings, smollm2: Path, tmp_path: Path) -> None:
    conversations = chats(8)
    write(tmp_path / "data" / "train.jsonl", [{"messages": chat} for chat in conversations])
    write(tmp_path / "data" / "test.jsonl", [{"messages": chat} for chat in chats(10)[8:]])
    done = trainings.run_script(
        SCRIPT, tmp_path, "--model", smollm2, "--dataset", tmp_path / "data", "--eval-split", "test", "--eval-rows", 2,
        "--sample_rows", 1, "--max-steps", 4, "--batch-size", 2, "--gradient-accumulation", 1, "--max-length", 128,
        "--eval-steps", 2, "--learning-rate", "2e-3", "--run-name", "houses", "--device", "cpu",
    )  # fmt: skip
    found = done.result
    trained, masked = count_labels(smollm2, conversations)
    assert shown_labels(done.log) == (trained, masked, 8)
    assert found["status"] == "done"
    assert found["steps"] == 4
    # A whole pass: not a token more or less.
    assert found["tokens_trained"] == trained
    assert found["tokens_seen"] == trained + masked
    assert found["eval_loss"] < found["eval_loss_before"] / 2
    assert re.search(r"^⟦[^⟧]*<\|im_end\|>⟧$", done.log, re.MULTILINE)
    assert "eval step 0/4 | loss " in done.log
    assert "eval step 2/4 | loss " in done.log
    assert re.search(r"^step 4/4 \| loss \d\.\d{4} \| lr \d\.\d\de-\d\d \| \d+ tok/s \| eta 0s$", done.log, re.M)
    assert set(found["samples"][0]) == {"prompt", "expected", "before", "after"}
    assert Path(found["output_dir"]) == tmp_path / "outputs" / "houses"
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"} <= {
        path.name for path in Path(found["output_dir"]).iterdir()
    }
    assert found["peak_gib"] is None
    assert found["device"] == "cpu"


def test_streams_prompts_and_completions(trainings: Trainings, tiny: Path, tmp_path: Path) -> None:
    pairs = [chat[:2] for chat in chats(13) if chat[0]["role"] == "user"]
    rows = [{"prompt": asked["content"], "completion": answered["content"]} for asked, answered in pairs]
    data = write(tmp_path / "rows.jsonl", rows)
    done = trainings.run_script(
        SCRIPT, tmp_path, "--model", tiny, "--dataset", data, "--streaming", "--eval-rows", 0,
        "--packing", "--max-steps", 2, "--batch-size", 2, "--gradient-accumulation", 2, "--max-length", 128,
        "--trackio-project", "", "--device", "cpu", "--output-dir", tmp_path / "here",
    )  # fmt: skip
    found = done.result
    trained, masked = count_labels(tiny, pairs)
    assert shown_labels(done.log) == (trained, masked, len(pairs))
    assert found["steps"] == 2
    assert found["eval_loss"] is None
    assert "on the CPU: no 4-bit weights, no packing, no 8-bit optimizer\n" in done.log
    assert (tmp_path / "here" / "adapter_model.safetensors").is_file()


def test_refuses_when_every_answer_is_cut_off(trainings: Trainings, tiny: Path, tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", [{"messages": chat} for chat in chats(8)])
    done = trainings.run_script(
        SCRIPT, tmp_path, "--model", tiny, "--dataset", rows, "--eval-rows", 0, "--max-length", 16, "--device", "cpu"
    )
    assert done.code == 2
    assert "cut: 8 of 8 rows" in done.log
    last = done.error.splitlines()[-1]
    assert last.startswith("error: every token is masked")
    assert "--max-length" in last
    assert "Traceback" not in done.error


def test_whatever_trains_is_given_to_one_worker(trainings: Trainings, request: pytest.FixtureRequest) -> None:
    name = request.node.nodeid
    assert name.endswith("@training") or "PYTEST_XDIST_WORKER" not in os.environ
