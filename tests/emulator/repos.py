"""Repos: what there is, who may see it, and what it holds."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

from tests.emulator import cards
from tests.emulator.accounts import demand, object_id, signed_in
from tests.emulator.http import HubError, Moved, Request, Response, reply
from tests.emulator.state import Commit, Repo, State, StoredFile

TYPES = {"model": "models", "dataset": "datasets", "space": "spaces"}
GITATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


def find_repo(state: State, request: Request, *, write: bool = False, content: bool = False) -> Repo:
    """The repo of the route, if the user may see it, write to it, or read its files; refused as the Hub does."""
    kind, name, user = request.params["kind"], request.params["repo"], request.user
    repo = state.repos.get(State.key(kind, name))
    if repo is None and (new := state.renamed.get(State.key(kind, name))):
        query = urlencode(request.query, doseq=True)
        raise Moved(request.path.replace(f"/{name}", f"/{new}", 1) + (f"?{query}" if query else ""))
    if repo is None or (repo.private and not (user and user.owns(repo.namespace))):
        # Without a token, what is private can't be told from what is not there.
        status, message = (404, "Repository not found") if user else (401, "Invalid username or password.")
        raise HubError(status, message, "RepoNotFound")
    if write:
        demand(request, repo.namespace, "repo.write")
    elif content and repo.gated and not (user and (user.owns(repo.namespace) or user.name in repo.granted)):
        page = f"{state.url}/{State.key(kind, name)}"
        if user is None:
            raise HubError(401, f"Access to {kind[:-1]} {name} is restricted. You must be authenticated.", "GatedRepo")
        refusal = "is restricted and you are not in the authorized list. Visit"
        raise HubError(403, f"Access to {kind[:-1]} {name} {refusal} {page} to ask for access.", "GatedRepo")
    return repo


def find_commit(repo: Repo, revision: str) -> Commit:
    commit = repo.find(revision)
    if commit is None:
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return commit


def create(state: State, request: Request) -> Response:
    form = request.form()
    kind = TYPES.get(form.get("type", "model"))
    user = signed_in(request)
    namespace = form.get("organization") or user.name
    if kind is None or not form.get("name"):
        raise HubError(400, "A repo needs a name and a known type")
    demand(request, namespace, "repo.write")
    name = f"{namespace}/{form['name']}"
    key = State.key(kind, name)
    url = f"{state.url}/{key}"
    if key in state.repos:
        return reply({"error": "You already created this repo", "url": url}, 409)
    private = form.get("visibility") == "private" or bool(form.get("private"))
    state.repos[key] = repo = Repo(name, kind, private)
    repo.commit({".gitattributes": StoredFile(GITATTRIBUTES)}, "initial commit")
    return reply({"url": url, "name": name, "id": object_id(key)})


def delete(state: State, request: Request) -> Response:
    form = request.form()
    user = signed_in(request)
    name = f"{form.get('organization') or user.name}/{form.get('name')}"
    params = {"kind": TYPES[form.get("type", "model")], "repo": name}
    repo = find_repo(state, replace(request, params=params), write=True)
    del state.repos[State.key(repo.kind, repo.id)]
    return reply({})


def info(state: State, request: Request) -> Response:
    repo = find_repo(state, request)
    commit = find_commit(repo, request.params.get("revision", "main"))
    blobs = request.flag("blobs")
    return reply(
        {
            "_id": object_id(repo.id),
            "id": repo.id,
            "author": repo.namespace,
            "sha": commit.oid,
            "createdAt": repo.created_at,
            "lastModified": commit.created_at,
            "private": repo.private,
            "gated": repo.gated or False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            **_card(commit),
            **_safetensors(commit),
            "siblings": [
                {"rfilename": path, **(_entry(state, path, file) if blobs else {})}
                for path, file in sorted(commit.files.items())
            ],
        }
    )


def _card(commit: Commit) -> dict[str, Any]:
    """The metadata at the head of the README.md; absent without any."""
    readme = commit.files.get("README.md")
    data = cards.metadata(readme.data.decode(errors="replace")) if readme else None
    return {"cardData": data} if data else {}


def _safetensors(commit: Commit) -> dict[str, Any]:
    """The elements by dtype of all files of that format, which the Hub counts after a push; absent without any."""
    counts: Counter[str] = Counter()
    for path, file in commit.files.items():
        if path.endswith(".safetensors"):
            try:
                header = json.loads(file.data[8 : 8 + int.from_bytes(file.data[:8], "little")])
            except ValueError:  # such a file, the Hub takes and does not count
                return {}
            for name, tensor in header.items():
                if name != "__metadata__":
                    counts[tensor["dtype"]] += math.prod(tensor["shape"])
    return {"safetensors": {"parameters": dict(counts), "total": sum(counts.values())}} if counts else {}


def auth_check(state: State, request: Request) -> Response:
    find_repo(state, request, write=request.path.endswith("/write"), content=True)
    return reply({})


def tree(state: State, request: Request) -> Response:
    """The entries of a folder, or of all below it."""
    commit = find_commit(find_repo(state, request), request.params["revision"])
    folder = request.params.get("path", "").strip("/")
    prefix = f"{folder}/" if folder else ""
    inside = {path: file for path, file in commit.files.items() if path.startswith(prefix)}
    if folder and not inside:
        raise HubError(404, f"{folder} does not exist on {request.params['revision']!r}", "EntryNotFound")
    entries = [
        entry
        for path, entry in _entries(state, commit, inside).items()
        if path.startswith(prefix) and (request.flag("recursive") or "/" not in path[len(prefix) :])
    ]
    return reply(entries)


def paths_info(state: State, request: Request) -> Response:
    commit = find_commit(find_repo(state, request), request.params["revision"])
    entries = _entries(state, commit, commit.files)
    asked = request.form().get("paths", [])
    return reply([entries[path] for path in (asked if isinstance(asked, list) else [asked]) if path in entries])


def refs(state: State, request: Request) -> Response:
    repo = find_repo(state, request)

    def below(prefix: str) -> list[dict[str, str]]:
        found = [(ref, oid) for ref, oid in repo.refs.items() if ref.startswith(prefix)]
        return [{"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": oid} for ref, oid in found]

    branches, tags, pulls = below("refs/heads/"), below("refs/tags/"), below("refs/pr/")
    return reply({"branches": branches, "tags": tags, "converts": [], "pullRequests": pulls})


def commits(state: State, request: Request) -> Response:
    """The history of a revision, the newest first."""
    repo = find_repo(state, request)
    commit: Commit | None = find_commit(repo, request.params["revision"])
    history = []
    while commit:
        entry = {"id": commit.oid, "title": commit.message, "message": "", "date": commit.created_at}
        history.append({**entry, "authors": [{"user": repo.namespace}]})
        commit = repo.commits.get(commit.parent or "")
    return reply(history)


def create_ref(state: State, request: Request) -> Response:
    """A new branch, or a new tag on a revision; 409 where it is there already."""
    repo = find_repo(state, request, write=True)
    form, name = request.form(), request.params["name"]
    tag = form.get("tag")
    ref, start = (f"refs/tags/{tag}", name) if tag else (f"refs/heads/{name}", form.get("startingPoint") or "main")
    if ref in repo.refs:
        raise HubError(409, f"Reference already exists: {ref}")
    repo.refs[ref] = find_commit(repo, start).oid
    return reply({})


def settings(state: State, request: Request) -> Response:
    repo = find_repo(state, request, write=True)
    form = request.form()
    if "visibility" in form or "private" in form:
        repo.private = form.get("visibility") == "private" or bool(form.get("private"))
    if "gated" in form:
        repo.gated = form["gated"] or None
    return reply({"private": repo.private, "gated": repo.gated or False})


def discussions(state: State, request: Request) -> Response:
    find_repo(state, request)
    return reply({"discussions": [], "count": 0, "start": 0})


def validate_yaml(state: State, request: Request) -> Response:
    """Checks the metadata at the head of a model card."""
    errors, warnings = cards.problems(request.form().get("content", ""))
    said = {"errors": [{"message": text} for text in errors], "warnings": [{"message": text} for text in warnings]}
    return reply(said, 400 if errors else 200)


def _entries(state: State, commit: Commit, files: Any) -> dict[str, dict[str, Any]]:
    """Files and the folders that hold them, by path, in order."""
    entries = {path: _entry(state, path, file) for path, file in files.items()}
    for path in files:
        while path := path.rpartition("/")[0]:
            folder = {"type": "directory", "oid": object_id(commit.oid + path).ljust(40, "0"), "size": 0, "path": path}
            entries.setdefault(path, folder)
    return dict(sorted(entries.items()))


def _entry(state: State, path: str, file: StoredFile) -> dict[str, Any]:
    size = len(file.data)
    entry = {"type": "file", "path": path, "size": size, "oid": file.blob_id, "blobId": file.blob_id}
    if file.large:
        entry["lfs"] = {"oid": file.sha256, "sha256": file.sha256, "size": size, "pointerSize": 134}
        if name := state.cas.hashes.get(file.sha256):
            entry["xetHash"] = name
    return entry
