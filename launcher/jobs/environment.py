"""What uv finds where it runs something on this machine: no folder and no shell around it say what it installs.

A `uv.toml` or a `pyproject.toml` in any folder above, or a variable such as UV_INDEX_URL, would take the pinned
packages from another index, and what comes from there runs with the user's token.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable

from launcher import home
from launcher.errors import RefusedError, ServiceError

_HEADER = re.compile(r"# /// script\n.*?^# ///$", re.DOTALL | re.MULTILINE)

_KEPT = frozenset({
    "UV_CACHE_DIR", "UV_COMPILE_BYTECODE", "UV_CONCURRENT_DOWNLOADS", "UV_HTTP_TIMEOUT", "UV_HTTP_RETRIES",
    "UV_LINK_MODE", "UV_NATIVE_TLS", "UV_NO_CACHE", "UV_NO_PROGRESS", "UV_OFFLINE", "UV_PYTHON_DOWNLOADS",
    "UV_SYSTEM_CERTS",
})  # fmt: skip
# They would lead uv, or the Python it starts, to the launcher's own environment or to code of somebody else; or the
# script to the volume of a Job, which is another scheduler's or the one that this machine itself is.
_LEADING = frozenset({
    "VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV", "PYTHONHOME", "PYTHONPATH", "PYTHONSAFEPATH", "PYTHONSTARTUP",
    "JOB_ID", "LAUNCH_DATA_DIR", "LAUNCH_HOLDS", "LAUNCH_STARTED", "LAUNCH_ARTIFACTS",
    "__PYVENV_LAUNCHER__", "PYTHONUSERBASE", "PYTHONINSPECT", "PYTHONBREAKPOINT", "PYTHONPLATLIBDIR", "PYTHONWARNINGS",
})  # fmt: skip


def misleading(names: Iterable[str]) -> set[str]:
    """Those of the variables that uv and what it runs must not see: whatever says what is installed, and from where."""
    return {name for name in names if name in _LEADING or (name.startswith(("UV_", "PIP_")) and name not in _KEPT)}


def uv_run(*options: str) -> list[str]:
    """The beginning of a command that runs a script with this Python; `RefusedError` where there is no uv."""
    return [find_uv(), "run", "--no-config", *options, "--python", sys.executable]


def find_uv() -> str:
    """The uv that comes with the launcher, else the one on the PATH."""
    try:
        import uv

        return str(uv.find_uv_bin())
    except (ImportError, FileNotFoundError) as error:
        if found := shutil.which("uv"):
            return found
        raise RefusedError("uv, which runs the script, is not there.", "Install it: `pip install uv`.") from error


def variables() -> dict[str, str]:
    """The variables of this shell without the misleading ones."""
    hidden = misleading(os.environ)
    return {name: value for name, value in os.environ.items() if name not in hidden}


def stack_python(script: str) -> str:
    """The Python of the environment that the header of a script asks for; made, in a minute or so, where there is none.

    `uv run` makes one for each path that a script lies at: this one serves all scripts with that header. Raises
    `ServiceError` where the packages can't be had.
    """
    found = _HEADER.search(script)
    assert found is not None
    # Of a Job's machine nothing is installed.
    header = found[0].partition("#\n# [tool.hf-jobs]")[0].removesuffix("# ///").rstrip() + "\n# ///\n"
    place = home.cache() / "stacks" / f"{hashlib.sha256(header.encode()).hexdigest()[:12]}.py"
    place.parent.mkdir(parents=True, exist_ok=True)
    home.write(place, header)
    _ask_uv("sync", "--quiet", "--python", sys.executable, "--script", str(place))
    return _ask_uv("python", "find", "--script", str(place)).strip()


def _ask_uv(*words: str) -> str:
    command = [find_uv(), "--no-config", *words]
    done = subprocess.run(
        command, env=variables(), stdin=subprocess.DEVNULL, capture_output=True, text=True, encoding="utf-8",
        errors="replace", check=False,
    )  # fmt: skip
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"uv ended with {done.returncode}"
        raise ServiceError(
            f"the training stack could not be installed: {said[-500:]}", "Look at the network and the free disk."
        )
    return done.stdout
