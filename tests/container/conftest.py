"""The two images, built once from a copy of the checkout with secrets lying about in it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.container import buildah
from tests.container.buildah import Store
from tests.container.sandbox import Container

SECRET = "hf_" + "SeCrEt" * 6
"""In the build's environment and in files beside the sources: it must be nowhere in an image."""


@pytest.fixture(scope="session")
def store() -> Iterator[Store]:
    """A store that is thrown away, or kept in LAUNCH_CONTAINER_DIR."""
    if lacking := buildah.missing():
        pytest.fail(lacking)
    kept = os.environ.get("LAUNCH_CONTAINER_DIR")
    folder = Path(kept or tempfile.mkdtemp(prefix="launch-container-", dir="/var/tmp"))
    made = Store(folder)
    yield made
    made.close()
    if not kept:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout with files that hold a secret, where people leave them."""
    folder = buildah.checkout(tmp_path_factory.mktemp("context"))
    for name in (".env", "launcher/.env", "job_scripts/.env.local", "token", "run.toml"):
        (folder / name).write_text(f"HF_TOKEN={SECRET}\n", encoding="utf-8")
    return folder


def _built(store: Store, context: Path, target: str) -> str:
    base = store.base() if target == "launcher" else store.base_with_uv()
    return store.build(target, context, base=base, env={"HF_TOKEN": SECRET})


@pytest.fixture(scope="session")
def launcher(store: Store, context: Path) -> Container:
    """A container of the target `launcher`."""
    image = _built(store, context, "launcher")
    return Container(store.root(image), store.config(image)["config"])


@pytest.fixture(scope="session")
def job(store: Store, context: Path) -> Container:
    """A container of the target `job`."""
    image = _built(store, context, "job")
    return Container(store.root(image), store.config(image)["config"], env={"PYTHONUNBUFFERED": "1"})
