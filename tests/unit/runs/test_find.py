"""What a NAME means, from every form that one may have."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launcher.errors import RequestError
from launcher.jobs import folder
from launcher.runs.find import File, Folder, HubJob, LocalRun, Repo, find, find_run
from tests.unit.sample import request

LOCAL = "local-20261124-103012-ab12"
JOB = "68780d00bbe36d38803f645f"
OTHER = "0123456789abcdef01234567"


def keep(run_id: str) -> folder.Run:
    return folder.create(request("pass"), "local" if folder.is_local(run_id) else "hub").rename(run_id)


def test_a_run_and_a_job_in_every_spelling() -> None:
    here, sent = keep(LOCAL), keep(JOB)
    assert find(LOCAL) == LocalRun(here)
    assert find(JOB) == HubJob(JOB, run=sent)
    assert find(f"acme/{JOB}") == find(f"https://huggingface.co/jobs/acme/{JOB}") == HubJob(JOB, "acme", sent)
    assert find(OTHER) == HubJob(OTHER)
    assert find(f"http://127.0.0.1:8000/jobs/acme/{OTHER}") == HubJob(OTHER, "acme")
    assert find("https://huggingface.co/jobs/acme/of-another-form") == HubJob("of-another-form", "acme")
    assert [find_run(name).address for name in (LOCAL, JOB, f"acme/{OTHER}")] == [LOCAL, JOB, f"acme/{OTHER}"]
    assert [find_run(name).backend for name in (LOCAL, JOB)] == ["local", "hub"]


def test_last_is_the_run_that_was_started_last() -> None:
    with pytest.raises(RequestError, match="none was started here yet"):
        find("last")
    runs = [keep(LOCAL), keep(JOB)]
    for age, run in enumerate(reversed(runs)):
        os.utime(run.folder / folder.PLAN, (1_000_000 - age, 1_000_000 - age))
    assert find("last") == HubJob(JOB, run=runs[1])
    os.utime(runs[0].folder / folder.PLAN, (2_000_000, 2_000_000))
    assert find_run("last") == LocalRun(runs[0])


def test_a_repo_with_and_without_a_revision() -> None:
    assert find("me/model") == find("https://huggingface.co/me/model") == Repo("me/model")
    assert find("me/model@v1") == Repo("me/model", "v1")


def test_files_and_folders_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("me/adapter/adapter_config.json", "me/made/run.json", "me/other/x", "what-plan-printed"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert find("me/adapter") == Folder(Path("me/adapter"))
    assert find("me/made") == Folder(Path("me/made"))
    assert find("me/made/run.json") == File(Path("me/made/run.json"))
    assert find("what-plan-printed") == File(Path("what-plan-printed"))
    assert find("./nothing") == Folder(Path("nothing"))
    assert find("nothing/plan.json") == File(Path("nothing/plan.json"))
    assert find("me/other") == Repo("me/other")  # a folder of anything goes by another name than its path


def test_what_is_none_of_them_is_told_what_there_may_be() -> None:
    keep(LOCAL)
    for name in (
        LOCAL.replace("ab12", "ab13"),
        "nope",
        "a/b/c",
        "me/model@",
        "",
        "x" * 5000,
        "a\0b",
        "-x",
        "~nobody-x/y",
    ):
        with pytest.raises(RequestError, match="unknown run") as raised:
            find(name)
        for form in ("`last`", "NAMESPACE/ID", "USER/NAME", "run.json", "folder of an adapter"):
            assert form in raised.value.hint
    with pytest.raises(RequestError) as raised:
        find(LOCAL.replace("ab12", "ab13"))
    assert f"Did you mean {LOCAL}?" in raised.value.hint


def test_a_command_about_runs_takes_runs_only(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    for name, kind in (("me/model", "a repo"), (str(tmp_path / "run.json"), "a file"), (str(tmp_path), "a folder")):
        with pytest.raises(RequestError, match=f"is {kind}.*not a run"):
            find_run(name)
