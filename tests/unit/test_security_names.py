"""A name from a user or from the Hub leads to no other folder, URL or file than its own."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import calibrate
import pytest

from launcher import catalog, spec
from launcher.errors import LauncherError, RefusedError, RequestError
from launcher.estimate import dataset
from launcher.jobs import folder
from launcher.jobs.environment import uv_run
from launcher.jobs.local import LocalBackend
from launcher.jobs.service import HubBackend
from tests.emulator import Hub
from tests.faults.trainings import Trainings
from tests.unit.sample import JOB_SCRIPTS, load_script, plan, request

ROOT = Path(__file__).parents[2]
ESCAPES = (
    "..",
    "../x",
    "../../etc/passwd",
    "a/../../b",
    "/etc/passwd",
    "..\\x",
    "\\\\host\\x",
    "%2e%2e/x",
    "a%2f..",
    "./..",
    "-x",
)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def refused(**options: Any) -> RequestError:
    with pytest.raises(RequestError) as raised:
        spec.build({"model": "qwen3-8b", **options})
    return raised.value


@pytest.mark.parametrize("name", ESCAPES)
@pytest.mark.parametrize(
    "option", ["run_name", "namespace", "output_repo", "trackio_space", "revision", "dataset_revision"]
)
def test_a_name_is_no_path(option: str, name: str) -> None:
    assert f"--{option.replace('_', '-')}" in refused(**{option: name}).message


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "/etc", "..\\x", "."])
@pytest.mark.parametrize("option", ["dataset_config", "dataset_split", "eval_split", "trackio_project"])
def test_a_part_of_a_dataset_is_no_path(option: str, name: str) -> None:
    assert "not a path" in refused(**{option: name}).message


@pytest.mark.parametrize("image", ["../x", "--privileged", "a b", "$(id)", "a;b", "/x", "a/../b"])
def test_an_image_is_one_word(image: str) -> None:
    assert "--image" in refused(image=image).message


@pytest.mark.parametrize(
    "options",
    [
        {"revision": "main"},
        {"revision": "refs/pr/1"},
        {"revision": "v1.0+build"},
        {"revision": COMMIT},
        {"dataset_config": "20231101.en"},
        {"dataset_split": "train[:10%]+test"},
        {"trackio_project": "my project"},
        {"image": "ghcr.io/astral-sh/uv:python3.12-bookworm"},
        {"image": "hf.co/spaces/me/trainer"},
        {"image": "registry.local:5000/a/b@sha256:" + "0" * 64},
        {"namespace": "my-org"},
        {"run_name": "qwen3-8b_v1.2"},
        {"env": {"PROMPT": "two\nlines", "TOKENIZERS_PARALLELISM": "false"}},
        {"dataset": "/data/Ärger & Co/rows (1).jsonl"},
    ],
)
def test_usual_names_are_taken(options: dict[str, Any]) -> None:
    asked = spec.build({"model": "qwen3-8b", **options})
    for name, value in options.items():
        assert getattr(asked, name) == value


@pytest.mark.parametrize(
    "name", [*ESCAPES, "a" * 5000, "a\x00b", "", " ", "local-20260101-000000-zzzz", "x\u202ey", "\x1b[31m"]
)
def test_an_id_from_the_command_line_finds_nothing_outside(
    name: str, launch_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (launch_home / "x").mkdir()
    (launch_home / "runs").mkdir()
    assert folder.find(name) is None
    with pytest.raises(LauncherError):
        folder.load(name)
    with pytest.raises(LauncherError):
        LocalBackend().inspect(name)
    with pytest.raises(LauncherError):
        calibrate.measure(name, catalog.load())


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub(tmp_path / "hub", run=False) as hub:
        for name, value in hub.env().items():
            monkeypatch.setenv(name, value)
        yield hub


@pytest.mark.parametrize(
    "name",
    [*ESCAPES[:-1], "../abc", "me/../abc", "a" * 5000, "me/%2e%2e", "https://hub/jobs/../x", "me/..", "a?b", "a#b"],
)
def test_no_id_changes_the_address_that_is_asked(hub: Hub, name: str) -> None:
    before = len(hub.requests)
    backend = HubBackend()
    for act in (backend.inspect, backend.cancel, lambda job: list(backend.logs(job, follow=False))):
        with pytest.raises(RequestError, match="not the id of a Job"):
            act(name)
    assert len(hub.requests) == before


def test_an_id_of_the_service_that_is_no_name_makes_no_folder(hub: Hub, launch_home: Path) -> None:
    backend = HubBackend()
    hub.add_repo("unsloth/SmolLM2-135M-Instruct", files={"config.json": "{}"})
    run = folder.create(request("pass"), "hub")
    for name in ("../outside", "..", "a/b", "/tmp/outside", ".new-1", ""):
        with pytest.raises(ValueError, match="not an id"):
            run.rename(name)
    assert {path.name for path in launch_home.rglob("*outside*")} == set()
    job = backend.submit(request("pass"))
    assert job.run_dir == launch_home / "runs" / job.id


def test_a_job_of_somebody_else_is_not_resumed_with_ones_own_secrets(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = {name: hub.add_user(name, orgs=("ours",)).token for name in ("alice", "bob")}
    monkeypatch.setenv("HF_TOKEN", tokens["alice"])
    job = HubBackend().submit(request("pass", namespace="ours"))
    hub.jobs[job.id].finish("ERROR", "exit status 1")
    assert HubBackend().recall(f"ours/{job.id}").resumes == job.id
    monkeypatch.setenv("HF_TOKEN", tokens["bob"])
    with pytest.raises(RefusedError, match="started by alice"):
        HubBackend().recall(f"ours/{job.id}")
    assert len(hub.jobs) == 1


@pytest.mark.parametrize("kind", ["org", "scheduled-job"])
def test_a_job_that_no_user_started_is_not_resumed_elsewhere_with_ones_own_secrets(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    by = {"type": kind, "id": "5", "name": "tester"}
    job = HubBackend().submit(request("pass"))
    hub.jobs[job.id].initiator = by
    hub.jobs[job.id].finish("ERROR", "exit status 1")
    assert HubBackend().recall(job.id).resumes == job.id  # it was sent from here
    monkeypatch.setenv("LAUNCH_HOME", str(tmp_path / "another"))
    with pytest.raises(RefusedError, match=f"started by {by['name']}: its script would run with your secrets"):
        HubBackend().recall(job.id)


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "sub/x.arrow", ".."])
def test_a_saved_dataset_names_only_its_own_files(tmp_path: Path, name: str) -> None:
    (tmp_path / "x").write_bytes(b"")
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    assert "outside of it" in dataset.measure(tmp_path).source


def test_links_in_a_folder_lead_to_no_other_folder(tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    (outside / "train.jsonl").write_text('{"text": "private"}\n' * 7)
    (inside / "train.jsonl").write_text('{"text": "mine"}\n' * 3)
    (inside / "more").symlink_to(outside, target_is_directory=True)
    (inside / "loop").symlink_to(inside, target_is_directory=True)
    assert dataset.measure(inside).rows == 3
    (inside / "gone.jsonl").symlink_to(tmp_path / "absent")
    assert dataset.measure(inside).rows == 3


def test_a_models_folder_of_links_is_read_as_the_cache_lays_it_out(tmp_path: Path) -> None:
    # The Hub's cache is made of links, so they are followed; one that leads nowhere is an error in words.
    (tmp_path / "blob").write_text((ROOT / "tests/unit/catalog/configs/llama.json").read_text())
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").symlink_to(tmp_path / "blob")
    assert catalog.load().model(str(folder)).model_type == "llama"
    (folder / "model.safetensors").symlink_to("/nowhere/at/all")
    with pytest.raises(RequestError, match="safetensors"):
        catalog.load().model(str(folder))


# ---- The scripts -----------------------------------------------------------------------------------------------------


def check(script: Any, *flags: str) -> Any:
    """The options of that script, as it takes them."""
    args = script.read_options(script.Options, flags)
    script.check_options(args)
    script.check_data(args)
    return args


@pytest.mark.parametrize("name", ["sft_text.py", "sft_vlm.py"])
@pytest.mark.parametrize(
    "flags", [["--run-name", "../../x"], ["--run-name", "/tmp/x"], ["--run-name", ".."], ["--output-repo", "../x"]]
)
def test_a_script_takes_no_path_for_a_name(name: str, flags: list[str]) -> None:
    script = load_script(name)
    with pytest.raises(script.UserError):
        check(script, "--dataset", "a/b", *flags)


@pytest.mark.parametrize("name", ["sft_text.py", "sft_vlm.py"])
@pytest.mark.parametrize(
    ("flags", "allowed"),
    [
        ([], True),
        (["--trust-remote-code", "--revision", COMMIT], True),
        (["--trust-remote-code"], False),
        (["--trust-remote-code", "--revision", "main"], False),
        (["--trust-remote-code", "--revision", COMMIT[:12]], False),
        (["--trust-remote-code", "--revision", COMMIT, "--model", str(ROOT)], False),
    ],
)
def test_a_script_runs_a_repos_code_only_at_a_commit(name: str, flags: list[str], allowed: bool) -> None:
    script = load_script(name)
    if allowed:
        assert check(script, "--dataset", "a/b", *flags).trust_remote_code == ("--trust-remote-code" in flags)
        return
    with pytest.raises(script.UserError, match="trust-remote-code"):
        check(script, "--dataset", "a/b", *flags)


def test_a_repos_code_is_asked_for_by_name_and_commit() -> None:
    assert spec.build({"model": "qwen3-8b"}).trust_remote_code is False
    for revision in (None, "main", COMMIT[:39], COMMIT.upper()):
        given = {"revision": revision} if revision else {}
        assert "40 hexadecimal digits" in refused(trust_remote_code=True, **given).message
    assert "no commit" in refused(model="./folder", trust_remote_code=True, revision=COMMIT).message
    assert spec.build({"model": "a/b", "trust_remote_code": True, "revision": COMMIT}).trust_remote_code


@pytest.mark.parametrize("name", ["sft_text.py", "sft_vlm.py", "export.py"])
def test_one_switch_turns_a_repos_code_on(name: str) -> None:
    text = (JOB_SCRIPTS / name).read_text(encoding="utf-8")
    tree = list(ast.walk(ast.parse(text)))
    keywords = [node for node in tree if isinstance(node, ast.keyword) and node.arg == "trust_remote_code"]
    fields = [node for node in tree if isinstance(node, ast.AnnAssign) and node.value]
    [switch] = [node.value for node in fields if ast.unparse(node.target) == "trust_remote_code"]
    owners = {"args", "options", "origin"}
    # Handed on by name from one function to the next, and never a constant.
    handed = {"trusted", "trust_remote_code", *(f"{own}.trust_remote_code" for own in owners)}
    assert {ast.unparse(node.value) for node in keywords} <= handed
    assert isinstance(switch, ast.Constant)
    assert switch.value is False
    for word in ("eval(", "exec(", "pickle", "os.system", "shell=True", "__import__"):
        assert word not in text


LOAD = f"""
import importlib.util, sys
def load(name):
    spec = importlib.util.spec_from_file_location(name, {str(JOB_SCRIPTS)!r} + "/" + name + ".py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
script, vision = load("sft_text"), load("sft_vlm")
"""


def in_training_stack(trainings: Trainings, code: str, folder: Path, **env: str) -> str:
    """What a piece of Python says that has the text script as `script` and the vision script as `vision`."""
    path = folder / "asks.py"
    path.write_text(LOAD + code, encoding="utf-8")
    done = trainings.run_script(path, folder, env=env)
    assert done.code == 0, done.error[-3000:]
    return done.log


def test_a_datasets_script_is_never_run(trainings: Trainings, tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "rows.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    code = f"""
args = script.read_options(script.Options, ["--dataset", {str(folder)!r}])
try:
    script.read_split(args, "train")
except script.UserError as error:
    print(error.paragraph)
"""
    assert "scripts are no longer supported" in in_training_stack(trainings, code, tmp_path, HF_HUB_OFFLINE="1")
    assert not (tmp_path / "ran").exists()


READ = """
for name in NAMES:
    args = script.read_options(script.Options, ["--dataset", name, "--streaming", "--max-steps", "1"])
    try:
        print(name, list(script.read_split(args, "train")))
    except script.UserError as error:
        print(name, error.status, error.paragraph)
"""


def test_a_datasets_readme_names_files_of_its_own_only(trainings: Trainings, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("of nobody's business\n", encoding="utf-8")
    named = {
        "tester/own": "rows.txt",
        "tester/path": f"{tmp_path}/*.txt",
        "tester/url": f"file://{tmp_path}/secret.txt",
    }
    folders = [tmp_path / name for name in ("tester/own", "tester/path", "tester/linked")]
    with Hub(tmp_path / "hub", port=trainings.port) as hub:
        for name, path in named.items():
            card = f"---\nconfigs:\n- config_name: default\n  data_files: {json.dumps(path)}\n---\n"
            hub.add_repo(name, type="dataset", files={"README.md": card, "rows.txt": "a row of its own\n"})
            (tmp_path / name).mkdir(parents=True)
            (tmp_path / name / "README.md").write_text(card, encoding="utf-8")
            (tmp_path / name / "rows.txt").write_text("a row of its own\n", encoding="utf-8")
        folders[2].mkdir()
        (folders[2] / "rows.txt").symlink_to(tmp_path / "secret.txt")
        names = [*named, *map(str, folders)]
        code = READ.replace("NAMES", repr(names))
        answer = in_training_stack(trainings, code, tmp_path, **hub.env() | {"HF_HUB_OFFLINE": "0"})
    said = [line for line in answer.splitlines() if line.startswith(tuple(names))]
    assert [line for line in said if "a row of its own" in line] == [
        f"{name} [{{'text': 'a row of its own'}}]" for name in ("tester/own", folders[0])
    ]
    assert sum("which is no file of its own" in line for line in said) == len(said) - 2 == 4
    assert "of nobody's business" not in answer


def test_code_of_another_repo_is_refused_though_the_commit_is_pinned(trainings: Trainings, tmp_path: Path) -> None:
    own, others = ({"auto_map": {"AutoModel": name}} for name in ("modeling.Model", "evil/code--modeling.Model"))
    code = """
for repo in ("tester/own", "tester/others"):
    try:
        script.check_model(repo, "main", True)
    except script.UserError as error:
        print(error.paragraph)
    else:
        print("allowed", repo)
script.check_model("tester/others", "main")
"""
    with Hub(tmp_path / "hub", port=trainings.port) as hub:
        for repo, config in (("tester/own", own), ("tester/others", others)):
            hub.add_repo(repo, files={"config.json": json.dumps(config), "tokenizer_config.json": "{}"})
        said = in_training_stack(trainings, code, tmp_path, **hub.env() | {"HF_HUB_OFFLINE": "0"}).splitlines()
    assert said[0] == "allowed tester/own"
    assert "code of another repo" in said[1]


def test_a_hub_datasets_row_names_no_file_of_this_machine(trainings: Trainings, tmp_path: Path) -> None:
    cached = trainings.home / "hub" / "datasets--a--b" / "snapshots" / "1" / "seen.png"
    names = [
        "/etc/passwd",
        "private.png",
        "../private.png",
        f"{trainings.home}-other/x.png",
        f"{cached}{'/..' * 9}/x",
        str(cached).replace("--b", "--private"),
    ]
    code = f"""
from pathlib import Path
for name in {[str(cached), *names]!r}:
    try:
        print("open", vision.own_file("a/b", name))
    except ValueError as error:
        print("refused", error)
print(vision.own_file(Path("here"), "x.png"))
"""
    said = in_training_stack(trainings, code, tmp_path, HF_HUB_OFFLINE="1").splitlines()
    assert said[0] == f"open {cached}"
    assert [line.split()[0] for line in said[1:-1]] == ["refused"] * len(names)
    assert said[-1] == "here/x.png"


@pytest.mark.slow
def test_a_hub_datasets_row_opens_no_file_of_this_machine(trainings: Trainings, tmp_path: Path) -> None:
    private = tmp_path / "private.png"
    cached = trainings.home / "hub" / "datasets--a--b" / "snapshots" / "1" / "seen.png"
    cached.parent.mkdir(parents=True)
    code = f"""
from PIL import Image
for path in ({str(private)!r}, {str(cached)!r}):
    Image.new("RGB", (32, 32)).save(path)
import zipfile
with zipfile.ZipFile({str(tmp_path / "own.zip")!r}, "w") as archive:
    archive.write({str(private)!r}, "private.png")
def look(source, folder):
    try:
        return vision.open_picture(source, folder, 64, 1).size
    except vision.UserError as error:
        return error.paragraph
for source in ({str(private)!r}, {{"path": {str(private)!r}}}, "private.png", "../private.png",
               "zip://private.png::" + {str(tmp_path / "own.zip")!r},
               "zip://private.png::file://" + {str(tmp_path / "own.zip")!r},
               "zip://private.png::" + {str(tmp_path / "own.zip")!r} + "::https://x.invalid/",
               "zip://private.png::file://" + {str(tmp_path / "own.zip")!r} + "::hf://x",
               "hf://datasets/me/private@main/private.png", "hf://datasets/me/private/private.png",
               {str(cached.parent)!r} + "/../../../../../private.png"):
    print("hub", look(source, "a/b"))
from pathlib import Path
print("cache", look({str(cached)!r}, "a/b"))
print("here", look("private.png", Path({str(tmp_path)!r})))
"""
    said = in_training_stack(trainings, code, tmp_path, HF_HUB_OFFLINE="1").splitlines()
    assert [line.split()[0] for line in said] == ["hub"] * 11 + ["cache", "here"]
    assert all("can't be read" in line for line in said[:11])
    assert said[11:] == ["cache (32, 32)", "here (32, 32)"]


# ---- What runs here --------------------------------------------------------------------------------------------------


def test_nothing_beside_the_terminal_or_in_its_environment_gets_into_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = tmp_path / "planted"
    planted.mkdir()
    for name in ("json.py", "sitecustomize.py", "usercustomize.py", "startup.py"):
        (planted / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write(__file__)\n")
    (planted / "pyproject.toml").write_text(
        '[project]\nname = "planted"\nversion = "0"\ndependencies = ["no-such-package-at-all"]\n'
    )
    (planted / ".env").write_text("FROM_ENV_FILE=1\n")
    monkeypatch.chdir(planted)
    for name in ("PYTHONPATH", "PYTHONUSERBASE", "UV_PROJECT", "UV_WORKING_DIRECTORY"):
        monkeypatch.setenv(name, str(planted))
    monkeypatch.setenv("PYTHONSTARTUP", str(planted / "startup.py"))
    monkeypatch.setenv("UV_ENV_FILE", str(planted / ".env"))
    monkeypatch.setenv("UV_EXCLUDE_NEWER", "2001-01-01T00:00:00Z")
    monkeypatch.setenv("UV_OVERRIDE", str(planted / "overrides.txt"))
    body = """
import json, os, sys
print(json.__file__.startswith(sys.base_prefix), os.environ.get("FROM_ENV_FILE"), sys.path[0] == os.getcwd())
"""
    backend = LocalBackend()
    job = backend.submit(request(body))
    assert list(backend.logs(job.id, follow=True))[-1] == "True None True"
    assert job.run_dir is not None
    assert not (tmp_path / "ran").exists()
    command = json.loads((job.run_dir / "command.json").read_text())
    assert command["argv"] == [*uv_run(), str(job.run_dir / "sft_text.py")]
    assert {"PYTHONPATH", "UV_PROJECT", "UV_OVERRIDE"} <= set(command["unset"])


def test_a_local_run_starts_the_pinned_script_and_nothing_else(tmp_path: Path) -> None:
    rows = tmp_path / "rows $(id);.jsonl"
    rows.write_text('{"text": "x"}\n')
    backend = LocalBackend()
    job = backend.submit(
        request("import sys; print(sys.argv[1:])", script_args=("--dataset", str(rows)), of=plan(dataset=str(rows)))
    )
    assert list(backend.logs(job.id, follow=True))[-1] == str(["--dataset", str(rows)])
