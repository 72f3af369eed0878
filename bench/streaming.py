"""What a streamed dataset costs in memory, from 200 rows to 20,000, and how long the first step waits for it.

    $(uv python find --script job_scripts/sft_text.py) bench/streaming.py [--rows 200 2000 20000] [--out streaming.md]

Text: `job_scripts/sft_text.py` itself trains a tiny Mistral on this CPU, once through the rows. Pictures: Unsloth
trains no vision model on a CPU, so `job_scripts/sft_vlm.py`'s own reading and collating runs without a training step
behind it. Beside the stream stand, with the most rows, the same script not streamed, and the usual recipe that collects
a stream first, `list(rows.take(n))`. Memory is the process's resident set (VmRSS), sampled 20 times a second from the
first step on. Linux only; runs in the training stack's environment, one process at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import family_models
import job_script

SCRIPTS = Path(__file__).resolve().parent.parent / "job_scripts"
BATCH = {"text": 50, "pictures": 8}
FAMILY = {"text": "mistral", "pictures": "pixtral"}
# Where everything is collected or checked before the first batch, more pictures would tell nothing more.
BATCHES_AFTER_ALL = 50
COLUMNS = (
    "rows", "read", "data MiB", "RSS at first step", "RSS at last step", "peak RSS", "first step after s",
    "of the data read by then", "all data read after s", "whole run s",
)  # fmt: skip
_STEP = re.compile(r"step (\d+)/(\d+) ")


# ---- The rows --------------------------------------------------------------------------------------------------------


def write_text(path: Path, rows: int) -> Path:
    """Short chats, with a column of about 2 KB that nothing reads, as many datasets have."""
    lines = (
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": f"Where is {n % 97}?"},
                    {"role": "assistant", "content": "Beside the old mill."},
                ],
                "source": f"{n:08d} " * 220,
            }
        )
        for n in range(rows)
    )
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_pictures(path: Path, rows: int) -> Path:
    """Questions about pictures of 100 pixels; the same 140 pictures come again, but are stored again too."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    drawn = [family_models.picture(n, 100) for n in range(140)]
    image = {"feature": {"_type": "Image"}, "_type": "List"}
    turn = {name: {"dtype": "string", "_type": "Value"} for name in ("role", "content")}
    features = {"images": image, "messages": {"feature": turn, "_type": "List"}}
    schema = pa.schema(
        {
            "images": pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.string()})),
            "messages": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
        },
        {"huggingface": json.dumps({"info": {"features": features}})},
    )
    asked = [{"role": "user", "content": "Which digit is this?"}, {"role": "assistant", "content": "It is a digit."}]
    with pq.ParquetWriter(path, schema, use_dictionary=False, compression="none") as writer:
        for start in range(0, rows, 100):
            images = [[{"bytes": drawn[n % 140], "path": None}] for n in range(start, min(start + 100, rows))]
            table = {"images": images, "messages": [asked] * len(images)}
            writer.write_table(pa.table(table, schema=schema))
    return path


# ---- One process, watched from outside -------------------------------------------------------------------------------


@dataclass
class Watched:
    """One run: memory in MiB and seconds since its start."""

    first_step_s: float | None = None
    first_rss: float = 0
    last_rss: float = 0
    peak_rss: float = 0
    share_at_first_step: float = 0
    all_read_s: float | None = None
    whole_s: float = 0
    steps: int = 0
    log: list[str] = field(default_factory=list)


def watch(command: list[str], data: Path, home: Path) -> Watched:
    """Run the command to its end, sampling its memory and how far it has read the file of its data."""
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "HF_HOME": str(home), "UNSLOTH_DISABLE_STATISTICS": "1",
        "UNSLOTH_FORCE_CPU": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(Path(__file__).resolve().parent),
    }  # fmt: skip
    seen, began = Watched(), time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=home
    )
    total, furthest = data.stat().st_size, 0

    def sample() -> None:
        nonlocal furthest
        while process.poll() is None:
            memory = resident(process.pid)
            furthest = max(furthest, reached(process.pid, data))
            if furthest >= total and seen.all_read_s is None:
                seen.all_read_s = time.monotonic() - began
            # What imports and loading took for a moment is not the data's.
            if seen.first_step_s is not None:
                seen.peak_rss = max(seen.peak_rss, memory)
            time.sleep(0.05)

    sampler = threading.Thread(target=sample)
    sampler.start()
    assert process.stdout is not None
    for line in process.stdout:
        seen.log.append(line)
        if found := _STEP.match(line):
            seen.steps, memory = int(found[1]), resident(process.pid)
            seen.last_rss = memory or seen.last_rss
            if seen.first_step_s is None:
                seen.first_step_s, seen.first_rss = time.monotonic() - began, memory
                seen.share_at_first_step = furthest / total
    code = process.wait()
    sampler.join()
    seen.whole_s = time.monotonic() - began
    if code:
        sys.exit(f"{' '.join(command)} ended with {code}:\n{''.join(seen.log[-30:])}")
    return seen


def resident(pid: int) -> float:
    """VmRSS in MiB; 0 for a process that is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(found[1]) / 1024 if found else 0


def reached(pid: int, data: Path) -> int:
    """The furthest place in the file where the process's open files stand."""
    places = [0]
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                if link.readlink() == data:
                    info = Path(f"/proc/{pid}/fdinfo/{link.name}").read_text(encoding="utf-8")
                    places.append(int(info.split()[1]))
            except OSError:
                continue
    except OSError:
        pass
    return max(places)


# ---- The processes ---------------------------------------------------------------------------------------------------


def script_flags(kind: str, rows: int, read: str, model: Path, data: Path, home: Path) -> list[str]:
    flags = {
        "model": model, "dataset": data, "eval-rows": 0, "max-steps": rows // BATCH[kind], "batch-size": BATCH[kind],
        "gradient-accumulation": 1, "max-length": 256, "device": "cpu", "trackio-project": "",
        "output-dir": home / "out",
    }  # fmt: skip
    streams = "--streaming" if read == "streamed" else "--no-streaming"
    return [streams, *(f"--{name}={value}" for name, value in flags.items())]


def train_from_list(flags: list[str]) -> None:
    """The text script with another way to read: a stream that is collected first."""
    script = job_script.load("sft_text")

    def read(args: argparse.Namespace, split: str) -> Any:
        from datasets import Dataset, load_dataset

        rows = load_dataset("json", data_files=args.dataset, split=split, streaming=True)
        return Dataset.from_list(list(rows.take(args.max_steps * args.batch_size)))

    script.read_split = read
    script.main(script.read_options(script.Options, flags)).finish()


def collate_pictures(read: str, flags: list[str]) -> None:
    """The vision script's rows and batches, as its trainer gets them; or from the usual list of decoded rows."""
    from unsloth.chat_templates import train_on_responses_only  # isort: skip
    from datasets import load_dataset
    from torch.utils.data import DataLoader
    from transformers import AutoModelForImageTextToText, AutoProcessor

    script = job_script.load("sft_vlm")
    args = script.read_options(script.Options, flags)
    model = AutoModelForImageTextToText.from_pretrained(args.model)
    processor = AutoProcessor.from_pretrained(args.model)
    steps = args.max_steps if read == "streamed" else min(args.max_steps, BATCHES_AFTER_ALL)
    if read == "list":
        stream = load_dataset("parquet", data_files=args.dataset, split="train", streaming=True)
        taken = list(stream.take(args.max_steps * args.batch_size))
        rows: Any = [row | {"row_number": number} for number, row in enumerate(taken)]
    else:
        rows, _ = script.read_rows(args, pictures=True)
    reader = script.Reader(processor, list(next(iter(rows))), args)
    if read == "whole":
        script.check_rows(rows, reader)
    mask = train_on_responses_only(None, tokenizer=processor, return_function=True)
    collator = script.make_collator(model, reader, args, mask)
    for step, batch in enumerate(DataLoader(rows, args.batch_size, collate_fn=collator), 1):
        print(f"step {step}/{steps} | {batch['input_ids'].numel()} tokens", flush=True)
        if step == steps:
            break


# ---- The bench -------------------------------------------------------------------------------------------------------


def main(counts: list[int], out: Path | None) -> None:
    said = [where()]
    with tempfile.TemporaryDirectory(prefix="streaming-") as temporary:
        root = Path(temporary).resolve()
        for kind in ("text", "pictures"):
            build = [
                sys.executable,
                family_models.__file__,
                "--tiny",
                "--device",
                "cpu",
                FAMILY[kind],
                str(root / kind),
            ]
            subprocess.run(build, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            table = [COLUMNS, ("---:", "---", *["---:"] * (len(COLUMNS) - 2))]
            for rows, read in [*((rows, "streamed") for rows in counts), (counts[-1], "whole"), (counts[-1], "list")]:
                home = root / f"{kind}-{rows}-{read}"
                home.mkdir()
                write, name = (write_text, "rows.jsonl") if kind == "text" else (write_pictures, "rows.parquet")
                data = write(home / name, rows)
                flags = script_flags(kind, rows, read, root / kind, data, home)
                command = [sys.executable, str(Path(__file__).resolve()), "--child", f"{kind} {read}", *flags]
                if kind == "text" and read != "list":
                    command = [sys.executable, str(SCRIPTS / "sft_text.py"), *flags]
                seen = watch(command, data, home)
                table.append(cells(rows, read, data.stat().st_size, seen))
                print(" | ".join(table[-1]), file=sys.stderr, flush=True)
            title = (
                "Text, trained by `sft_text.py`" if kind == "text" else "Pictures, read and collated by `sft_vlm.py`"
            )
            said += [f"{title}:", "\n".join("| " + " | ".join(row) + " |" for row in table)]
    text = "\n\n".join(said) + "\n"
    print(text)
    if out:
        out.write_text(text, encoding="utf-8")


def cells(rows: int, read: str, size: int, seen: Watched) -> tuple[str, ...]:
    """One row of the table."""
    first, everything = seen.first_step_s or 0, seen.all_read_s
    # A table that was written first is read from its copy: the original was done before.
    share = 1.0 if read != "streamed" else seen.share_at_first_step
    end = f"{everything:.1f}" if everything else "before the first step" if read != "streamed" else "–"
    return (
        f"{rows:,}", read, f"{size / 2**20:.1f}", f"{seen.first_rss:.0f}", f"{seen.last_rss:.0f}",
        f"{seen.peak_rss:.0f}", f"{first:.1f}", f"{share:.0%}", end, f"{seen.whole_s:.1f}",
    )  # fmt: skip


def where() -> str:
    """Date, machine and versions, as one sentence."""
    names = ("unsloth", "trl", "transformers", "datasets", "torch", "pyarrow")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    return (
        f"{date.today():%d %B %Y}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, {versions}. Memory in MiB."
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child_kind, child_read = sys.argv[2].split()
        if child_kind == "text":
            train_from_list(sys.argv[3:])
        else:
            collate_pictures(child_read, sys.argv[3:])
    else:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--rows", type=int, nargs="+", default=[200, 2000, 20000], help="sizes, the largest last")
        parser.add_argument("--out", type=Path, help="write the tables there too")
        options = parser.parse_args()
        main(options.rows, options.out)
