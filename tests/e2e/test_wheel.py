"""The installed wheel is whole: templates and tables travel with it, and the checkout is not needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from uv import find_uv_bin

CHECKOUT = Path(__file__).parents[2]


def test_an_installed_wheel_plans_and_renders(tmp_path: Path) -> None:
    def run(*command: str | Path) -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    uv = find_uv_bin()
    run(uv, "build", "--quiet", "--wheel", "--python", sys.executable, "--out-dir", tmp_path, CHECKOUT)
    [wheel] = tmp_path.glob("*.whl")
    run(uv, "venv", "--quiet", "--python", sys.executable, tmp_path / "venv")
    run(uv, "pip", "install", "--quiet", "--python", tmp_path / "venv", wheel)
    launch = tmp_path / "venv" / "bin" / "launch"
    where = run(tmp_path / "venv" / "bin" / "python", "-c", "import launcher; print(launcher.__file__)")
    assert Path(where.strip()).is_relative_to(tmp_path)
    for name, model in (("sft_text.py", "qwen3-8b"), ("sft_vlm.py", "qwen3-vl-8b")):
        asked = (
            "--model",
            model,
            "--flavor",
            "a10g-large",
            "--load-in",
            "4bit",
            "--no-push",
            "--run-name",
            f"{model}-sft",
        )
        assert run(launch, "render", *asked) == (CHECKOUT / "job_scripts" / name).read_text(encoding="utf-8")
    assert json.loads(run(launch, "models", "--json"))
    # The scripts' parts are imported from there too.
    run(tmp_path / "venv" / "bin" / "python", "-c", "import launcher.look.reading")
    shipped = {path.name for path in (Path(where.strip()).parent / "data").rglob("*") if path.is_file()}
    assert {"models.toml", "flavors.toml", "stack.toml", "train.jsonl", "test.jsonl", "convert_smollm2.py"} <= shipped
