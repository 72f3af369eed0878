"""What the tests of faults share: rows to train on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.emulator import Hub
from tests.faults.trainings import write_rows


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that only records Jobs: the test plays the machine."""
    with Hub(tmp_path / "hub", run=False) as hub:
        for name, value in hub.env().items():
            monkeypatch.setenv(name, value)
        yield hub


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty chats to train on."""
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", 30)
