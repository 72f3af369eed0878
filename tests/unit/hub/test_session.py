"""Where the token and the secrets go, and how long an answer may take, with the real client and two real servers."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.utils import _http

from launcher.errors import RefusedError, RequestError, ServiceError
from launcher.hub import client, datasets, repos
from launcher.hub.client import library
from launcher.hub.session import ENDLESS, require_endpoint
from launcher.jobs.local import LocalBackend
from launcher.jobs.service import HubBackend
from launcher.jobs.submit import check
from tests.emulator import Hub
from tests.unit.sample import request

SECRET = "s3cret-of-the-run"


@dataclass
class Other:
    """A server that answers all with `{}` and keeps what it got."""

    port: int = 0
    got: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)


@pytest.fixture
def other() -> Iterator[Other]:
    kept = Other()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            kept.got.append((self.command, self.path, headers, body))
            self.send_response(200)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    kept.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield kept
    server.shutdown()
    server.server_close()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub(tmp_path / "hub", run=False) as hub:
        for name, value in (hub.env() | {"RUN_SECRET": SECRET}).items():
            monkeypatch.setenv(name, value)
        hub.add_repo("unsloth/SmolLM2-135M-Instruct", files={"config.json": "{}"})
        hub.add_repo("HuggingFaceTB/SmolLM2-135M-Instruct", files={"config.json": "{}"})
        hub.add_repo("trl-lib/Capybara", type="dataset")
        yield hub


def submit() -> object:
    return HubBackend(client.Hub(0.01)).submit(request("pass", secrets=("HF_TOKEN", "RUN_SECRET")))


CALLS: dict[str, tuple[str, Callable[[], object]]] = {
    "whoami": ("GET /api/whoami-v2", lambda: client.Hub(0.01).account),
    "bucket": ("POST /api/buckets", submit),
    "upload": ("POST /api/buckets/{namespace}/{name}/batch", submit),
    "job": ("POST /api/jobs", submit),
    "list": ("GET /api/jobs", lambda: HubBackend(client.Hub(0.01)).list()),
    "inspect": ("GET /api/jobs", lambda: HubBackend(client.Hub(0.01)).inspect("tester/" + "a" * 24)),
    "model": ("GET /api/models", lambda: repos.look_up(client.Hub(0.01), "model", "a/b", None)),
    "config": ("HEAD /a/b/resolve", lambda: repos.config(client.Hub(0.01), "a/b", None)),
}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("call", [name for name in CALLS if name != "config"])
def test_nothing_is_sent_on_to_another_host(hub: Hub, other: Other, call: str, status: int) -> None:
    route, ask = CALLS[call]
    hub.fail_next(status, route, location=f"http://127.0.0.1:{other.port}/there")
    with pytest.raises(RefusedError, match=r"another host, 127\.0\.0\.1: it was not") as raised:
        ask()
    assert raised.value.exit_code == 3
    assert other.got == []
    assert hub.jobs == {}
    assert hub.failures.queue == []


@pytest.mark.parametrize("location", ["//{other}/there", "HTTP://{other}/there", "http://user@{other}/there"])
def test_however_the_other_host_is_written(hub: Hub, other: Other, location: str) -> None:
    hub.fail_next(307, "POST /api/jobs", location=location.format(other=f"127.0.0.1:{other.port}"))
    with pytest.raises((RefusedError, ServiceError)):
        submit()
    assert other.got == []
    assert hub.jobs == {}


def test_a_repo_that_was_renamed_leads_to_the_same_host(hub: Hub) -> None:
    hub.add_repo("tester/old", files={"config.json": '{"model_type": "llama"}'})
    hub.rename_repo("tester/old", "tester/new")
    assert repos.look_up(client.Hub(), "model", "tester/old", None).id == "tester/new"
    assert repos.config(client.Hub(), "tester/old", None) == {"model_type": "llama"}


def test_a_download_goes_on_elsewhere_without_the_token(hub: Hub, other: Other) -> None:
    hub.fail_next(302, "GET /a/b/resolve", location=f"http://127.0.0.1:{other.port}/file?signed")
    tools = library().utils
    answer = tools.get_session().get(f"{hub.url}/a/b/resolve/main/x", headers=tools.build_hf_headers())
    assert answer.json() == {}
    [(method, path, headers, body)] = other.got
    assert (method, path, body) == ("GET", "/file?signed", b"")
    assert "authorization" not in headers
    assert hub.token not in str(headers)


@pytest.mark.parametrize("host", ["0.0.0.0", "hub.example", "127.0.0.1.example", "localhost.example", "[fe80::1]", "7"])
def test_nothing_is_sent_in_clear(hub: Hub, other: Other, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://{host}:{other.port}")  # Linux takes 0.0.0.0 for this machine
    for ask in (lambda: client.Hub(0.01).account, submit, CALLS["config"][1]):
        with pytest.raises(RefusedError, match="in clear: nothing was sent") as raised:
            ask()
        assert raised.value.exit_code == 3
    assert other.got == []


def test_nor_to_the_dataset_viewer(hub: Hub, other: Other, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUNCH_DATASET_VIEWER", f"http://0.0.0.0:{other.port}")
    found = datasets.size(client.Hub(0.01), "trl-lib/Capybara", None, "train", None)
    assert found.rows is None
    assert "in clear" in found.source
    assert other.got == []


def test_nor_by_a_script_that_would_send_it(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = request("pass", env={"HF_ENDPOINT": "http://hub.example"})
    for refuses in (LocalBackend().check, lambda asked: check(client.Hub(0.01), asked)):
        with pytest.raises(RefusedError, match="in clear"):
            refuses(bad)
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example")
    with pytest.raises(RefusedError, match="in clear"):
        LocalBackend().check(request("pass"))


@pytest.mark.parametrize(
    "address", [None, "", "https://hub.example", "http://localhost:8", "http://127.0.0.1", "http://[::1]:8", "no url"]
)
def test_what_may_be_asked(address: str | None) -> None:
    require_endpoint(address)


@pytest.fixture
def impatient(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(client, "TIMEOUT_S", 0.5)
    _http.close_session()
    yield
    _http.close_session()


# At this pace a whole answer, 600 bytes and more, takes half a minute, and no byte is late.
@pytest.mark.parametrize("call", [name for name in CALLS if name not in ("inspect", "job")])
@pytest.mark.usefixtures("impatient")
def test_an_answer_that_drips_is_given_up(hub: Hub, call: str) -> None:
    hub.add_repo("a/b", files={"config.json": "{}"})
    route, ask = CALLS[call]
    hub.fail_next("drip", route, times=20, seconds=0.05)
    with pytest.raises(ServiceError, match="did not answer in time"):
        ask()


@pytest.mark.usefixtures("impatient")
def test_a_job_whose_answer_drips_is_found_and_not_made_twice(hub: Hub) -> None:
    hub.fail_next("drip", "POST /api/jobs", seconds=0.05)
    submit()
    assert len(hub.jobs) == 1


@pytest.mark.usefixtures("impatient")
def test_a_download_that_drips_is_given_up(hub: Hub) -> None:
    hub.add_repo("a/b", files={"config.json": "{}" + " " * 1000})
    hub.fail_next("drip", "GET /a/b/resolve", times=20, seconds=0.05)
    with pytest.raises(ServiceError, match="did not answer in time"):
        repos.config(client.Hub(0.01), "a/b", None)


@pytest.mark.usefixtures("impatient")
def test_a_log_may_go_on_for_ever(hub: Hub) -> None:
    hub.fail_next("drip", "GET /api/whoami-v2", seconds=0.003)
    tools = library().utils
    ask = tools.get_session().stream(
        "GET", f"{hub.url}/api/whoami-v2", headers=tools.build_hf_headers(), timeout=5, extensions={ENDLESS: True}
    )
    with ask as answer:
        assert answer.read().startswith(b'{"type": "user"')


def test_a_proxy_that_nothing_here_speaks_to_is_named_with_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "socksio", None)
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "t" * 20)
    library().close_session()
    with pytest.raises(RequestError, match="SOCKS proxy") as raised:
        HubBackend(client.Hub(0.001)).list()
    assert "`pip install socksio`" in raised.value.hint
    library().close_session()
