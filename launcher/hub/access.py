"""Whether a token may do what a run needs, by what the Hub says of it (`/api/whoami-v2`)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from launcher.errors import RefusedError
from launcher.hub.client import Hub
from launcher.spec import require_apart

_TOKENS = "https://huggingface.co/settings/tokens"


def require_write(me: dict[str, Any]) -> None:
    """Raise `RefusedError` for a token that can only read: it can start no Job and push nothing."""
    if _token(me).get("role") == "read":
        raise RefusedError(
            f"your token can only read: with it {me.get('name')} can start no Job and push no model.",
            f"Make one of role 'write' at {_TOKENS}, and `hf auth login` with it (HF_TOKEN wins over a login).",
        )


def require_jobs(me: dict[str, Any], namespace: str | None) -> None:
    """Raise `RefusedError` where it is certain that the token can't start a Job in the namespace."""
    owner = namespace or str(me.get("name"))
    _require_member(me, owner, "--namespace")
    permissions = _permissions(me, owner)
    if permissions is not None and "job.write" not in permissions:
        raise RefusedError(
            f"your fine-grained token may not start Jobs as {owner}.",
            f"At {_TOKENS} tick 'Start and manage Jobs' for {owner}, or use a token of role 'write'.",
        )


def require_push(me: dict[str, Any], repo: str, option: str = "--output-repo") -> None:
    """Raise `RefusedError` where it is certain that the token can't write to that model repo."""
    owner = repo.split("/")[0] if "/" in repo else str(me.get("name"))
    _require_member(me, owner, option)
    permissions = _permissions(me, owner, repo)
    if permissions is not None and "repo.write" not in permissions:
        raise RefusedError(
            f"your fine-grained token may not write to {repo}.",
            f"At {_TOKENS} tick 'Write access to contents of all repos' for {owner}, or use a token of role 'write'.",
        )


def require_places(hub: Hub, output_repo: str | None, merged_repo: str | None, adapter: str | None = None) -> None:
    """Raise where the token can't write to the repos that a run pushes to, or two of them are one.

    The account is asked for only where something is pushed.
    """
    for option, repo in (("--output-repo", output_repo), ("--merged-repo", merged_repo)):
        if repo:
            require_write(hub.account)
            require_push(hub.account, repo, option)
    if merged_repo:
        places = (merged_repo, output_repo, adapter)
        require_apart(*(name if not name or "/" in name else f"{hub.user}/{name}" for name in places))


def expiring(me: dict[str, Any], timeout_s: int) -> tuple[str, ...]:
    """What to say of a token that ends before a Job of that timeout has to: an OAuth login's does."""
    ends = (me.get("auth") or {}).get("expiresAt") or _token(me).get("expiresAt")
    try:
        until = datetime.fromisoformat(str(ends)).astimezone(UTC)
    except (ValueError, OverflowError):
        return ()
    killed = datetime.now(UTC) + timedelta(seconds=timeout_s)
    if until > killed:
        return ()
    return (
        f"your login ends on {until:%d %B, %H:%M} UTC and the Job may run until {killed:%H:%M}: then it can push "
        f"nothing. A token from {_TOKENS} lasts",
    )


def _require_member(me: dict[str, Any], owner: str, option: str) -> None:
    orgs = {str(org.get("name")): str(org.get("roleInOrg") or "") for org in me.get("orgs") or []}
    if owner == me.get("name") or (owner in orgs and orgs[owner] != "read"):
        return
    writable = [str(me.get("name")), *(name for name, role in orgs.items() if role != "read")]
    why = "you can only read there" if owner in orgs else "you are not a member of it"
    raise RefusedError(
        f"{option}: {me.get('name')} can't write to '{owner}': {why}.", f"You can write to {', '.join(writable)}."
    )


def _permissions(me: dict[str, Any], owner: str, repo: str | None = None) -> set[str] | None:
    """What a fine-grained token may do to an owner's things or to one repo; none for any other token."""
    token = _token(me)
    scopes = (token.get("fineGrained") or {}).get("scoped")
    if token.get("role") != "fineGrained" or scopes is None:
        return None
    wanted = {owner, repo}
    return {
        str(permission)
        for scope in scopes
        if (scope.get("entity") or {}).get("name") in wanted
        for permission in scope.get("permissions") or []
    }


def _token(me: dict[str, Any]) -> dict[str, Any]:
    return (me.get("auth") or {}).get("accessToken") or {}
