"""Recognisable tokens are pushed through everything that is shown or kept; none comes out."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher import jobs as backends
from launcher import spec
from launcher.cli import app as cli
from launcher.errors import RefusedError, RequestError
from launcher.hub import errors as _hub_errors
from launcher.jobs import base
from launcher.jobs import folder as runs
from launcher.jobs.local import LocalBackend
from launcher.jobs.service import HubBackend
from launcher.text import MASK, SHORTEST, held, holds_secret, mask
from tests.emulator import Hub
from tests.faults import command
from tests.unit.sample import plan, request
from tests.unit.test_security_script import SPEC_TEXTS

LAUNCH = Path(sys.executable).with_name("launch")
HUB_TOKEN = "hf_" + "Canary7" * 5
OTHER = "k3y-that-nobody-may-see-0123456789"
SHAPES = (
    HUB_TOKEN,
    "api_org_" + "Canary7" * 5,
    "hf_oauth_" + "Canary7-Canary_7." * 3,
    "hf_jwt_eyJhbGciOiJFZERTQSJ9.Canary7_Canary7.Canary7-Canary7",
    "ghp_" + "Canary7" * 6,
    "github_pat_" + "Canary_7" * 5,
    "sk-" + "Canary7" * 4,
    "sk-ant-api03-" + "Canary7" * 5,
    "AKIACANARY7CANARY777",
    "https://me:Canary7-Pass@huggingface.co/datasets/a/b",
)


def reading(folder: Path) -> str:
    """Every file below a folder."""
    return "".join(path.read_bytes().decode("utf-8", "replace") for path in folder.rglob("*") if path.is_file())


# ---- How a secret looks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("secret", SHAPES)
@given(before=st.text(max_size=10), after=st.text(max_size=10))
def test_what_looks_like_a_token_is_masked_in_any_text(secret: str, before: str, after: str) -> None:
    text = f"{before} {secret} {after}"
    assert holds_secret(text)
    assert "Canary" not in mask(text)
    assert "CANARY" not in mask(text)


@given(secret=st.text(min_size=SHORTEST, max_size=60), text=st.text(max_size=60))
def test_a_known_secret_is_masked_in_any_text(secret: str, text: str) -> None:
    assert secret not in mask(f"{text}{secret}{text}", [secret]).replace(MASK, "") or secret in MASK


@pytest.mark.parametrize(
    "text",
    [
        "qwen3-8b",
        "hf-internal-testing/tiny",
        "hf_dataset",
        "hf_oauth_expiration_minutes",
        "sk-hynix-instruct-dataset-for-everyone",
        "https://host:80/a@b",
        "https://h/a:b@c",
        "git@github.com:a/b",
        "sha256:" + "0" * 64,
        "0123456789abcdef" * 3,
    ],
)
def test_usual_words_are_left_alone(text: str) -> None:
    assert not holds_secret(text)
    assert mask(text) == text


def test_the_secrets_of_this_shell_and_of_a_login_are_known(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{HUB_TOKEN}\n")
    environment = {
        "HF_HOME": str(tmp_path),
        "WANDB_API_KEY": OTHER,
        "my_password": "hunter22",
        "PATH": "/usr/bin",
        "X_TOKEN": "x",
    }
    assert set(held(environment)) == {HUB_TOKEN, OTHER, "hunter22"}
    (tmp_path / "elsewhere").write_text("t0ken-elsewhere")
    assert held({"HF_TOKEN_PATH": str(tmp_path / "elsewhere")}) == ("t0ken-elsewhere",)
    assert held({"HF_HOME": "/nowhere"}) == ()


# ---- Options ---------------------------------------------------------------------------------------------------------


def test_no_option_takes_a_token_and_no_error_repeats_it() -> None:
    for option in (*SPEC_TEXTS, "label", "env", "secrets"):
        for secret in SHAPES:
            value: Any = {"A": secret} if option in ("label", "env") else (secret,) if option == "secrets" else secret
            try:
                spec.build({"model": "qwen3-8b", option: value})
            except RequestError as error:
                assert "canary" not in f"{error.message} {error.hint}".lower(), (option, secret)
            else:
                pytest.fail(f"{option} took {secret}")


@pytest.mark.parametrize(
    "name",
    ["HF_TOKEN", "hf_token", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "APIKEY", "MY_CREDENTIALS"],
)
def test_a_variable_that_is_called_a_secret_is_no_env(name: str) -> None:
    with pytest.raises(RequestError, match=f"--secrets {name}") as raised:
        spec.build({"model": "qwen3-8b", "env": {name: OTHER}})
    assert OTHER not in raised.value.message


def run_main(argv: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit status, and what was printed."""
    monkeypatch.setattr(sys, "argv", ["launch", *argv])
    try:
        cli.main()
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    printed = capsys.readouterr()
    return status, printed.out + printed.err


@pytest.mark.parametrize(
    "argv",
    [
        ["--model", HUB_TOKEN],
        ["--model", "qwen3-8b", "--batch-size", HUB_TOKEN],
        ["--model", "qwen3-8b", HUB_TOKEN],
        ["--model", "qwen3-8b", f"--{HUB_TOKEN}"],
        ["--model", "qwen3-8b", "--env", HUB_TOKEN],
        [HUB_TOKEN],
        ["--model", "qwen3-8b", "--env", f"A={HUB_TOKEN}"],
        ["--model", "qwen3-8b", "--secrets", f"HF_TOKEN={HUB_TOKEN}"],
        ["--model", "qwen3-8b", "--timeout", HUB_TOKEN],
        ["--model", "qwen3-8b", "--flavor", HUB_TOKEN],
        ["logs", HUB_TOKEN + "/"],
        ["plan", "--model", "qwen3-8b", "--dataset", f"https://me:{HUB_TOKEN}@huggingface.co/datasets/a/b"],
        ["--config", HUB_TOKEN],
        ["plan", "--modality", HUB_TOKEN],
        ["ps", f"--{HUB_TOKEN}=1"],
        ["calibrate", HUB_TOKEN],
        ["--model", "qwen3-8b", "--label", f"{HUB_TOKEN}=1"],
        ["plan", "--model", OTHER],
        ["logs", f"{OTHER}/"],
    ],
)
def test_a_mistyped_command_line_is_answered_without_the_secret_in_it(
    argv: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", OTHER)
    status, said = run_main(argv, monkeypatch, capsys)
    assert status == 2
    assert HUB_TOKEN not in said
    assert "Canary7Canary7" not in re.sub(r"[\s│]", "", said)
    assert OTHER not in said
    assert "Traceback" not in said


def test_a_config_file_with_a_token_is_refused_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.toml"
    for content in (
        f'token = "{HUB_TOKEN}"',
        f'run-name = "{HUB_TOKEN}"',
        f"{HUB_TOKEN} = 1",
        f'model = "{HUB_TOKEN}',
        f'[env]\nA = "{HUB_TOKEN}"',
    ):
        config.write_text(content)
        status, said = run_main(["--model", "qwen3-8b", "--config", str(config), "--dry-run"], monkeypatch, capsys)
        assert status == 2, content
        assert "Canary" not in said, content


def test_a_bug_keeps_its_traceback_without_the_token(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", OTHER)

    def broken(*_: object, **__: object) -> None:
        raise KeyError(f"no field in the answer to {OTHER}, {HUB_TOKEN}\x1b]0;title\x07")

    monkeypatch.setattr(backends, "list_jobs", broken)
    status, said = run_main(["ps"], monkeypatch, capsys)
    assert status == 1
    assert "Traceback" in said and "KeyError" in said
    assert OTHER not in said and HUB_TOKEN not in said and "\x1b" not in said


@pytest.mark.parametrize("kind", ["HfHubHTTPError", "ConnectError", "HFValidationError"])
def test_what_the_client_says_is_told_without_tokens(kind: str) -> None:
    error = type(kind, (Exception,), {"response": None})(f"Bearer {OTHER} for {HUB_TOKEN}: refused")
    bases = {"ConnectError": ("HTTPError",)}.get(kind, (kind,))
    error = type(bases[0], (Exception,), {})(f"Bearer {OTHER} for {HUB_TOKEN}: refused")
    known = _hub_errors.translate(error, "starting the Job", secrets=(OTHER,))
    assert known is not None
    assert OTHER not in known.message + known.hint and HUB_TOKEN not in known.message + known.hint


# ---- A dry run and a request -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["environment", "login"])
def test_a_dry_run_shows_names_only(
    where: str, tmp_path: Path, launch_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", OTHER)
    if where == "environment":
        monkeypatch.setenv("HF_TOKEN", HUB_TOKEN)
    else:
        (launch_home / "huggingface").mkdir()
        (launch_home / "huggingface" / "token").write_text(HUB_TOKEN)
    for argv in (["--dry-run", "--json"], ["--dry-run"]):
        status, said = run_main(["--model", "qwen3-8b", "--secrets", "WANDB_API_KEY", *argv], monkeypatch, capsys)
        assert status == 0, said
        assert HUB_TOKEN not in said and OTHER not in said
    assert (
        "WANDB_API_KEY"
        in run_main(["--model", "qwen3-8b", "--secrets", "WANDB_API_KEY", "--dry-run", "--json"], monkeypatch, capsys)[
            1
        ]
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"env": {"A": f"x{OTHER}"}},
        {"labels": {"a": OTHER}},
        {"script_args": ("--dataset", OTHER)},
        {"of": plan(run_name=OTHER)},
        {"image": f"registry/{OTHER}"},
        {"of": plan(dataset_config=OTHER)},
        {"of": plan(labels={"a": OTHER})},
    ],
)
def test_a_request_that_holds_a_secrets_value_is_refused(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", OTHER)
    with pytest.raises(RefusedError, match="WANDB_API_KEY") as raised:
        LocalBackend().check(request("pass", secrets=("WANDB_API_KEY",), **changes))
    assert OTHER not in raised.value.message + raised.value.hint
    with pytest.raises(RefusedError, match="WANDB_API_KEY"):
        base.require_hidden(request(f"x = {OTHER!r}"), {"WANDB_API_KEY": OTHER})
    base.require_hidden(request("pass"), {"WANDB_API_KEY": OTHER, "SHORT": "pass"})


# ---- Whole runs ------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path / "hub", run=False) as hub:
        hub.add_repo("unsloth/Qwen3-8B", files={"config.json": b"{}"})
        hub.add_repo("trl-lib/Capybara", type="dataset", files={"README.md": b""})
        yield hub


@pytest.mark.parametrize("where", ["environment", "login"])
def test_a_job_gets_its_secrets_and_nothing_shows_them(hub: Hub, launch_home: Path, where: str) -> None:
    environment = os.environ | hub.env() | {"WANDB_API_KEY": OTHER}
    if where == "login":
        del environment["HF_TOKEN"]
        home = Path(environment["HF_HOME"])
        home.mkdir(parents=True)
        (home / "token").write_text(hub.token)
    args = ["--model", "qwen3-8b", "--secrets", "WANDB_API_KEY", "--yes", "--detach", "--json"]
    done = subprocess.run([LAUNCH, *args], env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    [job] = hub.jobs.values()
    assert job.secrets == {"HF_TOKEN": hub.token, "WANDB_API_KEY": OTHER}
    sent = json.dumps(job.spec | {"secrets": sorted(job.secrets)}) + json.dumps(job.labels)
    stored = "".join(
        data.decode("utf-8", "replace") for bucket in hub.buckets.values() for data in bucket.files.values()
    )
    for text in (done.stdout, done.stderr, sent, stored, reading(launch_home)):
        assert text
        assert hub.token not in text and OTHER not in text
    job.log(f"HF_TOKEN={hub.token}", f"another {HUB_TOKEN}", f"a \x1b[31m{hub.token}\x1b[0m", f"WANDB {OTHER}", "done")
    job.finish("ERROR", f"exit status 1: {hub.token}")
    # The token of a login is where the client looked when it was imported: in this process it is the environment's.
    for asked in (["logs", job.id], ["logs", "-f", job.id], ["wait", job.id, "--json"], ["ps", "--all", "--json"]):
        told = command.run(*asked, env=hub.env() | {"WANDB_API_KEY": OTHER})
        assert told.returncode in (0, 1)
        assert hub.token not in told.stdout + told.stderr
        assert HUB_TOKEN not in told.stdout + told.stderr
        assert OTHER not in told.stdout + told.stderr, asked
    kept = reading(launch_home)
    assert "done" in kept
    assert hub.token not in kept and HUB_TOKEN not in kept and OTHER not in kept
    folders = {path for path in (launch_home / "runs").rglob("*") if path.is_dir()} | {launch_home / "runs"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}
    files = {path for path in (launch_home / "runs").rglob("*") if path.is_file()}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_a_local_run_keeps_its_secrets_to_itself(launch_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", HUB_TOKEN)
    monkeypatch.setenv("WANDB_API_KEY", OTHER)
    foreign, mine = "hf_" + "Foreign9" * 4, "p4ss-of-my-database"
    monkeypatch.setenv("DB_PASSWORD", mine)
    body = f"""
import os, sys, time
out = sys.stdout.buffer
token, key = os.environ["HF_TOKEN"], os.environ["WANDB_API_KEY"]
for part in (token[:9], token[9:] + "\\n", "{foreign[:9]}", "{foreign[9:]}\\n", key + "\\n"):
    out.write(part.encode()); out.flush(); time.sleep(0.05)
print(os.environ["DB_PASSWORD"], flush=True)
print(key[:9] + "\\x1b[1m" + key[9:] + "\\x1b[0m", key[:4] + "\\x00" + key[4:], flush=True)
print("done", flush=True)
time.sleep(600)
"""
    backend = LocalBackend()
    asked = request(body, secrets=("HF_TOKEN", "WANDB_API_KEY"))
    backend.check(asked)
    job = backend.submit(asked)
    next(line for line in backend.logs(job.id, follow=True) if line == "done")
    if Path("/proc/self/cmdline").exists():
        seen = "".join(path.read_bytes().decode("utf-8", "replace") for path in _cmdlines())
        assert str(job.run_dir) in seen
        assert HUB_TOKEN not in seen and OTHER not in seen
    backend.cancel(job.id)
    shown = "\n".join(backend.logs(job.id, follow=False))
    for text in (shown, reading(launch_home), json.dumps(backend.inspect(job.id).as_dict())):
        assert not [secret for secret in (HUB_TOKEN, OTHER, foreign, mine) if secret in text]


def _cmdlines() -> list[Path]:
    return [path / "cmdline" for path in Path("/proc").iterdir() if path.name.isdigit() and (path / "cmdline").exists()]


def test_a_token_is_no_file_of_a_run(launch_home: Path) -> None:
    run = runs.create(request("pass", secrets=("HF_TOKEN",)), "hub")
    assert "HF_TOKEN" in reading(run.folder)
    assert {stat.S_IMODE(path.stat().st_mode) for path in run.folder.iterdir()} == {0o600}
    assert stat.S_IMODE(run.folder.stat().st_mode) == stat.S_IMODE(run.folder.parent.stat().st_mode) == 0o700
    assert isinstance(HubBackend(), HubBackend)
