"""What Dockerfile repeats is what it repeats it from."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from launcher import catalog

CHECKOUT = Path(__file__).parents[2]
DOCKERFILE = (CHECKOUT / "Dockerfile").read_text(encoding="utf-8")
ARGUMENTS = dict(re.findall(r"^ARG (\w+)=(\S+)$", DOCKERFILE, re.MULTILINE))


def test_the_jobs_base_is_jobs_default_image() -> None:
    assert ARGUMENTS["JOB_BASE"] == catalog.shipped().stack.image


def test_uv_is_the_locks() -> None:
    lock = tomllib.loads((CHECKOUT / "uv.lock").read_text(encoding="utf-8"))
    assert ARGUMENTS["UV_VERSION"] in [package["version"] for package in lock["package"] if package["name"] == "uv"]


def test_only_what_is_built_from_reaches_the_build() -> None:
    ignored = (CHECKOUT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    let_in = {line[1:] for line in ignored if line.startswith("!")}
    copied = {word for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
              for word in line.split()}  # fmt: skip
    assert "*" in ignored
    assert let_in == copied
    assert all((CHECKOUT / name).exists() for name in let_in)


@pytest.mark.parametrize(
    ("step", "code"), [("nonsense", 2), ("lint;types", 2)]
)  # the steps themselves are what runs this test
def test_ci_knows_its_steps(tmp_path: Path, step: str, code: int) -> None:
    (tmp_path / ".ci").mkdir()
    script = (CHECKOUT / ".ci" / "run").read_text(encoding="utf-8")
    without_setup = re.sub(r"^(python3 -m venv|\.venv/bin/python -m pip) .*$", "", script, flags=re.MULTILINE)
    assert without_setup.count("\n") == script.count("\n")
    (tmp_path / ".ci" / "run").write_text(without_setup, encoding="utf-8")
    done = subprocess.run(["bash", tmp_path / ".ci" / "run", step], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert step in done.stderr
