"""The question before money is spent: what will happen in twelve lines, and whether it may start."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from launcher.errors import RefusedError, RequestError
from launcher.view.console import err

if TYPE_CHECKING:
    from launcher.catalog import Catalog
    from launcher.jobs.base import Checked, JobRequest
    from launcher.plan.record import Plan


@dataclass(frozen=True, slots=True)
class Asking:
    """How a command asks: not at all where the answer is `yes` already, with the whole plan where `verbose`.

    `tables` are those that it was planned with. A `doubt` is what nobody's `yes` was said to.
    """

    yes: bool = False
    verbose: bool = False
    tables: Catalog | None = None
    doubt: str = ""


def at_terminal() -> bool:
    """Whether somebody is there who reads what is asked, and can answer."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))


def require_dataset(plan: Plan, yes: bool) -> None:
    """Raise `RequestError` where money would go into the default data, and nobody is there to see that."""
    if plan.asked.dataset is None and plan.cost.usd_per_hour and not (yes or at_terminal()):
        raise RequestError(
            f"no dataset was named, and there is no terminal to ask whether {plan.decisions.dataset.value} is meant.",
            f"Add --dataset {plan.decisions.dataset.value} to train on it, or --dataset with your own.",
        )


def agree(request: JobRequest, checked: Checked, asking: Asking, *, quiet: bool, unasked: bool) -> None:
    """Show what will happen unless `quiet`, and return once it may; `RefusedError` where it may not.

    What costs nothing is not asked about, nor what is `unasked` by its command's options.
    """
    from launcher import catalog
    from launcher.catalog.machine import LOCAL
    from launcher.view.plan import plan_view
    from launcher.view.question import answer

    tables = asking.tables or catalog.load()
    asks = request.flavor != LOCAL and not (asking.yes or unasked) and at_terminal()

    def show(whole: bool) -> None:
        doubts = (*filter(None, [asking.doubt]), *checked.doubts)
        if whole:
            err().print(plan_view(request.plan, tables, checked))
        else:
            room = max(err().width, 80)
            err().print(answer(request, checked, tables, doubts, width=room, asks=asks), soft_wrap=True)

    if not quiet:
        show(asking.verbose)
    if asking.doubt and not asks:
        most = math.ceil(request.plan.cost.max_usd * 100) / 100
        raise RefusedError(asking.doubt, f"To start it all the same, add --max-cost {most:.2f}")
    while asks:
        err().print("Start? [Y/n/?] ", end="", markup=False)
        said = sys.stdin.readline()
        if said.strip() == "?":
            show(True)
        elif said.strip().lower() in ("n", "no") or not said:
            raise RefusedError("nothing was started.")
        elif said.strip().lower() in ("", "y", "yes"):
            return
