"""A rendered script as a module, so that a bench runs its own functions."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "job_scripts"


def load(name: str) -> Any:
    """`job_scripts/NAME.py`; its heavy imports come only when it runs."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Where its dataclass looks for the types of its fields.
    sys.modules[name] = module
    # Where its dataclasses look for their module.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
