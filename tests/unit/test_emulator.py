"""The Hub stand-in, asked only through the unmodified client."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from httpx2 import ReadError
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from tests.emulator import Hub, Job

QUICK = "import os, pathlib; print('hello from', os.environ['JOB_ID'])"


pytestmark = pytest.mark.filterwarnings("ignore:.*is experimental:UserWarning")  # run_uv_job and buckets say so


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path / "hub") as hub:
        yield hub
        assert hub.unknown_requests == []


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Hub]:
    """A Hub whose Jobs a test plays by hand."""
    with Hub(tmp_path / "hub", run=False) as hub:
        yield hub
        assert hub.unknown_requests == []


def client(hub: Hub, token: str | None = None) -> HfApi:
    return HfApi(endpoint=hub.url, token=token or hub.token)


def submit(hub: Hub, *command: str, token: str | None = None, **options: object) -> Job:
    command = command or (sys.executable, "-c", QUICK)
    api = client(hub, token)
    job = api.run_job(image="python:3.12", command=[*command], namespace="tester", **options)  # type: ignore[arg-type]
    return hub.jobs[job.id]


def test_whoami_tells_the_user_and_the_role(hub: Hub) -> None:
    reader = hub.add_user("reader", role="read", orgs=["team"])
    me = client(hub, reader.token).whoami()
    assert (me["name"], me["auth"]["accessToken"]["role"], [org["name"] for org in me["orgs"]]) == (
        "reader",
        "read",
        ["team"],
    )
    assert hub.requests[-1].user == "reader"
    assert "authorization" not in hub.requests[-1].headers


def test_a_bad_token_is_refused(hub: Hub) -> None:
    with pytest.raises(HfHubHTTPError) as caught:
        client(hub, "hf_" + secrets.token_hex(17)).whoami()
    assert caught.value.response.status_code == 401
    assert caught.value.response.headers["X-Error-Message"] == "Invalid credentials in Authorization header"
    assert hub.requests[-1].user is None


def test_a_uv_script_is_uploaded_run_and_followed(hub: Hub, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import os, pathlib, sys\n"
        "data = pathlib.Path(os.environ['LAUNCH_DATA_DIR'])\n"
        "(data / 'out').mkdir()\n"
        "(data / 'out' / 'seen.txt').write_text(' '.join([os.environ['SECRET'], *sys.argv[1:]]))\n"
        "print('token' if 'HF_TOKEN' in os.environ else 'no token', os.environ['CPU_CORES'])\n"
    )
    api = client(hub)
    made = api.run_uv_job(
        str(script), script_args=["--out", "/data/x"], flavor="cpu-basic", secrets={"SECRET": "s3"}, namespace="tester"
    )
    assert [*api.fetch_job_logs(job_id=made.id, follow=True, namespace="tester")][-1] == "no token 2"
    told = api.inspect_job(job_id=made.id, namespace="tester")
    assert (told.status.stage, told.secrets) == ("COMPLETED", {"SECRET": "(encrypted)"})
    bucket = hub.buckets["tester/jobs-artifacts"]
    folder = hub.jobs[made.id].spec["volumes"][0]["path"]
    assert bucket.files[f"{folder}/train.py"] == script.read_bytes()
    assert bucket.files[f"{folder}/out/seen.txt"].decode() == f"s3 --out {bucket.folder / folder}/x"
    # What a Job wrote can be listed and fetched as what was uploaded can.
    fetched = tmp_path / "seen.txt"
    api.download_bucket_files(bucket.id, [(f"{folder}/out/seen.txt", fetched)])
    assert fetched.read_text().startswith("s3 --out")
    names = {item.path for item in api.list_bucket_tree(bucket.id, prefix=folder, recursive=True)}
    assert names == {f"{folder}/train.py", f"{folder}/out/seen.txt"}


def test_a_failed_job_is_tried_again_on_the_same_volume(hub: Hub) -> None:
    client(hub).create_bucket("tester/kept")
    count = (
        "import os, pathlib; p = pathlib.Path(os.environ['LAUNCH_DATA_DIR'], 'n');"
        "n = p.read_text() if p.exists() else ''; p.write_text(n + 'x'); print(n); raise SystemExit(3)"
    )
    volume = {"type": "bucket", "source": "tester/kept", "mountPath": "/data"}
    spec = {"dockerImage": "python", "command": [sys.executable, "-c", count], "flavor": "t4-small", "attempts": 2}
    response = _post(hub, "/api/jobs/tester", {**spec, "volumes": [volume]})
    job = hub.jobs[response["id"]]
    assert job.wait() == "ERROR"
    assert (job.message, job.attempts_made, job.logs) == ("Job failed with exit code: 3", 2, ["", "x"])
    assert hub.buckets["tester/kept"].files == {"n": b"xx"}


def test_a_job_is_killed_at_its_timeout(hub: Hub) -> None:
    job = submit(hub, sys.executable, "-c", "import time; print('began', flush=True); time.sleep(60)", timeout=1)
    assert job.wait(10) == "ERROR"
    assert (job.message, job.logs) == ("Job timeout", ["began"])


def test_a_job_is_cancelled(hub: Hub) -> None:
    job = submit(hub, "sh", "-c", "echo $$; sleep 60")
    log = client(hub).fetch_job_logs(job_id=job.id, follow=True, namespace="tester")
    pid = int(next(iter(log)))
    client(hub).cancel_job(job_id=job.id, namespace="tester")
    assert job.wait(10) == "CANCELED"
    assert [*log] == []
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists():
            break
        subprocess.run(["sleep", "0.05"], check=True)
    assert not Path(f"/proc/{pid}").exists()


def test_jobs_are_found_by_label_and_stage(recorder: Hub) -> None:
    first = submit(recorder, labels={"kind": "sft", "name": "a"})
    second = submit(recorder, labels={"kind": "sft", "name": "b"})
    submit(recorder, labels={"kind": "dpo", "name": "a"})
    first.log("step 1")
    first.finish("COMPLETED")
    api = client(recorder)

    def found(**filters: object) -> list[str]:
        return [job.id for job in api.list_jobs(namespace="tester", **filters)]  # type: ignore[arg-type]

    assert found(labels={"kind": "sft"}) == [second.id, first.id]
    assert found(labels={"kind": "sft", "name": "a"}) == [first.id]
    assert found(labels={"kind": "sft"}, status=["SCHEDULING"]) == [second.id]
    assert [*api.fetch_job_logs(job_id=first.id, namespace="tester")] == ["step 1"]


def test_a_job_is_measured_and_repeated(recorder: Hub) -> None:
    api = client(recorder)
    machines = {machine.name: machine for machine in api.list_jobs_hardware()}
    gpu = machines["t4-small"].accelerator
    assert gpu is not None
    assert (gpu.model, gpu.quantity, gpu.vram) == ("T4", "1", "16 GB")
    job = submit(recorder, flavor="t4-small", secrets={"KEY": "k"})
    job.start()
    sample = next(iter(api.fetch_job_metrics(job_id=job.id, follow=False, namespace="tester")))
    assert [card["memory_total_bytes"] for card in sample["gpus"].values()] == [16 * 10**9]
    again = recorder.jobs[api.rerun_job(job_id=job.id, namespace="tester").id]
    assert (again.spec, again.secrets, again.stage) == (job.spec, {"KEY": "k"}, "SCHEDULING")


def test_a_command_that_does_not_exist_ends_the_job(hub: Hub) -> None:
    job = submit(hub, "no-such-program")
    assert job.wait(10) == "ERROR"
    assert job.message is not None
    assert "no-such-program" in job.message


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"flavor": "a11g-large"}, "flavor"),
        ({"labels": {"name": "n" * 101}}, "labels"),
        ({"labels": {"name": "a/b"}}, "labels"),
        ({"attempts": 0}, "attempts"),
    ],
)
def test_a_job_that_the_service_would_refuse_is_refused(recorder: Hub, options: dict[str, object], named: str) -> None:
    with pytest.raises(HfHubHTTPError, match=named) as caught:
        submit(recorder, **options)  # type: ignore[arg-type]
    assert caught.value.response.status_code == 400
    assert recorder.jobs == {}


def test_only_a_token_that_may_write_starts_jobs(recorder: Hub) -> None:
    reader = recorder.add_user("tester", role="read")
    fine = recorder.add_user("tester", role="fineGrained", permissions=["job.write"])
    other = recorder.add_user("other")
    for token in (reader.token, other.token):
        with pytest.raises(HfHubHTTPError) as caught:
            submit(recorder, token=token)
        assert caught.value.response.status_code == 403
    assert recorder.jobs == {}
    assert submit(recorder, token=fine.token).stage == "SCHEDULING"


def test_a_model_comes_back_byte_for_byte(hub: Hub, tmp_path: Path) -> None:
    """With xet (bytes that don't compress, text for LZ4, numbers that are grouped first) and without."""
    folder = tmp_path / "model"
    folder.mkdir()
    content = {
        "model.safetensors": os.urandom(3 * 2**20),
        "words.bin": b"".join(b"%d bottles of beer on the wall\n" % i for i in range(20_000)),
        "floats.bin": b"".join((1_000_000 + i).to_bytes(4, "little") for i in range(60_000)),
        "config.json": b'{"a": 1}\n',
        "README.md": b"---\nlicense: mit\n---\nhello\n",
    }
    for name, data in content.items():
        (folder / name).write_bytes(data)
    api = client(hub)
    api.create_repo("tester/m")
    api.upload_folder(repo_id="tester/m", folder_path=folder)
    assert {name: hub.repos["tester/m"].files[name] for name in content} == content
    here = Path(api.snapshot_download("tester/m", local_dir=tmp_path / "again", cache_dir=tmp_path / "cache"))
    assert {name: (here / name).read_bytes() for name in content} == content
    assert any("/v1/shards" in request.path for request in hub.requests)

    program = (
        "import sys; from huggingface_hub import HfApi; api = HfApi(); api.create_repo('tester/plain');"
        "api.upload_folder(repo_id='tester/plain', folder_path=sys.argv[1]);"
        "print(api.hf_hub_download('tester/plain', 'model.safetensors'))"
    )
    env = {**os.environ, **hub.env(), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run([sys.executable, "-c", program, folder], env=env, capture_output=True, text=True, check=True)
    assert {name: hub.repos["tester/plain"].files[name] for name in content} == content
    assert Path(done.stdout.strip()).read_bytes() == content["model.safetensors"]


def test_private_and_gated_repos_are_kept_from_others(hub: Hub, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    hub.add_repo("tester/hidden", private=True, files={"a": "1"})
    hub.add_repo("tester/gated", gated="manual", files={"a": "1"})
    stranger = client(hub, hub.add_user("stranger").token)
    with pytest.raises(RepositoryNotFoundError):
        stranger.model_info("tester/hidden")
    with pytest.raises(GatedRepoError):
        stranger.hf_hub_download("tester/gated", "a", cache_dir=cache)
    with pytest.raises(RevisionNotFoundError):
        stranger.model_info("tester/gated", revision="v9")
    assert stranger.model_info("tester/gated").gated == "manual"
    hub.repos["tester/gated"].granted.add("stranger")
    assert Path(stranger.hf_hub_download("tester/gated", "a", cache_dir=cache)).read_text() == "1"
    assert client(hub).model_info("tester/hidden").private


def test_failures_come_as_ordered(recorder: Hub) -> None:
    recorder.fail_next(402, route="POST /api/jobs", message="Pre-paid credit balance is insufficient")
    with pytest.raises(HfHubHTTPError, match="credit balance"):
        submit(recorder)
    assert recorder.jobs == {}
    recorder.fail_next("after_commit", route="POST /api/jobs")
    with pytest.raises(HfHubHTTPError) as caught:
        submit(recorder)
    assert (caught.value.response.status_code, len(recorder.jobs)) == (502, 1)
    recorder.fail_next("reset", route="GET /api/whoami-v2")
    with pytest.raises(ReadError, match="reset by peer"):
        client(recorder).whoami()
    assert client(recorder).whoami()["name"] == "tester"


def test_a_log_that_breaks_is_followed_to_its_end(recorder: Hub) -> None:
    job = submit(recorder)
    job.log("step 1", "step 2")
    recorder.fail_next("cut", route=f"GET /api/jobs/tester/{job.id}/logs")
    log = client(recorder).fetch_job_logs(job_id=job.id, follow=True, namespace="tester")
    seen = [next(iter(log))]
    job.log("step 3")
    job.finish("COMPLETED")
    assert [*seen, *log] == ["step 1", "step 2", "step 3"]


def _post(hub: Hub, path: str, body: dict[str, object]) -> dict[str, str]:
    from huggingface_hub import get_session

    answer = get_session().post(hub.url + path, json=body, headers={"authorization": f"Bearer {hub.token}"})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())
