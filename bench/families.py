"""Train every promised family through the rendered script itself, and check what came out.

    python bench/families.py --root /tmp/families --out families.jsonl                  # on a GPU, all 14
    python bench/families.py --only qwen3 gemma-2 --jobs 2
    python bench/families.py --tiny --cpu --text --jobs 1                               # a dry run on a CPU

Each family gets a local folder (bench/family_models.py), is trained on 64 rows, and is then looked at without
Unsloth: the assistant's tokens are counted from the chat template and compared with what the script trained on, and the
saved adapter is loaded with plain transformers and PEFT, whose loss on the evaluation rows must be the script's.
Results are written after each family, and a family that has one is not run again: a killed run goes on where it was.
Runs in the training stack's environment.
"""

from __future__ import annotations

import argparse
import ast
import functools
import gc
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import family_models
from family_models import FAMILIES, TEXT, VISION

BATCH, LORA_R = {"text": 8, "vision": 4}, 16
MAX_LENGTH = {"text": 128, "vision": 2048}
IMAGE_SIDE = 320
# A random model learns little at the usual rates.
LEARNING_RATE = 2e-3
# bfloat16 has three significant digits, and two implementations add in different orders.
LOSS_TOLERANCE = 0.02
COLUMNS = (
    "family", "model", "params", "load_in", "first step s", "s/step after", "peak GiB predicted / seen",
    "loss first → last", "labels trained / expected", "reload Δ loss", "verdict",
)  # fmt: skip


# ---- One family ------------------------------------------------------------------------------------------------------


class Bench:
    """One run over families: its options, its results, and the lock around the GPU work of this process."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.began = time.monotonic()
        self.lock = threading.Lock()
        self.logs = args.root / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)

    def run(self) -> int:
        """Every family that has no result yet; the number of those whose verdict is not ok."""
        todo = [name for name in self.names() if name not in self.done()]
        if not todo:
            say("every family asked for has a result")
        with ThreadPoolExecutor(self.args.jobs) as pool:
            for future in as_completed([pool.submit(self.one, name) for name in todo]):
                future.result()
        print(table(self.results()))
        return sum(result["verdict"] != "ok" for result in self.results())

    def names(self) -> list[str]:
        """The families asked for; those that compile longest first, so that none is left alone at the end."""
        names = self.args.only or [*VISION, "lfm2", "lfm2.5", "gemma-3", "gemma-2", *TEXT]
        wanted = (VISION if self.args.vision else ()) + (TEXT if self.args.text else ()) or VISION + TEXT
        return [name for name in dict.fromkeys(names) if name in wanted]

    def results(self) -> list[dict[str, Any]]:
        """The last result of each family, in the catalog's order."""
        if not self.args.out.is_file():
            return []
        lines = self.args.out.read_text(encoding="utf-8").splitlines()
        last = {result["family"]: result for result in map(json.loads, filter(None, lines))}
        return [last[name] for name in FAMILIES if name in last]

    def done(self) -> set[str]:
        """Families with a result; with --retry only those whose result is ok."""
        return {r["family"] for r in self.results() if r["verdict"] == "ok" or not self.args.retry}

    def left(self) -> float:
        """Seconds until the deadline of the whole run."""
        return float(self.args.deadline) - (time.monotonic() - self.began)

    def one(self, name: str) -> None:
        """Build, train, verify and record one family; whatever goes wrong becomes its verdict."""
        # A family that could not even be loaded in time is left for the next call.
        if self.left() < self.args.least:
            say(f"{name}: left for another run, {self.left():.0f} s before the deadline")
            return
        kind = "vision" if name in VISION else "text"
        result: dict[str, Any] = {"family": name, "kind": kind, "jobs": self.args.jobs, "tiny": self.args.tiny}
        result["load_in"] = "32bit" if self.args.cpu else self.args.load_in
        started = time.monotonic()
        try:
            with self.lock:
                folder, data = self.prepare(name, kind)
            result |= describe(name, folder) | {"build_s": round(time.monotonic() - started, 1)}
            say(f"{name}: built in {result['build_s']} s, {result['params'] / 1e6:.0f}M parameters")
            limit = min(self.args.timeout, max(self.left(), 30))
            result |= self.train(name, kind, folder, data, limit)
            if result["rc"] == 124 and limit < self.args.timeout:
                # Cut off by the deadline of the whole run, not by its own: that says nothing about it.
                say(f"{name}: left for another run, stopped at the deadline")
                return
            if result["rc"] == 0:
                with self.lock:
                    result |= self.verify(name, kind, folder, data, result)
            result["verdict"] = verdict(result, self.args.steps)
        except Exception as error:
            result["verdict"] = f"{type(error).__name__}: {error}".strip().replace("\n", " ")[:400]
        result["wall_s"] = round(time.monotonic() - started, 1)
        self.record(result)
        if not self.args.keep:
            shutil.rmtree(self.args.root / name, ignore_errors=True)

    def prepare(self, name: str, kind: str) -> tuple[Path, Path]:
        """The model's folder and the rows' folder, written anew."""
        home, spec = self.args.root / name, FAMILIES[name]
        shutil.rmtree(home, ignore_errors=True)
        device = "cpu" if self.args.cpu else "cuda"
        write = family_models.write_vision_rows if kind == "vision" else family_models.write_text_rows
        data = write(home / "rows", system=spec.system)
        folder = family_models.build(
            name, home / "model", layers=self.args.layers, tiny=self.args.tiny, device=device
        )  # fmt: skip
        free()
        return folder, data

    def command(self, name: str, kind: str, folder: Path, data: Path) -> list[str]:
        """The script's command line; a flag that the script does not have is left out."""
        script = self.args.script_dir / f"sft_{'vlm' if kind == 'vision' else 'text'}.py"
        source = script.read_text(encoding="utf-8")
        facts = family_models.facts_of(name)
        flags = {
            "model": folder, "load-in": self.args.load_in, "chat-template": facts["chat_template"],
            "dataset": data, "dataset-split": "train", "eval-split": "test", "eval-rows": 0,
            "train-on": "assistant", "max-steps": self.args.steps, "max-length": MAX_LENGTH[kind],
            "batch-size": BATCH[kind], "gradient-accumulation": 1, "learning-rate": LEARNING_RATE,
            "lr-scheduler-type": "constant_with_warmup", "warmup-ratio": 0.1, "logging-steps": 1, "seed": 3407,
            "lora-r": LORA_R, "lora-alpha": 2 * LORA_R, "lora-targets": ",".join(facts["lora_targets"]),
            "image-size": IMAGE_SIDE, "output-dir": folder.parent / "trained", "run-name": f"{name}-bench",
            "sample-rows": 0, "trackio-project": "", "device": "cpu" if self.args.cpu else "auto",
        }  # fmt: skip
        known = {flag: value for flag, value in flags.items() if f'"--{flag}"' in source}
        # `--flag=value`, so that an empty value is one too.
        given = [f"--{flag}={value}" for flag, value in known.items()]
        return [self.args.python, str(script), "--no-streaming", *given]

    def train(self, name: str, kind: str, folder: Path, data: Path, limit: float) -> dict[str, Any]:
        """Run the script, and read its losses, its count of labels and its RESULT from the log."""
        home, log = folder.parent, self.logs / f"{name}.log"
        environment = os.environ | {
            "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONUNBUFFERED": "1",
            "HF_HOME": str(home / "hf"), "UNSLOTH_DISABLE_STATISTICS": "1",
            # Nothing compiled for another family may shorten the first step of this one.
            "TORCHINDUCTOR_CACHE_DIR": str(home / "inductor"), "TRITON_CACHE_DIR": str(home / "triton"),
            "OMP_NUM_THREADS": str(max((os.cpu_count() or 2) // self.args.jobs, 1)),
        }  # fmt: skip
        command = self.command(name, kind, folder, data)
        started = time.monotonic()
        with log.open("w", encoding="utf-8") as file:
            file.write(f"$ {' '.join(command)}\n")
            file.flush()
            process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=home, start_new_session=True
            )
            try:
                code = process.wait(limit)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                code = 124
        seconds = round(time.monotonic() - started, 1)
        text = log.read_text(encoding="utf-8", errors="replace")
        say(f"{name}: script ended with {code} after {seconds} s")
        found = {"rc": code, "script_s": seconds} | read_log(text)
        if code:
            found["error"] = (f"stopped after {limit:.0f} s, last: " if code == 124 else "") + last_words(text)
        return found

    def verify(self, name: str, kind: str, folder: Path, data: Path, result: dict[str, Any]) -> dict[str, Any]:
        """What the rows' labels should be, and the losses of the base and of the adapter without Unsloth."""
        from transformers import AutoProcessor, AutoTokenizer

        end = family_models.facts_of(name)["end_of_turn"]
        reader = AutoProcessor.from_pretrained(folder) if kind == "vision" else AutoTokenizer.from_pretrained(folder)
        rows = [Row(row, reader, end) for row in stored_rows(data, kind, "train")]
        found: dict[str, Any] = {
            "expected": sum(row.trained for row in rows),
            "expected_tail": sum(row.tail for row in rows),
            "expected_masked": sum(len(row.ids) - row.trained for row in rows),
            "predicted_gib": predict(folder, kind, self.args.load_in),
        }
        say(f"{name}: {found['expected']} of the assistant's tokens (and {found['expected_tail']} between turns)")
        held_out = [Row(row, reader, end) for row in stored_rows(data, kind, "test")]
        include_tail = result.get("trained") == found["expected"] + found["expected_tail"]
        batch = min(BATCH[kind], 2)
        load_in = "16bit" if self.args.cpu else self.args.load_in
        try:
            base, adapted = losses_without_unsloth(
                folder, folder.parent / "trained", kind, load_in, held_out, reader, batch, include_tail
            )
            return found | {"reload_before": base, "reload_after": adapted}
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".replace("\n", " ")[:300]
            return found | {"reload_error": reason}
        finally:
            free()

    def record(self, result: dict[str, Any]) -> None:
        """Append the result, and copy everything to where the caller collects it."""
        with self.lock:
            with self.args.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
            say(f"{result['family']}: {result['verdict']} ({result['wall_s']} s)")
            self.args.out.with_suffix(".md").write_text(table(self.results()) + "\n", encoding="utf-8")
            if self.args.copy_to:
                self.args.copy_to.mkdir(parents=True, exist_ok=True)
                for path in (self.args.out, self.args.out.with_suffix(".md")):
                    shutil.copy(path, self.args.copy_to / path.name)
                logs = [f"##### {log.stem}\n{log.read_text('utf-8', 'replace')}" for log in sorted(self.logs.iterdir())]
                (self.args.copy_to / "families.log").write_text("\n".join(logs)[-12_000_000:], encoding="utf-8")


# ---- What the script said --------------------------------------------------------------------------------------------


def read_log(text: str) -> dict[str, Any]:
    """The losses of the steps, the counts of the labels' check, and what RESULT says."""
    losses = [float(loss) for loss in re.findall(r"^step \d+/\S+ \| loss (\S+)", text, re.M)]
    found: dict[str, Any] = {"losses": losses}
    if counts := re.search(r"^labels: (\d+) tokens trained on, (\d+) masked, over the first (\d+) rows", text, re.M):
        found |= dict(zip(("trained", "masked", "rows"), map(int, counts.groups()), strict=True))
    if line := re.search(r"^RESULT (\{.*\})$", text, re.M):
        result = json.loads(line[1])
        kept = ("steps", "eval_loss_before", "eval_loss", "train_s", "startup_s", "first_step_s", "peak_gib", "device")
        found |= {key: result.get(key) for key in kept} | {"versions": result.get("versions")}
    return found


def last_words(text: str, count: int = 3) -> str:
    """The last lines that are not progress or empty: usually the error."""
    lines = [
        line.strip() for line in text.splitlines() if line.strip() and not line.startswith(("step ", "$ ", "Loading"))
    ]
    return " / ".join(lines[-count:])[-600:]


def verdict(result: dict[str, Any], steps: int) -> str:
    """`ok`, or everything that is not as it should be."""
    if result.get("rc") != 0:
        return f"script failed ({result.get('rc')}): {result.get('error', '')}"
    wrong = []
    losses = result["losses"]
    if not losses or len(losses) < min(steps, 20):
        wrong.append(f"{len(losses)} steps")
    elif not mean(losses[-3:]) < mean(losses[:3]):
        wrong.append("the loss did not fall")
    if result.get("rows") != 64:
        wrong.append(f"labels checked over {result.get('rows')} rows instead of 64")
    elif result["trained"] not in (result["expected"], result["expected"] + result["expected_tail"]):
        wrong.append(f"{result['trained']} labels, but the assistant said {result['expected']} tokens")
    given, total = result.get("trained", 0) + result.get("masked", 0), result["expected"] + result["expected_masked"]
    if result["kind"] == "text" and given != total:
        wrong.append(f"the rows have {total} tokens, but {given} were given to the model")
    if "reload_error" in result:
        wrong.append(f"adapter did not load: {result['reload_error']}")
    else:
        for name, again in (("eval_loss_before", "reload_before"), ("eval_loss", "reload_after")):
            said, seen = result.get(name), result[again]
            if said is None or not abs(said - seen) <= LOSS_TOLERANCE * max(1, said):
                wrong.append(f"{name} {said} but {seen:.4f} without Unsloth")
    return "; ".join(wrong) or "ok"


def mean(values: list[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)


def table(results: list[dict[str, Any]]) -> str:
    """The results as markdown, one row per family."""
    rows = [COLUMNS, ("---",) * len(COLUMNS), *map(cells, results)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def cells(result: dict[str, Any]) -> tuple[str, ...]:
    """One row of the table; a dash for what there is not."""

    def number(value: Any, digits: int = 2) -> str:
        return "–" if value is None else f"{value:.{digits}f}"

    steps, train, first = result.get("steps"), result.get("train_s"), result.get("first_step_s")
    after = (train - first) / (steps - 1) if steps and steps > 1 and train and first else None
    losses = result.get("losses") or []
    fell = f"{mean(losses[:3]):.2f} → {mean(losses[-3:]):.2f}" if losses else "–"
    tail = result.get("trained", 0) - result.get("expected", 0) if result.get("expected_tail") else 0
    labels = f"{result.get('trained', '–')} / {result.get('expected', '–')}"
    if tail and tail == result["expected_tail"]:
        labels += f" + {tail} line ends"
    said, seen = result.get("eval_loss"), result.get("reload_after")
    delta = None if said is None or seen is None else abs(said - seen)
    built = f"{result.get('built', '–')}, {result.get('layers', '–')} layers"
    return (
        result["family"], built, f"{result.get('params', 0) / 1e6:.3g}M", result.get("load_in", "–"),
        number(first, 1), number(after), f"{number(result.get('predicted_gib'))} / {number(result.get('peak_gib'))}",
        fell, labels, number(delta, 4), result["verdict"].replace("|", "\\|"),
    )  # fmt: skip


# ---- Looking without Unsloth -----------------------------------------------------------------------------------------


class Row:
    """One conversation, tokenized and labelled here: `ids`, `labels`, and the label count with and without line ends.

    The assistant's tokens are those from the end of its header to its end-of-turn token; what the template puts after
    that (a line end) is the tail, which some markers include.
    """

    def __init__(self, row: dict[str, Any], reader: Any, end_of_turn: str) -> None:
        self.images = row.get("images", [])
        self.messages = row["messages"]
        tokenizer = getattr(reader, "tokenizer", reader)
        render = functools.partial(reader.apply_chat_template, tokenize=False)
        self.text = render(self.messages)
        spans = list(assistant_spans(self.text, self.messages, render, end_of_turn))
        encoded = tokenizer(self.text, add_special_tokens=False, return_offsets_mapping=True)
        self.ids: list[int] = encoded.input_ids
        places = encoded.offset_mapping
        self.said = [any(begin <= a < b <= end for begin, end, _ in spans) for a, b in places]
        between = [any(end <= a < b <= tail for _, end, tail in spans) for a, b in places]
        self.between = between
        self.trained, self.tail = sum(self.said), sum(between)


def assistant_spans(
    text: str, messages: list[dict[str, Any]], render: Callable[..., str], end_of_turn: str
) -> Iterator[tuple[int, int, int]]:
    """Where each answer begins and ends in the rendered text, its end-of-turn token included, and where the space after
    it ends. Found from the messages and the template's generation prompt alone."""
    first = next(n for n, message in enumerate(messages) if message["role"] == "user")
    asked, answering = (render(messages[: first + 1], add_generation_prompt=prompt) for prompt in (False, True))
    header = answering[len(asked) :] if answering.startswith(asked) else ""
    cursor = 0
    for message in messages:
        if message["role"] == "system":
            # It may be moved, merged or dropped.
            continue
        content = words(message["content"])
        place = text.index(content, cursor)
        if message["role"] == "assistant":
            begin = text.rindex(header, cursor, place) + len(header) if header else place
            while not header and begin > cursor and text[begin - 1] == " ":
                begin -= 1
            end = text.index(end_of_turn, place + len(content)) + len(end_of_turn)
            yield begin, end, end + len(text[end:]) - len(text[end:].lstrip())
        cursor = place + len(content)


def words(content: Any) -> str:
    """A message's text, of its parts where it has some."""
    if isinstance(content, str):
        return content.strip()
    return "".join(part["text"] for part in content if part["type"] == "text").strip()


def stored_rows(data: Path, kind: str, split: str) -> list[dict[str, Any]]:
    """The rows of a split as the builder wrote them, with images as PIL and parts without empty keys."""
    if kind == "text":
        return [json.loads(line) for line in (data / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
    import pyarrow.parquet
    from PIL import Image

    rows = pyarrow.parquet.read_table(data / f"{split}.parquet").to_pylist()
    return [
        {
            "images": [Image.open(io.BytesIO(image["bytes"])).convert("RGB") for image in row["images"]],
            "messages": [
                {
                    "role": turn["role"],
                    "content": [{key: value for key, value in part.items() if value} for part in turn["content"]],
                }
                for turn in row["messages"]
            ],
        }
        for row in rows
    ]


def losses_without_unsloth(
    folder: Path, adapter: Path, kind: str, load_in: str, rows: list[Row], reader: Any, batch: int, tail: bool
) -> tuple[float, float]:
    """The evaluation loss of the base and of base and adapter, with plain transformers and PEFT: per batch the mean
    over its labels, then the mean over the batches, which is what the Trainer calls eval_loss."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, BitsAndBytesConfig

    on_gpu = torch.cuda.is_available()
    options: dict[str, Any] = {"dtype": torch.bfloat16 if on_gpu else torch.float32}
    if on_gpu:
        options["device_map"] = {"": 0}
    if load_in == "4bit":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16, llm_int8_skip_modules=unquantized(),
        )  # fmt: skip
    auto = AutoModelForImageTextToText if kind == "vision" else AutoModelForCausalLM
    model = auto.from_pretrained(folder, **options)

    def loss() -> float:
        device = "cuda" if on_gpu else "cpu"
        seen = []
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=on_gpu):
            for start in range(0, len(rows), batch):
                inputs, labels = collate(rows[start : start + batch], reader, kind, tail)
                logits = model(**{name: value.to(model.device) for name, value in inputs.items()}).logits
                seen.append(
                    torch.nn.functional.cross_entropy(
                        logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten().to(logits.device)
                    ).item()
                )
        return mean(seen)

    model.eval()
    base = loss()
    model = PeftModel.from_pretrained(model, adapter).eval()
    return base, loss()


def collate(rows: list[Row], reader: Any, kind: str, tail: bool) -> tuple[dict[str, Any], Any]:
    """Inputs and labels of some rows, padded on the right."""
    import torch

    tokenizer = getattr(reader, "tokenizer", reader)
    chosen = [[a or (tail and b) for a, b in zip(row.said, row.between, strict=True)] for row in rows]
    if kind == "text":
        length = max(len(row.ids) for row in rows)
        pad = [length - len(row.ids) for row in rows]
        ids = torch.tensor([row.ids + [tokenizer.pad_token_id] * p for row, p in zip(rows, pad, strict=True)])
        mask = torch.tensor([[1] * len(row.ids) + [0] * p for row, p in zip(rows, pad, strict=True)])
        inputs = {"input_ids": ids, "attention_mask": mask}
    else:
        tokenizer.padding_side = "right"
        inputs = dict(
            reader(
                text=[row.text for row in rows], images=[row.images for row in rows], padding=True,
                return_tensors="pt", add_special_tokens=False,
            )
        )  # fmt: skip
    labels = torch.full_like(inputs["input_ids"], -100)
    for number, row in enumerate(rows):
        # An image became many tokens, all before or between the answers: text tokens keep their order.
        places = align(row.ids, inputs["input_ids"][number].tolist())
        for place, id_, said in zip(places, row.ids, chosen[number], strict=True):
            if said:
                labels[number, place] = id_
    return inputs, labels


def align(short: list[int], long: list[int]) -> list[int]:
    """Where each token of a row stands once its image tokens were multiplied; matched from the end."""
    places, place = [], len(long) - 1
    for id_ in reversed(short):
        while place >= 0 and long[place] != id_:
            place -= 1
        places.append(max(place, 0))
        place -= 1
    return places[::-1]


def unquantized() -> list[str]:
    """The modules that Unsloth leaves in 16 bits when it loads in 4, read from its source without importing it."""
    spec = importlib.util.find_spec("unsloth_zoo")
    if spec is None or spec.origin is None:
        return ["lm_head"]
    tree = ast.parse((Path(spec.origin).parent / "peft_utils.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "SKIP_QUANTIZATION_MODULES":
            return list(ast.literal_eval(node.value))
    return ["lm_head"]


def describe(name: str, folder: Path) -> dict[str, Any]:
    """The built model: its stand-in for which published one, its layers and its parameters."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = config.get("text_config", config)
    return {
        "built": FAMILIES[name].model,
        "layers": text["num_hidden_layers"],
        "params": sum(count_parameters(file) for file in folder.glob("*.safetensors")),
    }


def count_parameters(file: Path) -> int:
    """Parameters in a safetensors file, from its header."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    sizes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
    return sum(functools.reduce(lambda a, b: a * b, shape, 1) for shape in sizes)


def predict(folder: Path, kind: str, load_in: Any) -> float | None:
    """The launcher's own prediction for this folder and this run, or none where it makes none."""
    try:
        sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
        from launcher import catalog
        from launcher.estimate import memory

        model = catalog.load().model(str(folder))
        setup = memory.Setup(
            load_in=load_in, engine="unsloth", max_length=MAX_LENGTH[kind], batch_size=BATCH[kind], lora_r=LORA_R,
            modality="vision" if kind == "vision" else "text", image_size=IMAGE_SIDE if kind == "vision" else None,
        )  # fmt: skip
        return round(memory.footprint(model, setup).peak, 3)
    except Exception as error:
        say(f"no prediction for {folder}: {type(error).__name__}: {error}")
        return None


def free() -> None:
    """Give the GPU memory of what is no longer used back to the trainings beside this."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def say(text: str) -> None:
    """Progress, with the time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main() -> int:
    """Parse the command line and run; the exit status is 1 where a family is not ok."""
    here = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description="Train and check every family through the rendered scripts.")
    add = parser.add_argument
    add("--only", nargs="+", choices=FAMILIES, metavar="NAME", help=", ".join(FAMILIES))
    add("--text", action="store_true", help="the text families only")
    add("--vision", action="store_true", help="the vision families only")
    add("--root", type=Path, default=Path("/tmp/families"), help="for models, rows, caches and logs")
    add("--out", type=Path, default=Path("families.jsonl"), help="one result a line; a family in it is not run again")
    add("--copy-to", type=Path, help="also copy results and logs there after each family")
    add("--script-dir", type=Path, default=here / "job_scripts")
    add("--python", default=sys.executable, help="interpreter of the training stack")
    add("--load-in", choices=["4bit", "16bit"], default="4bit")
    add("--layers", type=int, help="instead of each family's own few")
    add("--steps", type=int, default=24)
    add("--jobs", type=int, default=3, help="families at a time on the one GPU")
    add("--timeout", type=float, default=400, help="seconds for one script")
    add("--deadline", type=float, default=86400, help="seconds for everything: what has not begun by then waits")
    add("--least", type=float, default=90, help="seconds before the deadline in which no family is begun")
    add("--retry", action="store_true", help="run families again whose result is not ok")
    add("--keep", action="store_true", help="keep models and adapters")
    add("--tiny", action="store_true", help="tiny widths and vocabulary")
    add("--cpu", action="store_true")
    args = parser.parse_args()
    for name in ("root", "out", "script_dir", "copy_to"):
        if getattr(args, name):
            setattr(args, name, getattr(args, name).resolve())
    if args.cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["HF_HUB_OFFLINE"] = "1"
    return 1 if Bench(args).run() else 0


if __name__ == "__main__":
    sys.exit(main())
