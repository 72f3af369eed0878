"""The stand-ins for the families: they load, and behave as the published models do where training depends on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from uv import find_uv_bin

from launcher import catalog
from tests.unit.look.test_tokenizer import dateless
from tests.unit.parts.test_ollama import run_go

ROOT = Path(__file__).parents[3]
KEPT = ROOT / "tests" / "unit" / "look" / "families.json"
TEXT = (
    "llama-3.1", "llama-3.2", "qwen2.5", "qwen3", "mistral", "phi-4", "gemma-2", "gemma-3", "lfm2", "lfm2.5",
)  # fmt: skip
VISION = ("qwen3-vl", "gemma-3-vision", "llama-3.2-vision", "pixtral")

# Runs in the training stack's environment: builds every family, and prints what was seen of each as a line of JSON.
LOOK = """
import io, json, os, sys
from pathlib import Path

os.environ.update(UNSLOTH_FORCE_CPU="1", UNSLOTH_DISABLE_STATISTICS="1", CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1")
from unsloth.chat_templates import train_on_responses_only

import torch
from families import Row, stored_rows
from family_models import FAMILIES, VISION, build, facts_of, write_text_rows, write_vision_rows
from parts import ollama
from parts.labels import find_mask, marked
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

CHATS = [(None, "a"), ("s", "a"), (None, "a", "b", "c"), ("s", "a", "b", "c", "d", "e")]


def told(reader, sees, folder):
    ollama.write_modelfile(folder, ["m.F16.gguf"], {}, ollama.chat_form(reader, sees))
    template = folder / "template"
    return {
        "modelfile": (folder / "Modelfile").read_text(),
        "stops": json.loads((folder / "params").read_text())["stop"],
        "template": template.read_text() if template.is_file() else None,
        "prompts": [[*chat, ollama.prompt_of(reader, sees, *chat)] for chat in CHATS],
    }


root = Path(sys.argv[1])
for name, family in FAMILIES.items():
    folder = build(name, root / name, tiny=True)
    vision = name in VISION
    write = write_vision_rows if vision else write_text_rows
    rows = stored_rows(write(root / name / "rows", system=family.system), "vision" if vision else "text", "train")
    reader = (AutoProcessor if vision else AutoTokenizer).from_pretrained(folder)
    tokenizer = getattr(reader, "tokenizer", reader)
    facts = facts_of(name)
    looked = [Row(row, reader, facts["end_of_turn"]) for row in rows]
    mask = train_on_responses_only(None, tokenizer=reader, return_function=True)
    labels = mask({"input_ids": [row.ids for row in looked]})["labels"]
    ours = find_mask(reader)({"input_ids": [row.ids for row in looked]})["labels"]
    # What tests/unit/look/families.json keeps of it.
    shown = [marked(tokenizer, row.ids, own) for row, own in zip(looked, labels)][1:4]
    trained = [[label != -100 for label in row] for row in labels]
    model = (AutoModelForImageTextToText if vision else AutoModelForCausalLM).from_pretrained(folder)
    if vision:
        inputs = reader(text=[looked[1].text], images=[looked[1].images], return_tensors="pt", add_special_tokens=False)
    else:
        inputs = {"input_ids": torch.tensor([looked[0].ids])}
    with torch.no_grad():
        loss = model(**inputs, labels=inputs["input_ids"]).loss
    print("SEEN " + json.dumps({
        "family": name, "model": type(model).__name__, "reader": type(reader).__name__, "loss": loss.item(),
        "bos": tokenizer.bos_token, "eos": tokenizer.eos_token, "pad": tokenizer.pad_token,
        "adds_bos": tokenizer("a").input_ids[0] == tokenizer.bos_token_id, "images": len(looked[1].images),
        "answer": tokenizer.decode([id for id, said in zip(looked[0].ids, looked[0].said) if said]),
        "expected": [[a or b for a, b in zip(row.said, row.between)] == got or row.said == got
                     for row, got in zip(looked, trained)],
        "masks": [row != other for row, other in zip(ours, labels)].count(True),
        "look": {"template": family.template(), "marked": shown},
        "same_text": tokenizer.decode(looked[0].ids) == looked[0].text, "text": looked[0].text,
        "ollama": told(reader, vision, folder),
    }), flush=True)
"""


# One process for all of them.
pytestmark = pytest.mark.xdist_group("families")


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the training stack sees of each family, in the environment of the committed script."""
    script = ROOT / "job_scripts" / "sft_text.py"
    uv = find_uv_bin()
    subprocess.run([uv, "sync", "--quiet", "--script", script], check=True)
    found = subprocess.run([uv, "python", "find", "--script", script], check=True, capture_output=True, text=True)
    look = tmp_path_factory.mktemp("look") / "look.py"
    look.write_text(LOOK, encoding="utf-8")
    run = subprocess.run(
        [found.stdout.strip(), look, tmp_path_factory.mktemp("families")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "bench"), str(ROOT / "templates")])},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    lines = [json.loads(line[5:]) for line in run.stdout.splitlines() if line.startswith("SEEN ")]
    return {line["family"]: line for line in lines}


@pytest.mark.slow
@pytest.mark.parametrize("family", TEXT + VISION)
def test_a_family_is_itself(seen: dict[str, dict[str, Any]], family: str) -> None:
    look = seen[family]
    assert 0 < look["loss"] < 20
    assert look["same_text"]
    assert look["pad"] not in (None, look["eos"], look["bos"])
    # Where text begins with a token, the tokenizer adds it too: the template's must not become a second one.
    assert look["adds_bos"] == (look["bos"] is not None and family != "phi-4")
    assert look["text"].count(look["bos"] or "<none>") == (1 if look["adds_bos"] else 0)


@pytest.mark.slow
@pytest.mark.parametrize("family", TEXT + VISION)
def test_an_answer_ends_with_the_catalogs_end_of_turn(seen: dict[str, dict[str, Any]], family: str) -> None:
    known = catalog.load().families
    end = known[family.removesuffix("-vision") if family not in known else family].end_of_turn
    assert seen[family]["answer"].count(end) in (1, 2)
    assert seen[family]["answer"].endswith(end)


@pytest.mark.slow
@pytest.mark.parametrize("family", TEXT + VISION)
def test_unsloth_finds_the_answers_that_were_counted_here(seen: dict[str, dict[str, Any]], family: str) -> None:
    assert all(seen[family]["expected"])
    # The scripts' own mask is Unsloth's, and what tests/unit/look compares with is what came of it.
    assert seen[family]["masks"] == 0
    kept = json.loads(KEPT.read_text(encoding="utf-8")).get(family)
    if kept:
        assert seen[family]["look"]["template"] == kept["template"]
    if family in TEXT:
        assert list(map(dateless, seen[family]["look"]["marked"])) == list(map(dateless, kept["marked"]))


@pytest.mark.slow
@pytest.mark.parametrize("family", TEXT + VISION)
def test_ollama_gets_the_familys_prompts_and_the_token_that_ends_an_answer(
    seen: dict[str, dict[str, Any]], family: str
) -> None:
    look, known = seen[family]["ollama"], catalog.load().families
    assert known[family.removesuffix("-vision") if family not in known else family].end_of_turn in look["stops"]
    assert look["modelfile"].startswith("FROM ./m.F16.gguf\n")
    for stop in look["stops"]:
        assert f'PARAMETER stop "{stop}"\n' in look["modelfile"]
    assert f'TEMPLATE """{look["template"]}"""' in look["modelfile"]
    for system, *turns, prompt in look["prompts"]:
        # Ollama puts the token that begins a text there itself.
        bos = seen[family]["bos"] if seen[family]["adds_bos"] else ""
        assert bos + run_go(look["template"], system, *turns) == prompt


@pytest.mark.slow
@pytest.mark.parametrize("family", VISION)
def test_a_vision_family_takes_two_pictures(seen: dict[str, dict[str, Any]], family: str) -> None:
    assert seen[family]["reader"].endswith("Processor")
    assert seen[family]["images"] == 2


def test_every_promised_family_has_a_stand_in() -> None:
    sys.path.insert(0, str(ROOT / "bench"))
    try:
        import family_models
    finally:
        sys.path.pop(0)
    assert family_models.TEXT == TEXT
    assert family_models.VISION == VISION
    known = catalog.load().models
    for family in family_models.FAMILIES.values():
        assert (known[family.model].vision is not None) >= (family.processor is not None)


def test_the_rows_have_what_masking_must_cope_with() -> None:
    sys.path.insert(0, str(ROOT / "bench"))
    try:
        import family_models
    finally:
        sys.path.pop(0)
    rows = family_models.text_rows()
    assert len(rows) == 64
    roles = ["".join(turn["role"][0] for turn in row["messages"]) for row in rows]
    assert {"ua", "uaua", "sua", "suaua"} == set(roles)
    assert family_models.text_rows(held_out=True)[1] in rows
