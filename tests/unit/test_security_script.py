"""Whatever a user or the Hub calls its things: the script stays the reviewed code, and the launcher says no in words.

What a string could break out of is sampled beside arbitrary text: quotes, comments, templates, headers, line ends.
"""

from __future__ import annotations

import ast
import json
import random
import re
import struct
import sys
import tomllib
from datetime import date
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from launcher import catalog, spec
from launcher.catalog import tensors
from launcher.catalog.machine import LOCAL
from launcher.errors import LauncherError, RequestError
from launcher.estimate import dataset
from launcher.jobs import request
from launcher.plan import make as planner
from launcher.plan.record import AnyPlan, Decisions, ExportDecisions, Facts, Plan
from launcher.render import render, toml
from launcher.spec import RunSpec
from tests.unit.sample import export_plan
from tests.unit.test_render import canonical, header

TABLES = catalog.load()
CONFIGS = sorted((Path(__file__).parent / "catalog" / "configs").glob("*.json"))
CODE = "__import__('pathlib').Path('PWNED').touch()"
NASTY = (
    '"', "'", '"""', "'''", "\\", '\\"', "\n", "\r\n", "\u2028", "\u2029", "\x00", "\x85", "\x1b[31m", "\x9b1m",
    "{{ 7*7 }}", "{% raw %}", "{#", "#", "# ///", "# /// script", "\n# dependencies = ['evil']", f'"; {CODE} #',
    f"'+{CODE}+'", f"\n{CODE}\n", f"{{{CODE}}}", "\u202egnp.exe", "\u2066", "\ufeff", "é", "🦥", "../../etc",
    "$(id)", "`id`", ";id", "|id", "%2e%2e%2f", "a/../b", "~root", "-", "--output-dir=/", " ", "%s", "{0.__class__}",
    "x" * 300,
)  # fmt: skip
SURROGATES = ("\ud800", "\udcff")
texts = st.one_of(st.text(max_size=40), st.lists(st.sampled_from(NASTY), min_size=1, max_size=4).map("".join))
anything = st.one_of(texts, st.lists(st.sampled_from((*NASTY, *SURROGATES)), max_size=3).map("".join))
quick = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def string_fields(model: type[Any], *, container: bool = False) -> list[str]:
    """The fields of a model whose values are free text; with `container`, those that hold several."""
    kinds = ("dict[str, str]", "tuple[str, ...]") if container else ("str", "Optional", "None")
    found = []
    for name, field in model.model_fields.items():
        kind = re.sub(r".*Decision\[(.*)\]", r"\1", str(field.annotation).replace("<class 'str'>", "str"))
        if (kind in kinds) if container else (kind in ("str", "str | None") or "Annotated[str" in kind):
            found.append(name)
    return found


OF_PLANS = (RunSpec, Decisions, ExportDecisions, Facts)
PLAN_TEXTS = {name for model in OF_PLANS for name in string_fields(model)}
PLAN_CONTAINERS = {name for model in OF_PLANS for name in string_fields(model, container=True)}
SPEC_TEXTS = string_fields(RunSpec)


def test_the_fields_are_found() -> None:
    assert {"repo", "revision", "dataset", "run_name", "image", "namespace", "trackio_project", "flavor"} <= PLAN_TEXTS
    assert {"label", "env", "secrets", "lora_targets"} <= PLAN_CONTAINERS
    assert {"model", "revision", "dataset", "dataset_split", "run_name", "image", "chat_template"} <= set(SPEC_TEXTS)


def skeleton(text: str) -> str:
    """The syntax tree with every constant and every chosen value taken out; these must be literals."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == "Options":
            values = [field for field in node.body if isinstance(field, ast.AnnAssign)]
        elif isinstance(node, ast.AnnAssign) and ast.unparse(node.target) in ("PLANNED", "GENERATION"):
            values = [node]
        else:
            continue
        for value in values:
            assert value.value
            ast.literal_eval(value.value)
            value.value = ast.Constant(None)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant):
            node.value = None
    return ast.dump(tree)


def fixed(text: str) -> str:
    """The script without its chosen values and without what the header says of this run: byte for byte the same."""
    before, begun, rest = text.partition("\n# fmt: off\n")
    chosen, ends, after = rest.partition("\n# fmt: on\n")
    assert begun and ends
    # Each is on a line of its own, behind a name and a type.
    chosen = "\n".join(
        re.sub(r"^    (\w+: Annotated\[.*?\]|\"\w+\"(?=:)).*$", r"\1", line) for line in chosen.split("\n")
    )
    after = re.sub(r"\n# How the model above is best sampled.*\nGENERATION.*\n", "\n", after)
    head = [line for line in before.split("\n") if not line.startswith(("# flavor = ", "# timeout = ", "# secrets = "))]
    return "\n".join(head) + chosen + after


def sample(modality: str, task: str) -> AnyPlan:
    if task == "export":
        return export_plan(modality=modality, adapter="me/adapter", gguf=("q4_k_m",))
    return canonical("sft_vlm.py" if modality == "vision" else "sft_text.py")


@cache
def baseline(modality: str, task: str) -> tuple[str, str, dict[str, Any]]:
    text = render(sample(modality, task), TABLES.stack)
    return skeleton(text), fixed(text), header(text)


def check_script(text: str, plan: AnyPlan) -> None:
    """It is the reviewed code with other values, in a header with the same keys."""
    tree, code, head = baseline(plan.decisions.modality.value, plan.task)
    assert skeleton(text) == tree
    assert fixed(text) == code
    found = header(text)
    jobs = found["tool"].pop("hf-jobs")
    expected = {**head, "tool": {**head["tool"]}}
    usual_jobs = expected["tool"].pop("hf-jobs")
    assert found == expected
    assert jobs.keys() == usual_jobs.keys()
    assert (jobs["flavor"], jobs["secrets"]) == (plan.decisions.flavor.value, list(plan.decisions.secrets.value))


def run_top_level(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run what a script runs before `main`, in an empty folder."""
    monkeypatch.chdir(folder)
    module = ModuleType("script")
    # Where its dataclass looks for the types of its fields.
    monkeypatch.setitem(sys.modules, "script", module)
    names = vars(module)
    exec(compile(text, "script.py", "exec"), names)
    return names


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("task", ["sft", "export"])
@pytest.mark.parametrize("modality", ["text", "vision"])
def test_no_value_of_a_plan_becomes_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, modality: str, task: str, seed: int
) -> None:
    """Every free text of a plan at once, each another mix of what breaks out of strings, comments and headers."""
    chance = random.Random(seed)

    def text(*more: str) -> str:
        return "".join(chance.sample((*NASTY, *more), 3))

    values = {
        name: text(*SURROGATES) for name in sorted(PLAN_TEXTS) if name not in ("lr_scheduler_type", "optim", "flavor")
    }
    lists = {name: tuple(text() for _ in range(3)) for name in ("secrets", "lora_targets")}
    tables = {name: {text(): text()} for name in ("label", "env")}
    given: dict[str, Any] = {**values, **lists, **tables, "flavor": text()}
    plan = sample(modality, task)
    plan = plan.unchecked({name: given[name] for name in given if name in {*plan.values, *dict(plan.facts), *tables}})
    made = render(plan, TABLES.stack)
    check_script(made, plan)
    chosen = run_top_level(made, tmp_path, monkeypatch)["Options"]()
    assert chosen.model == values["repo"]
    name = "adapter" if task == "export" else "dataset"
    assert getattr(chosen, name) == values[name]
    assert not list(tmp_path.iterdir())


def try_to_plan(options: dict[str, Any]) -> Plan | None:
    """The plan of a request; none where it was refused in words."""
    try:
        return planner.make_plan(spec.build(options), TABLES, today=date(2026, 11, 24))
    except LauncherError as error:
        assert error.exit_code in (2, 3)
        assert error.message
        return None


@quick
@given(field=st.sampled_from(SPEC_TEXTS), value=anything, second=st.sampled_from(SPEC_TEXTS), other=texts)
@example("dataset", "x" * 100_000, "run_name", "x")
@example("dataset_split", "train[:10%]", "trackio_project", "# ///")
@example("model", "~nobody-of-that-name/x", "run_name", "x")
@example("dataset", "a\ud800", "run_name", "x")
def test_an_option_is_a_value_or_refused(field: str, value: str, second: str, other: str) -> None:
    plan = try_to_plan({"model": "qwen3-8b", "flavor": "a10g-large", second: other, field: value})
    if plan is not None and field in ("revision", "dataset", "run_name"):
        assert getattr(plan.options, field) == value.strip()


@quick
@given(
    label=st.dictionaries(anything, anything, max_size=2),
    env=st.dictionaries(st.one_of(anything, st.just("A")), anything, max_size=2),
    secrets=st.lists(anything, max_size=2),
)  # fmt: skip
def test_tables_are_values_or_refused(label: dict[str, str], env: dict[str, str], secrets: list[str]) -> None:
    options = {"model": "qwen3-8b", "flavor": "a10g-large", "label": label, "env": env, "secrets": secrets}
    try_to_plan({name: value for name, value in options.items() if value})


@pytest.mark.parametrize(
    "options",
    [
        {"model": "qwen3-8b\x00"},
        {"dataset_config": f'"; {CODE} #', "trackio_project": "{{ 7*7 }}"},
        {"dataset_split": "train[:10%]", "trackio_project": "# ///"},
        {"dataset": "me/x", "trackio_project": '"""', "eval_split": "".join(NASTY[-9:-1])},
        {"label": {"a": "{{ 7*7 }}"}, "env": {"A": f"'+{CODE}+'"}, "secrets": ["B"]},
    ],
)
def test_what_is_taken_is_a_value_in_script_and_request(options: dict[str, Any]) -> None:
    plan = try_to_plan({"model": "qwen3-8b", "flavor": "a10g-large", **options})
    if plan is not None:
        made = request.from_plan(plan, TABLES)
        check_script(made.script, plan)
        assert "\\u0000" not in json.dumps(made.describe())


toml_values = st.recursive(
    st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(), texts),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)


@quick
@given(values=st.dictionaries(st.one_of(texts, st.sampled_from(sorted(RunSpec.model_fields))), toml_values, max_size=3))
def test_a_config_file_is_a_request_or_refused(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]
) -> None:
    path = tmp_path_factory.mktemp("config") / "run.toml"
    path.write_text("\n".join(f"{toml(name)} = {_toml(value)}" for name, value in values.items()), encoding="utf-8")
    assert tomllib.loads(path.read_text(encoding="utf-8")).keys() == values.keys()
    try:
        asked = spec.build({"model": "qwen3-8b", "flavor": "a10g-large"}, path)
    except RequestError as error:
        assert error.message
    else:
        assert isinstance(asked, RunSpec)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return toml(value) if isinstance(value, str) else str(value)


@quick
@given(content=st.binary(max_size=60) | texts.map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_as_a_config_file(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("config") / "run.toml"
    path.write_bytes(content)
    try:
        assert spec.build({"model": "qwen3-8b"}, path).model == "qwen3-8b"
    except RequestError as error:
        assert error.message


odd: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**30), 10**30), st.floats(), texts, st.builds(list), st.builds(dict),
    st.lists(st.sampled_from(["x", 1, None, True]), max_size=2), st.dictionaries(texts, st.none(), max_size=1),
)  # fmt: skip


@quick
@given(path=st.sampled_from(CONFIGS), data=st.data())
def test_a_models_config_is_understood_or_refused(path: Path, data: st.DataObject) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    for _ in range(data.draw(st.integers(1, 4))):
        part = config
        inner = [key for key, value in part.items() if isinstance(value, dict)]
        goes_in: bool = data.draw(st.booleans())
        if inner and goes_in:
            part = part[data.draw(st.sampled_from(inner))]
        key = data.draw(st.one_of(st.sampled_from(sorted(part) or ["model_type"]), texts))
        part[key] = data.draw(odd)
    try:
        asked = spec.build({"model": "someone/something", "flavor": "h200", "dataset": "a/b"})
        planner.make_plan(asked, TABLES, today=date(2026, 11, 24), fetch_config=lambda repo, revision: config)
    except LauncherError as error:
        assert error.exit_code in (2, 3)


@pytest.mark.parametrize("size", [None, [], {}, "large", -1, 10**12, [None]])
def test_a_tower_without_the_size_that_it_needs_is_refused(size: Any) -> None:
    config = json.loads((Path(__file__).parent / "catalog" / "configs" / "gemma3.json").read_text(encoding="utf-8"))
    config["vision_config"]["image_size"] = size
    with pytest.raises(RequestError, match=r"config\.json"):
        TABLES.model("someone/something", fetch_config=lambda repo, revision: config)


@quick
@given(values=st.dictionaries(texts, odd, max_size=5))
def test_no_config_at_all(values: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        TABLES.model("someone/something", fetch_config=lambda repo, revision: values)


@quick
@given(
    content=st.one_of(
        st.binary(max_size=40),
        st.binary(max_size=40).map(lambda text: struct.pack("<Q", len(text)) + text),
        st.dictionaries(texts, odd | st.fixed_dictionaries({"dtype": odd, "shape": st.lists(odd) | odd}), max_size=3)
        .map(lambda table: json.dumps(table).encode())
        .map(lambda text: struct.pack("<Q", len(text)) + text),
    )
)  # fmt: skip
@example(struct.pack("<Q", 100_000) + b"[" * 100_000)
@example(struct.pack("<Q", 2**63))
def test_a_safetensors_header_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("model")
    (folder / "model.safetensors").write_bytes(content)
    try:
        found = tensors.read_folder(folder, four_bits=False)
    except RequestError as error:
        assert "safetensors" in error.message
    else:
        assert found is None or found.parameters >= 0


@pytest.mark.parametrize(
    "content", ["[" * 200_000, '{"a": ' * 200_000, "[]", "null", "\x00", "\ufeff{}", '{"hidden_size": 1e999}']
)
def test_a_folders_config_is_refused_in_words(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(RequestError, match=r"config\.json"):
        TABLES.model(str(tmp_path))


@quick
@given(
    suffix=st.sampled_from(spec.DATA_SUFFIXES),
    content=st.binary(max_size=80) | texts.map(lambda text: text.encode("utf-8")),
)
@example(".json", b"[" * 200_000)
@example(".parquet", b"PAR1" + b"\x00" * 8 + struct.pack("<I4s", 8, b"PAR1"))
def test_any_bytes_as_a_dataset(tmp_path_factory: pytest.TempPathFactory, suffix: str, content: bytes) -> None:
    path = tmp_path_factory.mktemp("data") / f"rows{suffix}"
    path.write_bytes(content)
    size = dataset.measure(path)
    assert size.source
    assert size.rows is None or size.rows >= 0


def test_an_arrow_file_that_points_back_to_its_beginning_ends(tmp_path: Path) -> None:
    # A flatbuffer table with version, kind, header and a body of -32 bytes: what follows it is itself.
    vtable = struct.pack("<HHHHHH", 12, 20, 0, 0, 0, 4)
    table = struct.pack("<iq", len(vtable), -(8 + 4 + len(vtable) + 12 + 8))
    message = struct.pack("<I", 4 + len(vtable)) + vtable + table
    message += b"\0" * (8 - len(message) % 8)
    (tmp_path / "data.arrow").write_bytes(struct.pack("<II", 0xFFFFFFFF, len(message)) + message)
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    assert "could not be read" in dataset.measure(tmp_path).source


def test_a_local_plan_renders_too() -> None:
    plan = canonical().unchecked({"flavor": LOCAL, "dataset": f"/tmp/{CODE}", "repo": f'/tmp/"{CODE}'})
    check_script(render(plan, TABLES.stack), plan)
