"""What the tests of faults share: rows to train on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.trainings import write_rows


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty chats to train on."""
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", 30)
