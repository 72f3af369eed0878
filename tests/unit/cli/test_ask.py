"""The question before money is spent: at a terminal, skipped, and where nobody can be asked."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.emulator import Hub
from tests.faults.command import Ran, at_terminal, run
from tests.faults.trainings import write_rows

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
ASKED = ("--model", "smollm2-135m", "--flavor", "t4-small")
QUESTION = "Start? [Y/n/?]"
ROW = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
WEIGHTS = {"adapter_model.safetensors": "", "adapter_config.json": "{}"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that records Jobs without running them, with a dataset of a thousand rows."""
    with Hub(tmp_path / "hub", run=False) as hub:
        for name, value in (hub.env() | {"LAUNCH_DATASET_VIEWER": hub.url}).items():
            monkeypatch.setenv(name, value)
        for name in (MODEL, "unsloth/SmolLM2-135M-Instruct", "unsloth/Qwen3-8B", "unsloth/Qwen3-VL-8B-Instruct"):
            hub.add_repo(name, files={"config.json": "{}"})
        for name in ("trl-lib/Capybara", "HuggingFaceH4/llava-instruct-mix-vsft", "tester/chats"):
            hub.add_repo(name, type="dataset", files={"train.jsonl": ROW * 1000})
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("launcher.cli.follow.follow", lambda *_, **__: None)  # nothing runs the Job
        yield hub
        assert hub.unknown_requests == []


@pytest.fixture
def rows(tmp_path: Path) -> str:
    """72 chats on this machine."""
    return str(write_rows(tmp_path / "rows.jsonl", 72))


def submitted(hub: Hub, *args: str) -> tuple[dict[str, Any], Ran]:
    """The plan of the Job that was started without a terminal, and what was said."""
    before = set(hub.jobs)
    answer = run(*args, "--detach")
    assert answer.returncode == 0, answer.stderr
    [job] = hub.jobs.keys() - before
    folder = hub.jobs[job].labels["artifacts"]
    return json.loads(hub.buckets["tester/jobs-artifacts"].files[f"{folder}/plan.json"]), answer


# ---- The screen ------------------------------------------------------------------------------------------------------

LONG = "tester/" + "a-very-long-name-" * 5
SCREENS: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
    ((*ASKED,), ("trl-lib/Capybara (default, not yours): 1,000 rows, 64 held out", "new, public", "500 steps = ",
                 "passes over 936 rows", "T4 16 GB, $0.40/h", "faster", "cheaper", "at most $0.20", "UTC")),
    (("--model", "qwen3-vl-8b"), ("llava-instruct-mix-vsft (default, not yours)", "cheaper")),
    ((*ASKED, "--dataset", "rows.jsonl"), ("rows.jsonl: 72 rows, 7 held out", "= 3 passes over 65 rows",
                                           "new, private (--no-private)")),
    ((*ASKED, "--dataset", "rows.jsonl", "--no-private", "--max-steps", "500"),
     ("new, public", "! 500 steps are 123 passes over 65 rows: --num-train-epochs 3 would be usual")),
    (("--model", "qwen3-8b", "--merge", "16bit", "--gguf", "q4_k_m", "--merged-repo", f"{LONG}m",
      "--output-repo", LONG, "--namespace", "tester", "--flavor", "a100x4", "--timeout", "20m"),
     ("then merge 16bit, GGUF q4_k_m", "...", "tester pays", "3 warnings: ? shows all")),
]  # fmt: skip


@pytest.mark.parametrize(("args", "said"), SCREENS)
def test_the_answer_is_twelve_lines_of_eighty_columns(
    hub: Hub, rows: str, args: tuple[str, ...], said: tuple[str, ...]
) -> None:
    status, screen = at_terminal(*args, says="n\n")
    assert status == 3, screen
    shown = screen[screen.index("train ") : screen.index(QUESTION) + len(QUESTION)].split("\n")
    assert len(shown) <= 12, screen
    assert max(len(line) for line in shown) <= 80, screen
    for text in said:
        assert text in screen
    assert "nothing was started" in screen
    assert not hub.jobs and not hub.buckets


def test_of_more_warnings_than_there_is_room_for_the_number_is_said(hub: Hub) -> None:
    args = ("--model", "qwen3-8b", "--flavor", "a100x4", "--timeout", "8m", "--dataset-rows", "20")
    _, screen = at_terminal(*args, says="?\nn\n")
    first, whole = screen.split(QUESTION)[:2]
    assert "warnings more: ? shows all" in first
    assert len(first[first.index("train ") :].split("\n")) <= 12
    for text in ("would idle", "it would be killed after 8m", "passes over 18 rows"):
        assert text in " ".join(whole.split())


# ---- The answer ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("says", ["\n", "what\nYES\n", "?\ny\n"])
def test_it_starts_where_that_is_agreed_to(hub: Hub, says: str) -> None:
    status, screen = at_terminal(*ASKED, says=says)
    assert (status, len(hub.jobs)) == (0, 1), screen
    assert screen.count(QUESTION) == says.count("\n")
    assert ("headroom" in screen) == ("?" in says)


@pytest.mark.parametrize("says", ["n\n", "", "?\nno\n"])
def test_nothing_is_started_where_it_is_not(hub: Hub, says: str) -> None:
    status, screen = at_terminal(*ASKED, says=says)
    assert (status, hub.jobs, hub.buckets) == (3, {}, {})
    assert "nothing was started" in screen


@pytest.mark.parametrize("option", ["-y", "--detach", "--quiet", "--json"])
def test_an_option_skips_the_question(hub: Hub, option: str) -> None:
    status, screen = at_terminal(*ASKED, option, says="n\n")
    assert (status, len(hub.jobs)) == (0, 1), screen
    assert QUESTION not in screen
    assert ("at most $0.20" in screen) == (option != "--quiet")


def test_verbose_shows_the_whole_plan_first(hub: Hub) -> None:
    _, screen = at_terminal(*ASKED, "-v", says="n\n")
    assert "headroom" in screen[: screen.index(QUESTION)]
    assert "new, public" in screen


def test_a_run_again_gone_on_with_or_exported_is_asked_about_too(hub: Hub) -> None:
    plan, _ = submitted(hub, *ASKED, "--output-repo", "made")
    [first] = hub.jobs
    hub.jobs[first].finish("ERROR", "node lost")
    hub.add_repo("tester/made", files=WEIGHTS | {"README.md": "", "adapter_config.json": json.dumps(
        {"base_model_name_or_path": MODEL, "r": 8, "lora_alpha": 8, "peft_type": "LORA"})})  # fmt: skip
    hub.repos["tester/made"].private = plan["private"]
    for args, said in (
        (("rerun", first), "tester/made-again: new, public"),
        (("resume", first), f"with {first}, from its last checkpoint"),
        (("export", "tester/made", "--merge", "16bit"), "merged 16bit of tester/made"),
    ):
        more = ("--output-repo", "tester/made-again") if args[0] == "rerun" else ()
        status, screen = at_terminal(*args, *more, says="n\n")
        assert (status, list(hub.jobs)) == (3, [first]), screen
        assert said in screen
        assert len(screen[: screen.index(QUESTION)].split("\n")) <= 13  # with what was typed
        status, screen = at_terminal(*args, *more, "--yes", "--detach")
        assert (status, len(hub.jobs)) == (0, 2), screen
        hub.jobs.pop(next(job for job in hub.jobs if job != first))


def test_a_run_of_this_machine_is_not_asked_about(hub: Hub) -> None:
    status, screen = at_terminal("--model", "qwen3-vl-8b", "--local", says="n\n")
    assert (status, QUESTION in screen) == (3, False)  # which has no GPU


# ---- Nobody to ask ---------------------------------------------------------------------------------------------------


def test_without_a_terminal_money_needs_a_dataset_or_a_yes(hub: Hub) -> None:
    answer = run(*ASKED, "--detach", yes=False)
    assert (answer.returncode, hub.jobs) == (2, {})
    assert "Add --dataset trl-lib/Capybara" in answer.stderr
    assert run(*ASKED, "--detach", "--dataset", "trl-lib/Capybara", yes=False).returncode == 0
    assert run(*ASKED, "--detach", "--yes", yes=False).returncode == 0
    assert run(*ASKED, "--dry-run", yes=False).returncode == 0
    assert len(hub.jobs) == 2


def test_a_real_terminal(hub: Hub) -> None:
    """Once through the process that a person starts."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"} | {"TERM": "xterm"}
    launch = Path(sys.executable).with_name("launch")
    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    with subprocess.Popen([launch, *ASKED], env=environment, start_new_session=True, **streams) as process:  # type: ignore[call-overload]
        os.close(theirs)
        os.write(ours, b"n\n")
        screen = b""
        with suppress(OSError):
            while part := os.read(ours, 65536):
                screen += part
    os.close(ours)
    assert process.returncode == 3
    assert QUESTION.encode() in screen
    assert not hub.jobs


# ---- What it says is so ----------------------------------------------------------------------------------------------


def test_the_prices_are_the_services_of_now(hub: Hub) -> None:
    hub.flavors["t4-small"] |= {"unitCostUSD": 0.02, "unitCostMicroUSD": 20_000}
    plan, answer = submitted(hub, *ASKED)
    assert plan["cost"]["usd_per_hour"] == 1.2
    assert "$1.20/h" in answer.stderr
    assert "t4-small was $0.40/h before" in answer.stderr
    _, answer = submitted(hub, *ASKED[:2], "--flavor", "l4x1")
    assert "1 differ from the list of August 2026" in answer.stderr


@pytest.mark.parametrize("kind", [500, 404, "odd"])
def test_a_service_that_does_not_say_its_prices_is_no_reason_to_stop(hub: Hub, kind: int | str) -> None:
    hub.fail_next(kind, "GET /api/jobs/hardware", times=9, change=lambda body: b"[]")
    plan, answer = submitted(hub, *ASKED)
    assert plan["cost"]["usd_per_hour"] == 0.4
    assert "the service did not say its prices" in answer.stderr
    assert "the list of August 2026 that came with this version" in answer.stderr


def test_a_login_that_ends_before_the_job_does_is_said(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    for hours, said in ((0.2, True), (48, False)):
        ends = (datetime.now(UTC) + timedelta(hours=hours)).isoformat().replace("+00:00", "Z")
        login = hub.add_user("tester", expires_at=ends)
        monkeypatch.setenv("HF_TOKEN", login.token)
        _, answer = submitted(hub, *ASKED)
        assert ("your login ends on" in answer.stderr) == said


# ---- Where the result goes -------------------------------------------------------------------------------------------


def test_two_runs_of_one_day_go_to_two_repos(hub: Hub) -> None:
    places = {submitted(hub, *ASKED)[0]["output_repo"] for _ in range(2)}
    assert len(places) == 2


def test_the_model_of_another_run_is_not_replaced(hub: Hub) -> None:
    hub.add_repo("tester/precious", files=WEIGHTS)
    hub.add_repo("tester/empty", files={"README.md": ""})
    for option in (("--output-repo", "precious"), ("--merge", "16bit", "--merged-repo", "precious")):
        answer = run(*ASKED, *option, "--detach")
        assert (answer.returncode, hub.jobs) == (3, {})
        assert "tester/precious holds a model already" in answer.stderr
        assert "--overwrite" in answer.stderr
    _, answer = submitted(hub, *ASKED, "--output-repo", "precious", "--overwrite")
    assert "tester/precious: existing, public" in answer.stderr
    _, answer = submitted(hub, *ASKED, "--output-repo", "empty")
    assert "tester/empty: existing, public" in answer.stderr


def test_a_run_comes_back_to_its_own_repo(hub: Hub) -> None:
    submitted(hub, *ASKED, "--output-repo", "mine")
    [first] = hub.jobs.values()
    stored = hub.buckets["tester/jobs-artifacts"].files
    script = next(data for path, data in stored.items() if path.endswith("sft_text.py"))
    from hashlib import sha256

    record = {"script": {"name": "sft_text.py", "sha256": sha256(script).hexdigest()}}
    hub.add_repo("tester/mine", files=WEIGHTS | {"run.json": json.dumps(record)})
    submitted(hub, "rerun", first.id)
    answer = run(*ASKED, "--output-repo", "mine", "--detach")
    assert (answer.returncode, len(hub.jobs)) == (3, 2)


def test_what_is_to_be_private_goes_to_no_public_repo(hub: Hub, rows: str) -> None:
    hub.add_repo("tester/seen")
    hub.repos["datasets/tester/chats"].private = True
    for more in (("--private",), ("--dataset", rows), ("--dataset", "tester/chats")):
        answer = run(*ASKED, "--output-repo", "seen", *more, "--detach")
        assert (answer.returncode, hub.jobs) == (3, {}), answer.stderr
        assert "tester/seen is there already and public" in answer.stderr
    plan, _ = submitted(hub, *ASKED, "--output-repo", "seen", "--dataset", rows, "--no-private")
    assert plan["private"] is False
    plan, _ = submitted(hub, *ASKED, "--dataset", "tester/chats")
    assert plan["private"] is True
    assert "the data is private" in plan["reasons"]["private"]
