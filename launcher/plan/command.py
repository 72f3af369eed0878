"""The command line of a request: all that was asked for, on one line, with what is to be another way this time."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from launcher.catalog.machine import LOCAL
from launcher.plan.record import ExportPlan
from launcher.spec import ExportSpec, RunSpec


def launch(asked: RunSpec, **changes: Any) -> str | None:
    """What asks for the same run with these options changed; none where they contradict the rest, or fit on no line."""
    try:
        spec = RunSpec.model_validate(dict(asked) | changes)
    except ValidationError:
        return None
    words = ["launch", "--model", spec.model, *_options(spec, ("model",))]
    return shlex.join(words) if all(word.isprintable() for word in words) else None


def export(plan: ExportPlan) -> str:
    """What asks for the same export again, of what its adapter was found to be: `last` is another run by then."""
    asked, made = plan.asked, plan.decisions
    # Who pays is known by the run only.
    source = asked.source if made.namespace.value and asked.source != "last" else made.adapter.value
    places = {"output_repo": made.output_repo.value, "merged_repo": made.merged_repo.value}
    private = {"private": True} if made.private.value else {}
    told = asked.model_copy(update={**places, **private, "local": made.flavor.value == LOCAL})
    # The settings say the image again.
    return shlex.join(["launch", "export", source, *_options(told, ("source", "image"))])


def _options(asked: RunSpec | ExportSpec, without: Iterable[str]) -> list[str]:
    words: list[str] = []
    for name, value in asked.model_dump(exclude_defaults=True, exclude={*without}).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, dict):
            words += [word for key, text in value.items() for word in (f"--{flag}", f"{key}={text}")]
        else:
            for item in value if isinstance(value, tuple) else (value,):
                words += [f"--{flag}", str(item)]
    return words
