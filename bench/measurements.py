"""The peak memory of real runs, `measurements.csv`: what the formula in `memory` is held to."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

from launcher.catalog import Model
from launcher.estimate import memory
from launcher.estimate.setup import Setup


def _empty_is_none(value: object) -> object:
    return None if value == "" else value


_Number = Annotated[float | None, BeforeValidator(_empty_is_none)]
_Count = Annotated[int | None, BeforeValidator(_empty_is_none)]


class Measurement(BaseModel):
    """One run: what decides its memory, the card, and torch's peak allocated memory in GiB.

    `held_out` rows were kept from whoever fitted the formula. `source` names the command.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    modality: Literal["text", "vision"]
    engine: Literal["unsloth", "trl"]
    load_in: Literal["4bit", "16bit"]
    batch_size: int
    max_length: int
    lora_r: int
    image_size: _Count
    images: _Count
    optim: str
    finetune_vision_layers: bool
    eval_batch_size: int
    card: str
    card_gib: float
    peak_gib: float
    eval_peak_gib: _Number
    step_s: _Number
    tokens_per_step: _Number
    versions: str
    date: str
    held_out: bool
    source: str

    @property
    def setup(self) -> Setup:
        """What `memory.footprint` takes."""
        return Setup(
            self.load_in, self.engine, self.max_length, self.batch_size, self.lora_r, modality=self.modality,
            image_size=self.image_size, images=self.images or 1, optim=self.optim,
            eval_batch_size=self.eval_batch_size, finetune_vision_layers=self.finetune_vision_layers,
        )  # fmt: skip

    def error(self, model: Model) -> float:
        """The formula's error as a share of what was seen; below 0 where it said too little.

        The runs quantised 16-bit weights while they loaded, so `model` is none that is stored in 4 bits.
        """
        return memory.footprint(model, self.setup).peak / self.peak_gib - 1


def load() -> tuple[Measurement, ...]:
    """Every row; raises `pydantic.ValidationError` for one that is not of the form."""
    text = Path(__file__).with_name("measurements.csv").read_text(encoding="utf-8")
    return tuple(Measurement.model_validate(row) for row in csv.DictReader(text.splitlines()))
