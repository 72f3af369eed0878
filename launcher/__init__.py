"""Fine-tune a language or vision-language model on Hugging Face Jobs: one command, or four functions.

`plan` decides everything, `render` gives the script, `submit` starts it, `follow` says what becomes of it. What they
take, return and raise is exported too, and loaded when it is first used.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

from launcher.api import follow, plan, render, submit


class _Face(ModuleType):
    """A folder and a module are called as two of the functions are, and Python would bind them here once they are
    loaded: `launcher.plan` stays the function, and `from launcher.plan import make` finds the folder.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in ("plan", "render") and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face

if TYPE_CHECKING:
    from launcher.errors import (
        InterruptedSubmissionError,
        LauncherError,
        RefusedError,
        RequestError,
        ServiceError,
    )
    from launcher.jobs.base import Backend, Job
    from launcher.jobs.events import (
        Checkpoint,
        Evaluation,
        Event,
        Failure,
        Phase,
        Result,
        Resumed,
        SmallerBatch,
        Step,
        Stopping,
    )
    from launcher.plan.record import Plan
    from launcher.runs.outcome import Outcome
    from launcher.spec import RunSpec

_FROM = {
    "launcher.errors": (
        "InterruptedSubmissionError", "LauncherError", "RefusedError", "RequestError", "ServiceError",
    ),
    "launcher.jobs.base": ("Backend", "Job"),
    "launcher.jobs.events": (
        "Checkpoint", "Evaluation", "Event", "Failure", "Phase", "Result", "Resumed", "SmallerBatch", "Step",
        "Stopping",
    ),
    "launcher.plan.record": ("Plan",),
    "launcher.runs.outcome": ("Outcome",),
    "launcher.spec": ("RunSpec",),
}  # fmt: skip
_MODULES = {name: module for module, names in _FROM.items() for name in names}

__all__ = [
    "Backend",
    "Checkpoint",
    "Evaluation",
    "Event",
    "Failure",
    "InterruptedSubmissionError",
    "Job",
    "LauncherError",
    "Outcome",
    "Phase",
    "Plan",
    "RefusedError",
    "RequestError",
    "Result",
    "Resumed",
    "RunSpec",
    "ServiceError",
    "SmallerBatch",
    "Step",
    "Stopping",
    "__version__",
    "follow",
    "plan",
    "render",
    "submit",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'launcher' has no attribute {name!r}")
