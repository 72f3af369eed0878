"""What lies next to a trained model: one real training, pushed to the stand-in Hub, and the card's snippets run."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from uv import find_uv_bin

from launcher import catalog, spec
from launcher.plan import make as planner
from launcher.render import render
from launcher.runs import record
from tests.emulator import Hub
from tests.emulator.cards import problems
from tests.faults.trainings import Trainings

BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
DATASET = "tester/houses"
REPO = "tester/house-colours"
ROWS = 20
BESIDE = ("thesis.txt", "keys/id_rsa", "notes.json", "checkpoints/old.bin")


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished run: the Hub that holds its model, its script, its folder and its result."""

    hub: Hub
    script: Path
    folder: Path
    result: dict[str, Any]
    log: str

    def text(self, name: str) -> str:
        return self.hub.repos[REPO].files[name].decode()

    @property
    def run(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.text("run.json"))
        return found


@pytest.fixture(scope="module")
def trained(trainings: Trainings, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    place = tmp_path_factory.mktemp("card")
    chats = [
        [{"role": "user", "content": f"House {number}?"}, {"role": "assistant", "content": "Blue."}]
        for number in range(ROWS)
    ]
    tables = catalog.load()
    asked = spec.RunSpec(
        model="smollm2-135m", dataset=DATASET, flavor="l4x1", load_in="16bit", max_steps=3, eval_rows=4, batch_size=2,
        effective_batch_size=2, max_length=128, output_repo=REPO, env={"COLOUR": "of-nobodys-business"},
    )  # fmt: skip
    plan = planner.make_plan(asked, tables, today=date(2026, 11, 24))
    assert plan.facts.repo == BASE
    script = place / "sft_text.py"
    script.write_text(render(plan, tables.stack), encoding="utf-8")
    (place / "plan.json").write_text(plan.model_dump_json(), encoding="utf-8")
    # A run was here before, and its user has put more beside it.
    folder = place / "outputs" / str(plan.values["run_name"])
    for name in (".launch", *BESIDE):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("of nobody's business", encoding="utf-8")
    with Hub(place / "hub", port=trainings.port) as hub:
        hub.add_repo(BASE, folder=tiny)
        rows = "".join(json.dumps({"messages": chat}) + "\n" for chat in chats)
        hub.add_repo(DATASET, type="dataset", files={"train.jsonl": rows})
        done = trainings.run_script(
            script, place, "--device", "cpu", "--eval-steps", 2, "--trackio-project", "",
            env=hub.env() | {"HF_HUB_OFFLINE": "0"},
        )  # fmt: skip
        yield Trained(hub, script, Path(done.result["output_dir"]), done.result, done.log)


def environment(hub: Hub) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    return env | hub.env() | {"UNSLOTH_COMPILE_DISABLE": "1", "UNSLOTH_DISABLE_STATISTICS": "1"}


def test_the_repo_holds_all_that_belongs_to_the_model(trained: Trained) -> None:
    files = trained.hub.repos[REPO].files
    beside = {"README.md", "loss.png", "run.json", "sft_text.py", "generation_config.json", "chat_template.jinja"}
    assert beside | {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"} <= set(files)
    assert files["sft_text.py"] == trained.script.read_bytes()
    picture = files["loss.png"]
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", picture[16:24])
    assert width > 500
    assert height > 250


def test_what_lies_beside_the_model_is_not_pushed(trained: Trained) -> None:
    pushed = set(trained.hub.repos[REPO].files) - {".gitattributes"}
    assert pushed == {*trained.run["files"], "run.json", "README.md", "loss.png"}
    for name in BESIDE:
        assert name not in pushed
        assert (trained.folder / name).read_text(encoding="utf-8") == "of nobody's business"


def test_the_settings_of_its_makers_are_kept(trained: Trained) -> None:
    settings = json.loads(trained.text("generation_config.json"))
    kept = {name: settings[name] for name in ("do_sample", "temperature", "top_p")}
    assert kept == {"do_sample": True, "temperature": 0.2, "top_p": 0.9}
    # <|im_end|>, which ends an answer.
    assert settings["eos_token_id"] in (2, [2])


def test_the_record_says_what_ran(trained: Trained) -> None:
    run, files = trained.run, trained.hub.repos[REPO].files
    plan = json.loads(trained.script.with_name("plan.json").read_text(encoding="utf-8"))
    assert run["plan"] == plan | {"env": {}}
    assert run["env"] == ["COLOUR"]
    assert run["args"] == ["--device", "cpu", "--eval-steps", "2", "--trackio-project", ""]
    assert run["script"] == {"name": "sft_text.py", "sha256": sha256(trained.script.read_bytes()).hexdigest()}
    commits = {
        "model": trained.hub.repos[BASE].head.oid,
        "dataset": trained.hub.repos[f"datasets/{DATASET}"].head.oid,
    }
    assert run["revisions"] == commits
    assert run["packages"]["unsloth"] == catalog.load().stack.pins["unsloth"]
    assert len(run["packages"]) > 50
    for path, digest in run["files"].items():
        assert sha256(files[path]).hexdigest() == digest
    assert {"adapter_model.safetensors", "sft_text.py", "generation_config.json"} <= set(run["files"])
    assert run["result"]["steps"] == 3
    assert run["result"]["eval_loss"] == trained.result["eval_loss"]
    said = trained.text("run.json") + trained.text("README.md")
    assert trained.hub.token not in said
    assert "of-nobodys-business" not in said
    assert str(trained.folder) not in said
    # The launcher's own reader of it takes it.
    assert record.parse(trained.text("run.json").encode(), "here").revisions.dataset == commits["dataset"]


def test_the_card_tells_what_the_run_did(trained: Trained) -> None:
    from huggingface_hub import ModelCard

    text = trained.text("README.md")
    assert problems(text) == ([], [])
    card = ModelCard(text)
    assert json.loads(json.dumps(card.data, default=lambda data: data.to_dict())) == {
        "base_model": BASE, "base_model_relation": "adapter", "datasets": [DATASET], "library_name": "peft",
        "license": "apache-2.0", "pipeline_tag": "text-generation", "tags": ["lora", "sft", "trl", "unsloth", "launch"],
    }  # fmt: skip
    rows = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", card.text, re.MULTILINE))
    result = trained.result
    # What three steps of two rows read.
    assert rows["Data"] == "`train`, 6 rows"
    assert rows["Tokens"] == f"{result['tokens_seen']:,} seen, {result['tokens_trained']:,} of them learned from"
    assert rows["Training loss"].startswith(f"{result['train_loss']:.4f}")
    before, after = result["eval_loss_before"], result["eval_loss"]
    assert rows["Evaluation loss"] == f"{before:.4f} before training, {after:.4f} after it, on 4 rows held out"
    assert rows["Hardware"] == "`cpu`"
    assert "Cost" not in rows
    assert "temperature 0.2, top p 0.9" in card.text
    assert trained.run["revisions"]["model"][:12] in card.text
    assert "None" not in text
    assert "{" + "{" not in text


def snippets(card: str) -> dict[str, str]:
    """The card's code blocks in Python, by their headings."""
    return dict(re.findall(r"^### ([^\n]+)\n\n```python\n(.*?)\n```$", card, re.MULTILINE | re.DOTALL))


@pytest.mark.slow
def test_the_snippet_of_the_card_gives_an_answer(trained: Trained, script_python: str, tmp_path: Path) -> None:
    """As it stands: base and adapter come from the stand-in Hub."""
    run_snippet(trained, script_python, tmp_path, snippets(trained.text("README.md"))["transformers and PEFT"])


@pytest.mark.slow
@pytest.mark.parametrize("merged_repo", [None, "tester/whole-houses"])
def test_the_snippet_of_a_merged_copy_gives_an_answer(
    trained: Trained, script_python: str, tmp_path: Path, merged_repo: str | None
) -> None:
    """Beside the adapter, which transformers would take for the model where PEFT is installed, and alone."""
    export = Path(__file__).parents[2] / "job_scripts" / "export.py"
    uv = [find_uv_bin(), "run", "--quiet", "--python", sys.executable]
    where = ("--output-repo", REPO, *(("--merged-repo", merged_repo) if merged_repo else ()))
    done = subprocess.run(
        [*uv, export, "--adapter", REPO, "--merge", "16bit", "--device", "cpu", "--load-in", "16bit", *where],
        cwd=tmp_path, env=environment(trained.hub), capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    files = trained.hub.repos[merged_repo or REPO].files
    prefix = "" if merged_repo else "merged/"
    assert {f"{prefix}{name}" for name in ("model.safetensors", "config.json", "tokenizer.json")} <= set(files)
    assert problems(files["README.md"].decode()) == ([], [])
    card = snippets(files["README.md"].decode())
    assert list(card) == ["Merged, 16bit"] if merged_repo else {"transformers and PEFT", "Merged, 16bit"} <= set(card)
    assert "apply_chat_template" in card["Merged, 16bit"]
    run_snippet(trained, script_python, tmp_path, card["Merged, 16bit"])


def run_snippet(trained: Trained, python: str, tmp_path: Path, snippet: str) -> None:
    """Run it in the scripts' environment, which has PEFT, and read its answer."""
    (tmp_path / "snippet.py").write_text(snippet, encoding="utf-8")
    done = subprocess.run(
        [python, "snippet.py"], cwd=tmp_path, env=environment(trained.hub), capture_output=True, text=True, timeout=600,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    # It may be cut after the number of a list.
    answer = done.stdout.strip()[-80:]
    assert re.search(r"[a-z]{3}", answer), done.stdout
    assert "<|im_end|>" not in done.stdout
