"""The Python in a model's repo, with the real Unsloth: never run unless asked for, and then at its commit."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from uv import find_uv_bin

from tests.emulator import Hub
from tests.emulator.state import StoredFile

SCRIPT = Path(__file__).parents[2] / "job_scripts" / "sft_text.py"
CODE = """
from transformers import LlamaForCausalLM
open({ran!r}, "a").write({version!r})
class Own(LlamaForCausalLM):
    pass
"""


@pytest.mark.slow
def test_a_repos_code_runs_only_when_asked_for_and_at_the_commit_named(smollm2: Path, tmp_path: Path) -> None:
    rows, ran = tmp_path / "rows.jsonl", tmp_path / "ran"
    chat = [{"role": "user", "content": "Which colour?"}, {"role": "assistant", "content": "Red."}]
    rows.write_text("\n".join(json.dumps({"messages": chat}) for _ in range(8)))
    files = {path.name: path.read_bytes() for path in smollm2.iterdir() if path.is_file()}
    config = json.loads(files["config.json"]) | {"auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}}
    files["config.json"] = json.dumps(config).encode()
    files["modeling_own.py"] = CODE.format(ran=str(ran), version="read ").encode()
    with Hub(tmp_path / "hub", run=False) as hub:
        repo = hub.add_repo("tester/own", files=files)
        commit = repo.head.oid
        newer = CODE.format(ran=str(ran), version="newer ").encode()
        repo.commit({**repo.head.files, "modeling_own.py": StoredFile(newer, False)}, "newer code")

        def train(*flags: str) -> subprocess.CompletedProcess[str]:
            command = [
                find_uv_bin(), "run", str(SCRIPT), "--model", "tester/own", "--dataset", str(rows), "--device", "cpu",
                "--max-steps", "1", "--eval-rows", "0", "--batch-size", "1", "--gradient-accumulation", "1",
                "--max-length", "64", *flags,
            ]  # fmt: skip
            return subprocess.run(
                command,
                cwd=tmp_path,
                env=os.environ | hub.env(),
                capture_output=True,
                text=True,
                timeout=600,
                check=False,
            )

        plain = train()
        assert plain.returncode == 0, plain.stdout[-2000:] + plain.stderr[-2000:]
        assert not ran.exists()
        unpinned = train("--trust-remote-code", "--revision", "main")
        assert unpinned.returncode == 2
        assert not ran.exists()
        pinned = train("--trust-remote-code", "--revision", commit)
        assert pinned.returncode == 0, pinned.stdout[-2000:] + pinned.stderr[-2000:]
        assert set(ran.read_text().split()) == {"read"}
