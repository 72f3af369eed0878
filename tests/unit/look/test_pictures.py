"""Rows with pictures: counted against their places, opened, and what they cost in tokens."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from launcher import api
from launcher.look import pictures
from launcher.look.report import Look
from tests.unit.look.test_report import CONFIGS
from tests.unit.look.test_tokenizer import tokenizer

Looks = Callable[..., Look]
SAID = [{"role": "user", "content": "What is this?"}, {"role": "assistant", "content": "A square."}]


def png(width: int = 320, height: int = 320) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, "PNG")
    return buffer.getvalue()


def uri(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer("qwen3-vl", folder)
    shutil.copyfile(CONFIGS / "qwen3_vl.json", folder / "config.json")
    return folder


@pytest.fixture
def looks(model: Path, tmp_path: Path) -> Looks:
    def write_and_look(*rows: dict[str, Any], **options: Any) -> Look:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return api.look(api.plan(model=str(model), modality="vision", dataset=str(path), **options))

    return write_and_look


def test_pictures_are_opened_and_cost_tokens(looks: Looks) -> None:
    without, with_one = looks({"messages": SAID}), looks({"images": [uri(png())], "messages": SAID})
    assert (with_one.pictures, with_one.sides, with_one.bad) == (1, (320,), ())
    assert with_one.columns["images"] == "the pictures, in their places"
    # A hundred for the picture, and one on either side of it.
    assert with_one.lengths[0] - without.lengths[0] == 102
    assert "no row that was looked at has a picture" in without.notes[0]
    assert "A square.<|im_end|>⟧" in with_one.example


def test_a_larger_picture_is_made_smaller_first(looks: Looks) -> None:
    found = looks({"image": uri(png(2000, 1000)), "messages": SAID}, image_size=448)
    assert found.sides == (317,)


@pytest.mark.parametrize(
    ("images", "says"),
    [
        ([uri(png()[:60])], "an image can't be read"),
        ([uri(b"<svg/>")], "it is no picture"),
        (["data:image/png;base64,?"], "base64"),
        ([None], "it is empty"),
        ([uri(png())] * 2, "2 images for 1 placeholders"),
        (["beside.png"], "only the rows are sent along, and not the file beside.png"),
    ],
)
def test_a_picture_that_can_not_be_shown_is_refused_with_its_row(looks: Looks, images: list[Any], says: str) -> None:
    asked = [{"role": "user", "content": "<image>What is this?"}, SAID[1]]
    good, bad = ({"images": shown, "messages": asked} for shown in ([uri(png())], images))
    found = looks(good, bad, num_train_epochs=1, dataset_rows=2)
    assert found.refusal.startswith("row 1 (line 2): ")
    assert says in found.refusal


def test_what_is_on_the_web_is_not_fetched(looks: Looks) -> None:
    found = looks({"images": ["https://example.org/a.png"], "messages": SAID})
    assert (found.pictures, found.sides, found.refusal) == (1, (), "")
    assert "were not opened" in found.notes[0]


def test_without_pillow_they_are_counted(looks: Looks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "OPENS", False)
    found = looks({"images": [uri(b"?")], "messages": SAID})
    assert (found.pictures, found.sides, found.refusal) == (1, (), "")
    assert "pip install pillow" in found.notes[0]
