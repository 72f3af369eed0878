"""llama.cpp before anything is made: which is used, what it lacks, what it converts, and what is fetched."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from parts import llama_cpp
from parts.say import UserError

from launcher.estimate import copies as estimated

TYPES = ("f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k")


def make_folder(folder: Path, *programs: str) -> Path:
    """A folder that looks like llama.cpp's."""
    (folder / "gguf-py" / "gguf").mkdir(parents=True)
    (folder / "gguf-py" / "gguf" / "gguf_reader.py").touch()
    (folder / "convert_hf_to_gguf.py").touch()
    (folder / "build" / "bin").mkdir(parents=True)
    for name in programs:
        program = folder / "build" / "bin" / name
        program.write_text(f"#!/bin/sh\necho usage: {name} >&2\nexit 1\n", encoding="utf-8")
        program.chmod(0o755)
    return folder


def test_the_plan_and_the_script_have_the_same_facts() -> None:
    assert llama_cpp.GGUF_BITS == estimated.GGUF_BITS
    assert llama_cpp.CONVERTED == estimated.CONVERTED


def test_a_named_llama_cpp_is_used_where_it_can_make_what_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare, built = make_folder(tmp_path / "bare"), make_folder(tmp_path / "built", "llama-quantize")
    monkeypatch.setenv("UNSLOTH_AUTO_INSTALL", "1")
    for folder, types in ((bare, ("f16", "q8_0")), (built, TYPES)):
        monkeypatch.setenv("UNSLOTH_LLAMA_CPP_PATH", str(folder))
        assert llama_cpp.get_llama_cpp(types) == folder
    # Unsloth installs nothing of its own then.
    assert os.environ["UNSLOTH_AUTO_INSTALL"] == "0"
    monkeypatch.setenv("UNSLOTH_LLAMA_CPP_PATH", str(bare))
    with pytest.raises(UserError, match="it has no llama-quantize that runs") as error:
        llama_cpp.get_llama_cpp(("f16", "q4_k_m"))
    assert error.value.status == 3
    assert f"UNSLOTH_LLAMA_CPP_PATH={bare}" in error.value.paragraph


@pytest.mark.parametrize(("lost", "says"), [("convert_hf_to_gguf.py", "it has no convert_hf"), ("", "no such folder")])
def test_a_named_llama_cpp_that_lacks_something_is_refused(
    lost: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path / "llama.cpp")
    (folder / lost).unlink() if lost else folder.rename(tmp_path / "elsewhere")
    monkeypatch.setenv("UNSLOTH_LLAMA_CPP_PATH", str(folder))
    with pytest.raises(UserError, match=says) as error:
        llama_cpp.get_llama_cpp(("f16",))
    assert error.value.status == 3


def test_what_was_built_without_an_answerer_is_made_anew_where_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("UNSLOTH_LLAMA_CPP_PATH", "UNSLOTH_AUTO_INSTALL", "UNSLOTH_LLAMA_CPP_OFFLINE"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    cache = make_folder(tmp_path / "launch" / "llama.cpp-0.3.36", "llama-quantize")

    def make(folder: Path, build: bool = True) -> None:
        for name in llama_cpp.PROGRAMS:
            (folder / name).write_text("#!/bin/sh\necho usage\n", encoding="utf-8")
            (folder / name).chmod(0o755)

    monkeypatch.setattr(llama_cpp, "make_llama_cpp", make)
    monkeypatch.setattr(llama_cpp, "can_build", lambda types: False)
    assert llama_cpp.get_llama_cpp(("q4_k_m",)) == cache
    assert llama_cpp.program_of(cache, llama_cpp.ANSWERER) is None
    monkeypatch.setenv("UNSLOTH_LLAMA_CPP_PATH", "")
    monkeypatch.setattr(llama_cpp, "can_build", lambda types: True)
    assert llama_cpp.get_llama_cpp(("q4_k_m",)) == cache
    assert all(llama_cpp.program_of(cache, name) for name in llama_cpp.PROGRAMS)


def test_a_dry_run_fetches_it_and_leaves_the_building_to_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("UNSLOTH_LLAMA_CPP_PATH", "UNSLOTH_AUTO_INSTALL", "UNSLOTH_LLAMA_CPP_OFFLINE"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    made = []

    def make(folder: Path, build: bool = True) -> None:
        made.append(build)
        make_folder(folder, *(llama_cpp.PROGRAMS if build else ()))

    monkeypatch.setattr(llama_cpp, "make_llama_cpp", make)
    with pytest.raises(UserError, match="cmake and g\\+\\+ and make is missing"):
        llama_cpp.get_llama_cpp(("q4_k_m",), build=False)
    for name in ("make", "g++", "cmake"):
        (tmp_path / name).touch(mode=0o755)
    folder = llama_cpp.get_llama_cpp(("q4_k_m",), build=False)
    assert (made, folder.parent) == ([False], tmp_path / "launch")


def test_what_a_build_lacks_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "make").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError) as error:
        llama_cpp.can_build(("f16", "q4_k_m"))
    assert error.value.status == 3
    assert "--gguf q4_k_m needs llama.cpp, and to build it cmake and g++ is missing" in error.value.paragraph
    assert "apt-get install -y cmake g++;" in error.value.paragraph
    # The converter writes these by itself.
    assert llama_cpp.can_build(("f16", "q8_0")) is False
    for name in ("g++", "uv"):
        (tmp_path / name).touch(mode=0o755)
    assert llama_cpp.can_build(("q4_k_m",)) is True


def test_only_the_pinned_archive_is_taken_and_of_it_only_llama_cpp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, folder = tmp_path / "llama_cpp_python.tar.gz", tmp_path / "cache" / "llama.cpp"
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("pkg-1/vendor/llama.cpp/CMakeLists.txt", "pkg-1/vendor/llama.cpp/src/a.cpp", "pkg-1/setup.py"):
            member = tarfile.TarInfo(name)
            member.size = 1
            tar.addfile(member, io.BytesIO(b"x"))
    monkeypatch.setattr(llama_cpp, "LLAMA_CPP", archive.as_uri())
    monkeypatch.setattr(llama_cpp, "LLAMA_CPP_SHA256", "0" * 64)
    with pytest.raises(UserError, match="its SHA-256 is") as error:
        llama_cpp.make_llama_cpp(folder, build=False)
    assert error.value.status == 3
    assert not list(folder.parent.iterdir())
    monkeypatch.setattr(llama_cpp, "LLAMA_CPP_SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    llama_cpp.make_llama_cpp(folder, build=False)
    assert [path.name for path in folder.parent.iterdir()] == ["llama.cpp"]
    assert {path.name for path in folder.rglob("*")} == {"CMakeLists.txt", "src", "a.cpp"}


# As they stand in the pinned release's conversion/__init__.py.
TABLES = """\
TEXT_MODEL_MAP: dict[str, str] = {
    "LlamaForCausalLM": "llama",
    "Gemma3ForConditionalGeneration": "gemma",
    "modeling_grove_moe.GroveMoeForCausalLM": "grovemoe",
}


MMPROJ_MODEL_MAP: dict[str, str] = {
    "Gemma3ForConditionalGeneration": "gemma",
    "Idefics3ForConditionalGeneration": "smolvlm",
}
"""
IDEFICS = {
    "architectures": ["Idefics3ForConditionalGeneration"], "text_config": {"architectures": ["LlamaForCausalLM"]},
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "sees", "refused"),
    [
        ({"architectures": ["MllamaForConditionalGeneration"]}, True, True),
        ({"architectures": ["MllamaForConditionalGeneration"]}, False, True),
        ({"architectures": ["Gemma3ForConditionalGeneration"]}, True, False),
        # The converter goes by the language model inside where that has a name of its own.
        (IDEFICS, True, False),
        ({}, True, False),
        # Only its words can be converted.
        ({"architectures": ["LlamaForCausalLM"]}, True, True),
        ({"architectures": ["LlamaForCausalLM"]}, False, False),
    ],
)
def test_a_model_that_llama_cpp_can_not_convert_is_refused(
    config: dict[str, Any], sees: bool, refused: bool, tmp_path: Path
) -> None:
    # Other releases keep no such tables.
    llama_cpp.require_convertible("me/m", config, sees, tmp_path)
    (tmp_path / "conversion").mkdir()
    (tmp_path / "conversion" / "__init__.py").write_text(TABLES, encoding="utf-8")
    if not refused:
        llama_cpp.require_convertible("me/m", config, sees, tmp_path)
        return
    with pytest.raises(UserError, match=r"can't convert me/m, a ") as error:
        llama_cpp.require_convertible("me/m", config, sees, tmp_path)
    assert error.value.status == 3
    assert "--merge 16bit works" in error.value.paragraph


def test_a_smaller_file_is_quantised_by_llama_cpps_own_program(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "llama.cpp", "llama-quantize")
    program = folder / "build" / "bin" / "llama-quantize"
    program.write_text('#!/bin/sh\n[ "$1" = --help ] && echo usage && exit\necho "$3" > "$2"\n', encoding="utf-8")
    llama_cpp.quantize(tmp_path / "m.BF16.gguf", tmp_path / "m.Q4_K_M.gguf", "q4_k_m", folder)
    assert (tmp_path / "m.Q4_K_M.gguf").read_text() == "q4_k_m\n"
    program.write_text('#!/bin/sh\n[ "$1" = --help ] && echo usage && exit\necho no room >&2; exit 4\n', "utf-8")
    with pytest.raises(RuntimeError, match="ended with status 4: no room"):
        llama_cpp.quantize(tmp_path / "m.BF16.gguf", tmp_path / "m.Q4_K_M.gguf", "q4_k_m", folder)
