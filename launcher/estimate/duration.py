"""Seconds and dollars of a run, as pure functions.

A run is its start-up by parts, its training (`speed`), its evaluations, and saving and pushing. Every constant
says whether it was measured, and where, or is assumed.
"""

from __future__ import annotations

from dataclasses import dataclass

from launcher.catalog import Flavor, Gpu, Model
from launcher.estimate import memory, speed
from launcher.estimate.setup import Setup
from launcher.estimate.values import Cost, Duration

# Assumed: until the image is there and the container runs.
_MACHINE_S = 60
# uv installs the pinned stack, 3 GB: measured 25 s (2 cores of a cloud machine, cold cache). An image that has it
# comes with these 3 GB instead, at an assumed 100 MB/s, layer by layer.
_INSTALL_S = 25
_WARM_IMAGE_S = 30
# Measured: 30 to 45 s on a fresh H100 machine, 16 s on 2 cores without a GPU.
_IMPORT_S, _IMPORT_CPU_S = 40, 16
# Assumed of the Hub's network to a cloud machine; many times that has been seen, and less.
DOWNLOAD_BYTES_PER_S = 200e6
# From a warm file system to the GPU, quantised on the way: measured 4.5 to 5.4 s for Qwen3-4B (H100, bench/speed.py).
_LOAD_S, _LOAD_BYTES_PER_S = 3, 3e9
# Reading, chat template and tokenizer: 20,000 rows of 2 kB took 7 s longer than 200 (2 cores, bench/RESULTS.md), which
# is more than a million tokens a second; half of it is assumed, as vocabularies are larger.
_DATA_S, _DATA_TOKENS_PER_S = 8, 5e5
# Assumed: a few rows are collated, decoded and looked at.
_CHECK_S = 5
# What compiling adds to the first steps (H100, bench/RESULTS.md; shared facts): the first step of the family's test
# run and, where it compiles anew for each new shape, what its next 23 steps took above a compiled one.
_COMPILE_TEXT_S = {"gemma-2": 5, "gemma-3": 150, "lfm2": 50, "lfm2.5": 50}
_COMPILE_VISION_S = {"qwen3-vl": 130, "gemma-3": 240, "llama-3.2-vision": 145, "pixtral": 60}
# Qwen and Llama text took 5 to 15 s; a vision model that is not known is taken for a slow one.
_COMPILE_OTHERS_S = {"text": 15, "vision": 130}
# Assumed: the adapter, in float32, with the tokenizer; then a commit to the Hub.
_SAVE_S, PUSH_BYTES_PER_S = 15, 50e6

AFTER = ("evaluate", "save")
"""The parts that come after the training."""

TIMEOUT_MARGIN = 1.5
TIMEOUT_SLACK_S = 600
TIMEOUT_MIN_S = 1800


@dataclass(frozen=True, slots=True)
class Work:
    """How much a run has to do.

    `steps` optimizer steps of `rows_per_step` rows (packed rows where packing) each; `tokens_per_row` is the mean as
    the model sees it, cut at the length limit; `eval_rows` are the rows of one evaluation, of which there are
    `evaluations`; `packed` is how many of the dataset's rows one packed row holds.
    """

    steps: int
    rows_per_step: int
    tokens_per_row: float
    eval_rows: int = 0
    evaluations: int = 0
    packed: float = 1

    @property
    def tokens(self) -> float:
        """Tokens trained on in all."""
        return self.steps * self.rows_per_step * self.tokens_per_row


def expected(model: Model, gpu: Gpu, setup: Setup, work: Work, *, warm_image: bool = False) -> Duration:
    """The run's expected seconds; `warm_image` where the image brings the training stack.

    `parts` are all but the training; the start-up is what of them comes before it.
    """
    step_s = speed.optimizer_step(model, gpu, setup, work.rows_per_step, work.tokens_per_row, work.packed)
    before = {name: round(seconds) for name, seconds in _startup(model, gpu, setup, work, warm_image).items()}
    after = {
        "evaluate": round(
            work.evaluations
            * speed.evaluation(model, gpu, setup, work.eval_rows, work.tokens_per_row / work.packed)
        ),
        "save": round(_SAVE_S + 4 * memory.adapter_parameters(model, setup) / PUSH_BYTES_PER_S),
    }  # fmt: skip
    startup, train = sum(before.values()), round(work.steps * step_s)
    return Duration(
        startup_s=startup,
        train_s=train,
        total_s=startup + train + sum(after.values()),
        parts=before | after,
        tokens_per_second=round(work.rows_per_step * work.tokens_per_row / step_s, 1),
        measured=speed.is_measured(gpu, setup),
    )


def timeout(total_s: int) -> int:
    """Seconds until the Job is killed: the expected total with a margin, never under the service's half hour."""
    wanted = max(total_s * TIMEOUT_MARGIN + TIMEOUT_SLACK_S, TIMEOUT_MIN_S)
    return -(-round(wanted) // 300) * 300


def cost(flavor: Flavor, total_s: int, timeout_s: int) -> Cost:
    """Dollars at the flavor's rate, billed by the second.

    The timeout bounds all attempts together: huggingface_hub 2.4.0 calls it the "max duration for the Job", of which an
    attempt is a part. Not tried on the service: if it were per attempt, a run could cost `attempts` times the most.
    """
    return Cost(
        usd_per_hour=flavor.usd_per_hour,
        expected_usd=round(flavor.usd_per_hour * min(total_s, timeout_s) / 3600, 2),
        max_usd=round(flavor.usd_per_hour * timeout_s / 3600, 2),
    )


def download_bytes(model: Model, load_in: str) -> float:
    """Bytes of the weights that a run downloads: of the repo that `Model.loads` names."""
    if model.quantized or model.loads(load_in) != model.repo:
        return float(model.bytes_total or memory.weights(model, "4bit"))
    return float(model.bytes_total or 2 * model.params)


def loading(model: Model, load_in: str, *, on_cpu: bool, warm_image: bool) -> dict[str, float]:
    """Seconds of each part until the model is loaded."""
    weights = download_bytes(model, load_in)
    return {
        "machine": _MACHINE_S + (_WARM_IMAGE_S if warm_image else 0),
        "install": 0 if warm_image else _INSTALL_S,
        "import": _IMPORT_CPU_S if on_cpu else _IMPORT_S,
        "download": weights / DOWNLOAD_BYTES_PER_S,
        "load": _LOAD_S + weights / _LOAD_BYTES_PER_S,
    }


def _startup(model: Model, gpu: Gpu, setup: Setup, work: Work, warm_image: bool) -> dict[str, float]:
    on_cpu = speed.is_cpu(gpu)
    # Pictures are decoded when they are used.
    prepared = work.tokens if setup.modality == "text" else 0
    return loading(model, "16bit" if on_cpu else setup.load_in, on_cpu=on_cpu, warm_image=warm_image) | {
        "data": _DATA_S + prepared / _DATA_TOKENS_PER_S,
        "check": _CHECK_S,
        "compile": 0 if on_cpu else _compile(model, setup),
    }


def _compile(model: Model, setup: Setup) -> float:
    known = _COMPILE_VISION_S if setup.modality == "vision" else _COMPILE_TEXT_S
    return known.get(str(model.family), _COMPILE_OTHERS_S[setup.modality])
