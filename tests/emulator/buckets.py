"""Buckets: folders whose files come and go through xet, and which Jobs mount."""

from __future__ import annotations

import hashlib
import os
import shutil
from typing import Any

from tests.emulator import xet
from tests.emulator.accounts import demand, demand_member, object_id, signed_in
from tests.emulator.http import HubError, Request, Response, download, reply
from tests.emulator.state import Bucket, State, stamp


def find_bucket(state: State, request: Request, *, write: bool = False) -> Bucket:
    """The bucket of the route, which the user may read, or write to; as the Hub refuses otherwise."""
    namespace, name = _namespace(request), request.params["name"]
    bucket = state.buckets.get(f"{namespace}/{name}")
    if bucket is None or (bucket.private and not (request.user and request.user.owns(namespace))):
        status, message = (404, "Repository not found") if request.user else (401, "Invalid username or password.")
        raise HubError(status, message, "RepoNotFound")
    if write:
        demand(request, namespace, "repo.write")
    return bucket


def create(state: State, request: Request) -> Response:
    namespace, name = _namespace(request), request.params["name"]
    demand(request, namespace, "repo.write")
    key = f"{namespace}/{name}"
    url = f"{state.url}/buckets/{key}"
    if key in state.buckets:
        return reply({"error": "You already created this bucket", "url": url}, 409)
    folder = state.root / "buckets" / namespace / name
    folder.mkdir(parents=True, exist_ok=True)
    state.buckets[key] = Bucket(key, folder, request.form().get("visibility", "private") == "private")
    return reply({"url": url, "name": key, "id": object_id(key)})


def delete(state: State, request: Request) -> Response:
    bucket = find_bucket(state, request, write=True)
    del state.buckets[bucket.id]
    shutil.rmtree(bucket.folder)
    return reply({})


def info(state: State, request: Request) -> Response:
    return reply(_info(find_bucket(state, request)))


def settings(state: State, request: Request) -> Response:
    bucket = find_bucket(state, request, write=True)
    bucket.private = request.form().get("visibility", "private") == "private"
    return reply(_info(bucket))


def index(state: State, request: Request) -> Response:
    namespace = _namespace(request)
    demand_member(request, namespace)
    found = [b for b in state.buckets.values() if b.id.startswith(f"{namespace}/") and request.one("search") in b.id]
    return reply([_info(bucket) for bucket in found])


def token(state: State, request: Request) -> Response:
    find_bucket(state, request, write=request.params["scope"] == "write")
    return xet.grant(state, request)


def batch(state: State, request: Request) -> Response:
    """Adds, copies and deletes files, each on its own; says which failed."""
    bucket = find_bucket(state, request, write=True)
    operations = request.lines()
    failed = []
    for operation in operations:
        try:
            _apply(state, bucket, operation)
        except (OSError, KeyError, ValueError) as error:
            failed.append({"path": operation.get("path", ""), "error": str(error)})
    done = len(operations) - len(failed)
    status = 422 if failed and not done else 200
    count = {"processed": len(operations), "succeeded": done}
    return reply({"success": not failed, "failed": failed, **count}, status)


def tree(state: State, request: Request) -> Response:
    """The files below a prefix, and the folders where it is not recursive."""
    bucket = find_bucket(state, request)
    prefix = request.params.get("path", "").strip("/")
    prefix += "/" if prefix else ""
    entries: dict[str, dict[str, Any]] = {}
    for path in bucket.paths():
        if not path.startswith(prefix):
            continue
        head, slash, _ = path[len(prefix) :].partition("/")
        if slash and not request.flag("recursive"):
            entries[prefix + head] = {"type": "directory", "path": prefix + head}
        else:
            entries[path] = _entry(state, bucket, path)
    return reply(list(entries.values()))


def paths_info(state: State, request: Request) -> Response:
    bucket = find_bucket(state, request)
    present = set(bucket.paths())
    return reply([_entry(state, bucket, path) for path in request.form().get("paths", []) if path in present])


def resolve(state: State, request: Request) -> Response:
    bucket, path = find_bucket(state, request), request.params["path"]
    if path not in bucket.paths():
        raise HubError(404, "Entry not found", "EntryNotFound")
    name = _hash(state, bucket, path)
    route = f"{state.url}/api/buckets/{bucket.id}/xet-read-token"
    headers = {"ETag": f'"{name}"', "X-Xet-Hash": name, "X-Xet-Refresh-Route": route}
    return download((bucket.folder / path).read_bytes(), request, headers)


def _namespace(request: Request) -> str:
    """The namespace of the route, in which `me` is the user."""
    name = request.params["namespace"]
    return signed_in(request).name if name == "me" else name


def _apply(state: State, bucket: Bucket, operation: dict[str, Any]) -> None:
    path = bucket.folder / operation["path"]
    if not path.resolve().is_relative_to(bucket.folder.resolve()):
        raise ValueError("a path outside the bucket")
    if operation["type"] == "deleteFile":
        path.unlink()
        return
    data = state.cas.content(operation["xetHash"])
    if data is None:
        raise ValueError(f"nothing was uploaded under {operation['xetHash']}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    mtime = operation.get("mtime", 0) * 1_000_000
    os.utime(path, ns=(mtime, mtime))
    bucket.hashes[operation["path"]] = (path.stat().st_mtime_ns, len(data), operation["xetHash"])


def _hash(state: State, bucket: Bucket, path: str) -> str:
    """The hash under which xet serves the file: as uploaded, or our own for what a Job wrote."""
    file = bucket.folder / path
    stat = file.stat()
    mtime, size, name = bucket.hashes.get(path, (0, -1, ""))
    if (mtime, size) != (stat.st_mtime_ns, stat.st_size):
        name = hashlib.sha256(file.read_bytes()).hexdigest()
        bucket.hashes[path] = (stat.st_mtime_ns, stat.st_size, name)
        state.cas.files[name] = file
    return name


def _entry(state: State, bucket: Bucket, path: str) -> dict[str, Any]:
    stat = (bucket.folder / path).stat()
    time = stamp(stat.st_mtime)
    entry = {"type": "file", "path": path, "size": stat.st_size, "xetHash": _hash(state, bucket, path)}
    return {**entry, "mtime": time, "uploadedAt": time}


def _info(bucket: Bucket) -> dict[str, Any]:
    sizes = [(bucket.folder / path).stat().st_size for path in bucket.paths()]
    facts = {"id": bucket.id, "private": bucket.private, "createdAt": bucket.created_at}
    return {**facts, "size": sum(sizes), "totalFiles": len(sizes)}
