"""Rows, steps and packing, whatever was asked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher import catalog
from launcher.errors import RequestError
from launcher.estimate.setup import Setup
from launcher.plan.workload import Workload

TABLES = catalog.shipped()
A100, T4 = (TABLES.flavors[name].gpu for name in ("a100-large", "t4-small"))


def workload(
    rows: int = 16,
    tokens: float = 530,
    length: int = 2048,
    *,
    packing: bool | None = None,
    batch: int | None = None,
    accumulation: int | None = None,
    steps: int | None = 100,
    rows_in_all: float | None = None,
    eval_steps: int | None = None,
) -> Workload:
    return Workload(
        model=TABLES.models["qwen3-8b"], setup=Setup("4bit", "unsloth", length, 1, 16), rows_per_step=rows,
        row_tokens=min(tokens, length), steps=steps, rows=rows_in_all, batch_size=batch, accumulation=accumulation,
        packing=packing, eval_rows=64, eval_steps=eval_steps,
    )  # fmt: skip


rows = st.integers(1, 2048)
tokens = st.floats(1, 100_000)
lengths = st.integers(16, 131_072)


@given(rows, tokens, lengths)
def test_a_step_keeps_the_rows_that_were_asked_for(rows: int, tokens: float, length: int) -> None:
    made = workload(rows, tokens, length)
    step = made.step(A100)
    assert step.dataset_rows == pytest.approx(rows, rel=0.2501)
    assert step.rows >= 1
    assert step.packing or step.rows == rows
    assert all(step.rows % size == 0 for size in made.batches(step))
    assert not made.step(T4).packing
    assert not made.step(None).packing


@given(rows, tokens, lengths)
def test_packing_takes_fewer_and_longer_rows_for_the_same_tokens(rows: int, tokens: float, length: int) -> None:
    made = workload(rows, tokens, length)
    step = made.step(A100)
    if step.packing:
        assert step.rows < rows
        assert step.row_tokens <= length
        assert step.rows * step.row_tokens == pytest.approx(rows * made.row_tokens, rel=0.2501)


@given(rows, st.integers(1, 64), tokens)
def test_a_batch_asked_for_with_packing_is_kept(rows: int, batch: int, tokens: float) -> None:
    made = workload(rows, tokens, batch=batch, packing=True)
    made.check()
    step = made.step(A100)
    assert step.packing
    assert made.batches(step) == [batch]
    assert step.rows % batch == 0


@given(st.integers(1, 10_000), st.integers(1, 500))
def test_epochs_are_the_steps_that_hold_all_rows(rows_in_all: int, rows: int) -> None:
    made = workload(rows, steps=None, rows_in_all=rows_in_all, packing=False)
    assert (made.work(made.step(A100)).steps - 1) * rows < rows_in_all <= made.work(made.step(A100)).steps * rows


def test_evaluations_are_before_after_and_in_between() -> None:
    assert workload().work(workload().step(A100)).evaluations == 2
    made = workload(eval_steps=25)
    assert made.work(made.step(A100)).evaluations == 6


def test_a_batch_that_does_not_divide_the_rows_is_refused() -> None:
    with pytest.raises(RequestError, match="--batch-size 3 does not divide"):
        workload(batch=3).check()
    with pytest.raises(RequestError, match="--gradient-accumulation 5 does not divide"):
        workload(accumulation=5).check()
    workload(batch=4, accumulation=4).check()
