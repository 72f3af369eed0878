"""What is asked of the Hub about a repo, against the Hub stand-in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.errors import RequestError
from launcher.hub import client, repos
from tests.emulator import Hub
from tests.emulator.state import StoredFile


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub(tmp_path / "hub", run=False) as hub:
        for name, value in hub.env().items():
            monkeypatch.setenv(name, value)
        yield hub
        assert hub.unknown_requests == []


def test_the_configuration_of_a_model(hub: Hub) -> None:
    hub.add_repo("lab/broken", files={"config.json": "{"})
    hub.add_repo("lab/empty")
    hub.add_repo("lab/llama", files={"config.json": '{"model_type": "llama"}'})
    asked = client.Hub()
    assert repos.config(asked, "lab/llama", None) == {"model_type": "llama"}
    assert asked.user == "tester"
    with pytest.raises(RequestError, match="not JSON"):
        repos.config(asked, "lab/broken", None)
    with pytest.raises(RequestError, match="lacks a file"):
        repos.config(asked, "lab/empty", None)
    with pytest.raises(RequestError, match="the model 'lab/no' does not exist"):
        repos.config(asked, "lab/no", None)


def test_files_of_one_commit(hub: Hub) -> None:
    repo = hub.add_repo("tester/adapter", private=True, files={"a.json": "1", "b.json": "2" * 100})
    at = repo.head.oid
    repo.commit({"a.json": StoredFile(b"later"), "b.json": repo.head.files["b.json"]}, "another")
    found = repos.snapshot(client.Hub(), "tester/adapter", at, ("a.json", "b.json", "c.json"), largest=10)
    assert found.files == {"a.json": b"1"}
    assert {"a.json", "b.json"} <= found.names
    assert (found.repo, found.commit, found.private) == ("tester/adapter", at, True)
    assert [commit for commit, _ in repos.history(client.Hub(), "tester/adapter")][-1] != repo.head.oid
    assert repos.file(client.Hub(), "tester/adapter", "a.json", None, 10) == b"later"
    with pytest.raises(RequestError, match=r"has no d\.json"):
        repos.file(client.Hub(), "tester/adapter", "d.json", None, 10)
    with pytest.raises(RequestError, match="too many"):
        repos.file(client.Hub(), "tester/adapter", "b.json", None, 10)
