"""Where the launcher keeps things for its user (`LAUNCH_HOME`, else the XDG rules), and what the user has set there."""

from __future__ import annotations

import logging
import os
import secrets
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache as once
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from launcher.errors import RequestError
from launcher.spec import Image
from launcher.text import check_text

SETTINGS = "config.toml"
log = logging.getLogger("launcher.home")


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


def write(path: Path, content: str | bytes) -> Path:
    """Replace the file in one step, whole even where the machine goes down; only its owner can read it.

    Raises `OSError`, and leaves what was there, where there is no room or no right to.
    """
    data = content.encode() if isinstance(content, str) else content
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    return path


@contextmanager
def spared() -> Iterator[None]:
    """Go on where something can't be kept here, and say so once: what the service does must not depend on it."""
    try:
        yield
    except OSError as error:
        _say(f"nothing can be kept in {data()} ({error.strerror or error}): it goes on without.")


@once
def _say(text: str) -> None:
    log.warning(text)


class Settings(BaseModel):
    """The defaults of a user's own; `image` is the container image of Jobs that name none."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    image: Image | None = None

    @field_validator("*")
    @classmethod
    def _one_line(cls, value: object) -> object:
        check_text(value)
        return value


def settings() -> Settings:
    """The settings, all at their defaults where there is no file; `RequestError` for one that can't be meant."""
    path = config() / SETTINGS
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):
        return Settings()
    except OSError as error:
        raise RequestError(f"{path}: {error.strerror or error}.", "Make it readable, or remove it.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} is not TOML: {error}.", 'Such as image = "USER/launch-job:1".') from error
    try:
        return Settings.model_validate(content)
    except ValidationError as error:
        raise RequestError(f"{path}: {_found(error)}.", f"It may set {', '.join(Settings.model_fields)}.") from error


def _found(error: ValidationError) -> str:
    """What is wrong, without the values: a secret may have been put there by mistake."""
    said = []
    for item in error.errors():
        name = str(item["loc"][0]) if item["loc"] else ""
        text = item["msg"].removeprefix("Value error, ").removeprefix("Input ")
        said.append(f"there is no setting {name[:96]!r}" if item["type"] == "extra_forbidden" else f"{name} {text}")
    return "; ".join(said)
