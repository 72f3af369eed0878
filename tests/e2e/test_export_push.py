"""What is pushed of exports, and what goes from the Hub with it: the scripts' own functions, on the stand-in Hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from uv import find_uv_bin

from tests.emulator import Hub
from tests.unit.sample import JOB_SCRIPTS

REPO = "tester/houses"
# Calls in the training stack's own environment, which has another release of the Hub's client; the last one's answer.
CALL = """\
import json, runpy, sys
from pathlib import Path
from argparse import Namespace
script = runpy.run_path(sys.argv[1], run_name="called")

def given(word):
    if isinstance(word, dict):
        return Namespace(**word) if "run_name" in word else {name: given(value) for name, value in word.items()}
    return Path(word) if isinstance(word, str) and word.startswith("/") else word

try:
    for name, words in json.loads(sys.argv[2]):
        found = script[name](*map(given, words))
    print(json.dumps(found))
except script["UserError"] as problem:
    print(json.dumps([problem.status, problem.paragraph]))
"""
Call = Callable[..., Any]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path / "hub") as hub:
        hub.add_repo(REPO, files={"README.md": "---\n{}\n---\n", "adapter_model.safetensors": b"a"})
        yield hub
        assert hub.unknown_requests == []


@pytest.fixture(scope="module")
def python() -> str:
    committed = str(JOB_SCRIPTS / "export.py")
    sync = [find_uv_bin(), "sync", "--quiet", "--script", committed, "--python", sys.executable]
    subprocess.run(sync, check=True, timeout=900)
    find = [find_uv_bin(), "python", "find", "--script", committed]
    return subprocess.run(find, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def call(hub: Hub, python: str) -> Call:
    def run(*calls: tuple[str, list[Any]], script: str = "export.py") -> Any:
        """What the last of the script's functions returns, or the status and the words of its refusal."""
        command = [python, "-c", CALL, str(JOB_SCRIPTS / script), json.dumps(calls)]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "VIRTUAL_"))}
        done = subprocess.run(
            command, env=inherited | hub.env(), capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


def test_a_push_deletes_what_is_stale_in_its_own_commit(hub: Hub, call: Call, tmp_path: Path) -> None:
    for name in ("new.bin", "same.bin"):
        (tmp_path / name).write_bytes(b"new")
    repo = hub.repos[REPO]
    for name in ("old.bin", "same.bin", "mine.bin"):
        repo.commit({**repo.head.files, name: repo.head.files["README.md"]}, "an earlier one")
    before = len(repo.commits)
    # The second is after a lost answer.
    for failure in (None, "after_commit"):
        if failure:
            hub.fail_next(failure, f"POST /api/models/{REPO}/commit", times=1)
            repo.commit({**repo.head.files, "old.bin": repo.head.files["README.md"]}, "once more")
        stale = ["old.bin", "same.bin", "never-there.bin"]
        call(("push", [str(tmp_path), REPO, ["new.bin", "same.bin"], stale]))
        assert {"README.md", "new.bin", "same.bin", "mine.bin"} <= set(repo.files)
        assert "old.bin" not in repo.files
        assert repo.files["same.bin"] == b"new"
    assert len(repo.commits) == before + 3


@pytest.mark.parametrize("name", ["houses", "tester/houses", "tester/other"])
def test_a_merged_model_goes_to_no_repo_with_an_adapter(hub: Hub, call: Call, name: str) -> None:
    hub.add_repo("tester/other", files={"adapter_config.json": "{}"})
    args = {"run_name": "r", "merged_repo": name, "private": False}
    status, said = call(("open_merged_repo", [args, REPO]))
    assert status == 3
    assert f"--merged-repo tester/{name.split('/')[-1]}: the adapter is there" in said
    assert call(("open_merged_repo", [args | {"merged_repo": "whole"}, REPO])) == "tester/whole"
    assert call(("open_merged_repo", [args | {"merged_repo": None}, REPO])) is None


def files_of(hub: Hub, name: str) -> set[str]:
    return set(hub.repos[name].files) - {".gitattributes", "README.md"}


def merged_copy(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in ("config.json", *names):
        (folder / name).write_bytes(b"{}")
    return folder


IN_SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json")


@pytest.mark.parametrize("merged_repo", [None, "tester/whole"])
def test_a_merged_copy_leaves_nothing_of_an_earlier_one(
    hub: Hub, call: Call, tmp_path: Path, merged_repo: str | None
) -> None:
    """transformers would load the one file of the 4-bit copy, and not the shards of the later one."""
    hub.add_repo("tester/whole", files={"NOTES.md": "mine"})
    (tmp_path / "place").mkdir()
    for kind, names in (("4bit", ("model.safetensors", "chat_template.jinja")), ("16bit", IN_SHARDS)):
        copy = merged_copy(tmp_path / kind, *names)
        entry = {"kind": "merged", "name": kind}
        call(("keep_merged", [entry, {kind: str(copy)}, str(tmp_path / "place"), REPO, merged_repo]))
    if merged_repo:
        assert files_of(hub, merged_repo) == {"NOTES.md", "config.json", "chat_template.jinja", *IN_SHARDS}
        assert files_of(hub, REPO) == {"adapter_model.safetensors"}
    else:
        merged = {f"merged/{name}" for name in ("config.json", *IN_SHARDS)}
        assert files_of(hub, REPO) == {"adapter_model.safetensors", *merged}


def test_a_gguf_file_takes_the_place_of_earlier_ones_of_its_type(hub: Hub, call: Call, tmp_path: Path) -> None:
    """llama.cpp and Ollama would find the first of them by their type."""
    earlier = ("houses-export-20261124.Q4_K_M.gguf", "houses-export-20261124.F16-mmproj.gguf", "houses.Q8_0.gguf")
    hub.add_repo("tester/seeing", files=dict.fromkeys((*earlier, "Q4_K_M.md", "other/r.Q4_K_M.gguf"), b"GGUF"))
    for name in ("seeing.Q4_K_M.gguf", "seeing.F16-mmproj.gguf", "houses.F16-mmproj.gguf", "Modelfile"):
        (tmp_path / name).write_bytes(b"new")
    entry = {"kind": "gguf", "name": "q4_k_m", "path": "seeing.Q4_K_M.gguf"}
    call(("push_gguf", [entry, str(tmp_path), "tester/seeing"]), script="export_vlm.py")
    new = {"seeing.Q4_K_M.gguf", "seeing.F16-mmproj.gguf", "Modelfile"}
    assert files_of(hub, "tester/seeing") == {*new, "houses.Q8_0.gguf", "Q4_K_M.md", "other/r.Q4_K_M.gguf"}
    assert len(hub.repos["tester/seeing"].commits) == 2
