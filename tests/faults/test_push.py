"""The push is a promise: it succeeds whole, or the model is kept and the command that is printed brings it to the Hub.

The rendered script's own functions run in its own environment, with the release of the client that trainings have.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, Volume
from uv import find_uv_bin

from tests.emulator import Hub
from tests.faults.trainings import Trainings

DRIVER = Path(__file__).with_name("script_driver.py")
COMMIT, TREE = "POST /api/models/tester/m/commit", "GET /api/models/tester/m/tree"
LOST = 10_000  # requests that fail, and so all of them
# What PATH holds for a user who has installed the client.
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    error: str
    waits: list[float]

    def line(self, name: str) -> str:
        [found] = [line.removeprefix(f"{name} ") for line in self.out.splitlines() if line.startswith(f"{name} ")]
        return found


Push = Callable[..., Done]


@pytest.fixture
def hub(trainings: Trainings, tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path / "hub", python=sys.executable, port=trainings.port) as hub:
        yield hub


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """What a training leaves: the adapter, small files, and what is no part of the model."""
    return write_model(tmp_path / "output")


def write_model(folder: Path) -> Path:
    contents = {
        "adapter_model.safetensors": (2).to_bytes(8, "little") + b"{}" + os.urandom(200_000),
        "adapter_config.json": b'{"r": 16}',
        "README.md": b"---\nlibrary_name: peft\n---\n# m\n",
        "tokenizer.json": b"{}" * 50,
        "empty.txt": b"",
        "extra/processor_config.json": b"{}",
        "checkpoints/step-3/optimizer.pt": b"not for the Hub",
        ".cache/lock": b"not for the Hub",
    }
    for path, data in contents.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def expected(folder: Path) -> dict[str, bytes]:
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {path: data for path, data in found.items() if not path.startswith(("checkpoints/", "."))}


def held(hub: Hub, repo: str = "tester/m") -> dict[str, bytes]:
    return {path: data for path, data in hub.repos[repo].files.items() if path != ".gitattributes"}


@pytest.fixture
def push(hub: Hub, script: Path, trainings: Trainings, tmp_path: Path) -> Push:
    def run(*args: object, token: str | None = None, **env: str) -> Done:
        environ = hub.env(token) | {"HF_HUB_OFFLINE": "0"} | env
        done = trainings.run_script(DRIVER, tmp_path, script, *args, env=environ)
        assert "Traceback" not in done.error, done.error
        result = Done(done.code, done.log, done.error, [])
        return Done(done.code, done.log, done.error, json.loads(result.line("waits")))

    return run


def run_printed(done: Done, hub: Hub, cwd: Path) -> None:
    """Run the command that the error ends with, as a user does on a machine of his own."""
    _, found, command = done.error.splitlines()[-1].partition(": hf ")
    assert found, done.error
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | hub.env() | {"PATH": path}
    ran = subprocess.run(f"hf {command}", shell=True, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


# ---- It arrives ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "route", "times"),
    [
        (500, COMMIT, 3),
        ("after_commit", COMMIT, 1),
        ("reset", COMMIT, 2),
        (502, TREE, 2),
        ("reset", "POST /api/repos/create", 1),
        *(
            pytest.param(*fault, marks=pytest.mark.slow)
            for fault in (
                (None, "", 0),
                ("cut", COMMIT, 1),
                ("slow", COMMIT, 1),
                ("cut", TREE, 1),
                (503, "POST /api/models/tester/m/preupload", 7),
                (500, "GET /api/models/tester/m/xet-write-token", 1),
                (500, "POST /cas", 1),
                ("reset", "POST /cas", 1),
                ("after_commit", "POST /api/repos/create", 1),
                ("reset", "GET /api/whoami-v2", 2),
                (429, "GET /api/models/tester/m", 2),
            )
        ),
    ],
)
def test_a_push_outlives_failures(
    push: Push, hub: Hub, model: Path, kind: str | int | None, route: str, times: int
) -> None:
    if kind:
        hub.fail_next(kind, route, times=times)
    done = push("m", model)
    assert done.code == 0, done.out + done.error
    assert done.line("url") == f"{hub.url}/tester/m"
    assert held(hub) == expected(model)
    # The first commit made the repo; whatever answers were lost, there is one more.
    assert len(hub.repos["tester/m"].commits) == 2
    assert hub.failures.queue == []
    assert hub.unknown_requests == []


def test_a_push_waits_as_long_as_it_is_told(push: Push, hub: Hub, model: Path) -> None:
    hub.fail_next(429, COMMIT, times=2, retry_after=37)
    done = push("m", model)
    assert done.code == 0, done.error
    assert held(hub) == expected(model)
    assert len(done.waits) == 2
    assert all(37 < wait < 39 for wait in done.waits)


def test_a_push_does_not_wait_for_hours(push: Push, hub: Hub, model: Path) -> None:
    hub.fail_next(429, COMMIT, times=LOST, retry_after=3600)
    done = push("m", model)
    assert done.code == 1
    assert done.waits == []


def test_waits_grow_and_are_uneven(push: Push, hub: Hub, model: Path) -> None:
    hub.fail_next(500, COMMIT, times=5)
    done = push("m", model)
    assert len(done.waits) == 5
    for wait, longest in zip(done.waits, (2, 4, 8, 16, 32), strict=True):
        assert longest / 2 <= wait <= longest


@pytest.mark.parametrize("path", ["adapter_model.safetensors", "tokenizer.json"])
def test_a_file_that_arrived_torn_is_pushed_again(push: Push, hub: Hub, model: Path, path: str) -> None:
    hub.tear_next(path)
    done = push("m", model)
    assert done.code == 0, done.error
    assert f"the Hub does not hold {path} as sent" in done.out
    assert held(hub) == expected(model)


def test_what_was_there_already_stays(push: Push, hub: Hub, model: Path) -> None:
    hub.add_repo("tester/m", files={"notes.md": "mine", "tokenizer.json": "old"})
    assert push("m", model).code == 0
    assert held(hub) == expected(model) | {"notes.md": b"mine"}


def test_a_second_push_of_the_same_makes_no_commit(push: Push, hub: Hub, model: Path) -> None:
    assert push("m", model, model).code == 0
    assert len(hub.repos["tester/m"].commits) == 2


def test_a_renamed_repo_is_found_under_its_new_name(push: Push, hub: Hub, model: Path) -> None:
    hub.add_repo("tester/m")
    hub.rename_repo("tester/m", "tester/better")
    done = push("m", model)
    assert done.code == 0, done.error
    assert done.line("repo") == "tester/better"
    assert held(hub, "tester/better") == expected(model)
    assert "tester/m" not in hub.repos


def test_a_gated_repo_of_ones_own_takes_the_model(push: Push, hub: Hub, model: Path) -> None:
    hub.add_repo("tester/m", gated="manual")
    assert push("m", model).code == 0
    assert held(hub) == expected(model)


def test_an_organisation_takes_the_model(push: Push, hub: Hub, model: Path) -> None:
    member = hub.add_user("tester", orgs=["acme"])
    done = push("acme/m", model, "--private", token=member.token)
    assert done.code == 0, done.error
    assert held(hub, "acme/m") == expected(model)
    assert hub.repos["acme/m"].private


# ---- It is refused before the training -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("repo", "user", "says"),
    [
        ("m", {"role": "read"}, "m can't be written to (403"),
        ("m", {"role": "fineGrained", "permissions": ["job.write"]}, "m can't be written to (403"),
        ("acme/m", {}, "acme/m can't be written to (403"),
    ],
)
def test_a_token_that_may_not_write_is_refused(
    push: Push, hub: Hub, repo: str, user: dict[str, Any], says: str
) -> None:
    done = push(repo, token=hub.add_user("tester", **user).token)
    assert done.code == 3
    assert says in done.error
    assert hub.repos == {}
    assert done.waits == []


def test_nothing_is_pushed_without_a_token(push: Push, hub: Hub) -> None:
    done = push("m", HF_TOKEN="")
    assert done.code == 2
    assert "m can't be written to without a token" in done.error
    assert "tester/m" not in hub.repos


def test_a_fine_grained_token_that_may_write_is_enough(push: Push, hub: Hub, model: Path) -> None:
    token = hub.add_user("tester", role="fineGrained", permissions=["repo.write"]).token
    assert push("m", model, token=token).code == 0
    assert held(hub) == expected(model)


def test_a_repo_of_another_owner_is_refused(push: Push, hub: Hub) -> None:
    hub.add_repo("other/m", files={"theirs.txt": "x"})
    done = push("other/m")
    assert done.code == 3
    assert "other/m can't be written to (403" in done.error
    assert held(hub, "other/m") == {"theirs.txt": b"x"}


def test_a_private_model_is_not_pushed_to_a_public_repo(push: Push, hub: Hub) -> None:
    hub.add_repo("tester/m")
    done = push("m", "--private")
    assert done.code == 3
    assert "tester/m is there already, and public" in done.error


@pytest.mark.parametrize(
    "route",
    [
        "POST /api/repos/create",
        pytest.param("GET /api/models/tester/m", marks=pytest.mark.slow),
        pytest.param("GET /api/whoami-v2", marks=pytest.mark.slow),
    ],
)
def test_a_hub_that_is_away_is_known_before_the_training(push: Push, hub: Hub, route: str) -> None:
    hub.fail_next(503, route, times=LOST)
    done = push("m")
    assert done.code == 3
    assert "can't be written to" in done.error
    assert len(done.waits) == 7


# ---- It is kept ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "tries"),
    [(503, 8), (403, 1), *(pytest.param(*fault, marks=pytest.mark.slow) for fault in (("reset", 8), (413, 1)))],
)
def test_what_can_not_be_pushed_is_kept_and_the_command_pushes_it(
    push: Push, hub: Hub, model: Path, kind: str | int, tries: int
) -> None:
    kept = expected(model)
    hub.fail_next(kind, COMMIT, times=LOST)
    done = push("m", model)
    assert done.code == 1
    assert "the push to tester/m failed" in done.error
    assert sum(request.path.endswith("/commit/main") for request in hub.requests) == tries
    assert held(hub) == {}
    assert expected(model) == kept
    hub.failures.queue.clear()
    run_printed(done, hub, model.parent)
    assert held(hub) == kept


def test_a_model_card_that_the_hub_refuses_is_not_sent_again(push: Push, hub: Hub, model: Path) -> None:
    hub.fail_next(400, "POST /api/validate-yaml", times=LOST)
    done = push("m", model)
    assert done.code == 1
    assert "Invalid metadata in README.md" in done.error
    assert done.waits == []
    assert held(hub) == {}


def test_a_file_that_never_arrives_whole_is_an_error(push: Push, hub: Hub, model: Path) -> None:
    hub.tear_next("adapter_model.safetensors", times=LOST)
    done = push("m", model)
    assert done.code == 1
    assert "the Hub does not hold adapter_model.safetensors as sent" in done.error
    hub.torn.clear()
    run_printed(done, hub, model.parent)
    assert held(hub)["adapter_model.safetensors"] == (model / "adapter_model.safetensors").read_bytes()


def test_a_job_keeps_the_model_on_its_volume_wherever_it_was_saved(
    push: Push, hub: Hub, model: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    hub.fail_next(403, COMMIT, times=LOST)
    address = "hf://buckets/tester/jobs-artifacts/x"
    done = push("m", model, JOB_ID="j1", LAUNCH_DATA_DIR=str(data), LAUNCH_ARTIFACTS=address)
    assert done.code == 1
    assert f"hf buckets sync {address}/output m && hf upload " in done.error
    assert expected(data / "output") == expected(model)


def test_a_volume_that_can_not_be_named_is_named_by_the_service(push: Push, hub: Hub, model: Path) -> None:
    hub.fail_next(403, COMMIT, times=LOST)
    done = push("m", model, JOB_ID="j1", LAUNCH_DATA_DIR=str(model.parent))
    assert done.code == 1
    assert done.error.rstrip().endswith(
        "The model is kept in output/ of the Job's bucket; this names it: hf jobs inspect j1"
    )


WRAPPER = """\
# /// script
# requires-python = ">=3.11"
# dependencies = []
# ///
import os, subprocess, sys
from pathlib import Path
output = Path(os.environ["LAUNCH_DATA_DIR"], "output")
output.mkdir()
(output / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 100)
(output / "adapter_config.json").write_text("{}")
sys.exit(subprocess.call([PYTHON, *sys.argv[1:], str(output)]))
"""


@pytest.mark.parametrize("namespace", [pytest.param("tester", marks=pytest.mark.slow), "acme"])
def test_the_model_of_a_job_is_fetched_from_its_bucket_and_pushed(
    hub: Hub, script: Path, script_python: str, tmp_path: Path, namespace: str
) -> None:
    member = hub.add_user("tester", orgs=["acme"])
    wrapper = tmp_path / "wrapper.py"
    wrapper.write_text(WRAPPER.replace("PYTHON", repr(script_python)), encoding="utf-8")
    hub.fail_next(503, COMMIT, times=LOST)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is experimental, as the client says at every call
        api, bucket = HfApi(endpoint=hub.url, token=member.token), f"{namespace}/jobs-artifacts"
        api.create_bucket(bucket, private=True)
        api.batch_bucket_files(bucket, add=[(wrapper, "x/wrapper.py")])
        started = api.run_job(
            image="uv", command=["uv", "run", "/data/wrapper.py", str(DRIVER), str(script), "m"], namespace=namespace,
            secrets={"HF_TOKEN": member.token}, env={"LAUNCH_ARTIFACTS": f"hf://buckets/{bucket}/x"},
            volumes=[Volume(type="bucket", source=bucket, mount_path="/data", path="x")],
        )  # fmt: skip
    job = hub.jobs[started.id]
    assert job.wait() == "ERROR"
    [error] = [line for line in job.logs if line.startswith("error: the push to tester/m failed")]
    assert f"hf buckets sync hf://buckets/{namespace}/jobs-artifacts/" in error
    hub.failures.queue.clear()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    hub.token = member.token
    run_printed(Done(1, "", error, []), hub, elsewhere)
    wanted = {"adapter_model.safetensors": bytes(range(256)) * 100, "adapter_config.json": b"{}"}
    assert held(hub) == wanted
    assert hub.repos["tester/m"].id == "tester/m"


# ---- A whole run -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("refusal", [None, 403])
def test_a_run_says_first_what_it_learned_and_last_how_to_push(
    hub: Hub, script: Path, tiny: Path, tmp_path: Path, refusal: int | None
) -> None:
    rows = [{"prompt": f"What colour is house {n}?", "completion": f"House {n} is red."} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if refusal:
        hub.fail_next(refusal, COMMIT, times=LOST)
    flags = ("--model", tiny, "--dataset", tmp_path / "rows.jsonl", "--eval-rows", 0, "--max-steps", 2)
    rest = ("--max-length", 64, "--device", "cpu", "--trackio-project", "", "--output-repo", "m", "--private")
    program = [find_uv_bin(), "run", "--quiet", "--python", sys.executable, script]
    env = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"} | hub.env()
    done = subprocess.run(
        [*map(str, (*program, *flags, *rest))], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    last = done.stdout.splitlines()[-1]
    assert last.startswith("RESULT {"), done.stdout + done.stderr
    found = json.loads(last.removeprefix("RESULT "))
    assert found["output_repo"] == "tester/m"
    assert found["steps"] == 2
    folder = Path(found["output_dir"])
    if refusal is None:
        assert done.returncode == 0
        assert (found["pushed"], found["push_error"]) == (True, None)
        assert found["url"] == f"{hub.url}/tester/m"
    else:
        assert done.returncode == 1
        assert (found["pushed"], found["url"]) == (False, None)
        assert found["push_error"].startswith("the push to tester/m failed")
        assert held(hub) == {}
        hub.failures.queue.clear()
        run_printed(Done(1, done.stdout, done.stderr, []), hub, tmp_path)
    assert hub.repos["tester/m"].private
    assert held(hub) == expected(folder)
    assert "adapter_model.safetensors" in held(hub)


def test_a_model_is_not_sent_on_to_another_host(push: Push, hub: Hub, model: Path) -> None:
    hub.fail_next(307, COMMIT, times=LOST, location="http://127.0.0.1:9/api/models/tester/m/commit/main")
    done = push("m", model)
    assert done.code != 0 and "sends it on to 127.0.0.1, another host" in done.error
    assert done.waits == []
    assert "adapter_model.safetensors" not in hub.repos["tester/m"].files
