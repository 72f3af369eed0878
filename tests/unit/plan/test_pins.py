"""Branches become commits when a plan may use the network, and stay as they are when it may not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

from launcher import catalog, spec
from launcher.errors import RequestError, ServiceError
from launcher.plan import make as planner
from launcher.plan.pins import Resolve, Seen
from launcher.plan.record import Plan
from tests.emulator import Hub
from tests.faults.command import launch

TABLES = catalog.shipped()
TODAY = date(2026, 11, 24)
COMMITS = {"model": "a" * 40, "dataset": "b" * 40}


def plan(resolve: Resolve | None, **options: object) -> tuple[Plan, list[tuple[str, str, str | None]]]:
    asked: list[tuple[str, str, str | None]] = []

    def note(kind: str, repo: str, revision: str | None) -> Seen:
        asked.append((kind, repo, revision))
        assert resolve
        return resolve(kind, repo, revision)

    request = spec.build({"model": "qwen3-8b", **options})
    return planner.make_plan(request, TABLES, today=TODAY, resolve=note if resolve else None), asked


def known(kind: str, repo: str, revision: str | None) -> Seen:
    return Seen(COMMITS[kind], licence="of-the-hub")


def down(kind: str, repo: str, revision: str | None) -> Seen:
    raise ServiceError("the Hub can't be reached.")


def test_main_becomes_the_commit_that_it_is_today() -> None:
    made, _ = plan(known)
    assert (made.decisions.revision.value, made.decisions.dataset_revision.value) == (
        COMMITS["model"],
        COMMITS["dataset"],
    )
    assert made.reasons["revision"] == made.reasons["dataset_revision"] == "main, as it was on 24 November 2026"


def test_the_repo_that_is_loaded_is_the_one_that_is_asked_for() -> None:
    model = TABLES.models["qwen3-32b"]
    assert model.loads("4bit") != model.loads("16bit")
    made, asked = plan(known, model=model.alias, flavor="h200", load_in="4bit")
    assert made.facts.repo == model.repo_4bit
    assert ("model", model.repo_4bit, None) in asked
    made, asked = plan(known, model=model.alias, flavor="h200", load_in="16bit")
    assert ("model", model.repo, None) in asked


def test_a_branch_is_resolved_and_a_commit_is_left_alone() -> None:
    made, asked = plan(known, revision="v2", dataset_revision="c" * 40)
    assert made.decisions.revision.value == COMMITS["model"]
    assert made.decisions.dataset_revision.value == "c" * 40
    # Of the dataset it is asked too whether others can see it.
    assert [revision for _, _, revision in asked] == ["v2", "c" * 40]
    assert made.reasons["revision"] == "v2, as it was on 24 November 2026"
    assert made.reasons["dataset_revision"] == "asked for"


def test_a_file_and_a_folder_have_no_revision(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a row"}\n')
    for dataset in (str(rows), str(tmp_path)):
        made, asked = plan(known, dataset=dataset)
        assert made.decisions.dataset_revision.value is None
        assert [kind for kind, _, _ in asked] == ["model"]
    made, asked = plan(known, dataset="not-there.jsonl")
    assert made.decisions.dataset_revision.value is None


def test_offline_they_stay_as_given() -> None:
    made, _ = plan(None, revision="v2")
    assert (made.decisions.revision.value, made.decisions.dataset_revision.value) == ("v2", None)
    assert "revision" not in made.reasons


def test_a_service_that_is_away_does_not_stop_a_plan() -> None:
    made, _ = plan(down, revision="v2")
    assert (made.decisions.revision.value, made.decisions.dataset_revision.value) == ("v2", None)
    assert "can't be reached" in made.reasons["revision"]
    made, _ = plan(lambda kind, repo, revision: Seen(None))
    assert made.decisions.revision.value is None
    assert "names no commit" in made.reasons["revision"]


def test_what_is_not_there_is_an_error() -> None:
    def missing(kind: str, repo: str, revision: str | None) -> Seen:
        raise RequestError(f"the {kind} '{repo}' does not exist.")

    with pytest.raises(RequestError, match="does not exist"):
        plan(missing)


def test_the_catalogs_licence_stays_and_the_card_says_more_of_another_one() -> None:
    assert plan(known)[0].facts.licence == "apache-2.0"

    def other(kind: str, repo: str, revision: str | None) -> Seen:
        return Seen(COMMITS[kind], "other", "lfm1.0", "https://huggingface.co/LiquidAI/LFM2-1.2B/blob/main/LICENSE")

    made = plan(other, model="lfm2-1.2b")[0]
    assert (made.facts.licence, made.facts.licence_name) == ("other", "lfm1.0")
    assert made.facts.licence_link == "https://huggingface.co/LiquidAI/LFM2-1.2B/blob/main/LICENSE"
    made = plan(other)[0]
    assert (made.facts.licence, made.facts.licence_name, made.facts.licence_link) == ("apache-2.0", None, None)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub(tmp_path / "hub", run=False) as hub:
        for name, value in (hub.env() | {"LAUNCH_DATASET_VIEWER": hub.url}).items():
            monkeypatch.setenv(name, value)
        hub.add_repo("HuggingFaceTB/SmolLM2-135M-Instruct", files={"config.json": "{}"})
        hub.add_repo("tester/rows", type="dataset", files={"train.jsonl": '{"text": "a row"}\n'})
        yield hub
        assert hub.unknown_requests == []


ASKED = ("--model", "smollm2-135m", "--dataset", "tester/rows", "--flavor", "a10g-small", "--load-in", "16bit")


def test_online_the_hub_is_asked(hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch(monkeypatch, "plan", *ASKED, "--online", "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert made["revision"] == hub.repos["HuggingFaceTB/SmolLM2-135M-Instruct"].head.oid
    assert made["dataset_revision"] == hub.repos["datasets/tester/rows"].head.oid
    asked = len(hub.requests)
    assert launch(monkeypatch, "plan", *ASKED, "--json") == 0
    assert json.loads(capsys.readouterr().out)["revision"] is None
    assert len(hub.requests) == asked


def test_a_submitted_script_holds_the_commits(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = hub.repos["HuggingFaceTB/SmolLM2-135M-Instruct"]
    repo.refs["refs/heads/tuned"] = repo.head.oid
    planned = repo.head.oid
    assert launch(monkeypatch, *ASKED, "--revision", "tuned", "--detach", "-q") == 0
    [script] = [data.decode() for path, data in bucket(hub).items() if path.endswith("sft_text.py")]
    assert f'"Branch, tag or commit of the model."] = "{planned}"\n' in script
    assert f'"Branch, tag or commit of the dataset."] = "{hub.repos["datasets/tester/rows"].head.oid}"\n' in script


def bucket(hub: Hub) -> dict[str, bytes]:
    return hub.buckets["tester/jobs-artifacts"].files


@pytest.mark.parametrize(
    ("option", "value", "status", "words"),
    [
        ("--revision", "nowhere", 2, "has no such revision"),
        ("--dataset", "tester/nothing", 2, "the dataset 'tester/nothing' does not exist"),
        ("--dataset", "else/gated", 3, "is gated"),
    ],
)
def test_what_cannot_be_read_is_said_as_ever(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    option: str, value: str, status: int, words: str,
) -> None:  # fmt: skip
    hub.add_repo("else/gated", type="dataset", gated="auto", files={"train.jsonl": '{"text": "a row"}\n'})
    asked = [word for word in ASKED if option != "--dataset" or word not in ("--dataset", "tester/rows")]
    assert launch(monkeypatch, *asked, option, value, "--detach", "-q") == status
    assert words in capsys.readouterr().err
    assert not hub.jobs


def test_resuming_keeps_the_commits(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a branch is at later changes nothing: the script stays as it is."""
    assert launch(monkeypatch, *ASKED, "--detach", "-q") == 0
    [first] = hub.jobs.values()
    first.finish("ERROR")
    planned = hub.repos["HuggingFaceTB/SmolLM2-135M-Instruct"].head.oid
    hub.repos["HuggingFaceTB/SmolLM2-135M-Instruct"].commit({}, "something newer")
    assert launch(monkeypatch, "resume", first.id, "--detach", "-q") == 0
    assert len(hub.jobs) == 2
    scripts = {data for path, data in bucket(hub).items() if path.endswith("sft_text.py")}
    assert len(scripts) == 1
    assert f'"Branch, tag or commit of the model."] = "{planned}"\n' in scripts.pop().decode()


LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
    "max_position_embeddings": 8192, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("card", "found"),
    [
        ("license: apache-2.0\nlicense_name: unasked", ("apache-2.0", None, None)),
        (
            "license: other\nlicense_name: our-own\nlicense_link: https://example.com/LICENSE",
            ("other", "our-own", "https://example.com/LICENSE"),
        ),
        ("license: other\nlicense_name: '](javascript:x)'\nlicense_link: LICENSE", ("other", None, None)),
        ("license: Apache 2.0", (None, None, None)),
        ("license: " + "a" * 65, (None, None, None)),
        ('license: "mit\\nx: y"', (None, None, None)),
        ("license: [mit, apache-2.0]", (None, None, None)),
        ("tags: [a]", (None, None, None)),
    ],
)
def test_a_model_that_the_catalog_does_not_know_has_the_licence_of_its_card(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], card: str,
    found: tuple[str | None, str | None, str | None],
) -> None:  # fmt: skip
    files = {"config.json": json.dumps(LLAMA), "README.md": f"---\n{card}\n---\n"}
    repo = hub.add_repo("else/llama", files=files)
    for more in ([], ["--revision", repo.head.oid]):
        asked = ["--model", "else/llama", *ASKED[2:], *more]
        assert launch(monkeypatch, "plan", *asked, "--online", "--json") == 0
        made = json.loads(capsys.readouterr().out)
        assert (made["licence"], made["licence_name"], made["licence_link"]) == found
        assert made["revision"] == repo.head.oid
