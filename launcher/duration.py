"""Seconds and dollars of a run, as pure functions.

Deliberately simple: training is FLOPs over an assumed share of the card's published peak; start-up is a fixed part
plus the download. Source of the FLOPs: 2 per weight and token forward, 2 for the gradient of the activations, and 2
more for recomputing the forward pass under checkpointing (Kaplan et al., arXiv 2001.08361; frozen weights have no
gradient of their own).
"""

from __future__ import annotations

from launcher.catalog import Flavor, Gpu, Model
from launcher.plan import Cost, Duration

_FLOPS_PER_WEIGHT = 6
_ACHIEVED_SHARE = 0.30
# The container, the installation, imports, the first step's compilation.
_FIXED_STARTUP_S = 240
_DOWNLOAD_BYTES_PER_S = 100e6

TIMEOUT_MARGIN = 1.5
TIMEOUT_SLACK_S = 600
TIMEOUT_MIN_S = 1800


def tokens_per_second(model: Model, gpu: Gpu) -> float:
    """Tokens a card is expected to train on per second."""
    return gpu.bf16_tflops * 1e12 * _ACHIEVED_SHARE / (_FLOPS_PER_WEIGHT * model.arch.active_linear_parameters())


def expected(model: Model, gpu: Gpu, tokens: int, load_in: str) -> Duration:
    """The run's expected seconds for that many training tokens."""
    download = model.params * (0.65 if load_in == "4bit" else 2) / _DOWNLOAD_BYTES_PER_S
    startup = round(_FIXED_STARTUP_S + download)
    train = round(tokens / tokens_per_second(model, gpu))
    return Duration(startup_s=startup, train_s=train, total_s=startup + train)


def timeout(total_s: int) -> int:
    """Seconds until the Job is killed: the expected total with a margin, never under the service's half hour."""
    wanted = max(total_s * TIMEOUT_MARGIN + TIMEOUT_SLACK_S, TIMEOUT_MIN_S)
    return -(-round(wanted) // 300) * 300


def cost(flavor: Flavor, total_s: int, timeout_s: int) -> Cost:
    """Dollars at the flavor's rate, billed by the second."""
    return Cost(
        usd_per_hour=flavor.usd_per_hour,
        expected_usd=round(flavor.usd_per_hour * total_s / 3600, 2),
        max_usd=round(flavor.usd_per_hour * timeout_s / 3600, 2),
    )
