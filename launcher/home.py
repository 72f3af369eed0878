"""Where the launcher keeps things for its user: `LAUNCH_HOME`, else the folders of the XDG rules."""

from __future__ import annotations

import os
from pathlib import Path


def data() -> Path:
    """The folder of what is kept; it may not exist yet."""
    return _home("XDG_DATA_HOME", ".local/share")


def config() -> Path:
    """The folder of what the user has set; it may not exist."""
    return _home("XDG_CONFIG_HOME", ".config")


def cache() -> Path:
    """The folder of what can be made again; it may not exist yet."""
    return _home("XDG_CACHE_HOME", ".cache")


def _home(variable: str, usual: str) -> Path:
    if chosen := os.environ.get("LAUNCH_HOME"):
        return Path(chosen).expanduser().absolute()
    # The XDG rules: a relative path is to be ignored.
    base = Path(os.environ.get(variable) or "")
    return (base if base.is_absolute() else Path.home() / usual) / "launch"
