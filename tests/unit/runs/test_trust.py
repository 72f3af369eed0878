"""What a stranger's record may decide: what is learned. Never a path, a place, a limit or what runs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from launcher import api
from launcher.errors import LauncherError, RefusedError, RequestError
from launcher.estimate.values import Cost
from launcher.jobs.base import JobRequest
from launcher.plan.record import Plan
from launcher.render import script_options
from launcher.runs import record, trust
from launcher.spec import SCRIPTS
from tests.emulator import Hub
from tests.faults.command import at_terminal, launch
from tests.unit import sample
from tests.unit.runs.test_again import TABLES, Printed, again, files, honest, hub, planned

__all__ = ["hub"]
HOME = Path(__file__).parent


def kept(of: Plan | None = None, **changes: Any) -> record.Kept:
    content = files(of or planned(), **changes)
    found = record.parse(content["run.json"], "run.json")
    return record.pair(found, content["sft_text.py"], "else/model", "https://huggingface.co/else/model", "else/model")


def request(args: list[str], of: Plan | None = None, trusts: bool = False) -> tuple[JobRequest, tuple[str, ...]]:
    found = kept(of, args=args)
    return trust.request(found, found.record.args, TABLES, trusts, api.plan)


def test_each_option_of_a_script_is_judged() -> None:
    """A new option is refused until somebody has thought about it."""
    of_scripts = {option.name for script in SCRIPTS for option in script_options(script)}
    judged = trust.LEARNED | trust.PLACES | trust.LAUNCHERS
    assert judged <= of_scripts
    assert of_scripts - judged == {
        "output_dir", "resume", "trackio_space", "trust_remote_code", "adapter", "adapter_revision", "modality",
        "dry_run",
    }  # fmt: skip


SPELLED = st.sampled_from(["--output-dir", "--output_dir", "--resume", "--trackio-space", "--trackio_space"])
PATHS = st.sampled_from(["/home/me/x", "../..", ".", "~", "never", "tester/space", str(HOME), "-/x", "=/x"])
FORBIDDEN = st.tuples(SPELLED, PATHS, st.booleans()).map(
    lambda word: [f"{word[0]}={word[1]}"] if word[2] else [word[0], word[1]]
)
HARMLESS = st.sampled_from([["--max-steps", "3"], ["--seed=4"], ["--packing"], ["--run_name", "a"], ["--gguf", "f16"]])


FEW = (settings.default or settings()).max_examples // 3


@given(st.lists(HARMLESS, max_size=3), FORBIDDEN, st.lists(HARMLESS, max_size=3))
@settings(max_examples=FEW, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_a_path_or_a_place_among_the_arguments_is_refused(
    before: list[list[str]], forbidden: list[str], after: list[list[str]]
) -> None:
    with pytest.raises((RefusedError, RequestError)):
        request([word for words in (*before, forbidden, *after) for word in words])


WORDS = st.lists(
    st.one_of(
        st.sampled_from(sorted({f"--{option.name}" for script in SCRIPTS for option in script_options(script)})),
        st.sampled_from(
            ["/etc/passwd", "..", "5", "never", "auto", "cpu", str(HOME), "me/repo", "-", "--", "", "true"]
        ),
    ),
    max_size=5,
)


@given(WORDS)
@example(["--output-dir", "/x"])
@settings(max_examples=FEW, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_whatever_is_not_refused_stays_within_the_run(args: list[str]) -> None:
    """By the script's own reading: no folder, no account, no limit is another's choice."""
    try:
        found, _ = request(args)
    except LauncherError:
        return
    read = sample.options(*found.script_args)
    assert (read.output_dir, read.resume, read.trackio_space, read.trust_remote_code) == (None, "auto", None, False)
    assert (read.device, read.timeout_s) == ("auto", 0)
    assert not Path(read.dataset).exists()
    assert read.model.count("/") == 1
    assert not read.model.startswith((".", "/", "~"))
    assert found.files == ()


@pytest.mark.parametrize(
    ("args", "status"),
    [
        (["--output-dir", "/home/me/x"], 3), (["--output_dir=/home/me/x"], 3), (["--resume", "never"], 3),
        (["--trackio-space", "tester/metrics"], 3), (["--output-dir", "a", "--output-dir", "b"], 3),
        (["--model", "/home/me/private"], 3), (["--model=./private"], 3), (["--model", "~"], 3),
        (["--dataset", "/etc"], 3), (["--dataset", str(HOME)], 3), (["--output-repo", "tester/precious"], 3),
        (["--help"], 2), (["-h"], 2), (["stray"], 2), (["@args"], 2), (["--output-d", "x"], 2), (["--invented=1"], 2),
        (["--dataset", "/etc/none.jsonl"], 2), (["--dataset=-x"], 2), (["--max-steps", "0"], 2),
        (["--learning-rate", "nan"], 2), (["--run-name", "../x"], 2), (["--trackio-project", "../x"], 2),
        (["--chat-template", "/etc/x"], 2), (["--merged-repo", "tester/x"], 2),
    ],
)  # fmt: skip
def test_no_job_is_paid_for(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: Printed, args: list[str], status: int
) -> None:
    hub.add_repo("else/model", files=files(planned(), args=args))
    assert again(monkeypatch, "else/model") == status
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "Traceback" not in said
    assert not hub.jobs


def test_who_trusts_a_script_has_not_read_its_arguments(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    content = files(planned(), args=["--output-dir", "/home/me/x"])
    hub.add_repo("else/model", files=content)
    digest = hashlib.sha256(content["sft_text.py"]).hexdigest()
    assert again(monkeypatch, "else/model", "--trust-script", digest) == 3
    assert not hub.jobs


def test_what_the_launcher_gives_is_given_anew(hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: Printed) -> None:
    hub.add_repo("else/model", files=files(planned(), args=["--timeout-s", "999999999", "--device=cpu", "--seed", "7"]))
    assert again(monkeypatch, "else/model") == 0
    [job] = hub.jobs.values()
    assert job.spec["command"][3:] == ["--seed", "7"]
    said = " ".join(capsys.readouterr().err.split())
    assert "--timeout-s 999999999" in said
    assert "--device cpu" in said


@pytest.mark.parametrize("where", ["plan", "argument"])
def test_a_repo_of_ones_own_is_not_pushed_to_because_a_record_says_so(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: Printed, where: str
) -> None:
    of = planned(output_repo="tester/precious") if where == "plan" else planned()
    args = ["--output_repo=tester/precious"] if where == "argument" else []
    hub.add_repo("else/model", files=files(of, args=args))
    assert again(monkeypatch, "else/model") == 3
    assert "its record chose and not you" in " ".join(capsys.readouterr().err.split())
    assert not hub.jobs
    assert again(monkeypatch, "else/model", "--output-repo", "tester/mine") == 0
    [job] = hub.jobs.values()
    assert "tester/precious" not in job.spec["command"]


def test_a_record_in_ones_own_repo_pushes_there(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add_repo("tester/mine", files=files(planned(output_repo="tester/mine")), private=True)
    assert again(monkeypatch, "tester/mine") == 0
    assert len(hub.jobs) == 1


def test_a_model_of_this_machine_is_not_trained_for_a_stranger(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    hub.add_repo("else/model", files=files(planned(repo=str(HOME))))
    assert again(monkeypatch, "else/model") == 3
    assert "no repo of the Hub" in " ".join(capsys.readouterr().err.split())
    assert not hub.jobs


@pytest.mark.parametrize(
    "wrong", [{"trackio_project": "../../x"}, {"chat_template": "/etc/x"}, {"max_length": -1}, {"run_name": "../x"}]
)
def test_values_of_a_plan_are_held_to_what_may_be_asked(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any]
) -> None:
    hub.add_repo("else/model", files=files(planned(**wrong)))
    assert again(monkeypatch, "else/model") == 2
    assert not hub.jobs


# ---- Machine, time and price -----------------------------------------------------------------------------------------


def lying(**changes: Any) -> Plan:
    """The most expensive machine for 277,777 hours, for two cents."""
    cost = Cost(usd_per_hour=0.02, expected_usd=0.02, max_usd=0.20)
    return planned(**{"flavor": "h200x8", "num_gpus": 8, "timeout_s": 10**9, "cost": cost} | changes)


def test_the_price_is_of_what_will_run(hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: Printed) -> None:
    hub.add_repo("else/model", files=files(lying()))
    rate = TABLES.flavors["h200x8"].usd_per_hour
    assert launch(monkeypatch, "rerun", "else/model", "--detach", "-v") == 3
    said = " ".join(capsys.readouterr().err.split())
    assert not hub.jobs
    found, notes = request([], lying())
    cost = found.plan.cost
    assert (found.flavor, cost.usd_per_hour) == ("h200x8", rate)
    assert cost.max_usd == round(rate * found.timeout_s / 3600, 2)
    assert found.timeout_s < 4 * 3600
    assert f"${cost.max_usd:.2f}" in said
    assert "its record says $0.20 at most" in said
    assert "as in its record" in said
    assert "--max-cost" in said
    assert any("$0.20 at most, a timeout of 16,666,667 minutes" in note for note in notes)
    # The script counts with the timeout that it has, not with the one that stands in it.
    assert found.script_args == ("--timeout-s", str(found.timeout_s))


def test_the_most_that_it_may_cost_holds(hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: Printed) -> None:
    hub.add_repo("else/model", files=files(lying()))
    for more in ((), ("--timeout", "100h"), ("--flavor", "a100x8")):
        assert launch(monkeypatch, "rerun", "else/model", *more, "--max-cost", "3", "--detach", "-q") == 3
        assert "--max-cost is $3.00" in " ".join(capsys.readouterr().err.split())
    assert not hub.jobs
    assert launch(monkeypatch, "rerun", "else/model", "--max-cost", "500", "--detach", "-q") == 0
    [job] = hub.jobs.values()
    assert job.spec["timeoutSeconds"] < 4 * 3600


@pytest.mark.parametrize(("said", "status"), [("y", 0), ("n", 3)])
def test_at_a_terminal_one_is_asked(hub: Hub, monkeypatch: pytest.MonkeyPatch, said: str, status: int) -> None:
    hub.add_repo("else/model", files=files(lying()))
    monkeypatch.setattr("launcher.cli.follow.follow", lambda *_, **__: None)
    found, screen = at_terminal("rerun", "else/model", says=f"{said}\n")
    assert found == status
    assert "its record says $0.20 at most" in " ".join(screen.split())
    # That was said to no price yet.
    assert launch(monkeypatch, "rerun", "else/model", "--yes") == 3
    assert len(hub.jobs) == (status == 0)


def test_an_honest_record_is_not_asked_about(hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: Printed) -> None:
    hub.add_repo("else/model", files=files(honest()))
    assert launch(monkeypatch, "rerun", "else/model", "--detach", "-q") == 0
    assert "by this launcher" not in capsys.readouterr().err
    assert len(hub.jobs) == 1


@pytest.mark.parametrize("timeout_s", [-5, 0, 10**9, 10**400])
def test_a_timeout_is_within_the_launchers_own(timeout_s: int) -> None:
    honestly, _ = request([], planned(timeout_s=1800))
    assert honestly.timeout_s == 1800
    found, _ = request([], planned(timeout_s=timeout_s))
    assert 1800 <= found.timeout_s < 4 * 3600


def test_a_machine_without_a_price_is_refused(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add_repo("else/model", files=files(planned(flavor="invented-x8")))
    assert again(monkeypatch, "else/model") == 2
    assert not hub.jobs


def test_nothing_of_a_strangers_words_is_shown_or_kept() -> None:
    """Reasons, warnings, offers and labels of a record are its author's text."""
    found, _ = request([], lying(warnings=("free today",), reasons={"flavor": "free"}, labels={"resumes": "a-Job"}))
    plan = found.plan
    assert "free" not in plan.model_dump_json()
    assert found.labels.keys() == {"model", "dataset", "plan", "launcher", "name"}
    assert plan.num_gpus == 8


@pytest.mark.parametrize(("told", "written"), [("7.0", "7"), ("7", "7")])
def test_a_number_is_told_to_the_script_as_it_reads_it(told: str, written: str) -> None:
    found, _ = request([f"--logging-steps={told}", "--max-steps", "3.0", "--learning-rate", "1e-4"])
    args = dict(zip(found.script_args[::2], found.script_args[1::2], strict=True))
    assert (args["--logging-steps"], args["--max-steps"]) == (written, "3")
    options = sample.options(*found.script_args)
    assert (options.logging_steps, options.max_steps, options.learning_rate) == (7, 3, 1e-4)


@pytest.mark.parametrize("value", ["7.5", "10000000000", f"{10**400}", "0", "x"])
def test_a_number_that_the_script_would_refuse_is_refused_here(value: str) -> None:
    with pytest.raises(RequestError):
        request(["--logging-steps", value])


def test_how_often_it_is_started_is_nobody_elses_to_say() -> None:
    found, _ = request([], planned(attempts=10))
    assert (found.attempts, found.plan.decisions.attempts.value, found.plan.values["attempts"]) == (2, 2, 2)


@pytest.mark.parametrize(("said", "costs", "asked"), [(400.0, 30.0, True), (400.0, 19.0, False), (5.0, 6.0, True)])
def test_much_is_asked_about_whatever_the_record_says(said: float, costs: float, asked: bool) -> None:
    cost = Cost(usd_per_hour=1.0, expected_usd=1.0, max_usd=said)
    found = kept(planned(cost=cost))
    will = planned(cost=cost.model_copy(update={"max_usd": costs}))
    assert bool(trust.doubt(found, will)) is asked
    assert trust.UNASKED_USD == 20


def test_a_record_of_any_depth_is_an_error() -> None:
    deep: Any = 1
    for _ in range(300):
        deep = [deep]
    told = json.loads(files(planned())["run.json"])
    told["plan"]["replaced"] = {"max_steps": deep}
    with pytest.raises(RequestError, match="not the record of a run"):
        record.parse(json.dumps(told).encode(), "run.json")
