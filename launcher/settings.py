"""What a user has set for every run: `config.toml` in the launcher's configuration folder."""

from __future__ import annotations

import tomllib

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from launcher import home as folders
from launcher import values
from launcher.errors import RequestError
from launcher.values import Image

NAME = "config.toml"


class Settings(BaseModel):
    """The defaults of a user's own; `image` is the container image of Jobs that name none."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    image: Image | None = None

    @field_validator("*")
    @classmethod
    def _one_line(cls, value: object) -> object:
        values.check_text(value)
        return value


def load() -> Settings:
    """The settings, all at their defaults where there is no file; `RequestError` for one that can't be meant."""
    path = folders.config() / NAME
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
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
