"""`launch export` from end to end: the real command and client, the stand-in Hub, and what becomes of such a Job."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from launcher.hub import client
from launcher.jobs.service import HubBackend
from launcher.plan.record import READ
from tests.e2e.test_launch import LAUNCH, rows
from tests.emulator import Hub
from tests.emulator.cards import problems
from tests.emulator.state import StoredFile
from tests.faults import command
from tests.unit.sample import plan, request

BASE = "unsloth/SmolLM2-135M-Instruct"
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
    "max_position_embeddings": 8192, "tie_word_embeddings": True,
}  # fmt: skip
ADAPTER = {"peft_type": "LORA", "base_model_name_or_path": BASE, "r": 8, "lora_alpha": 8, "target_modules": ["q_proj"]}
RESULT = {
    "url": "https://hub/tester/houses", "output_dir": "/data/output",
    "exports": [{"kind": "merged", "name": "16bit", "path": "merged", "repo": "tester/houses", "gib": 0.25,
                 "checked": "the same answer", "error": None}],
}  # fmt: skip


def adapter_files(**changes: Any) -> dict[str, bytes | str]:
    return {"adapter_config.json": json.dumps(ADAPTER | changes), "adapter_model.safetensors": b"weights"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that only records Jobs, with a base model and an adapter of the user's."""
    with Hub(tmp_path / "hub", run=False) as hub:
        for name, value in hub.env().items():
            monkeypatch.setenv(name, value)
        hub.add_repo(BASE, files={"config.json": json.dumps(CONFIG)})
        hub.add_repo("tester/houses", files=adapter_files(), private=True)
        yield hub
        assert hub.unknown_requests == []


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    run = partial(command.launch, monkeypatch)

    def said(*args: str, status: int = 0) -> str:
        assert run(*args) == status, capsys.readouterr().err
        out, err = capsys.readouterr()
        return out if status == 0 else " ".join(err.split())

    return said


def trained(hub: Hub, ended: str = "COMPLETED", **changes: Any) -> str:
    """A Job that trained, and its id."""
    of = plan(**{"output_repo": "tester/houses", "flavor": "t4-small"} | changes)
    job = hub.jobs[HubBackend(client.Hub(0.001)).submit(request("pass", of=of, flavor="t4-small")).id]
    job.start()
    if ended:
        job.finish(ended)
    return job.id


def test_a_dry_run_is_plan_job_and_script(hub: Hub, launch: Any) -> None:
    whole = json.loads(launch("export", "tester/houses", "--merge", "16bit", "--gguf", "q8_0", "--dry-run", "--json"))
    made, job = whole["plan"], whole["job"]
    assert (made["task"], made["adapter"], made["repo"]) == ("export", "tester/houses", BASE)
    assert made["adapter_revision"] == hub.repos["tester/houses"].head.oid
    assert (made["merge"], made["gguf"], made["output_repo"]) == ("16bit", ["q8_0"], "tester/houses")
    assert made["private"]
    assert job["command"][:3] == ["uv", "run", "/data/export.py"]
    assert job["flavor"] == made["flavor"]
    assert job["labels"]["adapter"] == "tester--houses"
    assert "dataset" not in job["labels"]
    assert not hub.jobs
    assert READ.validate_python(made).reasons["flavor"].startswith("the cheapest")


def test_a_repo_a_run_and_the_page_of_a_job_mean_the_same(hub: Hub, launch: Any) -> None:
    job = trained(hub)
    plans = [
        json.loads(launch("export", source, "--merge", "16bit", "--dry-run", "--json"))["plan"]
        for source in ("tester/houses", job, f"tester/{job}", f"{hub.url}/jobs/tester/{job}")
    ]
    for made in plans[1:]:
        assert {**made, "reasons": {}, "asked": {}} == {**plans[0], "reasons": {}, "asked": {}}
    assert plans[1]["reasons"]["adapter"] == f"of {job}"


def record(script: str, **inputs: str) -> dict[str, bytes | str]:
    """An adapter with what the run of that script recorded beside it."""
    known = {"script": {"name": "sft_text.py", "sha256": hashlib.sha256(script.encode()).hexdigest()}, "inputs": inputs}
    return adapter_files() | {"run.json": json.dumps({"version": 1} | known)}


def push(hub: Hub, files: dict[str, bytes | str]) -> str:
    """A commit of the adapter's repo, by its name."""
    stored = {name: StoredFile(data.encode() if isinstance(data, str) else data) for name, data in files.items()}
    return hub.repos["tester/houses"].commit(stored, "push").oid


def test_an_old_run_is_not_exported_as_the_one_that_came_after(
    hub: Hub, launch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = trained(hub, ended="")
    script = request("pass").script
    own = push(hub, record(script))
    hub.jobs[job].finish("COMPLETED")
    plan = json.loads(launch("export", job, "--merge", "16bit", "--dry-run", "--json"))["plan"]
    assert plan["adapter_revision"] == own
    for _ in range(3):
        push(hub, record(script + "# another"))
    for home in (tmp_path / "another", None):  # from elsewhere the script comes out of the bucket
        with monkeypatch.context() as patch:
            if home:
                patch.setenv("LAUNCH_HOME", str(home))
            answer = launch("export", job, "--merge", "16bit", status=2)
        assert "tester/houses holds the adapter of another run" in answer
        assert f"Add --revision {own}" in answer
    asked = ("export", job, "--merge", "16bit", "--revision", own, "--dry-run", "--json")
    assert json.loads(launch(*asked))["plan"]["adapter_revision"] == own


def test_a_run_whose_adapter_is_nowhere_any_more_says_so(hub: Hub, launch: Any) -> None:
    job = trained(hub)
    push(hub, record("of another run"))
    answer = launch("export", job, "--merge", "16bit", status=2)
    assert f"no commit from the time of {job} was found with its own" in answer


def test_the_same_script_on_other_rows_is_another_run(hub: Hub, launch: Any, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("a row")
    of = plan(output_repo="tester/houses", flavor="t4-small", dataset=str(data))
    asked = request("pass", of=of, flavor="t4-small", script_args=("--dataset", str(data)))
    job = hub.jobs[HubBackend(client.Hub(0.001)).submit(asked).id]
    job.finish("COMPLETED")
    push(hub, record(asked.script, rows=hashlib.sha256(b"other rows").hexdigest()))
    assert "the adapter of another run" in launch("export", job.id, "--merge", "16bit", status=2)
    push(hub, record(asked.script, rows=hashlib.sha256(b"a row").hexdigest()))
    launch("export", job.id, "--merge", "16bit", "--dry-run", "--json")


def test_it_is_submitted_followed_and_reported(hub: Hub, launch: Any) -> None:
    job_id = launch("export", "tester/houses", "--merge", "16bit", "--detach", "-q").strip().removeprefix("tester/")
    job = hub.jobs[job_id]
    assert job.spec["command"] == ["uv", "run", "/data/export.py", "--device=cpu"]
    assert set(job.secrets) == {"HF_TOKEN"}
    assert job.spec.get("attempts", 1) == 1
    [folder] = {name.split("/")[0] for name in hub.buckets["tester/jobs-artifacts"].paths()}
    assert {"export.py", "plan.json"} == {
        name.removeprefix(f"{folder}/") for name in hub.buckets["tester/jobs-artifacts"].paths()
    }
    assert job_id in launch("ps")
    job.start()
    job.say("== merge")
    job.say(f"RESULT {json.dumps(RESULT)}")
    job.finish("COMPLETED")
    shown = launch("wait", job_id, "-q")
    assert "merged 16bit" in shown
    assert "0.25 GiB" in shown
    assert "the same answer" in shown
    assert json.loads(launch("why", job_id, "--json"))["status"] == "completed"


def test_one_that_failed_is_started_again_and_not_resumed(hub: Hub, launch: Any) -> None:
    job_id = launch("export", "tester/houses", "--gguf", "q8_0", "--detach", "-q").strip().removeprefix("tester/")
    job = hub.jobs[job_id]
    job.start()
    job.say("OSError: [Errno 28] No space left on device")
    job.finish("ERROR", "Job failed with exit code: 1")
    again = "launch export tester/houses --gguf q8_0 --output-repo tester/houses --private"
    found = json.loads(launch("why", job_id, "--json"))
    assert found["cause"] == "disk"
    assert found["next"][-1] == again
    assert found["next"][0].startswith(f"{again} --flavor ")
    assert f"is an export, which has no checkpoints to go on from. Start it again: `{again}`" in launch(
        "resume", job_id, status=2
    )
    assert launch("export", *again.split()[2:], "--detach", "-q").strip().removeprefix("tester/") in hub.jobs


def test_of_a_job_that_is_not_kept_here_too(hub: Hub, launch: Any, launch_home: Path) -> None:
    job = hub.jobs[
        launch("export", "tester/houses", "--merge", "16bit", "--detach", "-q").strip().removeprefix("tester/")
    ]
    job.start()
    job.finish("ERROR", "Job failed with exit code: 1")
    for path in sorted((launch_home / "runs").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    assert "is an export" in launch("resume", job.id, status=2)
    assert "launch export tester/houses --merge 16bit" in json.loads(launch("why", job.id, "--json"))["next"][-1]


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        (("tester/houses",), 2, "neither --merge nor --gguf is given"),
        (("tester/none", "--merge", "16bit"), 2, "the model 'tester/none' does not exist"),
        ((BASE, "--merge", "16bit"), 2, "it is a whole model, not a LoRA adapter"),
        (("20200101", "--merge", "16bit"), 2, "unknown run '20200101'"),
        (("./absent", "--merge", "16bit"), 2, "holds no adapter_config.json"),
        (("a/b/c", "--merge", "16bit"), 2, "unknown run 'a/b/c'. A NAME is a run's id"),
        (("tester/houses", "--merge", "16bit", "--revision", "v9"), 2, "has no such revision"),
        (("tester/houses", "--merge", "4bit", "--flavor", "cpu-basic"), 3, "4-bit weights need a GPU"),
        (("tester/houses", "--merge", "16bit", "--output-repo", "someone/x"), 3, "--output-repo: tester can't write"),
        (("tester/houses", "--merge", "16bit", "--merged-repo", "someone/x"), 3, "--merged-repo: tester can't write"),
        (("tester/gone", "--merge", "16bit"), 2, "the model 'unsloth/Qwen3-0.6B' does not exist"),
        (("tester/gated", "--merge", "16bit"), 3, "the model 'meta-llama/Llama-3.1-8B-Instruct' is gated"),
        (("tester/folder", "--merge", "16bit"), 2, "was trained on /home/me/base, a folder of the machine"),
        (("tester/prefix", "--merge", "16bit"), 2, "only LoRA adapters can be merged"),
        (("tester/broken", "--merge", "16bit"), 2, "is not JSON"),
    ],
)
def test_what_can_not_be_exported_says_so_before_anything_is_paid_for(
    hub: Hub, launch: Any, args: tuple[str, ...], status: int, said: str
) -> None:
    gated = "meta-llama/Llama-3.1-8B-Instruct"
    hub.add_repo(gated, files={"config.json": "{}"}, gated="manual")
    for name, base in (("gone", "unsloth/Qwen3-0.6B"), ("gated", gated), ("folder", "/home/me/base")):
        hub.add_repo(f"tester/{name}", files=adapter_files(base_model_name_or_path=base))
    hub.add_repo("tester/prefix", files=adapter_files(peft_type="PREFIX_TUNING"))
    hub.add_repo("tester/broken", files={"adapter_config.json": "{"})
    assert said in launch("export", *args, status=status)
    assert not hub.jobs


def test_of_a_run_that_has_no_adapter_it_says_what_to_do(hub: Hub, launch: Any) -> None:
    alive = trained(hub, ended="")
    assert f"{alive} still goes on" in launch("export", alive, "--merge", "16bit", status=2)
    lost = trained(hub, output_repo="tester/lost")
    answer = launch("export", lost, "--merge", "16bit", status=2)
    assert "it is not there: the model 'tester/lost' does not exist" in answer
    assert f"launch why tester/{lost}" in answer
    unpushed = trained(hub, output_repo=None)
    answer = launch("export", unpushed, "--merge", "16bit", status=2)
    assert "its adapter is in its bucket only" in answer
    assert "hf buckets sync hf://buckets/tester/jobs-artifacts/" in answer
    first = json.loads(launch("export", "tester/houses", "--merge", "16bit", "--detach", "--json"))["id"]
    hub.jobs[first].start()
    hub.jobs[first].finish("COMPLETED")
    assert "is an export itself. Its adapter is tester/houses" in launch("export", first, "--merge", "16bit", status=2)


def test_a_folder_is_exported_here_and_a_job_can_not_see_it(
    hub: Hub, launch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("houses").mkdir()
    Path("houses/adapter_config.json").write_text(json.dumps(ADAPTER))
    answer = launch("export", "houses", "--merge", "16bit", status=2)
    assert f"the adapter in {tmp_path / 'houses'} is a folder on this machine" in answer
    whole = json.loads(launch("export", "houses", "--merge", "16bit", "--local", "--dry-run", "--json"))
    assert whole["plan"]["adapter"] == str(tmp_path / "houses")
    assert (whole["plan"]["flavor"], whole["plan"]["output_repo"]) == ("local", None)
    assert whole["job"]["secrets"] == []


def test_the_seam_to_the_script(hub: Hub, launch: Any) -> None:
    """The flags that the script is rendered with are the plan's."""
    whole = json.loads(launch("export", "tester/houses", "--gguf", "q8_0", "--dry-run", "--json"))
    compile(whole["script"], "export.py", "exec")
    options = dict(re.findall(r"^    (\w+): Annotated\[.*\] = (.*)$", whole["script"], re.MULTILINE))
    assert options["adapter"] == '"tester/houses"'
    assert options["adapter_revision"] == f'"{whole["plan"]["adapter_revision"]}"'


@pytest.mark.slow
def test_a_run_is_exported_by_a_job_of_its_own(tmp_path: Path, smollm2: Path) -> None:
    """Trained and pushed by one Job, merged and pushed by another, both real, on the stand-in's CPU."""
    stand_in = Hub(tmp_path / "hub", python=sys.executable)
    stand_in.add_repo("tester/smollm2", folder=smollm2)
    with stand_in as hub:

        def launch(*args: str | Path) -> dict[str, Any]:
            done = subprocess.run([LAUNCH, *args, "--json", "-q"], env=os.environ | hub.env(), capture_output=True,
                                  text=True, timeout=900, check=False)  # fmt: skip
            assert done.returncode == 0, done.stderr[-4000:]
            found: dict[str, Any] = json.loads(done.stdout)
            return found

        trained = launch(
            "--model", "tester/smollm2", "--dataset", rows(tmp_path / "houses.jsonl"), "--flavor", "cpu-upgrade",
            "--max-steps", "2", "--eval-rows", "0", "--max-length", "128", "--effective-batch-size", "4",
            "--output-repo", "houses",
        )  # fmt: skip
        before = set(hub.repos["tester/houses"].files)
        assert not any(name.startswith("merged/") for name in before)
        final = launch("export", trained["id"], "--merge", "16bit")
        assert final["stage"] == "COMPLETED"
        [made] = final["result"]["exports"]
        assert (made["kind"], made["name"], made["error"], made["repo"]) == ("merged", "16bit", None, "tester/houses")
        after = hub.repos["tester/houses"].files
        assert {"merged/config.json", "merged/model.safetensors", "merged/tokenizer.json"} <= set(after)
        assert before <= set(after)
        assert hub.jobs[final["id"]].spec["flavor"].startswith("cpu-")
        # The Job's folder holds no tokenizer, by which the card knows that there is a chat template.
        card = after["README.md"].decode()
        assert problems(card) == ([], [])
        assert f"| `merged` | {made['gib']:.2f} GiB, the same answer" in card
        merged_section = card.partition("### Merged, 16bit\n")[2]
        assert 'snapshot_download(\'tester/houses\', allow_patterns="merged/*") + "/merged"' in merged_section
        assert "apply_chat_template" in merged_section
        assert "## To run it again" in merged_section
        assert not hub.unknown_requests
