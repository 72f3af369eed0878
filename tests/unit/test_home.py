"""The user's own defaults."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher import home
from launcher.errors import RequestError


def write(folder: Path, text: str) -> Path:
    path = folder / home.SETTINGS
    path.write_text(text, encoding="utf-8")
    return path


def test_no_file_sets_nothing() -> None:
    assert home.settings() == home.Settings(image=None)


def test_an_image_is_read(launch_home: Path) -> None:
    write(launch_home, 'image = "ghcr.io/me/launch-job:1"\n')
    assert home.settings().image == "ghcr.io/me/launch-job:1"


def test_it_lies_where_configuration_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAUNCH_HOME")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "launch").mkdir()
    write(tmp_path / "launch", 'image = "me/launch-job"\n')
    assert home.settings().image == "me/launch-job"
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / ".config" / "launch").mkdir(parents=True)
    write(tmp_path / "home" / ".config" / "launch", 'image = "you/launch-job"\n')
    assert home.settings().image == "you/launch-job"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image = launch-job", "is not TOML"),
        ('flavor = "t4-small"', "there is no setting 'flavor'"),
        ('image = "-x"', "image should be an image such as"),
        ("image = 3", "image should be a valid string"),
        ('image = "a b"', "image should be an image such as"),
    ],
)
def test_what_can_not_be_meant_is_an_error_that_names_the_file(launch_home: Path, text: str, said: str) -> None:
    path = write(launch_home, text)
    with pytest.raises(RequestError) as caught:
        home.settings()
    assert str(path) in caught.value.message
    assert said in caught.value.message


def test_a_secret_in_it_is_refused_and_not_repeated(launch_home: Path) -> None:
    token = "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZaBcDeFgH"
    write(launch_home, f'image = "me/launch-job:{token}"\n')
    with pytest.raises(RequestError, match="looks like a token") as caught:
        home.settings()
    assert token not in caught.value.message + caught.value.hint


def test_what_can_not_be_read_is_an_error(launch_home: Path) -> None:
    (launch_home / home.SETTINGS).mkdir()
    with pytest.raises(RequestError, match="Is a directory"):
        home.settings()
