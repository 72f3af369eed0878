"""The container image of a run, and whether it brings the training stack."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from launcher.catalog import Stack
from launcher.plan.record import ASKED, Decision

NAME = "launch-job"
"""What the name of an image with the training stack ends in: Dockerfile's target `job`."""


class Choice(NamedTuple):
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


def choose(asked: Asked, default: str | None, stack: Stack) -> Choice:
    """The image that was asked for, else the user's default; a run on this machine has none but the one asked for."""
    if asked.local:
        return Choice(Decision(asked.image, "runs on this machine are in no container"))
    name = asked.image or default
    if name is None:
        return Choice(Decision(None, "the service's default; the training stack is installed at every start"))
    source = ASKED if asked.image else "from your config.toml"
    if cold := _why_cold(name, stack):
        return Choice(Decision(name, f"{source}; {cold}, so that time to install it is planned for"))
    return Choice(Decision(name, f"{source}; it brings the training stack, as its name says"), warm=True)


def _why_cold(image: str, stack: Stack) -> str | None:
    """Why an image does not count as one with the training stack; None where its name says that it is."""
    repo, tag = _parts(image)
    if tag == stack.id:
        return None
    if not repo.endswith(NAME):
        return f"neither does its name end in {NAME} nor is its tag {stack.id}"
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
