"""A plan on one screen: everything it says is there, whole, and within the width."""

from __future__ import annotations

import io
from datetime import date
from typing import Any

import pytest
from rich.console import Console

from launcher import catalog, spec
from launcher.estimate.values import Cost, Duration, Offer, Vram
from launcher.plan import make as planner
from launcher.plan.record import Plan
from launcher.view import plan as plan_view
from launcher.view.tables import minutes
from tests.unit import sample

TABLES = catalog.shipped()
WIDTH = 100


def screen(plan: Plan, encoding: str = "utf-8", **options: Any) -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    options = {"width": WIDTH, "highlight": False, "emoji": False} | options
    Console(file=file, **options).print(plan_view.plan_view(plan, TABLES))
    file.flush()
    return raw.getvalue().decode(encoding)


def made(model: str, **options: Any) -> Plan:
    return planner.make_plan(spec.build({"model": model, **options}), TABLES, today=date(2026, 11, 24), user="me")


@pytest.mark.parametrize("alias", TABLES.models)
def test_every_model_of_the_catalog_has_its_plan_on_one_screen(alias: str) -> None:
    plan = made(alias)
    shown = screen(plan)
    lines = shown.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= WIDTH
    assert len(lines) <= 46
    words = shown.split()
    for text in (
        plan.facts.repo,
        plan.decisions.flavor.value,
        plan.decisions.output_repo.value or "",
        plan.reasons["flavor"],
        *plan.warnings,
    ):
        assert set(text.split()) <= {word.rstrip(",") for word in words} | set(words), text
    for figure in (f"{plan.vram.peak_gib:.2f}", f"{plan.vram.available_gib:.2f}", f"${plan.cost.expected_usd:.2f}"):
        assert any(figure in word for word in words)
    for text in (minutes(plan.duration.total_s), minutes(plan.decisions.timeout_s.value), f"{plan.cost.max_usd:.2f}"):
        assert text in shown
    for name, gib in plan.vram.parts.items():
        assert f"{name} {gib:.2f}" in shown
    assert f"reserve {plan.vram.reserve_gib:.2f}" in shown


def offer(flavor: str, usd: float | None) -> Offer:
    why_not = None if usd else "memory: needs 17.4 GiB, 13.2 GiB can be used"
    return Offer(
        flavor=flavor, fits=usd is not None, peak_gib=17.4, total_s=4000 if usd else None, expected_usd=usd,
        batch_size=8, headroom=0.14 if usd else -0.32, why_not=why_not,
    )  # fmt: skip


def on_jobs(**changes: Any) -> Plan:
    values: dict[str, Any] = {
        "flavor": "l4x1", "num_gpus": 1,
        "cost": Cost(usd_per_hour=0.8, expected_usd=0.93, max_usd=1.6),
        "vram": Vram(weights_gib=4, peak_gib=15, available_gib=20, fits=True, reserve_gib=2,
                     parts={"weights": 4.0, "adapter": 1.0, "loss": 10.0}),
        "duration": Duration(startup_s=280, train_s=3900, total_s=4180, parts={"image": 60, "load": 220},
                             tokens_per_second=2345.6),
        "offers": (offer("l4x1", 0.93), offer("a10g-small", 1.2), offer("t4-small", None)),
    }  # fmt: skip
    return sample.plan(**values | changes)


def test_the_offers_are_in_order_with_the_chosen_one_marked_and_the_others_explained() -> None:
    lines = screen(on_jobs()).splitlines()
    table = [line for line in lines if line.startswith(("l4x1", "a10g-small", "t4-small"))]
    assert [line.split()[0] for line in table] == ["l4x1", "a10g-small", "t4-small", "t4-small:"]
    assert "chosen" in table[0] and "$0.93" in table[0] and "14%" in table[0] and "67 min" in table[0]
    assert "chosen" not in table[1]
    assert " no " in table[2] and "-32%" in table[2]
    assert "needs 17.4 GiB, 13.2 GiB can be used" in table[3]


def test_a_long_list_of_offers_is_cut_and_the_chosen_one_stays() -> None:
    fitting = [offer(name, 1 + number / 10) for number, name in enumerate(TABLES.flavors)][:18]
    plan = on_jobs(flavor=fitting[-1].flavor, offers=(*fitting, *(offer(f"small-{n}", None) for n in range(9))))
    shown = screen(plan)
    [chosen] = [line for line in shown.splitlines() if "chosen" in line]
    assert chosen.startswith(plan.decisions.flavor.value)
    assert "and 11 more that fit and 6 more that do not" in shown
    assert "small-2" in shown and "small-3" not in shown


def test_the_bar_gives_each_part_its_share() -> None:
    assert plan_view.cells([4, 1, 10, 2, 5], 60) == [11, 3, 27, 5, 14]
    assert sum(plan_view.cells([0.01] * 7 + [3.3], 60)) == 60
    [bar] = [line for line in screen(on_jobs()).splitlines() if line.count("█") > 1]
    assert bar.strip() == "█" * 11 + "▓" * 3 + "▒" * 27 + "╱" * 5 + "·" * 14
    [plain] = [line for line in screen(on_jobs(), "ascii").splitlines() if "####" in line]
    assert plain.strip() == "#" * 11 + "=" * 3 + "+" * 27 + "/" * 5 + "." * 14


def test_on_a_terminal_colours_tell_the_parts_apart() -> None:
    shown = screen(on_jobs(), force_terminal=True, color_system="standard", no_color=False, _environ={})
    assert "\x1b[34m███████████\x1b[0m\x1b[36m███\x1b[0m" in shown


def test_where_the_speed_comes_from_is_said() -> None:
    assert "derived from the card's published figures" in screen(on_jobs())
    measured = Duration(startup_s=1, train_s=1, total_s=2, tokens_per_second=9, measured=True)
    assert "measured on an H100" in screen(on_jobs(duration=measured))
    assert "start-up 5 min: image 60 s, load 4 min" in screen(on_jobs())


def test_names_are_shown_as_they_are() -> None:
    shown = screen(on_jobs(dataset="rows[/red][bold].jsonl", repo="/tmp/:smile:/[link=x]m", warnings=("[/] beware",)))
    for name in ("rows[/red][bold].jsonl", "/tmp/:smile:/[link=x]m", "[/] beware"):
        assert name in shown


def test_a_run_on_this_machine_has_no_price_and_no_offers() -> None:
    shown = screen(on_jobs(flavor="local", num_gpus=0, cost=Cost(usd_per_hour=0, expected_usd=0, max_usd=0)))
    assert "this one" in shown and "memory" in shown
    for word in ("$", "timeout", "headroom"):
        assert word not in shown
