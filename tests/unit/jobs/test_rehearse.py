"""What a rehearsal does around the script: real processes, with a stand-in for the training in them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from parts import options as read_options

from launcher import home
from launcher.errors import JobFailedError, RequestError
from launcher.hub.client import Hub
from launcher.jobs import rehearse, supervise, twin
from launcher.jobs.base import JobRequest
from tests.emulator import Hub as StandIn
from tests.unit.sample import SAY, export_plan, options, plan, request

# Keeps a step, and goes on from it where it is there.
TRAINING = """
import sys, pathlib, time
folder = pathlib.Path(next(word for word in sys.argv if word.startswith("--output-dir=")).partition("=")[2])
say("== train")
if (folder / "step").exists():
    say("resumed from step 1")
    sys.exit(0)
folder.mkdir()
(folder / "step").touch()
(folder.parent / "pid").write_text(str(__import__("os").getpid()))
say("checkpoint step 1 | 0.1s | 1 MB")
time.sleep(600)
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of this machine whose twin is there already, so that none has to be made."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"large")
    (folder / "model.safetensors.index.json").write_text("{}")
    twin.folder_of(plan(repo=str(folder)), Hub(), lambda made: None)
    return folder


def asked(body: str, model: Path, **changes: Any) -> JobRequest:
    return request(SAY + body, of=plan(repo=str(model), **changes))


def lines(request: JobRequest) -> Iterator[str]:
    for item in rehearse.rehearse(request, Hub()):
        yield item.text if not isinstance(item, rehearse.Rehearsed) else "rehearsed"


def test_it_is_killed_once_a_step_is_kept_and_started_once_more(model: Path) -> None:
    seen: list[str] = []
    # What loads the adapter needs the training stack, which this script does not ask for.
    with pytest.raises(JobFailedError, match="the adapter that was saved can't be used") as failed:
        seen.extend(lines(asked(TRAINING, model)))
    assert failed.value.message.endswith("No module named 'torch'")
    assert failed.value.exit_code == 1
    said = [line for line in seen if not line.startswith("== rehearsal")]
    assert said[:4] == ["== train", "checkpoint step 1 | 0.1s | 1 MB", "== train", "resumed from step 1"]


def test_the_script_is_the_jobs_byte_for_byte_and_only_its_arguments_are_others(model: Path, tmp_path: Path) -> None:
    copy, seen = tmp_path / "copy", list[str]()
    body = f"import shutil, sys; shutil.copy(__file__, {str(copy)!r}); print('given', *sys.argv[1:]); sys.exit(3)"
    wanted = asked(body, model, dataset="lab/rows", merge="4bit", gguf=("q4_k_m",), output_repo="me/x", packing=True)
    with pytest.raises(JobFailedError):
        seen.extend(lines(wanted))
    assert copy.read_bytes() == wanted.script.encode()
    [given] = [line.split()[1:] for line in seen if line.startswith("given ")]
    told = options(*given)
    assert (told.max_steps, told.device, told.streaming, told.packing) == (rehearse.STEPS, "cpu", True, False)
    assert not (told.merge or told.gguf or told.output_repo or told.merged_repo or told.trackio_project)
    read_options.check_options(told)


def test_a_script_that_fails_fails_the_rehearsal_with_its_status(model: Path) -> None:
    with pytest.raises(JobFailedError, match="the script failed in its rehearsal: no usable column") as failed:
        list(lines(asked("import sys; say('error: no usable column.'); sys.exit(2)", model)))
    assert failed.value.exit_code == 2
    assert "paid" in failed.value.hint
    with pytest.raises(JobFailedError, match="ZeroDivisionError") as failed:
        list(lines(asked("1 / 0", model)))
    assert failed.value.exit_code == 1
    assert not list(home.cache().glob("rehearsal-*"))


def test_whoever_leaves_it_ends_it(model: Path) -> None:
    items = rehearse.rehearse(asked(TRAINING.replace("checkpoint step 1", "checkpoint step 2"), model), Hub())
    for item in items:
        if not isinstance(item, rehearse.Rehearsed) and "checkpoint" in item.text:
            break
    [place] = home.cache().glob("rehearsal-*")
    pid = int((place / "pid").read_text())
    assert supervise.identity(pid)
    items.close()
    assert supervise.identity(pid) is None
    assert not place.exists()


def test_what_can_not_be_rehearsed_is_said(model: Path) -> None:
    with pytest.raises(RequestError, match="the Python of its repo"):
        list(lines(asked("", model, trust_remote_code=True)))
    with pytest.raises(RequestError, match="an export"):
        list(lines(request("", of=export_plan())))


# ---- The twin --------------------------------------------------------------------------------------------------------


def test_a_twin_is_made_once_of_all_but_the_weights_at_each_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []
    with StandIn(tmp_path / "hub", run=False) as hub:
        for name, value in hub.env().items():
            monkeypatch.setenv(name, value)
        files = {
            "config.json": "{}", "tokenizer.json": "1", "chat_template.jinja": "x", "model.safetensors": "large",
            "model.safetensors.index.json": "{}", "modeling.py": "code", "original/params.json": "{}",
        }  # fmt: skip
        repo = hub.add_repo("lab/model", files=files)
        wanted = plan(repo="lab/model", revision=repo.head.oid)
        folder = twin.folder_of(wanted, Hub(), made.append)
        assert sorted(path.name for path in folder.iterdir()) == [
            "chat_template.jinja",
            "config.json",
            "tokenizer.json",
        ]
        assert twin.folder_of(plan(repo="lab/model"), Hub(), made.append) == folder
        repo.commit(dict(repo.head.files), "another")
        assert twin.folder_of(plan(repo="lab/model"), Hub(), made.append) != folder
        assert len(made) == 2
        # Nothing is trained on a vision model's, and its config is the real one.
        assert twin.folder_of(plan(repo="lab/model", modality="vision"), Hub(), made.append) != folder
        assert len(made) == 2
    # A commit is known by its name.
    assert twin.folder_of(wanted, Hub(), made.append) == folder


def test_a_twin_that_fails_leaves_nothing_half_made(model: Path) -> None:
    (model / "tokenizer.json").write_text("new")

    def fail(folder: Path) -> None:
        raise JobFailedError("no")

    with pytest.raises(JobFailedError):
        twin.folder_of(plan(repo=str(model)), Hub(), fail)
    assert len(list((home.cache() / "twins").iterdir())) == 1
