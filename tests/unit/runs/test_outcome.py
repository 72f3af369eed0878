"""Each cause is told from what a run really prints: the texts are the libraries' own."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from launcher import catalog
from launcher.jobs.base import Job, Left
from launcher.jobs.events import Progress
from launcher.plan import command
from launcher.runs import why
from launcher.runs.outcome import Evidence, cause_of, causes, outcome
from tests.unit.sample import plan

DOCS = Path(__file__).parents[3] / "docs" / "why.md"

# torch 2.9: c10/cuda/CUDACachingAllocator.cpp
CUDA_OOM = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.16 GiB. GPU 0 has a total capacity of 14.56 GiB "
    "of which 1.02 GiB is free. Including non-PyTorch memory, this process has 13.53 GiB memory in use. Of the "
    "allocated memory 12.90 GiB is allocated by PyTorch, and 510.39 MiB is reserved by PyTorch but unallocated. If "
    "reserved but unallocated memory is large try setting "
    "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation."
)
TRAINING = (
    '  File "/root/.cache/uv/x/transformers/trainer.py", line 4020, in training_step',
    "    self.accelerator.backward(loss, **kwargs)",
)
EVALUATION = (
    '  File "/root/.cache/uv/x/transformers/trainer.py", line 4489, in evaluation_loop',
    "    losses, logits, labels = self.prediction_step(model, inputs, prediction_loss_only)",
)
GATED = (
    "huggingface_hub.errors.GatedRepoError: 403 Client Error. (Request ID: Root=1-6)",
    "",
    "Cannot access gated repo for url https://huggingface.co/meta-llama/Llama-3.1-8B/resolve/main/config.json.",
    "Access to model meta-llama/Llama-3.1-8B is restricted and you are not in the authorized list.",
)
MISSING = (
    "huggingface_hub.errors.RepositoryNotFoundError: 404 Client Error. (Request ID: Root=1-6)",
    "",
    "Repository Not Found for url: https://huggingface.co/api/datasets/me/no/revision/main.",
    "Please make sure you specified the correct `repo_id` and `repo_type`.",
    "If you are trying to access a private or gated repo, make sure you are authenticated",
)


def case(name: str, *lines: str, **known: Any) -> Any:
    return pytest.param(name, lines, known, id=f"{name}: {(known.get('message') or (lines or ('',))[-1])[:40]}")


FAILED = "Job failed with exit code: 1"


@pytest.mark.parametrize(
    ("name", "lines", "known"),
    [
        case("timeout", "step 3/5 | loss 1.0", message="Job timeout"),
        case("stalled", "error: stalled: no step has ended for 1200 s.", message=FAILED),
        case("diverged", "error: the loss is no number any more, at step 9", message=FAILED),
        case("timeout", CUDA_OOM, message="timeout: stopped after 60 seconds"),
        case("timeout", ran_s=1799.0, timeout_s=1800.0),
        case("timeout", message="Job failed with exit code: 137", ran_s=1800.4, timeout_s=1800.0),
        case("canceled", stage="CANCELED"),
        case("canceled", stage="DELETED", ran_s=1800.0, timeout_s=1800.0),
        case("timeout", stage="CANCELED", message="Job timeout"),
        case("host-memory", "step 3/5 | loss 1.0", message="Job failed with exit code: 137"),
        case("host-memory", message="OOMKilled"),
        case("host-memory", message="killed by SIGKILL"),
        case("host-memory", "RuntimeError: [enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't "
             "allocate memory: you tried to allocate 1125899906842624 bytes. Error code 12 (Cannot allocate memory)",
             message=FAILED),
        case("host-memory", "RuntimeError: DataLoader worker (pid 71) is killed by signal: Killed. ", message=FAILED),
        case("host-memory", "MemoryError", message=FAILED),
        case("cuda-memory-training", *TRAINING, CUDA_OOM, message=FAILED, phase="train"),
        case("cuda-memory-training", "RuntimeError: CUDA error: out of memory", message=FAILED, phase="train"),
        case("cuda-memory-training", "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling "
             "`cublasCreate(handle)`", message=FAILED),
        case("cuda-memory-evaluation", *EVALUATION, CUDA_OOM, message=FAILED, phase="train"),
        case("cuda-memory-evaluation", CUDA_OOM, message=FAILED, phase="evaluate"),
        case("cuda-memory-training", "out of memory: batch 2 -> 1, accumulation 1 -> 2 (the GPU held 14.1 GiB at most)",
             "error: out of memory in training with one row at a time (the GPU held 14.1 GiB at most, 12.0 GiB were "
             "planned). Lower --max-length, or take a flavor with more memory.", message=FAILED),
        case("disk", "OSError: [Errno 28] No space left on device: '/root/.cache/huggingface/hub/tmp'", message=FAILED),
        case("disk", "error: failed to write to the distribution cache: No space left on device (os error 28)"),
        case("disk", "safetensors_rust.SafetensorError: Error while serializing: I/O error: No space left on device "
             "(os error 28)", message=FAILED),
        case("disk", "error: the disk of /data has 0.10 GB free, and this run writes 0.90 GB (an adapter of 0.10 GB, "
             "three checkpoints of 0.20 GB). Free some, or give --output-dir on another disk.", message=FAILED),
        case("disk", message="Pod ephemeral local storage usage exceeds: ephemeral-storage"),
        case("gated", *GATED, message=FAILED),
        case("gated", "error: meta-llama/Llama-3.1-8B is gated and this account has no access.", message=FAILED),
        case("gated", "datasets.exceptions.DatasetNotFoundError: Dataset 'a/b' is a gated dataset on the Hub. You must "
             "be authenticated to access it."),
        case("missing-repo", *MISSING, message=FAILED),
        case("missing-repo", "error: the model me/no can't be read (404 Client Error. (Request ID)).",
             message=FAILED),
        case("missing-repo", "datasets.exceptions.DatasetNotFoundError: Dataset 'me/no' doesn't exist on the Hub or "
             "cannot be accessed.", message=FAILED),
        case("missing-repo", "OSError: me/no is not a local folder and is not a valid model identifier listed on "
             "'https://huggingface.co/models'", message=FAILED),
        case("access", "Invalid user token. The token from HF_TOKEN environment variable is invalid.", message=FAILED),
        case("access", "error: me/m can't be written to (403 Forbidden). Check the name.", message=FAILED),
        case("dependencies", "error: No solution found when resolving script dependencies", "  cause: Because there is "
             "no version of numpy==99.0 and you require numpy==99.0, we can conclude that your requirements are "
             "unsatisfiable.", message=FAILED),
        case("dependencies", "error: No interpreter found for Python >=3.99 in virtual environments, managed "
             "installations, or search path", message="exit status 2"),
        case("dependencies", "error: Request failed after 3 retries in 8.2s", "  cause: Failed to fetch: "
             "https://pypi.org/simple/numpy/", "  cause: Connection refused (os error 111)", message=FAILED),
        case("labels", "error: every token is masked: there is nothing to learn. Raise --max-length.", message=FAILED),
        case("labels", "error: no token is masked: the prompts would be trained on too.", message=FAILED),
        case("labels", "error: <|im_end|> is never trained on: the model would not learn to stop.", message=FAILED),
        case("push", 'RESULT {"push_error": "the push to me/m failed (502)."}', "error: the push to me/m failed (502).",
             result={"push_error": "the push to me/m failed (502)."}, message=FAILED),
        case("push", "error: the push to me/m failed (502 Server Error).", message=FAILED),
        case("export", 'RESULT {"push_error": null}', "error: the adapter is whole, https://hub/me/m; 1 of 1 exports "
             "failed (gguf q8_0: [Errno 28] No space left on device). Try again with: launch export me/m --gguf q8_0",
             message=FAILED),
        case("service", message="Job could not be started: no node"),
        case("timeout", message="The Job has reached its timeout of 30m"),
        case("service", message="Failed to pull image: request timed out"),
        case("service", message="Node was terminated: heartbeat timeout"),
        case("service", message="Node was evicted"),
        case("service", message="its supervisor died: it was killed, or the machine restarted"),
        case("service", message="Job failed with exit code: 143"),
        case("service", "RuntimeError: CUDA error: uncorrectable ECC error encountered", message=FAILED),
        case("service", "httpx.HTTPStatusError: 503 Server Error: Service Unavailable", message=FAILED),
        case("input", "error: row 3: unknown role 'bot'. Use system, user, assistant or tool.", message=FAILED),
        case("unknown", "ZeroDivisionError: division by zero", message=FAILED),
        case("unknown"),
        # What was overcome is no cause: the last word counts.
        case("missing-repo", "out of memory: batch 4 -> 2", CUDA_OOM, *MISSING, message=FAILED),
        case("unknown", "out of memory: batch 4 -> 2", message=FAILED),
        case("unknown", "the push to me/m failed (503 Server Error), trying again in 2 s", message=FAILED),
        # What an error quotes is no cause.
        ("input", ("error: row 3: unknown role 'CUDA out of memory'. Use system, user, assistant or tool.",), {}),
        ("input", ("error: no usable column among 403 Forbidden, text. Rows need messages.",), {}),
        ("input", ("error: row 0: the model's chat template refuses it (No space left on device).",), {}),
        ("input", ("error: the dataset a/b names /x/No space left on device, which is no file of its own.",), {}),
    ],
)  # fmt: skip
def test_the_cause(name: str, lines: tuple[str, ...], known: dict[str, Any]) -> None:
    found = cause_of(Evidence(**{"stage": "ERROR", "lines": lines, **known}))
    assert found.name == name


@pytest.mark.parametrize(
    ("message", "code"),
    [("Job failed with exit code: 137", 137), ("exit status 1", 1), ("killed by SIGKILL", -9), ("Job timeout", None)],
)
def test_the_exit_status_is_read_from_the_services_sentence(message: str, code: int | None) -> None:
    assert Evidence(stage="ERROR", message=message).exit_code == code


def test_the_table_is_whole() -> None:
    known = {"id", "again", "export", "longer", "larger", "more_ram", "more_disk", "page", "rescue", "look",
             "no_evaluation", "smaller_batch", "shorter_rows", "longer_rows", "slower"}  # fmt: skip
    assert list(causes())[-1] == "unknown"
    for cause in causes().values():
        assert set(re.findall(r"\{(\w+)\}", " ".join(cause.next))) <= known
        assert cause.says and not cause.says.endswith(".")
        # From another machine, where nothing but the id is known, something can still be said.
        assert cause.commands({"id": "abc", "again": "launch resume abc"}) or cause.name in ("missing-repo", "labels")


def test_a_hostile_log_is_read_to_its_end() -> None:
    # A pattern that goes back and forth in such a line would not come to its end within the tests' own limit.
    for unit in ("error: the push to ", "CUDA out of ", "Dataset ", "Failed to ", "in _evaluat", " "):
        assert cause_of(Evidence(stage="ERROR", lines=(unit * (4096 // len(unit)),) * 20)).name


def job(message: str, flavor: str = "t4-small", ran_s: float = 900) -> Job:
    began = datetime(2026, 11, 1, tzinfo=UTC)
    return Job(
        id="abc", url="https://huggingface.co/jobs/me/abc", backend="hub", stage="ERROR", message=message,
        flavor=flavor, labels={}, created_at=began, started_at=began, finished_at=began + timedelta(seconds=ran_s),
    )  # fmt: skip


def next_of(progress: Progress, message: str = FAILED, **changes: Any) -> tuple[str, ...]:
    planned, failed = plan(timeout_s=5400, flavor="t4-small", **changes), job(message)
    filled = why.values(failed, planned, progress, catalog.load())
    return outcome(failed, progress, timeout_s=5400, values=filled).next


def progress(*lines: str) -> Progress:
    seen = Progress()
    for line in lines:
        seen.add(line)
    return seen


def test_the_next_command_is_exact() -> None:
    anew = partial(command.launch, plan().asked)
    assert next_of(progress(), "Job timeout")[0] == "launch resume me/abc --timeout 180m"
    larger = "launch resume me/abc --flavor l4x1"
    assert next_of(progress("== train", CUDA_OOM))[:3] == (larger, anew(batch_size=1), anew(max_length=256))
    halved = progress("== train", "out of memory: batch 2 -> 1", CUDA_OOM)
    assert next_of(halved)[:2] == (larger, anew(max_length=256))
    assert next_of(progress("== evaluate", CUDA_OOM))[:2] == (larger, anew(eval_rows=0))
    llama = "meta-llama/Llama-3.1-8B"
    assert f"https://huggingface.co/{llama}" in next_of(progress(*GATED), repo=llama)[0]
    assert f"https://huggingface.co/datasets/{llama}" in next_of(progress(*GATED), dataset=llama)[0]
    failed = [{"kind": "gguf", "name": "q8_0", "error": "x"}, {"kind": "gguf", "name": "; sh", "error": "x"},
              {"kind": "merged", "name": "16bit"}]  # fmt: skip
    unmade = progress(f"RESULT {json.dumps({'exports': failed})}", "error: the adapter is whole; 1 of 2 exports failed")
    assert next_of(unmade, merge="16bit", gguf=("q4_k_m", "q8_0")) == (
        "launch export me/abc --gguf q8_0 --private",
        "launch resume me/abc",
    )
    strange = next_of(progress("== train", CUDA_OOM), model="a b; rm -rf")
    assert strange[1].startswith("launch --model 'a b; rm -rf' --batch-size 1 ")


def test_a_larger_machine_is_larger() -> None:
    flavors = catalog.load().flavors
    for name, here in flavors.items():
        found = why.values(job(FAILED, name), None, Progress(), catalog.load())
        for key, size in (("more_ram", "ram_gb"), ("more_disk", "disk_gb")):
            if other := found.get(key):
                assert getattr(flavors[str(other)], size) > getattr(here, size)
                assert flavors[str(other)].num_gpus == here.num_gpus
        if (other := found.get("larger")) and here.gpu:
            gpu = flavors[str(other)].gpu
            assert gpu and gpu.memory_gib > here.gpu.memory_gib
    assert why.values(job(FAILED, "t4-small"), None, Progress(), catalog.load())["more_ram"] == "t4-medium"


def test_what_was_kept_is_said() -> None:
    assert "checkpoint of step 40 is kept" in outcome(job(FAILED), progress("checkpoint step 40 | 1s | 3 MB")).message
    left = Left(repo="me/m", repo_files=("adapter_model.safetensors",))
    assert "https://huggingface.co/me/m" in outcome(job(FAILED), progress(), left=left).message
    assert "step 7" in outcome(job(FAILED), progress(), left=Left(checkpoint=7)).message


def test_an_attempt_that_goes_on_forgets_how_the_one_before_ended() -> None:
    seen = progress("error: bad", 'RESULT {"stopped": "deadline"}', "== load model", "resumed from step 4")
    assert (seen.result, seen.error, seen.resumed_from, seen.checkpoint) == (None, None, 4, 4)


def test_the_page_lists_every_cause_in_its_words() -> None:
    text = DOCS.read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([\w-]+)` \| (.+?) \|", text, re.MULTILINE))
    assert rows == {name: cause.says for name, cause in causes().items()}
