"""What the Hub says of an account (`/api/whoami-v2`), held to the types that the rest counts on."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


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


def checked(me: dict[str, Any]) -> dict[str, Any]:
    """The same, where it is of the form that this version knows; else `ValueError`."""
    _Account.model_validate(me)
    return me
