"""What a token may do, by what the Hub says of it."""

from __future__ import annotations

from typing import Any

import pytest

from launcher.errors import RefusedError
from launcher.hub import access


def account(role: str, scoped: list[dict[str, Any]] | None = None, **orgs: str) -> dict[str, Any]:
    token: dict[str, Any] = {"role": role} | ({"fineGrained": {"scoped": scoped}} if scoped is not None else {})
    return {
        "name": "me",
        "orgs": [{"name": name, "roleInOrg": org_role} for name, org_role in orgs.items()],
        "auth": {"accessToken": token},
    }


def scope(name: str, *permissions: str) -> dict[str, Any]:
    return {"entity": {"name": name, "type": "user"}, "permissions": [*permissions]}


@pytest.mark.parametrize(
    ("me", "allowed"),
    [
        (account("write"), True),
        (account("read"), False),
        (account("fineGrained", [scope("me", "repo.write", "job.write")]), True),
        (account("fineGrained", [scope("me", "job.write"), scope("me/model", "repo.write")]), True),
        (account("fineGrained", [scope("me", "repo.write")]), False),
        (account("fineGrained", [scope("me", "job.write", "repo.content.read")]), False),
        (account("fineGrained", [scope("them", "repo.write", "job.write")]), False),
        (account("fineGrained"), True),
        ({"name": "me"}, True),
    ],
)
def test_a_token_is_refused_only_where_it_is_certain(me: dict[str, Any], allowed: bool) -> None:
    try:
        access.require_write(me)
        access.require_jobs(me, None)
        access.require_push(me, "me/model")
    except RefusedError as error:
        assert not allowed
        assert "huggingface.co/settings/tokens" in error.hint
    else:
        assert allowed


def test_a_namespace_needs_membership_with_write_access() -> None:
    me = account("write", ours="write", theirs="read", unsaid="")
    for repo in ("model", "me/model", "ours/model", "unsaid/model"):
        access.require_push(me, repo)
    access.require_jobs(me, "ours")
    with pytest.raises(RefusedError, match="only read") as raised:
        access.require_push(me, "theirs/model")
    assert "me, ours, unsaid" in raised.value.hint
    with pytest.raises(RefusedError, match="not a member"):
        access.require_jobs(me, "strangers")
