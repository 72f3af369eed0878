"""The weights' size is read from safetensors: from the headers of a folder's files, or from what the Hub counts."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from launcher import catalog
from launcher.catalog import tensors
from launcher.errors import RequestError
from launcher.hub import client, repos
from tests.emulator import Hub
from tests.unit.catalog.test_config import config

TABLES = catalog.load()
BYTES = {"F32": 4, "BF16": 2, "F16": 2, "U8": 1}
FOUR_BITS = {"quant_method": "bitsandbytes", "load_in_4bit": True, "llm_int8_skip_modules": ["lm_head"]}


def safetensors(tensors: dict[str, tuple[str, list[int]]]) -> bytes:
    """A file with these tensors, all zero."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        size = BYTES[dtype]
        for side in shape:
            size *= side
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end)


PLAIN = safetensors({"embed.weight": ("BF16", [100, 64]), "q.weight": ("BF16", [64, 64]), "scale": ("F32", [64])})
# One linear layer of 64 x 64 in 4 bits: two weights a byte, a byte of scale for 64, and their scales' own.
PACKED = safetensors({
    "embed.weight": ("BF16", [100, 64]), "q.weight": ("U8", [2048, 1]), "q.weight.absmax": ("U8", [64]),
    "q.weight.nested_absmax": ("F32", [1]), "q.weight.quant_map": ("F32", [16]),
})  # fmt: skip


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub(tmp_path / "hub") as server:
        for name, value in server.env().items():
            monkeypatch.setenv(name, value)
        yield server


def folder(tmp_path: Path, values: dict[str, Any], *files: bytes) -> Path:
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text(json.dumps(values))
    for number, content in enumerate(files):
        (made / f"model-{number + 1:05}-of-{len(files):05}.safetensors").write_bytes(content)
    return made


def test_a_folder_s_weights_make_its_size_exact(tmp_path: Path) -> None:
    made = folder(tmp_path, config("llama"), PLAIN, PLAIN)
    model = TABLES.model(str(made))
    assert model.params == 2 * (6400 + 4096 + 64)
    assert model.bytes_total == 2 * (12800 + 8192 + 256)
    assert (model.quantized, model.bytes_4bit) == (None, None)


def test_a_four_bit_folder_says_what_it_takes_as_it_is(tmp_path: Path) -> None:
    model = TABLES.model(str(folder(tmp_path, config("llama", quantization_config=FOUR_BITS), PACKED)))
    assert model.quantized == "bnb-4bit"
    assert model.params == 6400 + 4096
    assert model.bytes_4bit == model.bytes_total == 12800 + 2048 + 64 + 17 * 4


def test_a_folder_without_weights_is_planned_from_its_config(tmp_path: Path) -> None:
    model = TABLES.model(str(folder(tmp_path, config("llama"))))
    assert model.params == pytest.approx(1235814400, rel=0.001)
    assert model.bytes_total is None


@pytest.mark.parametrize("content", [b"", b"\x00", struct.pack("<Q", 2**40), struct.pack("<Q", 4) + b"{no}"])
def test_a_broken_file_is_named(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(RequestError, match=r"00001\.safetensors can't be read"):
        TABLES.model(str(folder(tmp_path, config("llama"), content)))


def test_a_diffusion_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(RequestError, match="diffusion"):
        TABLES.model(str(tmp_path))


def test_a_known_upload_is_counted_to_a_thousandth() -> None:
    """Mistral 7B in plain 4-bit, as the Hub would count its tensors: 4.138 GB."""
    arch = TABLES.models["mistral-7b"].arch
    linear, rest = arch.linear_parameters(), TABLES.models["mistral-7b"].params - arch.linear_parameters()
    counted = {"U8": linear // 2 + linear // 64, "F32": linear // (64 * 256), "BF16": rest}
    weights = tensors.count(counted, four_bits=True)
    assert weights.parameters == pytest.approx(7248023552, rel=1e-6)
    assert weights.loaded_bytes == weights.bytes_total == pytest.approx(4138270819, rel=1e-3)


def test_sixteen_bits_are_what_other_floats_become() -> None:
    weights = tensors.count({"F32": 1000}, four_bits=False)
    assert (weights.parameters, weights.bytes_total, weights.loaded_bytes) == (1000, 4000, 2000)


def test_the_hub_is_asked_for_the_size_of_any_other_model(hub: Hub) -> None:
    values = config("llama", quantization_config=FOUR_BITS)
    hub.add_repo("lab/packed", files={"config.json": json.dumps(values), "model.safetensors": PACKED})
    asked = client.Hub()
    model = TABLES.model("lab/packed", None, partial(repos.config, asked), partial(repos.weights, asked))
    assert (model.quantized, model.params, model.bytes_4bit) == ("bnb-4bit", 6400 + 4096, 12800 + 2048 + 64 + 17 * 4)
    assert model.notes == ()


def test_a_size_that_can_t_be_looked_up_is_said(hub: Hub) -> None:
    hub.add_repo("lab/old", files={"config.json": json.dumps(config("llama")), "pytorch_model.bin": b"x"})
    asked = client.Hub()
    model = TABLES.model("lab/old", None, partial(repos.config, asked), partial(repos.weights, asked))
    assert model.params == pytest.approx(1235814400, rel=0.001)
    assert any("the Hub does not say" in note for note in model.notes)
    assert repos.weights(asked, "lab/none", None, False) is None


def test_gguf_files_alone_can_t_be_trained(hub: Hub) -> None:
    hub.add_repo("lab/llama-cpp", files={"config.json": "{}", "model-Q4_K_M.gguf": b"x"})
    with pytest.raises(RequestError, match="GGUF"):
        repos.weights(client.Hub(), "lab/llama-cpp", None, False)


@pytest.mark.parametrize("model", [m for m in TABLES.models.values() if m.bytes_4bit], ids=lambda model: model.alias)
def test_a_known_four_bit_upload_is_larger_than_plain_and_smaller_than_sixteen_bits(model: catalog.Model) -> None:
    """Nothing but the language model's linear layers, or the tower's too where an upload is old, is in 4 bits."""
    assert model.repo_4bit
    packed = model.arch.linear_parameters() + (model.vision.params if model.vision else 0)
    assert model.bytes_4bit
    assert packed * 0.516 + 2 * (model.params - packed) < model.bytes_4bit * 1.001 < 2 * model.params
