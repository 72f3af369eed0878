"""The folder of a run: whole files, private, found by its id."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest

from launcher import home
from launcher.errors import RequestError
from launcher.jobs import folder
from tests.unit.sample import plan, request


def test_a_home_of_ones_own(launch_home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert home.data() == launch_home
    monkeypatch.delenv("LAUNCH_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", "relative/is/ignored")
    assert home.data() == tmp_path / ".local" / "share" / "launch"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert home.data() == tmp_path / "data" / "launch"


def test_a_run_is_found_once_it_has_its_id() -> None:
    assert folder.every() == []
    run = folder.create(request("pass", env={"A": "b"}), "hub")
    assert folder.every() == []
    run = run.rename("68780d00bbe36d38803f645f")
    assert folder.every() == [run]
    assert folder.find(run.id) == run == folder.load(run.id)
    assert run.plan() == plan()
    assert run.read(folder.REQUEST)["env"]["A"] == "b"
    assert (run.folder / "sft_text.py").read_text().endswith("pass")
    with pytest.raises(FileExistsError):
        folder.create(request("pass"), "hub").rename(run.id)


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "", ".new-1", "/etc", "a\0b"])
def test_an_id_never_leads_out_of_the_folder(name: str) -> None:
    assert folder.find(name) is None
    with pytest.raises(ValueError, match="not an id"):
        folder.create(request("pass"), "hub").rename(name)


def test_an_unknown_run_names_the_near_ones() -> None:
    folder.create(request("pass"), "local").rename("local-20261124-103012-ab12")
    with pytest.raises(RequestError, match="unknown run") as raised:
        folder.load("local-20261124-103012-ab13")
    assert "local-20261124-103012-ab12" in raised.value.hint


def test_files_are_private_and_never_seen_half_written() -> None:
    run = folder.create(request("pass"), "local").rename("local-20261124-103012-ab12")
    texts = {"a" * 200_000, "b" * 200_000}
    seen: set[str] = set()
    path = run.write("note", next(iter(texts)))
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.add(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(50):
        for text in texts:
            run.write("note", text)
    stop.set()
    reader.join()
    assert seen <= texts
    assert stat.S_IMODE(run.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in run.folder.iterdir()} == {0o600}
    assert not [file for file in run.folder.iterdir() if file.name.startswith(".note")]


def test_a_plan_of_another_version_says_so() -> None:
    run = folder.create(request("pass"), "local").rename("local-20261124-103012-ab12")
    run.write(folder.PLAN, '{"model": "x"}')
    with pytest.raises(RequestError, match="another version"):
        run.plan()
