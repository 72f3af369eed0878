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


def test_what_of_a_part_nothing_uses_is_left_out() -> None:
    unused = (
        "from pathlib import Path\n\n# Quiet.\nQUIET, SILENT = 1, 2\n\n\n"
        "def whisper(place: Path) -> None:\n    hush()\n\n\ndef hush() -> None: ...\n\n\n"
    )
    say = PARTS["say"].replace("import sys\n", f"import sys\n{unused}") + "\n\nprint('loaded')\n"
    text = bundle(RECIPE, (PARTS | {"say": say}).__getitem__)
    assert text == bundle(RECIPE, PARTS.__getitem__).replace(
        "file=sys.stdout)\n", "file=sys.stdout)\n\n\nprint('loaded')\n"
    )
    # A part of which nothing is left has no heading.
    greet = PARTS["greet"].replace('say(f"hello {name}" + LOUD + os.linesep * 0)', "print(os.getcwd())")
    assert "# ---- Say" not in bundle(RECIPE, (PARTS | {"greet": greet}).__getitem__)


def test_what_is_used_through_another_part_only_is_kept() -> None:
    loud = (
        PARTS["say"]
        .replace("    print(text", "    shout(text)\n    print(text")
        .replace("def say", "def shout(text: str) -> None:\n    print(text.upper())\n\n\ndef say")
    )
    text = bundle(RECIPE, (PARTS | {"say": loud}).__getitem__)
    ran = subprocess.run([sys.executable, "-c", text, "you"], capture_output=True, text=True, check=True)
    assert ran.stdout == "HELLO YOU!\nhello you!\n"


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
