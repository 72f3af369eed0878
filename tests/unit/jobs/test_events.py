"""Lines of a log become events, whatever else stands in the log."""

from __future__ import annotations

import io
import json
import math
import random
from datetime import UTC, datetime

import pytest
from rich.console import Console

from launcher.jobs.base import Job
from launcher.jobs.events import (
    KEPT,
    TAIL,
    Checkpoint,
    Evaluation,
    Event,
    Failure,
    Phase,
    Progress,
    Result,
    Resumed,
    SmallerBatch,
    Step,
    Stopping,
    parse,
    watch,
)
from launcher.runs.outcome import outcome
from launcher.text import Redactor, plain
from launcher.view.live import Live


@pytest.mark.parametrize(
    ("line", "event"),
    [
        ("== load", Phase("load")),
        (
            "step 12/500 | loss 1.2345 | lr 1.90e-04 | 3210 tok/s | eta 312s",
            Step(12, 500, 1.2345, 1.9e-4, 3210.0, 312.0),
        ),
        ("step 12/500 | loss 1.5", Step(12, 500, 1.5)),
        ("step 12/? | loss 1.5 | eta ?", Step(12, None, 1.5)),
        ("step 12/500", Step(12, 500, None)),
        ("step 12/500 | loss 1.5 | something new 7", Step(12, 500, 1.5)),
        ("eval step 0/500 | loss 3.2100", Evaluation(0, 500, 3.21)),
        ("checkpoint step 40 | 1.2s | 35 MB", Checkpoint(40)),
        ("resumed from step 40", Resumed(40)),
        ("resumed from step 40 of an attempt before", Resumed(40)),
        ("deadline in 61.5s: stopping", Stopping(61.5)),
        ("deadline in 61s: stopping at step 7", Stopping(61.0)),
        ("out of memory: batch 4 -> 2", SmallerBatch(4, 2)),
        ("out of memory: batch 4 -> 2, accumulation 1 -> 2", SmallerBatch(4, 2)),
        (" 10%|#    | 1/10 [00:01<00:04, 2.0it/s]checkpoint step 1 | 1s | 35 MB", Checkpoint(1)),
        ("error: every label is masked", Failure("every label is masked")),
        ('RESULT {"steps": 5, "loss": null}', Result({"steps": 5, "loss": None})),
        ("\x1b[32mstep 1/2 | loss 1.0\x1b[0m\r\n", Step(1, 2, 1.0)),
        (" 10%|#    | 1/10\r 20%|##   | 2/10 [00:01<00:04, 2.0it/s]step 1/2 | loss 1.0", Step(1, 2, 1.0)),
        (" 10%|#    | 1/10 [00:01<00:04, 2.0it/s]== save", Phase("save")),
    ],
)
def test_every_form_of_the_scripts_is_understood(line: str, event: Event) -> None:
    assert parse(line) == event


def test_what_json_decodes_to_moves_no_terminal_and_holds_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", 'n\u00f6-"body"-may-see')
    values = {
        "url": "\x1b]0;title\x07https://here",
        "samples": [{"prom\x1b[2Jpt": "first\r\nsecond\x9b31m line", "more": ["hf_" + "Canary7" * 5, 7, None]}],
        "stopped": 'n\u00f6-"body"-may-see',
    }
    assert parse("RESULT " + json.dumps(values)) == Result(
        {
            "url": "https://here",
            "samples": [{"prompt": "first\nsecond line", "more": ["***", 7, None]}],
            "stopped": "***",
        }
    )
    assert parse('RESULT {"a": ' + "[" * 100 + "]" * 100 + "}") is not None
    assert parse('RESULT {"a": ' + "[" * 90_000 + "]" * 90_000 + "}") is None


@pytest.mark.parametrize(
    "line",
    [
        "",
        "==",
        "== ",
        "error:",
        "step",
        "step 1",
        "step one/two | loss 1",
        "step 99999999999999999999/1 | loss 1",
        "next step 1/2 | loss 1",
        "checkpoint step many",
        "checkpoint step 40/500",
        "a checkpoint step 40",
        "resumed from step 4x",
        "deadline in ten s: stopping",
        "CUDA out of memory: batch 4 -> 2",
        "a long step 1/2",
        "an error: not at the start",
        "RESULT",
        "RESULT {",
        "RESULT []",
        'RESULT "text"',
        "RESULT {" * 100_000,
        'RESULT {"a":' + "[" * 100_000,
        "\x1b" * 1000,
        "\ud800",
        "\0\1\2",
        "x" * (1 << 20),
    ],
)
def test_anything_else_is_only_a_line(line: str) -> None:
    assert parse(line) is None


def test_a_loss_that_is_no_number_is_still_a_step() -> None:
    event = parse("step 3/5 | loss nan | lr 1e-4")
    assert isinstance(event, Step) and event.loss is not None and math.isnan(event.loss)
    assert parse("step 3/5 | loss n/a") == Step(3, 5, None)


@pytest.mark.parametrize(
    "unit", ["\x1b]", "\x1b[", "\x1b", "]", "step 1/1 | ", "\r", "\x9b", "[00:01]", "== ", "\x1bP"]
)
@pytest.mark.timeout(120)
def test_a_hostile_line_of_a_megabyte_takes_no_time(unit: str) -> None:
    """Where its length counted twice, as in an expression that looks back, it would take hours."""
    Progress().add(unit * ((1 << 20) // len(unit)))


def test_random_bytes_never_raise_and_never_reach_a_terminal() -> None:
    chance = random.Random(7)
    progress = Progress()
    for _ in range(2000):
        text = bytes(chance.randrange(256) for _ in range(80)).decode("latin-1")
        progress.add(text)
        assert all(letter.isprintable() or letter in "\t\xa0\xad" for letter in plain(text))


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]8;;https://evil\x07link\x1b]8;;\x07", "link"),
        ("\x1b]52;c;ZXZpbA==\x1b\\x", "x"),
        ("\x9b31mred", "red"),
        ("\x9d0;title\x07text", "text"),
        ("\x90q#0\x9ctext", "text"),
        ("\x9d a quotation mark in a wrong encoding", " a quotation mark in a wrong encoding"),
        ("\x1bP1$r0m\x1b\\text", "text"),
        ("\x1b_Gf=100;AAAA\x1b\\text", "text"),
        ("a\x00b\u2028c\u0085d", "abcd"),
        ("\u202a\u202e\u2066\u2069\u061c\U000e0041x", "x"),
        ("\x1b(Bx\x1b7y\x1bcz", "xyz"),
        ("a\x1b[2Ab\x08c\x07", "abc"),
        ("\u202egnp.exe", "gnp.exe"),
        ("half\rwhole", "whole"),
        ("é\tü 中", "é\tü 中"),
        ("\ud800x", "?x"),
    ],
)
def test_nothing_is_left_that_a_terminal_acts_on(line: str, shown: str) -> None:
    assert plain(line) == shown


def test_lines_add_up_to_progress() -> None:
    lines = [
        "Installed 60 packages",
        "== train",
        "eval step 0/3 | loss 3.0",
        "step 1/3 | loss 2.0 | lr 2e-4 | 100 tok/s | eta 2s",
        "noise",
        "step 2/3 | loss 1.5 | lr 1e-4 | 110 tok/s | eta 1s",
        "eval step 3/3 | loss 1.0",
        'RESULT {"steps": 3}',
        'RESULT {"steps": 4}',
    ]
    seen = []
    for line in watch(lines):
        progress = line.progress
        seen.append((line.text, line.event, progress.step))
    assert seen == list(zip(lines, map(parse, lines), [0, 0, 0, 1, 1, 2, 2, 2, 2], strict=True))
    assert (progress.phase, progress.step, progress.total) == ("train", 2, 3)
    assert list(progress.losses) == [(1, 2.0), (2, 1.5)]
    assert list(progress.eval_losses) == [(0, 3.0), (3, 1.0)]
    assert (progress.learning_rate, progress.tokens_per_s, progress.eta_s) == (1e-4, 110.0, 1.0)
    assert progress.result == {"steps": 4}
    assert list(progress.tail) == lines


def test_an_error_goes_on_in_its_indented_lines() -> None:
    progress = Progress()
    for line in [
        "  before",
        "error: out of memory",
        "  at step 3.",
        "  Lower --max-length.",
        "Traceback",
        "  not this",
    ]:
        progress.add(line)
    assert progress.error == "out of memory at step 3. Lower --max-length."


def job(stage: str, message: str | None = None) -> Job:
    return Job(
        id="abc", url="https://hub/jobs/me/abc", backend="hub", stage=stage, message=message, flavor="t4-small",
        labels={}, created_at=datetime.now(UTC),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("stage", "status", "exit_code"),
    [
        ("COMPLETED", "completed", 0),
        ("ERROR", "failed", 1),
        ("CANCELED", "canceled", 1),
        ("DELETED", "canceled", 1),
        ("RUNNING", "running", 4),
        ("SCHEDULING", "running", 4),
        ("PAUSED", "unknown", 4),
    ],
)
def test_the_stage_decides(stage: str, status: str, exit_code: int) -> None:
    progress = Progress()
    progress.add('RESULT {"loss": 1.0}')
    found = outcome(job(stage), progress)
    assert (found.status, found.exit_code, found.result) == (status, exit_code, {"loss": 1.0})
    assert found.message and (found.hint or exit_code == 0)


def test_a_stage_that_nobody_knows() -> None:
    assert outcome(None, Progress()).exit_code == 4


def test_a_failure_is_told_in_the_scripts_own_words() -> None:
    progress = Progress()
    progress.add("step 1/3 | loss 2.0")
    assert "exit status 1" in outcome(job("ERROR", "exit status 1"), progress).message
    assert "step 1/3" in outcome(job("ERROR"), progress).message
    progress.add("error: every token is masked: there is nothing to learn.")
    found = outcome(job("ERROR", "exit status 1"), progress)
    assert found.cause == "labels"
    assert found.message.endswith("It says: every token is masked: there is nothing to learn.")
    assert outcome(job("ERROR", "Job timeout"), progress).cause == "timeout"


def test_a_run_that_stopped_in_time_is_no_failure_and_says_how_to_go_on() -> None:
    progress = Progress()
    for line in ("step 40/500 | loss 2.0", "deadline in 60s: stopping", "checkpoint step 40 | 1.2s | 35 MB"):
        progress.add(line)
    progress.add('RESULT {"status": "stopped", "stopped": "deadline", "steps": 40}')
    found = outcome(job("COMPLETED"), progress)
    assert (found.status, found.exit_code, found.next) == ("stopped", 0, ("launch resume me/abc",))
    assert "step 40 of 500" in found.message
    assert "launch resume me/abc" in found.hint


def test_a_result_does_not_make_a_failed_job_a_success() -> None:
    progress = Progress()
    progress.add("checkpoint step 40 | 1.2s | 35 MB")
    progress.add('RESULT {"status": "done", "stopped": null, "url": "https://huggingface.co/me/m"}')
    found = outcome(job("ERROR", "Job failed with exit code: 139"), progress)
    assert (found.status, found.exit_code) == ("failed", 1)
    assert "https://huggingface.co/me/m" in found.message


def test_the_bar_says_how_far_the_run_is_and_what_is_kept() -> None:
    screen = io.StringIO()
    lines = [
        "== train",
        "checkpoint step 40 | 1.2s | 35 MB",
        "step 41/500 | loss 2.0 | lr 1e-4 | 9 tok/s | eta 60s",
        "x",
    ]
    console = Console(file=screen, force_terminal=True, width=120)
    with Live(console, job("RUNNING"), 0, quiet=False, terse=False) as live:
        for line in watch(lines):
            live.update(line)
        live._bar.refresh()
    assert "step 41/500 · loss 2.000 · 60 s left · kept at 40" in screen.getvalue()


def test_what_is_kept_of_a_log_does_not_grow_with_it() -> None:
    progress = Progress()
    for step in range(3 * KEPT):
        progress.add(f"step {step}/9999 | loss 1.0")
        progress.add(f"eval step {step}/9999 | loss 1.0")
    progress.add("error: bad")
    for _ in range(3000):
        progress.add("  more of it")
    assert (len(progress.losses), len(progress.eval_losses), len(progress.tail)) == (KEPT, KEPT, TAIL)
    assert progress.losses[-1] == (3 * KEPT - 1, 1.0)
    assert progress.error is not None and len(progress.error) <= 4096


def test_a_secret_is_hidden_wherever_the_stream_is_cut() -> None:
    text = b"hf_hf_secret and hf_secret; hf_secre"
    for first in range(len(text)):
        for second in range(first, len(text)):
            redactor = Redactor(["hf_secret", "short"])
            parts = [text[:first], text[first:second], text[second:]]
            assert b"".join([*map(redactor.feed, parts), redactor.flush()]) == b"hf_*** and ***; hf_secre"
