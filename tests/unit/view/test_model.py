"""`launch models --show`: one model on one screen, by any of its names, with no network."""

from __future__ import annotations

import json
import socket

import pytest
from rich.console import Console
from typer.testing import CliRunner

from launcher import catalog
from launcher.catalog import Model
from launcher.cli.app import app
from launcher.errors import RequestError
from launcher.view import tables

TABLES = catalog.load()


def text(model: Model) -> str:
    console = Console(width=400, color_system=None)
    with console.capture() as shown:
        console.print(tables.model_view(model))
    return shown.get()


@pytest.mark.parametrize("model", TABLES.models.values(), ids=lambda model: model.alias)
def test_a_screen_holds_every_fact(model: Model) -> None:
    shown = text(model)
    facts = [model.alias, model.repo, model.repo_4bit, model.upstream, model.licence, model.chat_template,
             model.generation_source, model.source, f"{model.arch.max_position:,}", *model.modalities,
             *model.lora_targets, *(f"{name} {value:g}" for name, value in model.generation.items())]  # fmt: skip
    assert [fact for fact in facts if fact and fact not in shown] == []
    assert ("gated" in shown) == (model.gated or (model.upstream_gated and model.upstream != model.repo))
    assert len(shown.splitlines()) < 24


@pytest.mark.parametrize(
    ("name", "repo"),
    [
        ("QWEN3-8B", "unsloth/Qwen3-8B"),
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("unsloth/Qwen3-8B-unsloth-bnb-4bit", "unsloth/Qwen3-8B-unsloth-bnb-4bit"),
        ("LiquidAI/LFM2.5-1.2B-Thinking", "LiquidAI/LFM2.5-1.2B-Thinking"),
    ],
)
def test_the_object_of_any_name_without_the_network(name: str, repo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    done = CliRunner().invoke(app, ["models", "--show", name, "--json"])
    assert done.exit_code == 0, done.output
    shown = json.loads(done.output)
    assert shown["repo"] == repo
    assert shown["generation"]
    assert shown == json.loads(json.dumps(TABLES.model(name).model_dump(mode="json")))


@pytest.mark.parametrize(
    ("name", "near"),
    [("qwen3-8", "qwen3-8b"), ("Qwen/Qwen3-8", "Qwen/Qwen3-8B"), ("zzzz", "launch models"), (".", "launch models"),
     ("../x", "launch models"), ("", "launch models")],
)  # fmt: skip
def test_an_unknown_name_is_answered_with_the_near_ones(name: str, near: str) -> None:
    with pytest.raises(RequestError, match="unknown model") as raised:
        tables.find_model(name, TABLES)
    assert near in raised.value.hint
    assert raised.value.exit_code == 2
