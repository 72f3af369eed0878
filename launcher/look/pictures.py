"""Rows with pictures: counted against their places, opened where Pillow is there, and what they cost in tokens."""

from __future__ import annotations

import math
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from parts.chat import Message, bad_row
from parts.chat_vision import Reader, attached, conversation, images_of, open_picture
from parts.labels import find_mask

from launcher.catalog.vision import VisionTower
from launcher.look.tokenizer import Tokenizer
from launcher.spec import RunSpec

OPENS = find_spec("PIL") is not None
"""Pillow is there."""
# Pictures that are opened, from the first rows on: a few seconds' worth.
MOST_OPENED = 200


class PictureRows:
    """What the vision script makes of a row, but for the pixels.

    `folder` is what paths are relative to, none for a dataset of the Hub. Where the rows `travel` alone to another
    machine, no file that they name is there. Pictures are `opened`, and their `sides` are those of squares as large.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        columns: list[str],
        args: RunSpec,
        tower: VisionTower | None,
        folder: Path | None,
        travels: bool,
    ) -> None:
        self.tokenizer, self._tower, self._folder, self._travels = tokenizer, tower, folder, travels
        self._reader = Reader(tokenizer, columns, args)
        self.shape, self.stop, self.fold = self._reader.shape, self._reader.stop, self._reader.fold
        self.mask = find_mask(tokenizer) if args.train_on == "assistant" else None
        self._longest, self._max_length = args.image_size or 0, args.max_length or 0
        self.opens, self.opened, self.pictures = OPENS, 0, 0
        self.sides = list[int]()

    def messages(self, row: dict[str, Any]) -> list[Message]:
        """The row as messages whose image parts hold their pictures."""
        messages = conversation(row, self.shape, attached(row), self.fold)
        for part in images_of(messages):
            if self._travels and (name := _file(part["image"])):
                hint = "Write the pictures into a parquet file, or give their addresses on the web."
                raise bad_row(row["row_number"], f"only the rows are sent along, and not the file {name[:60]}", hint)
        return messages

    def ids(self, row: dict[str, Any]) -> list[int]:
        """The row as tokens, each picture as its place only."""
        return list(self.tokenizer.apply_chat_template(self.messages(row)))

    def cost(self, row: dict[str, Any]) -> int:
        """Tokens that the row's pictures take beside their places, as far as that is known."""
        sides = [self._side(part["image"], row["row_number"]) for part in images_of(self.messages(row))]
        found = [side for side in sides if side]
        self.pictures += len(sides)
        self.sides += found
        return sum(self._tower.tokens(side) - 1 for side in found) if self._tower else 0

    def labelled(self, ids: list[int]) -> dict[str, Any]:
        """Tokens and labels, cut at the length limit."""
        labels, cut = self.mask.labels(ids) if self.mask else ids, slice(self._max_length)
        return {"input_ids": ids[cut], "labels": labels[cut], "was_cut": len(ids) > self._max_length}

    def _side(self, source: Any, number: int) -> int | None:
        """The side of a square as large as the picture, once it is made as small as it should be; none where it can't
        be seen from here.
        """
        if isinstance(source, dict) and source.get("src"):  # as the dataset viewer shows it
            return self._square(source.get("width"), source.get("height"))
        if not self.opens or self.opened >= MOST_OPENED or _address(source):
            return None
        if self._folder is None and _file(source):
            return None
        self.opened += 1
        picture = open_picture(source, self._folder or Path(), self._longest, number)
        return self._square(picture.width, picture.height)

    def _square(self, width: Any, height: Any) -> int | None:
        if not (isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0):
            return None
        scale = min(1.0, self._longest / max(width, height))
        return max(round(math.sqrt(width * height) * scale), 1)


def _content(source: Any) -> Any:
    """A picture's bytes or the name of where it is, out of the form that `datasets` keeps both in."""
    return source.get("bytes") or source.get("path") if isinstance(source, dict) else source


def _address(source: Any) -> str | None:
    """The address on the web that a picture is at."""
    source = _content(source)
    return source if isinstance(source, str) and re.match(r"(https?|hf|zip|tar|gzip)://", source) else None


def _file(source: Any) -> str | None:
    """The file that a picture is in."""
    source = _content(source)
    return source if isinstance(source, str) and not _address(source) and not source.startswith("data:") else None
