"""A small, whole request for tests that run something: the plan's numbers mean nothing here."""

from __future__ import annotations

import importlib.util
import sys
from datetime import date
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from parts.options import read_options

from launcher import catalog
from launcher.estimate.values import Cost, Duration, Host, Vram
from launcher.jobs.base import JobRequest
from launcher.plan import export
from launcher.plan.adapter import Adapter
from launcher.plan.record import AnyPlan, Decision, Decisions, ExportPlan, Plan
from launcher.spec import ExportSpec, RunSpec

JOB_SCRIPTS = Path(__file__).parents[2] / "job_scripts"
# uv looks for a project around a script without such a header.
HEADER = """\
# /// script
# requires-python = ">=3.11"
# dependencies = []
# ///
"""

SAY = "import os\nsay = lambda line: print(line + ' #' + os.environ['LAUNCH_MARK'], flush=True)\n"
"""Before a body that says lines for the launcher."""


def load_script(name: str) -> ModuleType:
    """A committed script as a module; its heavy imports come only when it runs."""
    spec = importlib.util.spec_from_file_location(name.removesuffix(".py"), JOB_SCRIPTS / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Where its dataclass looks for the types of its fields.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@cache
def _options(script: str) -> Any:
    return load_script(script).Options


def options(*argv: str, script: str = "sft_text.py") -> Any:
    """The options of a committed script, as these arguments change them."""
    return read_options(_options(script), argv)


def plan(**changes: Any) -> Plan:
    """A plan with some values changed, by their names in JSON."""
    values: dict[str, Any] = {
        "model": "smollm2-135m", "repo": "unsloth/SmolLM2-135M-Instruct", "revision": None, "modality": "text",
        "engine": "unsloth", "load_in": "16bit", "chat_template": None, "dataset": "trl-lib/Capybara",
        "dataset_config": None, "dataset_split": "train", "dataset_revision": None, "eval_split": None, "eval_rows": 0,
        "streaming": False, "train_on": "assistant", "max_steps": 5, "num_train_epochs": None, "max_length": 512,
        "batch_size": 2, "gradient_accumulation": 1, "packing": False, "learning_rate": 2e-4,
        "lr_scheduler_type": "linear", "warmup_ratio": 0.0, "weight_decay": 0.0, "optim": "adamw_torch", "seed": 1,
        "logging_steps": 1, "eval_steps": None, "lora_r": 8, "lora_alpha": 8, "lora_dropout": 0.0,
        "lora_targets": ("q_proj",), "output_repo": None, "private": True, "run_name": "a run", "sample_rows": 0,
        "attempts": 2, "merge": None, "merged_repo": None, "gguf": (), "image_size": None, "effective_batch_size": 2,
        "trackio_project": "tests", "trackio_space": None, "flavor": "cpu-basic", "num_gpus": 0, "image": None,
        "namespace": None, "labels": {}, "env": {}, "secrets": (), "timeout_s": 60,
        "vram": Vram(weights_gib=0.3, peak_gib=1.0, available_gib=2.0, fits=True),
        "host": Host(ram_gb=0, disk_gb=0),
        "duration": Duration(startup_s=1, train_s=1, total_s=2),
        "cost": Cost(usd_per_hour=0.01, expected_usd=0.0, max_usd=0.01),
        "reasons": {}, "warnings": (), "offers": (),
    }  # fmt: skip
    values |= {"revision": changes.get("revision")}
    undecided = [name for name in RunSpec.model_fields if name == "revision" or name not in Decisions.model_fields]
    made = Plan.model_validate(values | {"asked": {name: values[name] for name in undecided if name in values}})
    reasons = changes.pop("reasons", {})
    whole = {name: value for name, value in changes.items() if name in Plan.model_fields}
    told = {"label" if name == "labels" else name: value for name, value in changes.items() if name not in whole}
    made = made.unchecked(told).model_copy(update=whole)
    why = {name: Decision(getattr(made.decisions, name).value, reason) for name, reason in reasons.items()}
    return made.model_copy(update={"decisions": made.decisions.model_copy(update=why)})


def export_plan(**changes: Any) -> ExportPlan:
    """The plan of an export with some values changed, by their names in JSON."""
    asked = ExportSpec(source="me/model", merge="16bit", flavor="cpu-upgrade", timeout="1h")
    tables = catalog.shipped()
    adapter = Adapter("me/model", None, tables.models["smollm2-135m"].repo, None, 8, 8)
    return export.make_plan(asked, adapter, tables, today=date(2026, 11, 24)).unchecked(changes)


def request(body: str, *, of: AnyPlan | None = None, **changes: Any) -> JobRequest:
    """A request to run a script of that body, which needs no packages."""
    values: dict[str, Any] = {
        "plan": of or plan(),
        "script": HEADER + body,
        "script_name": "sft_text.py",
        "flavor": "cpu-basic",
        "timeout_s": 60,
        "env": {},
        "secrets": (),
        "labels": {"launcher": "test", "model": "smollm2-135m"},
    }
    return JobRequest(**values | changes)
