"""What goes wrong before a Job starts, through the real client: one paragraph, nothing submitted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.emulator import Hub
from tests.faults import command

LAUNCH = Path(sys.executable).with_name("launch")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with Hub(tmp_path_factory.mktemp("hub"), run=False) as stand_in:
        stand_in.add_repo("unsloth/Qwen3-8B", files={"config.json": b"{}"})
        stand_in.add_repo("unsloth/closed", files={"config.json": b'{"hidden_size": 64}'}, gated="manual")
        stand_in.add_repo("trl-lib/Capybara", type="dataset", files={"README.md": b""})
        stand_in.add_repo("trl-lib/closed", type="dataset", files={"README.md": b""}, gated="manual")
        yield stand_in


def launch(hub: Hub, *args: str, **env: str) -> command.Ran:
    asked, found = ("--model", "qwen3-8b", *args), hub.env() | env
    if "HF_HUB_OFFLINE" not in env:
        return command.run(*asked, env=found)
    # The client reads it once.
    done = subprocess.run(
        [LAUNCH, *asked], env=os.environ | found, capture_output=True, text=True, timeout=120, check=False
    )
    return command.Ran(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("args", "env", "status", "said"),
    [
        ([], {"HF_TOKEN": "hf_" + "x" * 20}, 3, "hf auth login"),
        (["--dataset", "trl-lib/absent"], {}, 2, "trl-lib/absent"),
        (["--dataset", "trl-lib/closed"], {}, 3, "gated"),
        (["--model", "nobody/absent"], {}, 2, "nobody/absent"),
        (["--model", "unsloth/closed"], {}, 3, "gated"),
        (["--output-repo", "someone-else/model"], {}, 3, "someone-else"),
        (["--namespace", "someone-else"], {}, 3, "someone-else"),
        (["--secrets", "WANDB_KEY"], {}, 2, "WANDB_KEY"),
        ([], {"HF_ENDPOINT": "http://127.0.0.1:9"}, 4, "network"),
        ([], {"HF_HUB_OFFLINE": "1"}, 4, "HF_HUB_OFFLINE is set"),
    ],
)
def test_it_is_refused_with_the_next_step(
    hub: Hub, args: list[str], env: dict[str, str], status: int, said: str
) -> None:
    answer = launch(hub, *args, **env)
    words = " ".join(answer.stderr.split())
    assert answer.returncode == status, words
    assert said in words
    assert "Traceback" not in answer.stderr
    assert hub.token not in answer.stderr
    assert not hub.jobs


def test_a_read_only_token_is_refused(hub: Hub) -> None:
    reader = hub.add_user("reader", role="read")
    answer = launch(hub, HF_TOKEN=reader.token)
    assert answer.returncode == 3, answer.stderr
    assert "write" in answer.stderr
    assert not hub.jobs


def test_a_service_that_fails_is_said_to_fail(hub: Hub) -> None:
    # A submission that fails for good takes a minute and a half: it is in tests/faults/test_submit.py.
    hub.fail_next(503, route="GET /api/whoami-v2", times=3)
    answer = launch(hub)
    assert answer.returncode == 4, answer.stderr
    assert "Traceback" not in answer.stderr
    assert not hub.jobs


def test_a_plan_asks_the_hub_for_nothing_unless_it_is_told_to(hub: Hub) -> None:
    def plan(*args: str) -> command.Ran:
        where = hub.env() | {"LAUNCH_DATASET_VIEWER": hub.url}
        return command.run(*args, "--model", "qwen3-8b", "--dataset", "tester/rows", env=where)

    rows = b"\n".join(b'{"text": "a row of words"}' for _ in range(1600))
    hub.add_repo("tester/rows", type="dataset", files={"train.jsonl": rows})
    before = len(hub.requests)
    for words in (["plan"], ["--dry-run"], ["render"]):
        assert plan(*words).returncode == 0
    refused = plan("plan", "--num-train-epochs", "2")
    assert (refused.returncode, "--dataset-rows" in refused.stderr) == (2, True)
    assert len(hub.requests) == before
    answer = plan("plan", "--num-train-epochs", "2", "--online", "--json")
    assert answer.returncode == 0, answer.stderr
    assert "1600" in json.loads(answer.stdout)["reasons"]["duration"].replace(",", "")
    assert len(hub.requests) > before
