"""Every command that is printed for a user to run: the command line itself reads it, and it asks for what was asked."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from launcher import catalog
from launcher.cli import app as cli
from launcher.cli.options import takes_spec
from launcher.jobs.events import Progress
from launcher.plan import command
from launcher.runs import why
from launcher.runs.outcome import causes
from launcher.spec import RunSpec
from tests.unit import sample
from tests.unit.runs.test_outcome import job

ROOT = Path(__file__).parents[3]
LAUNCH: Any = typer.main.get_command(cli.app)
ASKED: dict[str, Any] = {
    "model": "./my model", "dataset": "me/private-chats", "dataset_split": "train[:90%]", "batch_size": 4,
    "gradient_accumulation": 2, "eval_rows": 16, "max_steps": 5, "learning_rate": 1e-4, "lora_r": 8,
    "output_repo": "lab/model", "private": True, "merge": "16bit", "gguf": ("q8_0", "f16"), "namespace": "lab",
    "flavor": "a10g-large", "timeout": "2h", "max_cost": 4.5, "label": {"team": "a"}, "secrets": ("WANDB_API_KEY",),
    "env": {"GREETING": "it's two words", "EMPTY": ""}, "packing": False, "sample_rows": 3,
}  # fmt: skip


def parse(line: str) -> dict[str, Any]:
    """The options that the command line finds in it; raises where it would refuse it."""
    assert line.startswith("launch")
    words = shlex.split(line)[1:]
    context = LAUNCH.make_context("launch", words)
    if not words or words[0] not in LAUNCH.commands:
        return dict(context.params)
    return dict(LAUNCH.commands[words[0]].make_context(words[0], words[1:], parent=context).params)


def spec_of(line: str) -> RunSpec:
    """The request that the command line makes of it."""
    found: list[Any] = []
    takes_spec(lambda asked: found.append(asked))(
        **{name: value for name, value in parse(line).items() if name in (*RunSpec.model_fields, "config")}
    )
    return found[0]  # type: ignore[no-any-return]


def test_a_request_is_written_whole() -> None:
    asked = RunSpec(**ASKED)
    line = command.launch(asked)
    assert line and "\n" not in line
    assert spec_of(line) == asked
    changed = command.launch(asked, max_length=512, eval_rows=None, packing=None)
    assert changed and spec_of(changed) == asked.model_copy(
        update={"max_length": 512, "eval_rows": None, "packing": None}
    )
    assert command.launch(asked, merge=None, merged_repo="lab/merged") is None  # what contradicts itself is no command
    assert command.launch(RunSpec(model="m", env={"TWO": "lines\nof text"})) is None  # nor is what fits on no line


@pytest.mark.parametrize("name", causes())
def test_what_comes_next_is_the_whole_request_with_the_one_change(name: str) -> None:
    """After a run that was private, of an organisation and short, the next one is too."""
    asked = RunSpec(**ASKED)
    planned = sample.plan(flavor="a10g-large").model_copy(update={"asked": asked})
    failed = job("", "a10g-large")
    result = {"push_error": "x", "exports": [{"kind": "gguf", "name": "f16", "error": "x"}]}
    filled = why.values(failed, planned, Progress(result=result), catalog.load())
    for line in causes()[name].commands({"again": "launch resume me/abc", **filled}):
        line = line.partition(", then: ")[2] or line
        if not line.startswith("launch"):
            assert line.startswith("hf ")
            continue
        options = parse(line)
        if line.startswith("launch --"):
            made = spec_of(line)
            different = {key for key, value in made if value != getattr(asked, key)}
            assert len(different) <= (2 if "gradient_accumulation" in different else 1), line
            assert made.private and (made.namespace, made.max_steps) == ("lab", 5)
        else:
            assert "me/abc" in options.values(), line


def test_an_export_again_is_the_whole_one() -> None:
    made = sample.export_plan()
    asked = made.asked.model_copy(update={"gguf": ("q8_0",), "output_repo": "lab/x", "private": True})
    line = command.export(made.model_copy(update={"asked": asked}))
    assert parse(line) | {"merge": "16bit", "gguf": ["q8_0"], "flavor": "cpu-upgrade", "timeout": "1h"} == parse(line)


def printed() -> Iterator[tuple[str, str]]:
    """Each `launch …` in a text of the launcher or of a script, whatever is filled in."""
    for path in sorted([*(ROOT / "launcher").rglob("*.py"), *(ROOT / "templates" / "parts").rglob("*.py")]):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        told = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
        for node in ast.walk(tree):
            text = ""
            if node in told:
                continue
            if isinstance(node, ast.JoinedStr):
                text = "".join(str(part.value) if isinstance(part, ast.Constant) else "1h" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            for line in re.findall(r"`(launch [^`]*)`", text):
                yield path.name, line


def test_every_command_in_a_text_is_one() -> None:
    seen = dict.fromkeys(printed())
    assert len(seen) > 40
    for place, line in seen:
        line = re.sub(r" (…|--merged-repo NAME)", "", line)
        if line == "launch 1h --model" or line.removeprefix("launch ") in LAUNCH.commands:  # a command that is named
            continue
        try:
            parse(line)
        except typer.Exit:  # it shows a help
            continue
        except Exception as error:
            pytest.fail(f"{place}: `{line}`: {error}")
