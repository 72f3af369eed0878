"""What may be shown nowhere: how a secret looks, what its variable is called, and the ones that this machine holds."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

MASK = "***"
SHORTEST = 6
"""Characters below which a value is too common a word to be looked for."""

# The Hub's tokens, and those of the services that a training script talks to: what follows the prefix is random. With
# a dash where the command line has read a token as an option.
_TOKEN = re.compile(
    r"(?<![A-Za-z0-9])(?:(?:hf|api_org)_[A-Za-z0-9]{16,}|(?:hf-|gh[opsur][_-])[A-Za-z0-9]{30,}|github_pat_\w{30,}"
    r"|sk-(?:[a-z0-9]+-){0,2}\w{24,}|AKIA[A-Z0-9]{16})",
    re.ASCII,
)
_URL_PASSWORD = re.compile(r"(://[^/\s:@]*:)([^/\s@]+)(?=@)")
_SECRET_NAME = re.compile(
    r"(TOKEN|API_?KEY|ACCESS_KEY|PRIVATE_KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE
)


def holds_secret(text: str) -> bool:
    """Whether something in the text looks like a token, or is the password in a URL."""
    return bool(_TOKEN.search(text) or _URL_PASSWORD.search(text))


def is_secret_name(name: str) -> bool:
    """Whether a variable of that name is likely to hold a secret."""
    return _SECRET_NAME.search(name) is not None


def mask(text: str, secrets: Iterable[str] = ()) -> str:
    """The text without the given secrets, without what looks like a token, and without passwords in URLs."""
    spelled = {form for value in secrets if len(value) >= SHORTEST for form in _spellings(value)}
    for secret in sorted(spelled, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return _URL_PASSWORD.sub(rf"\g<1>{MASK}", _TOKEN.sub(MASK, text))


@lru_cache(maxsize=256)  # a log has many lines, and a machine few secrets
def _spellings(secret: str) -> tuple[str, ...]:
    """The secret as it is, and as it stands in JSON."""
    return secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]


def held(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The secrets of this shell and of the Hub's login, without loading the Hub's client."""
    found = [value for name, value in environment.items() if is_secret_name(name)]
    home = Path(environment.get("HF_HOME") or Path(environment.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    with suppress(OSError, RuntimeError, ValueError):
        login = Path(environment.get("HF_TOKEN_PATH") or home / "token").expanduser()
        found.append(login.read_text(encoding="utf-8").strip())
    return tuple(dict.fromkeys(value for value in found if len(value) >= SHORTEST))
