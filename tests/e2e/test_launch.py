"""The main job from end to end: the real command, the real client, the stand-in Hub, real training on this CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.emulator import Hub

LAUNCH = Path(sys.executable).with_name("launch")


def rows(path: Path, count: int = 24) -> Path:
    """A file of chats with answers that can be learned."""
    lines = []
    for number in range(count):
        answer = "red" if number % 2 else "blue"
        chat = [
            {"role": "user", "content": f"What colour is house {number}?"},
            {"role": "assistant", "content": answer},
        ]
        lines.append(json.dumps({"messages": chat}))
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def hub(tmp_path: Path, tiny: Path) -> Hub:
    stand_in = Hub(tmp_path / "hub", python=sys.executable)
    stand_in.add_repo("tester/tiny", folder=tiny)
    return stand_in


def test_from_the_command_to_a_trained_model_on_the_hub(hub: Hub, tmp_path: Path) -> None:
    with hub:
        answer = subprocess.run(
            [LAUNCH, "--model", "tester/tiny", "--dataset", rows(tmp_path / "houses.jsonl"),
             "--flavor", "cpu-upgrade", "--max-steps", "3", "--eval-rows", "4", "--max-length", "128",
             "--effective-batch-size", "4",
             "--output-repo", "houses", "--label", "team=e2e", "--json"],
            env=os.environ | hub.env(), capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        assert answer.returncode == 0, answer.stderr[-4000:]
        final = json.loads(answer.stdout)
        [job] = hub.jobs.values()
        assert final["id"] == job.id
        assert final["stage"] == job.stage == "COMPLETED"
        assert final["result"]["steps"] == 3
        assert final["result"]["output_repo"] == "tester/houses"
        assert final["result"]["eval_loss"] is not None
        assert job.labels["model"] == "tester--tiny"
        assert job.labels["team"] == "e2e"
        assert set(job.secrets) == {"HF_TOKEN"}
        assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= set(
            hub.repos["tester/houses"].files
        )
        assert "step 3/3 | loss" in answer.stderr
        assert not hub.unknown_requests
        logs = subprocess.run(
            [LAUNCH, "logs", job.id], env=os.environ | hub.env(), capture_output=True, text=True, timeout=60, check=True
        )
        assert "RESULT {" in logs.stdout
        assert hub.token not in answer.stdout + answer.stderr + logs.stdout
    kept = "".join(
        path.read_text(errors="replace") for path in Path(os.environ["LAUNCH_HOME"]).rglob("*") if path.is_file()
    )
    assert "RESULT {" in kept
    assert hub.token not in kept


@pytest.mark.slow
def test_the_same_script_here_detached_and_found_again(tiny: Path, tmp_path: Path) -> None:
    def launch(*args: str | Path) -> str:
        done = subprocess.run([LAUNCH, *args], capture_output=True, text=True, timeout=600, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    rows(tmp_path / "houses.jsonl")
    run_id = launch(
        "--model", tiny, "--dataset", "houses.jsonl", "--local", "--max-steps", "2", "--eval-rows", "4",
        "--max-length", "128", "--effective-batch-size", "4", "--detach", "--quiet",
    ).strip()  # fmt: skip
    assert run_id in launch("ps", "--local")
    followed = launch("logs", "--follow", run_id)
    assert "step 2/2 | loss" in followed
    final = json.loads(launch("wait", run_id, "--json", "--quiet"))
    assert (final["stage"], final["result"]["steps"]) == ("COMPLETED", 2)
    assert (Path(final["result"]["output_dir"]) / "adapter_model.safetensors").is_file()
    assert run_id not in launch("ps", "--local")
    assert run_id in launch("ps", "--local", "--all")
