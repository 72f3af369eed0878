"""What the Hub knows, as plain values that a test may read and change."""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from tests.emulator import flavors

if TYPE_CHECKING:
    from tests.emulator.cas import Cas
    from tests.emulator.job import Job
    from tests.emulator.runner import Runner


def stamp(seconds: float) -> str:
    """A time as the Hub writes it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def now() -> str:
    return stamp(time.time())


@dataclass(frozen=True)
class User:
    name: str
    token: str = field(repr=False)
    role: str = "write"
    orgs: tuple[str, ...] = ()
    permissions: frozenset[str] = frozenset()
    """Of a fine-grained token, such as `repo.write` and `job.write`."""
    expires_at: str | None = None
    """When the token of an OAuth login ends."""

    def may(self, permission: str) -> bool:
        return self.role == "write" or (self.role == "fineGrained" and permission in self.permissions)

    def owns(self, namespace: str) -> bool:
        return namespace == self.name or namespace in self.orgs


# The endings that a new repo's .gitattributes keeps outside git, and the size from which every file is kept there.
LFS_SUFFIXES = frozenset(
    f".{ending}"
    for line in (
        "7z arrow bin bz2 gguf gz h5 model msgpack npy npz onnx parquet pb",
        "pickle pkl pt pth safetensors tar tgz zip zst",
    )
    for ending in line.split()
)
LFS_BYTES = 10 * 2**20


def is_large(path: str, size: int, sample: bytes) -> bool:
    """Whether the Hub keeps this file outside git."""
    return PurePosixPath(path).suffix in LFS_SUFFIXES or size > LFS_BYTES or b"\0" in sample


@dataclass(frozen=True)
class StoredFile:
    data: bytes = field(repr=False)
    large: bool = False

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def blob_id(self) -> str:
        """Git's name for what it stores: the file, or the pointer to a large one."""
        pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {}\n"
        text = pointer.format(self.sha256, len(self.data)).encode() if self.large else self.data
        return hashlib.sha1(b"blob %d\0" % len(text) + text).hexdigest()


@dataclass(frozen=True)
class Commit:
    files: Mapping[str, StoredFile] = field(repr=False)
    message: str
    parent: str | None = None
    oid: str = field(default_factory=lambda: secrets.token_hex(20))
    created_at: str = field(default_factory=now)


@dataclass
class Repo:
    id: str
    kind: str = "models"
    private: bool = False
    gated: str | None = None
    """`auto` or `manual`; none where anybody may read it."""
    granted: set[str] = field(default_factory=set)
    """The users who may read the files of a gated repo, besides its owner."""
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    """Full ref, such as `refs/heads/main`, to commit."""
    created_at: str = field(default_factory=now)

    @property
    def namespace(self) -> str:
        return self.id.partition("/")[0]

    @property
    def head(self) -> Commit:
        return self.commits[self.refs["refs/heads/main"]]

    @property
    def files(self) -> dict[str, bytes]:
        """What `main` holds now."""
        return {path: file.data for path, file in self.head.files.items()}

    def commit(self, files: Mapping[str, StoredFile], message: str, ref: str = "refs/heads/main") -> Commit:
        """Makes `files` the whole content of `ref`."""
        commit = Commit(dict(files), message, self.refs.get(ref))
        self.commits[commit.oid] = commit
        self.refs[ref] = commit.oid
        return commit

    def find_ref(self, revision: str) -> str | None:
        """The full ref that a branch, a tag or a ref names."""
        names = (revision, f"refs/heads/{revision}", f"refs/tags/{revision}")
        return next((name for name in names if name in self.refs), None)

    def find(self, revision: str) -> Commit | None:
        ref = self.find_ref(revision)
        return self.commits.get(self.refs[ref] if ref else revision)


@dataclass
class Bucket:
    """A bucket is a folder, which a running Job sees as its volume: what it writes is kept, however it ends."""

    id: str
    folder: Path
    private: bool = True
    hashes: dict[str, tuple[int, int, str]] = field(default_factory=dict, repr=False)
    """Path to modification time, size and hash."""
    created_at: str = field(default_factory=now)

    @property
    def files(self) -> dict[str, bytes]:
        return {path: (self.folder / path).read_bytes() for path in self.paths()}

    def paths(self) -> list[str]:
        """The files, with `/`, in order."""
        return sorted(p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file())


@dataclass(frozen=True)
class Recorded:
    """A request that came, without what must stay secret."""

    method: str
    path: str
    headers: Mapping[str, str]
    user: str | None
    status: int


@dataclass
class State:
    root: Path
    cas: Cas
    runner: Runner | None = None
    url: str = ""
    users: dict[str, User] = field(default_factory=dict)
    """By token."""
    repos: dict[str, Repo] = field(default_factory=dict)
    """By id; a dataset's begins with `datasets/`, a space's with `spaces/`."""
    buckets: dict[str, Bucket] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    listing_delay_s: float = 0.0
    """Seconds until a new Job appears in the list of Jobs; it is found by its id at once."""
    torn: dict[str, int] = field(default_factory=dict)
    """Path in a repo to the number of coming commits that keep only half of that file."""
    renamed: dict[str, str] = field(default_factory=dict)
    """Former key of a repo to its name now."""
    requests: list[Recorded] = field(default_factory=list)
    unknown_requests: list[str] = field(default_factory=list)
    flavors: dict[str, dict[str, Any]] = field(default_factory=flavors.load)
    closing: threading.Event = field(default_factory=threading.Event)

    @staticmethod
    def key(kind: str, repo_id: str) -> str:
        return repo_id if kind == "models" else f"{kind}/{repo_id}"
