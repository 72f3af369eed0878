"""The tables of promises, README.md's and docs/reliability.md's, name tests that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/reliability.md")}
NAMED = sorted({found for page in PAGES.values() for found in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page)})


@cache
def found_in(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@pytest.mark.parametrize(("page", "least"), [("README.md", 8), ("docs/reliability.md", 15)])
def test_every_promise_has_a_test(page: str, least: int) -> None:
    _, _, table = PAGES[page].partition("| promise | held by |\n")
    rows = table.partition("\n\n")[0].splitlines()[1:]
    assert len(rows) >= least
    assert all("`tests/" in row for row in rows)


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_the_test_that_holds_it_exists(path: str, name: str) -> None:
    assert name, f"{path}: name the test"
    assert name in found_in(path)
