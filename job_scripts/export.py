# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = [
#   "unsloth==2026.10.9",
#   "unsloth_zoo==2026.10.9",
#   "trl==1.15.0",
#   "transformers==5.17.0",
#   "datasets==4.8.5",
#   "peft==0.21.2",
#   "trackio==0.43.0",
#   "matplotlib==3.11.2",
# ]
#
# [tool.uv]
# exclude-newer = "2026-11-20T00:00:00Z"
# override-dependencies = ["certifi>=2026.1"]
#
# [tool.hf-jobs]
# flavor = "a10g-large"
# timeout = "7200s"
# secrets = ["HF_TOKEN"]
# ///
"""Make copies of a model that was fine-tuned with LoRA: merged, or as GGUF files (Unsloth, llama.cpp).

Of the adapter of a run, here or on the machine that the header above names:
    uv run job_scripts/export.py --adapter USER/MODEL --merge 16bit --gguf q4_k_m --output-repo USER/MODEL
    hf jobs uv run job_scripts/export.py --adapter USER/MODEL --gguf q4_k_m --output-repo USER/MODEL

On a CPU, of a text model that fits its memory in 16 bits:
    uv run job_scripts/export.py --adapter outputs/my-run --merge 16bit --device cpu

With --dry-run it says what would be made, or why that can't be; before a training, with --model and no --adapter.
Each copy is loaded again and compared with the adapter on its model. One that fails costs no other. The last line
printed is `RESULT {json}`.
"""

from __future__ import annotations

import argparse
import faulthandler
import fcntl
import hashlib
import itertools
import json
import math
import multiprocessing
import os
import random
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
import urllib.request
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from itertools import takewhile
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import correlation
from types import FrameType
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints


# fmt: off
@dataclass(frozen=True, kw_only=True)
class Options:
    """What was chosen for this run; each is the default of the flag of its name (`--help`)."""

    model: Annotated[str, "Alias (`launch models`), Hub repo id or local folder."] = "unsloth/Qwen3-8B"
    revision: Annotated[str | None, "Branch, tag or commit of the model."] = None
    load_in: Annotated[Literal["4bit", "16bit"], "Precision of the frozen weights."] = "4bit"
    trust_remote_code: Annotated[bool, "Run the Python of the model's repo; only with --revision as a whole commit hash."] = False
    adapter: Annotated[str | None, "Hub repo id or local folder of the adapter."] = None
    adapter_revision: Annotated[str | None, "Branch, tag or commit of the adapter."] = None
    modality: Annotated[Literal["text", "vision"] | None, "Else as its run.json says."] = None
    output_repo: Annotated[str | None, "Where the result is pushed, NAME or NAMESPACE/NAME."] = None
    private: Annotated[bool, "Create the output repo as private; so it is where the data is from here, or private."] = False
    merge: Annotated[Literal["16bit", "4bit"] | None, "Merge the adapter into the model, as a copy of its own."] = None
    merged_repo: Annotated[str | None, "Where the merged model is pushed (else merged/ in the repo)."] = None
    gguf: Annotated[tuple[Literal["f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k"], ...], "Export as a GGUF file of that type, such as q4_k_m; may be repeated."] = ()
    run_name: Annotated[str, "Name of the run."] = "export"
    dry_run: Annotated[bool, "Only say whether the copies can be made."] = False
    output_dir: Annotated[str | None, "Else output/ on the Job's volume, or outputs/RUN_NAME."] = None
    timeout_s: Annotated[int, "Seconds until the Job is killed (0: never)."] = 7200
    device: Annotated[Literal["auto", "cpu"], "cpu: without a GPU."] = "auto"


# What was planned for these options, how the model's makers sample it and where they say so, and its licence.
PLANNED: dict[str, Any] = {
    "peak_gib": 7.77,
    "compile_s": 15,
    "generation": {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.0},
    "generation_source": "https://huggingface.co/Qwen/Qwen3-8B#best-practices",
    "licence": {"license": "apache-2.0"},
}
# fmt: on
# Bytes a second that a disk and an upload may well take. The adapter is safe: what comes to nothing costs only its time.
DISK_SPEED, UPLOAD_SPEED = 200e6, 40e6


# ---- The export ------------------------------------------------------------------------------------------------------


def main(options: Options) -> int:
    """Refuse what can't be made, merge, then convert, check and push each copy; the status of the process."""
    export = Export(options)
    CLOCK.start(deadline(options.timeout_s, volume() or Path(tempfile.gettempdir())), export.cut_off)
    phase("check")
    export.found = found = check(options)
    if options.dry_run:
        tell_plan(found, export.copies)
        return 0

    CLOCK.at_once = False
    all_pushed = bool(found.repo or (found.merged_repo and not options.gguf))
    place, work = open_places(found.output_dir, is_jobs_own(options), all_pushed)
    try:
        phase("merge")
        kinds = sorted({copy.source for copy in export.copies})
        export.trained = trained = merge_apart(options, found, kinds, work)
        merged = check_merged_copies(export, found, trained, kinds, work)
        for copy in export.copies:
            if copy.error == NOT_MADE:
                phase(f"export {copy.kind} {copy.name}")
                make(copy, export, found, trained, merged, place, work)
    except TimeUpError as end:
        export.fail_rest(f"left out: {end}")
    except Exception as error:
        export.fail_rest(reason(error))
    shutil.rmtree(work, ignore_errors=True)
    tell_in_cards(export, found, place)
    if place != found.output_dir and not any(copy.error for copy in export.copies):
        # All of it was pushed.
        shutil.rmtree(place, ignore_errors=True)
    CLOCK.rest()
    return export.tell()


@dataclass(frozen=True)
class Found:
    """What the check found: the adapter's folder, its model and that one's size in 16 bits, and where copies go."""

    adapter: Path
    base: Base
    whole_bytes: float
    output_dir: Path
    stem: str
    repo: str | None
    merged_repo: str | None
    llama_cpp: Path | None


class Export:
    """What was asked for, and what became of it so far: all that RESULT tells."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.copies = asked_copies(options.merge, options.gguf)
        self.found: Found | None = None
        self.trained: Trained | None = None

    def fail_rest(self, problem: str, source: str | None = None) -> None:
        """Note the problem for the copies that nothing has become of yet, or for those of that merged copy."""
        for copy in self.copies:
            if copy.error == NOT_MADE and source in (None, copy.source):
                copy.error = problem
                note(f"{copy.kind} {copy.name}: {problem}")

    def cut_off(self) -> int:
        """The last words where something does not return in time."""
        self.fail_rest(f"left out: {'asked to stop' if CLOCK.signalled else 'the time was up'}")
        return self.tell()

    def tell(self) -> int:
        """Print the RESULT line and, of copies that are not all there, how to try again; the process's status."""
        options, found, made = self.options, self.found, [copy for copy in self.copies if not copy.error]
        repo = found.repo or found.merged_repo if found else None
        result = {
            "status": "done" if len(made) == len(self.copies) else "failed",
            "stopped": None,
            "adapter": options.adapter,
            "model": found.base.name if found else options.model,
            "peak_gib": self.trained.peak_gib if self.trained else None,
            "device": self.trained.device if self.trained else None,
            "output_dir": str((found.output_dir if found else output_folder(options)).resolve()),
            "output_repo": found.repo if found else options.output_repo,
            "url": f"{os.environ.get('HF_ENDPOINT', 'https://huggingface.co')}/{repo}" if made and repo else None,
            "pushed": bool(made) and all(copy.repo for copy in made),
            "exports": [asdict(copy) for copy in self.copies],
        }
        tell("RESULT " + json.dumps(finite(result), allow_nan=False))
        error = failed_copies(self.copies, str(options.adapter), options.merged_repo)
        if error:
            error.tell()
        return error.status if error else 0


# ---- Before anything is made -----------------------------------------------------------------------------------------


def check(options: Options) -> Found:
    """Find all that the copies are made of; `UserError` of status 3 where one of them can't be made or pushed."""
    set_environment(options)
    adapter = fetch_adapter(options.adapter, options.adapter_revision) if options.adapter else None
    needs_whole = bool(options.gguf) or options.merge == "16bit"
    base = find_base(adapter, options.model, options.revision, options.modality, options.trust_remote_code, needs_whole)
    if options.trust_remote_code and not is_commit(base.revision):
        hint = "Give --revision with the 40 digits of the commit that was read."
        raise UserError(f"--trust-remote-code: no commit of {base.name} is known.", hint, status=2)
    if options.device == "cpu" and base.sees:
        hint = "Use a machine with one: `launch export` finds it."
        raise UserError(f"Unsloth loads {base.name}, a vision model, on a GPU only.", hint, status=3)
    if options.device == "auto":
        apart(find_gpu, options)
    create = not options.dry_run
    repo = open_repo(options.output_repo, options.private, create) if options.output_repo else None
    merged_repo = open_merged_repo(options.merged_repo, repo, options.private, create) if options.merged_repo else None
    llama_cpp = get_llama_cpp(options.gguf, build=create) if options.gguf else None
    if llama_cpp:
        require_convertible(base.name, base.config, base.sees, llama_cpp)
    beside = bool(options.adapter) and Path(str(options.adapter)).is_dir() and not options.output_dir
    output_dir = Path(str(options.adapter)) if beside else output_folder(options)
    if not beside and create:
        claim(options)
    whole_bytes = model_bytes(base.whole, base.whole_revision, base.config)
    parts = copy_bytes(asked_copies(options.merge, options.gguf), whole_bytes)
    if base.whole != base.name and not Path(base.whole).is_dir():
        parts[f"{base.whole} in 16 bits"] = whole_bytes
    told = [f"{name} {size / 1e9:.1f} GB" for name, size in parts.items()]
    disk = Path(tempfile.gettempdir()) if is_jobs_own(options) else output_dir
    require_disk(disk, sum(parts.values()), told, "Free some, or give --output-dir on another disk.")
    # A chosen adapter's own name; of one that a flag names, the run's.
    chosen = Path(str(options.adapter)).resolve().name if options.adapter == Options.adapter else None
    stem = gguf_stem(repo or (chosen if options.adapter else None) or options.run_name)
    return Found(adapter or Path(), base, whole_bytes, output_dir, stem, repo, merged_repo, llama_cpp)


def tell_plan(found: Found, copies: Sequence[Copy]) -> None:
    """One line for each copy that would be made."""
    for copy in copies:
        merged = copy.kind == "merged"
        repo = (found.merged_repo if merged else None) or found.repo
        name = MERGED if merged else f"{found.stem}.{copy.name.upper()}.gguf"
        where = f"pushed to {repo}" if repo else f"in {found.output_dir}"
        note(f"{copy.kind} {copy.name}: {name}, about {found.whole_bytes * copy.bits / 16 / 1e9:.1f} GB, {where}")


# ---- Merge -----------------------------------------------------------------------------------------------------------


def merge_apart(options: Options, found: Found, kinds: Sequence[str], work: Path) -> Trained:
    """Write the merged copies of these kinds into `work`; what the adapter on its model answers."""
    require_time(2 * found.whole_bytes / DISK_SPEED)
    base, four_bits = found.base, options.load_in == "4bit" and options.device != "cpu"
    whole = fetch_model(base.whole, base.whole_revision)
    loaded = fetch_model(base.name, base.revision) if four_bits else whole
    if "16bit" in kinds and not Path(base.whole).is_dir():
        note(f"merged into {base.whole} of commit {whole.name}")
    settings = recommended(replace(options, model=base.name), PLANNED)
    trained: Trained = apart(
        merge_adapter, found.adapter, loaded, whole, kinds, work, settings, base.sees, four_bits,
        options.trust_remote_code,
    )  # fmt: skip
    return trained


def check_merged_copies(
    export: Export, found: Found, trained: Trained, kinds: Sequence[str], work: Path
) -> dict[str, tuple[str, Seen]]:
    """What was found of each merged copy, loaded with plain transformers, and what it answers; others fail."""
    merged = {}
    for kind in kinds:
        if kind in trained.errors:
            export.fail_rest(trained.errors[kind], kind)
            continue
        words = (work / kind, trained.seen, found.base.sees, export.options.trust_remote_code)
        try:
            merged[kind] = apart(check_merged, *words)
        except DifferentError as error:
            export.fail_rest(reason(error), kind)
        except RuntimeError as error:
            if not re.search("out of memory|killed by signal 9", str(error)):
                export.fail_rest(f"it can't be loaded again ({reason(error)})", kind)
                continue
            # What was trained in 4 bits may not fit in 16.
            merged[kind] = f"not loaded again, for want of memory ({reason(error)})", trained.seen
    return merged


# ---- Each copy -------------------------------------------------------------------------------------------------------


def make(
    copy: Copy, export: Export, found: Found, trained: Trained, merged: dict[str, tuple[str, Seen]], place: Path,
    work: Path,
) -> None:  # fmt: skip
    """Convert what was merged if it is a GGUF file, put it in its place, and push it; the copy notes what became of it."""
    pushed = found.whole_bytes * copy.bits / 16 / UPLOAD_SPEED if found.repo or found.merged_repo else 0
    require_time(2 * found.whole_bytes / DISK_SPEED + pushed)
    checked, seen = merged[copy.source]
    try:
        if copy.kind == "merged":
            folder = land(work / copy.name, place / MERGED)
            copy.path, copy.checked = MERGED, checked
            copy.gib = sum((folder / path).stat().st_size for path in every_file(folder)) / 2**30
            copy.repo = found.merged_repo or found.repo
            if copy.repo:
                push_merged(folder, copy.repo, alone=bool(found.merged_repo))
        else:
            assert found.llama_cpp is not None
            # Of the copy that was asked for too, or of one for this alone.
            folder = work / copy.source if (work / copy.source).is_dir() else place / MERGED
            file, copy.checked = make_gguf(
                copy.name, found.stem, folder, seen, found.base.sees, work, place, found.llama_cpp
            )
            copy.path, copy.gib = file.name, file.stat().st_size / 2**30
            if not any(other.kind == "gguf" and not other.error for other in export.copies):
                sight = sight_of(file)
                names = [file.name, *([sight.name] if sight else [])]
                write_modelfile(place, names, trained.settings, trained.form)
            if found.repo:
                push_gguf(file, copy.name, found.repo)
                copy.repo = found.repo
        copy.error = None
        where = f"pushed to {copy.repo}" if copy.repo else f"in {place}"
        note(f"{copy.path}: {copy.gib:.2f} GiB, {where}; {copy.checked}")
    except TimeUpError:
        raise
    except Exception as error:
        copy.error = reason(error)
        note(f"{copy.kind} {copy.name} failed: {copy.error}")


# ---- The card --------------------------------------------------------------------------------------------------------


def tell_in_cards(export: Export, found: Found, place: Path) -> None:
    """Let the cards tell of what was made: the one beside the copies, and that of a merged model's own repo."""
    made = [copy for copy in export.copies if not copy.error]
    if not made:
        return
    options, base = export.options, found.base
    commit = base.revision if is_commit(base.revision) else None
    chats = export.trained and export.trained.form.has_template
    asks = "picture" if base.sees else "chat" if chats else "text"
    origin = Origin(str(options.adapter), base.name, commit, asks, options.trust_remote_code, options.run_name)
    beside = partial(card_beside, origin, found.adapter, found.output_dir, found.repo, export.copies)
    put_card(found.output_dir, found.repo, beside)
    # There it is the repo, and in no folder of it.
    alone = [replace(copy, path=None) for copy in made if copy.kind == "merged"]
    if found.merged_repo and alone:
        own = partial(copies_card, origin, found.adapter, found.merged_repo, alone)
        put_card(place / MERGED, found.merged_repo, own)


# ---- The command line ------------------------------------------------------------------------------------------------


def settle(options: Options) -> Options:
    """The options with a name for the run; `UserError` of status 2 for what can't work."""
    if not options.adapter and not options.dry_run:
        refuse(options, "adapter", "name the adapter, a repo or a folder")
    adapter = str(options.adapter or "")
    if adapter.startswith((".", "/", "~")) and not Path(adapter, "adapter_config.json").is_file():
        refuse(options, "adapter", "there is no adapter_config.json in it")
    if not options.merge and not options.gguf:
        raise UserError("nothing is asked for.", "Add --merge 16bit, or --gguf q4_k_m.", status=2)
    check_options(options)
    if options.adapter != Options.adapter:
        # Of another adapter than the chosen one, whose these are, only what flags give.
        names = ("model", "revision", "modality", "run_name")
        unknown: dict[str, Any] = {name: None for name in names if getattr(options, name) == getattr(Options, name)}
        options = replace(options, **unknown)
    return replace(options, run_name=options.run_name or Path(adapter).resolve().name)


# ---- Say -------------------------------------------------------------------------------------------------------------
# Lines for whoever follows the run, and errors that say what to do next.

# Given by whoever started this, and known to no row: a line that ends with it is the script's own.
MARK = f" #{os.environ['LAUNCH_MARK']}" if os.environ.get("LAUNCH_MARK") else ""


class UserError(Exception):
    """What is wrong and what to do next: shown as one paragraph, without a traceback."""

    def __init__(self, message: str, hint: str = "", status: int = 1) -> None:
        super().__init__(message, hint, status)
        self.paragraph, self.status = f"{message} {hint}".strip(), status

    def tell(self) -> None:
        tell(f"error: {self.paragraph}", sys.stderr)


def tell(line: str, stream: Any = None) -> None:
    """Say one line, whatever it quotes, to whoever follows the run."""
    print(re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", line) + MARK, file=stream, flush=True)


def heard(line: str) -> str | None:
    """What such a line says; none for any other."""
    return line.removesuffix(MARK) if line.endswith(MARK) else None


def phase(name: str) -> None:
    tell(f"== {name}")


def note(text: str) -> None:
    """Say what is for people only."""
    print(text, flush=True)


def reason(error: BaseException) -> str:
    """The first line of what a library says, which often goes on for pages."""
    said = error.args[0] if isinstance(error, UserError) else str(error)
    # The Hub's client begins with the number of its request.
    lines = [line.strip(" .") for line in said.splitlines() if line.strip() and not line.startswith("(Request ID")]
    return lines[0] if lines else type(error).__name__


def finite(value: Any) -> Any:
    """The value as JSON has it, with null for what is no number there."""
    return json.loads(json.dumps(value), parse_constant=lambda _: None, parse_float=lambda text: round(float(text), 6))


# ---- Models ----------------------------------------------------------------------------------------------------------
# The machine and the model, known to be there before anything is loaded, and what they are trained with.


def set_environment(args: Any) -> None:
    """What libraries read of it when they are imported."""
    # Bars have no place in a log; Unsloth's generated code has none in the working directory.
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # Where CI is set, torch takes the memory planning that Unsloth turns on for an error.
    os.environ.pop("CI", None)
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", tempfile.mkdtemp(prefix="unsloth-"))
    # One process trains on one GPU.
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    if args.device == "cpu":
        os.environ.update(CUDA_VISIBLE_DEVICES="", UNSLOTH_FORCE_CPU="1")
    # Only --trackio-space sends metrics away: Trackio would follow the environment too.
    for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        os.environ.pop(name, None)


def find_gpu(args: Any) -> bool:
    """Whether a GPU trains; `UserError` of status 3 where there is none and the CPU was not asked for."""
    import torch

    found = args.device == "auto" and torch.cuda.is_available()
    if not found and (args.device == "auto" or hasattr(args, "image_size")):
        hint = "Use a machine with one, or train a text model with --device cpu: vision models need a GPU."
        raise UserError("no usable CUDA GPU was found here.", hint, status=3)
    return bool(found)


def check_model(model: str, revision: str | None, trusted: bool = False) -> dict[str, Any]:
    """The model's config.json; `UserError` of status 3 where there is none to be read, or it names foreign code."""
    from huggingface_hub import errors, hf_hub_download, list_repo_files

    is_here = Path(model).is_dir()

    def read(name: str) -> dict[str, Any]:
        path = Path(model, name) if is_here else hf_hub_download(model, name, revision=revision)
        found: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        return found

    try:
        config = read("config.json")
        files = list_repo_files(model, revision=revision) if trusted and not is_here else []
        configs = {name: read(name) for name in files if "/" not in name and name.endswith("config.json")}
    except errors.GatedRepoError as error:
        hint = f"Accept its terms at https://huggingface.co/{model} with the account of your HF_TOKEN."
        raise UserError(f"{model} is gated and this account has no access.", hint, status=3) from error
    except Exception as error:
        hint = "Check the name, the revision, the token and the network."
        raise UserError(f"the model {model} can't be read ({reason(error)}).", hint, status=3) from error
    # The revision pins the model's own code, and of another repo the newest would be run.
    for name, content in configs.items():
        if "--" in json.dumps(content.get("auto_map")):
            hint = "Copy the code into a repo of your own, beside the model."
            raise UserError(f"{name} of {model} names code of another repo, which nothing pins.", hint, status=3)
    return config


# ---- Places ----------------------------------------------------------------------------------------------------------
# Where things lie: the Job's volume, the output, the disk, and what is a repo on the Hub.

# In a folder that is a run's own, and locked while one works in it.
OWN = ".launch"
# Seconds between two signs of life on a volume, where nothing can be locked.
ALIVE_S = 50.0
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)


def volume() -> Path | None:
    """The folder that outlives a Job's machine, or none where this is no Job."""
    if os.environ.get("LAUNCH_DATA_DIR"):
        return Path(os.environ["LAUNCH_DATA_DIR"])
    return Path("/data") if os.environ.get("JOB_ID") and Path("/data").is_dir() else None


def is_jobs_own(args: Any) -> bool:
    """Whether what is written goes to this Job's volume, where every attempt finds the same."""
    return bool(volume()) and not args.output_dir


def output_folder(args: Any) -> Path:
    """Where the model is saved."""
    place = volume()
    if args.output_dir:
        return Path(args.output_dir)
    return place / "output" if place else Path("outputs", args.run_name)


def claim(args: Any) -> None:
    """Make the output folder this run's own, until the process ends.

    Raises `UserError` of status 2 where it holds what no run made: there nothing is replaced, deleted or pushed; of
    status 3 where another run works in it, or it can't be written to.
    """
    folder, jobs_own = output_folder(args), is_jobs_own(args)
    place = str(folder.resolve())
    # Locked by what started this process, or what it was before it began again.
    if place == os.environ.get("LAUNCH_HOLDS"):
        return
    try:
        own = jobs_own or any((folder / name).is_file() for name in (OWN, "checkpoints/attempt"))
        if not own and folder.exists() and any(folder.iterdir()):
            hint = "Give --output-dir another one, or an empty one."
            raise UserError(f"the output folder {folder} is not empty, and no run made it.", hint, status=2)
        folder.mkdir(parents=True, exist_ok=True)
        if jobs_own:
            # Anew in each process: no thread outlives that, as a lock does.
            show_life(folder.with_name("alive"))
        else:
            lock(folder / OWN)
            os.environ["LAUNCH_HOLDS"] = place
    except OSError as error:
        hint = "Make room, or give --output-dir another folder."
        raise UserError(f"the output folder {folder} can't be used ({reason(error)}).", hint, status=3) from error


def lock(path: Path) -> None:
    """Hold the file until this process ends, however it ends; it may begin again in its own place."""
    file = os.open(path, os.O_CREAT | os.O_RDWR)
    os.set_inheritable(file, True)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        hint = "Wait for its end, or give --output-dir another folder."
        raise UserError(f"another run works in {path.parent}.", hint, status=3) from error
    except OSError:
        note(f"{path.parent} can't be locked: start no second run in it")


def show_life(path: Path) -> None:
    """Refuse where another Job writes its sign of life into that file, and write this one's from now on."""
    job = os.environ.get("JOB_ID", "")

    def read() -> tuple[str, float]:
        try:
            other, moment = path.read_text(encoding="utf-8").split()
            return other, float(moment)
        except (OSError, ValueError):
            return job, 0.0

    def write() -> None:
        while True:
            try:
                path.write_text(f"{job} {time.time()}", encoding="utf-8")
            except OSError as error:
                note(f"{path} can't be written ({reason(error)})")
            time.sleep(ALIVE_S)

    other, moment = read()
    if other != job and time.time() - moment < 3 * ALIVE_S:
        time.sleep(2 * ALIVE_S)
        if read()[1] > moment:
            hint = f"`launch wait {other}` follows it, `launch cancel {other}` stops it."
            raise UserError(f"Job {other} works on this run.", hint, status=3)
    threading.Thread(target=write, daemon=True).start()


def is_commit(revision: str | None) -> bool:
    """Whether that is a whole commit hash, which names the same files for ever."""
    return bool(re.fullmatch("[0-9a-f]{40}", revision or ""))


def is_hub_id(name: str) -> bool:
    """Whether that names a repo on the Hub: what is there on this machine wins, as it does when it is loaded."""
    return bool(HUB_ID.fullmatch(name)) and not Path(name).exists()


def require_disk(folder: Path, needed: float, told: Sequence[str], hint: str) -> None:
    """Refuse where the folder's disk has less room than that many bytes; `told` is what they are."""
    place = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    usage = shutil.disk_usage(place)
    # A mounted bucket has no size.
    if usage.total and usage.free < needed:
        message = f"the disk of {place} has {usage.free / 1e9:.2f} GB free, and this run writes {needed / 1e9:.2f} GB"
        raise UserError(f"{message} ({', '.join(told)}).", hint, status=3)


def sha256(path: Path, *, sync: bool = False) -> str:
    """The file's hash; with `sync` its content is on the disk afterwards."""
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- Clock -----------------------------------------------------------------------------------------------------------
# The time that a run has: until its deadline, and after a signal until it is killed.

# Kept where the process begins again (`os.execv`).
STARTED = float(os.environ.get("LAUNCH_STARTED") or time.monotonic())
# Seconds between SIGTERM and the end, within which the work is saved.
GRACE_S = 25.0
SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
# Of the time that is left, what the script's own end takes: its RESULT, Python's exit.
LAST_S = 5.0


def deadline(timeout_s: float, folder: Path) -> float:
    """When a Job is killed, on the clock of `time.monotonic`: all its attempts together have `timeout_s` seconds.

    The first attempt notes in the folder when its container began, which is when the first process there did.
    """
    now, today, job = time.monotonic(), time.time(), os.environ.get("JOB_ID")
    if not timeout_s:
        return math.inf
    lived = now - STARTED
    if job and not os.environ.get("LAUNCH_DATA_DIR"):
        ticks = int(Path("/proc/1/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
        container = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        # Older than its timeout it would not live: then the first process is another machine's.
        lived = container if lived < container < timeout_s else lived
    began = today - lived
    if job:
        # A Job that resumes this one has a timeout of its own.
        noted = folder / f"began-{hashlib.sha256(job.encode()).hexdigest()[:12]}"
        try:
            if not noted.exists():
                noted.write_text(str(began), encoding="utf-8")
            earlier = float(noted.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            note(f"{noted} does not say when this Job began: counted from now ({reason(error)})")
        else:
            # A Job that is older than its timeout by a day is none: that is no beginning.
            began = min(began, earlier) if earlier > today - timeout_s - 86400 else began
    return now + timeout_s - (today - began)


class Clock:
    """Says how much time is left, and ends the process where a library does not come back in time.

    A library may wait for as long as it likes, and need not return to Python: `last_s` before the end, or with
    `at_once` at a signal, a thread of this clock says the last words and ends the process with the status that they
    return. It also ends one that has not been `heard` of for longer than its `patience_s`.
    """

    def __init__(self) -> None:
        self.deadline, self.signalled = math.inf, 0.0
        self.heard, self.patience_s = 0.0, math.inf
        self.last_words: Callable[[], int] | None = None
        self.at_once, self.last_s, self.lock = False, LAST_S, threading.Lock()

    def start(self, ends: float, last_words: Callable[[], int]) -> None:
        """Begin: from now on a signal asks to stop, at once as long as there is nothing to save."""
        self.deadline, self.last_words, self.at_once = ends, last_words, True
        heard, told = os.pipe()
        os.set_blocking(told, False)
        # It is written to although the main thread is deep in a library, where no handler of Python's is called.
        signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, self.on_signal)
        # What ends a child is not meant for this process.
        os.register_at_fork(after_in_child=self.forget)
        threading.Thread(target=self.watch, args=(heard,), daemon=True).start()

    def rest(self) -> None:
        """Leave the last words to whoever calls this, unless they are being said."""
        with self.lock:
            self.last_words, self.patience_s = None, math.inf

    def forget(self) -> None:
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        # A terminal and uv may both pass the first one on.
        if number == signal.SIGINT and self.signalled and time.monotonic() > self.signalled + 1:
            raise KeyboardInterrupt
        self.signalled = self.signalled or time.monotonic()

    def left_s(self) -> float:
        """Seconds until the end, as far as it is known."""
        return min(self.deadline, self.signalled + GRACE_S if self.signalled else math.inf) - time.monotonic()

    def watch(self, heard: int) -> None:
        while True:
            if select.select([heard], [], [], 0.5)[0] and SIGNALS & {*os.read(heard, 512)}:
                self.signalled = self.signalled or time.monotonic()
            with self.lock:
                if time.monotonic() - self.heard > self.patience_s:
                    self.end(self.stalled)
                if self.last_words and (self.left_s() < self.last_s or (self.at_once and self.signalled)):
                    self.end(self.last_words)

    def end(self, last_words: Callable[[], int]) -> None:
        status = 1
        try:
            status = last_words()
        finally:
            sys.stdout.flush()
            os._exit(status)

    def stalled(self) -> int:
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        told = f"error: stalled: no step has ended for {time.monotonic() - self.heard:.0f} s."
        tell(f"{told} The stacks above show where; run this again: it goes on from the last checkpoint.", sys.stderr)
        return 1


CLOCK = Clock()


def refusal() -> Path | None:
    """Where an attempt of this Job notes for the next one what this script refused; none outside of a Job."""
    place, job = volume(), os.environ.get("JOB_ID", "")
    whose = hashlib.sha256(f"{job} {Path(__file__).name}".encode()).hexdigest()[:12]
    return place / f"refused-{whose}" if place and job else None


@contextmanager
def errors_told() -> Iterator[None]:
    """End with one line and a status, and without a traceback, where a user can do something about it.

    What is asked for does not change from one attempt of a Job to the next: what was refused once, with status 2, is
    refused at once by those that follow.
    """
    for stream in (sys.stdout, sys.stderr):
        # A row is shown, as far as may be, on a terminal that knows ASCII only.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    noted = refusal()
    try:
        if noted and noted.is_file():
            note("an earlier attempt of this Job refused what is asked for, and so does this one")
            raise UserError(noted.read_text(encoding="utf-8", errors="replace"), status=2)
        yield
    except BaseException as end:
        CLOCK.rest()
        if not isinstance(end, UserError | KeyboardInterrupt):
            raise
        problem = end if isinstance(end, UserError) else UserError("interrupted.", status=130)
        problem.tell()
        if noted and problem.status == 2:
            with suppress(OSError):
                noted.write_text(problem.paragraph, encoding="utf-8", errors="replace")
        sys.exit(problem.status)


# ---- Push ------------------------------------------------------------------------------------------------------------
# The push: known to be possible before the training, verified file by file, and kept with a command where it fails.

Answer = TypeVar("Answer")
# The model is kept anyway, and a GPU costs money while it waits: eight attempts last a few minutes.
ATTEMPTS, LONGEST_WAIT_S, LONGEST_WAITS_S = 8, 60.0, 900.0


def open_repo(name: str, private: bool, create: bool = True) -> str:
    """The output repo's full name, found there or created, and this token may write to it: known before any training.

    Raises `UserError` of status 3 where it can't be written to, or is public although it should be private.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import RepositoryNotFoundError

    if not get_token():
        raise UserError(
            f"{name} can't be written to without a token.", "Run `hf auth login` or set HF_TOKEN.", status=2
        )
    api = hub()
    try:
        if "/" not in name:
            name = f"{persist('asking who this token belongs to', api.whoami)['name']}/{name}"
        try:
            found = persist(f"looking up {name}", lambda: api.model_info(name))
        except RepositoryNotFoundError:
            if create:
                persist(f"creating {name}", lambda: api.create_repo(name, private=private, exist_ok=True))
            return name
        if found.id != name:
            note(f"{name} is now called {found.id}")
        persist(f"asking for {name}", lambda: api.auth_check(found.id, write=True))
    except Exception as error:
        hint = "Check the name, the token and the network, or leave --output-repo away."
        raise UserError(f"{name} can't be written to ({reason(error)}).", hint, status=3) from error
    if private and not found.private:
        hint = "Make it private on its page, or choose another --output-repo."
        raise UserError(f"--private: {found.id} is there already, and public.", hint, status=3)
    return str(found.id)


def hub() -> Any:
    """The Hub's client, which sends nothing that is written on to another host."""
    from huggingface_hub import HfApi, get_session

    hooks = get_session().event_hooks["response"]
    if hold not in hooks:
        hooks.append(hold)
    return HfApi()


def hold(response: Any) -> None:
    """Refuse a redirection to another host: the client would send the model there."""
    from huggingface_hub.errors import HfHubHTTPError

    request = response.request
    if response.has_redirect_location and request.method not in ("GET", "HEAD"):
        target = request.url.join(response.headers["location"])
        if (target.scheme, target.netloc) != (request.url.scheme, request.url.netloc):
            raise HfHubHTTPError(f"{request.url.host} sends it on to {target.host}, another host", response=response)


def push(folder: Path, repo: str, paths: Collection[str], stale: Collection[str] = ()) -> str:
    """Upload these files of the folder in one commit, and again until the Hub holds each as it is here; its address.

    Files that are `stale` in the repo are deleted with it.
    Raises `UserError` with the command that brings the model to the repo later: it stays in the folder.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    api, folder, files = hub(), Path(folder), sorted({*paths})

    def attempt() -> None:
        # What the Hub holds already is left out of the commit, so that a lost answer makes no second one, which
        # `upload_folder` does. The Hub refuses to delete what is gone, as after a lost answer.
        gone = sorted({*stale}.intersection(api.list_repo_files(repo)).difference(files)) if stale else []
        changes: list[Any] = [CommitOperationAdd(path, folder / path) for path in files]
        changes += [CommitOperationDelete(path) for path in gone]
        api.create_commit(repo, changes, commit_message="Trained with launch")
        found = api.verify_repo_checksums(repo, local_dir=folder)
        wrong = {*found.extra_paths, *(mismatch["path"] for mismatch in found.mismatches)}.intersection(files)
        if wrong:
            raise RuntimeError(f"the Hub does not hold {', '.join(sorted(wrong))} as sent")

    try:
        persist(f"the push to {repo}", attempt)
    except Exception as error:
        raise UserError(f"the push to {repo} failed ({reason(error)}).", rescue(folder, repo, files)) from error
    note(f"pushed to {repo}, and every file is there as it is here: {', '.join(files)}")
    return f"{api.endpoint}/{repo}"


def persist(what: str, act: Callable[[], Answer]) -> Answer:
    """What `act` returns, tried again after failures of the service or the network, never after a refusal (4xx)."""
    from huggingface_hub import is_offline_mode

    attempt, waited = 0, 0.0
    while True:
        attempt += 1
        try:
            return act()
        except Exception as error:
            # The client wraps some refusals. An error of the network has no response; nor has one of the content store.
            response = getattr(error, "response", getattr(error.__cause__, "response", None))
            status = getattr(response, "status_code", 500)
            if attempt == ATTEMPTS or is_offline_mode() or (status < 500 and status not in (408, 429)):
                raise
            wait = pause(getattr(response, "headers", {}), attempt)
            waited += wait
            if waited > LONGEST_WAITS_S or wait > CLOCK.left_s() - LAST_S:
                raise
            note(f"{what} failed ({reason(error)}), trying again in {wait:.0f} s")
            time.sleep(wait)


def pause(headers: Any, attempt: int) -> float:
    """Seconds to wait after that attempt: what the service asks for, else twice as long every time, and uneven."""
    asked = re.match(r"\d+", headers.get("retry-after", "")) or re.search(r"(?<=\bt=)\d+", headers.get("ratelimit", ""))
    # Not from the seeded generator, on which the order of the rows depends.
    share = random.SystemRandom().uniform(0.5, 1)
    return int(asked[0]) + share if asked else min(2.0**attempt, LONGEST_WAIT_S) * share


def rescue(folder: Path, repo: str, files: Collection[str]) -> str:
    """What to do where these files could not be pushed: one command for another machine, or for this one."""
    data, place, name = volume(), folder.resolve(), repo.split("/")[-1]
    # Nothing that lies beside them.
    upload = f"hf upload --private {' '.join(f'--include {shlex.quote(name)}' for name in sorted(files))} {repo}"
    if not data:
        return f"The model is kept; this pushes it: {upload} {shlex.quote(str(place))} ."
    if not place.is_relative_to(data.resolve()):
        # Elsewhere it would go with the container.
        for file in files:
            (data / "output" / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(place / file, data / "output" / file)
        place = (data / "output").resolve()
    inside, bucket = place.relative_to(data.resolve()).as_posix(), os.environ.get("LAUNCH_ARTIFACTS")
    if not bucket:
        job = os.environ.get("JOB_ID")
        return f"The model is kept in {inside}/ of the Job's bucket; this names it: hf jobs inspect {job}"
    fetch = f"hf buckets sync {shlex.quote(f'{bucket}/{inside}')} {name}"
    return f"The model is kept in the Job's bucket; this fetches and pushes it: {fetch} && {upload} {name} ."


# ---- Adapter ---------------------------------------------------------------------------------------------------------
# The adapter and the model that it is for: found, read, and refused where they can't be what is asked for.

# What the files of an adapter are called, its weights first.
ADAPTER_FILES = ["adapter_model*", "*.json", "*.jinja", "*.model", "*.txt", "README.md"]
# Of a model's repo, what is loaded; not what other programs have in it.
MODEL_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.py"]
NOT_LOADED = ["*/*", "consolidated*"]


@dataclass(frozen=True)
class Base:
    """The model that was trained on, the one of 16 bits that copies are merged into, and whether it is shown pictures.

    `whole` is `name`, or what that 4-bit upload was made of; `config` is the model's config.json.
    """

    name: str
    revision: str | None
    whole: str
    whole_revision: str | None
    config: dict[str, Any]
    sees: bool


def fetch_adapter(adapter: str, revision: str | None) -> Path:
    """The adapter's folder; a repo's is that of its commit in the Hub's cache."""
    from huggingface_hub import snapshot_download

    folder = Path(adapter)
    if not folder.is_dir():
        wanted: dict[str, Any] = {"allow_patterns": ADAPTER_FILES, "ignore_patterns": ["*/*"]}
        fetch = partial(snapshot_download, adapter, revision=revision, **wanted)
        try:
            folder = Path(persist(f"fetching {adapter}", fetch))
        except Exception as error:
            hint = "Check the name, the revision, the token and the network."
            raise UserError(f"the adapter {adapter} can't be read ({reason(error)}).", hint, status=3) from error
    if not (folder / "adapter_config.json").is_file() or not any(folder.glob("adapter_model*")):
        hint = "One has adapter_config.json and adapter_model.safetensors."
        raise UserError(f"{adapter} is no adapter.", hint, status=3)
    return folder


def find_base(
    adapter: Path | None, name: str | None, revision: str | None, modality: str | None, trusted: bool, needs_whole: bool
) -> Base:
    """The model of that name, else what the adapter in the folder and its record say that it was trained on."""
    settings, record = (
        json.loads((adapter / file).read_text(encoding="utf-8")) if adapter and (adapter / file).is_file() else {}
        for file in ("adapter_config.json", "run.json")
    )
    name = name or settings["base_model_name_or_path"]
    revision = revision or settings.get("revision") or record.get("revisions", {}).get("model")
    if Path(name).is_absolute() and not Path(name).is_dir():
        hint = "Name the model that it was trained on with --model."
        raise UserError(f"the adapter was trained on {name}, which is not here.", hint, status=3)
    config = check_model(name, revision, trusted)
    modality = modality or (record.get("plan") or {}).get("modality")
    if modality == "vision" and "vision_config" not in config:
        raise UserError(f"{name} sees no pictures.", "Add --modality text.", status=2)
    whole, whole_revision = name, revision
    if needs_whole and (config.get("quantization_config") or {}).get("quant_method") == "bitsandbytes":
        whole, whole_revision = find_whole(name)
    return Base(name, revision, whole, whole_revision, config, modality != "text" and "vision_config" in config)


def find_whole(name: str) -> tuple[str, str | None]:
    """Name and commit of the 16-bit model that a 4-bit upload was made of; `UserError` of status 2 where not known."""
    from huggingface_hub import HfApi

    short = re.sub(r"-(unsloth-)?bnb-4bit$", "", name, flags=re.IGNORECASE)
    if short == name or Path(name).is_dir():
        message = f"--model {name} is in 4 bits itself, and its 16-bit original, which copies need, is not known"
        raise UserError(f"{message}.", "Name that one, and add --load-in 4bit.", status=2)
    candidates = [short]
    try:
        card = persist(f"looking up {name}", lambda: HfApi().model_info(name)).card_data
        told = card.base_model if card else None
        candidates += [told] if isinstance(told, str) else told or []
    except Exception as error:
        note(f"the card of {name} can't be read ({reason(error)})")
    for candidate in candidates:
        try:
            return candidate, persist(f"looking up {candidate}", partial(HfApi().model_info, candidate)).sha
        except Exception as error:
            note(f"the commit of {candidate} is not known ({reason(error)})")
    # It may lie in the cache all the same.
    return short, None


def model_bytes(name: str, revision: str | None, config: dict[str, Any]) -> float:
    """What that model's weights take in 16 bits, by the sizes of its files; 0 where they are not known."""
    from huggingface_hub import HfApi

    if Path(name).is_dir():
        sizes = {path.name: path.stat().st_size for path in Path(name).iterdir()}
    else:
        try:
            look = partial(HfApi().model_info, name, revision=revision, files_metadata=True)
            sizes = {file.rfilename: file.size or 0 for file in persist(f"looking up {name}", look).siblings or ()}
        except Exception as error:
            # Without the network it may lie in the cache all the same.
            note(f"the size of {name} is not known ({reason(error)})")
            return 0
    found = sum(size for path, size in sizes.items() if re.fullmatch(r"model.*\.safetensors", path))
    kinds = [part.get("dtype") or part.get("torch_dtype") for part in (config, config.get("text_config") or {})]
    return found / 2 if "float32" in kinds else found


def fetch_model(name: str, revision: str | None) -> Path:
    """The folder of that model's files; a repo's is that of its commit in the Hub's cache."""
    from huggingface_hub import snapshot_download

    if Path(name).is_dir():
        return Path(name).absolute()
    wanted: dict[str, Any] = {"allow_patterns": MODEL_FILES, "ignore_patterns": NOT_LOADED}
    return Path(persist(f"fetching {name}", lambda: snapshot_download(name, revision=revision, **wanted)))


# ---- Llama cpp -------------------------------------------------------------------------------------------------------
# llama.cpp: found here, or fetched and built before anything else is done; what it converts, and its programs.

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


# ---- Chat ------------------------------------------------------------------------------------------------------------
# Chats: the shapes that rows may have, and what the chat template makes of them.

Message = dict[str, Any]
# Characters of a value that an error repeats.
QUOTED = 60


def shown(value: Any) -> str:
    """A value as an error repeats it, with what it is."""
    kinds = {
        bool: "a truth value",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    if value is None:
        return "nothing"
    said = repr(value)
    return f"{kinds.get(type(value), 'of another kind')} ({said if len(said) <= QUOTED else f'{said[:QUOTED]}…'})"


def fold_system(messages: list[Message], said: Callable[[str], Any]) -> list[Message]:
    """The system message at the head of the first user's, for chat templates that do not take one."""
    if messages[0]["role"] != "system" or messages[1]["role"] != "user":
        return messages
    system, user, *rest = messages
    return [{"role": "user", "content": system["content"] + said("\n\n") + user["content"]}, *rest]


def takes_system(processor: Any, said: Callable[[str], Any], shown: Any = "Hi") -> bool:
    """Whether the chat template shows a system message: some refuse it, some drop it from a finished chat."""
    from jinja2 import TemplateError

    contents = {"system": said("PROBE"), "user": shown, "assistant": said("ANSWER")}
    probe = [{"role": role, "content": content} for role, content in contents.items()]
    try:
        return "PROBE" in processor.apply_chat_template(probe, tokenize=False)
    except TemplateError:
        return False


def end_of_turn(processor: Any, tokenizer: Any, said: Callable[[str], Any]) -> int:
    """The id of the token that ends an answer in this chat template."""
    probe = [{"role": "user", "content": said("Hi")}, {"role": "assistant", "content": said("ANSWER")}]
    tail = processor.apply_chat_template(probe, tokenize=False).rpartition("ANSWER")[2]
    ids = tokenizer(tail, add_special_tokens=False).input_ids
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    stop = next((id for id in ids if id in special), tokenizer.eos_token_id)
    if stop is None:
        hint = "Set eos_token in its tokenizer_config.json, or use the instruct model."
        raise UserError("the tokenizer has no token that ends a text.", hint, status=2)
    return int(stop)


# ---- Ollama ----------------------------------------------------------------------------------------------------------
# What Ollama needs beside a GGUF file: how it is sampled, where an answer ends, and the chat template in Go.

# Ollama's names of settings, where they differ from transformers'.
OLLAMA_NAMES = {"repetition_penalty": "repeat_penalty"}
# Llama's template would else hold the day on which this runs.
SHOWN: dict[str, Any] = {"add_generation_prompt": True, "date_string": "26 Jul 2024"}
# Beside GGUF files, for Ollama.
FOR_OLLAMA = ("Modelfile", "params", "template")

# A prompt in Ollama's language, Go's text/template; what stands between ⟨ and ⟩ is read off the chat template.
GO_TEMPLATE = (
    "{{ if .System }}⟨head⟩{{ .System }}⟨after_system⟩{{ else }}⟨start⟩{{ end }}"
    "{{ range $i, $m := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
    '{{ if eq $m.Role "user" }}{{ $m.Content }}{{ if $last }}⟨tail⟩{{ else }}⟨after_user⟩{{ end }}'
    '{{ else if eq $m.Role "assistant" }}{{ $m.Content }}{{ if not $last }}⟨after_answer⟩{{ end }}'
    "{{ end }}{{ end }}"
)


@dataclass(frozen=True)
class ChatForm:
    """What Ollama has to be told of the chat template: the tokens that end an answer, and the same template in Go.

    `template` is none where no such template makes the same prompts.
    """

    has_template: bool
    stops: tuple[str, ...]
    template: str | None


def chat_form(reader: Any, sees: bool) -> ChatForm:
    """What the tokenizer or processor knows of that."""
    tokenizer = getattr(reader, "tokenizer", reader)
    stops = dict.fromkeys((tokenizer.decode([end_of_answer(reader, sees)]), tokenizer.eos_token))
    usable = tuple(stop for stop in stops if stop and not re.search(r'["\\\n]', stop))
    return ChatForm(bool(reader.chat_template), usable, go_template(reader, sees) if reader.chat_template else None)


def write_modelfile(folder: Path, ggufs: list[str], settings: dict[str, float], form: ChatForm) -> None:
    """Write what Ollama needs beside the GGUF files of one model: the Modelfile for `ollama create`.

    `ollama run hf.co/USER/MODEL` reads the files `template` and `params` of the repo instead.
    """
    named = {OLLAMA_NAMES.get(name, name): value for name, value in settings.items()}
    lines = [f"FROM ./{name}" for name in ggufs]
    lines += [f"PARAMETER {name} {value}" for name, value in named.items()]
    lines += [f'PARAMETER stop "{stop}"' for stop in form.stops]
    (folder / "template").unlink(missing_ok=True)
    if form.template is not None:
        lines.append(f'TEMPLATE """{form.template}"""')
        (folder / "template").write_text(form.template, encoding="utf-8")
    elif form.has_template:
        lines.append("# No template: none makes the prompts of this chat template. Ollama looks for one like it.")
    (folder / "Modelfile").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "params").write_text(json.dumps(named | {"stop": form.stops}, indent=2) + "\n", encoding="utf-8")


def sayer(sees: bool) -> Callable[[str], Any]:
    """Makes of a text the content of a message."""
    return (lambda text: [{"type": "text", "text": text}]) if sees else str


def end_of_answer(reader: Any, sees: bool) -> int:
    """The id of the token that ends an answer in this chat template; without one, the tokenizer's own."""
    tokenizer = getattr(reader, "tokenizer", reader)
    return end_of_turn(reader, tokenizer, sayer(sees)) if reader.chat_template else int(tokenizer.eos_token_id)


def go_template(reader: Any, sees: bool) -> str | None:
    """The chat template as Ollama writes one, or none where no such template makes the same prompts.

    It is read off a prompt: what stands before, between and after the messages. Then other prompts must come out equal.
    """
    from jinja2 import TemplateError

    def put_together(system: str | None, *texts: str) -> str:
        text = start if system is None else head + system + after_system
        for number, turn in enumerate(texts, 1):
            text += turn + (tail if number == len(texts) else after_user if number % 2 else after_answer)
        return text

    asked = ("USER1", "ANSWER1", "USER2")
    try:
        pieces = re.split("SYSTEM0|USER1|ANSWER1|USER2", prompt_of(reader, sees, "SYSTEM0", *asked))
        if len(pieces) != 5:
            return None
        head, after_system, after_user, after_answer, tail = pieces
        start = prompt_of(reader, sees, None, *asked).partition("USER1")[0]
        for chat in ((None, "a"), ("s", "a"), ("s", *"abc"), (None, *"abcde"), ("s", *"abcdefg")):
            if put_together(*chat) != prompt_of(reader, sees, *chat):
                return None
    except TemplateError:
        return None
    tokenizer = getattr(reader, "tokenizer", reader)
    if tokenizer.bos_token and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]:
        # Ollama puts it there too.
        head, start = head.removeprefix(tokenizer.bos_token), start.removeprefix(tokenizer.bos_token)
    found = {"head": head, "after_system": after_system, "start": start,
             "after_user": after_user, "after_answer": after_answer, "tail": tail}  # fmt: skip
    if any('"""' in piece or "{{" in piece + "{" for piece in found.values()):
        return None
    return re.sub("⟨([a-z_]+)⟩", lambda name: found[name[1]], GO_TEMPLATE)


def prompt_of(reader: Any, sees: bool, system: str | None, *texts: str) -> str:
    """The prompt for an answer to these texts, the user's and the assistant's, with a system message or none."""
    said, roles = sayer(sees), itertools.cycle(("user", "assistant"))
    messages = [{"role": role, "content": said(text)} for role, text in zip(roles, texts, strict=False)]
    if system is not None:
        messages.insert(0, {"role": "system", "content": said(system)})
        if not takes_system(reader, said, [{"type": "image"}, *said("Hi")] if sees else "Hi"):
            # As the training did for such a chat template.
            messages = fold_system(messages, said)
    return str(reader.apply_chat_template(messages, tokenize=False, **SHOWN))


# ---- Compare ---------------------------------------------------------------------------------------------------------
# A copy is loaded again and compared with the adapter on its model, by what each makes of one prompt.

QUESTION, BEGINNING = "What is the capital of France?", "The capital of France is"
QUESTION_OF_PICTURE = "What is shown here?"
ANSWERED, COMPLETE_S = 24, 900
# How far a token's logit must lead the next one's for a GGUF file of that type to have to answer with it as well. Of a
# model of 135M q4_k_m moved a lead by 2.3 at most, in 91 tokens, and q2_k by 5.7: of the smallest types none has to.
LEADS = {"f16": 3, "bf16": 3, "q8_0": 3, "q6_k": 6, "q5_k_m": 6, "q4_k_m": 6}


class DifferentError(Exception):
    """The copy is not the trained model: it is not kept."""


@dataclass(frozen=True)
class Seen:
    """What a model makes of the prompt: the likeliest token at each place, the logits at its end, its likeliest answer.

    `led` are, by a lead, the words at the answer's beginning that lead all others by so much; `stop` is the token that
    ends an answer, `eos` the tokenizer's own.
    """

    prompt: str
    ids: list[int]
    likeliest: list[int]
    last: list[float]
    answer: list[int]
    words: str
    stop: int
    eos: int
    template: str | None
    led: dict[int, list[str]]


def picture() -> Any:
    """What a model that sees is shown: 256 pixels square, which most look at as they are."""
    from PIL import Image

    return Image.radial_gradient("L").convert("RGB")


def probe(model: Any, reader: Any, stop: int, sees: bool, led: bool = False) -> Seen:
    """What the model makes of the prompt, with a picture where it `sees`; `led` asks for the leading words too."""
    import torch

    tokenizer = getattr(reader, "tokenizer", reader)
    if sees:
        content = [{"type": "image"}, {"type": "text", "text": QUESTION_OF_PICTURE}]
        text = reader.apply_chat_template([{"role": "user", "content": content}], tokenize=False, **SHOWN)
        inputs = reader(text=[text], images=[[picture()]], add_special_tokens=False, return_tensors="pt")
        inputs = inputs.to(model.device, model.dtype)
    else:
        text, asked = BEGINNING, [{"role": "user", "content": QUESTION}]
        if reader.chat_template:
            text = reader.apply_chat_template(asked, tokenize=False, **SHOWN)
        inputs = reader([text], add_special_tokens=not reader.chat_template, return_tensors="pt").to(model.device)
    with torch.inference_mode():
        logits = model(**inputs).logits[0].float().cpu()
        # Greedy, and without what the recommended settings would change of it.
        made = model.generate(
            **inputs, max_new_tokens=ANSWERED, do_sample=False, repetition_penalty=1.0, eos_token_id=[stop],
            pad_token_id=tokenizer.pad_token_id,
            **({"return_dict_in_generate": True, "output_logits": True} if led else {}),
        )  # fmt: skip
    answer = (made.sequences if led else made)[0, inputs["input_ids"].shape[1] :].tolist()
    pairs = [step[0].float().topk(2).values.tolist() for step in made.logits] if led else []
    said = partial(tokenizer.decode, skip_special_tokens=True)
    return Seen(
        prompt=text,
        ids=inputs["input_ids"][0].tolist(),
        likeliest=logits.argmax(-1).tolist(),
        last=logits[-1].tolist(),
        answer=answer,
        words=said(answer),
        stop=stop,
        eos=tokenizer.eos_token_id,
        template=reader.chat_template,
        led={lead: leading_words(answer, pairs, lead, said) for lead in set(LEADS.values())} if led else {},
    )


def leading_words(
    answer: list[int], pairs: list[Sequence[float]], lead: float, said: Callable[[list[int]], str]
) -> list[str]:
    """The whole words at the beginning of an answer whose every token leads by so much; `pairs` are the best logits."""
    count = next((n for n, (first, second) in enumerate(pairs) if first - second < lead), len(answer))
    return words_of(said(answer) if count >= len(answer) else re.sub(r"\S*$", "", said(answer[:count])))


def words_of(text: str) -> list[str]:
    """The words of an answer, without tags, of which llama.cpp shows others than transformers."""
    return re.sub(r"<[^<>]*>", " ", text).split()


def compare(known: Seen, found: Seen) -> str:
    """How much the copy is the trained model, in a sentence; `DifferentError` where it is another."""
    if found.ids != known.ids:
        raise DifferentError("its tokenizer or chat template makes another prompt than the trained model's")
    pairs = list(zip(known.likeliest[::-1], found.likeliest[::-1], strict=False))
    same = sum(one == other for one, other in pairs)
    # Either may have room for more tokens than there are.
    one, other = zip(*zip(known.last, found.last, strict=False), strict=True)
    far = max(abs(a - b) for a, b in zip(one, other, strict=True))
    told = f"the likeliest next token is the same at {same} of {len(pairs)} places of a prompt"
    told += f", and the logits at its end differ by {far:.3g} at most"
    # Of a model that knows little, 4 bits change the likeliest token easily, and the logits as a whole much less.
    if same * 2 <= len(pairs) and correlation(one, other) < 0.5:
        raise DifferentError(f"it does not answer as the trained model: {told}")
    if found.answer == known.answer:
        return f"the same answer of {len(known.answer)} tokens; {told}"
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(known.answer, found.answer, strict=False))
    return f"the answers are the same for {len([*alike])} tokens, then differ; {told}"


def check_merged(folder: Path, known: Seen, sees: bool, trust_remote_code: bool) -> tuple[str, Seen]:
    """Load the merged model with plain transformers: what `compare` says, and what the copy makes of the prompt.

    In a process of its own, where Unsloth has patched nothing. A GGUF file is compared with what this one answers: it
    is made of it, and nearer to it than to what was trained in 4 bits.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    import transformers

    reader_class: Any = transformers.AutoProcessor if sees else transformers.AutoTokenizer
    model_class: Any = transformers.AutoModelForImageTextToText if sees else transformers.AutoModelForCausalLM
    where = {"device_map": "auto"} if torch.cuda.is_available() else {}
    reader = reader_class.from_pretrained(folder, trust_remote_code=trust_remote_code)
    model = model_class.from_pretrained(folder, dtype="auto", trust_remote_code=trust_remote_code, **where)
    found = probe(model, reader, known.stop, sees, led=True)
    return compare(known, found), found


def check_gguf(path: Path, kind: str, known: Seen, sees: bool, llama_cpp: Path) -> str:
    """What the file says of its tokens and template, and how llama.cpp answers from it where it is built.

    `known` is the 16-bit merged model's; `DifferentError` where it is another model. In a process of its own, since
    the reader is llama.cpp's.
    """
    sys.path.insert(0, str(llama_cpp / "gguf-py"))
    from gguf import GGUFReader

    fields = GGUFReader(path).fields
    names = ("tokenizer.ggml.eos_token_id", "tokenizer.chat_template")
    eos, template = (fields[name].contents() if name in fields else None for name in names)
    if eos not in (known.eos, known.stop):
        raise DifferentError(f"its end token is {eos}, and the trained model's {known.eos}")
    if (template or "").strip() != (known.template or "").strip():
        raise DifferentError("its chat template is not the trained model's")
    told = f"the end token and {'the chat template' if template else 'the lack of a chat template'} are the model's"
    name = SEEING_ANSWERER if sees else ANSWERER
    answerer = program_of(llama_cpp, name)
    if answerer is None:
        return f"{told}; not run, since {llama_cpp} has no {name}"
    try:
        said = answer_of_picture(answerer, path) if sees else answer_text(answerer, path, known.prompt, fields)
    except (MemoryError, subprocess.TimeoutExpired) as error:
        return f"{told}; not run, for want of {'memory' if isinstance(error, MemoryError) else 'time'}"
    return compare_words(known.words.strip(), said, known.led.get(LEADS.get(kind, 0), []), told, sees)


def compare_words(known: str, said: str, led: list[str], told: str, sees: bool) -> str:
    """What is told of an answer in llama.cpp; `DifferentError` where it lacks the words that `led` the model's."""
    if said == known:
        return f"the same answer in llama.cpp; {told}"
    differs = f"in llama.cpp it answers {said[:60]!r}, and the merged model {known[:60]!r}"
    needed = led[: math.ceil(len(led) / 2)]
    # Each makes a picture smaller in its own way: of such an answer one word is enough.
    lacks = not set(words_of(said)) & set(words_of(known)) if sees else words_of(said)[: len(needed)] != needed
    if needed and lacks:
        raise DifferentError(f"it does not answer as the merged model: {differs}")
    return f"another answer: {differs}; {told}"


def answer_text(answerer: Path, path: Path, prompt: str, fields: Any) -> str:
    """What llama.cpp answers to the prompt."""
    bos, adds = fields.get("tokenizer.ggml.bos_token_id"), fields.get("tokenizer.ggml.add_bos_token")
    if bos and adds and adds.contents():
        # It would be there twice.
        prompt = prompt.removeprefix(fields["tokenizer.ggml.tokens"].contents(bos.contents()))
    plain = ("--no-conversation", "--no-display-prompt", "--no-escape", "--simple-io")
    return complete(answerer, path, "-p", prompt, *plain)


def answer_of_picture(answerer: Path, path: Path) -> str:
    """What llama.cpp answers to the question about the picture; it makes the prompt by the file's template."""
    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        picture().save(file, "PNG")
        file.flush()
        asked = ("--image", file.name, "-p", QUESTION_OF_PICTURE, "--jinja")
        return complete(answerer, path, "--mmproj", str(sight_of(path)), *asked)


def complete(answerer: Path, path: Path, *asked: str) -> str:
    """The likeliest words after what is asked.

    `RuntimeError` where llama.cpp fails, `MemoryError` where it is for want of memory, `TimeoutExpired` where it takes
    too long, as with a file that is larger than the memory.
    """
    # The file holds the recommended settings, a penalty for repetition among them.
    greedy = ("-n", str(ANSWERED), "-c", "1024", "--temp", "0", "--repeat-penalty", "1", "--poll", "0", "--no-warmup")
    command = [str(answerer), "-m", str(path), *asked, *greedy]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=COMPLETE_S, check=False)
    starved = re.search("(failed|unable) to allocate|out of memory", done.stderr, re.IGNORECASE)
    if done.returncode == -signal.SIGKILL or (done.returncode and starved):
        raise MemoryError
    if done.returncode:
        raise RuntimeError(f"{answerer.name} ended with status {done.returncode}: {last_line(done.stderr)}")
    return done.stdout.removesuffix("\n").replace("[end of text]", "").strip()


# ---- Apart -----------------------------------------------------------------------------------------------------------
# A step in a process of its own: what a library patched, and every byte of memory, is gone with it.

# Left for the RESULT line and the card when the time is up.
CLOSING_S = 20


class TimeUpError(Exception):
    """What is being made is left as it is: the time is up, or a signal asked to stop."""


def apart(function: Callable[..., Any], *words: Any) -> Any:
    """What that function of this script returns in a process of its own.

    Raises what it raised where that is this script's own error, else `RuntimeError` with the first line of what was
    said or the signal that killed it; `TimeUpError`, with the process and its children ended, when the time is up.
    """
    context = multiprocessing.get_context("spawn")
    heard, told = context.Pipe(duplex=False)
    process = context.Process(target=answer, args=(told, function, words))
    process.start()
    told.close()
    try:
        while not heard.poll(0.5):
            require_time(0)
        found, error = heard.recv()
    except EOFError:
        process.join()
        code = process.exitcode or 0
        died = f"was killed by signal {-code}, as where memory does not suffice" if code < 0 else f"ended with {code}"
        raise RuntimeError(f"it {died}") from None
    except BaseException:
        end_group(process)
        raise
    process.join()
    if error:
        raise error
    return found


def end_group(process: BaseProcess) -> None:
    """End the process with its children."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid or 0, signal.SIGKILL)
    # It may not have had its group yet.
    process.kill()


def require_time(needed_s: float) -> None:
    """Raise `TimeUpError` where so many seconds are not left, or a signal asked to stop."""
    left_s = CLOCK.left_s() - CLOSING_S
    if CLOCK.signalled:
        raise TimeUpError("asked to stop")
    if left_s < needed_s:
        needs = f"{max(left_s, 0):.0f} s are left, and about {needed_s:.0f} s are needed"
        raise TimeUpError(needs if needed_s else "the time is up")


def answer(told: Connection, function: Callable[..., Any], words: tuple[Any, ...]) -> None:
    """In the new process: send what the function returns, or why it does not."""
    # A group of its own, so that a terminal's Ctrl-C reaches it through the parent only, and its children end with it.
    os.setpgrp()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow_parent() -> None:
        parent.join()
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=follow_parent, daemon=True).start()
    try:
        told.send((function(*words), None))
    except Exception as error:
        if not isinstance(error, UserError | DifferentError):
            traceback.print_exc()
            error = RuntimeError(reason(error))
        told.send((None, error))


# ---- Options ---------------------------------------------------------------------------------------------------------
# The options as flags: each field of the dataclass is one, and a value that can't work is refused at once.

Chosen = TypeVar("Chosen")
ADAPTER_THERE = "the adapter is there, and transformers would add it to the merged weights once more"
# Where a value should lie, for those options that the script has.
ABOVE_0 = ("max_steps", "num_train_epochs", "batch_size", "gradient_accumulation", "learning_rate", "logging_steps",
           "eval_steps", "lora_r", "lora_alpha")  # fmt: skip
# More fits neither a seed of NumPy's nor a clock.
LARGEST = 2**32
AT_LEAST = {"eval_rows": 0, "weight_decay": 0, "seed": 0, "sample_rows": 0, "checkpoint_minutes": 0, "timeout_s": 0,
            "warmup_ratio": 0, "lora_dropout": 0, "max_length": 16, "image_size": 28}  # fmt: skip
BELOW_1 = ("warmup_ratio", "lora_dropout")


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}.", "--help lists every flag.", status=2)


def read_options(kind: type[Chosen], argv: Sequence[str], description: str = "") -> Chosen:
    """What the command line chose, over the defaults of `kind`: `Annotated[TYPE, "help"] = VALUE` declares a flag.

    Flags may be spelled as in Python, --max_steps. Of two stop criteria the one that is given replaces the chosen one;
    only in a Job somebody ends the script after `timeout_s`.
    """
    parser = Parser(description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    hints = get_type_hints(kind, vars(sys.modules[kind.__module__]), include_extras=True)
    for option in fields(kind):  # type: ignore[arg-type]
        declared, told = get_args(hints[option.name])
        help_text = f"{told} [{option.default}]".replace("%", "%%")
        parser.add_argument(f"--{option.name.replace('_', '-')}", help=help_text, **flag_of(declared))
    words = [word.partition("=") for word in argv]
    argv = [(name.replace("_", "-") if name.startswith("--") else name) + eq + value for name, eq, value in words]
    given = vars(parser.parse_args(argv))
    given = {name: tuple(filter(None, value)) if isinstance(value, list) else value for name, value in given.items()}
    if given.get("max_steps") and given.get("num_train_epochs"):
        parser.error("--max-steps and --num-train-epochs both say when to stop: give one of them")
    if given.keys() & {"max_steps", "num_train_epochs"}:
        given = {"max_steps": None, "num_train_epochs": None} | given
    if not os.environ.get("JOB_ID"):
        given = {"timeout_s": 0} | given
    return kind(**given)


def flag_of(declared: Any) -> dict[str, Any]:
    """How argparse reads a value of that type."""
    none: tuple[str, ...] = ()
    if get_origin(declared) in (types.UnionType, Union):
        # `--merge=` leaves away what was chosen, as `--output-repo=` does.
        [declared], none = [one for one in get_args(declared) if one is not type(None)], ("",)
    if declared is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(declared) is tuple:
        return {"action": "append", "choices": (*get_args(get_args(declared)[0]), "")}
    if get_origin(declared) is Literal:
        return {"choices": get_args(declared) + none}
    return {"type": declared}


def refuse(args: Any, name: str, problem: str) -> NoReturn:
    """Raise `UserError` of status 2 for the value of that option."""
    raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: {problem}.", "--help lists every flag.", 2)


def check_options(args: Any) -> None:
    """Refuse what can't work, before anything heavy is imported."""
    for name, value in vars(args).items():
        end = 1 if name in BELOW_1 else LARGEST
        if name in ABOVE_0 and value is not None and not 0 < value < end:
            refuse(args, name, f"should be above 0 and below {end:,}")
        if name in AT_LEAST and value is not None and not AT_LEAST[name] <= value < end:
            refuse(args, name, f"should be at least {AT_LEAST[name]} and below {end:,}")
    for name in ("model", "dataset", "adapter", "output_dir"):
        try:
            Path(getattr(args, name, None) or ".").expanduser().resolve().exists()
        except (OSError, RuntimeError, ValueError) as error:
            refuse(args, name, f"no path that can be looked at ({reason(error)})")
    if args.trust_remote_code and not is_commit(args.revision):
        refuse(args, "revision", "--trust-remote-code needs the 40 digits of the commit that was read")
    if not re.fullmatch(r"\w[\w .-]*", args.run_name):
        refuse(args, "run_name", "should be a name, of letters, digits, '-', '_', '.' and spaces")
    if args.merge == "4bit" and (args.load_in != "4bit" or args.device == "cpu"):
        where = "there are none on a CPU" if args.device == "cpu" else "they come with --load-in 4bit"
        refuse(args, "merge", f"it is made of the 4-bit weights that are trained, and {where}")
    if args.merged_repo and not args.merge:
        refuse(args, "merged_repo", "it says where a merged model goes; add --merge 16bit")
    if args.merged_repo and args.merged_repo in (args.output_repo, getattr(args, "adapter", None)):
        refuse(args, "merged_repo", ADAPTER_THERE)
    for name in ("output_repo", "merged_repo"):
        if getattr(args, name) and not HUB_ID.fullmatch(getattr(args, name)):
            refuse(args, name, "should be NAME or NAMESPACE/NAME")


# ---- Saving ----------------------------------------------------------------------------------------------------------
# The model on the disk: there is room for it, it is saved whole, and run.json says how to make it again.

# transformers knows no presence penalty.
ONLY_OLLAMA = {"presence_penalty"}
SAMPLING = ("temperature", "top_k", "top_p", "min_p")


def recommended(args: Any, planned: dict[str, Any]) -> dict[str, float]:
    """How the makers of the model say that it is best sampled; empty for another model than the chosen one."""
    return dict(planned["generation"]) if args.model == type(args).model else {}


def generation_of(known: Any, settings: dict[str, float], stop: int) -> Any:
    """The model's generation settings with the recommended ones, and with the token that ends an answer."""
    from transformers import GenerationConfig

    found: dict[str, Any] = {name: value for name, value in settings.items() if name not in ONLY_OLLAMA}
    if found:
        # A temperature of 0 is how others say that nothing is drawn.
        greedy = found.get("temperature") == 0
        found |= {"do_sample": not greedy} | (dict.fromkeys(SAMPLING) if greedy else {})
    known = known or GenerationConfig()
    ends = known.eos_token_id if isinstance(known.eos_token_id, list) else [known.eos_token_id]
    found["eos_token_id"] = [stop, *(token for token in ends if token not in (stop, None))]
    try:
        known.update(**found)
        known.validate(strict=True)
    except ValueError:
        # What the model brought contradicts itself, and would not be saved.
        known = GenerationConfig(bos_token_id=known.bos_token_id, pad_token_id=known.pad_token_id, **found)
    return known


# ---- Copies ----------------------------------------------------------------------------------------------------------
# The copies of a model: what they take, how they are merged and converted, where they land, what they replace.

MERGED, NOT_MADE = "merged", "not made"
# The names that transformers gives to a model's weights.
WEIGHTS = r"(pytorch_)?model(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?"


@dataclass
class Copy:
    """One copy that was asked for, and what became of it: an entry of RESULT's `exports`.

    `kind` is merged or gguf, `name` 16bit, 4bit or the type of the file; `error` is none once it is made and checked.
    """

    kind: str
    name: str
    path: str | None = None
    repo: str | None = None
    gib: float | None = None
    checked: str | None = None
    error: str | None = NOT_MADE

    @property
    def source(self) -> str:
        """The merged copy that it is, or is made of."""
        return "16bit" if self.kind == "gguf" else self.name

    @property
    def bits(self) -> float:
        """What a weight takes in it."""
        return GGUF_BITS[self.name] if self.kind == "gguf" else {"16bit": 16, "4bit": 6.4}[self.name]


def asked_copies(merge: str | None, gguf: Sequence[str]) -> list[Copy]:
    """What was asked for, in the order in which it is made."""
    return [Copy("merged", kind) for kind in (merge,) if kind] + [Copy("gguf", kind) for kind in dict.fromkeys(gguf)]


def copy_bytes(copies: Sequence[Copy], whole: float) -> dict[str, float]:
    """What the copies take on the disk at most, by what it is, of a model of that size in 16 bits."""
    parts = {f"{MERGED}/": whole * copy.bits / 16 for copy in copies if copy.kind == "merged"}
    ggufs = [copy for copy in copies if copy.kind == "gguf"]
    if ggufs and not any(copy.kind == "merged" and copy.name == "16bit" for copy in copies):
        parts["a 16-bit copy to convert"] = whole
    if any(copy.name not in CONVERTED for copy in ggufs):
        parts["a 16-bit GGUF file to quantise"] = whole
    return parts | {f"{copy.name}.gguf": whole * copy.bits / 16 for copy in ggufs}


# ---- Merging, in a process of its own --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """What is known of the adapter on its model once the merged copies are written; `errors` by the kind of copy.

    `settings` are how Ollama is to sample.
    """

    seen: Seen
    form: ChatForm
    settings: dict[str, float]
    errors: dict[str, str]
    device: str
    peak_gib: float | None


def merge_adapter(
    adapter: Path, base: Path, whole: Path, kinds: Sequence[str], work: Path, settings: dict[str, float], sees: bool,
    four_bits: bool, trust_remote_code: bool,
) -> Trained:  # fmt: skip
    """Load the adapter on its model with Unsloth, see what it answers, and write the merged copies into `work`.

    `base` is the folder of what it was trained on, `whole` that of the same in 16 bits. The 4-bit copy has to come
    last: merging it changes the weights that are loaded.
    """
    model, reader = load_adapter(adapter, base, sees, four_bits, trust_remote_code)
    import torch
    from transformers import GenerationConfig

    stop, errors = end_of_answer(reader, sees), {}
    if (adapter / "generation_config.json").is_file():
        generation = GenerationConfig.from_pretrained(adapter)
    else:
        generation = generation_of(getattr(model, "generation_config", None), settings, stop)
    model.get_base_model().generation_config = generation
    seen = probe(model, reader, stop, sees)
    for kind in kinds:
        try:
            merge(model, reader, kind, work / kind, whole)
        except Exception as error:
            errors[kind] = reason(error)
            note(f"merging {kind} failed: {errors[kind]}")
    on_gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if on_gpu else "cpu"
    peak_gib = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None
    if not settings:
        told = generation.to_dict()
        settings = {name: told[name] for name in (*SAMPLING, "repetition_penalty") if told.get(name) is not None}
    return Trained(seen, chat_form(reader, sees), settings, errors, device, peak_gib)


def load_adapter(adapter: Path, base: Path, sees: bool, four_bits: bool, trust_remote_code: bool) -> tuple[Any, Any]:
    """The adapter on its model, and its tokenizer or processor as it was trained."""
    # Unsloth goes first: it patches the libraries that are imported after it.
    import unsloth  # isort: skip
    from peft import PeftModel

    fast: Any = unsloth.FastVisionModel if sees else unsloth.FastLanguageModel
    with tempfile.TemporaryDirectory() as place:
        # It names the model as it was called where it was trained, and at no commit: here, the folder of its files.
        for path in adapter.glob("adapter_*"):
            shutil.copy(path, place)
        config = Path(place, "adapter_config.json")
        settings = json.loads(config.read_text(encoding="utf-8"))
        config.write_text(json.dumps(settings | {"base_model_name_or_path": str(base), "revision": None}))
        model, reader = fast.from_pretrained(
            place, max_seq_length=2048, load_in_4bit=four_bits, use_exact_model_name=True,
            trust_remote_code=trust_remote_code,
        )  # fmt: skip
    if not isinstance(model, PeftModel):
        hint = "Its adapter_config.json says of what kind it is."
        raise UserError(f"Unsloth did not load {adapter} as an adapter.", hint)
    fast.for_inference(model)
    return model, reader_of(adapter, reader, sees, trust_remote_code)


def reader_of(adapter: Path, own: Any, sees: bool, trust_remote_code: bool) -> Any:
    """The tokenizer, or the processor where the model `sees`, in the adapter's folder, else the model's own."""
    from transformers import AutoProcessor, AutoTokenizer

    if not sees:
        if (adapter / "tokenizer_config.json").is_file():
            own = AutoTokenizer.from_pretrained(adapter, trust_remote_code=trust_remote_code)
        return getattr(own, "tokenizer", own)
    found = [own]
    if any((adapter / name).is_file() for name in ("processor_config.json", "preprocessor_config.json")):
        found.insert(0, AutoProcessor.from_pretrained(adapter, trust_remote_code=trust_remote_code))
    # Where it finds a tokenizer alone, transformers gives that, which drops every picture without a word.
    seeing = [reader for reader in found if getattr(reader, "image_processor", None)]
    if not seeing:
        hint = "Copy processor_config.json and preprocessor_config.json there from the model that it was trained on."
        raise UserError(f"the processor of {adapter} takes no pictures.", hint)
    return seeing[0]


def merge(model: Any, reader: Any, kind: str, folder: Path, whole: Path) -> None:
    """Merge the adapter into a copy of the model, with all that it takes to use it, through Unsloth."""
    named = model.config._name_or_path
    try:
        if kind == "16bit":
            # Unsloth reads the 16-bit weights anew, and would take the newest of the repo that it thinks the best.
            model.config._name_or_path = str(whole)
        method = {"16bit": "merged_16bit", "4bit": "merged_4bit_forced"}[kind]
        model.save_pretrained_merged(str(folder), reader, save_method=method)
    finally:
        model.config._name_or_path = named
    reader.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    if not any(folder.glob("*.safetensors")):
        raise RuntimeError("Unsloth wrote no weights")


# ---- Where they land, and what they replace --------------------------------------------------------------------------


def open_places(folder: Path, in_bucket: bool, all_pushed: bool) -> tuple[Path, Path]:
    """Where copies are put, and where they are made: new folders, or for the first the adapter's.

    A Job's volume is a bucket behind a file system, on which no file is mapped or changed in place, and to which what
    is pushed anyway would travel a second time. What is not pushed belongs there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / ".exporting", ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix="exporting-")) if in_bucket else folder / ".exporting"
    work.mkdir(exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="exports-")) if in_bucket and all_pushed else folder, work


def gguf_stem(name: str) -> str:
    """What GGUF files are called before their type: as the repo that they go to, so that later ones replace them."""
    return re.sub(r"[^\w.-]+|\.gguf$", "-", name.split("/")[-1], flags=re.ASCII).strip(".-") or "model"


def make_gguf(
    kind: str, stem: str, merged: Path, seen: Seen, sees: bool, work: Path, place: Path, llama_cpp: Path
) -> tuple[Path, str]:
    """The GGUF file of the 16-bit merged copy, in its place once it is checked, and what was found of it."""
    files = {other: work / f"{stem}.{other.upper()}.gguf" for other in (kind, "bf16", "f16")}
    written = next((other for other in ("bf16", "f16") if files[other].exists()), None)
    source = kind if kind in CONVERTED else written or "bf16"
    if not files[source].exists():
        # What sees is a file of its own, and made once.
        apart(convert, merged, files[source], source, sees and not sight_of(files[source]), llama_cpp)
    if source != kind:
        apart(quantize, files[source], files[kind], kind, llama_cpp)
    checked = apart(check_gguf, files[kind], kind, seen, sees, llama_cpp)
    sight = sight_of(files[kind])
    # Others are quantised from a 16-bit file, and what sees is not made again.
    landed = land(files[kind], place / files[kind].name, keep=kind in ("bf16", "f16"))
    if sight:
        land(sight, place / sight.name, keep=True)
    return landed, checked


def land(source: Path, target: Path, keep: bool = False) -> Path:
    """The new path of a whole file or folder, which appears there at once; with `keep` a file stays here too."""
    draft = target.with_name(f".{target.name}.new")
    for old in (draft, target):
        if old.is_dir():
            shutil.rmtree(old)
    if keep:
        # Of two names of one file neither would replace the other.
        target.unlink(missing_ok=True)
        try:
            os.link(source, draft)
        except OSError:
            shutil.copy(source, draft)
    else:
        shutil.move(source, draft)
    draft.replace(target)
    return target


def open_merged_repo(name: str, output_repo: str | None, private: bool, create: bool) -> str:
    """The full name of the repo of the merged model, opened as the output repo was.

    Raises `UserError` of status 3 where it holds an adapter, or will.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    name = open_repo(name, private, create)
    try:
        held = persist(f"looking at {name}", lambda: HfApi().list_repo_files(name))
    except RepositoryNotFoundError:
        held = []
    if name == output_repo or "adapter_config.json" in held:
        raise UserError(f"--merged-repo {name}: {ADAPTER_THERE}.", "Name another repo.", status=3)
    return name


def every_file(folder: Path) -> list[str]:
    """The paths of the folder's files in it."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def push_merged(folder: Path, repo: str, alone: bool) -> None:
    """Push the merged copy in the place of an earlier one, to a repo where it is `alone`, or beside the adapter."""
    files = [path for path in every_file(folder) if path != "README.md"]
    if alone:
        push(folder, repo, files, stale_files(repo, files, WEIGHTS))
    else:
        paths = [f"{folder.name}/{path}" for path in files]
        push(folder.parent, repo, paths, stale_files(repo, paths, f"{folder.name}/.*"))


def push_gguf(path: Path, kind: str, repo: str) -> None:
    """Push the file, with what sees and what Ollama needs, in the place of earlier ones of its type."""
    sight, beside = sight_of(path), [name for name in FOR_OLLAMA if path.with_name(name).is_file()]
    paths = [path.name, *([sight.name] if sight else []), *beside]
    # llama.cpp takes the first file of a type.
    kinds = [kind.upper()] + [MMPROJ] * bool(sight)
    push(path.parent, repo, paths, stale_files(repo, paths, rf"[^/]+\.({'|'.join(kinds)})\.gguf"))


def stale_files(repo: str, fresh: Iterable[str], pattern: str) -> list[str]:
    """What of the repo an earlier export left: files of such names that are not among the fresh ones."""
    from huggingface_hub import HfApi

    held = persist(f"looking at {repo}", lambda: HfApi().list_repo_files(repo))
    found = [path for path in held if path not in fresh and re.fullmatch(pattern, path)]
    if found:
        note(f"of an earlier export, and deleted from {repo} with this push: {', '.join(found)}")
    return found


def failed_copies(copies: Sequence[Copy], where: str, merged_repo: str | None) -> UserError | None:
    """The error of a run whose copies are not all there, or none; its last words say how to try again."""
    failed = [copy for copy in copies if copy.error]
    if not failed:
        return None
    told = "; ".join(f"{copy.kind} {copy.name}: {copy.error}" for copy in failed)
    words = [f"--{'merge' if copy.kind == 'merged' else 'gguf'} {copy.name}" for copy in failed]
    if merged_repo and failed[0].kind == "merged":
        words.append(f"--merged-repo {merged_repo}")
    message = f"the adapter is whole; {len(failed)} of {len(copies)} exports failed ({told})"
    return UserError(f"{message}.", f"Try again with: launch export {shlex.quote(where)} {' '.join(words)}")


# ---- Card ------------------------------------------------------------------------------------------------------------
# Model cards: what was trained on what, how and how well, how to use it, and what anybody named as plain Markdown.

SNIPPET = """\
# pip install transformers accelerate{packages}
{imports}from transformers import {model_class}, {reader_class}, GenerationConfig

place = {place}
reader = {reader_class}.from_pretrained(place)
model = {model_class}.from_pretrained({base}, dtype="auto", device_map="auto"{code})
{adapt}{ask}
settings = GenerationConfig.from_pretrained(place)
output = model.generate(**inputs.to(model.device), generation_config=settings, max_new_tokens=200)
print(reader.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))"""
ASK_CHAT = """\
messages = [{"role": "user", "content": CONTENT}]
inputs = reader.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)"""
CONTENTS = {
    "chat": '"What can you do?"',
    "picture": '[{"type": "image", "image": "picture.jpg"}, {"type": "text", "text": "What is shown here?"}]',
}


def card_head(
    title: str, about: str, model: str, relation: str, sees: bool, datasets: Sequence[str], licence: dict[str, Any],
    **more: Any,
) -> str:  # fmt: skip
    """A card's metadata, title and first words; `licence` are the fields of the `model` that it builds on."""
    from huggingface_hub import ModelCardData

    if is_hub_id(model):
        more |= {"base_model": model, "base_model_relation": relation}
    data = ModelCardData(
        datasets=[name for name in datasets if is_hub_id(name)] or None,
        pipeline_tag="image-text-to-text" if sees else "text-generation", **licence, **more,
    )  # fmt: skip
    if licence:
        name = licence.get("license_name") if licence["license"] == "other" else licence["license"]
        about += f" The base model's licence holds for it too{f': {code(name)}' if name else ''}."
    return f"---\n{data}\n---\n\n# {title}\n\n{about}"


def snippet(place: str, ask: str, trusted: bool, **how: str) -> str:
    """Code that runs as it stands: loads the model of that place, asks it as `ask` says, prints its answer.

    `how` may say `packages`, `imports`, the `base` that is loaded, and how that is `adapt`ed.
    """
    content = CONTENTS.get(ask)
    return SNIPPET.format_map(
        {"packages": "", "imports": "", "base": "place", "adapt": ""} | how | {
            "place": place,
            "code": ", trust_remote_code=True" if trusted else "",
            "model_class": "AutoModelForImageTextToText" if ask == "picture" else "AutoModelForCausalLM",
            "reader_class": "AutoProcessor" if ask == "picture" else "AutoTokenizer",
            "ask": ASK_CHAT.replace("CONTENT", content) if content
                   else 'inputs = reader("Once upon a time", return_tensors="pt")',
        }
    )  # fmt: skip


def linked(name: str, commit: str | None = None, kind: str = "") -> str:
    """A Hub repo with its address and commit, or the name of what lay on the machine."""
    if not is_hub_id(name):
        return f"{code(Path(name).name)} (not on the Hub)"
    return f"[{code(name)}](https://huggingface.co/{kind}{name})" + (f" at {code(commit[:12])}" if commit else "")


def code(text: object) -> str:
    """The text as code, on one line, that ends neither a table's cell nor the code."""
    text = re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", str(text)).replace("|", "¦").replace("`", "ˋ")
    return f"`{text}`"


def plain(text: object) -> str:
    """The text as text on one line, whatever it holds."""
    return re.sub(r"([\\`*_~|<>\[\]#$])", r"\\\1", " ".join(str(text).split()))


# ---- Copy cards ------------------------------------------------------------------------------------------------------
# The card beside the copies: the adapter's own tells of them too, a repo of copies alone gets one of theirs.

LICENCE_FIELDS = ("license", "license_name", "license_link")


@dataclass(frozen=True)
class Origin:
    """What a card says of where the copies come from; `ask` is how the model is asked, a key of `ASK`."""

    adapter: str
    model: str
    commit: str | None
    ask: str
    trust_remote_code: bool
    run_name: str


def put_card(folder: Path, repo: str | None, make: Callable[[], str | None]) -> None:
    """Write README.md in the folder, and push it to the repo if there is one; raises nothing."""
    try:
        text = make()
        if text:
            (folder / "README.md").write_text(text, encoding="utf-8")
            if repo:
                push(folder, repo, ["README.md"])
    except Exception as error:
        note(f"no card in {repo or folder} tells of the copies ({reason(error)})")


def card_beside(origin: Origin, adapter: Path, folder: Path, repo: str | None, copies: Sequence[Copy]) -> str | None:
    """The adapter's card with the copies that lie in folder or repo, or one of their own; none where neither fits."""
    own = find_card(adapter, repo)
    told = [*copies, *other_ggufs(folder, repo, copies)]
    if own:
        return amend_card(own.read_text(encoding="utf-8"), origin, repo, told)
    if repo and any(copy.repo == repo and not copy.error for copy in copies):
        return copies_card(origin, adapter, repo, told)
    return None


def find_card(folder: Path, repo: str | None) -> Path | None:
    """The adapter's card, else the one that the copies' repo has; none where neither has one."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    if (folder / "README.md").is_file():
        return folder / "README.md"
    try:
        return Path(persist("reading the card", lambda: hf_hub_download(repo, "README.md"))) if repo else None
    except EntryNotFoundError:
        return None


def other_ggufs(folder: Path, repo: str | None, copies: Sequence[Copy]) -> list[Copy]:
    """The GGUF files of earlier exports that lie beside these."""
    from huggingface_hub import HfApi

    if repo:
        held = persist(f"looking at {repo}", lambda: list(HfApi().list_repo_tree(repo)))
        sizes = {entry.path: entry.size for entry in held if hasattr(entry, "size")}
    else:
        sizes = {path.name: path.stat().st_size for path in folder.glob("*.gguf")}
    named = {path: re.fullmatch(r"[^/]+\.(\w+)\.gguf", path) for path in sizes}
    kinds = {path: found[1].lower() for path, found in named.items() if found}
    return [
        Copy("gguf", kind, path, repo, sizes[path] / 2**30, None, None)
        for path, kind in kinds.items()
        if kind in GGUF_BITS and path not in [copy.path for copy in copies]
    ]


def copies_card(origin: Origin, adapter: Path, repo: str, copies: Sequence[Copy]) -> str:
    """The text of a card for a repo of these copies; `adapter` is the folder of what they were made of."""
    base, more = linked(origin.model, origin.commit), dict[str, Any]()
    about, relation, tags = f"{base} with the adapter {linked(origin.adapter)} merged into it.", "finetune", list[str]()
    if repo == origin.adapter:
        about, relation, tags = f"A LoRA adapter for {base}, and copies of the model with it.", "adapter", ["lora"]
        more["library_name"] = "peft"
    elif any(copy.kind == "merged" and not copy.error for copy in copies):
        more["library_name"] = "transformers"
    else:
        about, relation = f"GGUF files of {about}", "quantized"
    head = card_head(
        repo.split("/")[-1], about, origin.model, relation, origin.ask == "picture", *learned_from(adapter),
        tags=[*tags, "unsloth", "launch"], **more,
    )  # fmt: skip
    return amend_card(head, origin, repo, copies)


def amend_card(text: str, origin: Origin, repo: str | None, copies: Sequence[Copy]) -> str:
    """The card with a section on the copies and how to use them, in the place of that on earlier ones."""
    made = [copy for copy in copies if not copy.error]
    text = text.rstrip() + "\n"
    place = re.search(r"\n## Copies\n.*?(?=\n## |\Z)", text, re.DOTALL)
    place = place or re.search(r"(?=\n## How to use it\n)|\Z", text)
    assert place
    rows: dict[str, str] = dict(re.findall(r"^\| (`[^`]*`) \| (.*) \|$", place[0], re.MULTILINE))
    uses: dict[str, str] = dict(re.findall(r"^### ([^\n]*)\n\n(```.*?\n```)$", place[0], re.MULTILINE | re.DOTALL))
    paths = [code(copy.path) for copy in made]
    rows = {name: told for name, told in rows.items() if name in paths or ".gguf" not in name}
    # Of what was there before, more was told then.
    fresh = {code(copy.path) for copy in made if copy.checked}
    rows |= {name: told for name, told in copy_rows(made) if name in fresh or name not in rows}
    shown = {name: f"```{language}\n{told}\n```" for name, language, told in usage(origin, repo, made)}
    # Of merged copies there is one, of whichever kind.
    replaced = ("Merged, ",) if any(copy.kind == "merged" for copy in made) else ()
    shown |= {name: use for name, use in uses.items() if name not in shown and not name.startswith(replaced)}
    table = "".join(f"| {name} | {told} |\n" for name, told in rows.items())
    section = f"\n## Copies\n\n| | |\n| --- | --- |\n{table}"
    section += "".join(f"\n### {name}\n\n{use}\n" for name, use in shown.items())
    return text[: place.start()] + section + text[place.end() :]


def copy_rows(copies: Sequence[Copy]) -> list[tuple[str, str]]:
    """What is called how, and what was seen of it."""
    told = [[f"{copy.gib:.2f} GiB"] * bool(copy.gib) + [plain(copy.checked)] * bool(copy.checked) for copy in copies]
    return [(code(copy.path or copy.name), ", ".join(words)) for copy, words in zip(copies, told, strict=True)]


def usage(origin: Origin, repo: str | None, made: Sequence[Copy]) -> list[tuple[str, str, str]]:
    """How to use the copies, as (heading, language, text): each runs as it stands, in the folder if not pushed."""
    shown, sees = [], origin.ask == "picture"
    for copy in made:
        if copy.kind == "merged":
            place, how = repr(copy.repo or copy.path), dict[str, str]()
            if copy.path and copy.repo and copy.repo == repo:
                # A folder: with PEFT installed, transformers would take the adapter at the repo's root for the model.
                place = f'snapshot_download({place}, allow_patterns="{copy.path}/*") + "/{copy.path}"'
                how["imports"] = "from huggingface_hub import snapshot_download\n"
            if copy.name == "4bit":
                how["packages"] = " bitsandbytes"
            text = snippet(place, origin.ask, origin.trust_remote_code, **how)
            shown.append((f"Merged, {copy.name}", "python", text))
    files = [copy for copy in made if copy.kind == "gguf"]
    if files:
        asked = '--image picture.jpg -p "What is shown here?"' if sees else '-p "What can you do?"'
        lines = [f"llama-cli {called(file, files, sees)} {asked}" for file in files]
        shown.append(("llama.cpp", "sh", "\n".join(lines)))
        name = re.sub("[^a-z0-9._-]+", "-", origin.run_name.lower()).strip("-._") or "mine"
        pulled = [f"ollama run hf.co/{file.repo}:{tag(file, files)}" for file in files if file.repo]
        local = [f"ollama create {name} -f Modelfile", f"ollama run {name}"]
        shown.append(("Ollama", "sh", "\n".join(pulled or local)))
    return shown


def called(copy: Copy, files: Sequence[Copy], sees: bool) -> str:
    """A GGUF file as llama.cpp is told of it; `files` are all of them."""
    path = str(copy.path)
    if not copy.repo:
        sight = path.removesuffix(f"{copy.name.upper()}.gguf") + f"{MMPROJ}.gguf"
        return f"-m {shlex.quote(path)}" + (f" --mmproj {shlex.quote(sight)}" if sees else "")
    name = tag(copy, files)
    return f"-hf {copy.repo} -hff {name}" if name == path else f"-hf {copy.repo}:{name}"


def tag(copy: Copy, files: Sequence[Copy]) -> str:
    """The type of a repo's GGUF file; its whole name where llama.cpp, which takes the first match, finds another."""
    kind, path = copy.name.upper(), str(copy.path)
    held = sorted(str(file.path) for file in files if file.repo == copy.repo)
    first = next((path for path in held if re.search(f"{kind}[.-]", path, re.IGNORECASE)), None)
    return kind if first == path else path


def learned_from(adapter: Path) -> tuple[list[str], dict[str, Any]]:
    """The datasets that the adapter's card names, and the licence, as a card's fields."""
    from huggingface_hub import ModelCard

    told: dict[str, Any] = {}
    try:
        if (adapter / "README.md").is_file():
            told = ModelCard.load(adapter / "README.md").data.to_dict()
    except Exception as error:
        note(f"what the adapter was trained on can't be read ({reason(error)})")
    datasets = told.get("datasets") or []
    datasets = [name for name in (datasets if isinstance(datasets, list) else [datasets]) if isinstance(name, str)]
    licence = {name: told[name] for name in LICENCE_FIELDS if isinstance(told.get(name), str)}
    return datasets, licence if re.fullmatch("[a-z0-9][a-z0-9.-]*", licence.get("license", "")) else {}


if __name__ == "__main__":
    with errors_told():
        told = "Merged copies and GGUF files of a LoRA adapter's model."
        sys.exit(main(settle(read_options(Options, sys.argv[1:], told))))
