"""Which metrics a dashboard shows, and what its server gets to see."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from launcher.cli.app import app
from launcher.dashboard import board, process
from launcher.dashboard.process import environment, require_port
from launcher.errors import RefusedError, RequestError
from launcher.jobs import folder
from launcher.jobs.base import Job, now
from tests.unit.sample import plan, request

LOCAL = "local-20261124-103012-ab12"


def keep(run_id: str = LOCAL, stage: str = "COMPLETED", backend: str = "local", **changes: object) -> folder.Run:
    run = folder.create(request("pass", of=plan(**changes)), backend).rename(run_id)
    job = Job(
        id=run_id, url=run.folder.as_uri(), backend=backend, stage=stage, message=None, flavor="local", labels={},
        created_at=now(), finished_at=now(),
    )  # fmt: skip
    run.write(folder.STATUS, job.as_dict())
    return run


def test_a_run_of_this_machine_is_shown_from_where_it_logged() -> None:
    keep(env={"TRACKIO_DIR": "/elsewhere"}, trackio_project="houses")
    found = board.find(LOCAL)
    assert (found.space_url, found.fed, found.live) == (None, False, False)
    assert found.plan is not None
    assert (found.plan.decisions.trackio_project.value, found.plan.env["TRACKIO_DIR"]) == ("houses", "/elsewhere")


def test_a_space_is_only_named(monkeypatch: pytest.MonkeyPatch) -> None:
    keep(run_id="68780d00bbe36d38803f645f", backend="hub", trackio_space="me/metrics")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    done = CliRunner().invoke(app, ["dashboard", "68780d00bbe36d38803f645f", "--no-open"])
    assert (done.exit_code, done.stdout) == (0, "https://huggingface.co/spaces/me/metrics\n")


def test_what_can_not_be_shown_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    keep(trackio_project="")
    with pytest.raises(RequestError, match="without a Trackio project"):
        board.find(LOCAL)
    with pytest.raises(RequestError, match="unknown run") as raised:
        board.find(LOCAL.replace("ab12", "ab13"))
    assert LOCAL in raised.value.hint
    with pytest.raises(RequestError, match="unknown run 'nope'"):
        board.find("nope")
    with pytest.raises(RequestError, match="a repo of the Hub, not a run"):
        board.find("me/model")
    monkeypatch.setattr(process, "uv_run", _no_uv)
    with pytest.raises(RefusedError, match="uv"):
        board.serve(board.Board(), None, print)


def _no_uv(*_: str) -> list[str]:
    raise RefusedError("uv, which runs the script, is not there.", "")


def test_a_taken_port_is_refused_and_a_free_one_is_not() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(RequestError, match=f"--port {port} can't be used"):
            require_port(port)
    require_port(port)


def test_a_transcript_gives_each_step_once() -> None:
    lines = [
        "== train", "eval step 0/3 | loss 3.0000", "step 1/3 | loss 2.5000 | lr 1.00e-04 | 10 tok/s | eta 3s",
        "step 2/3 | loss 2.0000 | lr 5.00e-05 | 20 tok/s | eta 2s", "resumed from step 1",
        "step 2/3 | loss 2.2000 | lr 5.00e-05 | 20 tok/s | eta 2s", "step 3/3 | loss nonsense", "step 3/? | loss 1.0",
        "eval step 3/3 | loss 1.5000", "said: step 9/9 | loss 9.0", "RESULT {}",
    ]  # fmt: skip
    assert list(board.points(lines)) == [
        ({"eval/loss": 3.0}, 0),
        ({"loss": 2.5, "learning_rate": 1e-4, "tokens_per_s": 10.0}, 1),
        ({"loss": 2.0, "learning_rate": 5e-5, "tokens_per_s": 20.0}, 2),
        ({"loss": 1.0}, 3),
        ({"eval/loss": 1.5}, 3),
    ]


def test_the_server_gets_no_account_and_no_place_to_send_to(tmp_path: Path) -> None:
    given = {
        "HF_TOKEN": "hf_x", "HUGGING_FACE_HUB_TOKEN": "hf_x", "TRACKIO_SPACE_ID": "me/x", "TRACKIO_SERVER_URL": "http://x",
        "TRACKIO_WEBHOOK_URL": "http://x", "GRADIO_SHARE": "true", "GRADIO_SERVER_NAME": "0.0.0.0", "SYSTEM": "spaces",
        "SPACE_ID": "me/x", "PYTHONPATH": "/x", "TRACKIO_DIR": "/mine", "HF_HOME": "/home", "PATH": os.defpath,
        "UV_INDEX_URL": "http://x", "GRADIO_ANALYTICS_ENABLED": "True",
    }  # fmt: skip
    found = environment(given, {"HF_HOME": str(tmp_path)})
    assert {name: found[name] for name in ("TRACKIO_DIR", "HF_HOME", "PATH")} == {
        "TRACKIO_DIR": "/mine",
        "HF_HOME": str(tmp_path),
        "PATH": os.defpath,
    }
    assert (found["GRADIO_ANALYTICS_ENABLED"], found["HF_HUB_OFFLINE"]) == ("False", "1")
    gone = set(given) - {"TRACKIO_DIR", "HF_HOME", "PATH", "GRADIO_ANALYTICS_ENABLED"}
    assert not gone & set(found)
