"""A recipe and its parts become one script: imports merged at the top, parts below, comments kept."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from launcher.bundle import bundle

RECIPE = '''\
"""Say hello."""

from __future__ import annotations

import sys

from parts.greet import greet


# The recipe.
def main() -> None:
    greet(sys.argv[1])


if __name__ == "__main__":
    main()
'''
PARTS = {
    "greet": '''\
"""Greets.

At length.
"""

from __future__ import annotations

import os
from typing import Any

from parts.say import LOUD, say

def greet(name: Any, place: str | None = None) -> None:
    # A reason.
    say(f"hello {name}" + LOUD + os.linesep * 0)
''',
    "say": '''\
"""Says."""

import sys

LOUD = "!"


def say(text: str) -> None:
    print(text, file=sys.stdout)
''',
}


def test_the_script_runs_and_reads_downward() -> None:
    text = bundle(RECIPE, PARTS.__getitem__)
    ran = subprocess.run([sys.executable, "-c", text, "you"], capture_output=True, text=True, check=True)
    assert ran.stdout == "hello you!\n"
    order = ['"""Say hello."""', "from __future__", "import os\nimport sys\nfrom typing import Any", "# The recipe.",
             "# ---- Say ---", "# Says.", 'LOUD = "!"', "# ---- Greet ---", "# Greets.", "# A reason.",
             'if __name__ == "__main__":']  # fmt: skip
    places = [text.index(piece) for piece in order]
    assert places == sorted(places)
    assert "parts" not in text
    assert "At length" not in text


def test_it_is_formatted_as_ruff_would() -> None:
    text = bundle(RECIPE, PARTS.__getitem__)
    config = str(Path(__file__).parents[2] / "pyproject.toml")
    for command in (("format", "--check"), ("check",)):
        ran = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--config", config, "-"],
            input=text, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ('"""Twice."""\n\ndef main() -> None: ...\n', "main is defined in the recipe and in say"),
        ('"""As."""\n\nfrom parts.greet import greet as hello\n', "a part keeps its names"),
        ('"""Whole."""\n\nimport parts.greet\n', "write `from parts.NAME import …`"),
    ],
)
def test_what_can_not_be_joined_is_refused(part: str, says: str) -> None:
    with pytest.raises(ValueError, match=says.replace(".", r"\.")):
        bundle(RECIPE, (PARTS | {"say": part}).__getitem__)
