"""Every route of the stand-in, in one table."""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import unquote

from tests.emulator import accounts, buckets, files, jobs, repos, viewer, xet
from tests.emulator.http import Request, Response
from tests.emulator.state import State

Handler = Callable[[State, Request], Response]

# What a `{name}` of a template matches in the encoded path; all others match one segment.
PATTERNS = {
    "kind": "models|datasets|spaces",
    "prefix": "(?:(?:datasets|spaces)/)?",
    "repo": "[^/]+/[^/]+",
    "path": ".+",
    "scope": "read|write",
}

ROUTES: dict[str, Handler] = {
    "GET /api/whoami-v2": accounts.whoami,
    "GET /api/agent-harnesses": accounts.harnesses,
    # Jobs
    "GET /api/jobs/hardware": jobs.hardware,
    "POST /api/jobs/{namespace}": jobs.submit,
    "GET /api/jobs/{namespace}": jobs.index,
    "GET /api/jobs/{namespace}/{id}": jobs.inspect,
    "GET /api/jobs/{namespace}/{id}/logs": jobs.logs,
    "GET /api/jobs/{namespace}/{id}/metrics": jobs.metrics,
    "POST /api/jobs/{namespace}/{id}/cancel": jobs.cancel,
    "POST /api/jobs/{namespace}/{id}/duplicate": jobs.duplicate,
    "PUT /api/jobs/{namespace}/{id}/labels": jobs.relabel,
    # Buckets
    "GET /api/buckets/{namespace}": buckets.index,
    "POST /api/buckets/{namespace}/{name}": buckets.create,
    "GET /api/buckets/{namespace}/{name}": buckets.info,
    "DELETE /api/buckets/{namespace}/{name}": buckets.delete,
    "PUT /api/buckets/{namespace}/{name}/settings": buckets.settings,
    "POST /api/buckets/{namespace}/{name}/batch": buckets.batch,
    "POST /api/buckets/{namespace}/{name}/paths-info": buckets.paths_info,
    "GET /api/buckets/{namespace}/{name}/tree": buckets.tree,
    "GET /api/buckets/{namespace}/{name}/tree/{path}": buckets.tree,
    "GET /api/buckets/{namespace}/{name}/xet-{scope}-token": buckets.token,
    "GET /buckets/{namespace}/{name}/resolve/{path}": buckets.resolve,
    # Repos
    "POST /api/repos/create": repos.create,
    "DELETE /api/repos/delete": repos.delete,
    "POST /api/validate-yaml": repos.validate_yaml,
    "GET /api/{kind}/{repo}": repos.info,
    "GET /api/{kind}/{repo}/revision/{revision}": repos.info,
    "GET /api/{kind}/{repo}/auth-check": repos.auth_check,
    "GET /api/{kind}/{repo}/auth-check/write": repos.auth_check,
    "GET /api/{kind}/{repo}/tree/{revision}": repos.tree,
    "GET /api/{kind}/{repo}/tree/{revision}/{path}": repos.tree,
    "POST /api/{kind}/{repo}/paths-info/{revision}": repos.paths_info,
    "GET /api/{kind}/{repo}/refs": repos.refs,
    "GET /api/{kind}/{repo}/commits/{revision}": repos.commits,
    "GET /api/{kind}/{repo}/discussions": repos.discussions,
    "POST /api/{kind}/{repo}/branch/{name}": repos.create_ref,
    "POST /api/{kind}/{repo}/tag/{name}": repos.create_ref,
    "PUT /api/{kind}/{repo}/settings": repos.settings,
    # Their files
    "POST /api/{kind}/{repo}/preupload/{revision}": files.preupload,
    "POST /api/{kind}/{repo}/commit/{revision}": files.commit,
    "GET /api/{kind}/{repo}/xet-{scope}-token/{revision}": xet.repo_token,
    "POST /{prefix}{repo}.git/info/lfs/objects/batch": files.lfs_batch,
    "PUT /lfs-objects/{hash}": files.lfs_put,
    "GET /{prefix}{repo}/resolve/{revision}/{path}": files.resolve,
    # The dataset viewer, which has an address of its own at the real Hub
    "GET /size": viewer.size,
    "GET /rows": viewer.rows,
    # The content store
    "GET /cas/{store}/v1/chunks/{prefix_}/{hash}": xet.unsupported,
    "POST /cas/{store}/v1/xorb-grants/{prefix_}/{hash}": xet.unsupported,
    "POST /cas/{store}/v1/xorbs/{prefix_}/{hash}": xet.add_xorb,
    "POST /cas/{store}/v2/shards": xet.unsupported,
    "POST /cas/{store}/v1/shards": xet.add_shard,
    "POST /v1/telemetry": xet.ignore,
    "GET /api/telemetry/{path}": xet.ignore,
    "GET /cas/{store}/v1/reconstructions/{hash}": xet.reconstruct,
    "GET /cas/{store}/v2/reconstructions/{hash}": xet.reconstruct,
    "GET /cas/{store}/data/{hash}/{piece}": xet.piece,
}


def find(method: str, path: str) -> tuple[str, Handler, dict[str, str]] | None:
    """The template, the handler and the decoded parameters for a request; HEAD is answered as GET is."""
    wanted = "GET" if method == "HEAD" else method
    for template, pattern, handler in _COMPILED:
        if match := pattern.fullmatch(f"{wanted} {path}"):
            params = {name: unquote(value or "") for name, value in match.groupdict().items()}
            if "prefix" in params:
                params["kind"] = params["prefix"].rstrip("/") or "models"
            return template, handler, params
    return None


def _compile(template: str) -> re.Pattern[str]:
    parts = re.split(r"{(\w+)}", template)
    parts[0::2] = [re.escape(text) for text in parts[0::2]]
    parts[1::2] = [f"(?P<{name}>{PATTERNS.get(name, '[^/]+')})" for name in parts[1::2]]
    return re.compile("".join(parts))


_COMPILED = [(template, _compile(template), handler) for template, handler in ROUTES.items()]
