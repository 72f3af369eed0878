"""The command line: what is printed where, and the exit status; once through the real process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import command

LAUNCH = Path(sys.executable).with_name("launch")


def launch(*args: str) -> command.Ran:
    return command.run(*args)


def test_without_anything_it_shows_its_help() -> None:
    answer = launch()
    assert answer.returncode == 2
    assert "--max-steps" in answer.stdout
    installed = subprocess.run([LAUNCH, "--version"], capture_output=True, text=True, timeout=120, check=True)
    assert installed.stdout.startswith("launch ")


def test_a_dry_run_is_one_object_with_plan_job_and_script() -> None:
    answer = launch("--model", "qwen3-8b", "--flavor", "a10g-large", "--dry-run", "--json")
    assert answer.returncode == 0, answer.stderr
    whole = json.loads(answer.stdout)
    assert set(whole) == {"plan", "job", "script"}
    names = {"image", "command", "flavor", "timeout_s", "attempts", "env", "secrets", "labels", "volumes"}
    assert set(whole["job"]) == names
    assert whole["job"]["flavor"] == whole["plan"]["flavor"] == "a10g-large"
    assert whole["job"]["command"][:2] == ["uv", "run"]
    assert whole["script"].startswith("# /// script")
    assert whole["job"]["labels"]["model"] == "qwen3-8b"


def test_the_same_request_renders_the_same_script() -> None:
    first, second = (launch("render", "--model", "qwen3-4b") for _ in range(2))
    assert first.stdout == second.stdout
    compile(first.stdout, "sft_text.py", "exec")


def test_snake_case_and_trl_names_mean_the_same() -> None:
    answers = [
        launch("plan", "--json", "--model", "qwen3-8b", "--batch-size", "2", "--optim", "adamw_torch", "--lora-r", "8"),
        launch("plan", "--json", "--model_name_or_path", "qwen3-8b", "--per_device_train_batch_size", "2",
               "--optim", "adamw_torch", "--lora_r", "8"),
    ]  # fmt: skip
    assert answers[0].returncode == 0, answers[0].stderr
    assert answers[0].stdout == answers[1].stdout
    assert json.loads(answers[0].stdout)["optim"] == "adamw_torch"


def test_a_person_gets_the_plan_as_one_screen() -> None:
    answer = launch("plan", "--model", "qwen3-8b")
    assert answer.returncode == 0
    for word in ("unsloth/Qwen3-8B", "cost", "timeout", "l4x1"):
        assert word in answer.stdout
    assert "\x1b" not in answer.stdout


def test_tables_are_arrays_for_programs() -> None:
    models, flavors = json.loads(launch("models", "--json").stdout), json.loads(launch("flavors", "--json").stdout)
    assert "qwen3-vl-8b" in {model["alias"] for model in models}
    assert "a10g-large" in {flavor["name"] for flavor in flavors}
    assert "qwen3-8b" in launch("models").stdout


def test_a_config_file_holds_any_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run.toml").write_text('model = "qwen3-8b"\nmax-steps = 7\n')
    monkeypatch.chdir(tmp_path)
    answer = launch("plan", "--config", "run.toml", "--json")
    assert json.loads(answer.stdout)["max_steps"] == 7


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        (["--model", "qwen3-8"], 2, "Did you mean qwen3-8b"),
        (["--model", "qwen3-8b", "--flavor", "a10glarge"], 2, "a10g-large"),
        (["--model", "qwen3-8b", "--max-steps", "-5"], 2, "--max-steps -5"),
        (["--model", "qwen3-8b", "--max-steps", "many"], 2, "--max-steps"),
        (["--model", "qwen3-8b", "--learning-rate", "7"], 2, "--learning-rate 7"),
        (["--model", "qwen3-8b", "--streaming"], 2, "needs --max-steps"),
        (["--model", "qwen3-8b", "--output-repo", "a/b/c"], 2, "NAMESPACE/NAME"),
        (["--model", "qwen3-8b", "--dataset", "absent.jsonl"], 2, "no such file"),
        (["--model", "qwen3-8b", "--engine", "trl"], 2, "launch plan"),
        (["--model", "qwen3-8b", "--label", "novalue"], 2, "KEY=VALUE"),
        (["--model", "qwen3-8b", "--config", "absent.toml"], 2, "absent.toml"),
        (["--model", "llama-3.3-70b", "--flavor", "t4-small"], 3, "does not fit"),
        (["--model", "qwen3-vl-8b", "--local"], 3, "no GPU"),
        (["--model", "qwen3-8b", "--flavor", "cpu-basic"], 3, "does not fit on cpu-basic"),
        (["--model", "qwen3-8b", "plan"], 2, "after the subcommand"),
        (["logs", "local-20200101-000000-beef"], 2, "local-20200101-000000-beef"),
        (["--maxsteps", "5"], 2, "--max-steps"),
        (["plam"], 2, "plan"),
    ],
)
def test_a_mistake_is_one_paragraph_with_the_next_step(args: list[str], status: int, said: str) -> None:
    answer = launch(*args, *(["--dry-run"] if args[0] == "--model" and "plan" not in args else []))
    assert answer.returncode == status, answer.stderr
    assert said in " ".join(answer.stderr.split())
    assert "Traceback" not in answer.stderr
    assert answer.stdout == ""


def test_without_a_token_nothing_is_submitted() -> None:
    answer = launch("--model", "qwen3-8b")
    assert answer.returncode == 3
    assert "hf auth login" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_what_is_copied_from_the_terminal_is_never_broken(tmp_path: Path) -> None:
    """Wider than any terminal: an error stands on a line, and so does the command of a dry run."""
    folder = tmp_path / ("folder-" * 20)
    folder.mkdir()
    answer = launch("export", str(folder), "--merge", "16bit", "--local")
    assert answer.returncode == 2
    assert f"{folder} holds no adapter_config.json" in answer.stderr
    rows = tmp_path / f"{'rows-' * 30}.jsonl"
    rows.write_text('{"text": "a"}\n', encoding="utf-8")
    answer = launch("--model", "qwen3-8b", "--dataset", str(rows), "--dry-run")
    assert answer.returncode == 0, answer.stderr
    assert f"uv run /data/sft_text.py --dataset /data/{rows.name}\n" in answer.stderr


def test_a_dry_run_rehearses_nothing() -> None:
    answer = launch("--model", "qwen3-8b", "--dry-run", "--rehearse")
    assert answer.returncode == 2
    assert "--rehearse" in answer.stderr
