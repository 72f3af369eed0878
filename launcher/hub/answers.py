"""What the Hub says of accounts and repos, held to the types that the rest counts on: the client takes any JSON."""

from __future__ import annotations

from datetime import datetime
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

Told = TypeVar("Told")


class _Entity(BaseModel):
    name: str | None = None


class _Scope(BaseModel):
    entity: _Entity | None = None
    permissions: list[str] | None = None


class _Scopes(BaseModel):
    scoped: list[_Scope] | None = None


class _Token(BaseModel):
    role: str | None = None
    fine_grained: _Scopes | None = Field(None, alias="fineGrained")


class _Auth(BaseModel):
    token: _Token | None = Field(None, alias="accessToken")


class _Org(BaseModel):
    name: str
    role: str | None = Field(None, alias="roleInOrg")


class _Account(BaseModel):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    auth: _Auth | None = None
    orgs: list[_Org] | None = None


class _File(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    rfilename: str
    size: int | None


class _Weights(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    parameters: dict[str, int]


class _Repo(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: str
    sha: str | None
    private: bool | None
    gated: bool | str | None
    last_modified: datetime | None
    siblings: list[_File] | None
    safetensors: _Weights | None = None


def account(me: dict[str, Any]) -> dict[str, Any]:
    """The answer of `/api/whoami-v2`, where it is of the form that this version knows; else `ValueError`."""
    _Account.model_validate(me)
    return me


def repo(info: Told) -> Told:
    """What is told of a model or a dataset, where it is of that form; else `ValueError`."""
    _Repo.model_validate(info)
    return info
