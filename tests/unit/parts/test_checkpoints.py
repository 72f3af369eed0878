"""Checkpoints as files: a torn one is never whole, another run's is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from parts.checkpoints import Checkpoints, checkpoint_folder, open_checkpoints, result_before, settings
from parts.places import output_folder
from parts.say import UserError

from tests.unit.sample import options


@pytest.fixture(params=["sft_text.py", "sft_vlm.py"])
def script(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def asked(script: str, folder: Path, *args: str) -> Any:
    own = ("--output-dir", str(folder), "--batch-size", "8", "--gradient-accumulation", "2")
    return options(*own, *args, script=script)


def write(script: str, folder: Path, step: int, **changes: Any) -> Path:
    """A whole checkpoint of that step, of a run with the flags of `asked`."""
    made = Checkpoints(folder / "checkpoints", {}, 1, {})
    place = made.at(step)
    place.mkdir(parents=True)
    (place / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 8)
    (place / "optimizer.pt").write_bytes(b"moments" * 100)
    known = {
        "step": step, "steps": 16, "batch_size": 8, "gradient_accumulation": 2, "known": {},
        "settings": settings(asked(script, folder)),
    }  # fmt: skip
    assert made.seal(step, known | changes) > 2048 + 700
    return place


def find(args: Any) -> dict[str, Any]:
    return open_checkpoints(args)[1].found


def test_the_newest_whole_checkpoint_is_found(script: str, tmp_path: Path) -> None:
    write(script, tmp_path, 9)
    write(script, tmp_path, 10)
    assert open_checkpoints(asked(script, tmp_path))[1].folder == tmp_path / "checkpoints"
    assert find(asked(script, tmp_path))["step"] == 10


def test_the_newest_two_are_kept_and_torn_ones_are_not(script: str, tmp_path: Path) -> None:
    for step in (1, 2):
        write(script, tmp_path, step)
    (tmp_path / "checkpoints" / "checkpoint-9").mkdir()
    write(script, tmp_path, 3)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["checkpoint-2", "checkpoint-3"]


def test_older_ones_stay_until_a_new_one_is_whole(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    for step in (1, 2):
        write(script, tmp_path, step)
    monkeypatch.setattr(json, "dump", full)
    with pytest.raises(OSError, match="No space"):
        write(script, tmp_path, 3)
    assert find(asked(script, tmp_path))["step"] == 2
    assert (tmp_path / "checkpoints" / "checkpoint-1" / "manifest.json").is_file()


def test_checkpoints_of_the_version_before_are_refused_by_name(script: str, tmp_path: Path) -> None:
    before = tmp_path / "checkpoints" / "step-12"
    before.mkdir(parents=True)
    (before / "manifest.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="of an earlier version of this script") as error:
        open_checkpoints(asked(script, tmp_path))
    assert "--resume never" in error.value.paragraph
    assert find(asked(script, tmp_path, "--resume", "never")) == {}


def no_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def half_manifest(path: Path) -> None:
    content = (path / "manifest.json").read_bytes()
    (path / "manifest.json").write_bytes(content[: len(content) // 2])


def cut(path: Path) -> None:
    (path / "optimizer.pt").write_bytes((path / "optimizer.pt").read_bytes()[:-1])


def changed(path: Path) -> None:
    content = bytearray((path / "optimizer.pt").read_bytes())
    content[50] ^= 1
    (path / "optimizer.pt").write_bytes(content)


def missing(path: Path) -> None:
    (path / "adapter_model.safetensors").unlink()


def empty(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


@pytest.mark.parametrize("tear", [no_manifest, half_manifest, cut, changed, missing, empty])
def test_a_torn_checkpoint_is_left_out(
    script: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], tear: Callable[[Path], None]
) -> None:
    write(script, tmp_path, 4)
    tear(write(script, tmp_path, 6))
    assert find(asked(script, tmp_path))["step"] == 4
    assert "the checkpoint of step 6 is not whole and left out" in capsys.readouterr().out


def test_a_folder_of_another_name_is_no_checkpoint(script: str, tmp_path: Path) -> None:
    shutil.move(write(script, tmp_path, 4), tmp_path / "checkpoints" / "checkpoint-x")
    assert find(asked(script, tmp_path)) == {}


@pytest.mark.parametrize(
    ("args", "flag"),
    [
        (["--model", "other/model"], "--model is other/model here"),
        (["--dataset", "other/rows"], "--dataset is other/rows here"),
        (["--seed", "9"], "--seed is 9 here"),
        (["--max-length", "99"], "--max-length is 99 here"),
        (["--max-steps", "99"], "--max-steps is 99 here"),
        (["--learning-rate", "0.5"], "--learning-rate is 0.5 here"),
        (["--batch-size", "4"], "--batch-size times --gradient-accumulation is 8 here and 16 in"),
    ],
)
def test_a_run_with_other_settings_is_refused(script: str, tmp_path: Path, args: list[str], flag: str) -> None:
    write(script, tmp_path, 4)
    with pytest.raises(UserError) as error:
        open_checkpoints(asked(script, tmp_path, *args))
    assert flag in error.value.paragraph
    assert "in the checkpoint of step 4" in error.value.paragraph
    assert "--resume never" in error.value.paragraph
    assert error.value.status == 2


@pytest.mark.parametrize(
    "args", [["--logging-steps", "3"], ["--timeout-s", "99"], ["--checkpoint-minutes", "3"], ["--run-name", "other"]]
)
def test_what_is_not_learned_from_may_change(script: str, tmp_path: Path, args: list[str]) -> None:
    write(script, tmp_path, 4)
    assert find(asked(script, tmp_path, *args))["step"] == 4


def test_a_smaller_batch_is_taken_over_and_a_larger_one_is_not(script: str, tmp_path: Path) -> None:
    write(script, tmp_path, 4, batch_size=2, gradient_accumulation=8)
    args, _ = open_checkpoints(asked(script, tmp_path))
    assert (args.batch_size, args.gradient_accumulation) == (2, 8)
    args, _ = open_checkpoints(asked(script, tmp_path, "--batch-size", "1", "--gradient-accumulation", "16"))
    assert (args.batch_size, args.gradient_accumulation) == (1, 16)


def test_attempts_are_counted_and_a_finished_run_begins_anew(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoints"
    assert [open_checkpoints(asked(script, tmp_path))[1].attempt for _ in range(2)] == [1, 2]
    # Begun again with a smaller batch, it is the same one.
    monkeypatch.setenv("LAUNCH_STARTED", "1")
    assert open_checkpoints(asked(script, tmp_path))[1].attempt == 2
    monkeypatch.delenv("LAUNCH_STARTED")
    write(script, tmp_path, 4)
    (folder / "done").write_text('{"status": "done"}', encoding="utf-8")
    assert result_before(asked(script, tmp_path)) is None
    anew = open_checkpoints(asked(script, tmp_path))[1]
    assert (anew.found, anew.attempt) == ({}, 1)
    write(script, tmp_path, 4)
    assert find(asked(script, tmp_path, "--resume", "never")) == {}
    assert not (folder / "checkpoint-4").exists()


@pytest.mark.parametrize(
    ("left", "again"),
    [('{"status": "done"}', False), ('{"status": "do', True), ('{"status": "stopped"}', True), ("", True)],
)
def test_a_job_that_was_done_is_not_trained_again(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str, again: bool
) -> None:
    monkeypatch.setenv("LAUNCH_DATA_DIR", str(tmp_path))
    args = options("--batch-size", "8", "--gradient-accumulation", "2", script=script)
    assert result_before(args) is None
    write(script, tmp_path, 4, settings=settings(args))
    (tmp_path / "checkpoints" / "done").write_text(left, encoding="utf-8")
    assert result_before(args) == (None if again else left)
    # Torn, it costs the end of the run once more, and not the training.
    assert find(args)["step"] == 4
    assert result_before(replace(args, resume="never")) is None


def test_checkpoints_of_a_job_lie_beside_its_output(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAUNCH_DATA_DIR", str(tmp_path))
    args = options(script=script)
    assert output_folder(args) == tmp_path / "output"
    assert checkpoint_folder(args) == tmp_path / "checkpoints"
    monkeypatch.delenv("LAUNCH_DATA_DIR")
    assert checkpoint_folder(args) == Path("outputs", args.run_name, "checkpoints")


def test_a_record_is_json(script: str, tmp_path: Path) -> None:
    assert json.loads(json.dumps(settings(asked(script, tmp_path)))) == settings(asked(script, tmp_path))


SHAPES = [
    "[]", "{}", "null", "3", '{"a": 1}', '{"a": [1]}', '{"a": ["b", "c"]}', '{"\\u0000": [1, "x"]}', '{"a": {"b": 1}}',
    "[" * 3000, "\udcff", "NaN", '{"run.json": [2, 3]}',
]  # fmt: skip


@pytest.mark.parametrize("text", SHAPES)
@pytest.mark.parametrize("name", ["manifest.json", "run.json"])
def test_a_checkpoint_of_another_shape_is_left_out_in_each_attempt(
    script: str, tmp_path: Path, name: str, text: str
) -> None:
    write(script, tmp_path, 4)
    place = write(script, tmp_path, 6)
    (place / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    if name == "run.json":
        content = (place / name).read_bytes()
        manifest = json.loads((place / "manifest.json").read_text(encoding="utf-8"))
        manifest[name] = [len(content), hashlib.sha256(content).hexdigest()]
        (place / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    for attempt in (1, 2):
        _, found = open_checkpoints(asked(script, tmp_path))
        assert (found.found["step"], found.attempt) == (4, attempt)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"-3", b"9" * 5000, "\u0663".encode(), b"1.5", b" 2", b"[" * 100_000]
)
def test_what_else_lies_there_may_be_anything(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setenv("LAUNCH_DATA_DIR", str(tmp_path))
    args = options("--batch-size", "8", "--gradient-accumulation", "2", script=script)
    write(script, tmp_path, 4, settings=settings(args))
    for name in ("attempt", "done"):
        (tmp_path / "checkpoints" / name).write_bytes(content)
    shutil.copytree(tmp_path / "checkpoints" / "checkpoint-4", tmp_path / "checkpoints" / "checkpoint-old")
    assert result_before(args) is None
    _, found = open_checkpoints(args)
    assert (found.found["step"], found.attempt, found.whole) == (4, 1, [4])


def test_a_checkpoint_under_another_steps_name_is_left_out(
    script: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(script, tmp_path, 4)
    write(script, tmp_path, 6).rename(tmp_path / "checkpoints" / "checkpoint-9")
    assert find(asked(script, tmp_path))["step"] == 4
    assert "the checkpoint of step 9 is not whole and left out (it is of step 6)" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/attempt"])
@pytest.mark.parametrize("resume", ["auto", "never"])
def test_what_stands_in_the_way_is_an_error_with_what_to_do(
    script: str, tmp_path: Path, name: str, resume: str
) -> None:
    if name == "checkpoints":
        (tmp_path / name).touch()
    else:
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(UserError, match="can't be written") as error:
        open_checkpoints(asked(script, tmp_path, "--resume", resume))
    assert error.value.status == 3
    assert (tmp_path / name).exists()


def test_a_disk_that_is_full_at_the_start_is_an_error_with_what_to_do(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match="can't be written") as error:
        open_checkpoints(asked(script, tmp_path))
    assert error.value.status == 3


def test_rows_that_were_changed_between_two_attempts_are_refused(script: str, tmp_path: Path) -> None:
    rows, moved = tmp_path / "rows.jsonl", tmp_path / "elsewhere.jsonl"
    rows.write_text('{"text": "one"}\n', encoding="utf-8")
    write(script, tmp_path, 4, settings=settings(asked(script, tmp_path, "--dataset", str(rows))))
    shutil.copy(rows, moved)
    assert find(asked(script, tmp_path, "--dataset", str(moved)))["step"] == 4
    rows.write_text('{"text": "two"}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"--dataset is data of the SHA-256 .* here and data of the SHA-256 .* in the"):
        find(asked(script, tmp_path, "--dataset", str(rows)))
