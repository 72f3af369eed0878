"""Builds the images without a Docker daemon: Debian's buildah, and bases made by debootstrap where no registry is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uv import find_uv_bin

CHECKOUT = Path(__file__).parents[2]
TOOLS = ("buildah", "debootstrap", "unshare", "chroot")
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def missing() -> str | None:
    """What keeps this machine from building images; None where nothing does."""
    lacking = [tool for tool in TOOLS if not shutil.which(tool)]
    if lacking:
        return f"{', '.join(lacking)} not found: `apt-get install buildah debootstrap`"
    return None if os.geteuid() == 0 else "root is needed: debootstrap and chroot are its alone"


class Store:
    """Images and containers in one folder, away from those of the user's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._containers: list[str] = []
        (folder / "tmp").mkdir(parents=True, exist_ok=True)
        config = folder / "storage.conf"
        config.write_text(
            f'[storage]\ndriver = "vfs"\ngraphroot = "{folder}/storage"\nrunroot = "{folder}/run"\n', encoding="utf-8"
        )
        self._env = {
            name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "http_proxy")
        } | {"CONTAINERS_STORAGE_CONF": str(config), "BUILDAH_ISOLATION": "chroot", "TMPDIR": str(folder / "tmp")}

    def buildah(self, *arguments: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
        """What buildah answers; `AssertionError` with all it said where it fails."""
        done = subprocess.run(
            ["buildah", *map(str, arguments)], cwd=cwd, env={**self._env, **(env or {})}, capture_output=True,
            text=True, timeout=1800, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"buildah {arguments[0]}: {done.stdout[-4000:]}{done.stderr[-4000:]}"
        return done.stdout.strip()

    def has(self, image: str) -> bool:
        """Whether that image is there."""
        names = [name for item in json.loads(self.buildah("images", "--json")) for name in item.get("names") or ()]
        return f"localhost/{image}:latest" in names

    def config(self, image: str) -> dict[str, Any]:
        """The image's configuration and history, as its registry would hold them."""
        found: dict[str, Any] = json.loads(self.buildah("inspect", "--type", "image", f"localhost/{image}"))["OCIv1"]
        return found

    def root(self, image: str) -> Path:
        """The root of a fresh container of that image."""
        container = self.buildah("from", "--pull-never", f"localhost/{image}")
        self._containers.append(container)
        return Path(self.buildah("mount", container))

    def close(self) -> None:
        """Remove this object's own containers, and images that a newer one took the name of."""
        for container in self._containers:
            self.buildah("rm", container)
        self.buildah("rmi", "--prune")
        self._containers = []

    def base(self) -> str:
        """Debian with Python, as the launcher's base: what a slim Python image is elsewhere."""
        if not self.has("base"):
            root = self.folder / "debian"
            shutil.rmtree(root, ignore_errors=True)
            packages = "--include=ca-certificates,python3,python3-venv"
            done = subprocess.run(
                ["debootstrap", "--variant=minbase", packages, "bookworm", str(root)],
                env=self._env, capture_output=True, text=True, timeout=900, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout[-4000:]
            self._trust_what_this_machine_trusts(root)
            container = self.buildah("from", "scratch")
            self.buildah("add", "--quiet", container, root, "/")
            self._commit(container, "base")
            shutil.rmtree(root)
        return "localhost/base"

    def base_with_uv(self) -> str:
        """The same with uv and Python's headers, as the Job's base: what Jobs' default image brings."""
        if not self.has("base-uv"):
            container = self.buildah("from", "--pull-never", self.base())
            install = (
                "apt-get update -q && apt-get install -qy --no-install-recommends libpython3-dev && apt-get clean "
                "&& rm -rf /var/lib/apt/lists/*"
            )
            self.buildah("run", container, "--", "sh", "-c", install)
            self.buildah("copy", "--quiet", container, find_uv_bin(), "/usr/local/bin/uv")
            self._commit(container, "base-uv")
        return "localhost/base-uv"

    def build(self, target: str, context: Path, *, base: str, env: Mapping[str, str] | None = None) -> str:
        """Build a target of the Dockerfile on that base."""
        argument = {"launcher": "LAUNCHER_BASE", "job": "JOB_BASE"}[target]
        self.buildah(
            "build", "--quiet", "--target", target, "--build-arg", f"{argument}={base}", "--build-arg",
            "REVISION=0123abc", "--tag", f"localhost/{target}", context, env=env,
        )  # fmt: skip
        return target

    def _commit(self, container: str, image: str) -> None:
        self.buildah("config", "--env", f"PATH={_PATH}", container)
        self.buildah("commit", "--quiet", "--rm", container, f"localhost/{image}")

    def _trust_what_this_machine_trusts(self, root: Path) -> None:
        """A package index may be reached through a proxy with a certificate of its own."""
        if not _CERTIFICATES.exists():
            return
        shutil.copy(_CERTIFICATES, root / _CERTIFICATES.relative_to("/"))
        (root / "etc" / "pip.conf").write_text(f"[global]\ncert = {_CERTIFICATES}\n", encoding="utf-8")
        (root / "etc" / "uv").mkdir()
        (root / "etc" / "uv" / "uv.toml").write_text("system-certs = true\n", encoding="utf-8")


def checkout(folder: Path) -> Path:
    """A copy of this checkout's files, the untracked ones too, and none of what git ignores."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=CHECKOUT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (CHECKOUT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CHECKOUT / name, folder / name)
    return folder


def size(root: Path) -> int:
    """Bytes of all files under a root; a file with several names counts once."""
    inodes = {}
    for folder, _, names in os.walk(root):
        for name in names:
            stat = Path(folder, name).lstat()
            inodes[stat.st_ino] = stat.st_size
    return sum(inodes.values())
