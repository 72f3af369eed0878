"""The rendered script is reviewed code: the committed one is what the canonical plan gives, and no value is code."""

from __future__ import annotations

import ast
import runpy
import subprocess
import sys
import tomllib
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.cli._uv_script_header import parse_uv_script_header
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import UndefinedError

from launcher import catalog, render
from launcher.plan import make as planner
from launcher.plan.record import Plan
from launcher.spec import RunSpec

CHECKOUT = Path(__file__).parents[2]
STACK = catalog.load().stack
STRING_FIELDS = (
    "repo", "revision", "chat_template", "dataset", "dataset_config", "dataset_split", "dataset_revision", "eval_split",
    "lr_scheduler_type", "optim", "output_repo", "run_name", "trackio_project", "trackio_space",
)  # fmt: skip
# What breaks out of a string, a comment or a docstring where quoting is done by hand.
NASTY = ['"', "'", '"""', "\\", '\\"', "\n", "\r", "\u2028", "\x00", "\x85", "{{ 1 }}", "# ///", "é", "🦥", "\ud800"]
strings = st.one_of(st.text(), st.lists(st.sampled_from(NASTY)).map("".join), st.text(min_size=200, max_size=300))


# The requests of the committed scripts, as CONTRIBUTING.md gives them to `launch render`: nothing is pushed unless the
# script's user says where to.
COMMITTED = {
    "sft_text.py": {"model": "qwen3-8b", "run_name": "qwen3-8b-sft"},
    "sft_vlm.py": {"model": "qwen3-vl-8b", "run_name": "qwen3-vl-8b-sft"},
}


def canonical(name: str = "sft_text.py") -> Plan:
    asked = RunSpec(flavor="a10g-large", load_in="4bit", push=False, **COMMITTED[name])  # type: ignore[arg-type]
    return planner.make_plan(asked, catalog.load(), today=date(2026, 11, 24))


def script(name: str = "sft_text.py", **changes: Any) -> str:
    return render.render(canonical(name).model_copy(update=changes), STACK)


def header(text: str) -> dict[str, Any]:
    block = text.split("# ///\n")[0].removeprefix("# /// script\n")
    return tomllib.loads("".join(line[2:] or line[1:] for line in block.splitlines(keepends=True)))


def ruff(text: str, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ruff", *command, "--config", str(CHECKOUT / "pyproject.toml"), "-"],
        input=text, capture_output=True, text=True, check=False,
    )  # fmt: skip


# The committed exports are of no adapter in particular, which no command line asks for.
EXPORTS = runpy.run_path(str(CHECKOUT / "bench" / "committed_exports.py"))


@pytest.mark.parametrize("name", EXPORTS["MODELS"])
def test_the_committed_export_is_what_its_plan_renders(name: str) -> None:
    text = EXPORTS["text_of"](name)
    assert (CHECKOUT / "job_scripts" / name).read_text(encoding="utf-8") == text
    assert ruff(text, "check").returncode == 0
    assert ruff(text, "format", "--check").returncode == 0
    assert header(text)["tool"]["hf-jobs"]["flavor"] == "a10g-large"


@pytest.mark.parametrize("name", COMMITTED)
def test_the_committed_script_is_what_its_request_renders(name: str) -> None:
    committed = CHECKOUT / "job_scripts" / name
    assert committed.read_text(encoding="utf-8") == script(name)


def test_header_is_toml_with_pins_and_the_job() -> None:
    found = header(script())
    assert found["dependencies"] == list(STACK.dependencies)
    assert found["requires-python"] == STACK.requires_python
    assert found["tool"]["uv"] == {
        "exclude-newer": STACK.exclude_newer, "override-dependencies": list(STACK.overrides),
    }  # fmt: skip
    plan = canonical()
    assert found["tool"]["hf-jobs"] == {
        "flavor": plan.flavor, "timeout": f"{plan.timeout_s}s", "secrets": ["HF_TOKEN"],
    }  # fmt: skip


def test_hub_client_reads_the_header() -> None:
    read = parse_uv_script_header(script(flavor="l4x1", timeout_s=5400, secrets=("HF_TOKEN", "OTHER")))
    assert read is not None
    assert (read.flavor, read.timeout, read.secrets) == ("l4x1", "5400s", ["HF_TOKEN", "OTHER"])


class _SameLiterals(ast.NodeTransformer):
    """The tree with every chosen value taken out, so that what is left is the code."""

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        if isinstance(node.targets[0], ast.Name) and node.targets[0].id == "CHOSEN":
            ast.literal_eval(node.value)
            node.value = ast.Constant(None)
        return node


def _code(text: str) -> str:
    return ast.dump(_SameLiterals().visit(ast.parse(text)))


def _chosen(text: str) -> dict[str, Any]:
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "CHOSEN":
            chosen: dict[str, Any] = ast.literal_eval(node.value)
            return chosen
    raise AssertionError("the script has no chosen values")


# In whole scripts a few values stand for all: what the filters make of any is tested below.
WHOLE = ("".join(NASTY), '"""', "\n# ///\nimport os", "x" * 300)


@pytest.mark.parametrize("value", WHOLE)
def test_no_string_becomes_code(value: str) -> None:
    values = {name: f"{value}{name}" for name in STRING_FIELDS}
    text = script(**values)
    assert _code(text) == _code(script())
    chosen = _chosen(text)
    assert chosen["model"] == values["repo"]
    assert {name: chosen[name] for name in STRING_FIELDS[1:]} == {name: values[name] for name in STRING_FIELDS[1:]}


@pytest.mark.parametrize("value", ["".join(NASTY[:-1]), *WHOLE[1:]])
def test_no_string_breaks_out_of_the_header(value: str) -> None:
    text = script(flavor=value, secrets=(value, "HF_TOKEN"))
    assert header(text)["tool"]["hf-jobs"] | {"timeout": None} == {
        "flavor": value, "secrets": [value, "HF_TOKEN"], "timeout": None,
    }  # fmt: skip
    assert _code(text) == _code(script())


@pytest.mark.parametrize("value", WHOLE)
def test_rendered_text_is_formatted_whatever_the_values(value: str) -> None:
    text = script(**dict.fromkeys(STRING_FIELDS, value))
    formatted = ruff(text, "format", "--check")
    assert formatted.returncode == 0, formatted.stderr
    checked = ruff(text, "check", "--ignore", "E501")
    assert checked.returncode == 0, checked.stdout


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | strings,
        lambda items: st.lists(items, max_size=4) | st.lists(items, max_size=4).map(tuple),
    )
)
def test_py_is_a_literal_of_the_same_value(value: object) -> None:
    text = render.py(value)
    assert text.isascii()
    assert text.isprintable()
    assert ast.literal_eval(text) == value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {}, b"", object(), [float("nan")]])
def test_py_refuses_what_has_no_literal(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        render.py(value)


@given(st.text() | st.lists(st.sampled_from(NASTY[:-1])).map("".join))
def test_toml_is_a_string_of_the_same_value_on_one_line(value: str) -> None:
    text = render.toml(value)
    assert tomllib.loads(f"value = {text}")["value"] == value
    assert len(text.splitlines()) == 1


def test_toml_refuses_lone_surrogates() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        render.toml("\ud800")


def test_a_missing_value_is_an_error() -> None:
    with pytest.raises(UndefinedError):
        render._environment().from_string("{{ nothing }}").render()
    with pytest.raises(TypeError, match="Undefined"):
        render._environment().from_string("{{ nothing | py }}").render()
