"""The files that only a container engine or GitHub reads, checked by what knows their rules."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.container.buildah import CHECKOUT

pytestmark = pytest.mark.container
WORKFLOW = CHECKOUT / ".github" / "workflows" / "ci.yml"


def check(tool: str, *arguments: str) -> None:
    command = [str(Path(sys.executable).with_name(tool)), *arguments]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dockerfile_is_clean() -> None:
    check("hadolint", "Dockerfile")


def test_the_workflow_keeps_githubs_schema() -> None:
    check("check-jsonschema", "--builtin-schema", "vendor.github-workflows", str(WORKFLOW))


def test_the_workflow_runs_what_ci_runs() -> None:
    yaml = pytest.importorskip("ruamel.yaml", exc_type=ImportError)
    jobs: dict[str, Any] = yaml.YAML(typ="safe").load(WORKFLOW)["jobs"]
    said = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    steps = [word for line in said if ".ci/run" in line for word in line.partition(".ci/run")[2].split()]
    assert {"lint", "types", "tests", "wheel"} <= set(steps)
    assert jobs["tests"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    assert jobs["long"]["strategy"]["matrix"]["step"] == ["slow", "container"]
    assert set(jobs["release"]["needs"]) == set(jobs) - {"release", "long"}
    # Only the release may write.
    assert [name for name, job in jobs.items() if "permissions" in job] == ["release"]
