"""The table of promises in docs/reliability.md names tests that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`( \(to come\))?", PAGE)


@cache
def found_in(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_every_promise_has_a_test() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith(("| promise", "| ---"))]
    assert len(rows) > 15
    assert all("`tests/" in row for row in rows)


@pytest.mark.parametrize(("path", "name"), [(path, name) for path, name, to_come in NAMED if not to_come])
def test_the_test_that_holds_it_exists(path: str, name: str) -> None:
    assert name, f"{path}: name the test"
    assert name in found_in(path)
