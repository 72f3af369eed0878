"""The table of promises, docs/reliability.md's: each names tests that exist, and is broken on purpose in the bench."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import mutants
import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")


@cache
def found_in(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_the_tests_that_hold_them_exist() -> None:
    named = set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE))
    assert len(named) > 30
    missing = {(path, name) for path, name in named if not (ROOT / path).is_file() or name not in found_in(path)}
    assert not missing


@pytest.mark.parametrize(("promise", "tests"), mutants.promises().items())
def test_each_promise_is_broken_by_a_mutant_that_its_tests_notice(promise: str, tests: set[str]) -> None:
    assert any(tests.intersection(mutant.tests) for mutant in mutants.read()), promise


@pytest.mark.parametrize("mutant", mutants.read(), ids=lambda mutant: mutant.name)
def test_a_mutant_breaks_one_place_and_is_noticed_by_tests_of_the_page(mutant: mutants.Mutant) -> None:
    assert (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.old) == 1
    assert mutant.old != mutant.new
    assert {*mutant.tests} <= set().union(*mutants.promises().values())
