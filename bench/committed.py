"""Render the committed scripts: each is what its plan gives, and nothing is pushed unless its user says where to.

uv run python bench/committed.py        # from the repository's root
"""

from __future__ import annotations

from datetime import date
from pathlib import Path

from launcher import catalog
from launcher.plan import make
from launcher.plan.record import Plan
from launcher.render import render, render_copies
from launcher.spec import RunSpec

FOLDER = Path(__file__).parent.parent / "job_scripts"
MODELS = {"sft_text.py": "qwen3-8b", "sft_vlm.py": "qwen3-vl-8b"}


def plan(name: str) -> Plan:
    """The plan of that training script."""
    model = MODELS[name]
    asked = RunSpec(model=model, run_name=f"{model}-sft", flavor="a10g-large", load_in="4bit", push=False)
    return make.make_plan(asked, catalog.load(), today=date(2026, 11, 24))


def text_of(name: str) -> str:
    """The committed script of that name; the one that makes copies is of no adapter in particular."""
    stack = catalog.load().stack
    if name in MODELS:
        return render(plan(name), stack)
    return render_copies(plan("sft_text.py").unchecked({"run_name": "export", "modality": None}), stack)


def main() -> None:
    for name in (*MODELS, "export.py"):
        (FOLDER / name).write_text(text_of(name), encoding="utf-8")


if __name__ == "__main__":
    main()
