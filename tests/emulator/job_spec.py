"""Which Jobs the service takes: one table from field to check."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from tests.emulator.http import HubError
from tests.emulator.state import State

LABEL = re.compile(r"[A-Za-z0-9._-]*")
VOLUME_FIELDS = {"type", "source", "mountPath", "revision", "readOnly", "path"}


def check_spec(spec: dict[str, Any], state: State) -> None:
    """Raises a 400 that names the first field which the service would refuse."""
    for field, value in spec.items():
        if field not in CHECKS:
            raise _bad(field, "unrecognized key")
        if not CHECKS[field](value):
            raise _bad(field, f"invalid value {value!r}" if field != "secrets" else "invalid value")
    if bool(spec.get("dockerImage")) == bool(spec.get("spaceId")):
        raise _bad("dockerImage", "one of dockerImage and spaceId is required")
    if "dockerImage" in spec and not spec.get("command"):
        raise _bad("command", "required")
    if spec.get("flavor") not in state.flavors:
        raise _bad("flavor", "Invalid option: expected one of " + "|".join(f'"{name}"' for name in state.flavors))
    check_labels(spec.get("labels", {}))
    _check_volumes(spec.get("volumes", []), state)


def check_labels(labels: Any) -> None:
    if not _texts(labels):
        raise _bad("labels", "expected a mapping of strings")
    for text in [*labels, *labels.values()]:
        if len(text) > 100 or not LABEL.fullmatch(text):
            raise _bad("labels", f"{text!r} is not up to 100 letters, digits, dots, dashes and underscores")


def _check_volumes(volumes: list[Any], state: State) -> None:
    mounts = [volume.get("mountPath") for volume in volumes]
    for volume in volumes:
        kind, source, mount = volume.get("type"), volume.get("source", ""), volume.get("mountPath", "")
        if volume.keys() - VOLUME_FIELDS or kind not in ("bucket", "model", "dataset", "space"):
            raise _bad("volumes", f"invalid volume {volume!r}")
        if not mount.startswith("/") or mount == "/" or mounts.count(mount) > 1:
            raise _bad("volumes", f"{mount!r} is not a mount path of its own")
        known = state.buckets if kind == "bucket" else state.repos
        if (source if kind == "bucket" else state.key(f"{kind}s", source)) not in known:
            raise _bad("volumes", f"{kind} {source!r} not found")


def _bad(field: str, problem: str) -> HubError:
    return HubError(400, f"✖ {problem}\n  → at {field}")


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for item in [*value, *value.values()])


def _mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _volumes(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


CHECKS: dict[str, Callable[[Any], bool]] = {
    "dockerImage": _text,
    "spaceId": _text,
    "command": _list,
    "arguments": _list,
    "environment": _texts,
    "secrets": _texts,
    "flavor": _text,
    "timeoutSeconds": _count,
    "attempts": _count,
    "labels": _mapping,
    "tags": _list,
    "arch": _text,
    "volumes": _volumes,
    "expose": _mapping,
    "ssh": _mapping,
    "network": _mapping,
    "resourceGroupId": _text,
}
