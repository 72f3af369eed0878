"""Who asks, and what they may do."""

from __future__ import annotations

import hashlib

from tests.emulator.http import HubError, Request, Response, reply
from tests.emulator.state import State, User


def identify(state: State, authorization: str) -> User | None:
    """The user of an Authorization header, none without one; 401 for a token that nobody has."""
    token = authorization.removeprefix("Bearer ").strip()
    if not token:
        return None
    user = state.users.get(token)
    if user is None:
        raise HubError(401, "Invalid credentials in Authorization header")
    return user


def signed_in(request: Request) -> User:
    if request.user is None:
        raise HubError(401, "Invalid username or password.")
    return request.user


def demand(request: Request, namespace: str, permission: str) -> User:
    """The user, who may do this in this namespace; 401 or 403 otherwise."""
    user = signed_in(request)
    if not user.owns(namespace):
        raise HubError(403, f"You don't have the rights to act in the namespace {namespace!r}")
    if not user.may(permission):
        raise HubError(403, f"This token lacks a permission: {permission} in {namespace!r} (its role is {user.role!r})")
    return user


def demand_member(request: Request, namespace: str) -> User:
    """The user, who may look at this namespace."""
    user = signed_in(request)
    if not user.owns(namespace):
        raise HubError(403, f"You don't have access to the namespace {namespace!r}")
    return user


def whoami(state: State, request: Request) -> Response:
    user = signed_in(request)
    token: dict[str, object] = {"displayName": "emulator", "role": user.role, "createdAt": "2026-01-01T00:00:00.000Z"}
    if user.role == "fineGrained":
        scope = {"entity": {"_id": object_id(user.name), "type": "user", "name": user.name}}
        scopes = [{**scope, "permissions": sorted(user.permissions)}]
        token["fineGrained"] = {"canReadGatedRepos": True, "global": [], "scoped": scopes}
    return reply(
        {
            "type": "user",
            "id": object_id(user.name),
            "name": user.name,
            "fullname": user.name.title(),
            "email": f"{user.name}@example.com",
            "emailVerified": True,
            "canPay": True,
            "isPro": True,
            "avatarUrl": "/avatars/none.svg",
            "orgs": [
                {"type": "org", "id": object_id(org), "name": org, "fullname": org.title(), "roleInOrg": "write"}
                for org in user.orgs
            ],
            "auth": {"type": "oauth", "expiresAt": user.expires_at}
            if user.expires_at
            else {"type": "access_token", "accessToken": token},
        }
    )


def harnesses(state: State, request: Request) -> Response:
    """The coding agents that the client tells apart: none."""
    return reply({"standardEnvVars": [], "harnesses": {}})


def object_id(name: str) -> str:
    """An id of the Hub's shape, the same for the same name."""
    return hashlib.sha256(name.encode()).hexdigest()[:24]
