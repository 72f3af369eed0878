"""Whom the token and a Job's secrets are sent to: nobody but the Hub that was named, and not in clear."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import RefusedError, RequestError
from launcher.hub import client, repos
from launcher.hub.endpoint import require_encrypted
from launcher.jobs import local
from tests.emulator import Hub
from tests.emulator.http import Request, Response
from tests.faults.command import launch
from tests.unit import sample

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
ASKED = ("--model", "smollm2-135m", "--flavor", "a10g-small", "--max-steps", "7", "--detach", "-q")


@dataclass
class Other:
    """Another host: it answers whatever it is asked, and keeps what it got."""

    address: str = ""
    got: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    answer: bytes = b"{}"


@pytest.fixture
def other() -> Iterator[Other]:
    found = Other()

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            found.got.append((f"{self.command} {self.path}", {k.lower(): v for k, v in self.headers.items()}, body))
            self.send_response(200)
            self.send_header("Content-Length", str(len(found.answer)))
            self.send_header("ETag", '"1"')
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(found.answer)

        do_GET = do_HEAD = do_POST = do_PUT = handle_any

        def log_message(self, format: str, *args: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found.address = f"http://localhost:{server.server_port}"
    yield found
    server.shutdown()
    server.server_close()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub(tmp_path / "hub", run=False) as hub:
        for name, value in hub.env().items():
            monkeypatch.setenv(name, value)
        hub.add_repo(MODEL, files={"config.json": "{}"})
        hub.add_repo("trl-lib/Capybara", type="dataset")
        yield hub


def moved(hub: Hub, monkeypatch: pytest.MonkeyPatch, route: str, to: str, status: int) -> None:
    """The Hub answers that route with a redirect."""
    answer = hub.answer

    def redirect(request: Request, authorization: str) -> Any:
        if f"{request.method} {request.path}".startswith(route):
            return Response(b"", status, {"Location": to + request.path}), None
        return answer(request, authorization)

    monkeypatch.setattr(hub, "answer", redirect)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_jobs_secrets_follow_no_redirect_to_another_host(
    hub: Hub, other: Other, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    moved(hub, monkeypatch, "POST /api/jobs/", other.address, status)
    monkeypatch.setenv("WANDB_KEY", "some value of its own")
    assert launch(monkeypatch, *ASKED, "--secrets", "WANDB_KEY") == 3
    assert other.got == []
    assert not hub.jobs
    said = " ".join(capsys.readouterr().err.split())
    assert "wants what was sent to it to be sent to localhost" in said
    assert hub.token not in said


@pytest.mark.parametrize("route", ["POST /api/repos/create", "POST /api/models/", "POST /api/buckets"])
def test_no_call_that_sends_something_follows(
    hub: Hub, other: Other, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, route: str
) -> None:
    hub.add_repo("tester/mine", files={"a": "b"})
    moved(hub, monkeypatch, route, other.address, 307)
    api = client.Hub().api
    calls: dict[str, Callable[[], object]] = {
        "POST /api/repos/create": lambda: api.create_repo("tester/new"),
        "POST /api/models/": lambda: api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="tester/mine"),
        "POST /api/buckets": lambda: api.create_bucket("tester/bucket"),
    }
    with pytest.raises(RefusedError, match="wants what was sent"):
        calls[route]()
    assert other.got == []


def test_a_download_is_led_to_storage_without_the_token(
    hub: Hub, other: Other, monkeypatch: pytest.MonkeyPatch
) -> None:
    other.answer = b'{"model_type": "llama"}'
    moved(hub, monkeypatch, f"GET /{MODEL}/resolve/", other.address, 302)
    found = client.library().get_session().get(
        f"{hub.env()['HF_ENDPOINT']}/{MODEL}/resolve/main/config.json", headers={"Authorization": f"Bearer {hub.token}"}
    )  # fmt: skip
    assert found.json() == {"model_type": "llama"}
    [(_, headers, _)] = other.got
    assert "authorization" not in headers
    assert hub.token not in str(headers)


def test_a_repo_of_another_name_is_still_followed(hub: Hub) -> None:
    hub.add_repo("tester/old", files={"config.json": '{"a": 1}'})
    hub.rename_repo("tester/old", "tester/new")
    assert repos.config(client.Hub(), "tester/old", None) == {"a": 1}
    client.Hub().api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="tester/old")
    assert "x" in hub.repos["tester/new"].files


@pytest.mark.parametrize(
    "address",
    ["http://hub.example", "http://10.0.0.1:8000", "HTTP://hub.example", " http://hub.example", "http://0.0.0.0:1",
     "http://127.0.0.1.hub.example", "http://127.0.0.1@hub.example", "http://localhost.hub.example", "http://[::]:1",
     "http://hub.example#127.0.0.1", "http://\nhub.example"],
)  # fmt: skip
def test_nothing_is_sent_in_clear_to_another_machine(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], address: str
) -> None:
    sent = list[str]()

    def look_up(*args: object, **_: object) -> list[object]:
        sent.append(str(args))
        return []

    monkeypatch.setattr("socket.getaddrinfo", look_up)
    monkeypatch.setenv("HF_ENDPOINT", address)
    assert launch(monkeypatch, *ASKED) == 3
    assert launch(monkeypatch, "ps") == 3
    assert "plain http" in capsys.readouterr().err
    assert sent == []


@pytest.mark.parametrize(
    "address",
    ["https://hub.example", "http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1", "http://127.9.9.9", ""],
)
def test_what_is_encrypted_or_here_is_asked(address: str) -> None:
    require_encrypted(address, "it")


def test_a_redirect_to_plain_http_is_refused_for_a_download_too(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    moved(hub, monkeypatch, f"GET /{MODEL}/resolve/", "http://storage.example", 302)
    with pytest.raises(RefusedError, match=r"plain http to storage\.example"):
        repos.config(client.Hub(), MODEL, None)


def test_a_run_here_is_not_given_such_a_hub_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its script asks the Hub by itself, with the same token."""
    with pytest.raises(RefusedError, match=r"HF_ENDPOINT is plain http to hub\.example"):
        local.LocalBackend().check(sample.request("pass", env={"HF_ENDPOINT": "http://hub.example"}))
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example")
    with pytest.raises(RefusedError, match=r"HF_ENDPOINT is plain http to hub\.example"):
        local.LocalBackend().check(sample.request("pass"))


def test_a_job_is_not_given_one(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch(monkeypatch, *ASKED, "--env", "HF_ENDPOINT=http://hub.example") == 3
    assert not hub.jobs


def test_what_is_no_address_is_said() -> None:
    with pytest.raises(RequestError, match="is no URL"):
        require_encrypted("http://[", "HF_ENDPOINT")
