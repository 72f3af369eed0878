"""The direction of imports: data moves one way, and the command line never loads what it does not need."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import launcher

PACKAGE = Path(launcher.__file__).parent
# From the ground up; a module may import only from rows above its own, or from its own row's package.
ROWS = (
    ("masks", "errors", "folders", "consoles"),
    ("values", "architecture", "vision", "configs", "tensors"),
    ("spec", "settings", "catalog", "hardware", "machine"),
    ("plan", "adapter"),
    ("memory", "activations", "measurements", "duration", "speed", "copies", "columnar", "dataset"),
    ("planning",),
    ("render", "runs", "record", "backends", "follow", "progress", "causes"),
    ("planner", "export", "export_spec", "request", "resume", "demo", "show", "calibrate", "outcome"),
    ("rendered", "sources", "rerun", "diff"),
    ("live", "plan_view", "diff_view", "model_view", "why", "trained", "dashboard", "dashboard_process"),
    ("options", "session", "cli"),
)


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "launcher":
            found |= {alias.name for alias in node.names if alias.name != "__version__"}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("launcher."):
            found.add(node.module.split(".")[1])
    return found


def test_imports_point_down() -> None:
    rank = {name: row for row, names in enumerate(ROWS) for name in names}
    modules = [path for path in PACKAGE.rglob("*.py") if "data" not in path.parts and path != PACKAGE / "__init__.py"]
    assert len(modules) > 12
    for path in modules:
        own = path.relative_to(PACKAGE).with_suffix("").parts[0]
        for name in _imports(path):
            assert rank[name] <= rank[own], f"{own} imports {name}"
            assert name != "cli"


def test_only_the_hub_backend_imports_the_client() -> None:
    for path in PACKAGE.rglob("*.py"):
        if "huggingface_hub" in {name.split(".")[0] for name in _all_imports(path)}:
            assert path.parent.name == "backends"
            assert "hub" in path.name


def _all_imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_the_command_line_loads_neither_torch_nor_the_hub_client() -> None:
    heavy = ("torch", "huggingface_hub", "jinja2", "rich")
    code = f"import sys, launcher.cli.app; print([name for name in {heavy} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
