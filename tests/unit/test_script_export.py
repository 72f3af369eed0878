"""What the scripts know of exports before anything heavy is imported: llama.cpp, disk, time, comparison, the card."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import signal
import subprocess
import sys
import tarfile
import time
from argparse import Namespace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.unit.sample import JOB_SCRIPTS, load_script

TYPES = ("f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k")


@pytest.fixture(scope="module", params=["sft_text.py", "sft_vlm.py", "export.py", "export_vlm.py"])
def script(request: pytest.FixtureRequest) -> ModuleType:
    return load_script(request.param)


def run(name: str, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-S", str(JOB_SCRIPTS / name), *args],
        env=os.environ | env, capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "args", "says"),
    [
        ("sft_text.py", ["--merge", "4bit", "--device", "cpu"], "there are none on a CPU"),
        ("sft_text.py", ["--merge", "4bit", "--load-in", "16bit"], "--load-in 4bit"),
        ("sft_vlm.py", ["--merged-repo", "me/m"], "add --merge 16bit"),
        ("sft_text.py", ["--merge", "16bit", "--merged-repo", "me/m"], "HF_TOKEN"),
        ("sft_text.py", ["--merge", "16bit", "--merged-repo", "a/b/c"], "NAMESPACE/NAME"),
        ("sft_text.py", ["--merge", "16bit", "--output-repo", "me/m", "--merged-repo", "me/m"], "the adapter is there"),
        ("export.py", ["--adapter", "me/m", "--merge", "16bit", "--merged-repo", "me/m"], "the adapter is there"),
        ("sft_text.py", ["--gguf", "q4"], "q4_k_m"),
        ("export.py", ["--gguf", "f16"], "name the adapter"),
        ("export.py", ["--adapter", "me/m"], "nothing is asked for"),
        ("export.py", ["--adapter", "./none", "--gguf", "f16"], "adapter_config.json"),
        ("export_vlm.py", ["--adapter", "me/m", "--merge", "4bit", "--load-in", "16bit"], "--load-in 4bit"),
    ],
)
def test_what_can_not_be_exported_is_refused_at_once(name: str, args: list[str], says: str, tmp_path: Path) -> None:
    done = run(name, *args, HF_TOKEN="", HF_HOME=str(tmp_path))
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


# ---- llama.cpp -------------------------------------------------------------------------------------------------------


def llama_cpp(folder: Path, *, quantizer: bool = False) -> Path:
    """A folder that looks like llama.cpp's."""
    (folder / "gguf-py" / "gguf").mkdir(parents=True)
    (folder / "gguf-py" / "gguf" / "gguf_reader.py").touch()
    (folder / "convert_hf_to_gguf.py").touch()
    if quantizer:
        (folder / "build" / "bin").mkdir(parents=True)
        program = folder / "build" / "bin" / "llama-quantize"
        program.write_text("#!/bin/sh\necho usage: llama-quantize >&2\nexit 1\n", encoding="utf-8")
        program.chmod(0o755)
    return folder


def test_a_named_llama_cpp_is_used_where_it_can_make_what_is_asked_for(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare, built = llama_cpp(tmp_path / "bare"), llama_cpp(tmp_path / "built", quantizer=True)
    monkeypatch.setenv("UNSLOTH_AUTO_INSTALL", "1")
    for folder, types in ((bare, ("f16", "q8_0")), (built, TYPES)):
        monkeypatch.setenv("UNSLOTH_LLAMA_CPP_PATH", str(folder))
        assert script.get_llama_cpp(types) == folder
    # Unsloth installs nothing of its own then.
    assert os.environ["UNSLOTH_AUTO_INSTALL"] == "0"
    monkeypatch.setenv("UNSLOTH_LLAMA_CPP_PATH", str(bare))
    with pytest.raises(script.UserError, match="it has no llama-quantize that runs") as error:
        script.get_llama_cpp(("f16", "q4_k_m"))
    assert error.value.status == 3
    assert f"UNSLOTH_LLAMA_CPP_PATH={bare}" in error.value.paragraph


@pytest.mark.parametrize(("lost", "says"), [("convert_hf_to_gguf.py", "it has no convert_hf"), ("", "no such folder")])
def test_a_named_llama_cpp_that_lacks_something_is_refused(
    script: ModuleType, lost: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = llama_cpp(tmp_path / "llama.cpp")
    (folder / lost).unlink() if lost else folder.rename(tmp_path / "elsewhere")
    monkeypatch.setenv("UNSLOTH_LLAMA_CPP_PATH", str(folder))
    with pytest.raises(script.UserError, match=says) as error:
        script.get_llama_cpp(("f16",))
    assert error.value.status == 3


def test_what_an_earlier_script_built_without_this_ones_answerer_is_made_anew(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UNSLOTH_LLAMA_CPP_PATH", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    cache = llama_cpp(tmp_path / "launch" / "llama.cpp-0.3.36", quantizer=True)

    def make(folder: Path, build: bool = True) -> None:
        for name in script.PROGRAMS:
            (folder / name).write_text("#!/bin/sh\necho usage\n", encoding="utf-8")
            (folder / name).chmod(0o755)

    monkeypatch.setattr(script, "make_llama_cpp", make)
    monkeypatch.setattr(script, "can_build", lambda types: False)
    assert script.get_llama_cpp(("q4_k_m",)) == cache
    assert script.tool(cache, script.ANSWERER) is None
    monkeypatch.delenv("UNSLOTH_LLAMA_CPP_PATH")
    monkeypatch.setattr(script, "can_build", lambda types: True)
    assert script.get_llama_cpp(("q4_k_m",)) == cache
    assert all(script.tool(cache, name) for name in ("llama-quantize", "llama-completion", "llama-mtmd-cli"))


def test_what_a_build_lacks_is_named_with_the_command_that_installs_it(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "make").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(script.UserError) as error:
        script.can_build(("f16", "q4_k_m"))
    assert error.value.status == 3
    assert "--gguf q4_k_m needs llama.cpp, and to build it cmake and g++ is missing" in error.value.paragraph
    assert "apt-get install -y cmake g++;" in error.value.paragraph
    # The converter writes these by itself.
    assert script.can_build(("f16", "q8_0")) is False
    for name in ("g++", "uv"):
        (tmp_path / name).touch(mode=0o755)
    assert script.can_build(("q4_k_m",)) is True


def test_only_the_pinned_archive_is_taken(script: ModuleType, tmp_path: Path) -> None:
    source, path = tmp_path / "source", tmp_path / "archive"
    source.write_bytes(b"what it should be")
    digest = hashlib.sha256(b"what it should be").hexdigest()
    script.fetch(source.as_uri(), digest, path)
    assert path.read_bytes() == b"what it should be"
    source.write_bytes(b"what it should not")
    with pytest.raises(ValueError, match="its SHA-256 is"):
        script.fetch(source.as_uri(), digest, path)


def test_of_the_archive_only_llama_cpp_is_unpacked(script: ModuleType, tmp_path: Path) -> None:
    names = {
        "pkg-1/vendor/llama.cpp/CMakeLists.txt": True, "pkg-1/vendor/llama.cpp/src/a.cpp": True,
        "pkg-1/vendor/llama.cpp/tools/ui/page.html": False, "pkg-1/setup.py": False,
    }  # fmt: skip
    with tarfile.open(tmp_path / "archive", "w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 1
            tar.addfile(member, io.BytesIO(b"x"))
    script.unpack(tmp_path / "archive", "vendor/llama.cpp/", tmp_path / "out")
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found == {name.removeprefix("pkg-1/vendor/llama.cpp/") for name, wanted in names.items() if wanted}


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


@pytest.mark.parametrize(
    ("config", "refused"),
    [
        ({"architectures": ["MllamaForConditionalGeneration"]}, True),
        ({"architectures": ["Gemma3ForConditionalGeneration"]}, False),
        # The converter goes by the language model inside where that has a name of its own.
        (
            {
                "architectures": ["Idefics3ForConditionalGeneration"],
                "text_config": {"architectures": ["LlamaForCausalLM"]},
            },
            False,
        ),
        ({}, False),
    ],
)
def test_a_model_that_llama_cpp_can_not_convert_is_refused(
    script: ModuleType, config: dict[str, Any], refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = llama_cpp(tmp_path / "llama.cpp")
    monkeypatch.setenv("UNSLOTH_LLAMA_CPP_PATH", str(folder))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    args = asked(model=str(tmp_path / "model"), gguf=("f16",))
    # Other releases keep no such tables.
    assert script.open_llama_cpp(args) == folder
    (folder / "conversion").mkdir()
    (folder / "conversion" / "__init__.py").write_text(TABLES, encoding="utf-8")
    if not refused:
        assert script.open_llama_cpp(args) == folder
        return
    with pytest.raises(script.UserError, match=r"can't convert .*, a MllamaForConditionalGeneration") as error:
        script.open_llama_cpp(args)
    assert error.value.status == 3
    assert "--merge 16bit works" in error.value.paragraph


def test_a_vision_model_is_refused_where_only_its_words_can_be_converted(tmp_path: Path) -> None:
    (tmp_path / "conversion").mkdir()
    (tmp_path / "conversion" / "__init__.py").write_text(TABLES, encoding="utf-8")
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}', encoding="utf-8")
    args = asked(model=str(tmp_path), gguf=("f16",))
    load_script("sft_text.py").require_convertible(args, tmp_path)
    script = load_script("sft_vlm.py")
    with pytest.raises(script.UserError):
        script.require_convertible(args, tmp_path)


# ---- Comparison ------------------------------------------------------------------------------------------------------


def probed(**changes: Any) -> dict[str, Any]:
    return {"ids": [1, 2, 3, 4], "likeliest": [5, 6, 7, 8], "last": [0.0, 1.0], "answer": [8, 9, 2]} | changes


def test_the_same_answer_is_told_with_how_far_the_logits_are(script: ModuleType) -> None:
    told, problem = script.compare(probed(), probed(last=[0.25, 1.0], likeliest=[5, 6, 7, 9]))
    assert problem is None
    assert "the same answer of 3 tokens" in told
    assert "the same at 3 of 4 places" in told
    assert "differ by 0.25 at most" in told


@pytest.mark.parametrize(("answer", "place"), [([8, 9, 3], 2), ([8, 9], 2), ([1], 0)])
def test_another_answer_is_told_by_its_first_other_token(script: ModuleType, answer: list[int], place: int) -> None:
    told, problem = script.compare(probed(), probed(answer=answer))
    assert problem is None
    assert f"the same for {place} tokens, then differ" in told


def test_another_model_and_another_prompt_are_errors(script: ModuleType) -> None:
    problem = script.compare(probed(), probed(likeliest=[5, 6, 0, 0], last=[1.0, 0.0]))[1]
    assert "does not answer as the trained model" in problem
    # Other likeliest tokens of logits that are alike, as 4 bits make them, are not.
    assert script.compare(probed(), probed(likeliest=[5, 6, 0, 0], last=[0.1, 0.9]))[1] is None
    assert "another prompt" in script.compare(probed(), probed(ids=[1, 2, 3]))[1]


WORDS = {"merged_words": "The capital of France is Paris.", "led": {"3": ["The", "capital", "of"], "6": ["The"]}}
SAID = "The capital of France is Paris."


@pytest.mark.parametrize(
    ("kind", "does", "told", "problem"),
    [
        ("f16", f"echo '{SAID}'", "the same answer in llama.cpp", None),
        ("q4_k_m", f"echo '<think> {SAID} [end of text]'", "another answer", None),
        ("q8_0", "echo 'The capital is somewhere in France.'", "another answer: in llama.cpp it answers 'The", None),
        ("f16", "echo '@@ xi xi'", None, "it does not answer as the merged model"),
        ("q8_0", "true", None, "it does not answer as the merged model"),
        ("q4_k_m", "echo '@@ xi xi'", None, "it does not answer as the merged model"),
        # Of a model that knows little, 2 bits may leave this: the file is kept, and that is told.
        ("q2_k", "echo '@@ xi xi'", "another answer: in llama.cpp it answers '@@ xi xi'", None),
        ("f16", "kill -9 $$", "not run, for want of memory", None),
        ("f16", "echo 'ggml: failed to allocate buffer' >&2; exit 1", "not run, for want of memory", None),
        ("f16", "exec sleep 9", "not run, for want of time", None),
        (
            "f16",
            "echo 'unknown model architecture' >&2; exit 3",
            None,
            "ended with status 3: unknown model architecture",
        ),
    ],
)
def test_what_llama_cpp_answers_decides_on_a_gguf_file(
    script: ModuleType, kind: str, does: str, told: str | None, problem: str | None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(script, "COMPLETE_S", 1, raising=False)
    monkeypatch.setattr(script, "picture", lambda: SimpleNamespace(save=lambda *_: None), raising=False)
    fields = {"tokenizer.ggml.eos_token_id": SimpleNamespace(contents=lambda: 2)}
    monkeypatch.setitem(sys.modules, "gguf", SimpleNamespace(GGUFReader=lambda _: SimpleNamespace(fields=fields)))
    program = tmp_path / script.ANSWERER
    program.write_text(f"#!/bin/sh\ncase $1 in --help) echo usage; exit;; esac\n{does}\n", encoding="utf-8")
    program.chmod(0o755)
    record = tmp_path / "known.json"
    known = {"prompt": "p", "eos": 2, "stop": 2, "template": None}
    record.write_text(json.dumps(known | WORDS), encoding="utf-8")
    (tmp_path / "m.F16-mmproj.gguf").touch()
    path = str(tmp_path / f"m.{kind.upper()}.gguf")
    if problem and problem.startswith("ended"):
        with pytest.raises(RuntimeError, match=problem):
            script.check_gguf(path, kind, str(record), str(tmp_path))
        return
    found, wrong = script.check_gguf(path, kind, str(record), str(tmp_path))
    assert (found is None) == (told is None)
    assert (told or "") in (found or "")
    assert (problem or "") in (wrong or "")
    assert (wrong is None) == (problem is None)


# Reads its prompt as llama.cpp does (common/arg.cpp), and answers to one prompt only.
EXACT = """\
#!{python}
import sys
words = dict(zip(sys.argv, sys.argv[1:]))
if "--binary-file" in words:
    prompt = open(words["--binary-file"], "rb").read().decode()
else:
    prompt = open(words["-f"], encoding="utf-8").read().removesuffix("\\n")
print("yes" if prompt == {prompt!r} else "no")
"""


@pytest.mark.parametrize("name", ["sft_text.py", "export.py"])
def test_llama_cpp_is_given_the_prompt_to_its_last_character(name: str, tmp_path: Path) -> None:
    script, prompt = load_script(name), "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
    program = tmp_path / script.ANSWERER
    program.write_text(EXACT.format(python=sys.executable, prompt=prompt), encoding="utf-8")
    program.chmod(0o755)
    assert script.answer_gguf(program, tmp_path / "m.gguf", prompt, {}) == "yes"


def test_an_answer_that_the_model_is_not_sure_of_binds_no_file(script: ModuleType) -> None:
    """A random or barely trained one may say anything else after the smallest rounding."""
    for said in ("@@ xi xi", ""):
        told, problem = script.compare_words("zu ab ke", said, [], "so")
        assert problem is None
        assert f"answers {said!r}, and the merged model 'zu ab ke'" in told


def test_the_words_that_lead_are_whole_ones(script: ModuleType) -> None:
    tokens = {1: "<think>", 2: " The", 3: " cap", 4: "ital", 5: " is"}

    def said(ids: list[int]) -> str:
        return "".join(tokens[token] for token in ids)

    def leading(*leads: float) -> Any:
        return script.leading_words([1, 2, 3, 4, 5], [(lead, 0.0) for lead in leads], 3, said)

    assert leading(9, 9, 9, 9, 9) == ["The", "capital", "is"]
    assert leading(9, 9, 9, 1, 9) == ["The"]
    assert leading(9, 9, 9, 9, 1) == ["The"]
    assert leading(1, 9, 9, 9, 9) == []


# ---- Disk, time and files --------------------------------------------------------------------------------------------


def asked(**changes: Any) -> Namespace:
    return Namespace(
        **{"merge": None, "gguf": (), "merged_repo": None, "model": "org/model", "run_name": "r"} | changes
    )


def test_packed_weights_count_as_what_they_stand_for(script: ModuleType) -> None:
    packed = SimpleNamespace(requires_grad=False, numel=lambda: 50, quant_state=SimpleNamespace(shape=(10, 10)))
    plain = SimpleNamespace(requires_grad=False, numel=lambda: 7)
    trained = SimpleNamespace(requires_grad=True, numel=lambda: 1000)
    assert script.whole_bytes(SimpleNamespace(parameters=lambda: [packed, plain, trained])) == 2 * 107


@pytest.mark.parametrize(
    ("merge", "gguf", "total"),
    [
        (None, (), 0),
        ("16bit", (), 16),
        # The copy to convert, and the file.
        (None, ("f16",), 16 + 16),
        ("16bit", ("f16",), 16 + 16),
        # And the file to quantise.
        (None, ("q8_0",), 16 + 8.6),
        (None, ("q4_k_m",), 16 + 16 + 5.1),
    ],
)
def test_the_disk_that_exports_need(script: ModuleType, merge: str | None, gguf: tuple[str, ...], total: float) -> None:
    parts = script.export_bytes(asked(merge=merge, gguf=gguf), 16.0, "org/model")
    assert sum(parts.values()) == pytest.approx(total)
    again = script.export_bytes(asked(merge=merge, gguf=gguf), 16.0, "org/model-16")
    assert sum(again.values()) == pytest.approx(total + 16)


def test_exports_end_when_the_time_is_up_or_a_signal_comes(script: ModuleType) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(script.TimeUp, match="the time is up"), script.until(0.05):
        time.sleep(5)
    with pytest.raises(script.TimeUp, match="asked to stop"), script.until(math.inf):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    # What tries again must not take it for a failure of the network.
    assert not issubclass(script.TimeUp, Exception)


def test_a_copy_appears_whole_in_the_place_of_an_older_one(script: ModuleType, tmp_path: Path) -> None:
    for name in ("new", "place"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.safetensors").touch()
    script.land(tmp_path / "new", tmp_path / "place")
    assert [path.name for path in (tmp_path / "place").iterdir()] == ["new.safetensors"]
    (tmp_path / "a.gguf").write_bytes(b"1")
    script.land(tmp_path / "a.gguf", tmp_path / "b.gguf", keep=True)
    assert (tmp_path / "b.gguf").read_bytes() == (tmp_path / "a.gguf").read_bytes() == b"1"
    assert {path.name for path in tmp_path.iterdir()} == {"place", "a.gguf", "b.gguf"}


def test_the_adapter_is_pushed_without_exports_of_an_earlier_run(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "merged").mkdir()
    for name in ("adapter_model.safetensors", "README.md", "merged/model.safetensors", "r.Q4_K_M.gguf", "Modelfile"):
        (tmp_path / name).touch()
    assert script.pushed_files(tmp_path) == ["README.md", "adapter_model.safetensors"]


def test_the_last_words_say_how_to_try_again(script: ModuleType) -> None:
    args = asked(merge="16bit", gguf=("f16", "q4_k_m"), merged_repo="me/merged")
    exports = script.asked_exports(args)
    assert [entry["error"] for entry in exports] == ["not made"] * 3
    for entry in exports:
        entry["error"] = None
    assert script.failed_exports(args, exports, "me/model", None) is None
    exports[2]["error"] = "no such type"
    said = script.failed_exports(args, exports, "me/model", "https://hf.co/me/model").paragraph
    assert "https://hf.co/me/model" in said.partition("launch export")[0]
    assert "gguf q4_k_m: no such type" in said
    assert said.endswith("launch export me/model --gguf q4_k_m")


@pytest.mark.parametrize(
    ("repo", "called"), [("me/houses", "houses"), ("me/x.gguf", "x-"), ("me/houses-GGUF", "houses-GGUF"), (None, None)]
)
def test_a_gguf_file_is_called_as_its_repo_whatever_the_day(
    script: ModuleType, repo: str | None, called: str | None
) -> None:
    args = asked(run_name="houses-export-20261124", adapter="you/houses")
    unpushed = "houses" if "export" in script.__name__ else "houses-export-20261124"
    assert script.gguf_name(args, repo) == (called or unpushed).strip("-")


def test_what_is_not_pushed_is_put_where_it_outlives_the_job(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAUNCH_DATA_DIR", str(tmp_path))
    output = tmp_path / "output"

    def place(repo: str | None, merged_repo: str | None, **changes: Any) -> bool:
        """Whether exports are put into the bucket."""
        found, _ = script.export_place(asked(output_dir=None, merge="16bit", **changes), output, repo, merged_repo)
        return bool(found == output)

    assert place(None, None)
    # The merged copy is pushed, and the GGUF file nowhere.
    assert place(None, "me/m", gguf=("q8_0",))
    assert not place(None, "me/m")
    assert not place("me/houses", "me/m", gguf=("q8_0",))
    assert not place("me/houses", None, gguf=("q8_0",))


def test_a_failed_merge_fails_what_is_made_of_it(script: ModuleType) -> None:
    exports = script.asked_exports(asked(merge="4bit", gguf=("f16",)))
    script.fail(exports, "it broke", "16bit")
    assert [entry["error"] for entry in exports] == ["not made", "it broke"]


def test_a_card_tells_of_exports_once(tmp_path: Path) -> None:
    script = load_script("export.py")
    card = tmp_path / "README.md"
    card.write_text(
        "# m\n\n## How to use it\n\n### Unsloth\n\n```python\nx\n```\n\n## To run it again\n\nso\n", "utf-8"
    )
    made = {"repo": None, "error": None, "gib": 1, "checked": "so"}
    exports = [{"kind": "gguf", "name": "f16", "path": "m.F16.gguf", **made}]
    args = asked(trust_remote_code=False, max_length=64, load_in="16bit")
    for _ in range(2):
        script.amend_card(args, card, tmp_path, exports, {"device": "cpu", "output_repo": None})
    text = card.read_text(encoding="utf-8")
    assert text.count("### llama.cpp") == text.count("### Unsloth") == text.count("-m m.F16.gguf") == 1
    assert text.count("## Copies") == text.count("| `m.F16.gguf` | 1.00 GiB, so |") == 1
    assert text.index("### llama.cpp") < text.index("## To run it again")
