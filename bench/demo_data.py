"""Write the dataset of `launch demo`: what each flavor with one GPU has and costs, as questions and answers.

    python bench/demo_data.py        # after a change of launcher/data/flavors.toml

A small model can't know our flavor table, so what it answers afterwards was learned in this run. Both splits hold the
same facts; test asks for them in words that train never uses, so its loss falls only if the fact was learned and not
the sentence. The first rows of test are the ones whose answers the demo shows.
"""

from __future__ import annotations

import json
import random
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent.parent / "launcher" / "data"
SHOWN = (("a10g-large", "price"), ("l40sx1", "gpu"), ("h200", "price"))

# It takes the place of the much longer one that SmolLM2's chat template brings.
SYSTEM = "You know Hugging Face Jobs."
# Per kind of fact: its answer, the questions that are trained on, the question that is held out.
ANSWERS = {
    "price": "${usd_per_hour:.2f} per hour.",
    "gpu": "One {title} with {nominal_gb} GB.",
}
TRAIN = {
    "price": (
        "What does the flavor {flavor} cost per hour?",
        "How much do I pay for an hour on {flavor}?",
        "Price of {flavor}?",
        "Tell me the hourly rate of {flavor}.",
    ),
    "gpu": (
        "Which GPU does the flavor {flavor} have?",
        "How much GPU memory is in {flavor}?",
        "GPU of {flavor}?",
        "Tell me what card {flavor} has.",
    ),
}
TEST = {
    "price": "My Job runs on {flavor}. How many dollars is that an hour?",
    "gpu": "I want to train on {flavor}. What GPU would I get, and with how many GB?",
}


def rows(flavors: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of train and of test, made from a flavors.toml: each `{"messages": [system, user, assistant]}`."""
    tables = tomllib.loads(flavors.read_text(encoding="utf-8"))
    facts = {
        name: {"flavor": name, **tables["gpus"][flavor["gpu"]], **flavor}
        for name, flavor in tables["flavors"].items()
        if flavor.get("num_gpus") == 1
    }
    keys = [(name, kind) for name in facts for kind in ANSWERS]
    shuffled = random.Random(0)
    rest = [key for key in keys if key not in SHOWN]
    shuffled.shuffle(rest)
    test = [_row(TEST[kind], kind, facts[name]) for name, kind in (*SHOWN, *rest)]
    train = [_row(question, kind, facts[name]) for name, kind in keys for question in TRAIN[kind]]
    shuffled.shuffle(train)
    return train, test


def text(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _row(question: str, kind: str, fact: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": question.format(**fact)},
            {"role": "assistant", "content": ANSWERS[kind].format(**fact)},
        ]
    }


def main(flavors: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, split in zip(("train", "test"), rows(flavors), strict=True):
        (folder / f"{name}.jsonl").write_text(text(split), encoding="utf-8")
        print(f"{len(split)} rows: {folder / name}.jsonl")


if __name__ == "__main__":
    main(DATA / "flavors.toml", Path(sys.argv[1]) if len(sys.argv) > 1 else DATA / "demo")
