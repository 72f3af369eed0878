"""Runs one command in an image's root as a container runtime would: its user, environment and entrypoint."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# A mount namespace of its own: all of this is gone when the command ends. `$1` root, `$2` ro or rw, `$3` user,
# `$4` folder, then `source:target` pairs, then `--` and the command.
_ENTER = """
root=$1 mode=$2 user=$3 folder=$4
shift 4
mount --make-rprivate /
mount --bind "$root" "$root"
volumes=()
while [ "$1" != -- ]; do
  source=${1%%:*} target=$root${1#*:}
  mkdir -p "$target"
  if [ -n "$source" ]; then mount --bind "$source" "$target"; else volumes+=("$target"); fi
  shift
done
shift
[ "$mode" = rw ] || mount -o remount,ro,bind "$root"
for target in "${volumes[@]}"; do mount -t tmpfs -o "uid=${user%%:*},gid=${user##*:}" tmpfs "$target"; done
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
exec chroot --userspec="$user" "$root" /usr/bin/env -C "$folder" "$@"
"""


@dataclass(frozen=True, slots=True)
class Container:
    """An image's root with its configuration."""

    root: Path
    config: dict[str, Any]
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables of every command, over the image's own."""

    @property
    def entrypoint(self) -> list[str]:
        return list(self.config.get("Entrypoint") or ())

    def run(
        self,
        *command: str,
        network: bool = False,
        read_only: bool = True,
        user: str | None = None,
        binds: Mapping[Path, str] | None = None,
        env: Mapping[str, str] | None = None,
        entrypoint: list[str] | None = None,
        timeout: float = 600,
    ) -> subprocess.CompletedProcess[str]:
        """The finished command; without `network` there is none, not even this machine's own."""
        return subprocess.run(
            self.argv(*command, network=network, read_only=read_only, user=user, binds=binds, env=env,
                      entrypoint=entrypoint),
            capture_output=True, text=True, timeout=timeout, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def argv(
        self,
        *command: str,
        network: bool,
        read_only: bool,
        user: str | None = None,
        binds: Mapping[Path, str] | None = None,
        env: Mapping[str, str] | None = None,
        entrypoint: list[str] | None = None,
    ) -> list[str]:
        """What to run, as root, for that."""
        who = user or self.config.get("User") or "0:0"
        who = who if ":" in who else f"{who}:{who}"
        mounts = [f"{source}:{target}" for source, target in (binds or {}).items()]
        mounts += [f":{volume}" for volume in self.config.get("Volumes") or ()]
        variables = dict(item.split("=", 1) for item in self.config.get("Env") or ())
        # A runtime takes HOME from the user's line in /etc/passwd; a user without one gets the root folder.
        variables = {"HOME": "/root" if who.startswith("0:") else "/"} | variables | {**self.env, **(env or {})}
        return [
            "unshare", "--mount", "--pid", "--fork", "--kill-child", *([] if network else ["--net"]),
            "bash", "-ceu", _ENTER, "sandbox", str(self.root), "ro" if read_only else "rw", who,
            self.config.get("WorkingDir") or "/", *mounts, "--", "-i",
            *(f"{name}={value}" for name, value in variables.items()),
            *(self.entrypoint if entrypoint is None else entrypoint), *command,
        ]  # fmt: skip
