"""What the estimates list by name is what the options take."""

from __future__ import annotations

from typing import get_args

from launcher.estimate import copies, dataset
from launcher.spec import DATA_SUFFIXES, Gguf


def test_every_type_of_a_gguf_file_has_its_size() -> None:
    assert set(copies.GGUF_BITS) == set(get_args(Gguf))
    assert set(copies.CONVERTED) < set(get_args(Gguf))


def test_every_kind_of_data_file_has_its_reader() -> None:
    assert set(dataset._READERS) == set(DATA_SUFFIXES)
