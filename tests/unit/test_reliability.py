"""The table of promises, docs/reliability.md's, names tests that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")


@cache
def found_in(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_every_promise_has_a_test() -> None:
    _, _, table = PAGE.partition("| promise | held by |\n")
    rows = table.partition("\n\n")[0].splitlines()[1:]
    assert len(rows) >= 15
    assert all("`tests/" in row for row in rows)


def test_the_tests_that_hold_them_exist() -> None:
    named = set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE))
    assert len(named) > 30
    missing = {(path, name) for path, name in named if not (ROOT / path).is_file() or name not in found_in(path)}
    assert not missing
