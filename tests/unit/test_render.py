"""The rendered script is reviewed code: the committed one is what the canonical plan gives, and no value is code."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import committed
import pytest
from huggingface_hub.cli._uv_script_header import parse_uv_script_header
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import UndefinedError

from launcher import catalog
from launcher.plan.record import Plan
from launcher.render import _environment, py, render, render_copies, toml
from tests.unit.sample import load_script

CHECKOUT = Path(__file__).parents[2]
STACK = catalog.load().stack
STRING_FIELDS = (
    "repo", "revision", "chat_template", "dataset", "dataset_config", "dataset_split", "dataset_revision", "eval_split",
    "lr_scheduler_type", "optim", "output_repo", "run_name", "trackio_project", "trackio_space",
)  # fmt: skip
# What breaks out of a string, a comment or a docstring where quoting is done by hand.
NASTY = ['"', "'", '"""', "\\", '\\"', "\n", "\r", "\u2028", "\x00", "\x85", "{{ 1 }}", "# ///", "é", "🦥", "\ud800"]
strings = st.one_of(st.text(), st.lists(st.sampled_from(NASTY)).map("".join), st.text(min_size=200, max_size=300))


def canonical(name: str = "sft_text.py") -> Plan:
    return committed.plan(name)


def script(name: str = "sft_text.py", **changes: Any) -> str:
    return render(canonical(name).unchecked(changes), STACK)


def header(text: str) -> dict[str, Any]:
    block = text.split("# ///\n")[0].removeprefix("# /// script\n")
    return tomllib.loads("".join(line[2:] or line[1:] for line in block.splitlines(keepends=True)))


CONFIG, NAMED = str(CHECKOUT / "pyproject.toml"), str(CHECKOUT / "job_scripts" / "sft_text.py")


def ruff(text: str, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ruff", *command, "--config", CONFIG, "--stdin-filename", NAMED, "-"],
        input=text, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("name", [*committed.MODELS, "export.py"])
def test_the_committed_script_is_what_its_plan_renders(name: str) -> None:
    text = committed.text_of(name)
    assert (CHECKOUT / "job_scripts" / name).read_text(encoding="utf-8") == text
    assert ruff(text, "check").returncode == 0
    assert ruff(text, "format", "--check").returncode == 0
    assert "uv run python bench/committed.py" in (CHECKOUT / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", committed.MODELS)
def test_a_reader_comes_to_the_recipe_first(name: str) -> None:
    lines = committed.text_of(name).splitlines()
    assert lines.index("def main(args: Options) -> Run | None:") < 150
    # What it uses stands below it.
    assert all(not line.startswith(("def ", "class ")) or "Options" in line for line in lines[:150])


def test_every_option_of_a_script_is_one_of_its_plan() -> None:
    text = script("sft_vlm.py")
    chosen = _chosen(text)
    assert {"image_size", "learning_rate", "finetune_vision_layers"} <= chosen.keys()
    assert not {"packing", "lora_targets", "adapter"} & chosen.keys()
    assert {"packing", "lora_targets"} <= _chosen(script()).keys()


def test_header_is_toml_with_pins_and_the_job() -> None:
    found = header(script())
    assert found["dependencies"] == list(STACK.dependencies)
    assert found["requires-python"] == STACK.requires_python
    assert found["tool"]["uv"] == {
        "exclude-newer": STACK.exclude_newer, "override-dependencies": list(STACK.overrides),
    }  # fmt: skip
    plan = canonical()
    assert found["tool"]["hf-jobs"] == {
        "flavor": plan.decisions.flavor.value, "timeout": f"{plan.decisions.timeout_s.value}s", "secrets": ["HF_TOKEN"],
    }  # fmt: skip


def test_hub_client_reads_the_header() -> None:
    read = parse_uv_script_header(script(flavor="l4x1", timeout_s=5400, secrets=("HF_TOKEN", "OTHER")))
    assert read is not None
    assert (read.flavor, read.timeout, read.secrets) == ("l4x1", "5400s", ["HF_TOKEN", "OTHER"])


class _SameLiterals(ast.NodeTransformer):
    """The tree with every chosen value taken out, so that what is left is the code."""

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        for field in node.body if node.name == "Options" else ():
            if isinstance(field, ast.AnnAssign) and field.value:
                ast.literal_eval(field.value)
                field.value = ast.Constant(None)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if isinstance(node.target, ast.Name) and node.target.id == "PLANNED" and node.value:
            ast.literal_eval(node.value)
            node.value = ast.Constant(None)
        return node


def _code(text: str) -> str:
    return ast.dump(_SameLiterals().visit(ast.parse(text)))


def _chosen(text: str) -> dict[str, Any]:
    [options] = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef) and node.name == "Options"]
    fields = [node for node in options.body if isinstance(node, ast.AnnAssign)]
    return {node.target.id: ast.literal_eval(node.value) for node in fields
            if isinstance(node.target, ast.Name) and node.value}  # fmt: skip


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
    text = py(value)
    assert text.isascii()
    assert text.isprintable()
    assert ast.literal_eval(text) == value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"", object(), [float("nan")]])
def test_py_refuses_what_has_no_literal(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        py(value)


@given(st.text() | st.lists(st.sampled_from(NASTY[:-1])).map("".join))
def test_toml_is_a_string_of_the_same_value_on_one_line(value: str) -> None:
    text = toml(value)
    assert tomllib.loads(f"value = {text}")["value"] == value
    assert len(text.splitlines()) == 1


def test_toml_refuses_lone_surrogates() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        toml("\ud800")


def test_a_missing_value_is_an_error() -> None:
    with pytest.raises(UndefinedError):
        _environment().from_string("{{ nothing }}").render()
    with pytest.raises(TypeError, match="Undefined"):
        _environment().from_string("{{ nothing | py }}").render()


def test_copies_of_another_adapter_than_the_chosen_one_take_only_what_flags_give(tmp_path: Path) -> None:
    plan = canonical().unchecked({"repo": "me/model", "revision": "a" * 40, "trust_remote_code": True})
    (tmp_path / "export.py").write_text(render_copies(plan, STACK), encoding="utf-8")
    export = load_script(str(tmp_path / "export.py"))
    # As a training calls it, which names its own model and revision.
    flags = ["--merge", "16bit", "--model", "me/model", "--revision", "a" * 40, "--trust-remote-code"]
    settled = export.settle(export.read_options(export.Options, ["--adapter", "somebody/else", *flags]))
    assert (settled.model, settled.revision, settled.run_name) == (None, None, "else")
    settled = export.settle(export.read_options(export.Options, ["--dry-run", *flags]))
    assert (settled.model, settled.revision, settled.run_name) == ("me/model", "a" * 40, "qwen3-8b-sft")
    settled = export.settle(export.read_options(export.Options, ["--adapter", "a/b", *flags, "--revision", "b" * 40]))
    assert settled.revision == "b" * 40
