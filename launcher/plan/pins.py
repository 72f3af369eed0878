"""What a run reads and runs in, decided when it is planned: branches and tags as the commits that they are at, the
licence that the model's card gives, and the container image.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import NamedTuple, Protocol

from launcher.catalog import Stack
from launcher.errors import ServiceError
from launcher.plan.record import ASKED, Decision
from launcher.spec import COMMIT, REPO_ID, path_of


@dataclass(frozen=True, slots=True)
class Seen:
    """What the Hub says of a repo at a revision: its commit, and by its card the licence with what belongs to `other`.

    None where it does not say.
    """

    commit: str | None
    licence: str | None = None
    licence_name: str | None = None
    licence_link: str | None = None
    private: bool = False


# What asks the Hub: (model or dataset, repo, revision or none).
Resolve = Callable[[str, str, str | None], Seen]

# A card is anybody's, and its licence goes into other cards: what is not of these forms is left out.
_LICENCE = {
    "licence": re.compile(r"[a-z0-9][a-z0-9.-]{0,63}"),
    "licence_name": re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,95}"),
    "licence_link": re.compile(r"https://[A-Za-z0-9.-]+/[A-Za-z0-9._~/%#-]{1,255}"),
}


@dataclass(frozen=True, slots=True)
class Pinned:
    """The revision that is read, and what the Hub said of the repo there if it was asked and answered."""

    revision: Decision[str | None]
    seen: Seen = Seen(None)


def pin(kind: str, name: str, asked: str | None, resolve: Resolve | None, today: date, known: bool = True) -> Pinned:
    """The commit for a repo's revision; a folder or a file has none, and none is known where nobody may be asked.

    Of a commit the Hub is asked only where the rest of what it says is not `known`. What can't be read is an error as
    it would be at submission. A service that fails now is not: the revision that was asked for then stays, and says so.
    """
    if resolve is None or not _on_hub(kind, name):
        return Pinned(Decision(asked))
    is_commit = bool(COMMIT.fullmatch(asked or ""))
    given = Decision(asked, ASKED)
    if is_commit and known:
        return Pinned(given)
    branch = asked or "main"
    try:
        seen = resolve(kind, name, asked)
    except ServiceError as error:
        return Pinned(
            given if is_commit else Decision(asked, f"{branch}, whatever that is when the run begins: {error.message}")
        )
    if is_commit:
        return Pinned(given, seen)
    if seen.commit is None:
        unsaid = f"{branch}, whatever that is when the run begins: the Hub names no commit"
        return Pinned(Decision(asked, unsaid), seen)
    return Pinned(Decision(seen.commit, f"{branch}, as it was on {today.day} {today:%B %Y}"), seen)


def licence(known: str | None, seen: Seen) -> dict[str, str]:
    """The licence by the model's card where the catalog knows none, and what the card says of one that is `other`."""
    said = {name: getattr(seen, name) for name, form in _LICENCE.items() if form.fullmatch(getattr(seen, name) or "")}
    found = known or said.get("licence")
    if found is None or (found == "other" != said.get("licence")):
        return {}
    return {"licence": found} | ({name: said[name] for name in said if name != "licence"} if found == "other" else {})


def _on_hub(kind: str, name: str) -> bool:
    """Whether the name is that of a repo, by the rules that a request is made by."""
    return path_of(name) is None and (kind == "dataset" or bool(REPO_ID.fullmatch(name)))


# ---- The container image ---------------------------------------------------------------------------------------------

IMAGE = "launch-job"
"""What the name of an image with the training stack ends in: Dockerfile's target `job`."""


class Container(NamedTuple):
    """An image (None: the service's default) and whether nothing has to be installed in it, as far as its name says.

    A run is right either way: `uv run` installs what is missing. Only the time that is planned for depends on it.
    """

    image: Decision[str | None]
    warm: bool = False


class Asked(Protocol):
    """What of a spec decides the image."""

    @property
    def image(self) -> str | None:
        """The image that was asked for."""

    @property
    def local(self) -> bool:
        """Whether it runs on this machine."""


def container(asked: Asked, default: str | None, stack: Stack) -> Container:
    """The image that was asked for, else the user's default; a run on this machine has none but the one asked for."""
    if asked.local:
        return Container(Decision(asked.image, "runs on this machine are in no container"))
    name = asked.image or default
    if name is None:
        return Container(Decision(None, "the service's default; the training stack is installed at every start"))
    source = ASKED if asked.image else "from your config.toml"
    if cold := _why_cold(name, stack):
        return Container(Decision(name, f"{source}; {cold}, so that time to install it is planned for"))
    return Container(Decision(name, f"{source}; it brings the training stack, as its name says"), warm=True)


def _why_cold(image: str, stack: Stack) -> str | None:
    """Why an image does not count as one with the training stack; None where its name says that it is."""
    repo, tag = _parts(image)
    if tag == stack.id:
        return None
    if not repo.endswith(IMAGE):
        return f"neither does its name end in {IMAGE} nor is its tag {stack.id}"
    if _is_id(tag):
        return f"its tag is that of another training stack than {stack.id}"
    return None


def _parts(image: str) -> tuple[str, str]:
    """The last name of an image's repository, and its tag, which may be empty: a registry may have a port."""
    last = image.partition("@")[0].rpartition("/")[2]
    repo, _, tag = last.partition(":")
    return repo, tag


def _is_id(tag: str) -> bool:
    return len(tag) == 12 and set(tag) <= set("0123456789abcdef")
