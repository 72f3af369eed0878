"""What the tests of faults share: the rendered script, and the interpreter that trainings have."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from uv import find_uv_bin

from launcher import catalog
from launcher.render import render
from tests.faults.trainings import Trainings, write_rows
from tests.unit import sample


@pytest.fixture(scope="session")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script of a small plan, as the templates give it now."""
    path = tmp_path_factory.mktemp("script") / "sft_text.py"
    path.write_text(render(sample.plan(), catalog.load().stack), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def script_python() -> str:
    """The interpreter of the training stack, which the trainings of the other tests have made or will use."""
    committed = str(sample.JOB_SCRIPTS / "sft_text.py")
    sync = [find_uv_bin(), "sync", "--quiet", "--script", committed, "--python", sys.executable]
    subprocess.run(sync, check=True, timeout=900)
    find = [find_uv_bin(), "python", "find", "--script", committed]
    found = subprocess.run(find, check=True, capture_output=True, text=True)
    return found.stdout.strip()


@pytest.fixture(scope="session")
def trainings(
    script_python: str, script: Path, smollm2: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Trainings]:
    """Trainings of the real small model."""
    made = Trainings(script_python, script, smollm2, tmp_path_factory.mktemp("trainings"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty chats to train on."""
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", 30)
