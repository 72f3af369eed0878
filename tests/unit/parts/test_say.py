"""Lines for the launcher: marked where somebody gave a mark, and one line whatever they quote."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from parts import say
from parts.say import UserError

HOSTILE = st.text(st.sampled_from("a \n\r\x0b\x0c\x1b\x85\u2028\u2029#=é\ud800"), max_size=12)


@given(HOSTILE)
def test_what_is_told_is_one_line_whatever_it_quotes(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr("builtins.print", lambda line, **_: said.append(line))
        patch.setattr(say, "MARK", " #0a1b2c3d")
        say.tell(f"error: a column called {text}")
        [line] = said
        assert len(line.splitlines()) == 1
        assert line.startswith("error: a column called ")
        assert say.heard(line) == line.removesuffix(" #0a1b2c3d")


def test_only_what_bears_the_mark_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    assert say.heard("RESULT {}") == "RESULT {}"
    monkeypatch.setattr(say, "MARK", " #0a1b2c3d")
    assert say.heard("RESULT {} #0a1b2c3d") == "RESULT {}"
    for line in ("RESULT {}", "RESULT {} #0a1b2c3e", "RESULT {} #0a1b2c3d ", "#0a1b2c3d RESULT {}"):
        assert say.heard(line) is None


def test_a_reason_is_what_the_hub_says_and_not_its_requests_number() -> None:
    error = RuntimeError("(Request ID: Root=1-86be)\n\n403 Forbidden: you may only read.\nLook at …")
    assert say.reason(error) == "403 Forbidden: you may only read"
    assert say.reason(UserError("no room", "make some")) == "no room"
    assert say.reason(KeyError()) == "KeyError"
