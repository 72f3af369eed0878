"""This machine and the run see the same: files of every kind, read here and by the script's own parts in the stack."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from launcher import api
from launcher.errors import LauncherError

ROOT = Path(__file__).parents[2]
ASK, TELL = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
PAIR = {"prompt": "Hi", "completion": "Hello"}
CSV = "question,answer\n"
# Rows as JSON lines, or the text of a file by its suffix.
CASES: dict[str, list[Any] | tuple[str, str]] = {
    "messages": [{"messages": [ASK, TELL, ASK]}, {"messages": [{"role": "system", "content": "Be brief"}, ASK, TELL]}],
    "sharegpt": [{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}], "id": 1}],
    "pairs": [PAIR, PAIR | {"source": "a"}],
    "lists": [{"prompt": [ASK], "completion": [TELL]}, {"prompt": [ASK, TELL, ASK], "completion": [TELL]}],
    "alpaca": [{"instruction": "Add", "input": "1 2", "output": "3"}, {"instruction": "Go", "output": "Gone"}],
    "question": [{"question": "Hi", "answer": "Hello", "cot": "hm"}],
    "text": [{"text": "Once upon a time", "label": 1}, {"text": "<|im_start|>user\nHi<|im_end|>"}],
    "parts": [{"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, TELL]}],
    "calls": [{"messages": [ASK, TELL | {"tool_calls": [{"id": "1"}]}], "tools": []}],
    "long": [PAIR | {"completion": "word " * 600}, PAIR, PAIR | {"prompt": "word " * 600}],
    "numbers": [PAIR | {"completion": 4}, PAIR | {"completion": 5}],
    "truths": [{"question": "Hi", "answer": True}],
    "objects": [PAIR | {"completion": {"a": 1}}],
    "empty": [PAIR, PAIR | {"completion": ""}, PAIR | {"prompt": None}, {"prompt": "Hi"}],
    "roles": [{"messages": [{"role": "wizard", "content": "Hi"}, TELL]}, {"messages": [ASK]}, {"messages": []}],
    "bare": [{"messages": [{"role": "user", "content": ["Hi"]}, TELL]}],
    "null-text": [{"text": "Hi"}, {"text": None}],
    "columns": [{"review": "Hi", "label": 1}],
    "preferences": [{"prompt": "Hi", "chosen": "a", "rejected": "b"}],
    "numbered": [PAIR | {"row_number": "x"}],
    "array": (".json", json.dumps([PAIR, PAIR])),
    "broken": (".jsonl", json.dumps(PAIR) + "\n{"),
    "nothing": (".jsonl", ""),
    "table": (".csv", CSV + 'Hi,007\nHi,NA\n"a, b",2026-01-02\n'),
    "short-table": (".csv", CSV + "Hi,Hello\nHi\n"),
    "ragged-table": (".csv", CSV + "Hi,1,000\n"),
    "semicolons": (".csv", "question;answer\nHi;Hello\n"),
}

# In the training stack's environment: what the script makes of each file, as a line of JSON.
READ = """
import json, os, sys
from types import SimpleNamespace

os.environ["HF_HUB_OFFLINE"] = "1"
import datasets
from transformers import AutoTokenizer
from parts.chat_text import Encoder, has_target
from parts.data import read_rows
from parts.labels import Tally
from parts.say import UserError

datasets.disable_progress_bars()
datasets.disable_caching()
model, *files = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(model)
options = dict(dataset_config=None, dataset_split="train", dataset_revision=None, streaming=False, eval_split=None,
               eval_rows=0, seed=1, max_steps=None, batch_size=1, gradient_accumulation=1, train_on="assistant",
               max_length=512)
for file in files:
    args = SimpleNamespace(model=model, dataset=file, **options)
    try:
        rows, _ = read_rows(args)
        encoder = Encoder(tokenizer, list(next(iter(rows), {})), args)
        tally, bad, lengths = Tally(encoder.stop), {}, []
        for row in rows:
            try:
                made = encoder(row)
                lengths.append(len(encoder.ids(row)))
                if has_target(made):
                    tally.add(made["labels"])
            except UserError as error:
                bad[row["row_number"]] = error.args[0]
        found = [list(encoder.shape), sorted(lengths), tally.trained, tally.masked, bad]
    except UserError as error:
        found = [error.status, error.args[0]]
    print("SEEN " + json.dumps([file, found]), flush=True)
"""


def seen_here(model: Path, file: str) -> Any:
    try:
        look = api.look(api.plan(model=str(model), dataset=file, local=True, max_length=512))
    except LauncherError as error:
        return [error.exit_code, error.message]
    bad = {str(row.number): f"row {row.number}: {row.problem}." for row in look.bad}
    return [list(look.shape), list(look.lengths), look.trained, look.masked, bad]


@pytest.mark.slow
def test_this_machine_and_the_run_see_the_same(script_python: str, smollm2: Path, tmp_path: Path) -> None:
    files = []
    for name, case in CASES.items():
        suffix, text = case if isinstance(case, tuple) else (".jsonl", "".join(json.dumps(row) + "\n" for row in case))
        files.append(tmp_path / f"{name}{suffix}")
        files[-1].write_text(text, encoding="utf-8")
    reader = tmp_path / "read.py"
    reader.write_text(READ, encoding="utf-8")
    env = os.environ | {"PYTHONPATH": str(ROOT / "templates")}
    run = subprocess.run([script_python, reader, smollm2, *files], env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    found = dict(json.loads(line[5:]) for line in run.stdout.splitlines() if line.startswith("SEEN "))
    assert {file: seen_here(smollm2, file) for file in found} == found
    assert len(found) == len(CASES)
