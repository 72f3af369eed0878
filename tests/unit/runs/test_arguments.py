"""Arguments are read as the script reads them, and what is written says the same to it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from parts.say import UserError

from launcher.errors import RequestError
from launcher.render import options_of
from launcher.runs import arguments
from tests.unit import sample

PLAN = sample.plan()
NAMES = [option.name for option in options_of(PLAN)]
FLAGS = st.sampled_from(NAMES).flatmap(
    lambda name: st.sampled_from(
        [f"--{name}", f"--{name.replace('_', '-')}", f"--no-{name.replace('_', '-')}", f"--{name[:-1]}", f"-{name}"]
    )
)
VALUES = st.sampled_from(["5", "-5", "0.5", "-0.5", "1e-3", "train", "-x y", "--", "", "q8_0", "@file", "-h", "--help"])
WORDS = st.lists(st.one_of(FLAGS, VALUES, st.tuples(FLAGS, VALUES).map("=".join), st.text(max_size=5)), max_size=6)


def as_read(args: Any) -> Any:
    """What the script makes of them; none where it ends."""
    try:
        return sample.options(*args)
    except (UserError, SystemExit):
        return None


@given(WORDS)
def test_what_is_written_says_to_the_script_what_was_read(args: list[str]) -> None:
    """Whatever the script takes is read here, and written again it is the same to the script."""
    by_script = as_read(args)
    try:
        written = arguments.write(arguments.read(PLAN, args))
    except RequestError:
        assert by_script is None, args
        return
    if by_script is not None:
        assert as_read(written) == by_script


@pytest.mark.parametrize(
    "args",
    [
        ["--help"], ["-h"], ["stray"], ["--"], ["@file"], ["--output-d", "/x"], ["--output", "/x"], ["--invented"],
        ["--max-steps"], ["--max-steps", "--packing"], ["--run-name", "-x"], ["--packing=yes"], ["--gguf"], [""],
        ["--max-steps", "3", "4"], ["---output-dir", "/x"], ["-output-dir", "/x"], ["--adapter", "/x"],
    ],
)  # fmt: skip
def test_what_the_script_would_refuse_is_refused_here(args: list[str]) -> None:
    with pytest.raises(RequestError, match="can't be read"):
        arguments.read(PLAN, args)


def test_every_spelling_is_one_option() -> None:
    for args in (["--output-dir", "/x"], ["--output_dir", "/x"], ["--output-dir=/x"], ["--output_dir=/x"],
                 ["--output-dir", "out", "--output_dir=/x"]):  # fmt: skip
        assert arguments.read(PLAN, args) == {"output_dir": "/x"}
    assert arguments.read(PLAN, ["--packing", "--no-packing", "--gguf=f16", "--gguf", "q8_0"]) == {
        "packing": False, "gguf": ("f16", "q8_0"),
    }  # fmt: skip
