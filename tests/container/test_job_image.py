"""The Job's image: any rendered script of this stack starts at once in it, without a network."""

from __future__ import annotations

import json
import shutil
import subprocess
from datetime import date
from pathlib import Path

import pytest

from launcher import catalog, spec
from launcher.plan import make as planner
from launcher.render import render
from tests.container import buildah
from tests.container.buildah import CHECKOUT, Store
from tests.container.conftest import SECRET
from tests.container.sandbox import Container
from tests.e2e.test_train_cpu import chats, write

pytestmark = pytest.mark.container
TABLES = catalog.load()
COMPILE = """
import importlib.util, sys
from triton.runtime.build import compile_module_from_src
made = compile_module_from_src('''
#include <Python.h>
static PyObject *answer(PyObject *self, PyObject *none) { return PyLong_FromLong(42); }
static PyMethodDef methods[] = {{"answer", answer, METH_NOARGS, ""}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "probe", "", -1, methods};
PyMODINIT_FUNC PyInit_probe(void) { return PyModule_Create(&module); }
''', "probe")
print(made.answer())
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """What Jobs mounts at /data: a script and rows."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("sft_text.py", "sft_vlm.py"):
        shutil.copy(CHECKOUT / "job_scripts" / name, folder)
    write(folder / "rows.jsonl", [{"messages": chat} for chat in chats(16)])
    return folder


def environments(job: Container) -> dict[str, int]:
    """The environments in the image, each with how many packages it has."""
    return {
        path.name: len(list(path.glob("lib/python3*/site-packages/*.dist-info")))
        for path in sorted((job.root / "opt/uv").glob("environments-v*/*"))
    }


def answer(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("user", ["0:0", "12345:12345"])
@pytest.mark.parametrize("script", ["sft_text.py", "sft_vlm.py"])
def test_a_script_starts_offline_and_installs_nothing(job: Container, data: Path, script: str, user: str) -> None:
    before = environments(job)
    assert sorted(name.rpartition("-")[0] for name in before) == ["sft-text", "sft-vlm"]
    assert min(before.values()) > 50
    done = job.run("uv", "run", f"/data/{script}", "--help", user=user, read_only=False, binds={data: "/data"})
    assert "--max-steps" in answer(done)
    assert "Installed" not in done.stderr
    assert environments(job) == before


@pytest.mark.parametrize("model", ["smollm2-135m", "llama-3.1-8b", "gemma-3-4b"])
def test_so_does_the_script_of_any_other_run(job: Container, data: Path, model: str) -> None:
    asked = spec.build({"model": model, "timeout": "3h", "secrets": ("WANDB_API_KEY",), "run_name": "another"})
    plan = planner.make_plan(asked, TABLES, today=date(2026, 11, 24))
    name = "sft_vlm.py" if plan.decisions.modality.value == "vision" else "sft_text.py"
    (data / name).write_text(render(plan, TABLES.stack), encoding="utf-8")
    done = job.run("uv", "run", f"/data/{name}", "--help", read_only=False, binds={data: "/data"})
    assert "--max-steps" in answer(done)
    assert "Installed" not in done.stderr


def test_a_script_elsewhere_finds_its_packages_in_the_cache(job: Container, data: Path) -> None:
    done = job.run("uv", "run", "--offline", "/else/sft_text.py", "--help", read_only=False, binds={data: "/else"})
    assert "--max-steps" in answer(done)


def test_another_stack_is_not_taken_for_this_one(job: Container, data: Path) -> None:
    path = data / "sft_text.py"
    pin = f'"trl=={TABLES.stack.pins["trl"]}"'
    text = path.read_text(encoding="utf-8")
    assert pin in text
    path.write_text(text.replace(pin, '"trl==1.14.0"'), encoding="utf-8")
    done = job.run("uv", "run", "/data/sft_text.py", "--help", read_only=False, binds={data: "/data"})
    assert done.returncode != 0
    assert "Failed to fetch" in done.stderr


def test_it_trains_offline(job: Container, data: Path, smollm2: Path) -> None:
    done = job.run(
        "uv", "run", "/data/sft_text.py", "--model", "/model", "--dataset", "/data/rows.jsonl", "--device", "cpu",
        "--max-steps", "8", "--batch-size", "4", "--gradient-accumulation", "1", "--max-length", "128",
        "--learning-rate", "2e-3", "--eval-rows", "4", "--output-dir", "/data/output",
        read_only=False, binds={data: "/data", smollm2: "/model"}, env={"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    last = answer(done).splitlines()[-1]
    assert last.startswith("RESULT "), done.stdout
    found = json.loads(last.removeprefix("RESULT "))
    assert found["status"] == "done"
    assert found["steps"] == 8
    assert found["eval_loss"] < found["eval_loss_before"]
    assert (data / "output" / "adapter_model.safetensors").is_file()


def test_it_holds_the_pinned_stack(job: Container) -> None:
    packages = next((job.root / "opt/uv").glob("environments-v*/sft-text-*/lib/python3*/site-packages"))
    for name, version in TABLES.stack.pins.items():
        assert (packages / f"{name}-{version}.dist-info").is_dir()
    # The headers that it was made from: those of the committed scripts, without what changes from run to run.
    for script in ("sft_text.py", "sft_vlm.py"):
        header = (job.root / "opt/launch-job" / script).read_text(encoding="utf-8")
        whole = (CHECKOUT / "job_scripts" / script).read_text(encoding="utf-8")
        assert header == whole.partition("# [tool.hf-jobs]\n")[0] + "# ///\n"


def test_triton_finds_its_compiler(job: Container) -> None:
    python = next((job.root / "opt/uv").glob("environments-v*/sft-text-*/bin/python"))
    inside = f"/{python.relative_to(job.root)}"
    assert answer(job.run(inside, "-c", COMPILE, read_only=False)).splitlines()[-1] == "42"


def test_it_runs_what_jobs_runs_as_jobs_default_image_does(job: Container) -> None:
    assert job.config.get("User", "") == ""
    assert job.entrypoint == []
    assert job.config.get("WorkingDir", "") in ("", "/")
    assert "UV_CACHE_DIR=/opt/uv" in job.config["Env"]
    assert not [item for item in job.config["Env"] if item.startswith(("UV_OFFLINE", "HF_"))]
    assert list((job.root / "data").iterdir()) == []
    assert job.config["Labels"]["org.opencontainers.image.title"] == "launch-job"


def test_each_package_is_there_once(job: Container) -> None:
    total = buildah.size(job.root)
    print(f"\njob: {total / 1e9:.2f} GB")
    assert 3e9 < total < 9e9
    files = [next((job.root / "opt/uv").glob(f"environments-v*/{name}-*/lib/python3*/site-packages/torch/__init__.py"))
             for name in ("sft-text", "sft-vlm")]  # fmt: skip
    assert files[0].samefile(files[1])


def test_it_holds_no_secret(job: Container, store: Store) -> None:
    found = subprocess.run(
        ["grep", "-rlF", "--devices=skip", SECRET, str(job.root)], capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stdout) == (1, "")
    assert SECRET not in json.dumps(store.config("job"))
    # One layer above the base's, so that nothing was removed in a later one.
    assert len(store.config("job")["rootfs"]["diff_ids"]) == len(store.config("base-uv")["rootfs"]["diff_ids"]) + 1


def test_jobs_default_image_would_have_to_download_it(store: Store, data: Path) -> None:
    bare = Container(store.root("base-uv"), store.config("base-uv")["config"])
    done = bare.run("uv", "run", "/data/sft_text.py", "--help", read_only=False, binds={data: "/data"})
    assert done.returncode != 0
