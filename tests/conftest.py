"""What tests share: a home of their own for every test, two small models, and one process that trains."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings
from uv import find_uv_bin

from launcher import catalog, demo
from launcher.render import render
from tests.faults.trainings import Trainings
from tests.tiny import shrink
from tests.unit import sample

# The same examples every time; HYPOTHESIS_PROFILE=search looks for new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=60)
settings.register_profile("search", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

# What the tests start keeps its bytecode, as it does for users: else each process compiles all of the stack anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A shell lets what it starts with `&` ignore Ctrl-C, and so would all that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def launch_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs are kept in a folder of the test, never in the user's; no account of the user's is seen."""
    home = tmp_path_factory.mktemp("launch-home")
    monkeypatch.setenv("LAUNCH_HOME", str(home))
    for name in ("HF_TOKEN", "HF_ENDPOINT", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(home / "huggingface"))
    return home


# A test that trains, or needs what a training made, takes one of these.
TRAIN = {"smollm2", "tiny", "trainings"}


@pytest.hookimpl(tryfirst=True)  # before the groups are read
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever trains does so in one worker: two trainings at once would fight for the cores, and fill the memory.

    So does what builds the images, once for all of its tests.
    """
    for item in items:
        if item.get_closest_marker("container"):
            item.add_marker(pytest.mark.xdist_group("container"))
        elif TRAIN.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.xdist_group("training"))


@contextmanager
def alone(tmp_path_factory: pytest.TempPathFactory, name: str) -> Iterator[Path]:
    """A folder that all workers share, in which one of them at a time makes `name`."""
    shared = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        shared = shared.parent
    with FileLock(shared / f"{name}.lock"):
        yield shared


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as a transformers folder, converted once and cached for the user."""
    with alone(tmp_path_factory, "smollm2"):
        return demo.model_folder()


@pytest.fixture(scope="session")
def tiny(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small layers of no meaning behind SmolLM2's own tokenizer: for every training that has nothing to learn."""
    return shrink(smollm2, tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script of a small plan, as the templates give it now."""
    path = tmp_path_factory.mktemp("script") / "sft_text.py"
    path.write_text(render(sample.plan(), catalog.load().stack), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def script_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of the training stack, which all committed scripts share."""
    committed = str(sample.JOB_SCRIPTS / "sft_text.py")
    with alone(tmp_path_factory, "stack"):
        sync = [find_uv_bin(), "sync", "--quiet", "--script", committed, "--python", sys.executable]
        subprocess.run(sync, check=True, timeout=1800)
    find = [find_uv_bin(), "python", "find", "--script", committed]
    found = subprocess.run(find, check=True, capture_output=True, text=True)
    return found.stdout.strip()


@pytest.fixture(scope="session")
def trainings(
    script_python: str, script: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Trainings]:
    """The process that has the training stack imported, for trainings of the tiny model unless they name another."""
    made = Trainings(script_python, script, tiny, tmp_path_factory.mktemp("trainings"))
    yield made
    made.close()
