"""A full disk is said with its figures, before the training where it can be known, and costs nothing that was there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from uv import find_uv_bin

from tests.faults.script_driver import load
from tests.faults.trainings import Ended, Trainings

DRIVER = Path(__file__).with_name("disk_driver.py")
ADAPTER = 512 * 512 * 4


@contextmanager
def mounted(place: Path, mebibytes: int) -> Iterator[Path]:
    """A disk of its own size."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a disk of its own size needs root, and the right to mount")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture
def save(script: Path, trainings: Trainings, tmp_path: Path) -> Callable[..., Ended]:
    def run(folder: Path, seed: int, *limit: int) -> Ended:
        done = trainings.run_script(DRIVER, tmp_path, script, folder, seed, *limit)
        assert "Traceback" not in done.error, done.error
        return done

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def is_whole(adapter: bytes) -> bool:
    """Whether a safetensors file holds all that its header says."""
    size = 8 + int.from_bytes(adapter[:8], "little")
    return len(adapter) == size + int(json.loads(adapter[8:size])["lora_A"]["data_offsets"][1])


# ---- The end of a run ------------------------------------------------------------------------------------------------


def test_a_save_replaces_the_adapter_and_leaves_the_rest(save: Callable[..., Ended], tmp_path: Path) -> None:
    folder = tmp_path / "output"
    assert save(folder, 1).code == 0
    first = contents(folder)
    (folder / "notes.md").write_text("mine")
    (folder / ".saving").mkdir()
    (folder / ".saving" / "torn").write_text("of a run that was killed")
    assert save(folder, 2).code == 0
    second = contents(folder)
    assert set(second) == {"adapter_model.safetensors", "adapter_config.json", "notes.md"}
    assert second["notes.md"] == b"mine"
    assert is_whole(second["adapter_model.safetensors"])
    assert second["adapter_model.safetensors"] != first["adapter_model.safetensors"]


def test_a_save_that_is_cut_off_keeps_the_last_adapter(save: Callable[..., Ended], tmp_path: Path) -> None:
    folder = tmp_path / "output"
    assert save(folder, 1).code == 0
    before = contents(folder)
    done = save(folder, 2, ADAPTER // 2)
    assert done.code == 1
    assert f"the model could not be saved in {folder}" in done.error
    assert "File too large" in done.error
    assert contents(folder) == before
    assert not (folder / ".saving").exists()


def test_a_full_disk_keeps_the_last_adapter(save: Callable[..., Ended], tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", 3) as disk:
        folder = disk / "output"
        assert save(folder, 1).code == 0
        before = contents(folder)
        # A second adapter beside the first one does not fit with this.
        (disk / "other").write_bytes(b"\0" * 1_200_000)
        done = save(folder, 2)
        assert done.code == 1
        assert "No space left on device" in done.error
        assert "Make room and run this again" in done.error
        assert contents(folder) == before
        (disk / "other").unlink()
        assert save(folder, 2).code == 0
        assert contents(folder).keys() == before.keys()
        assert contents(folder) != before


# ---- Before the training ---------------------------------------------------------------------------------------------


def model(millions: float) -> Any:
    """What is asked of a model: so many parameters to train in 32 bits, and ten times as many that are not."""

    def parameter(count: float, trained: bool) -> Any:
        return SimpleNamespace(requires_grad=trained, numel=lambda: int(count), element_size=lambda: 4)

    return SimpleNamespace(parameters=lambda: [parameter(millions * 1e6, True), parameter(millions * 1e7, False)])


def test_a_disk_that_is_too_small_is_refused_with_its_figures(script: Path, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", 200) as disk:
        module = load(str(script))
        # 4 M parameters: 16 MB, 3 x (16 + 8) MB, 67 MB for the rest: 155 MB.
        module.check_disk(disk / "not" / "there" / "yet", model(4), "adamw_8bit")
        (disk / "other").write_bytes(b"\0" * 100_000_000)
        with pytest.raises(module.UserError) as error:
            module.check_disk(disk / "not" / "there" / "yet", model(4), "adamw_8bit")
        assert error.value.status == 3
        assert f"the disk of {disk} has 0.11 GB free, and this run writes 0.16 GB" in error.value.paragraph
        assert "(an adapter of 0.02 GB, three checkpoints of 0.02 GB)" in error.value.paragraph
        (disk / "other").unlink()
        # In 32 bits the moments of the optimizer are four times as large.
        with pytest.raises(module.UserError, match=r"this run writes 0\.23 GB"):
            module.check_disk(disk, model(4), "adamw_torch")


def test_a_bucket_that_says_nothing_of_its_size_is_not_refused(script: Path, tmp_path: Path) -> None:
    module = load(str(script))
    module.shutil = SimpleNamespace(disk_usage=lambda place: SimpleNamespace(total=0, used=0, free=0))
    module.check_disk(tmp_path, model(1000), "adamw_torch")


# ---- A whole run -----------------------------------------------------------------------------------------------------


Train = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def train(script: Path, tiny: Path, tmp_path: Path) -> Train:
    """Starts a run of the real script on the CPU, which saves in that folder."""
    rows = [{"prompt": f"What colour is house {n}?", "completion": f"House {n} is red."} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(folder: Path, *args: object) -> subprocess.Popen[str]:
        flags = ("--model", tiny, "--dataset", tmp_path / "rows.jsonl", "--eval-rows", 0, "--max-length", 64)
        rest = ("--device", "cpu", "--trackio-project", "", "--output-dir", folder, *args)
        program = [find_uv_bin(), "run", "--quiet", "--python", sys.executable, script]
        env = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"} | {"HF_HUB_OFFLINE": "1"}
        return subprocess.Popen(
            [*map(str, (*program, *flags, *rest))],
            cwd=tmp_path,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return run


@pytest.mark.slow
def test_a_run_is_refused_before_the_training(train: Train, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", 50) as disk:
        with train(disk / "output", "--max-steps", 2) as process:
            out, error = process.communicate(timeout=600)
        assert process.returncode == 3, out + error
        assert error.splitlines()[-1].startswith(f"error: the disk of {disk / 'output'} has 0.05 GB free")
        assert "== train" not in out
        # That there was an attempt, and nothing else.
        assert contents(disk) == {"output/checkpoints/attempt": b"1"}


@pytest.mark.slow
def test_a_disk_that_fills_up_while_training_keeps_what_was_there(train: Train, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", 400) as disk:
        folder = disk / "output"
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(b"of yesterday")
        with train(folder, "--max-steps", 6) as process:
            assert process.stdout is not None
            assert any(line.startswith("step 1/") for line in process.stdout)
            with suppress(OSError), (disk / "other").open("wb", buffering=0) as other:
                while other.write(b"\0" * 2**20):
                    pass
            assert shutil.disk_usage(disk).free == 0
            _, error = process.communicate(timeout=600)
        assert process.returncode == 1, error
        last = error.splitlines()[-1]
        assert last.startswith(f"error: the model could not be saved in {folder}")
        assert "No space left on device" in last
        assert contents(folder)["adapter_model.safetensors"] == b"of yesterday"
        assert not (folder / ".saving").exists()
