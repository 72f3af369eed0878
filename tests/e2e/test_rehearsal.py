"""A rehearsal in the real training stack: twins of every family, trained, killed, gone on with, and looked at."""

from __future__ import annotations

import hashlib
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from launcher import catalog
from launcher.hub.client import Hub
from launcher.jobs import rehearse, twin
from launcher.plan.record import Plan
from tests.emulator import Hub as StandIn
from tests.faults import command
from tests.faults.trainings import Ended, Trainings
from tests.unit import sample

ROOT = Path(__file__).parents[2]
PROBE = Path(__file__).with_name("rehearsal_probe.py")
TEXT = ("llama-3.1", "llama-3.2", "qwen2.5", "qwen3", "mistral", "phi-4", "gemma-2", "gemma-3", "lfm2", "lfm2.5")
VISION = ("qwen3-vl", "gemma-3-vision", "llama-3.2-vision", "pixtral")
# The families of the catalog that are no others' in their config, and architectures that it does not list.
CONFIGS = ("qwen3_moe", "phi3", "lfm2_moe")
OTHERS = (
    "deepseek_v2", "deepseek_v3", "falcon", "gemma3n", "gemma4_26b_a4b", "gemma4_31b", "gemma4_e2b", "gpt2", "gpt_neox",
    "gpt_oss", "internvl", "lfm2_vl", "llama", "llava", "mistral3", "mixtral", "opt", "qwen2_moe", "qwen3_5",
    "qwen3_moe_mixed", "smolvlm",
)  # fmt: skip


def probe(trainings: Trainings, folder: Path, *words: object) -> dict[str, dict[str, Any]]:
    """What rehearsal_probe.py saw, by name."""
    done = trainings.run_script(PROBE, folder, *words, env={"PYTHONPATH": str(ROOT / "bench")})
    assert done.code == 0, done.log[-3000:] + done.error[-3000:]
    found = (json.loads(line[5:]) for line in done.log.splitlines() if line.startswith("SEEN "))
    return {seen["name"]: seen for seen in found}


@pytest.mark.parametrize("names", [TEXT + CONFIGS, pytest.param(OTHERS, marks=pytest.mark.slow)])
def test_a_twin_is_what_the_model_is_but_small(names: tuple[str, ...], trainings: Trainings, tmp_path: Path) -> None:
    found = probe(trainings, tmp_path, "shapes", *names)
    assert set(found) == set(names)
    for name, seen in found.items():
        before, after = seen["before"], seen["after"]
        assert 0 < seen["loss"] < 20, name
        assert seen["parameters"] < 60e6, name
        assert 2 <= after["layers"] <= 4 < before["layers"], name
        for kept in ("kinds", "shared", "vocabulary", "experts", "rope"):
            assert after[kept] == before[kept], (name, kept)


def write_rows(path: Path) -> Path:
    rows = [
        {
            "prompt": f"What colour is house {number}?",
            "completion": f"House {number} is {'red' if number % 2 else 'blue'}.",
        }
        for number in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def planned(model: Path, rows: Path, **changes: Any) -> Plan:
    """What a Job would train: far more than any CPU could, on rows of this machine."""
    return sample.plan(
        repo=str(model), revision="main", dataset=str(rows), eval_rows=8, max_steps=500, max_length=256, packing=True,
        effective_batch_size=16, output_repo="me/model", merge="16bit", gguf=("q4_k_m",), **changes,
    )  # fmt: skip


def rehearsed(trainings: Trainings, model: Path, folder: Path, *more: object) -> Ended:
    """The attempts of a rehearsal with that model's twin: killed once its first step is kept, and gone on with."""
    rows = write_rows(folder / "rows.jsonl")
    words = ("--dataset", rows, *rehearse.flags(planned(model, rows), model, folder / "out"), *more)
    first = trainings.start(None, *words, fate={"signal": {"checkpoint step 1": signal.SIGKILL}}).end()
    assert (first.code, first.steps) == (-signal.SIGKILL, [1]), first.log[-3000:]
    return trainings.run(None, *words)


def check(done: Ended, folder: Path) -> None:
    found = done.result
    assert (found["status"], found["steps"], done.resumed_from) == ("done", rehearse.STEPS, 1)
    assert (found["output_repo"], found["pushed"], found.get("exports")) == (None, False, None)
    assert 0 < found["tokens_trained"] < found["tokens_seen"]
    assert found["eval_loss"] < found["eval_loss_before"]
    assert {"README.md", "run.json", "adapter_model.safetensors"} <= {path.name for path in (folder / "out").iterdir()}


def test_the_script_trains_a_twin_goes_on_after_a_kill_and_leaves_what_loads(
    trainings: Trainings, smollm2: Path, tmp_path: Path
) -> None:
    def make(folder: Path) -> None:
        made = trainings.run_script(twin.SCRIPT, tmp_path, "make", folder)
        assert made.code == 0, made.error[-3000:]
        assert "llama: 2.4 M parameters, 2 of 30 layers" in made.log

    model = twin.folder_of(planned(smollm2, tmp_path / "rows.jsonl"), Hub(), make)
    assert (model / "tokenizer.json").read_bytes() == (smollm2 / "tokenizer.json").read_bytes()
    done = rehearsed(trainings, model, tmp_path)
    check(done, tmp_path)
    assert "rows of prompt and completion, 32 to train on\n" in done.log
    loaded = trainings.run_script(twin.SCRIPT, tmp_path, "load", tmp_path / "out")
    assert (loaded.code, loaded.log) == (0, "4 weights of the adapter, each as it was saved\n"), loaded.error[-3000:]
    (tmp_path / "out" / "adapter_model.safetensors").write_bytes(b"")
    assert trainings.run_script(twin.SCRIPT, tmp_path, "load", tmp_path / "out").code == 1


@pytest.mark.slow
@pytest.mark.parametrize("family", TEXT + CONFIGS)
def test_every_family_is_rehearsed(family: str, trainings: Trainings, tmp_path: Path) -> None:
    model = Path(probe(trainings, tmp_path, "folders", tmp_path, family)[family]["folder"])
    made = trainings.run_script(twin.SCRIPT, tmp_path, "make", model)
    assert made.code == 0, made.error[-3000:]
    tables = catalog.shipped()
    own = [known.lora_targets for known in tables.models.values() if family in (known.family, known.model_type)]
    targets = f"--lora-targets={','.join(own[0])}"
    # Adapters of experts take no dropout.
    check(rehearsed(trainings, model, tmp_path, targets, "--lora-dropout=0"), tmp_path)
    loaded = trainings.run_script(twin.SCRIPT, tmp_path, "load", tmp_path / "out")
    assert loaded.code == 0, loaded.error[-3000:]


@pytest.mark.slow
def test_the_job_gets_what_was_rehearsed_and_nothing_where_that_failed(smollm2: Path, tmp_path: Path) -> None:
    files = {path.name: path.read_bytes() for path in smollm2.iterdir() if path.suffix != ".safetensors"}
    rows, bad = write_rows(tmp_path / "rows.jsonl"), tmp_path / "bad.jsonl"
    bad.write_text('{"weight": 1}\n' * 20)
    with StandIn(tmp_path / "hub", run=False) as hub:
        hub.add_repo("lab/model", files=files)

        def launch(*words: object) -> command.Ran:
            return command.run("--model", "lab/model", "--dataset", *map(str, words), env=hub.env())

        failed = launch(bad, "--rehearse", "--yes")
        assert failed.returncode in (1, 2)
        assert "the script failed in its rehearsal: no usable column" in failed.stderr.replace("\n", " ")
        alone = launch(rows, "--rehearse")
        assert (alone.returncode, len(hub.jobs)) == (0, 0), alone.stderr
        assert "it goes on from step 1" in alone.stdout
        done = launch(rows, "--rehearse", "--yes", "--detach", "--json")
        assert done.returncode == 0, done.stderr
        found, [job] = json.loads(done.stdout), hub.jobs.values()
        sent = hub.buckets["tester/jobs-artifacts"].files[f"{job.labels['artifacts']}/sft_text.py"]
        assert (found["id"], found["rehearsal"]["script"]) == (job.id, hashlib.sha256(sent).hexdigest())
        assert {"README.md", "run.json", "adapter_model.safetensors"} <= set(found["rehearsal"]["files"])


@pytest.mark.slow
@pytest.mark.parametrize("family", VISION)
def test_the_rows_of_a_vision_run_are_taken_by_the_scripts_own_functions(
    family: str, trainings: Trainings, tmp_path: Path
) -> None:
    made = probe(trainings, tmp_path, "folders", tmp_path, family)[family]
    script, rows = sample.JOB_SCRIPTS / "sft_vlm.py", Path(made["rows"])
    wanted = planned(Path(made["folder"]), rows, modality="vision", image_size=224)
    words = ("look", script, "--dataset", rows, *rehearse.flags(wanted, Path(made["folder"]), tmp_path / "out"))
    looked = trainings.run_script(twin.SCRIPT, tmp_path, *words, "--max-length", 1024)
    assert looked.code == 0, looked.log[-3000:] + looked.error[-3000:]
    assert "labels: " in looked.log
    assert "\u27e6" in looked.log
    cut = trainings.run_script(twin.SCRIPT, tmp_path, *words, "--max-length", 16)
    assert cut.code == 2
    assert "Raise --max-length" in cut.error
