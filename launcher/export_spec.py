"""What may be asked of `launch export`: every option, validated once."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from launcher import spec, values
from launcher.errors import RequestError, from_validation
from launcher.spec import Gguf, RepoName
from launcher.values import Image, Place, Revision

_EXAMPLE = "Such as `launch export RUN --merge 16bit`, or `--gguf q4_k_m`; both may be given, --gguf several times."


class ExportSpec(BaseModel):
    """What may be asked of `launch export`; None was not asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Place
    revision: Revision | None = None
    merge: Literal["16bit", "4bit"] | None = None
    gguf: tuple[Gguf, ...] = ()
    merged_repo: RepoName | None = None
    output_repo: RepoName | None = None
    private: bool | None = None
    flavor: str = "auto"
    timeout: spec.Duration | None = None
    image: Image | None = None
    local: bool = False

    @field_validator("*")
    @classmethod
    def _one_line(cls, value: object) -> object:
        values.check_text(value)
        return value

    @model_validator(mode="after")
    def _options_agree(self) -> Self:
        if self.merged_repo and not self.merge:
            raise ValueError("--merged-repo says where a merged model goes: add --merge 16bit")
        spec.check_merged_repo(self.merged_repo, self.output_repo)
        if self.local and self.flavor != "auto":
            raise ValueError("--flavor is a Job's machine, and --local runs on this one: give one of them")
        return self


def build(**options: Any) -> ExportSpec:
    """The spec of a command line; `RequestError` where a value is wrong or nothing is asked for."""
    try:
        asked = ExportSpec.model_validate({name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        raise from_validation(error) from error
    if not (asked.merge or asked.gguf):
        raise RequestError(
            f"there is nothing to make of {asked.source}: neither --merge nor --gguf is given.", _EXAMPLE
        )
    return asked
