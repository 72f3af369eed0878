"""Which image a Job runs in, and what that says of its start-up."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from launcher import catalog, home, spec
from launcher.catalog import Flavor
from launcher.cli import app as cli
from launcher.plan import make as planner
from launcher.plan.record import Plan

TABLES = catalog.shipped()
STACK = TABLES.stack
OTHER = "0123456789ab"
HERE = Flavor(name="local", vcpu=8, ram_gb=16, disk_gb=200, usd_per_hour=0)


def plan(default: str | None = None, here: Flavor | None = None, **options: Any) -> Plan:
    asked = spec.build({"model": "qwen3-8b", "flavor": "a100-large", **options})
    return planner.make_plan(asked, TABLES, today=date(2026, 11, 24), image=default, here=here)


def test_the_services_default_installs_the_stack() -> None:
    made = plan()
    assert made.image is None
    assert made.duration.parts["install"] > 0
    assert "installed at every start" in made.reasons["image"]


@pytest.mark.parametrize(
    "image",
    [
        "launch-job",
        "ghcr.io/me/launch-job:latest",
        "localhost:5000/me/launch-job",
        "hf.co/spaces/me/my-launch-job",
        f"ghcr.io/me/anything:{STACK.id}",
        f"localhost:5000/me/launch-job:{STACK.id}",
        "me/launch-job@sha256:" + "0" * 64,
    ],
)
def test_an_image_whose_name_says_so_installs_nothing(image: str) -> None:
    made = plan(image=image)
    assert made.image == image
    assert made.duration.parts["install"] == 0
    assert "brings the training stack" in made.reasons["image"]
    # The same Job with as much to train, some seconds apart.
    cold = plan(image="ghcr.io/astral-sh/uv:python3.12-bookworm")
    assert made.duration.train_s == cold.duration.train_s
    assert made.duration.startup_s != cold.duration.startup_s


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ("ghcr.io/astral-sh/uv:python3.12-bookworm", "launch-job"),
        ("launch-job/uv", STACK.id),
        ("launch-job:5000/me/uv", STACK.id),
        (f"ghcr.io/me/launch-job:{OTHER}", "another training stack"),
        (f"ghcr.io/me/anything:{OTHER}", STACK.id),
    ],
)
def test_any_other_image_is_planned_to_install_it(image: str, said: str) -> None:
    made = plan(image=image)
    assert made.image == image
    assert made.duration.parts["install"] > 0
    assert said in made.reasons["image"]
    assert "time to install it is planned for" in made.reasons["image"]


def test_every_offer_knows_of_the_image() -> None:
    cold, warm = (
        {offer.flavor: offer.total_s for offer in plan(image=name).offers if offer.fits}
        for name in ("me/uv", "me/launch-job")
    )
    assert cold.keys() == warm.keys()
    assert {(warm[name] or 0) - (cold[name] or 0) for name in cold} == {5}  # 30 s more to pull, 25 s less to install


def test_the_users_default_gives_way_to_the_command_line() -> None:
    assert plan("me/launch-job").image == "me/launch-job"
    assert "config.toml" in plan("me/launch-job").reasons["image"]
    assert plan("me/launch-job", image="you/uv").image == "you/uv"


def test_a_run_on_this_machine_has_no_image() -> None:
    made = plan("me/launch-job", here=HERE, model="smollm2-135m", flavor="auto", local=True)
    assert made.image is None
    assert "container" in made.reasons["image"]


def test_the_stacks_name_follows_what_the_header_asks_for() -> None:
    assert len(STACK.id) == 12
    changed = {
        STACK.model_copy(update=update).id
        for update in (
            {"pins": {**STACK.pins, "trl": "0.0.1"}},
            {"exclude_newer": "2026-01-01T00:00:00Z"},
            {"overrides": ()},
            {"requires_python": ">=3.12"},
        )
    }
    assert len(changed) == 4
    assert STACK.id not in changed
    assert STACK.model_copy(update={"image": "me/uv"}).id == STACK.id


def test_the_command_line_reads_the_users_default(launch_home: Path) -> None:
    (launch_home / home.SETTINGS).write_text('image = "ghcr.io/me/launch-job"\n', encoding="utf-8")
    shown = CliRunner().invoke(cli.app, ["plan", "--model", "qwen3-8b", "--json"])
    assert shown.exit_code == 0, shown.output
    assert Plan.model_validate_json(shown.stdout).image == "ghcr.io/me/launch-job"
    shown = CliRunner().invoke(cli.app, ["--model", "qwen3-8b", "--dry-run", "--json"])
    assert '"image": "ghcr.io/me/launch-job"' in shown.stdout
