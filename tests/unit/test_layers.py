"""The direction of imports: a folder imports only folders below it, and inside one there is no circle of modules.

Imports inside functions count: they save start-up time, and hide no arrow that points up.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import launcher

PACKAGE = Path(launcher.__file__).parent
PARTS = PACKAGE.parent / "templates" / "parts"
# From the ground up; modules beside the folders have floors of their own.
FLOORS = (
    "text", "errors", "spec", "bundle", "home", "catalog", "estimate", "plan", "render", "hub", "look", "jobs", "demo",
    "runs", "dashboard", "view", "api", "cli",
)  # fmt: skip
# Who imports others of the launcher inside functions, and what that saves.
LATE = {
    "api": "`import launcher` loads nothing that a function of it does not need",
    "cli": "each command loads what it uses: `launch --help` takes a tenth of a second and not a whole one",
}
# `launcher` itself offers the functions of its `api`: whoever imports `launcher` for its version does not build on it.
FACE = "launcher"


def modules() -> dict[str, Path]:
    """Every module of the launcher by its dotted name; what runs in another interpreter is none of it."""
    apart = {PACKAGE / "dashboard" / "server.py"}
    paths = [
        path for path in PACKAGE.rglob("*.py") if "data" not in path.relative_to(PACKAGE).parts and path not in apart
    ]
    return {_name(path): path for path in paths}


def _name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


@cache
def imported(name: str) -> frozenset[str]:
    """The modules of the launcher that a module imports, anywhere in it."""
    known, found = modules(), set()
    for node in ast.walk(ast.parse(known[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == FACE:
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {item if item in known else node.module for item in whole}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == FACE}
    return frozenset(found - {FACE, name})


def floor(name: str) -> str:
    return name.split(".")[1]


def test_a_folder_imports_only_folders_below_it() -> None:
    rank = {name: row for row, name in enumerate(FLOORS)}
    names = modules().keys() - {FACE}
    assert {floor(name) for name in names} == set(FLOORS)
    upward = [
        f"{name} imports {other}"
        for name in sorted(names)
        for other in sorted(imported(name))
        if floor(other) != floor(name) and rank[floor(other)] > rank[floor(name)]
    ]
    assert not upward


def test_inside_a_folder_there_is_no_circle() -> None:
    # Raises `CycleError`, which names the modules, where there is one.
    order = list(TopologicalSorter({name: imported(name) for name in modules() if name != FACE}).static_order())
    assert len(order) > 50


def test_late_imports_are_those_that_save_start_up_time() -> None:
    late = set()
    for name, path in modules().items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        inside = (node for function in functions for node in ast.walk(function) if isinstance(node, ast.ImportFrom))
        if any((node.module or "").split(".")[0] == FACE for node in inside):
            late.add(name.removeprefix(f"{FACE}."))
    assert {name if name in LATE else name.split(".")[0] for name in late} == set(LATE)


def test_parts_import_nothing_of_the_launcher() -> None:
    assert len(list(PARTS.glob("*.py"))) > 10
    for path in PARTS.glob("*.py"):
        assert FACE not in {name.split(".")[0] for name in _all_imports(path)}, path.name


def test_only_hub_and_jobs_import_the_client() -> None:
    users = {floor(name) for name, path in modules().items() if "huggingface_hub" in _packages(path)}
    assert users == {"hub", "jobs"}


def test_only_the_command_line_prints_or_exits() -> None:
    # The supervisor's and the recipes' processes are their own: what they print is a run's log.
    for name, path in modules().items():
        calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
        if floor(f"{name}.") != "cli":
            assert not calls & {"print", "sys.exit", "exit", "sys.stdout.write"} or name == "launcher.jobs.supervise"


def _packages(path: Path) -> set[str]:
    return {name.split(".")[0] for name in _all_imports(path)}


def _all_imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_the_command_line_loads_neither_torch_nor_the_hub_client() -> None:
    heavy = ("torch", "huggingface_hub", "jinja2", "rich", "pyarrow", "tokenizers", "PIL")
    code = f"import sys, launcher.cli.app; print([name for name in {heavy} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
