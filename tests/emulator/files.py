"""The files of repos: how they come in (preupload, LFS, commit) and how they go out (resolve)."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from tests.emulator.http import HubError, Request, Response, download, reply
from tests.emulator.repos import find_commit, find_repo
from tests.emulator.state import State, StoredFile, is_large


def preupload(state: State, request: Request) -> Response:
    """Says for each file whether it goes into git or beside it, and what is there now."""
    repo = find_repo(state, request, write=True)
    present = find_commit(repo, request.params["revision"]).files

    def mode(item: dict[str, Any]) -> dict[str, Any]:
        path = item["path"]
        large = is_large(path, item["size"], base64.b64decode(item.get("sample", "")))
        old = present.get(path)
        oid = None if old is None else old.sha256 if old.large else old.blob_id
        return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}

    return reply({"files": [mode(item) for item in request.form()["files"]]})


def lfs_batch(state: State, request: Request) -> Response:
    """Where to put each large file; nothing to do for one that is here already."""
    find_repo(state, request, write=True)

    def plan(item: dict[str, Any]) -> dict[str, Any]:
        known = item["oid"] in state.cas.files
        actions = {} if known else {"actions": {"upload": {"href": f"{state.url}/lfs-objects/{item['oid']}"}}}
        return {"oid": item["oid"], "size": item["size"], **actions}

    return reply({"transfer": "basic", "objects": [plan(item) for item in request.form()["objects"]]})


def lfs_put(state: State, request: Request) -> Response:
    """Takes a large file. It needs no token, as the signed URLs of the real store."""
    oid = request.params["hash"]
    if hashlib.sha256(request.body).hexdigest() != oid:
        raise HubError(400, f"the content does not have the SHA-256 {oid}")
    state.cas.files[oid] = request.body
    return reply({})


def commit(state: State, request: Request) -> Response:
    """Applies a commit whole or not at all; with `create_pr`, on a branch of its own."""
    repo = find_repo(state, request, write=True)
    base = find_commit(repo, request.params["revision"])
    ref = repo.find_ref(request.params["revision"])
    if ref is None or ref.startswith("refs/tags/"):
        raise HubError(400, f"{request.params['revision']} is not a branch")
    pull_request = None
    if request.flag("create_pr"):
        number = 1 + sum(name.startswith("refs/pr/") for name in repo.refs)
        ref, pull_request = f"refs/pr/{number}", f"{state.url}/{State.key(repo.kind, repo.id)}/discussions/{number}"
        repo.refs[ref] = base.oid
    header, files = {}, dict(base.files)
    for line in request.lines():
        key, value = line["key"], line["value"]
        if key == "header":
            header = value
        elif key in ("file", "lfsFile"):
            files[value["path"]] = _torn(state, value["path"], _added(state, key, value))
        elif key in ("deletedFile", "deletedFolder"):
            _delete(files, value["path"], folder=key == "deletedFolder")
        else:
            raise HubError(400, f"unknown operation {key!r}")
    if header.get("parentCommit", base.oid) != base.oid:
        raise HubError(412, "A commit has happened since. Please refresh and try again.")
    made = repo.commit(files, header.get("summary", ""), ref)
    page = f"{state.url}/{State.key(repo.kind, repo.id)}/commit/{made.oid}"
    return reply({"success": True, "commitOid": made.oid, "commitUrl": page, "pullRequestUrl": pull_request})


def resolve(state: State, request: Request) -> Response:
    """A file's bytes, with the headers that the client's cache is made of."""
    repo = find_repo(state, request, content=True)
    found = find_commit(repo, request.params["revision"])
    file = found.files.get(request.params["path"])
    if file is None:
        missing = HubError(404, "Entry not found", "EntryNotFound").response()
        # With the commit, the client also remembers that the file is not there.
        missing.headers["X-Repo-Commit"] = found.oid
        return missing
    headers = {"X-Repo-Commit": found.oid, "ETag": f'"{file.sha256 if file.large else file.blob_id}"'}
    if file.large:
        headers |= {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(len(file.data))}
        if name := state.cas.hashes.get(file.sha256):
            route = f"{state.url}/api/{repo.kind}/{repo.id}/xet-read-token/{found.oid}"
            headers |= {"X-Xet-Hash": name, "X-Xet-Refresh-Route": route}
    return download(file.data, request, headers)


def _added(state: State, key: str, value: dict[str, Any]) -> StoredFile:
    if key == "file":
        return StoredFile(base64.b64decode(value["content"]))
    data = state.cas.content(value["oid"])
    if data is None:
        raise HubError(400, f"{value['path']}: the LFS object {value['oid']} was not uploaded")
    return StoredFile(data, large=True)


def _torn(state: State, path: str, file: StoredFile) -> StoredFile:
    """The file, or half of it where `hub.tear_next` said so."""
    if not state.torn.get(path):
        return file
    state.torn[path] -= 1
    return StoredFile(file.data[: len(file.data) // 2], file.large)


def _delete(files: dict[str, StoredFile], path: str, *, folder: bool) -> None:
    gone = [name for name in files if name == path or (folder and name.startswith(path.rstrip("/") + "/"))]
    if not gone:
        raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
    for name in gone:
        del files[name]
