"""What is pushed of exports, and what goes from the Hub with it: the scripts' own functions, on the stand-in Hub."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from tests.emulator import Hub
from tests.emulator.cards import problems
from tests.emulator.state import StoredFile
from tests.faults.trainings import Trainings
from tests.unit.sample import JOB_SCRIPTS

REPO = "tester/houses"
# Calls in the training stack's own environment, which has another release of the Hub's client; the last one's answer.
CALL = """\
import json, sys
from importlib import import_module
from pathlib import Path
from parts.copies import Copy
from parts.copy_cards import Origin
from parts.say import UserError

def given(word):
    if isinstance(word, dict) and "card" in word:
        return lambda: word["card"]
    if isinstance(word, dict):
        return (Copy if "kind" in word else Origin)(**word)
    if isinstance(word, list):
        return [given(item) for item in word]
    return Path(word) if isinstance(word, str) and word.startswith("/") else word

try:
    for name, words in json.loads(sys.argv[1]):
        module, name = name.split(".")
        found = getattr(import_module(f"parts.{module}"), name)(*map(given, words))
    print(json.dumps(found))
except UserError as problem:
    print(json.dumps([problem.status, problem.paragraph]))
"""
CARD = "---\ndatasets:\n- trl-lib/Capybara\nlicense: apache-2.0\n---\n# houses\n\nWritten by hand.\n"
ORIGIN = {"adapter": REPO, "model": "org/base", "commit": "c" * 40, "ask": "chat", "trust_remote_code": False,
          "run_name": "r"}  # fmt: skip
Call = Callable[..., Any]


@pytest.fixture
def hub(trainings: Trainings, tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path / "hub", port=trainings.port) as hub:
        adapter: dict[str, bytes | str] = {
            "adapter_config.json": "{}",
            "adapter_model.safetensors": b"a",
            "README.md": CARD,
        }
        hub.add_repo(REPO, files=adapter)
        yield hub
        assert hub.unknown_requests == []


@pytest.fixture
def call(hub: Hub, trainings: Trainings, tmp_path: Path) -> Call:
    path = tmp_path / "calls.py"
    path.write_text(CALL, encoding="utf-8")
    env = hub.env() | {"HF_HUB_OFFLINE": "0", "PYTHONPATH": str(JOB_SCRIPTS.parent / "templates")}

    def run(*calls: tuple[str, list[Any]]) -> Any:
        """What the last of the parts' functions returns, or the status and the words of its refusal."""
        done = trainings.run_script(path, tmp_path, json.dumps(calls), env=env)
        assert done.code == 0, done.log + done.error
        return json.loads(done.log.splitlines()[-1])

    return run


def test_a_push_deletes_what_is_stale_in_its_own_commit(hub: Hub, call: Call, tmp_path: Path) -> None:
    for name in ("new.bin", "same.bin"):
        (tmp_path / name).write_bytes(b"new")
    repo = hub.repos[REPO]
    for name in ("old.bin", "same.bin", "mine.bin"):
        repo.commit({**repo.head.files, name: repo.head.files["README.md"]}, "an earlier one")
    before = len(repo.commits)
    # The second is after a lost answer.
    for failure in (None, "after_commit"):
        if failure:
            hub.fail_next(failure, f"POST /api/models/{REPO}/commit", times=1)
            repo.commit({**repo.head.files, "old.bin": repo.head.files["README.md"]}, "once more")
        stale = ["old.bin", "same.bin", "never-there.bin"]
        call(("push.push", [str(tmp_path), REPO, ["new.bin", "same.bin"], stale]))
        assert {"README.md", "new.bin", "same.bin", "mine.bin"} <= set(repo.files)
        assert "old.bin" not in repo.files
        assert repo.files["same.bin"] == b"new"
    assert len(repo.commits) == before + 3


@pytest.mark.parametrize("name", ["houses", "tester/houses", "tester/other"])
def test_a_merged_model_goes_to_no_repo_with_an_adapter(hub: Hub, call: Call, name: str) -> None:
    hub.add_repo("tester/other", files={"adapter_config.json": "{}"})
    status, said = call(("copies.open_merged_repo", [name, REPO, False, True]))
    assert status == 3
    assert f"--merged-repo tester/{name.split('/')[-1]}: the adapter is there" in said
    # A dry run makes nothing.
    for create in (False, True):
        assert call(("copies.open_merged_repo", ["whole", REPO, False, create])) == "tester/whole"
        assert ("tester/whole" in hub.repos) == create


def files_of(hub: Hub, name: str) -> set[str]:
    return set(hub.repos[name].files) - {".gitattributes", "README.md"}


def merged_copy(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True)
    for name in ("config.json", *names):
        (folder / name).write_bytes(b"{}")
    return folder


IN_SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json")


@pytest.mark.parametrize("merged_repo", [None, "tester/whole"])
def test_a_merged_copy_leaves_nothing_of_an_earlier_one(
    hub: Hub, call: Call, tmp_path: Path, merged_repo: str | None
) -> None:
    """transformers would load the one file of the 4-bit copy, and not the shards of the later one."""
    hub.add_repo("tester/whole", files={"NOTES.md": "mine"})
    for kind, names in (("4bit", ("model.safetensors", "chat_template.jinja")), ("16bit", IN_SHARDS)):
        copy = merged_copy(tmp_path / kind / "merged", *names)
        call(("copies.push_merged", [str(copy), merged_repo or REPO, bool(merged_repo)]))
    adapter = {"adapter_config.json", "adapter_model.safetensors"}
    if merged_repo:
        assert files_of(hub, merged_repo) == {"NOTES.md", "config.json", "chat_template.jinja", *IN_SHARDS}
        assert files_of(hub, REPO) == adapter
    else:
        assert files_of(hub, REPO) == adapter | {f"merged/{name}" for name in ("config.json", *IN_SHARDS)}
    # The adapter's card is not this one's to write.
    assert hub.repos[REPO].files["README.md"].decode() == CARD


def test_a_gguf_file_takes_the_place_of_earlier_ones_of_its_type(hub: Hub, call: Call, tmp_path: Path) -> None:
    """llama.cpp and Ollama would find the first of them by their type."""
    earlier = ("houses-export-20261124.Q4_K_M.gguf", "houses-export-20261124.F16-mmproj.gguf", "houses.Q8_0.gguf")
    hub.add_repo("tester/seeing", files=dict.fromkeys((*earlier, "Q4_K_M.md", "other/r.Q4_K_M.gguf"), b"GGUF"))
    for name in ("seeing.Q4_K_M.gguf", "seeing.F16-mmproj.gguf", "houses.F16-mmproj.gguf", "Modelfile"):
        (tmp_path / name).write_bytes(b"new")
    call(("copies.push_gguf", [str(tmp_path / "seeing.Q4_K_M.gguf"), "q4_k_m", "tester/seeing"]))
    new = {"seeing.Q4_K_M.gguf", "seeing.F16-mmproj.gguf", "Modelfile"}
    assert files_of(hub, "tester/seeing") == {*new, "houses.Q8_0.gguf", "Q4_K_M.md", "other/r.Q4_K_M.gguf"}
    assert len(hub.repos["tester/seeing"].commits) == 2


def pushed_card(hub: Hub, name: str) -> tuple[str, dict[str, Any]]:
    """The card of that repo, which the Hub takes, and its metadata."""
    text = hub.repos[name].files["README.md"].decode()
    assert problems(text) == ([], [])
    assert "None" not in text
    assert "{" + "{" not in text
    found: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return text, found


MERGED = {"kind": "merged", "name": "16bit", "path": None, "repo": "tester/whole", "gib": 2.0, "checked": "so",
          "error": None}  # fmt: skip


@pytest.mark.parametrize("ask", ["chat", "picture"])
def test_a_merged_model_in_a_repo_of_its_own_has_a_card(hub: Hub, call: Call, tmp_path: Path, ask: str) -> None:
    copy, adapter = merged_copy(tmp_path / "copy", "model.safetensors", "chat_template.jinja"), tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "README.md").write_text(CARD, encoding="utf-8")
    hub.add_repo("tester/whole", files={})
    card = call(("copy_cards.copies_card", [ORIGIN | {"ask": ask}, str(adapter), "tester/whole", [MERGED]]))
    call(
        ("copies.push_merged", [str(copy), "tester/whole", True]),
        ("copy_cards.put_card", [str(copy), "tester/whole", {"card": card}]),
    )
    text, data = pushed_card(hub, "tester/whole")
    assert data == {
        "library_name": "transformers", "base_model": "org/base", "base_model_relation": "finetune",
        "datasets": ["trl-lib/Capybara"], "tags": ["unsloth", "launch"], "license": "apache-2.0",
        "pipeline_tag": "image-text-to-text" if ask == "picture" else "text-generation",
    }  # fmt: skip
    assert "# whole\n" in text
    assert "[`tester/houses`](https://huggingface.co/tester/houses) merged into it" in text
    assert "[`org/base`](https://huggingface.co/org/base) at `cccccccccccc`" in text
    assert "| `16bit` | 2.00 GiB, so |" in text
    assert text.count("### ") == 1
    assert "place = 'tester/whole'\n" in text
    assert "The base model's licence holds for it too: `apache-2.0`." in text


def test_a_licence_of_its_makers_own_has_its_name_and_its_place(call: Call, hub: Hub, tmp_path: Path) -> None:
    told = "license: other\nlicense_name: lfm1.0\nlicense_link: https://example.org/LICENSE\n"
    (tmp_path / "README.md").write_text(f"---\n{told}---\n", encoding="utf-8")
    text = call(("copy_cards.copies_card", [ORIGIN, str(tmp_path), "tester/whole", [MERGED]]))
    assert problems(text) == ([], [])
    assert "license: other\nlicense_name: lfm1.0\nlicense_link: https://example.org/LICENSE\n" in text
    assert "The base model's licence holds for it too: `lfm1.0`." in text


def test_a_card_that_the_hub_refuses_costs_no_copy(hub: Hub, call: Call, tmp_path: Path) -> None:
    hub.add_repo("tester/whole", files={})
    copy = merged_copy(tmp_path / "copy", "model.safetensors")
    # Of a licence that looks like one.
    refused = {"card": CARD.replace("apache-2.0", "nobody-1.0")}
    call(
        ("copies.push_merged", [str(copy), "tester/whole", True]),
        ("copy_cards.put_card", [str(copy), "tester/whole", refused]),
    )
    assert set(hub.repos["tester/whole"].files) - {".gitattributes"} == {"config.json", "model.safetensors"}


def gguf(name: str, repo: str | None) -> dict[str, Any]:
    known = {
        "kind": "gguf",
        "path": f"houses.{name.upper()}.gguf",
        "gib": 0.5,
        "checked": "the same answer in llama.cpp",
    }
    return known | {"name": name, "repo": repo, "error": None}


def test_copies_of_an_adapter_without_a_card_get_one(hub: Hub, call: Call, tmp_path: Path) -> None:
    plain, copies = "somebody/plain", "tester/plain-export"
    hub.add_repo(plain, files={"adapter_config.json": "{}", "adapter_model.safetensors": b"a"})
    hub.add_repo(copies, files={})
    (tmp_path / "adapter").mkdir()
    (tmp_path / "out").mkdir()
    origin = ORIGIN | {"adapter": plain}

    def tell(kind: str) -> None:
        card = call(
            (
                "copy_cards.card_beside",
                [origin, str(tmp_path / "adapter"), str(tmp_path / "out"), copies, [gguf(kind, copies)]],
            )
        )
        call(("copy_cards.put_card", [str(tmp_path / "out"), copies, {"card": card}]))

    tell("q8_0")
    text, data = pushed_card(hub, copies)
    assert (data["base_model"], data["base_model_relation"]) == ("org/base", "quantized")
    assert "library_name" not in data
    assert "GGUF files of [`org/base`]" in text
    assert "[`somebody/plain`](https://huggingface.co/somebody/plain) merged into it" in text
    assert f"llama-cli -hf {copies}:Q8_0 " in text
    # A later export adds to it.
    held = hub.repos[copies]
    held.commit({**held.head.files, "houses.Q8_0.gguf": StoredFile(b"GGUF")}, "the first")
    tell("q4_k_m")
    text, _ = pushed_card(hub, copies)
    assert [line for line in text.splitlines() if line.startswith("| `")] == [
        "| `houses.Q8_0.gguf` | 0.50 GiB, the same answer in llama.cpp |",
        "| `houses.Q4_K_M.gguf` | 0.50 GiB, the same answer in llama.cpp |",
    ]
    assert f"llama-cli -hf {copies}:Q8_0 " in text
    assert f"llama-cli -hf {copies}:Q4_K_M " in text
    assert text.count("### llama.cpp") == text.count("## Copies") == 1


def test_the_card_beside_an_adapter_keeps_its_words_and_names_every_file(hub: Hub, call: Call, tmp_path: Path) -> None:
    repo = hub.repos[REPO]
    # One of an earlier export that is there, and a row of one that is gone.
    card = f"{CARD}\n## Copies\n\n| | |\n| --- | --- |\n| `old.Q4_K_M.gguf` | 1 GiB |\n"
    stored = {name: StoredFile(b"GGUF") for name in ("houses.F16.gguf", "houses.Q4_K_M.gguf", "houses.F16-mmproj.gguf")}
    repo.commit({**repo.head.files, **stored}, "an earlier export")
    for name, text in (("README.md", card), ("tokenizer_config.json", '{"chat_template": "x"}')):
        (tmp_path / name).write_text(text, encoding="utf-8")
    place = {
        "kind": "merged",
        "name": "16bit",
        "path": "merged",
        "repo": REPO,
        "gib": 2.0,
        "checked": "so",
        "error": None,
    }
    out = tmp_path / "out"
    out.mkdir()
    for kind in ("4bit", "16bit"):
        entries = [place | {"name": kind}, gguf("q4_k_m", REPO), gguf("q8_0", None) | {"error": "no"}]
        words = [ORIGIN, str(tmp_path), str(out), REPO, entries]
        call(("copy_cards.put_card", [str(out), REPO, {"card": call(("copy_cards.card_beside", words))}]))
        (tmp_path / "README.md").write_bytes(repo.files["README.md"])
    text, _ = pushed_card(hub, REPO)
    assert "Written by hand." in text
    assert [line for line in text.splitlines() if line.startswith("| `")] == [
        "| `merged` | 2.00 GiB, so |",
        "| `houses.Q4_K_M.gguf` | 0.50 GiB, the same answer in llama.cpp |",
        "| `houses.F16.gguf` | 0.00 GiB |",
    ]
    assert re.findall("^### (.*)$", text, re.MULTILINE) == ["Merged, 16bit", "llama.cpp", "Ollama"]
    assert "messages = [" in text
    assert f"llama-cli -hf {REPO}:F16 " in text
    assert f"llama-cli -hf {REPO}:Q4_K_M " in text
    assert "Q8_0" not in text


# Of a vision adapter whose folder holds a tokenizer alone, then a processor too, and of a model that sees nothing.
READERS = """\
import json, sys
from pathlib import Path
from types import SimpleNamespace
from parts.copies import reader_of
from parts.say import UserError
from transformers import AutoTokenizer, CLIPImageProcessor, LlavaProcessor
folder = Path(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[2])
tokenizer.save_pretrained(folder)
own = SimpleNamespace(image_processor="the model's own")
kept = reader_of(folder, own, True, False) is own
try:
    reader_of(folder, SimpleNamespace(image_processor=None), True, False)
except UserError as problem:
    refused = problem.paragraph
LlavaProcessor(CLIPImageProcessor(), tokenizer, patch_size=14).save_pretrained(folder)
read = [type(reader_of(folder, own, sees, False)).__name__ for sees in (True, False)]
print(json.dumps([kept, refused, read]))
"""


def test_a_vision_adapter_with_a_tokenizer_alone_keeps_the_models_processor(
    trainings: Trainings, tiny: Path, tmp_path: Path
) -> None:
    (tmp_path / "readers.py").write_text(READERS, encoding="utf-8")
    where = {"PYTHONPATH": str(JOB_SCRIPTS.parent / "templates")}
    done = trainings.run_script(tmp_path / "readers.py", tmp_path, tmp_path, tiny, env=where)
    assert done.code == 0, done.error
    kept, refused, read = json.loads(done.log.splitlines()[-1])
    assert kept
    assert f"the processor of {tmp_path} takes no pictures." in refused
    assert read[0] == "LlavaProcessor"
    assert "Tokenizer" in read[1]
