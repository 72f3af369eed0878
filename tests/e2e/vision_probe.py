"""What `job_scripts/sft_vlm.py` makes of rows with pictures, for every vision family: run by test_vision_data.py.

    PYTHONPATH=bench python tests/e2e/vision_probe.py FOLDER FAMILY …

Runs in the training stack's environment, on the CPU: the script's own functions on tiny models of the real
architectures. Prints a line `SEEN {json}` for every way of writing the rows down, mapped and streamed, and more.
What it should have seen is counted by bench/families.py, from the chat template alone.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(UNSLOTH_FORCE_CPU="1", UNSLOTH_DISABLE_STATISTICS="1", CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1")
from unsloth.chat_templates import get_chat_template  # isort: skip

import family_models
import torch
from datasets import Dataset, Features, Image, List, Value
from families import Row, collate
from PIL import Image as Picture
from transformers import AutoModelForImageTextToText, AutoProcessor

SCRIPT = Path(__file__).parents[2] / "job_scripts" / "sft_vlm.py"
ROWS, BATCH = 8, 4
PART = {"type": Value("string"), "text": Value("string")}
PARTS = List({"role": Value("string"), "content": List(PART)})
TEXTS = List({"role": Value("string"), "content": Value("string")})

Table = tuple[list[dict[str, Any]], Features]


# ---- The same conversations, written down in every way ---------------------------------------------------------------


def conversations(text_only: bool = False) -> list[dict[str, Any]]:
    """The bench's rows, one and two pictures, one and two questions, some with a system message; one may have none."""
    rows = family_models.vision_rows(side=96)[:ROWS]
    if text_only:
        turns = (("user", "Is it even or odd?"), ("assistant", "It is even."))
        messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
        rows[2] = {"images": [], "messages": messages}
    return rows


def marked(messages: list[dict[str, Any]], mark: str = "<image>") -> list[dict[str, Any]]:
    """Messages whose contents are strings."""
    return [
        {
            "role": turn["role"],
            "content": "".join(mark if part["type"] == "image" else part["text"] for part in turn["content"]),
        }
        for turn in messages
    ]


def as_parts(rows: list[dict[str, Any]], folder: Path) -> Table:
    return rows, Features({"images": List(Image()), "messages": PARTS})


def as_texts(rows: list[dict[str, Any]], folder: Path) -> Table:
    rows = [row | {"messages": marked(row["messages"])} for row in rows]
    return rows, Features({"images": List(Image()), "messages": TEXTS})


def as_bytes(rows: list[dict[str, Any]], folder: Path) -> Table:
    rows = [row | {"images": [image["bytes"] for image in row["images"]]} for row in rows]
    return rows, Features({"images": List(Value("binary")), "messages": PARTS})


def as_paths(rows: list[dict[str, Any]], folder: Path) -> Table:
    (folder / "pictures").mkdir(parents=True)
    written = []
    for number, row in enumerate(rows):
        names = [f"pictures/{number}-{place}.png" for place in range(len(row["images"]))]
        for name, image in zip(names, row["images"], strict=True):
            (folder / name).write_bytes(image["bytes"])
        written.append(row | {"images": names})
    return written, Features({"images": List(Value("string")), "messages": PARTS})


def as_one_column(rows: list[dict[str, Any]], folder: Path) -> Table:
    """One picture a row, without a placeholder: the others' second one is inside a part, where there can be both."""
    rows = [{"image": row["images"][0], "messages": marked(row["messages"], "")} for row in rows]
    return rows, Features({"image": Image(), "messages": TEXTS})


def as_inside(rows: list[dict[str, Any]], folder: Path) -> Table:
    written = []
    for row in rows:
        waiting = iter(row["images"])
        messages = [
            {
                "role": turn["role"],
                "content": [
                    part | {"image": next(waiting) if part["type"] == "image" else None} for part in turn["content"]
                ],
            }
            for turn in row["messages"]
        ]
        written.append({"messages": messages})
    parts = List(PART | {"image": Image()})
    return written, Features({"messages": List({"role": Value("string"), "content": parts})})


WAYS: dict[str, Callable[[list[dict[str, Any]], Path], Table]] = {
    "parts": as_parts, "texts": as_texts, "bytes": as_bytes, "paths": as_paths, "one column": as_one_column,
    "inside": as_inside, "some without": as_parts,
}  # fmt: skip


def write(folder: Path, table: Table) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(table[0], features=table[1]).to_parquet(folder / "train.parquet")
    return folder


# ---- What should come out --------------------------------------------------------------------------------------------


def expected_rows(rows: list[dict[str, Any]], processor: Any, end: str, system: bool, one: bool) -> list[Row]:
    """The rows as the model should see them, counted from its chat template; `one` leaves the first picture only."""
    seen = []
    for row in rows:
        images, messages = row["images"], [turn | {"content": clean(turn["content"])} for turn in row["messages"]]
        if one:
            images = images[:1]
            for turn in messages:
                pictures = [part for part in turn["content"] if part["type"] == "image"][:1]
                turn["content"] = pictures + [part for part in turn["content"] if part["type"] == "text"]
        told = "" if system or messages[0]["role"] != "system" else messages.pop(0)["content"][0]["text"] + "\n\n"
        pictures = [Picture.open(io.BytesIO(image["bytes"])).convert("RGB") for image in images]
        seen.append(told_first(Row({"images": pictures, "messages": messages}, processor, end), told, processor))
    return seen


def told_first(row: Row, told: str, processor: Any) -> Row:
    """The row with the system message's text before its first picture, where a template takes no system message."""
    ids = processor.tokenizer(told, add_special_tokens=False).input_ids
    if ids:
        place = row.ids.index(processor.image_token_id)
        row.ids[place:place] = ids
        row.said[place:place] = row.between[place:place] = [False] * len(ids)
        row.text = row.text.replace(processor.image_token, told + processor.image_token, 1)
    return row


def clean(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in part.items() if value is not None} for part in parts]


# ---- One family ------------------------------------------------------------------------------------------------------


class Probe:
    """One family's tiny model, and the script's functions applied to it."""

    def __init__(self, script: Any, name: str, root: Path) -> None:
        self.script, self.name, self.root = script, name, root / name
        self.folder = family_models.build(name, self.root / "model", tiny=True)
        self.model = AutoModelForImageTextToText.from_pretrained(self.folder)
        self.processor = AutoProcessor.from_pretrained(self.folder)
        self.system = self.takes_system()
        self.mask = self.script.find_mask(self.processor)
        self.end = family_models.facts_of(name)["end_of_turn"]

    def args(self, dataset: Path, *flags: object) -> Any:
        line = ["--model", self.folder, "--dataset", dataset, "--max-steps", 50, "--eval-rows", 0, *flags]
        args = self.script.read_options(self.script.Options, [str(word) for word in line])
        self.script.check_options(args)
        self.script.check_data(args)
        return args

    def takes_system(self) -> bool:
        said = self.script.said
        taken: bool = self.script.takes_system(self.processor, said, [{"type": "image"}, *said("Hi")])
        return taken

    def data(self, args: Any) -> tuple[list[dict[str, Any]], Any]:
        """The rows and the collator, by the script's own functions in the order of its `main`."""
        train_data, _ = self.script.read_rows(args, pictures=True)
        reader = self.script.Reader(self.processor, list(next(iter(train_data), {})), args)
        if not args.streaming:
            self.script.check_rows(train_data, reader)
        collator = self.script.make_collator(self.model, reader, args, self.mask)
        return list(train_data), collator

    def way(self, way: str) -> None:
        """Batches of the rows, mapped and streamed, beside the count from the chat template."""
        rows = conversations(text_only=way == "some without")
        folder = write(self.root / way.replace(" ", "-"), WAYS[way](rows, self.root / way.replace(" ", "-")))
        wanted = expected_rows(rows, self.processor, self.end, self.system, one=way == "one column")
        for mode in ("mapped", "streamed"):
            data, collator = self.data(self.args(folder, "--streaming" if mode == "streamed" else "--no-streaming"))
            seen: dict[str, Any] = {"way": way, "mode": mode, "numbers": [row["row_number"] for row in data]}
            batches = [self.batch(data[n : n + BATCH], collator, wanted) for n in range(0, len(data), BATCH)]
            seen |= {key: sum(batch[key] for batch in batches) for key in batches[0]}
            self.show(seen)

    def batch(self, rows: list[dict[str, Any]], collator: Any, wanted: list[Row]) -> dict[str, int]:
        """Counts of one batch and what they should be; `differ` are the rows with other tokens or labels."""
        own = [wanted[row["row_number"]] for row in rows]
        made = collator(rows)
        ids, labels, tokenizer = made["input_ids"], made["labels"], self.processor.tokenizer
        targets = ids[labels != -100]
        never = {tokenizer.pad_token_id, self.processor.image_token_id, self.model.config.image_token_id}
        differ = 0
        if all(row.images for row in own):
            inputs, marks = collate(own, self.processor, "vision", tail=False)
            tailed = collate(own, self.processor, "vision", tail=True)[1]
            for place in range(len(rows)):
                here, there = made["attention_mask"][place].bool(), inputs["attention_mask"][place].bool()
                same = torch.equal(ids[place][here], inputs["input_ids"][place][there])
                got = labels[place][here]
                differ += not (
                    same and (torch.equal(got, marks[place][there]) or torch.equal(got, tailed[place][there]))
                )
        return {
            "trained": int((labels != -100).sum()),
            "said": sum(row.trained for row in own),
            "between": sum(row.tail for row in own),
            "differ": differ,
            "wrong_labels": int((targets != labels[labels != -100]).sum()),
            "never_trained": sum(int((targets == token).sum()) for token in never),
            "ends": int((targets == tokenizer.convert_tokens_to_ids(self.end)).sum()),
            "answers": sum(turn["role"] == "assistant" for row in own for turn in row.messages),
            "pictures": self.pictures(made),
            "shown": sum(len(row.images) for row in own),
            "not_finite": int((~made["pixel_values"].float().isfinite()).sum()),
        }

    def pictures(self, made: Any) -> int:
        """How many pictures a batch holds, read from what each family's processor makes of them."""
        if "aspect_ratio_ids" in made:
            return int((made["aspect_ratio_ids"] > 0).sum())
        return len(made["image_grid_thw"] if "image_grid_thw" in made else made["pixel_values"])

    def long_rows(self) -> None:
        """A picture of 640 pixels where 200 tokens, and where 16 tokens, are allowed for a row."""
        rows = conversations()[1:2]
        rows[0]["images"] = [{"bytes": family_models.picture(n, 640), "path": None} for n in (3, 8)]
        folder = write(self.root / "long", as_parts(rows, self.root))
        for longest in (300, 16):
            data, collator = self.data(self.args(folder, "--max-length", longest, "--image-size", 640))
            seen: dict[str, Any] = {"way": "long", "longest": longest}
            try:
                made = collator(data)
            except self.script.UserError as error:
                self.show(seen | {"error": error.paragraph})
                continue
            image = int((made["input_ids"] == self.model.config.image_token_id).sum())
            seen |= {"length": made["input_ids"].shape[1], "image_tokens": image, "pictures": self.pictures(made)}
            self.show(seen | {"trained": int((made["labels"] != -100).sum())})

    def bad_rows(self) -> None:
        """What is said of a row with too few placeholders, of pictures that are none, and of a missing file."""
        for case, way in (("placeholders", "parts"), ("unreadable", "parts"), ("unreadable", "bytes"),
                          ("unreadable", "inside"), ("missing", "paths")):  # fmt: skip
            rows = conversations()[:4]
            home = self.root / f"bad-{case}-{way}"
            if case == "placeholders":
                del rows[1]["messages"][-2]["content"][0]
            elif case == "unreadable":
                rows[1]["images"][1] = {"bytes": b"no picture at all", "path": None}
            table = WAYS[way](rows, home)
            if case == "missing":
                (home / "pictures" / "1-1.png").unlink()
            write(home, table)
            for mode in ("mapped", "streamed"):
                flag = "--streaming" if mode == "streamed" else "--no-streaming"
                seen = {"way": "bad", "case": case, "written": way, "mode": mode}
                try:
                    data, collator = self.data(self.args(home, flag))
                    collator(data)
                    self.show(seen | {"error": None})
                except Exception as error:
                    kind = type(error).__name__
                    self.show(seen | {"kind": kind, "error": getattr(error, "paragraph", str(error))[:300]})

    def stream_head(self) -> None:
        """Which rows of a stream are evaluated on, and which are trained on."""
        args = self.args(self.root / "parts", "--streaming", "--eval-rows", 2)
        train, held_out = (
            sorted(row["row_number"] for row in rows) for rows in self.script.read_rows(args, pictures=True)
        )
        self.show({"way": "head", "train": train, "held_out": held_out})

    def without_template(self) -> None:
        """A base model's processor, which gets its family's template the way the script gives it."""
        template = self.processor.chat_template
        self.processor.chat_template = self.processor.tokenizer.chat_template = None
        given = self.script.read_options(self.script.Options, ["--chat-template", "gemma-3"]).chat_template
        self.processor = get_chat_template(self.processor, given)
        self.system = self.takes_system()
        self.mask = self.script.find_mask(self.processor)
        self.show({"way": "template", "given": self.processor.chat_template != template, "system": self.system})
        rows = conversations()
        wanted = expected_rows(rows, self.processor, self.end, self.system, one=False)
        data, collator = self.data(self.args(self.root / "parts"))
        self.show({"way": "base", "mode": "mapped", "numbers": []} | self.batch(data, collator, wanted))

    def show(self, seen: dict[str, Any]) -> None:
        print("SEEN " + json.dumps({"family": self.name} | seen), flush=True)


def main(root: Path, families: list[str]) -> None:
    spec = importlib.util.spec_from_file_location("sft_vlm", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    # Where its dataclass looks for the types of its fields.
    sys.modules[spec.name] = script
    spec.loader.exec_module(script)
    for name in families:
        probe = Probe(script, name, root)
        stop = probe.processor.tokenizer.decode(
            [script.end_of_turn(probe.processor, probe.processor.tokenizer, script.said)]
        )
        probe.show({"way": "facts", "system": probe.system, "stop": stop, "end": probe.end})
        for way in WAYS:
            probe.way(way)
        probe.stream_head()
        probe.long_rows()
        if name == "qwen3-vl":  # they never reach a family's processor
            probe.bad_rows()
        if name == "gemma-3-vision":
            probe.without_template()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
