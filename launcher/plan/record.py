"""The record of what was decided: what the user asked for, every decision with its reason, and what it takes.

In Python a plan is typed values; in JSON it is flat, each option and decision under one name and the reasons beside
them: `launch plan --json` prints it, and a Job's `plan.json` holds it for whoever reads a run later, its script too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import Field, TypeAdapter, model_serializer, model_validator

from launcher.estimate.values import Amount, Cost, Duration, Host, Offer, Value, Vram
from launcher.spec import ExportSpec, RunSpec

T = TypeVar("T")

ASKED = "asked for"
"""The reason for what the user decided."""
# Options that say how something else is to be decided: they are in what was asked, and in no decision.
_GUIDES = frozenset({"prefer", "max_cost", "dataset_rows", "push", "local", "timeout", "overwrite"})
_IN_JSON = {"label": "labels"}
_REASONS = {"timeout_s": "timeout"}


@dataclass(frozen=True, slots=True)
class Decision(Generic[T]):
    """A value and why it is that one; the reason is empty where nothing was decided."""

    value: T
    reason: str = ""


Flat = str | int | float | bool | None


class Facts(Value):
    """What a script is told of the model: the repo that is loaded, and what its makers say of it.

    `licence_name` and `licence_link` are what the model's card says of a licence that the Hub knows as `other`.
    """

    repo: str
    lora_targets: tuple[str, ...]
    generation: dict[str, float] = {}  # noqa: RUF012
    generation_source: str | None = None
    licence: str | None = None
    licence_name: str | None = None
    licence_link: str | None = None


class Shared(Value):
    """What is decided of every run, whatever it does."""

    modality: Decision[Literal["text", "vision"]]
    revision: Decision[str | None]
    load_in: Decision[Literal["4bit", "16bit"]]
    output_repo: Decision[str | None]
    private: Decision[bool]
    merge: Decision[Literal["16bit", "4bit"] | None]
    merged_repo: Decision[str | None]
    gguf: Decision[tuple[str, ...]]
    run_name: Decision[str]
    flavor: Decision[str]
    image: Decision[str | None]
    namespace: Decision[str | None]
    secrets: Decision[tuple[str, ...]]
    timeout_s: Decision[int]
    attempts: Decision[int]


class Decisions(Shared):
    """What is decided of a training."""

    chat_template: Decision[str | None]
    dataset: Decision[str]
    dataset_revision: Decision[str | None]
    streaming: Decision[bool]
    eval_rows: Decision[int | None]
    image_size: Decision[int | None]
    max_steps: Decision[int | None]
    num_train_epochs: Decision[float | None]
    max_length: Decision[int]
    effective_batch_size: Decision[int]
    batch_size: Decision[int]
    gradient_accumulation: Decision[int]
    packing: Decision[bool]
    lora_alpha: Decision[int]
    trackio_project: Decision[str]


class ExportDecisions(Shared):
    """What is decided of an export: `model` is what the adapter was trained on."""

    adapter: Decision[str]
    adapter_revision: Decision[str | None]
    model: Decision[str]


class Planned(Value):
    """What every plan holds; `launcher` is the version that made it.

    `replaced` are the values that stand in the script where the run was given others since, by the script's arguments
    or by its Job.
    """

    launcher: str | None = None
    asked: RunSpec | ExportSpec
    decisions: Shared
    facts: Facts
    num_gpus: int
    amount: Amount | None = None
    vram: Vram
    host: Host
    host_reason: str = ""
    duration: Duration
    duration_reason: str = ""
    cost: Cost
    warnings: tuple[str, ...] = ()
    offers: tuple[Offer, ...] = ()
    replaced: dict[str, Flat | list[Flat] | dict[str, Flat]] = {}  # noqa: RUF012

    @property
    def env(self) -> dict[str, str]:
        """The variables that the run gets."""
        return {}

    @property
    def labels(self) -> dict[str, str]:
        """The labels that were asked for."""
        return {}

    @property
    def places(self) -> tuple[str | None, str | None, str | None]:
        """The repos of the result and of its merged copy, and the one in which an adapter is already."""
        return self.decisions.output_repo.value, self.decisions.merged_repo.value, None

    @property
    def values(self) -> dict[str, Any]:
        """Every option and decision, by its name in JSON."""
        return {name: getattr(self.decisions, name).value for name in type(self.decisions).model_fields}

    @property
    def reasons(self) -> dict[str, str]:
        """The reason for each decision that has one, and what the estimates stand on, by their names in JSON."""
        said = {
            _REASONS.get(name, name): getattr(self.decisions, name).reason for name in type(self.decisions).model_fields
        }
        said |= {"host": self.host_reason, "duration": self.duration_reason}
        return {name: reason for name, reason in said.items() if reason}

    def changed(self, values: Mapping[str, Any]) -> Self:
        """The run with other values, by their names in JSON, while its script stays as it is.

        Raises `pydantic.ValidationError` for what can't be meant.
        """
        before = self.values | self.facts.model_dump()
        different = {name: value for name, value in values.items() if before[name] != value}
        old = {name: list(value) if isinstance(value := before[name], tuple) else value for name in different}
        replaced = old | self.replaced
        return self._with(different).model_copy(update={"replaced": replaced}) if different else self

    @property
    def as_rendered(self) -> Self:
        """The plan as its script was rendered from it."""
        old = {name: tuple(value) if isinstance(value, list) else value for name, value in self.replaced.items()}
        return self.unchecked(old).model_copy(update={"replaced": {}})

    def unchecked(self, values: Mapping[str, Any]) -> Self:
        """The plan with other values, by their names in JSON, whatever they are."""
        names = type(self.decisions).model_fields
        decided = {name: Decision(value) for name, value in values.items() if name in names}
        facts = {name: value for name, value in values.items() if name in Facts.model_fields}
        asked = {name: value for name, value in values.items() if name not in decided and name not in facts}
        return self.model_copy(
            update={
                "asked": self.asked.model_copy(update=asked),
                "decisions": self.decisions.model_copy(update=decided),
                "facts": self.facts.model_copy(update=facts),
            }
        )

    def _with(self, values: Mapping[str, Any]) -> Self:
        decided = {name: getattr(self.decisions, name) for name in type(self.decisions).model_fields}
        decided |= {name: Decision(value, ASKED) for name, value in values.items() if name in decided}
        return self.model_copy(update={"decisions": type(self.decisions).model_validate(decided)})

    @model_serializer
    def _flat(self) -> dict[str, Any]:
        asked = self.asked.model_dump(exclude_defaults=True, exclude={"env"})
        taken = {name: getattr(self, name) for name in _IN_PLANS if name != "replaced" or self.replaced}
        # Values of variables are nobody's but the user's: they stand in one place, where they can be left out.
        told = self.values | {"env": self.env} | dict(self.facts) | taken
        return {"task": getattr(self, "task", None)} | told | {"reasons": self.reasons, "asked": asked}

    @model_validator(mode="before")
    @classmethod
    def _unflat(cls, data: object) -> object:
        """Read what `_flat` wrote; what a later version has added is left aside."""
        if not isinstance(data, dict) or not isinstance(data.get("asked"), dict):
            return data
        reasons = data.get("reasons")
        reasons = reasons if isinstance(reasons, dict) else {}
        asked, decisions = _model_of(cls, "asked"), _model_of(cls, "decisions")
        options = data["asked"] | ({"env": data.get("env", {})} if "env" in asked.model_fields else {})
        whole = {name: data[name] for name in cls.model_fields if name in data}
        return whole | {
            "asked": {name: options[name] for name in asked.model_fields if name in options},
            "decisions": {
                name: {"value": data[name], "reason": reasons.get(_REASONS.get(name, name), "")}
                for name in decisions.model_fields
                if name in data
            },
            "facts": {name: data[name] for name in Facts.model_fields if name in data},
            "host_reason": reasons.get("host", ""),
            "duration_reason": reasons.get("duration", ""),
        }


_IN_PLANS = ("launcher", "num_gpus", "amount", "vram", "host", "duration", "cost", "warnings", "offers", "replaced")


class Plan(Planned):
    """A training: what was asked for, every decision, and what it takes. It is the record of the run."""

    task: Literal["sft"] = "sft"
    asked: RunSpec
    decisions: Decisions

    @property
    def options(self) -> RunSpec:
        """What was asked for with every decision filled in."""
        decided = {name: getattr(self.decisions, name).value for name in _DECIDED_OPTIONS}
        return self.asked.model_copy(update=decided | {"timeout": f"{self.decisions.timeout_s.value}s"})

    @property
    def env(self) -> dict[str, str]:
        """The variables that the run gets."""
        return self.asked.env

    @property
    def labels(self) -> dict[str, str]:
        """The labels that were asked for."""
        return self.asked.label

    @property
    def values(self) -> dict[str, Any]:
        """Every option and decision, by its name in JSON."""
        asked = {_IN_JSON.get(name, name): value for name, value in self.asked if name not in _GUIDES}
        return asked | super().values

    def _with(self, values: Mapping[str, Any]) -> Self:
        told = {name: value for name, value in values.items() if name in RunSpec.model_fields}
        # What the other options are checked against.
        held: dict[str, Any] = {
            name: getattr(self.decisions, name).value
            for name in ("revision", "max_steps", "num_train_epochs", "merge", "gguf")
        }
        held["push"] = bool(told.get("output_repo") or told.get("merged_repo")) or self.asked.push
        if {"batch_size", "gradient_accumulation"} & told.keys():
            held["effective_batch_size"] = None
        asked = RunSpec.model_validate(dict(self.asked) | held | told)
        facts = dict(self.facts) | {name: values[name] for name in Facts.model_fields if name in values}
        changed = super()._with({**values, **{name: getattr(asked, name) for name in told}})
        return changed.model_copy(update={"asked": asked, "facts": Facts.model_validate(facts)})


_DECIDED_OPTIONS = tuple(name for name in Decisions.model_fields if name in RunSpec.model_fields)


class ExportPlan(Planned):
    """An export of an adapter that was trained before: the copies of its model, where they are made and go."""

    task: Literal["export"] = "export"
    asked: ExportSpec
    decisions: ExportDecisions

    @property
    def places(self) -> tuple[str | None, str | None, str | None]:
        """The repos of the result and of its merged copy, and the one in which an adapter is already."""
        return self.decisions.output_repo.value, self.decisions.merged_repo.value, self.decisions.adapter.value


AnyPlan = Plan | ExportPlan
READ: TypeAdapter[AnyPlan] = TypeAdapter(Annotated[AnyPlan, Field(discriminator="task")])
"""Reads either, by its task."""


def _model_of(cls: type[Planned], name: str) -> Any:
    return cls.model_fields[name].annotation
