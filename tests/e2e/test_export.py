"""Exports of the real small model, trained by the real script on this CPU: what is made, and what a failure costs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from uv import find_uv_bin

from tests.emulator import Hub
from tests.faults.trainings import Ended, Trainings

ROOT = Path(__file__).parents[2]
BUILD = os.environ.get("UNSLOTH_LLAMA_CPP_PATH")

# Plain transformers and PEFT, in a process without Unsloth.
ANSWERS = """\
import json, sys
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base, adapter, merged = sys.argv[1:]
said = []
for place in (adapter, merged):
    tokenizer = AutoTokenizer.from_pretrained(place)
    if place == adapter:
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype="auto"), adapter)
    else:
        model = AutoModelForCausalLM.from_pretrained(place, dtype="auto")
    answers = []
    for number in (3, 4, 11):
        asked = [{"role": "user", "content": f"What colour is house {number}?"}]
        inputs = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=16, do_sample=False)
        answers.append(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:]))
    said.append(answers)
print(json.dumps(said))
"""


@dataclass(frozen=True)
class Run:
    """A training that was to be merged and converted, with a llama.cpp whose converter fails."""

    folder: Path
    model: Path
    done: Ended

    @property
    def result(self) -> dict[str, Any]:
        [line] = [line for line in self.done.log.splitlines() if line.startswith("RESULT ")]
        found: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
        return found


def run(script: str, folder: Path, *args: object, **env: str) -> subprocess.CompletedProcess[str]:
    command = [find_uv_bin(), "run", "--quiet", "--python", sys.executable, str(ROOT / "job_scripts" / script)]
    own = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"} | {"HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [*command, *map(str, args)], cwd=folder, env=own | env, capture_output=True, text=True, timeout=900, check=False
    )


def plain(code: str, *args: object) -> Any:
    """What a program says in the scripts' environment."""
    find = [find_uv_bin(), "python", "find", "--script", str(ROOT / "job_scripts" / "sft_text.py")]
    python = subprocess.run(find, capture_output=True, text=True, check=True).stdout.strip()
    env = os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([python, "-c", code, *map(str, args)], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def training(model: Path) -> tuple[object, ...]:
    return (
        "--model", model, "--dataset", "rows.jsonl", "--max-steps", 12, "--batch-size", 4, "--gradient-accumulation", 1,
        "--max-length", 128, "--eval-rows", 0, "--learning-rate", "2e-3", "--run-name", "houses", "--device", "cpu",
        "--trackio-project", "",
    )  # fmt: skip


def write_rows(folder: Path) -> None:
    rows = []
    for number in range(16):
        answer = f"House {number} is {'red' if number % 2 else 'blue'}."
        asked = {"role": "user", "content": f"What colour is house {number}?"}
        rows.append(json.dumps({"messages": [asked, {"role": "assistant", "content": answer}]}))
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def trained(trainings: Trainings, smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("trained")
    write_rows(folder)
    # It looks whole before the training, and fails after it.
    broken = folder / "llama.cpp"
    (broken / "gguf-py" / "gguf").mkdir(parents=True)
    (broken / "gguf-py" / "gguf" / "gguf_reader.py").touch()
    (broken / "convert_hf_to_gguf.py").write_text("raise SystemExit('no such architecture')\n", encoding="utf-8")
    # Where CI is set, torch takes Unsloth's memory planning for an error.
    env = {"UNSLOTH_LLAMA_CPP_PATH": str(broken), "CI": "true"}
    asked = (*training(smollm2), "--merge", "16bit", "--gguf", "f16")
    done = trainings.run_script(ROOT / "job_scripts" / "sft_text.py", folder, *asked, env=env)
    return Run(folder / "outputs" / "houses", smollm2, done)


@pytest.mark.slow
def test_the_merged_model_answers_in_plain_transformers_as_adapter_and_base_do(trained: Run) -> None:
    merged = next(entry for entry in trained.result["exports"] if entry["kind"] == "merged")
    assert merged["error"] is None
    assert (merged["path"], merged["repo"]) == ("merged", None)
    assert "the same answer of " in merged["checked"]
    files = {path.name for path in (trained.folder / "merged").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "generation_config.json"} <= files
    assert "chat_template.jinja" in files
    with_adapter, from_merged = plain(ANSWERS, trained.model, trained.folder, trained.folder / "merged")
    assert from_merged == with_adapter
    # It learned what the model did not know: the answers are the adapter's.
    assert all(answer.startswith("House ") for answer in from_merged)


@pytest.mark.slow
def test_an_export_that_fails_costs_neither_the_adapter_nor_the_other_exports(trained: Run) -> None:
    gguf = next(entry for entry in trained.result["exports"] if entry["kind"] == "gguf")
    assert "no such architecture" in gguf["error"] or "convert" in gguf["error"]
    assert trained.done.code == 1
    said = trained.done.error.strip().splitlines()[-1]
    assert said.startswith("error: the adapter is whole; 1 of 2 exports failed (gguf f16: ")
    assert said.endswith("launch export outputs/houses --gguf f16")
    assert trained.result["status"] == "done"
    assert (trained.folder / "adapter_model.safetensors").stat().st_size > 1_000_000
    assert "Merged, 16bit" in (trained.folder / "README.md").read_text(encoding="utf-8")
    # Nothing half-made is left.
    assert not list(trained.folder.glob("*.gguf"))
    assert not (trained.folder / ".exporting").exists()


@pytest.mark.parametrize(
    ("args", "status", "says"),
    [
        (("--gguf", "q4_k_m"), 3, "UNSLOTH_LLAMA_CPP_PATH=/nowhere: there is no such folder"),
        (("--merge", "4bit", "--load-in", "4bit"), 2, "there are none on a CPU"),
    ],
)
def test_what_can_not_be_made_is_refused_before_the_training(
    args: tuple[str, ...], status: int, says: str, trainings: Trainings, tiny: Path, tmp_path: Path
) -> None:
    write_rows(tmp_path)
    script, env = ROOT / "job_scripts" / "sft_text.py", {"UNSLOTH_LLAMA_CPP_PATH": "/nowhere"}
    done = trainings.run_script(script, tmp_path, *training(tiny), *args, env=env)
    assert done.code == status
    assert says in done.error
    assert "== train" not in done.log


@pytest.mark.slow
@pytest.mark.skipif(BUILD is None, reason="UNSLOTH_LLAMA_CPP_PATH names no build of llama.cpp (bench/llama_cpp.sh)")
def test_gguf_files_of_the_adapter_answer_in_llama_cpp_as_it_does(trained: Run, tmp_path: Path) -> None:
    names = ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md",
             "chat_template.jinja", "generation_config.json", "run.json")  # fmt: skip
    for name in names:
        (tmp_path / "mine").mkdir(exist_ok=True)
        shutil.copy(trained.folder / name, tmp_path / "mine")
    types = ("f16", "q8_0", "q4_k_m")
    done = run("export.py", tmp_path, "--adapter", "mine", "--device", "cpu", "--load-in", "16bit",
               *(word for kind in types for word in ("--gguf", kind)))  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))["exports"]
    assert [entry["path"] for entry in found] == [f"mine.{kind.upper()}.gguf" for kind in types]
    for entry in found:
        assert (tmp_path / "mine" / entry["path"]).is_file()
        assert "the end token and the chat template are the model's" in entry["checked"]
    # Two that are as exact as what was merged.
    assert all(entry["checked"].startswith("the same answer in llama.cpp") for entry in found[:2])
    assert (tmp_path / "mine" / "Modelfile").read_text(encoding="utf-8").startswith("FROM ./mine.F16.gguf")
    card = (tmp_path / "mine" / "README.md").read_text(encoding="utf-8")
    assert not (tmp_path / "mine" / "merged").exists()
    for kind, line in zip(types, llama_cpp_lines(card), strict=True):
        assert loaded_by(line, tmp_path, tmp_path / "mine") == f"mine.{kind.upper()}.gguf"

    # Of a pushed one the line names the repo and the type, under which another file may be found first.
    with Hub(tmp_path / "hub") as hub:
        hub.add_repo(
            "tester/houses", files={"houses-export-20261124.Q8_0.gguf": b"GGUF of an earlier export"}, private=True
        )
        pushed = ("--output-repo", "tester/houses", "--gguf", "f16", "--gguf", "bf16", "--gguf", "q8_0")
        done = run("export.py", tmp_path, "--adapter", "mine", "--device", "cpu", "--load-in", "16bit", *pushed,
                   **hub.env(), HF_HUB_OFFLINE="0")  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        files = hub.repos["tester/houses"].files
        assert {name for name in files if name.endswith(".gguf")} == {
            f"houses.{kind}.gguf" for kind in ("F16", "BF16", "Q8_0")
        }
        lines = llama_cpp_lines(files["README.md"].decode())
        for kind, line in zip(("F16", "BF16", "Q8_0"), lines, strict=True):
            assert " -hf tester/houses" in line
            assert loaded_by(line, tmp_path, tmp_path, **hub.env()) == f"houses.{kind}.gguf"
        assert not hub.unknown_requests


def llama_cpp_lines(card: str) -> list[str]:
    """The commands of the card's section on llama.cpp."""
    [block] = re.findall("### llama.cpp\n\n```sh\n(.*?)\n```", card, re.DOTALL)
    return str(block).splitlines()


def loaded_by(line: str, tmp_path: Path, folder: Path, **env: str) -> str:
    """The file that llama.cpp takes for such a line, and answers from; of llama-completion, since llama-cli is built
    with llama.cpp's server only."""
    program = tmp_path / "bin" / "llama-cli"
    program.parent.mkdir(exist_ok=True)
    options = "-no-cnv -n 8 -c 256 --no-warmup -v"
    program.write_text(f'#!/bin/sh\nexec {BUILD}/llama-completion "$@" {options}\n', encoding="utf-8")
    program.chmod(0o755)
    found = os.environ | {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"} | env
    done = subprocess.run(line, shell=True, cwd=folder, env=found | {"HF_HOME": str(tmp_path / "hf")}, input="",
                          capture_output=True, text=True, timeout=300, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert "What can you do?" in done.stdout
    [path] = set(re.findall(r"loaded meta data .* from (\S+\.gguf)", done.stderr))
    return Path(path).name


@pytest.mark.slow
def test_a_merge_on_a_cpu_takes_the_revision_that_was_trained_on(smollm2: Path, tmp_path: Path) -> None:
    """The repo's newest commit holds no model at all any more: its weights are zeros."""
    with Hub(tmp_path / "hub") as hub:
        repo = hub.add_repo("tester/base", folder=smollm2)
        trained, weights = repo.head, repo.head.files["model.safetensors"]
        start = 8 + int.from_bytes(weights.data[:8], "little")
        zeros = weights.data[:start] + bytes(len(weights.data) - start)
        repo.commit({**trained.files, "model.safetensors": replace(weights, data=zeros)}, "zeros")
        write_rows(tmp_path)
        asked = (*training(Path("tester/base")), "--revision", trained.oid, "--max-steps", 2, "--merge", "16bit")
        done = run("sft_text.py", tmp_path, *asked, **hub.env(), HF_HUB_OFFLINE="0")
        assert done.returncode == 0, done.stdout + done.stderr
        [merged] = json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))["exports"]
        assert merged["error"] is None
        assert "the same answer of " in merged["checked"]
        assert f"merged into tester/base of commit {trained.oid}" in done.stdout
