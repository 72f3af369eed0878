"""The output folder: empty or a run's own, one run at a time, and nothing of anybody else's in danger."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from parts import places
from parts.checkpoints import forget
from parts.options import check_options
from parts.places import claim, show_life
from parts.say import UserError

from tests.unit.sample import options

TEMPLATES = Path(__file__).parents[3] / "templates"
HOLD = """
import sys, time
from pathlib import Path
from parts.places import lock
lock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUNCH_HOLDS", "")


def asked(folder: Path) -> Any:
    return options("--output-dir", str(folder))


def theirs(folder: Path) -> dict[str, bytes]:
    for name in ("keys/id_rsa", "thesis.txt", "README.md", "checkpoints/old.bin", "run.json", "adapter_config.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return files(folder)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_with_files_that_no_run_made_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    before = theirs(tmp_path)
    with pytest.raises(UserError, match="is not empty, and no run made it") as error:
        claim(asked(tmp_path))
    assert error.value.status == 2
    assert "--output-dir" in error.value.paragraph
    assert files(tmp_path) == before


def test_a_link_to_such_a_folder_is_refused_too(tmp_path: Path) -> None:
    theirs(tmp_path / "theirs")
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    with pytest.raises(UserError, match="no run made it"):
        claim(asked(tmp_path / "link"))


@pytest.mark.parametrize("made", [None, ".launch", "checkpoints/attempt"])
def test_a_new_folder_and_a_runs_own_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: str | None
) -> None:
    folder = tmp_path / "out"
    if made:
        (folder / made).parent.mkdir(parents=True)
        (folder / made).touch()
    claim(asked(folder))
    assert (folder / ".launch").is_file()
    assert os.environ["LAUNCH_HOLDS"] == str(folder.resolve())


@pytest.mark.parametrize("kind", ["file", "below a file"])
def test_what_is_no_folder_is_an_error_with_what_to_do(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError) as error:
        claim(asked(tmp_path / "file" / "below" if kind == "below a file" else tmp_path / "file"))
    assert error.value.status == 3
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


def test_two_runs_in_one_folder_are_one_too_many(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    command = [sys.executable, "-c", HOLD, str(folder / ".launch")]
    with subprocess.Popen(command, cwd=TEMPLATES, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another run works in") as error:
            claim(asked(folder))
        assert error.value.status == 3
        other.kill()
    # However it ended, its claim ended with it.
    claim(asked(folder))


@pytest.mark.parametrize(
    ("left", "renewed", "refused"),
    [
        (None, False, False),
        ("job-a {now}", True, True),
        ("job-a {now}", False, False),  # killed a moment ago
        ("job-a 12.5", True, False),  # long ago, whatever becomes of it
        ("job-b {now}", True, False),  # this Job's attempt before
        ("\udcff nonsense", False, False),
    ],
)
def test_another_job_at_work_on_the_volume_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str | None, renewed: bool, refused: bool
) -> None:
    path, start, slept = tmp_path / "alive", time.time(), [0.0]
    if left:
        path.write_bytes(left.format(now=start).encode("utf-8", "surrogateescape"))

    def sleep(seconds: float) -> None:
        slept[0] += seconds
        if renewed:
            path.write_text(f"job-a {start + slept[0]}", encoding="utf-8")

    monkeypatch.setenv("JOB_ID", "job-b")
    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(threading, "Thread", lambda **_: type("Thread", (), {"start": lambda self: None})())
    if refused:
        with pytest.raises(UserError, match="Job job-a works on this run") as error:
            show_life(path)
        assert "launch cancel job-a" in error.value.paragraph
    else:
        show_life(path)
        assert slept[0] <= 3 * places.ALIVE_S + 1


def test_a_job_that_begins_again_in_its_own_place_goes_on_showing_that_it_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAUNCH_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("JOB_ID", "job-a")
    shown: list[Path] = []
    monkeypatch.setattr(places, "show_life", shown.append)
    claim(options())
    # `os.execv` keeps the environment, and no thread.
    claim(options())
    assert shown == [tmp_path / "alive"] * 2


def test_starting_over_removes_what_runs_note_and_nothing_else(tmp_path: Path) -> None:
    for name in ("checkpoint-3/run.json", "step-7/manifest.json", "attempt", "done", "began-0a1b", "checkpoint-x/a",
                 "old.bin", "attempts", "notes/checkpoint-4/b"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    forget(tmp_path)
    assert set(files(tmp_path)) == {"checkpoint-x/a", "old.bin", "attempts", "notes/checkpoint-4/b"}


@pytest.mark.parametrize("name", ["model", "dataset", "output_dir"])
def test_a_path_that_can_not_be_looked_at_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (str(tmp_path / "loop" / "x"), "~nobody-of-that-name/x", str(tmp_path / ("x" * 300)), "a\0b"):
        try:
            check_options(replace(options(script="sft_text.py"), **{name: path}))
        except UserError as error:
            assert error.status == 2 and "no path that can be looked at" in error.paragraph
        else:
            assert path.endswith("loop/x")  # later Pythons only find nothing there
