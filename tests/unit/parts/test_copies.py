"""Copies before and after they are made: their disk, their names, their places, their cards, and the last words."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from parts import adapter, copies, copy_cards
from parts.copies import Copy
from parts.say import UserError


@pytest.mark.parametrize(
    ("merge", "gguf", "total"),
    [
        (None, (), 0),
        ("16bit", (), 16),
        ("4bit", (), 6.4),
        # The copy to convert, and the file.
        (None, ("f16",), 16 + 16),
        ("16bit", ("f16",), 16 + 16),
        ("4bit", ("f16",), 6.4 + 16 + 16),
        # And the file to quantise.
        (None, ("q8_0",), 16 + 8.6),
        (None, ("q4_k_m",), 16 + 16 + 5.1),
    ],
)
def test_the_disk_that_copies_need(merge: str | None, gguf: tuple[str, ...], total: float) -> None:
    parts = copies.copy_bytes(copies.asked_copies(merge, gguf), 16.0)
    assert sum(parts.values()) == pytest.approx(total)


def test_a_models_size_is_that_of_its_weights_in_16_bits(tmp_path: Path) -> None:
    for name, size in (("model-00001-of-00002.safetensors", 60), ("model-00002-of-00002.safetensors", 40),
                       ("model.safetensors.index.json", 7), ("consolidated.safetensors", 100)):  # fmt: skip
        (tmp_path / name).write_bytes(bytes(size))
    assert adapter.model_bytes(str(tmp_path), None, {"dtype": "bfloat16"}) == 100
    assert adapter.model_bytes(str(tmp_path), None, {"text_config": {"torch_dtype": "float32"}}) == 50


def make_base(folder: Path, **config: object) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(folder)


def make_adapter(folder: Path, base: str, **record: object) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}), encoding="utf-8")
    if record:
        (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("record", "modality", "sees"),
    [
        (None, None, True),
        ("text", None, False),
        ("vision", None, True),
        (None, "text", False),
        ("text", "vision", True),
    ],
)
def test_the_record_says_whether_a_model_that_can_see_was_shown_pictures(
    record: str | None, modality: str | None, sees: bool, tmp_path: Path
) -> None:
    base = make_base(tmp_path / "base", vision_config={})
    folder = make_adapter(tmp_path / "mine", base, **({"plan": {"modality": record}} if record else {}))
    assert adapter.find_base(folder, None, None, modality, False, True).sees == sees


def test_a_base_that_is_not_here_and_one_that_sees_nothing_are_refused(tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "mine", str(tmp_path / "gone"))
    with pytest.raises(UserError, match="which is not here") as error:
        adapter.find_base(folder, None, None, None, False, True)
    assert "--model" in error.value.paragraph
    blind = make_base(tmp_path / "blind")
    with pytest.raises(UserError, match="sees no pictures"):
        adapter.find_base(folder, blind, None, "vision", False, True)
    assert not adapter.find_base(None, blind, None, None, False, True).sees
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"No such file .*config\.json") as error:
        adapter.find_base(None, str(tmp_path / "empty"), None, None, False, True)
    assert error.value.status == 3


def test_packed_weights_in_a_folder_have_no_original(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(UserError, match="its 16-bit original") as error:
        adapter.find_base(None, base, None, None, False, True)
    assert error.value.status == 2
    # It is what a 4-bit copy is made of.
    assert adapter.find_base(None, base, None, None, False, False).whole == base


@pytest.mark.parametrize(
    ("name", "card", "exist", "whole"),
    [
        ("unsloth/M-unsloth-bnb-4bit", None, {"unsloth/M"}, "unsloth/M"),
        ("unsloth/M-bnb-4bit", ["maker/M-hf"], {"maker/M-hf"}, "maker/M-hf"),
        ("unsloth/M-bnb-4bit", "maker/M", {"unsloth/M", "maker/M"}, "unsloth/M"),
        # It may lie in the cache all the same.
        ("unsloth/M-bnb-4bit", None, set(), "unsloth/M"),
    ],
)
def test_the_16_bit_original_is_called_like_its_4_bit_upload_or_as_that_ones_card_says(
    name: str, card: object, exist: set[str], whole: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def model_info(self: object, asked: str, **_: object) -> SimpleNamespace:
        if asked == name:
            return SimpleNamespace(card_data=SimpleNamespace(base_model=card))
        if asked in exist:
            return SimpleNamespace(sha="c" * 40)
        error = OSError("not found")
        error.response = SimpleNamespace(status_code=404, headers={})  # type: ignore[attr-defined]
        raise error

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    assert adapter.find_whole(name) == (whole, "c" * 40 if exist else None)


def test_a_copy_appears_whole_in_the_place_of_an_older_one(tmp_path: Path) -> None:
    for name in ("new", "place"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.safetensors").touch()
    copies.land(tmp_path / "new", tmp_path / "place")
    assert [path.name for path in (tmp_path / "place").iterdir()] == ["new.safetensors"]
    (tmp_path / "a.gguf").write_bytes(b"1")
    copies.land(tmp_path / "a.gguf", tmp_path / "b.gguf", keep=True)
    assert (tmp_path / "b.gguf").read_bytes() == (tmp_path / "a.gguf").read_bytes() == b"1"
    assert {path.name for path in tmp_path.iterdir()} == {"place", "a.gguf", "b.gguf"}


@pytest.mark.parametrize(("in_bucket", "all_pushed", "beside"), [(0, 0, 1), (0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_what_is_not_pushed_is_put_where_it_outlives_the_job(
    in_bucket: int, all_pushed: int, beside: int, tmp_path: Path
) -> None:
    place, work = copies.open_places(tmp_path / "output", bool(in_bucket), bool(all_pushed))
    assert (place == tmp_path / "output") == bool(beside)
    # A bucket behind a file system is no place to work in.
    assert work.is_relative_to(tmp_path / "output") == (not in_bucket)


@pytest.mark.parametrize(
    ("name", "called"), [("me/houses", "houses"), ("me/x.gguf", "x"), ("me/h-GGUF", "h-GGUF"), ("a run", "a-run")]
)
def test_a_gguf_file_is_called_as_its_repo(name: str, called: str) -> None:
    assert copies.gguf_stem(name) == called


def test_the_last_words_say_how_to_try_again() -> None:
    asked = copies.asked_copies("16bit", ("f16", "q4_k_m", "f16"))
    assert [(copy.kind, copy.name, copy.error) for copy in asked] == [
        ("merged", "16bit", "not made"), ("gguf", "f16", "not made"), ("gguf", "q4_k_m", "not made"),
    ]  # fmt: skip
    error = copies.failed_copies(asked, "me/model", "me/merged")
    assert error is not None
    assert error.paragraph.endswith("--merge 16bit --gguf f16 --gguf q4_k_m --merged-repo me/merged")
    for copy in asked:
        copy.error = None
    assert copies.failed_copies(asked, "me/model", None) is None
    asked[2].error = "no such type"
    error = copies.failed_copies(asked, "me/model", "me/merged")
    assert error is not None
    assert "gguf q4_k_m: no such type" in error.paragraph
    assert error.paragraph.endswith("launch export me/model --gguf q4_k_m")


ORIGIN = copy_cards.Origin("me/model", "org/base", None, "chat", trust_remote_code=False, run_name="m")


def test_a_card_tells_of_copies_once() -> None:
    text = "# m\n\n## How to use it\n\n### Unsloth\n\n```python\nx\n```\n\n## To run it again\n\nso\n"
    made = [Copy("gguf", "f16", "m.F16.gguf", None, 1, "so", None), Copy("gguf", "q8_0")]
    for _ in range(2):
        text = copy_cards.amend_card(text, ORIGIN, None, made)
    assert text.count("### llama.cpp") == text.count("### Unsloth") == text.count("-m m.F16.gguf") == 1
    assert text.count("## Copies") == text.count("| `m.F16.gguf` | 1.00 GiB, so |") == 1
    assert "q8_0" not in text
    assert text.index("### llama.cpp") < text.index("## To run it again")


def test_a_file_that_llama_cpp_would_not_find_by_its_type_is_called_by_its_name() -> None:
    files = [Copy("gguf", kind, f"m.{kind.upper()}.gguf", "me/m", 1, "", None) for kind in ("bf16", "f16")]
    assert [copy_cards.called(file, files, False) for file in files] == ["-hf me/m:BF16", "-hf me/m -hff m.F16.gguf"]
    [here] = [Copy("gguf", "q8_0", "m y.Q8_0.gguf", None, 1, "", None)]
    assert copy_cards.called(here, [here], True) == "-m 'm y.Q8_0.gguf' --mmproj 'm y.F16-mmproj.gguf'"


@pytest.mark.parametrize(
    ("ask", "asks"), [("chat", "apply_chat_template"), ("picture", "picture.jpg"), ("text", "Once")]
)
def test_a_merged_copy_is_used_as_its_model_is_asked(ask: str, asks: str) -> None:
    origin = copy_cards.Origin("me/model", "org/base", None, ask, trust_remote_code=True, run_name="m")
    [(name, _, text)] = copy_cards.usage(origin, "me/m", [Copy("merged", "4bit", "merged", "me/m", 1, "", None)])
    assert name == "Merged, 4bit"
    assert asks in text
    assert "accelerate bitsandbytes" in text
    assert "trust_remote_code=True" in text
    assert """snapshot_download('me/m', allow_patterns="merged/*") + "/merged\"""" in text
    compile(text, "snippet", "exec")
