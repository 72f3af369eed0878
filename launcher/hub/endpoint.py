"""The address of the Hub: nothing is sent in clear but on this machine."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import urlsplit

from launcher.errors import RefusedError, RequestError
from launcher.text import mask, plain

ENDPOINT = "HF_ENDPOINT"


def require_endpoint(of: Mapping[str, str] = os.environ) -> None:
    """Raise `RefusedError` where the Hub that these variables name would be asked in clear."""
    require_encrypted(of.get(ENDPOINT) or "", ENDPOINT)


def require_encrypted(url: str, name: str) -> None:
    """Raise `RefusedError` for plain http to any other machine, which would carry the token; `name` says whose URL."""
    try:
        parts = urlsplit(url.strip())
        host = parts.hostname or ""
    except ValueError as error:
        raise RequestError(f"{name} is no URL: {mask(plain(url))[:100]}.", "Such as https://huggingface.co.") from error
    if parts.scheme == "http" and not _is_here(host):
        raise RefusedError(
            f"{name} is plain http to {plain(host)[:100] or 'nowhere'}: your token and a Job's secrets would travel "
            "unencrypted.",
            f"Use https; http is for this machine only (127.0.0.1, localhost). {ENDPOINT} says which Hub is asked.",
        )


def _is_here(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
