"""A run once more: the bytes that ran before, and nothing of a stranger's that was not looked at."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launcher import api, catalog
from launcher.catalog import Flavor
from launcher.errors import RefusedError, RequestError
from launcher.jobs import folder as runs
from launcher.plan.record import Plan
from launcher.render import render
from launcher.runs import again as reruns
from launcher.runs import arguments
from launcher.runs import record as records
from tests.emulator import Hub
from tests.faults.command import launch
from tests.unit import sample

TABLES = catalog.shipped()
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
ASKED = ("--model", "smollm2-135m", "--flavor", "a10g-small", "--max-steps", "7")
Printed = pytest.CaptureFixture[str]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that records Jobs without running them."""
    with Hub(tmp_path / "hub", run=False) as hub:
        for name, value in hub.env().items():
            monkeypatch.setenv(name, value)
        for name in (MODEL, "unsloth/SmolLM2-135M-Instruct"):
            hub.add_repo(name, files={"config.json": "{}"})
        hub.add_repo("trl-lib/Capybara", type="dataset")
        monkeypatch.chdir(tmp_path)
        yield hub
        assert hub.unknown_requests == []


def planned(**changes: Any) -> Plan:
    return sample.plan(
        **{"flavor": "a10g-small", "num_gpus": 1, "repo": MODEL, "secrets": ("HF_TOKEN",), "timeout_s": 1800} | changes
    )


def honest(**changes: Any) -> Plan:
    """The same with what this launcher itself says of memory, time and price."""
    of = planned(**changes)
    here = api.plan(
        model=MODEL, flavor="a10g-small", dataset=of.decisions.dataset.value, max_steps=5, max_length=512, batch_size=2,
        gradient_accumulation=1, packing=False, load_in="16bit", lora_r=8, eval_rows=0, optim="adamw_torch",
    )  # fmt: skip
    return of.model_copy(update={name: getattr(here, name) for name in ("vram", "host", "duration", "cost")})


def files(of: Plan | None, text: str | None = None, **changes: Any) -> dict[str, bytes]:
    """What a run leaves beside its model, as the scripts write it."""
    text = text if text is not None else render(of or planned(), TABLES.stack)
    record = {
        "version": 1,
        "launcher": "0.1.0",
        "plan": of and of.model_dump(mode="json"),
        "script": {"name": "sft_text.py", "sha256": hashlib.sha256(text.encode()).hexdigest()},
        "args": [], "inputs": {}, "env": [], "flavor": of and of.decisions.flavor.value,
        "revisions": {"model": None, "dataset": None}, "packages": {"torch": "2.14.0"}, "python": "3.12.1",
        "platform": "Linux", "device": "A10G", "files": {}, "result": {"steps": 5, "samples": ["\x1b[31m"]},
    }  # fmt: skip
    return {"run.json": json.dumps(record | changes).encode(), "sft_text.py": text.encode()}


def write(folder: Path, content: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, data in content.items():
        (folder / name).write_bytes(data)
    return folder / "run.json"


def sent(hub: Hub) -> list[bytes]:
    """The scripts that were uploaded, in their order."""
    found = hub.buckets["tester/jobs-artifacts"].files if hub.buckets else {}
    by_folder = {path.partition("/")[0]: data for path, data in found.items() if path.endswith("sft_text.py")}
    folders = [job.labels["artifacts"].partition("/")[0] for job in hub.jobs.values()]
    return [by_folder[folder] for folder in folders]


def again(monkeypatch: pytest.MonkeyPatch, *args: object) -> int:
    return launch(monkeypatch, "rerun", *map(str, args), "--max-cost", "200", "--detach", "-q")


def without_times(labels: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in labels.items() if name not in ("request", "artifacts")}


# ---- Runs that were started here -------------------------------------------------------------------------------------


def test_a_run_is_sent_as_it_was(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub.add_user("tester", token=hub.token, orgs=("team",))
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a row"}\n')
    monkeypatch.setenv("WANDB_KEY", "some value")
    asked = (*ASKED, "--dataset", str(rows), "--env", "A=b", "--secrets", "WANDB_KEY", "--label", "team=one",
             "--namespace", "team", "--image", "ghcr.io/me/image:1", "--attempts", "3", "--timeout", "50m")  # fmt: skip
    assert launch(monkeypatch, *asked, "--detach", "-q") == 0
    [first] = hub.jobs.values()
    assert again(monkeypatch, first.id) == 0
    second = list(hub.jobs.values())[1]
    differ = {name for name in first.spec if first.spec[name] != second.spec[name]}
    assert differ <= {"labels", "volumes", "environment", "env"}
    assert without_times(first.labels) == without_times(second.labels)
    assert second.secrets == first.secrets == {"HF_TOKEN": hub.token, "WANDB_KEY": "some value"}
    stored = hub.buckets["team/jobs-artifacts"].files
    scripts = [data for path, data in stored.items() if path.endswith("sft_text.py")]
    assert len(scripts) == 2
    assert scripts[0] == scripts[1]
    assert [data for path, data in stored.items() if path.endswith("rows.jsonl")] == [rows.read_bytes()] * 2
    assert runs.load(first.id).plan() == runs.load(second.id).plan()


def test_nothing_of_it_depends_on_what_the_launcher_has_become(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """One's own script of another version is still the script that ran."""
    assert launch(monkeypatch, *ASKED, "--detach", "-q") == 0
    [first] = hub.jobs.values()
    script = runs.load(first.id).folder / "sft_text.py"
    script.write_bytes(old := b"# of an earlier version\n" + script.read_bytes())
    assert again(monkeypatch, first.id) == 0
    assert sent(hub)[1] == old


def test_another_flavor_and_timeout_change_the_job_and_not_the_script(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert launch(monkeypatch, *ASKED, "--detach", "-q") == 0
    [first] = hub.jobs.values()
    assert again(monkeypatch, first.id, "--flavor", "a100-large", "--timeout", "4h") == 0
    second = list(hub.jobs.values())[1]
    assert (second.spec["flavor"], second.spec["timeoutSeconds"]) == ("a100-large", 4 * 3600)
    assert second.spec["command"][-2:] == ["--timeout-s", "14400"]
    assert sent(hub)[0] == sent(hub)[1]
    assert again(monkeypatch, second.id) == 0
    third = list(hub.jobs.values())[2]
    assert (third.spec["flavor"], third.spec["command"]) == (second.spec["flavor"], second.spec["command"])


@pytest.mark.parametrize("change", ["gone", "other"])
def test_data_that_is_gone_or_another_is_refused(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: Printed, tmp_path: Path, change: str
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a row"}\n')
    assert launch(monkeypatch, *ASKED, "--dataset", str(rows), "--detach", "-q") == 0
    [first] = hub.jobs
    if change == "gone":
        rows.unlink()
    else:
        rows.write_text('{"text": "another"}\n')
    capsys.readouterr()
    assert again(monkeypatch, first) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "rows.jsonl" in said
    assert ("is not there any more" if change == "gone" else "is not what the run was trained on") in said
    assert len(hub.jobs) == 1


def test_from_another_laptop(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert launch(monkeypatch, *ASKED, "--detach", "-q") == 0
    [first] = hub.jobs.values()
    monkeypatch.setenv("LAUNCH_HOME", str(tmp_path / "another"))
    first.finish("COMPLETED")
    assert again(monkeypatch, first.id) == 0
    second = list(hub.jobs.values())[1]
    assert sent(hub)[0] == sent(hub)[1]
    assert second.labels["artifacts"] != first.labels["artifacts"]
    assert "resumes" not in second.labels


@pytest.mark.parametrize("name", ["nothing", "local-20261124-103012-ab12", "a/b/c", "tester/nothing", "run.json"])
def test_what_is_nowhere_is_said(hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: Printed, name: str) -> None:
    assert again(monkeypatch, name) == 2
    said = capsys.readouterr().err
    assert name in said.replace("\n", "")
    assert "Traceback" not in said


LAPTOP = Flavor(name="local", vcpu=8, ram_gb=16, disk_gb=200, usd_per_hour=0)


def test_a_job_is_brought_here_with_the_same_script() -> None:
    args = ("--dataset", "rows.jsonl", "--timeout-s", "600")
    secrets = ("HF_TOKEN", "KEY")
    of = planned()
    request = sample.request(
        "pass", of=of, secrets=secrets, flavor="a10g-small", timeout_s=900, script_args=args, image="me/image:1"
    )
    here = reruns.bring_here(request, LAPTOP)
    assert here.script_args == ("--dataset", "rows.jsonl", "--device", "cpu", "--timeout-s", "900")
    assert (here.flavor, here.image, here.secrets) == ("local", None, ("KEY",))
    assert (here.script, here.plan) == (request.script, request.plan)
    pushing = replace(request, plan=planned(output_repo="me/model"))
    assert reruns.bring_here(pushing, LAPTOP).secrets == ("HF_TOKEN", "KEY")
    assert reruns.bring_here(here, LAPTOP) == here
    with pytest.raises(RefusedError, match="no GPU"):
        reruns.bring_here(replace(request, plan=planned(modality="vision")), LAPTOP)


def test_ones_own_run_may_push_elsewhere(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch(monkeypatch, *ASKED, "--detach", "-q") == 0
    [first] = hub.jobs.values()
    assert again(monkeypatch, first.id, "--output-repo", "tester/another") == 0
    second = list(hub.jobs.values())[1]
    assert second.spec["command"][3:] == ["--output-repo", "tester/another"]
    assert sent(hub)[0] == sent(hub)[1]
    assert again(monkeypatch, first.id, "--output-repo", "else/another") == 3
    assert len(hub.jobs) == 2


# ---- Records ---------------------------------------------------------------------------------------------------------


def test_a_record_is_enough(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    content = files(planned(attempts=3))
    hub.add_repo("else/model", files=content)
    path = write(tmp_path / "model", content)
    for name in (path, path.parent, "else/model", f"else/model@{hub.repos['else/model'].head.oid}"):
        assert again(monkeypatch, name) == 0
    assert sent(hub) == [content["sft_text.py"]] * 4
    specs = [job.spec for job in hub.jobs.values()]
    assert {spec["flavor"] for spec in specs} == {"a10g-small"}
    assert {spec["timeoutSeconds"] for spec in specs} == {1800}
    assert {job.namespace for job in hub.jobs.values()} == {"tester"}


def test_the_commit_that_was_asked_for_is_the_one_that_is_read(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    old = files(planned(seed=1))
    repo = hub.add_repo("else/model", files=old)
    first = repo.head.oid
    hub.add_repo("else/other", files=files(planned(seed=2)))
    repo.commit(hub.repos["else/other"].head.files, "another run")
    assert again(monkeypatch, f"else/model@{first}") == 0
    assert again(monkeypatch, "else/model") == 0
    assert sent(hub)[0] == old["sft_text.py"]
    assert sent(hub)[1] == files(planned(seed=2))["sft_text.py"]


TAMPERINGS: dict[str, Callable[[str], str]] = {
    "code": lambda text: text.replace("import argparse\n", "import argparse\nprint('mine now')\n", 1),
    "a value that is code": lambda text: text.replace('] = "a run"', '] = print("x") or "a run"'),
    "a dependency": lambda text: text.replace('#   "trackio', '#   "evil==1",\n#   "trackio', 1),
    "an index": lambda text: text.replace("# [tool.uv]\n", '# [tool.uv]\n# index-url = "https://evil"\n', 1),
    "a comment": lambda text: text + "# nothing\n",
    "nothing of ours": lambda text: "print('hello')\n",
}


@pytest.mark.parametrize("kind", TAMPERINGS)
def test_a_changed_script_is_refused(hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: Printed, kind: str) -> None:
    script = TAMPERINGS[kind](render(planned(), TABLES.stack))
    hub.add_repo("else/model", files=files(planned(), script))
    assert again(monkeypatch, "else/model") == 3
    said = capsys.readouterr().err
    assert "sft_text.py" in said
    assert not hub.jobs


def test_a_changed_script_runs_for_who_has_read_it(hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: Printed) -> None:
    content = files(planned(), TAMPERINGS["code"](render(planned(), TABLES.stack)))
    hub.add_repo("else/model", files=content)
    assert again(monkeypatch, "else/model") == 3
    said = " ".join(capsys.readouterr().err.split())
    assert "somebody has changed it" in said
    digest = hashlib.sha256(content["sft_text.py"]).hexdigest()
    assert f"--trust-script {digest}" in said
    assert f"https://huggingface.co/else/model/blob/{hub.repos['else/model'].head.oid}/sft_text.py" in said
    assert again(monkeypatch, "else/model", "--trust-script", "0" * 64) == 3
    assert not hub.jobs
    assert again(monkeypatch, "else/model", "--trust-script", digest) == 0
    assert sent(hub) == [content["sft_text.py"]]


def test_another_version_is_named(hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: Printed) -> None:
    script = render(planned(), TABLES.stack) + "# as it was then\n"
    hub.add_repo("else/model", files=files(planned(), script, launcher="0.0.9"))
    assert again(monkeypatch, "else/model") == 3
    assert "launch 0.0.9 made it" in " ".join(capsys.readouterr().err.split())


def test_a_script_that_is_not_the_recorded_one_is_refused(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: Printed, tmp_path: Path
) -> None:
    """Even one that this launcher renders: it is not the run that is asked for."""
    content = files(planned()) | {"sft_text.py": render(planned(seed=9), TABLES.stack).encode()}
    hub.add_repo("else/model", files=content)
    for name in ("else/model", write(tmp_path / "model", content)):
        assert again(monkeypatch, name) == 3
        assert "is not the script that ran" in " ".join(capsys.readouterr().err.split())
    assert not hub.jobs


def test_a_strangers_variables_image_and_secrets_are_left_out(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of the user's own")
    plan = planned(
        env={"UV_INDEX_URL": "https://evil"}, image="evil/image:1", namespace="else",
        secrets=("HF_TOKEN", "AWS_SECRET_ACCESS_KEY"), labels={"team": "theirs"},
    )  # fmt: skip
    content = files(plan, env=["PYTHONSTARTUP"])
    hub.add_repo("else/model", files=content)
    assert again(monkeypatch, "else/model") == 0
    [job] = hub.jobs.values()
    assert set(job.secrets) == {"HF_TOKEN"}
    assert set(job.spec["environment"]) == {"LAUNCH_ARTIFACTS", "LAUNCH_MARK"}
    assert job.namespace == "tester"
    assert "evil" not in json.dumps(job.spec)
    assert sent(hub) == [content["sft_text.py"]]
    said = " ".join(capsys.readouterr().err.split())
    for name in ("UV_INDEX_URL", "PYTHONSTARTUP", "evil/image:1", "AWS_SECRET_ACCESS_KEY"):
        assert name in said


def test_who_trusts_the_script_gets_its_image_and_its_secrets(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    monkeypatch.setenv("WANDB_KEY", "some value")
    content = files(planned(image="their/image:1", secrets=("HF_TOKEN", "WANDB_KEY")))
    hub.add_repo("else/model", files=content)
    digest = hashlib.sha256(content["sft_text.py"]).hexdigest()
    assert again(monkeypatch, "else/model", "--trust-script", digest) == 0
    [job] = hub.jobs.values()
    assert job.spec["dockerImage"] == "their/image:1"
    said = " ".join(capsys.readouterr().err.split())
    assert "taken over with the script that you trust" in said
    assert "the image their/image:1, the secret WANDB_KEY" in said
    assert set(job.secrets) == {"HF_TOKEN", "WANDB_KEY"}


def test_a_script_of_values_that_a_terminal_would_act_on_is_refused(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: Printed, tmp_path: Path
) -> None:
    """The record is clean: the script writes the escape as Python does, in ASCII."""
    text = render(planned(run_name="a\x1b[2Jrun"), TABLES.stack)
    path = write(tmp_path / "model", files(planned(), text))
    assert again(monkeypatch, path) == 3
    assert "\x1b" not in capsys.readouterr().err
    assert not hub.jobs


@pytest.mark.parametrize("where", ["the plan", "an argument"])
def test_the_python_of_a_model_repo_is_never_run_for_a_stranger(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: Printed, where: str
) -> None:
    if where == "the plan":
        content = files(planned(trust_remote_code=True, revision="a" * 40))
    else:
        content = files(planned(revision="a" * 40), args=["--trust_remote_code"])
    hub.add_repo("else/model", files=content)
    digest = hashlib.sha256(content["sft_text.py"]).hexdigest()
    for more in ((), ("--trust-script", digest)):
        assert again(monkeypatch, "else/model", *more) == 3
        assert "runs the Python of the repo" in " ".join(capsys.readouterr().err.split())
    assert not hub.jobs


def test_what_a_record_calls_replaced_hides_nothing(hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: Printed) -> None:
    """The script is what the launcher renders of the values that are said to be replaced; so it is judged by them."""
    of = planned(revision="a" * 40)
    script = render(of.unchecked({"trust_remote_code": True}), TABLES.stack)
    content = files(of.model_copy(update={"replaced": {"trust_remote_code": True}}), script)
    hub.add_repo("else/model", files=content)
    assert again(monkeypatch, "else/model") == 3
    assert "runs the Python of the repo" in " ".join(capsys.readouterr().err.split())
    odd = files(of.model_copy(update={"replaced": {"seed": {"a": [1]}, "env": 3, "secrets": 7}}), script)
    hub.add_repo("else/other", files=odd)
    assert again(monkeypatch, "else/other") in (2, 3)
    assert not hub.jobs


def test_a_file_that_a_stranger_names_is_not_sent(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: Printed, tmp_path: Path
) -> None:
    """A record could name any file of this machine; only one with the recorded hash is the data of that run."""
    private = tmp_path / "private.json"
    private.write_text('{"text": "the user\'s own"}\n')
    digest = hashlib.sha256(private.read_bytes()).hexdigest()
    named = planned(dataset=str(private))
    for number, content in enumerate((
        files(named),
        files(named, inputs={str(private): "0" * 64}),
        files(planned(), args=["--dataset", str(private)]),
        files(planned(), args=["--chat-template", str(private)]),
        files(planned(), args=[str(private)]),
    )):  # fmt: skip
        hub.add_repo(f"else/{number}", files=content)
        assert again(monkeypatch, f"else/{number}") in (2, 3), number
        assert "private.json" in capsys.readouterr().err.replace("\n", ""), number
    assert not hub.jobs
    hub.add_repo("else/known", files=files(named, inputs={str(private): digest}, args=["--dataset", str(private)]))
    assert again(monkeypatch, "else/known") == 0
    [job] = hub.jobs.values()
    assert job.spec["command"][3:] == ["--dataset", "/data/private.json"]


def test_a_data_file_that_a_job_had_is_looked_for_where_the_user_had_it(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a row"}\n')
    digest = hashlib.sha256(rows.read_bytes()).hexdigest()
    recorded = files(planned(dataset="rows.jsonl"), inputs={"rows.jsonl": digest}, args=["--dataset", "rows.jsonl"])
    hub.add_repo("tester/model", files=recorded)
    assert again(monkeypatch, "tester/model") == 0
    [job] = hub.jobs.values()
    assert job.spec["command"][3:] == ["--dataset", "/data/rows.jsonl"]
    rows.unlink()
    assert again(monkeypatch, "tester/model") == 2


def test_anothers_repo_is_not_pushed_to(hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: Printed) -> None:
    content = files(honest(output_repo="else/model"))
    hub.add_repo("else/model", files=content)
    assert again(monkeypatch, "else/model") == 3
    said = " ".join(capsys.readouterr().err.split())
    assert "else/model" in said
    assert "--output-repo" in said
    assert not hub.jobs
    assert again(monkeypatch, "else/model", "--output-repo", "tester/mine") == 0
    [job] = hub.jobs.values()
    assert job.spec["command"][3:] == ["--output-repo", "tester/mine"]
    assert sent(hub) == [content["sft_text.py"]]
    # The record of that run holds it too, and can be run again as it is.
    kept = runs.load(job.id).plan()
    assert kept.task == "sft"
    recorded = files(kept, content["sft_text.py"].decode(), args=job.spec["command"][3:])
    hub.add_repo("tester/mine", files=recorded, private=True)
    assert again(monkeypatch, "tester/mine") == 0
    assert list(hub.jobs.values())[1].spec["command"] == job.spec["command"]
    assert again(monkeypatch, "else/model", "--output-repo", "no good name") == 2


MERGING = {"merge": "16bit", "output_repo": "else/model", "merged_repo": "else/model-merged"}


def test_anothers_merged_copy_goes_where_one_may_write(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    content = files(planned(**MERGING))
    hub.add_repo("else/model", files=content)
    assert again(monkeypatch, "else/model") == 3
    assert "--merged-repo NAME" in " ".join(capsys.readouterr().err.split())
    assert again(monkeypatch, "else/model", "--output-repo", "mine", "--merged-repo", "mine-merged") == 0
    assert again(monkeypatch, "else/model", "--output-repo", "mine") == 0
    assert "goes into merged/ of mine, not into else/model-merged" in " ".join(capsys.readouterr().err.split())
    named, inside = hub.jobs.values()
    assert named.spec["command"][3:] == ["--output-repo", "mine", "--merged-repo", "mine-merged"]
    assert inside.spec["command"][3:] == ["--output-repo", "mine", "--merged-repo="]
    assert [runs.load(job).plan().decisions.merged_repo.value for job in hub.jobs] == ["mine-merged", None]
    assert sent(hub) == [content["sft_text.py"]] * 2
    # What they record can be run again as it is.
    recorded = files(planned(**MERGING), content["sft_text.py"].decode(), args=inside.spec["command"][3:])
    hub.add_repo("tester/mine", files=recorded, private=True)
    assert again(monkeypatch, "tester/mine") == 0
    assert list(hub.jobs.values())[2].spec["command"] == inside.spec["command"]


def test_ones_own_first_merged_copy_is_not_overwritten(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    asked = (*ASKED, "--merge", "16bit", "--output-repo", "first", "--merged-repo", "first-merged")
    assert launch(monkeypatch, *asked, "--detach", "-q") == 0
    [first] = hub.jobs
    assert again(monkeypatch, first, "--output-repo", "second") == 0
    assert "not into tester/first-merged" in " ".join(capsys.readouterr().err.split())
    second = list(hub.jobs)[1]
    assert hub.jobs[second].spec["command"][3:] == ["--output-repo", "second", "--merged-repo="]
    assert runs.load(second).plan().decisions.merged_repo.value is None
    assert again(monkeypatch, first, "--merged-repo", "other-merged") == 0
    assert list(hub.jobs.values())[2].spec["command"][3:] == ["--merged-repo", "other-merged"]
    assert again(monkeypatch, first) == 0
    assert list(hub.jobs.values())[3].spec["command"] == hub.jobs[first].spec["command"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--merged-repo", "no good name"], "should be NAME or NAMESPACE/NAME"),
        (["--merged-repo", "first"], "is the adapter's repo"),
        (["--output-repo", "a", "--merged-repo", "a"], "is the adapter's repo"),
        (["--output-repo", "a", "--merged-repo", "tester/a"], "is the adapter's repo"),
    ],
)
def test_a_merged_repo_that_can_not_be_meant(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: Printed, more: list[str], said: str
) -> None:
    assert launch(monkeypatch, *ASKED, "--merge", "16bit", "--output-repo", "first", "--detach", "-q") == 0
    [first] = hub.jobs
    capsys.readouterr()
    assert again(monkeypatch, first, *more) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert len(hub.jobs) == 1


@pytest.mark.parametrize("name", ["sft_text.py", "sft_vlm.py", "export.py"])
def test_an_empty_merged_repo_is_none_to_every_script(name: str) -> None:
    """The seam: `--merged-repo=` takes back what the script was rendered with."""
    asked = ("--merge", "16bit", "--merged-repo", "me/first-merged")
    assert sample.options(*asked, script=name).merged_repo == "me/first-merged"
    args = sample.options(*asked, "--merged-repo=", script=name)
    assert not args.merged_repo
    assert args.merge == "16bit"


def test_a_run_without_a_merged_copy_has_no_place_for_one(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    assert launch(monkeypatch, *ASKED, "--detach", "-q") == 0
    [first] = hub.jobs
    assert again(monkeypatch, first, "--merged-repo", "m") == 2
    assert "makes no merged copy" in capsys.readouterr().err


def test_anothers_space_gets_no_metrics(hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: Printed) -> None:
    hub.add_repo("else/model", files=files(planned(trackio_space="else/metrics")))
    assert again(monkeypatch, "else/model") == 3
    assert "else/metrics" in capsys.readouterr().err
    assert not hub.jobs


def test_a_script_that_was_run_by_hand_is_for_another_command(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    script = (sample.JOB_SCRIPTS / "sft_text.py").read_text(encoding="utf-8")
    hub.add_repo("else/model", files=files(None, script, args=["--max-steps", "3"]))
    assert again(monkeypatch, "else/model") == 2
    assert "hf jobs uv run" in " ".join(capsys.readouterr().err.split())
    assert not hub.jobs


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"{}", b'{"version": 2}', b"\xff", b"[" * 100_000,
        files(planned(), python="\x1b]0;title\x07")["run.json"],
        files(planned(reasons={"flavor": "cheap\x1b[2J"}))["run.json"],
        files(planned(env={"A\x1b[2J": "b"}))["run.json"],
        files(planned(), script={"name": "../x.py", "sha256": "0" * 64})["run.json"],
        files(planned(), plan={"model": "x"})["run.json"],
        b'{"version": 1, "x": "' + b"x" * 5_000_000 + b'"}',
    ],
)  # fmt: skip
def test_what_is_no_record_is_said(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: Printed, tmp_path: Path, content: bytes
) -> None:
    path = write(tmp_path / "model", {"run.json": content, "sft_text.py": b"x"})
    assert again(monkeypatch, path) == 2
    said = capsys.readouterr().err
    assert "run.json" in said.replace("\n", "")
    assert "\x1b]" not in said
    assert "Traceback" not in said
    assert not hub.jobs


def test_a_plan_of_a_later_version_is_read_as_far_as_it_is_known(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    content = files(planned())
    record = json.loads(content["run.json"])
    record["plan"]["invented_later"] = True
    hub.add_repo("else/model", files=content | {"run.json": json.dumps(record)})
    assert again(monkeypatch, "else/model") == 0
    assert sent(hub) == [content["sft_text.py"]]


# ---- Scripts as they are read ----------------------------------------------------------------------------------------


def test_arguments_change_the_plan_as_they_change_the_script() -> None:
    plan = planned(packing=True, max_steps=5, gguf=("f16",))
    args = ["--num_train_epochs=2", "--no-packing", "--gguf", "q8_0", "--gguf", "q4_k_m", "--learning-rate", "1e-3",
            "--model", "me/other", "--device", "cpu", "--private", "--lora-targets", "q_proj,v_proj"]  # fmt: skip
    found = records.with_args(plan, args)
    options = found.options
    assert (options.max_steps, options.num_train_epochs, options.packing) == (None, 2.0, False)
    assert (options.gguf, options.learning_rate, found.facts.repo) == (("q8_0", "q4_k_m"), 1e-3, "me/other")
    assert (options.private, found.facts.lora_targets) == (True, ("q_proj", "v_proj"))
    assert render(found.as_rendered, TABLES.stack) == render(plan, TABLES.stack)
    assert Plan.model_validate_json(found.model_dump_json()) == found
    fewer = arguments.changed(plan, args, {"gguf": None, "num_train_epochs": "3", "model": None, "run_name": "-x"})
    assert fewer == (
        "--no-packing", "--learning-rate", "1e-3", "--device", "cpu", "--private", "--lora-targets", "q_proj,v_proj",
        "--num-train-epochs", "3", "--run-name=-x",
    )  # fmt: skip
    for wrong in (["--max-steps", "many"], ["--max-steps"]):
        with pytest.raises(RequestError, match=r"max.steps"):
            records.with_args(plan, wrong)


# ---- What lies in the folder one stands in ---------------------------------------------------------------------------


def test_nothing_here_is_sent_for_being_called_like_an_option(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Printed
) -> None:
    """Files and folders of this name: an output repo, a model, a dataset and a run stay what they are."""
    (tmp_path / "my-model").write_text("a private file")
    (tmp_path / "my-run").write_text("a private file")
    (tmp_path / "HuggingFaceTB/SmolLM2-135M-Instruct").mkdir(parents=True)
    (tmp_path / "trl-lib").mkdir()
    (tmp_path / "trl-lib/Capybara").write_text("a private file")
    (tmp_path / "smollm2-135m").mkdir()
    for model in ("smollm2-135m", MODEL):
        asked = (*ASKED[2:], "--model", model, "--dataset", "trl-lib/Capybara", "--run-name", "my-run")
        assert launch(monkeypatch, *asked, "--detach", "-q") == 0
    assert launch(monkeypatch, *ASKED, "--model", MODEL, "--dataset", "trl-lib/Capybara", "--detach") == 0
    assert "is the Hub's: the one that lies here is ./trl-lib/Capybara" in " ".join(capsys.readouterr().err.split())
    assert again(monkeypatch, next(iter(hub.jobs)), "--output-repo", "my-model") == 0
    *firsts, last = hub.jobs.values()
    assert [job.spec["command"][3:] for job in firsts] == [[]] * 3
    assert last.spec["command"][3:] == ["--output-repo", "my-model"]
    names = {Path(path).name for path in hub.buckets["tester/jobs-artifacts"].files}
    assert names == {"sft_text.py", "plan.json"}


def test_a_dataset_of_a_folders_name_is_the_hubs(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub.add_repo("tester/squad", type="dataset")
    (tmp_path / "tester/squad").mkdir(parents=True)
    asked = api.plan(model="smollm2-135m", dataset="tester/squad", local=True, max_steps=1)
    assert api.request_of(asked).script_args[:1] != ("--dataset",)
    with pytest.raises(RequestError, match="folder on this machine"):
        api.request_of(api.plan(model="smollm2-135m", dataset="./tester/squad", max_steps=1, flavor="a10g-small"))
    here = api.request_of(api.plan(model="smollm2-135m", dataset="./tester/squad", max_steps=1, local=True))
    assert here.script_args[:2] == ("--dataset", str(tmp_path / "tester/squad"))
