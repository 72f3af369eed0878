"""Rows with pictures, through the rendered script's own functions and the real Unsloth, for every vision family.

Nothing is trained: Unsloth can't on a CPU. What the trainer would get is compared with a count from the chat template.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.faults.trainings import Trainings

ROOT = Path(__file__).parents[2]
FAMILIES = ["qwen3-vl", "gemma-3-vision", "llama-3.2-vision", "pixtral"]
WAYS = ("parts", "texts", "bytes", "paths", "one column", "inside", "some without")

Seen = list[dict[str, Any]]


@pytest.fixture(scope="module")
def all_seen(request: pytest.FixtureRequest, trainings: Trainings, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """What vision_probe.py saw of the families whose tests are run now."""
    items = [item for item in request.session.items if item.path == request.path and isinstance(item, pytest.Function)]
    asked = {item.callspec.params.get("family", "qwen3-vl") for item in items if hasattr(item, "callspec")}
    names = [name for name in FAMILIES if name in asked]
    probe = Path(__file__).with_name("vision_probe.py")
    root = tmp_path_factory.mktemp("vision")
    run = trainings.run_script(probe, root, root, *names, env={"PYTHONPATH": str(ROOT / "bench")})
    assert run.code == 0, run.log[-3000:] + run.error[-3000:]
    return [json.loads(line[5:]) for line in run.log.splitlines() if line.startswith("SEEN ")]


@pytest.fixture
def seen(all_seen: Seen, family: str) -> Seen:
    return [look for look in all_seen if look["family"] == family]


def check_batches(look: dict[str, Any]) -> None:
    """The labels are the assistant's tokens, all of them and no others, and every picture is there."""
    assert look["trained"] == look["said"]
    assert look["differ"] == 0
    assert look["wrong_labels"] == 0
    assert look["never_trained"] == 0
    assert look["ends"] == look["answers"] > 8
    assert look["pictures"] == look["shown"] >= 8
    assert look["not_finite"] == 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", WAYS)
def test_the_labels_are_the_assistants_tokens(seen: Seen, way: str) -> None:
    mapped, streamed = (look for look in seen if look["way"] == way)
    for look in (mapped, streamed):
        assert sorted(look["numbers"]) == list(range(8))
        check_batches(look)
    assert (mapped["mode"], streamed["mode"]) == ("mapped", "streamed")
    assert mapped["trained"] == streamed["trained"]


@pytest.mark.parametrize("family", FAMILIES)
def test_system_messages_are_folded_where_the_template_takes_none(seen: Seen, family: str) -> None:
    (facts,) = (look for look in seen if look["way"] == "facts")
    assert facts["system"] == (family != "llama-3.2-vision")
    assert facts["stop"] == facts["end"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_of_a_stream_is_held_out(seen: Seen) -> None:
    (head,) = (look for look in seen if look["way"] == "head")
    assert head["held_out"] == [0, 1]
    assert head["train"] == [2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_that_are_too_long_are_shrunk(seen: Seen, family: str) -> None:
    fits, never = (look for look in seen if look["way"] == "long")
    assert fits["length"] <= 300
    assert fits["pictures"] == 2
    assert fits["trained"] == 19
    # One token a picture, a fixed number of them, or as many as fit after shrinking: always whole pictures.
    assert fits["image_tokens"] == {"llama-3.2-vision": 2, "gemma-3-vision": 32}.get(family, 200)
    if family == "llama-3.2-vision":
        # Its pictures take one token each, so only the text is cut; check_labels refuses to train on nothing.
        assert never["trained"] == 0
    else:
        assert never["error"].startswith("rows 0: ")
        assert never["error"].endswith("Raise --max-length or lower --image-size.")


@pytest.mark.parametrize("mode", ["mapped", "streamed"])
@pytest.mark.parametrize(
    ("case", "written", "says"),
    [
        ("placeholders", "parts", "row 1: 2 images for 1 placeholders."),
        ("unreadable", "parts", "row 1: an image can't be read (it is no picture"),
        ("unreadable", "bytes", "row 1: an image can't be read (it is no picture"),
        ("unreadable", "inside", "row 1: an image can't be read (it is no picture"),
        ("missing", "paths", "row 1: an image can't be read ([Errno 2] No such file"),
    ],
)
def test_a_bad_row_is_named(all_seen: Seen, mode: str, case: str, written: str, says: str) -> None:
    looked = {(look["case"], look["written"], look["mode"]): look for look in all_seen if look["way"] == "bad"}
    look = looked[case, written, mode]
    assert look["error"] is not None
    assert look["kind"] == "UserError", look["error"]
    assert look["error"].startswith(says)


@pytest.mark.parametrize("family", [pytest.param("gemma-3-vision", marks=pytest.mark.slow)])
def test_a_base_model_gets_its_familys_template(seen: Seen) -> None:
    (given,) = (look for look in seen if look["way"] == "template")
    (base,) = (look for look in seen if look["way"] == "base")
    assert given["given"]
    assert given["system"]
    check_batches(base)
