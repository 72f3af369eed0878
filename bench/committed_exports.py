"""Render `job_scripts/export.py` and `export_vlm.py`: an export of no adapter in particular, which a flag names.

    uv run python bench/committed_exports.py        # from the repository's root

`launch render` renders trainings; what `launch export --dry-run` shows is of one adapter.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path

from launcher import catalog
from launcher.plan import export
from launcher.plan.adapter import Adapter
from launcher.render import render
from launcher.spec import ExportSpec

FOLDER = Path(__file__).parent.parent / "job_scripts"
MODELS = {"export.py": "unsloth/Qwen3-8B", "export_vlm.py": "unsloth/Qwen3-VL-8B-Instruct"}


def text_of(name: str) -> str:
    """The committed script of that name."""
    tables = catalog.load()
    modality = "vision" if name == "export_vlm.py" else "text"
    adapter = Adapter("USER/MODEL", None, MODELS[name], None, rank=16, alpha=16, modality=modality)
    asked = ExportSpec(source="USER/MODEL", merge="16bit", flavor="a10g-large", timeout="2h")
    plan = export.make_plan(asked, adapter, tables, today=date(2026, 11, 24))
    nothing = {"adapter": None, "output_repo": None, "merge": None, "run_name": name.removesuffix(".py")}
    return render(plan.model_copy(update=nothing), tables.stack)


def main() -> None:
    for name in MODELS:
        (FOLDER / name).write_text(text_of(name), encoding="utf-8")


if __name__ == "__main__":
    main()
