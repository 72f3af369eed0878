"""llama.cpp: found here, or fetched and built before anything else is done; what it converts, and its programs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from parts.places import sha256
from parts.say import UserError, note, phase, reason

# What is fetched where there is no llama.cpp: the source distribution of llama-cpp-python 0.3.36 holds one whole, with
# its converter. PyPI's address is made of the content's own hash, and the content is checked besides.
LLAMA_CPP = (
    "https://files.pythonhosted.org/packages/ec/e9/e7de2b0463ea3ffbf0ede6cb21b58c1258a8f6521aae45ca773a59fe7cf3/"
    "llama_cpp_python-0.3.36.tar.gz"
)
LLAMA_CPP_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
CONVERTER = "convert_hf_to_gguf.py"
QUANTIZER, ANSWERER, SEEING_ANSWERER = "llama-quantize", "llama-completion", "llama-mtmd-cli"
PROGRAMS = (QUANTIZER, ANSWERER, SEEING_ANSWERER)
# The types that the converter writes by itself.
CONVERTED = ("f16", "bf16", "q8_0")
# Bits that a weight takes in a file of that type, rounded up for the parts that are kept more exact.
GGUF_BITS = {
    "f16": 16, "bf16": 16, "q8_0": 8.6, "q6_k": 6.7, "q5_k_m": 5.9, "q4_k_m": 5.1, "q3_k_m": 4.3, "q2_k": 3.7,
}  # fmt: skip
# What Unsloth calls the file of what sees, in the place of a type.
MMPROJ = "F16-mmproj"


def get_llama_cpp(types: Sequence[str], build: bool = True) -> Path:
    """The folder of a llama.cpp that can make GGUF files of these types; fetched, and built, where there is none.

    `UNSLOTH_LLAMA_CPP_PATH` names it, and names it for Unsloth afterwards. Without `build`, which takes minutes, it is
    only known that it can be built. Raises `UserError` of status 3 with what is lacking.
    """
    named = os.environ.get("UNSLOTH_LLAMA_CPP_PATH")
    if named:
        folder = Path(named).expanduser().absolute()
        flaw = llama_cpp_flaw(folder, types)
        if flaw:
            hint = "Name a folder of llama.cpp that is built (bench/llama_cpp.sh makes one), or unset the variable."
            raise UserError(f"UNSLOTH_LLAMA_CPP_PATH={named}: {flaw}.", hint, status=3)
    else:
        folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "launch" / "llama.cpp-0.3.36"
        builds = can_build(types if llama_cpp_flaw(folder, types) else ()) and build
        # Made for types that need no program, it may lack some.
        if llama_cpp_flaw(folder) or (builds and not all(program_of(folder, name) for name in PROGRAMS)):
            phase("get llama.cpp")
            make_llama_cpp(folder, builds)
        flaw = llama_cpp_flaw(folder, types if build else ())
        if flaw:
            raise UserError(f"the llama.cpp in {folder} can't be used: {flaw}.", "Remove it, and try again.", status=3)
    # Unsloth would else go to GitHub for what is newest there, and install what that needs as root.
    os.environ.update(UNSLOTH_LLAMA_CPP_PATH=str(folder), UNSLOTH_AUTO_INSTALL="0", UNSLOTH_LLAMA_CPP_OFFLINE="1")
    note(f"GGUF files are made by {folder}")
    return folder


def llama_cpp_flaw(folder: Path, types: Iterable[str] = ()) -> str | None:
    """What keeps that folder from making these types, or none."""
    if not folder.is_dir():
        return "there is no such folder"
    for name in (CONVERTER, "gguf-py/gguf/gguf_reader.py"):
        if not (folder / name).is_file():
            return f"it has no {name}"
    if not set(types) <= set(CONVERTED) and program_of(folder, QUANTIZER) is None:
        return f"it has no {QUANTIZER} that runs"
    return None


def program_of(folder: Path, name: str) -> Path | None:
    """A program of llama.cpp, where it was built or installed; none where there is none that starts."""
    for path in (folder / name, folder / "build" / "bin" / name):
        if os.access(path, os.X_OK):
            try:
                done = subprocess.run([path, "--help"], capture_output=True, timeout=60, check=False)
            except (OSError, subprocess.TimeoutExpired):
                continue
            # The tools are not of one mind about the status of their help.
            if b"usage" in (done.stdout + done.stderr).lower():
                return path
    return None


def require_convertible(model: str, config: dict[str, Any], sees: bool, folder: Path) -> None:
    """Refuse a model that the converter does not know, by the tables that it looks the architecture up in."""
    tables = folder / "conversion" / "__init__.py"
    # Other releases keep them otherwise.
    text = tables.read_text(encoding="utf-8") if tables.is_file() else ""
    for table, part in {"TEXT_MODEL_MAP": "text_config", "MMPROJ_MODEL_MAP": "vision_config"}.items():
        found = re.search("^" + table + r"\b[^\n]*\n(.*?)^\}", text, re.MULTILINE | re.DOTALL)
        known = set(re.findall(r'^ +"([\w.]+)":', found[1], re.MULTILINE)) if found else set()
        names = [name for whose in (config.get(part) or {}, config) for name in whose.get("architectures") or ()]
        if known and names and not known.intersection(names) and (sees or part == "text_config"):
            message = f"--gguf: llama.cpp can't convert {model}, a {names[-1]}"
            raise UserError(f"{message}.", "Leave --gguf away; --merge 16bit works.", status=3)


def can_build(types: Iterable[str]) -> bool:
    """Whether llama.cpp's programs can be built here; `UserError` of status 3 where they can't and one is needed."""
    # `uv` is what runs this script, and fetches cmake too.
    needed = {"cmake": ("cmake", "uv"), "g++": ("c++", "g++", "clang++"), "make": ("make", "ninja")}
    lacking = [name for name, any_of in needed.items() if not any(map(shutil.which, any_of))]
    quantized = [name for name in types if name not in CONVERTED]
    if lacking and quantized:
        message = f"--gguf {quantized[0]} needs llama.cpp, and to build it {' and '.join(lacking)} is missing here"
        hint = (
            f"apt-get update && apt-get install -y {' '.join(lacking)}; or name a build with UNSLOTH_LLAMA_CPP_PATH; "
            f"or ask for {', '.join(CONVERTED[:-1])} or {CONVERTED[-1]}, which need none."
        )
        raise UserError(f"{message}.", hint, status=3)
    return not lacking


def make_llama_cpp(folder: Path, build: bool = True) -> None:
    """Fetch llama.cpp into the folder, whole or not at all, with its programs built if asked for; minutes."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".llama.cpp-", dir=folder.parent) as staging:
        archive = Path(staging, "llama_cpp_python.tar.gz")
        try:
            with urllib.request.urlopen(LLAMA_CPP, timeout=60) as answer, archive.open("wb") as file:
                shutil.copyfileobj(answer, file)
            if sha256(archive) != LLAMA_CPP_SHA256:
                raise ValueError(f"its SHA-256 is {sha256(archive)} and should be {LLAMA_CPP_SHA256}")
        except (OSError, ValueError) as error:
            hint = "Name a build of llama.cpp with UNSLOTH_LLAMA_CPP_PATH, or leave --gguf away."
            raise UserError(f"llama.cpp can't be fetched from {LLAMA_CPP} ({reason(error)}).", hint, 3) from error
        shutil.unpack_archive(archive, staging, filter="data")
        [source] = Path(staging).glob("*/vendor/llama.cpp")
        if build:
            build_llama_cpp(source)
        shutil.rmtree(folder, ignore_errors=True)
        source.rename(folder)


def build_llama_cpp(source: Path) -> None:
    """Build the programs that quantise and that answer, for the processor, without what they could do on the net."""
    cores, build = os.cpu_count() or 1, source / "build"
    cmake = ["cmake"] if shutil.which("cmake") else ["uv", "tool", "run", "--quiet", "cmake"]
    off = ("LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES", "LLAMA_BUILD_SERVER", "LLAMA_BUILD_APP", "LLAMA_BUILD_UI",
           "LLAMA_USE_PREBUILT_UI", "LLAMA_OPENSSL", "BUILD_SHARED_LIBS")  # fmt: skip
    options = ["-DCMAKE_BUILD_TYPE=Release", *(f"-D{name}=OFF" for name in off)]
    commands = (
        [*cmake, "-S", str(source), "-B", str(build), *options],
        [*cmake, "--build", str(build), "--parallel", str(cores), "--target", *PROGRAMS],
    )
    note(f"building llama.cpp on {cores} cores: a minute on twelve, five on two")
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            note("\n".join((done.stdout + done.stderr).strip().splitlines()[-20:]))
            hint = "The lines above say why. Name a build of llama.cpp with UNSLOTH_LLAMA_CPP_PATH instead."
            raise UserError(f"llama.cpp could not be built (status {done.returncode}).", hint, status=3)
    for name in PROGRAMS:
        shutil.copy(build / "bin" / name, source / name)
    shutil.rmtree(build)


def convert(folder: Path, target: Path, kind: str, with_sight: bool, llama_cpp: Path) -> None:
    """Write the model in the folder as a GGUF file of a type that the converter knows; `with_sight`: what sees beside.

    Through Unsloth, which knows what published checkpoints lack that the converter asks for. In a process of its own:
    Unsloth is imported.
    """
    import unsloth  # noqa: F401
    from unsloth_zoo.llama_cpp import convert_to_gguf

    stem = target.with_name(target.name.removesuffix(f".{kind.upper()}.gguf"))
    _, seen = convert_to_gguf(
        str(stem), str(folder), "f16", kind, converter_location=str(llama_cpp / CONVERTER), is_vlm=with_sight,
        # One file: what quantises and pushes it knows no parts.
        max_shard_size="1000GB",
    )  # fmt: skip
    if with_sight and not seen:
        raise RuntimeError("the part of the model that sees could not be converted")


def quantize(source: Path, target: Path, kind: str, llama_cpp: Path) -> None:
    """Make a smaller GGUF file of a 16-bit one."""
    quantizer = program_of(llama_cpp, QUANTIZER)
    command = [str(quantizer), str(source), str(target), kind, str(os.cpu_count() or 1)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise RuntimeError(f"{QUANTIZER} ended with status {done.returncode}: {last_line(done.stdout + done.stderr)}")


def sight_of(path: Path) -> Path | None:
    """The file beside that GGUF file of what sees, or none."""
    found = path.with_name(f"{path.stem.rpartition('.')[0]}.{MMPROJ}.gguf")
    return found if found.is_file() else None


def last_line(text: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
