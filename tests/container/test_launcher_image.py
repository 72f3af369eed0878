"""The launcher's image: small, not root, nothing to build with, a root file system that is only read."""

from __future__ import annotations

import json
import subprocess
import tomllib
from pathlib import Path

import pytest

from launcher import __version__
from tests.container import buildah
from tests.container.buildah import CHECKOUT, Store
from tests.container.conftest import SECRET
from tests.container.sandbox import Container
from tests.emulator import Hub

pytestmark = pytest.mark.container
BUILD_TOOLS = {"gcc", "g++", "cc", "c++", "cpp", "as", "ld", "make", "cmake", "git", "cargo", "rustc"}


def answer(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_answers_as_a_user_that_is_not_root(launcher: Container) -> None:
    assert "Fine-tune a language or vision-language model" in answer(launcher.run("--help"))
    assert answer(launcher.run("--version")) == f"launch {__version__}\n"
    assert launcher.config["User"] == "1000:1000"
    assert answer(launcher.run("id", "-u", entrypoint=[])) == "1000\n"


def test_it_plans_without_a_network(launcher: Container) -> None:
    planned = json.loads(answer(launcher.run("plan", "--model", "qwen3-8b", "--json")))
    assert planned["vram"]["fits"] is True
    # The templates are in the wheel: the script is the committed one.
    asked = ("--model", "qwen3-8b", "--flavor", "a10g-large", "--load-in", "4bit", "--no-push")
    script = answer(launcher.run("render", *asked, "--run-name", "qwen3-8b-sft"))
    assert script.splitlines()[:14] == (CHECKOUT / "job_scripts" / "sft_text.py").read_text().splitlines()[:14]


def test_it_writes_in_its_home_only(launcher: Container) -> None:
    for folder in ("/", "/opt/launch", "/usr/local", "/etc"):
        done = launcher.run("touch", f"{folder}/file", entrypoint=[], user="0:0")
        assert done.returncode == 1
        assert "Read-only file system" in done.stderr
    answer(launcher.run("touch", "/home/launch/file", "/tmp/file", entrypoint=[]))


def test_it_submits_a_job_with_the_token_from_its_environment(launcher: Container, tmp_path: Path) -> None:
    with Hub(tmp_path / "hub", run=False) as hub:
        hub.add_repo("HuggingFaceTB/SmolLM2-135M-Instruct", files={"config.json": '{"model_type": "llama"}'})
        hub.add_repo("trl-lib/Capybara", type="dataset")
        env = {"HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token, "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        asked = ("--model", "smollm2-135m", "--max-steps", "5", "--yes", "--detach", "--json")
        submitted = json.loads(answer(launcher.run(*asked, network=True, env=env)))
        assert list(hub.jobs) == [submitted["id"]]


def test_it_holds_what_the_lock_pins_and_nothing_to_build_with(launcher: Container) -> None:
    listing = (
        "import importlib.metadata as m, json; print(json.dumps([(d.name, d.version) for d in m.distributions()]))"
    )
    said = answer(launcher.run("-c", listing, entrypoint=["/opt/launch/bin/python"]))
    installed = {name.lower().replace("_", "-"): version for name, version in json.loads(said)}
    lock = tomllib.loads((CHECKOUT / "uv.lock").read_text(encoding="utf-8"))
    pinned = {package["name"]: package.get("version", __version__) for package in lock["package"]}
    assert installed.items() <= pinned.items()
    assert installed["launch-sft"] == __version__
    assert not {"pytest", "mypy", "ruff", "pip", "setuptools"} & installed.keys()
    found = {path.name for folder in ("usr/bin", "usr/local/bin", "opt/launch/bin")
             for path in (launcher.root / folder).iterdir()}  # fmt: skip
    assert not found & BUILD_TOOLS
    assert not (launcher.root / "src").exists()
    assert not (launcher.root / "opt" / "uv").exists()


def test_it_adds_less_than_250_mb_to_its_base(launcher: Container, store: Store) -> None:
    added = buildah.size(launcher.root) - buildah.size(store.root("base"))
    print(f"\nlauncher: {added / 1e6:.0f} MB above its base")
    assert 20e6 < added < 250e6


def test_its_layers_hold_no_secret(launcher: Container, store: Store, tmp_path: Path) -> None:
    store.buildah("push", "--disable-compression", "localhost/launcher", f"dir:{tmp_path}")
    layers = [path for path in tmp_path.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in layers) > 100e6
    assert b"HF_TOKEN" in b"".join(path.read_bytes() for path in layers)  # the launcher's own sources name it
    assert not [path.name for path in layers if SECRET.encode() in path.read_bytes()]


def test_it_says_what_it_is(launcher: Container) -> None:
    labels = launcher.config["Labels"]
    assert labels["org.opencontainers.image.title"] == "launch"
    assert labels["org.opencontainers.image.revision"] == "0123abc"
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert launcher.entrypoint == ["launch"]
