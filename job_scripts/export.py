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
"""Make copies of a language model that was fine-tuned with LoRA: merged, or as GGUF files (Unsloth, llama.cpp).

Here, on a machine with a GPU:
    uv run job_scripts/export.py --adapter USER/MODEL --merge 16bit --gguf q4_k_m --output-repo USER/MODEL

On Hugging Face Jobs, on the machine that the header above names:
    hf jobs uv run job_scripts/export.py --adapter USER/MODEL --gguf q4_k_m --output-repo USER/MODEL

On a CPU, of a model that fits its memory in 16 bits:
    uv run job_scripts/export.py --adapter outputs/my-run --merge 16bit --device cpu

Each copy is loaded again and compared with the adapter on its model. The last line printed is `RESULT {json}`.
"""

import argparse
import gc
import hashlib
import itertools
import json
import math
import os
import random
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import urllib.request
from contextlib import ExitStack, contextmanager
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path

STARTED = time.monotonic()

# Every value that was chosen for this export; each is the default of the flag of the same name.
CHOSEN = {
    "model": "unsloth/Qwen3-8B",
    "adapter": None,
    "adapter_revision": None,
    "revision": None,
    "trust_remote_code": False,
    "load_in": "16bit",
    "output_repo": None,
    "private": False,
    "merge": None,
    "merged_repo": None,
    "gguf": (),
    "run_name": "export",
    "timeout_s": 7200,
}
# How the chosen model is best sampled, by what its makers say there.
GENERATION = {
    "temperature": 0.7,
    "top_p": 0.8,
    "top_k": 20.0,
    "min_p": 0.0,
}
GENERATION_SOURCE = "https://huggingface.co/Qwen/Qwen3-8B#best-practices"
# What the files of an adapter are called, its weights first.
ADAPTER_FILES = ["adapter_model*", "*.json", "*.jinja", "*.model", "*.txt", "README.md"]


class UserError(Exception):
    """What is wrong and what to do next: shown as one paragraph, without a traceback."""

    def __init__(self, message, hint="", status=1):
        super().__init__(message, hint, status)
        self.paragraph, self.status = f"{message} {hint}".strip(), status


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f"{message}.", "--help lists every flag.", status=2)


def parse_args(argv):
    parser = Parser(description="Merged copies and GGUF files of a LoRA adapter's model.", allow_abbrev=False)
    add = parser.add_argument
    add("--adapter", help="Hub repo id or local folder of the adapter")
    add("--adapter-revision", help="branch, tag or commit of the adapter")
    add("--model", help="the model that the adapter is for, instead of what the adapter names")
    add("--revision", help="branch, tag or commit of that model")
    add("--trust-remote-code", action=argparse.BooleanOptionalAction, help="run the repo's Python; needs its commit")
    add("--load-in", choices=["4bit", "16bit"], help="precision of the weights that the copies are compared with")
    add("--output-dir", help="default: the adapter's folder, output/ on the Job's volume, else outputs/RUN_NAME")
    add("--output-repo", help="NAME or NAMESPACE/NAME on the Hub; nothing is pushed without it or --merged-repo")
    add("--private", action=argparse.BooleanOptionalAction, help="create a repo as private")
    add("--merge", choices=["16bit", "4bit"], help="merge the adapter into a copy of the model, in merged/")
    add("--merged-repo", help="where the merged model is pushed, instead of merged/ in the output repo")
    add("--gguf", action="append", choices=GGUF_BITS, help="export as a GGUF file of that type; may be repeated")
    add("--run-name", help="name of the export, and of its folder in outputs/")
    add("--timeout-s", type=int, help="seconds after which the Job is killed (0: never)")
    add("--device", choices=["auto", "cpu"], default="auto", help="cpu: without a GPU")
    # The chosen model is the chosen adapter's.
    parser.set_defaults(**CHOSEN | {"gguf": None, "model": None, "revision": None, "run_name": None})
    if not os.environ.get("JOB_ID"):
        parser.set_defaults(timeout_s=0)
    words = [word.partition("=") for word in argv]
    argv = [(name.replace("_", "-") if name.startswith("--") else name) + eq + value for name, eq, value in words]
    args = parser.parse_args(argv)
    args.gguf = CHOSEN["gguf"] if args.gguf is None else tuple(args.gguf)
    own = args.adapter == CHOSEN["adapter"]
    if args.model is None and own:
        args.model, args.revision = CHOSEN["model"], args.revision or CHOSEN["revision"]
    if args.run_name is None:
        args.run_name = CHOSEN["run_name"] if own or not args.adapter else Path(args.adapter).resolve().name
    return args


def check_args(args):
    """Refuse what can't work, before anything heavy is imported."""

    def refuse(flag, reason):
        value = getattr(args, flag.replace("-", "_"))
        raise UserError(f"--{flag} {value}: {reason}.", "--help lists every flag.", status=2)

    if not args.adapter:
        refuse("adapter", "name the adapter, a repo or a folder")
    if args.adapter.startswith((".", "/", "~")) and not Path(args.adapter, "adapter_config.json").is_file():
        refuse("adapter", "there is no adapter_config.json in it")
    if not args.merge and not args.gguf:
        raise UserError("nothing is asked for.", "Add --merge 16bit, or --gguf q4_k_m.", status=2)
    if args.merge == "4bit" and (args.load_in != "4bit" or args.device == "cpu"):
        where = "there are none on a CPU" if args.device == "cpu" else "they come with --load-in 4bit"
        refuse("merge", f"it is made of 4-bit weights, and {where}")
    if args.trust_remote_code and not re.fullmatch("[0-9a-f]{40}", args.revision or ""):
        refuse("revision", "--trust-remote-code needs the 40 digits of the commit that was read")
    if not re.fullmatch(r"\w[\w .-]*", args.run_name):
        refuse("run-name", "should be a name, of letters, digits, '-', '_', '.' and spaces")
    if args.merged_repo and not args.merge:
        refuse("merged-repo", "it says where a merged model goes; add --merge 16bit")
    if args.merged_repo and args.merged_repo in (args.output_repo, args.adapter):
        refuse("merged-repo", ADAPTER_THERE)
    for flag in ("output-repo", "merged-repo"):
        name = getattr(args, flag.replace("-", "_"))
        if not name:
            continue
        if not re.fullmatch(r"([A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95}", name, re.ASCII):
            refuse(flag, "should be NAME or NAMESPACE/NAME")
        home = os.environ.get("HF_HOME", Path.home() / ".cache/huggingface")
        token_file = Path(os.environ.get("HF_TOKEN_PATH", Path(home) / "token"))
        if not os.environ.get("HF_TOKEN") and not token_file.is_file():
            hint = f"Run `hf auth login` or set HF_TOKEN, or leave --{flag} away."
            raise UserError(f"--{flag} needs a Hugging Face token, and there is none.", hint, status=2)


def phase(name):
    print(f"== {name}", flush=True)


def note(text):
    print(text, flush=True)


def reason(error):
    """The first line of what a library says, which often goes on for pages."""
    said = error.args[0] if isinstance(error, UserError) else str(error)
    return next((line.strip(" .") for line in said.splitlines() if line.strip()), type(error).__name__)


def finite(value):
    """The same value with null for every number that JSON does not know."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


def sha256(path, sync=False):
    """The file's SHA-256; with `sync`, once it is on the disk."""
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


# Seconds between SIGTERM and the end, within which the work is saved.
GRACE_S = 25
# Of the time that is left, what the script's own end takes: its RESULT, Python's exit.
LAST_S = 5
# Bytes a second that a disk and an upload surely take, where nothing was measured yet.
DISK_SPEED, UPLOAD_SPEED = 50e6, 10e6


class Stop(Exception):
    """A step or an evaluation is left, since the time is up."""


def deadline(timeout_s):
    """When a Job is killed, on the clock of `time.monotonic`: its container began when its first process did."""
    now = time.monotonic()
    if not timeout_s:
        return math.inf
    lived = now - STARTED
    if os.environ.get("JOB_ID") and not os.environ.get("LAUNCH_DATA_DIR"):
        ticks = int(Path("/proc/1/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
        container = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        # Older than its timeout it would not live: then the first process is another machine's.
        lived = container if lived < container < timeout_s else lived
    return now + timeout_s - lived


class Clock:
    """The time that this run has: until its deadline and, once it was asked to stop, until it is killed.

    Inside `or_else` a library may wait for the network for as long as it likes: when the time is up, a thread of this
    clock says the last words and ends the process.
    """

    deadline, signalled, last_words, at_once = math.inf, None, None, False

    def __init__(self):
        self.lock = threading.Lock()

    def start(self, deadline):
        """Begin: from now on a signal asks to stop, and is not the end."""
        self.deadline = deadline
        heard, told = os.pipe()
        os.set_blocking(told, False)
        # It is written to although the main thread is deep in a library, where no handler of Python's is called.
        signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.on_signal)
        # What ends a child is not meant for this process.
        os.register_at_fork(after_in_child=self.forget)
        threading.Thread(target=self.watch, args=(heard,), daemon=True).start()

    def forget(self):
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)

    def on_signal(self, number, frame):
        # A terminal and uv may both pass the first one on.
        if number == signal.SIGINT and self.signalled and time.monotonic() > self.signalled + 1:
            raise KeyboardInterrupt
        self.signalled = self.signalled or time.monotonic()

    def left_s(self):
        """Seconds until the end, as far as it is known."""
        return min(self.deadline, self.signalled + GRACE_S if self.signalled else math.inf) - time.monotonic()

    @contextmanager
    def or_else(self, last_words, at_once=False):
        """Inside, once the time is up, `last_words` is called elsewhere, and the status it returns is the process's.

        With `at_once` a signal is enough: there is nothing to save.
        """
        self.last_words, self.at_once = last_words, at_once
        try:
            yield
        finally:
            # Or it is at its last words.
            with self.lock:
                self.last_words = None

    def watch(self, heard):
        while True:
            if select.select([heard], [], [], 0.5)[0] and {signal.SIGTERM, signal.SIGINT} & {*os.read(heard, 512)}:
                self.signalled = self.signalled or time.monotonic()
            if self.left_s() < LAST_S or (self.at_once and self.signalled):
                with self.lock:
                    if self.last_words:
                        self.end()

    def end(self):
        status = 1
        try:
            status = self.last_words()
        finally:
            sys.stdout.flush()
            os._exit(status)


CLOCK = Clock()


def require_disk(folder, needed, told, hint):
    """Refuse where the folder's disk has less room than that many bytes; `told` is what they are."""
    place = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    usage = shutil.disk_usage(place)
    # A mounted bucket has no size.
    if usage.total and usage.free < needed:
        message = f"the disk of {place} has {usage.free / 1e9:.2f} GB free, and this run writes {needed / 1e9:.2f} GB"
        raise UserError(f"{message} ({', '.join(told)}).", hint, status=3)


# The model is kept anyway, and a GPU costs money while it waits: eight attempts last a few minutes.
ATTEMPTS, LONGEST_WAIT_S, LONGEST_WAITS_S = 8, 60, 900


def open_repo(name, private):
    """The output repo's full name, found there or created, and this token may write to it: known before any training.

    Raises `UserError` of status 3 where it can't be written to, or is public although it should be private.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi()
    try:
        me = persist("asking who this token belongs to", api.whoami)
        name = name if "/" in name else f"{me['name']}/{name}"
        check_token(me, name)
        try:
            found = persist(f"looking up {name}", lambda: api.model_info(name))
        except RepositoryNotFoundError:
            persist(f"creating {name}", lambda: api.create_repo(name, private=private, exist_ok=True))
        else:
            if found.id != name:
                note(f"{name} is now called {found.id}")
            name = found.id
            if private and not found.private:
                hint = "Make it private on its page, or choose another --output-repo."
                raise UserError(f"--private: {name} is there already, and public.", hint, status=3)
            persist(f"asking for {name}", lambda: api.auth_check(name, write=True))
    except UserError:
        raise
    except Exception as error:
        hint = "Check the name, the token and the network, or leave --output-repo away."
        raise UserError(f"{name} can't be written to ({reason(error)}).", hint, status=3) from error
    # Found now, since the Hub may not answer when it is needed.
    if "LAUNCH_ARTIFACTS" not in os.environ:
        os.environ["LAUNCH_ARTIFACTS"] = find_artifacts(me)
    return name


def check_token(me, repo):
    """Refuse where what the Hub says of the token (`/api/whoami-v2`) rules out writing to the repo."""
    owner, token = repo.split("/")[0], me.get("auth", {}).get("accessToken", {})
    roles = {org["name"]: org.get("roleInOrg") for org in me.get("orgs", [])}
    scopes = token.get("fineGrained", {}).get("scoped", [])
    granted = {
        permission
        for scope in scopes
        if scope.get("entity", {}).get("name") in (owner, repo)
        for permission in scope.get("permissions", [])
    }
    if token.get("role") == "read":
        problem = "the Hugging Face token may only read"
    elif owner != me["name"] and owner not in roles:
        problem = f"{me['name']} is not a member of {owner}"
    elif roles.get(owner) == "read":
        problem = f"{me['name']} may only read in {owner}"
    elif token.get("role") == "fineGrained" and "repo.write" not in granted:
        problem = f"the fine-grained token may not write to repos of {owner}"
    else:
        return
    hint = "Make a token that may, at https://huggingface.co/settings/tokens, or choose another --output-repo."
    raise UserError(f"{repo} can't be written to: {problem}.", hint, status=3)


def push(folder, repo, paths=None, stale=()):
    """Upload the folder in one commit, and again until the Hub holds every file as it is here; the repo's address.

    `paths` are the files to upload, instead of all that belong to the adapter; `stale` are those to delete with it.
    Raises `UserError` with the command that brings the model to the repo later: it stays in the folder.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api, folder = HfApi(), Path(folder)
    files = {path: fingerprint(folder / path) for path in paths or pushed_files(folder)}

    def attempt():
        # What the Hub holds already is left out of the commit, so that a lost answer makes no second one.
        additions = [CommitOperationAdd(path, folder / path) for path in files]
        # The Hub refuses to delete what is gone, as after a lost answer.
        gone = set(stale).intersection(api.list_repo_files(repo)) - files.keys() if stale else ()
        deletions = [CommitOperationDelete(path) for path in sorted(gone)]
        api.create_commit(repo, [*additions, *deletions], commit_message="Trained with launch")
        wrong = differing(api, repo, files)
        if wrong:
            raise RuntimeError(f"the Hub does not hold {', '.join(wrong)} as sent")

    try:
        persist(f"the push to {repo}", attempt)
    except Exception as error:
        raise UserError(f"the push to {repo} failed ({reason(error)}).", rescue(folder, repo)) from error
    note(f"pushed to {repo}, and every file is there as it is here: {', '.join(files)}")
    return f"{api.endpoint}/{repo}"


def persist(what, act):
    """What `act` returns, tried again after failures of the service or the network, never after a refusal (4xx)."""
    attempt, waited = 0, 0.0
    while True:
        attempt += 1
        try:
            return act()
        except Exception as error:
            # The client wraps some refusals. An error of the network has no response; nor has one of the content store.
            response = getattr(error, "response", getattr(error.__cause__, "response", None))
            status = getattr(response, "status_code", 500)
            offline = os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE")
            if attempt == ATTEMPTS or offline or (status < 500 and status not in (408, 429)):
                raise
            wait = pause(getattr(response, "headers", {}), attempt)
            waited += wait
            if waited > LONGEST_WAITS_S or wait > CLOCK.left_s() - LAST_S:
                raise
            note(f"{what} failed ({reason(error)}), trying again in {wait:.0f} s")
            time.sleep(wait)


def pause(headers, attempt):
    """Seconds to wait after that attempt: what the service asks for, else twice as long every time, and uneven."""
    said = headers.get("retry-after", "")
    asked = re.match(r"\d+", said) or re.search(r"(?<=\bt=)\d+", headers.get("ratelimit", ""))
    # Not from the seeded generator, on which the order of the rows depends.
    share = random.SystemRandom().uniform(0.5, 1)
    if asked:
        return int(asked[0]) + share
    try:
        return max(parsedate_to_datetime(said).timestamp() - time.time(), 0) + share
    except ValueError:
        return min(2**attempt, LONGEST_WAIT_S) * share


def pushed_files(folder):
    """What of the folder belongs to the adapter, as paths with `/`: no checkpoints, exports or hidden files."""
    paths = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    mine = [path for path in paths if path.parts[0] != "checkpoints" and not is_export(path.as_posix())]
    return [path.as_posix() for path in mine if not any(part.startswith(".") for part in path.parts)]


def fingerprint(path):
    """Size, SHA-256 and git's blob id of a file: the Hub knows a large one by the second, a small one by the third."""
    size = path.stat().st_size
    sha256, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)
    with path.open("rb") as file:
        while block := file.read(2**20):
            sha256.update(block)
            blob.update(block)
    return size, sha256.hexdigest(), blob.hexdigest()


def differing(api, repo, files):
    """The paths that the Hub does not hold with the size and hash that they have here."""
    held = {entry.path: entry for entry in api.list_repo_tree(repo, recursive=True) if hasattr(entry, "size")}
    wrong = []
    for path, (size, sha256, blob) in files.items():
        entry = held.get(path)
        if entry is None or entry.size != size or (entry.lfs.sha256 != sha256 if entry.lfs else entry.blob_id != blob):
            wrong.append(path)
    return wrong


def rescue(folder, repo):
    """What to do where the folder could not be pushed: one command for another machine, or for this one."""
    data = Path(os.environ.get("LAUNCH_DATA_DIR", "/data")).resolve()
    place, name = folder.resolve(), repo.split("/")[-1]
    upload = f"hf upload --private --exclude 'checkpoints/*' --exclude '.*' {repo}"
    if "JOB_ID" in os.environ and data.is_dir() and not place.is_relative_to(data):
        # Elsewhere it would go with the container.
        place = shutil.copytree(place, data / "output", dirs_exist_ok=True)
    if "JOB_ID" not in os.environ or not place.is_relative_to(data):
        return f"The model is kept; this pushes it: {upload} {shlex.quote(str(place))} ."
    inside, bucket = place.relative_to(data).as_posix(), os.environ.get("LAUNCH_ARTIFACTS")
    if not bucket:
        job = os.environ["JOB_ID"]
        return f"The model is kept in {inside}/ of the Job's bucket; this names it: hf jobs inspect {job}"
    fetch = f"hf buckets sync {shlex.quote(f'{bucket}/{inside}')} {name}"
    return f"The model is kept in the Job's bucket; this fetches and pushes it: {fetch} && {upload} {name} ."


def find_artifacts(me):
    """The address of the bucket's folder that a Job has at /data; empty where it can't be known."""
    from huggingface_hub import HfApi

    for owner in (me["name"], *(org["name"] for org in me.get("orgs", []))):
        try:
            job = HfApi().inspect_job(job_id=os.environ["JOB_ID"], namespace=owner)
            [volume] = [volume for volume in job.volumes or [] if volume.mount_path == "/data"]
        # Elsewhere than in a Job, in another's namespace, with a token that may not look.
        except Exception:
            continue
        if volume.type == "bucket":
            return "/".join(("hf://buckets", volume.source, *filter(None, [volume.path])))
    return ""


# ---- llama.cpp -------------------------------------------------------------------------------------------------------

# What is fetched where there is no llama.cpp: the source distribution of llama-cpp-python 0.3.36 holds one whole, with
# its converter. PyPI's address is made of the content's own hash, and the content is checked besides.
LLAMA_CPP = (
    "https://files.pythonhosted.org/packages/ec/e9/e7de2b0463ea3ffbf0ede6cb21b58c1258a8f6521aae45ca773a59fe7cf3/"
    "llama_cpp_python-0.3.36.tar.gz"
)
LLAMA_CPP_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
CONVERTER = "convert_hf_to_gguf.py"
QUANTIZER, ANSWERER = "llama-quantize", "llama-completion"
# What is built, also for the scripts of the other kind of model.
PROGRAMS = (QUANTIZER, "llama-completion", "llama-mtmd-cli")
# The types that the converter writes by itself.
CONVERTED = ("f16", "bf16", "q8_0")


def open_llama_cpp(args):
    """The folder of a llama.cpp that can make what was asked for of this model; before anything is loaded."""
    folder = get_llama_cpp(args.gguf)
    require_convertible(args, folder)
    return folder


def get_llama_cpp(types):
    """The folder of a llama.cpp that can make GGUF files of these types; fetched, and built, where there is none.

    `UNSLOTH_LLAMA_CPP_PATH` names it, and names it for Unsloth afterwards. Raises `UserError` of status 3 with what
    is lacking: this is called before anything is trained.
    """
    named = os.environ.get("UNSLOTH_LLAMA_CPP_PATH")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "launch", "llama.cpp-0.3.36")
    if named:
        folder = Path(named).expanduser().absolute()
        problem = llama_cpp_flaw(folder, types)
        if problem:
            hint = "Name a folder of llama.cpp that is built (bench/llama_cpp.sh makes one), or unset the variable."
            raise UserError(f"UNSLOTH_LLAMA_CPP_PATH={named}: {problem}.", hint, status=3)
    else:
        found = (Path.home() / ".unsloth" / "llama.cpp", cache)
        folder = next((folder for folder in found if llama_cpp_flaw(folder, types) is None), None)
        if folder == cache and tool(cache, ANSWERER) is None and can_build(()):
            # An earlier release built one of the two that answer.
            folder = None
    if folder is None:
        folder = cache
        phase("get llama.cpp")
        make_llama_cpp(folder, build=can_build(types))
        problem = llama_cpp_flaw(folder, types)
        if problem:
            raise UserError(f"the llama.cpp in {folder} can't be used: {problem}.", "Remove it, and try again.", 3)
    # Unsloth would else go to GitHub for what is newest there, and install what that needs as root.
    os.environ.update(UNSLOTH_LLAMA_CPP_PATH=str(folder), UNSLOTH_AUTO_INSTALL="0", UNSLOTH_LLAMA_CPP_OFFLINE="1")
    note(f"GGUF files are made by {folder}")
    return folder


def require_convertible(args, llama_cpp):
    """Refuse a model that the converter does not know, by the tables that it looks the architecture up in."""
    settings = read_config(args)
    tables = {"TEXT_MODEL_MAP": "text_config"}
    for table, part in tables.items():
        known, own = convertible(llama_cpp, table), settings.get(part) or {}
        names = [name for whose in (own, settings) for name in whose.get("architectures") or ()]
        if known and names and not known.intersection(names):
            message = f"--gguf {args.gguf[0]}: llama.cpp can't convert {args.model}, a {names[-1]}"
            raise UserError(f"{message}.", "Leave --gguf away; --merge 16bit works.", status=3)


def convertible(llama_cpp, table):
    """The names in that table of the converter's; empty where it keeps them otherwise, as other releases do."""
    try:
        text = (llama_cpp / "conversion" / "__init__.py").read_text(encoding="utf-8")
    except OSError:
        return set()
    found = re.search("^" + table + r"\b[^\n]*\n(.*?)^\}", text, re.MULTILINE | re.DOTALL)
    return set(re.findall(r'^ +"([\w.]+)":', found[1], re.MULTILINE)) if found else set()


def tool(folder, name):
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


def llama_cpp_flaw(folder, types):
    """What keeps that folder from making these types, or none."""
    if not folder.is_dir():
        return "there is no such folder"
    for name in (CONVERTER, "gguf-py/gguf/gguf_reader.py"):
        if not (folder / name).is_file():
            return f"it has no {name}"
    if not set(types) <= set(CONVERTED) and tool(folder, QUANTIZER) is None:
        return f"it has no {QUANTIZER} that runs"
    return None


def can_build(types):
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


def make_llama_cpp(folder, build=True):
    """Fetch llama.cpp into the folder, whole or not at all, with its programs built if asked for; minutes."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".llama.cpp-", dir=folder.parent) as staging:
        archive, source = Path(staging) / "archive", Path(staging) / "llama.cpp"
        try:
            fetch(LLAMA_CPP, LLAMA_CPP_SHA256, archive)
        except (OSError, ValueError) as error:
            hint = "Name a build of llama.cpp with UNSLOTH_LLAMA_CPP_PATH, or leave --gguf away."
            raise UserError(f"llama.cpp can't be fetched from {LLAMA_CPP} ({reason(error)}).", hint, 3) from error
        unpack(archive, "vendor/llama.cpp/", source)
        if build:
            build_llama_cpp(source)
        shutil.rmtree(folder, ignore_errors=True)
        source.rename(folder)


def fetch(address, digest, path):
    """Download what has that SHA-256; `ValueError` for anything else."""
    with urllib.request.urlopen(address, timeout=60) as answer, path.open("wb") as file:
        shutil.copyfileobj(answer, file)
    if sha256(path) != digest:
        raise ValueError(f"its SHA-256 is {sha256(path)} and should be {digest}")


def unpack(archive, inside, folder):
    """Unpack what lies under the folder `inside` of the archive's only folder."""
    with tarfile.open(archive) as tar:
        members = []
        for member in tar:
            _, found, rest = member.name.partition(f"/{inside}")
            # Of the web page nothing is built.
            if found and member.isfile() and not rest.startswith("tools/ui/"):
                members.append(member.replace(name=rest, deep=False))
        tar.extractall(folder, members, filter="data")


def build_llama_cpp(source):
    """Build the programs that quantise and that answer, for the processor, without what they could do on the net."""
    cores, build = os.cpu_count() or 1, source / "build"
    cmake = [shutil.which("cmake")] if shutil.which("cmake") else ["uv", "tool", "run", "--quiet", "cmake"]
    off = ("LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES", "LLAMA_BUILD_SERVER", "LLAMA_BUILD_APP", "LLAMA_BUILD_UI",
           "LLAMA_USE_PREBUILT_UI", "LLAMA_OPENSSL", "BUILD_SHARED_LIBS")  # fmt: skip
    options = ["-DCMAKE_BUILD_TYPE=Release", *(f"-D{name}=OFF" for name in off)]
    commands = (
        [*cmake, "-S", source, "-B", build, *options],
        [*cmake, "--build", build, "--parallel", str(cores), "--target", *PROGRAMS],
    )
    note(f"building llama.cpp on {cores} cores: a minute on twelve, five on two")
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-20:])
            note(tail)
            hint = "The lines above say why. Name a build of llama.cpp with UNSLOTH_LLAMA_CPP_PATH instead."
            raise UserError(f"llama.cpp could not be built (status {done.returncode}).", hint, status=3)
    for name in PROGRAMS:
        shutil.copy(build / "bin" / name, source / name)
    shutil.rmtree(build)


# ---- Exports ---------------------------------------------------------------------------------------------------------

MERGED = "merged"
# The names that transformers gives to a model's weights.
WEIGHTS = r"(pytorch_)?model(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?"
# What Unsloth calls the file of what sees, in the place of a type.
MMPROJ = "F16-mmproj"
# Beside GGUF files, for Ollama.
FOR_OLLAMA = ("Modelfile", "params", "template")
# Bits that a weight takes in a file of that type, rounded up for the parts that are kept more exact.
GGUF_BITS = {
    "f16": 16, "bf16": 16, "q8_0": 8.6, "q6_k": 6.7, "q5_k_m": 5.9, "q4_k_m": 5.1, "q3_k_m": 4.3, "q2_k": 3.7,
}  # fmt: skip
# Bytes a second that a disk and an upload may well take. The adapter is safe by then: an export that comes to nothing
# for want of time costs only its time.
EXPORT_DISK_SPEED, EXPORT_UPLOAD_SPEED = 200e6, 40e6
# What is wrong with such a --merged-repo.
ADAPTER_THERE = (
    "the adapter is there, and transformers would add it to the merged weights once more; without it these go to "
    f"{MERGED}/ of the output repo"
)
# Left for the RESULT line and the card.
CLOSING_S = 20


class TimeUp(BaseException):
    """The exports are left as they are. No `Exception`: nothing that tries again may catch it."""


@contextmanager
def until(left_s):
    """Raise `TimeUp` inside after so many seconds, or when a signal asks to stop."""

    def stop(number, frame):
        raise TimeUp("the time is up" if number == signal.SIGALRM else "asked to stop")

    before = {number: signal.signal(number, stop) for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT)}
    try:
        if left_s < math.inf:
            signal.setitimer(signal.ITIMER_REAL, max(left_s, 0.01))
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def asked_exports(args):
    """What was asked for, as the list that becomes RESULT's `exports`; `error` is null once one is made and checked."""
    wanted = [("merged", args.merge)] * bool(args.merge) + [("gguf", kind) for kind in dict.fromkeys(args.gguf)]
    unknown = {"path": None, "repo": None, "gib": None, "checked": None, "error": "not made"}
    return [{"kind": kind, "name": name, **unknown} for kind, name in wanted]


def whole_bytes(model):
    """What the model takes in 16 bits, without what is trained; packed weights count as what they stand for."""
    states = ((parameter, getattr(parameter, "quant_state", None)) for parameter in model.parameters())
    frozen = [(parameter, state) for parameter, state in states if not parameter.requires_grad]
    return 2 * sum(math.prod(state.shape) if state else parameter.numel() for parameter, state in frozen)


def export_bytes(args, whole, name=None):
    """What the exports take on the disk at most, by what it is, for a model of that size in 16 bits.

    `name` is that of the 16-bit model, which is downloaded where it is not the one that is trained.
    """
    parts = {f"{name} in 16 bits": whole} if name and name != args.model else {}
    if args.merge:
        parts[f"{MERGED}/"] = whole if args.merge == "16bit" else 0.4 * whole
    if args.gguf and args.merge != "16bit":
        parts["a 16-bit copy to convert"] = whole
    if any(kind not in CONVERTED for kind in args.gguf):
        parts["a 16-bit GGUF file to quantise"] = whole
    for kind in dict.fromkeys(args.gguf):
        parts[f"{kind}.gguf"] = whole * GGUF_BITS[kind] / 16
    return parts


def export_place(args, folder, repo, merged_repo):
    """Where exports are put, and where they are made: new folders, or for the first the adapter's.

    A Job's volume is a bucket behind a file system, on which no file is mapped or changed in place, and to which what
    is pushed anyway would travel a second time. What is not pushed belongs there.
    """
    in_bucket, pushes = is_jobs_own(args), repo or (merged_repo and not args.gguf)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / ".exporting", ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix="exporting-")) if in_bucket else folder / ".exporting"
    work.mkdir(exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="exports-")) if in_bucket and pushes else folder, work


def open_merged_repo(args, output_repo):
    """The full name of the repo of the merged model, or none; opened as the output repo was.

    Raises `UserError` of status 3 where it holds an adapter, or will.
    """
    if not args.merged_repo:
        return None
    from huggingface_hub import HfApi

    name = open_repo(args.merged_repo, args.private)
    held = persist(f"looking at {name}", lambda: HfApi().list_repo_files(name))
    if name == output_repo or "adapter_config.json" in held:
        raise UserError(f"--merged-repo {name}: {ADAPTER_THERE}.", "Name another repo.", status=3)
    return name


def read_config(args):
    """The model's config.json."""
    from huggingface_hub import hf_hub_download

    own = Path(args.model, "config.json")
    own = own if own.is_file() else Path(hf_hub_download(args.model, "config.json", revision=args.revision))
    return json.loads(own.read_text(encoding="utf-8"))


def find_whole(args):
    """Name and revision of the model in 16 bits: the one that is trained, or what its 4-bit upload was made of.

    Raises `UserError` of status 2 where that is not known, for exports that need it.
    """
    from huggingface_hub import HfApi
    from unsloth.models.loader_utils import get_model_name

    if not args.gguf and args.merge != "16bit":
        return args.model, args.revision
    settings = read_config(args).get("quantization_config") or {}
    if settings.get("quant_method") != "bitsandbytes":
        return args.model, args.revision
    try:
        name = None if Path(args.model).is_dir() else get_model_name(args.model, load_in_4bit=False)
    except Exception:
        name = None
    if not name or name.lower() == args.model.lower():
        message = f"--model {args.model} is in 4 bits itself, and its 16-bit original, which exports need, is not known"
        raise UserError(f"{message}.", "Name that one, and add --load-in 4bit.", status=2)
    try:
        return name, persist(f"looking up {name}", lambda: HfApi().model_info(name).sha)
    except Exception as error:
        # It may lie in the cache all the same.
        note(f"the commit of {name} is not known ({reason(error)})")
        return name, None


def fetch_whole(name, revision):
    """The folder of that model's files; what was loaded already lies in the Hub's cache."""
    from huggingface_hub import snapshot_download

    if Path(name).is_dir():
        return Path(name).absolute()
    wanted = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.py"]
    skipped = ["*/*", "consolidated*"]
    fetch = partial(snapshot_download, name, revision=revision, allow_patterns=wanted, ignore_patterns=skipped)
    folder = Path(persist(f"fetching {name}", fetch))
    note(f"merged into {name} of commit {folder.name}")
    return folder


def export(args, exports, folder, model, reader, stop, llama_cpp, whole, repo, merged_repo, left_s):
    """Make each of the `exports` of the trained model, compare it with that, and push it; each notes what became of it.

    Nothing is raised, and the model is gone from memory afterwards. `whole` is the name and revision of the 16-bit
    model; `repo` and `merged_repo` are where to push, or none.
    """
    place, work = export_place(args, folder, repo, merged_repo)
    size, ends = whole_bytes(model), time.monotonic() + left_s

    def require_time(written, pushed):
        needed = written / EXPORT_DISK_SPEED + (pushed / EXPORT_UPLOAD_SPEED if repo or merged_repo else 0)
        if ends - time.monotonic() < needed:
            raise TimeUp(f"{ends - time.monotonic():.0f} s are left, and about {needed:.0f} s are needed")

    try:
        with until(left_s):
            require_time(2 * size, 0)
            copies = make_copies(args, work, model, reader, stop, whole, exports)
            empty(model)
            checked = check_copies(args, copies, work / "known.json", exports)
            for entry in exports:
                if entry["error"] != "not made":
                    continue
                phase(f"export {entry['kind']} {entry['name']}")
                bits = GGUF_BITS[entry["name"]] if entry["kind"] == "gguf" else 16 if entry["name"] == "16bit" else 5
                require_time(2 * size, size * bits / 16)
                try:
                    if entry["kind"] == "merged":
                        entry["checked"] = checked[entry["name"]]
                        keep_merged(entry, args, copies, place, repo, merged_repo)
                    else:
                        keep_gguf(entry, args, gguf_name(args, repo), copies["16bit"], work, place, llama_cpp)
                        first = not any(other["kind"] == "gguf" and not other["error"] for other in exports)
                        if first:
                            write_modelfile(place, args, reader, entry["path"])
                        push_gguf(entry, place, repo)
                    entry["error"] = None
                    where = f"pushed to {entry['repo']}" if entry["repo"] else f"in {place}"
                    note(f"{entry['path']}: {entry['gib']:.2f} GiB, {where}; {entry['checked']}")
                except Exception as error:
                    entry["error"] = reason(error)
                    note(f"{entry['kind']} {entry['name']} failed: {entry['error']}")
    except TimeUp as end:
        fail(exports, f"left out: {end}")
    except Exception as error:
        fail(exports, reason(error))
    shutil.rmtree(work, ignore_errors=True)
    if place != folder and not any(entry["error"] for entry in exports):
        # All of it was pushed.
        shutil.rmtree(place, ignore_errors=True)


def fail(exports, problem, kind=None):
    """Note the problem for those that nothing has become of yet, of that merged copy's if it is named."""
    for entry in exports:
        if entry["error"] == "not made" and (kind is None or is_of(entry, kind)):
            entry["error"] = problem
            note(f"{entry['kind']} {entry['name']}: {problem}")


def is_of(entry, kind):
    """Whether that export is the merged copy of that kind, or made of it."""
    return kind == "16bit" if entry["kind"] == "gguf" else entry["name"] == kind


def make_copies(args, work, model, reader, stop, whole, exports):
    """The merged copies that are needed, by kind, with what the trained model makes of the prompt beside them.

    The 4-bit one comes last: merging changes the weights that are loaded.
    """
    phase("merge")
    known, copies = probe(model, reader, stop), {}
    (work / "known.json").write_text(json.dumps(known | {"merged_words": known["words"]}), encoding="utf-8")
    for kind in [kind for kind in ("16bit", "4bit") if kind == args.merge or (kind == "16bit" and args.gguf)]:
        try:
            base = fetch_whole(*whole) if kind == "16bit" else None
            merge(model, reader, kind, work / kind, base)
            copies[kind] = work / kind
        except Exception as error:
            fail(exports, reason(error), kind)
    return copies


def merge(model, reader, kind, folder, base):
    """Merge the adapter into a copy of the model, with all that it takes to use it, through Unsloth."""
    named = model.config._name_or_path
    try:
        if base:
            # Unsloth reads the 16-bit weights anew, and would take the newest of the repo that it thinks the best.
            model.config._name_or_path = str(base)
        method = {"16bit": "merged_16bit", "4bit": "merged_4bit_forced"}[kind]
        model.save_pretrained_merged(str(folder), reader, save_method=method)
    finally:
        model.config._name_or_path = named
    reader.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    if not any(folder.glob("*.safetensors")):
        raise RuntimeError("Unsloth wrote no weights")


def empty(model):
    """Let go of the model's memory, whoever still holds on to it."""
    import torch

    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.new_empty(0)
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def check_copies(args, copies, record, exports):
    """What the comparison with the trained model says of each merged copy, by kind."""
    told = {}
    for kind, copy in copies.items():
        try:
            told[kind], problem, answer = in_own_process("check_merged", copy, record, args.trust_remote_code or "")
            if problem:
                fail(exports, problem, kind)
            elif kind == "16bit":
                # A GGUF file is made of it, and nearer to it than to what was trained in 4 bits.
                known = json.loads(record.read_text(encoding="utf-8"))
                record.write_text(json.dumps(known | answer), encoding="utf-8")
        except Exception as error:
            if re.search("out of memory|killed by signal 9", str(error)):
                # What was trained in 4 bits may not fit in 16.
                told[kind] = f"not loaded again, for want of memory ({reason(error)})"
            else:
                fail(exports, f"it can't be loaded again ({reason(error)})", kind)
    return told


def keep_merged(entry, args, copies, place, repo, merged_repo):
    """Put the merged copy in its place, and push it."""
    copy = land(copies[entry["name"]], place / MERGED)
    # GGUF files are made of it too.
    copies[entry["name"]] = copy
    files = every_file(copy)
    entry |= {"path": MERGED, "gib": sum((copy / path).stat().st_size for path in files) / 2**30}
    if merged_repo:
        push_merged(entry, args, copy, files, repo, merged_repo)
    elif repo:
        paths = [f"{MERGED}/{path}" for path in files]
        push(place, repo, paths, stale_files(repo, paths, f"{MERGED}/.*"))
    entry["repo"] = merged_repo or repo


def push_merged(entry, args, copy, files, repo, merged_repo):
    """Push the merged copy to a repo of its own, with a card where one can be made."""
    adapter = args.adapter
    stale = stale_files(merged_repo, files, WEIGHTS)
    try:
        # It is the repo, and in no folder of it.
        whole = entry | {"path": None, "repo": merged_repo, "error": None}
        text = copies_card(args, copy, [whole], merged_repo, adapter)
        (copy / "README.md").write_text(text, encoding="utf-8")
        push(copy, merged_repo, ["README.md", *files], stale)
        return
    except Exception as error:
        # The Hub refuses a commit for a card that it does not take.
        if isinstance(error, UserError) and "README.md" not in error.args[0]:
            raise
        note(f"{merged_repo} has no card ({reason(error)})")
    push(copy, merged_repo, files, stale)


def keep_gguf(entry, args, name, copy, work, place, llama_cpp):
    """Convert the 16-bit copy, quantise it, check the file, and put it in its place."""
    from unsloth_zoo.llama_cpp import convert_to_gguf, quantize_gguf

    kind = entry["name"]

    def file_of(kind):
        return work / f"{name}.{kind.upper()}.gguf"

    def convert(kind):
        # What sees is a file of its own, and made once.
        sees = False
        converter = str(llama_cpp / CONVERTER)
        _, seen = convert_to_gguf(
            str(work / name), str(copy), "f16", kind, converter_location=converter, is_vlm=sees,
            # One file: what quantises and pushes it knows no parts.
            max_shard_size="1000GB",
        )  # fmt: skip
        if sees and not seen:
            raise RuntimeError("the part of the model that sees could not be converted")

    if kind in CONVERTED:
        convert(kind)
    else:
        whole = next((other for other in ("bf16", "f16") if file_of(other).exists()), "bf16")
        if not file_of(whole).exists():
            convert(whole)
        quantizer = str(tool(llama_cpp, QUANTIZER))
        quantize_gguf(str(file_of(whole)), str(file_of(kind)), kind, quantizer, print_output=False)
    told, problem = in_own_process("check_gguf", file_of(kind), kind, work / "known.json", llama_cpp)
    if problem:
        raise RuntimeError(problem)
    # Other types are quantised from a 16-bit file, and what sees is not made again.
    sees = seeing(file_of(kind))
    landed = land(file_of(kind), place / file_of(kind).name, keep=kind in ("bf16", "f16"))
    if sees:
        land(sees, place / sees.name, keep=True)
    entry |= {"path": landed.name, "gib": landed.stat().st_size / 2**30, "checked": told}


def gguf_name(args, repo):
    """What GGUF files are called before their type: as the repo that they go to, so that later ones replace them."""
    name = repo.split("/")[-1] if repo else Path(args.adapter).resolve().name
    return re.sub(r"[^\w.-]+|\.gguf$", "-", name, flags=re.ASCII).strip(".-") or "model"


def push_gguf(entry, place, repo):
    """Push the file, with what sees and what Ollama needs."""
    if repo:
        sees = seeing(place / entry["path"])
        beside = [name for name in FOR_OLLAMA if (place / name).is_file()]
        paths = [entry["path"], *([sees.name] if sees else []), *beside]
        # llama.cpp takes the first file of a type.
        kinds = [entry["name"].upper()] + [MMPROJ] * bool(sees)
        push(place, repo, paths, stale_files(repo, paths, rf"[^/]+\.({'|'.join(kinds)})\.gguf"))
        entry["repo"] = repo


def seeing(path):
    """The file beside that GGUF file of what sees, or none."""
    found = path.with_name(f"{path.stem.rpartition('.')[0]}.{MMPROJ}.gguf")
    return found if found.is_file() else None


def stale_files(repo, fresh, pattern):
    """What of the repo an earlier export left: files of such names that are not among the fresh ones."""
    from huggingface_hub import HfApi

    held = persist(f"looking at {repo}", lambda: HfApi().list_repo_files(repo))
    found = [path for path in held if path not in fresh and re.fullmatch(pattern, path)]
    if found:
        note(f"of an earlier export, and deleted from {repo} with this push: {', '.join(found)}")
    return found


def land(source, target, keep=False):
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


def every_file(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def is_export(path):
    """Whether that path of an output folder is of an export, which is pushed by itself."""
    return path.startswith(f"{MERGED}/") or path.endswith(".gguf") or path in FOR_OLLAMA


def failed_exports(args, exports, where, url):
    """The error of a run whose exports are not all there, or none; its last words say how to try again."""
    failed = [entry for entry in exports if entry["error"]]
    if not failed:
        return None
    told = "; ".join(f"{entry['kind']} {entry['name']}: {entry['error']}" for entry in failed)
    words = [f"--merge {entry['name']}" if entry["kind"] == "merged" else f"--gguf {entry['name']}" for entry in failed]
    if args.merged_repo and failed[0]["kind"] == "merged":
        words.append(f"--merged-repo {args.merged_repo}")
    address = f", {url}" if url else ""
    message = f"the adapter is whole{address}; {len(failed)} of {len(exports)} exports failed ({told})"
    return UserError(f"{message}.", f"Try again with: launch export {shlex.quote(str(where))} {' '.join(words)}")


# ---- Comparing an export with the trained model ----------------------------------------------------------------------

QUESTION, BEGINNING = "What is the capital of France?", "The capital of France is"
ANSWERED, COMPLETE_S = 24, 900
# How far a token's logit must lead the next one's for a GGUF file of that type to have to answer with it as well. Of a
# model of 135M q4_k_m moved a lead by 2.3 at most, in 91 tokens, and q2_k by 5.7: of the smallest types none has to.
LEADS = {"f16": 3, "bf16": 3, "q8_0": 3, "q6_k": 6, "q5_k_m": 6, "q4_k_m": 6}


def ask(reader):
    """The prompt that both are given, through the chat template where there is one."""
    if not reader.chat_template:
        return BEGINNING
    content = QUESTION
    # Llama's template would else hold the day.
    shown = {"add_generation_prompt": True, "date_string": "26 Jul 2024"}
    return reader.apply_chat_template([{"role": "user", "content": content}], tokenize=False, **shown)


def probe(model, reader, stop, led=False):
    """What the model makes of the prompt, as JSON: the likeliest token at each place, and its likeliest answer.

    With `led` also the words at its beginning that lead all others by so much.
    """
    import torch

    text, tokenizer = ask(reader), getattr(reader, "tokenizer", reader)
    inputs = reader([text], add_special_tokens=not reader.chat_template, return_tensors="pt").to(model.device)
    with torch.inference_mode():
        logits = model(**inputs).logits[0].float().cpu()
        # Greedy, and without what the recommended settings would change of it.
        made = model.generate(
            **inputs,
            max_new_tokens=ANSWERED,
            do_sample=False,
            repetition_penalty=1.0,
            eos_token_id=[stop],
            pad_token_id=tokenizer.pad_token_id,
            **({"return_dict_in_generate": True, "output_logits": True} if led else {}),
        )
    answer = (made.sequences if led else made)[0, inputs["input_ids"].shape[1] :].tolist()
    pairs = [step[0].float().topk(2).values.tolist() for step in made.logits] if led else []
    said = partial(tokenizer.decode, skip_special_tokens=True)
    return {
        "prompt": text,
        "ids": inputs["input_ids"][0].tolist(),
        "likeliest": logits.argmax(-1).tolist(),
        "last": logits[-1].tolist(),
        "answer": answer,
        "words": said(answer),
        "led": {str(lead): leading_words(answer, pairs, lead, said) for lead in set(LEADS.values())} if led else {},
        "stop": stop,
        "eos": tokenizer.eos_token_id,
        "template": reader.chat_template,
    }


def leading_words(answer, pairs, lead, said):
    """The whole words at the beginning of an answer whose every token leads by so much; `pairs` are the best logits."""
    count = next((n for n, (first, second) in enumerate(pairs) if first - second < lead), len(answer))
    return words_of(said(answer) if count >= len(answer) else re.sub(r"\S*$", "", said(answer[:count])))


def words_of(text):
    """The words of an answer, without tags, of which llama.cpp shows others than transformers."""
    return re.sub(r"<[^<>]*>", " ", text).split()


def compare(known, found):
    """How much the exported model is the trained one, in a sentence, and what is wrong with it, or none."""
    if found["ids"] != known["ids"]:
        return None, "its tokenizer or chat template makes another prompt than the trained model's"
    pairs = list(zip(known["likeliest"][::-1], found["likeliest"][::-1], strict=False))
    same = sum(one == other for one, other in pairs)
    far = max(abs(one - other) for one, other in zip(known["last"], found["last"], strict=False))
    told = f"the likeliest next token is the same at {same} of {len(pairs)} places of a prompt"
    told += f", and the logits at its end differ by {far:.3g} at most"
    # Of a model that knows little, 4 bits change the likeliest token easily, and the logits as a whole much less.
    if same * 2 <= len(pairs) and correlation(known["last"], found["last"]) < 0.5:
        return None, f"it does not answer as the trained model: {told}"
    return f"{tell_answers(known['answer'], found['answer'])}; {told}", None


def correlation(one, other):
    """Of two lists of numbers, from -1 to 1; 0 where either is of one number only."""
    count = min(len(one), len(other))
    means = sum(one[:count]) / count, sum(other[:count]) / count
    pairs = [(a - means[0], b - means[1]) for a, b in zip(one, other, strict=False)]
    size = math.sqrt(sum(a * a for a, _ in pairs) * sum(b * b for _, b in pairs))
    return sum(a * b for a, b in pairs) / size if size else 0.0


def tell_answers(known, found):
    if known == found:
        return f"the same answer of {len(known)} tokens"
    place = next((n for n, (one, other) in enumerate(zip(known, found, strict=False)) if one != other), None)
    place = min(len(known), len(found)) if place is None else place
    return f"the answers are the same for {place} tokens, then differ"


def check_merged(folder, record, trusted):
    """Load the merged model with plain transformers, without Unsloth: what `compare` finds, and what it answers.

    The answer is what a GGUF file's is compared with: it is made of that model.
    """
    import torch
    from transformers import AutoModelForCausalLM as AutoModel
    from transformers import AutoTokenizer as AutoReader

    known = json.loads(Path(record).read_text(encoding="utf-8"))
    trust = {"trust_remote_code": bool(trusted)}
    reader = AutoReader.from_pretrained(folder, **trust)
    where = {"device_map": "auto"} if torch.cuda.is_available() else {}
    model = AutoModel.from_pretrained(folder, dtype="auto", **where, **trust)
    found = probe(model, reader, known["stop"], led=True)
    return (*compare(known, found), {"merged_words": found["words"], "led": found["led"]})


def check_gguf(path, kind, record, llama_cpp):
    """Read what the file says of its tokens and template, and let llama.cpp answer from it where it is built."""
    sys.path.insert(0, str(Path(llama_cpp, "gguf-py")))
    from gguf import GGUFReader

    known = json.loads(Path(record).read_text(encoding="utf-8"))
    fields = GGUFReader(path).fields
    eos, template = (
        fields[name].contents() if name in fields else None
        for name in ("tokenizer.ggml.eos_token_id", "tokenizer.chat_template")
    )
    if eos not in (known["eos"], known["stop"]):
        return None, f"its end token is {eos}, and the trained model's {known['eos']}"
    if (template or "").strip() != (known["template"] or "").strip():
        return None, "its chat template is not the trained model's"
    told = f"the end token and {'the chat template' if template else 'the lack of a chat template'} are the model's"
    answerer = tool(Path(llama_cpp), ANSWERER)
    if answerer is None:
        return f"{told}; not run, since {llama_cpp} has no {ANSWERER}", None
    try:
        said = answer_gguf(answerer, path, known["prompt"], fields)
    except (MemoryError, subprocess.TimeoutExpired) as error:
        return f"{told}; not run, for want of {'memory' if isinstance(error, MemoryError) else 'time'}", None
    return compare_words(known["merged_words"].strip(), said, known["led"].get(str(LEADS.get(kind)), []), told)


def compare_words(known, said, led, told):
    """What is told of an answer in llama.cpp, and what is wrong with it, or none; `led` are the words it can't lack."""
    if said == known:
        return f"the same answer in llama.cpp; {told}", None
    differs = f"in llama.cpp it answers {said[:60]!r}, and the merged model {known[:60]!r}"
    needed = led[: math.ceil(len(led) / 2)]
    if words_of(said)[: len(needed)] != needed:
        return None, f"it does not answer as the merged model: {differs}"
    return f"another answer: {differs}; {told}", None


def answer_gguf(answerer, path, prompt, fields):
    """What llama.cpp answers to the prompt, as text."""
    bos = fields.get("tokenizer.ggml.bos_token_id")
    adds = fields.get("tokenizer.ggml.add_bos_token")
    if bos and adds and adds.contents():
        # It would be there twice.
        prompt = prompt.removeprefix(fields["tokenizer.ggml.tokens"].contents(bos.contents()))
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".txt") as file:
        file.write(prompt)
        file.flush()
        plain = ("--no-conversation", "--no-display-prompt", "--no-escape", "--simple-io")
        # As it stands: of a text file llama.cpp drops the last line's end, which a chat template's prompt needs.
        return complete(answerer, path, "--binary-file", file.name, *plain)


def complete(answerer, path, *asked):
    """The likeliest words after what is asked.

    `RuntimeError` where llama.cpp fails, `MemoryError` where it is for want of memory, `TimeoutExpired` where it takes
    too long, as with a file that is larger than the memory.
    """
    # The file holds the recommended settings, a penalty for repetition among them.
    greedy = ("-n", ANSWERED, "-c", "1024", "--temp", "0", "--repeat-penalty", "1", "--poll", "0", "--no-warmup")
    command = [str(word) for word in (answerer, "-m", path, *asked, *greedy)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=COMPLETE_S, check=False)
    if done.returncode and re.search("(failed|unable) to allocate|out of memory", done.stderr, re.IGNORECASE):
        raise MemoryError
    if done.returncode == -signal.SIGKILL:
        raise MemoryError
    if done.returncode:
        raise RuntimeError(f"{answerer.name} ended with status {done.returncode}: {last_line(done.stderr)}")
    return done.stdout.removesuffix("\n").replace("[end of text]", "").strip()


def last_line(text):
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def in_own_process(function, *words):
    """What that function of this script returns in a process of its own, where nothing is patched."""
    run = "import json, runpy, sys; found = runpy.run_path(sys.argv[1], run_name='check')[sys.argv[2]](*sys.argv[3:]); "
    command = [sys.executable, "-c", run + "print(json.dumps(found))", __file__, function, *map(str, words)]
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode < 0:
        raise RuntimeError(f"it was killed by signal {-done.returncode}, as where memory does not suffice")
    if done.returncode:
        raise RuntimeError(last_line(done.stderr))
    return json.loads(done.stdout.strip().splitlines()[-1])


def said(text):
    """A message's content that is only this text."""
    return text


def fold_system(messages):
    """The system message at the head of the first user's, for chat templates that do not take one."""
    if messages[0]["role"] != "system" or messages[1]["role"] != "user":
        return messages
    system, user, *rest = messages
    content = system["content"] + said("\n\n") + user["content"]
    return [{"role": "user", "content": content}, *rest]


def takes_system(processor):
    """Whether the chat template shows a system message: some refuse it, some drop it from a finished chat."""
    from jinja2 import TemplateError

    shown = said("Hi")
    contents = {"system": said("PROBE"), "user": shown, "assistant": said("ANSWER")}
    probe = [{"role": role, "content": content} for role, content in contents.items()]
    try:
        return "PROBE" in processor.apply_chat_template(probe, tokenize=False)
    except TemplateError:
        return False


def end_of_turn(processor, tokenizer):
    """The id of the token that ends an answer in this chat template."""
    probe = [{"role": "user", "content": said("Hi")}, {"role": "assistant", "content": said("ANSWER")}]
    tail = processor.apply_chat_template(probe, tokenize=False).rpartition("ANSWER")[2]
    ids = tokenizer(tail, add_special_tokens=False).input_ids
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return next((id for id in ids if id in special), tokenizer.eos_token_id)


# ---- How it is sampled -----------------------------------------------------------------------------------------------

# The settings by transformers' names; Ollama's, where they differ. transformers knows no presence penalty.
OLLAMA_NAMES = {"repetition_penalty": "repeat_penalty"}
ONLY_OLLAMA = {"presence_penalty"}
SAMPLING = ("temperature", "top_k", "top_p", "min_p")

# A prompt in Ollama's language, Go's text/template; what stands between ⟨ and ⟩ is read off the chat template.
GO_TEMPLATE = (
    "{{ if .System }}⟨head⟩{{ .System }}⟨after_system⟩{{ else }}⟨start⟩{{ end }}"
    "{{ range $i, $m := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
    '{{ if eq $m.Role "user" }}{{ $m.Content }}{{ if $last }}⟨tail⟩{{ else }}⟨after_user⟩{{ end }}'
    '{{ else if eq $m.Role "assistant" }}{{ $m.Content }}{{ if not $last }}⟨after_answer⟩{{ end }}'
    "{{ end }}{{ end }}"
)


def recommended(args):
    """How the makers of the model say that it is best sampled; empty for another model than the chosen one."""
    found = GENERATION if args.model == CHOSEN["model"] else {}
    return {name: int(value) if name == "top_k" else value for name, value in found.items()}


def set_generation(model, args, stop):
    """Give the model the recommended settings, and the token that ends an answer: generation_config.json in the end."""
    from transformers import GenerationConfig

    found = {name: value for name, value in recommended(args).items() if name not in ONLY_OLLAMA}
    # A temperature of 0 is how others say that nothing is drawn.
    greedy = found.get("temperature") == 0
    if found:
        found |= {"do_sample": not greedy} | (dict.fromkeys(SAMPLING) if greedy else {})
    known = getattr(model, "generation_config", None) or GenerationConfig()
    ends = known.eos_token_id if isinstance(known.eos_token_id, list) else [known.eos_token_id]
    found["eos_token_id"] = [stop, *(token for token in ends if token not in (stop, None))]
    try:
        known.update(**found)
        known.validate(strict=True)
    except ValueError:
        # What the model brought contradicts itself, and would not be saved.
        kept = {name: getattr(known, name) for name in ("bos_token_id", "pad_token_id")}
        known = GenerationConfig(**kept | found)
    model.get_base_model().generation_config = known


def write_modelfile(folder, args, processor, gguf_name):
    """Write what Ollama needs beside the GGUF file: the Modelfile for `ollama create`.

    `ollama run hf.co/USER/MODEL` reads the files `template` and `params` of the repo instead.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    settings = {OLLAMA_NAMES.get(name, name): value for name, value in recommended(args).items()}
    stops = [tokenizer.eos_token]
    template = None
    if processor.chat_template:
        stops.insert(0, tokenizer.decode([end_of_turn(processor, tokenizer)]))
        template = go_template(processor, tokenizer)
    stops = [stop for stop in dict.fromkeys(stops) if stop and not re.search(r'["\\\n]', stop)]
    # The part of a vision model that sees is a file of its own.
    sees = seeing(Path(folder, gguf_name))
    files = [gguf_name] + ([sees.name] if sees else [])
    lines = [f"FROM ./{name}" for name in files]
    lines += [f"PARAMETER {name} {value}" for name, value in settings.items()]
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    if template is not None:
        lines.append(f'TEMPLATE """{template}"""')
        (Path(folder) / "template").write_text(template, encoding="utf-8")
    else:
        (Path(folder) / "template").unlink(missing_ok=True)
        if processor.chat_template:
            lines.append("# No template: none makes the prompts of this chat template. Ollama looks for one like it.")
    (Path(folder) / "Modelfile").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (Path(folder) / "params").write_text(json.dumps(settings | {"stop": stops}, indent=2) + "\n", encoding="utf-8")


def go_template(processor, tokenizer):
    """The chat template as Ollama writes one, or none where no such template makes the same prompts.

    It is read off a prompt: what stands before, between and after the messages. Then other prompts must come out equal.
    """
    from jinja2 import TemplateError

    asked = ("SYSTEM0", "USER1", "ANSWER1", "USER2")
    try:
        whole, bare = prompt(processor, *asked), prompt(processor, None, *asked[1:])
        parts, others = re.split("|".join(asked), whole), re.split("|".join(asked[1:]), bare)
        if len(parts) != 5 or len(others) != 4 or parts[2:] != others[1:]:
            return None
        head, after_system, after_user, after_answer, tail = parts
        start = others[0]

        def put_together(system, *turns):
            text = start if system is None else head + system + after_system
            for number, turn in enumerate(turns):
                last = number == len(turns) - 1
                text += turn + (tail if last else after_answer if number % 2 else after_user)
            return text

        for chat in ((None, "a"), ("s", "a"), ("s", *"abc"), (None, *"abcde"), ("s", *"abcdefg")):
            if put_together(*chat) != prompt(processor, *chat):
                return None
    except TemplateError:
        return None
    bos = tokenizer.bos_token
    if bos and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]:
        # Ollama puts it there too.
        head, start = head.removeprefix(bos), start.removeprefix(bos)
    pieces = {"head": head, "after_system": after_system, "start": start,
              "after_user": after_user, "after_answer": after_answer, "tail": tail}  # fmt: skip
    if any('"""' in piece or "{{" in piece + "{" for piece in pieces.values()):
        return None
    return re.sub("⟨([a-z_]+)⟩", lambda found: pieces[found[1]], GO_TEMPLATE)


def prompt(processor, system, *turns):
    """The prompt for an answer to these turns, the user's and the assistant's, with a system message or none."""
    roles = itertools.cycle(("user", "assistant"))
    messages = [{"role": role, "content": said(text)} for role, text in zip(roles, turns, strict=False)]
    if system is not None:
        messages.insert(0, {"role": "system", "content": said(system)})
        messages = messages if takes_system(processor) else fold_system(messages)
    # Llama's would hold the day on which this runs.
    shown = {"add_generation_prompt": True, "date_string": "26 Jul 2024"}
    return processor.apply_chat_template(messages, tokenize=False, **shown)


# ---- Cards: what all have --------------------------------------------------------------------------------------------


# A template of Jinja's; what a user or the Hub named only ever comes as a value of it.
CARD_TEMPLATE = """\
---
{{ card_data }}
---

# {{ title }}

{{ about }}
{% if picture %}

![The loss by step](loss.png)
{% endif %}
{% for heading, rows in tables %}

## {{ heading }}

| | |
| --- | --- |
{% for name, value in rows %}
| {{ name }} | {{ value }} |
{% endfor %}
{% endfor %}

## How to use it
{% for name, language, snippet in snippets %}

### {{ name }}

```{{ language }}
{{ snippet }}
```
{% endfor %}
{% if settings %}

## Sampling

{{ settings }}
{% endif %}
{% if again %}

## To run it again

{{ again }}
{% endif %}
"""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
TASK = "text-generation"


def fill_card(data, **values):
    """The text of a card of these metadata; what has no value is left out."""
    from huggingface_hub import ModelCard

    # A statement of the template leaves no line of its own.
    template = CARD_TEMPLATE.replace("%}\n", "%}")
    empty = {"picture": False, "tables": [], "settings": "", "again": ""}
    return str(ModelCard.from_template(data, template_str=template, **empty | values))


LICENCE_FIELDS = ("license", "license_name", "license_link")


def copies_card(args, folder, exports, repo, adapter):
    """The text of a card for a repo of copies of that adapter's model; `folder` holds the tokenizer."""
    from huggingface_hub import ModelCardData

    commit = args.revision if re.fullmatch("[0-9a-f]{40}", args.revision or "") else None
    made = [export for export in exports if not export["error"]]
    merged, on_hub = any(export["kind"] == "merged" for export in made), is_hub_id(args.model)
    datasets, licence = learned_from(args)
    relation, library = ("finetune", "transformers") if merged else ("quantized", None)
    base = place(args.model, commit)
    of = f"the adapter {place(adapter, None)}" if adapter else "an adapter"
    about = [f"{'' if merged else 'GGUF files of '}{base} with {of} merged into it."]
    if repo == adapter:
        relation, library, about = "adapter", "peft", [f"A LoRA adapter for {base}, and copies of the model with it."]
    data = ModelCardData(
        library_name=library,
        base_model=args.model if on_hub else None,
        base_model_relation=relation if on_hub else None,
        datasets=datasets or None,
        pipeline_tag=TASK,
        tags=["lora", "unsloth", "launch"] if repo == adapter else ["unsloth", "launch"],
        **licence,
    )
    shown = usage(folder, args, {"output_repo": repo, "device": "cpu"}, exports, commit)
    return fill_card(
        data,
        title=plain(repo.split("/")[-1]),
        about=" ".join(about + tell_licence(licence)),
        tables=[("Copies", export_rows(made))],
        snippets=shown if repo == adapter else shown[2:],
    )


def is_hub_id(name):
    """Whether that names a repo on the Hub: what is there on this machine wins, as it does when it is loaded."""
    return bool(HUB_ID.fullmatch(name)) and not Path(name).exists()


def learned_from(args):
    """The datasets that the adapter was trained on, by their names on the Hub, and the licence as a card's fields."""
    from huggingface_hub import ModelCard

    folder, datasets, told = fetch_adapter(args), None, {}
    try:
        if (folder / "run.json").is_file():
            plan = json.loads((folder / "run.json").read_text(encoding="utf-8")).get("plan") or {}
            datasets = plan.get("dataset")
            told = {name: plan.get(name.replace("license", "licence")) for name in LICENCE_FIELDS}
        if (folder / "README.md").is_file():
            card = ModelCard.load(folder / "README.md").data.to_dict()
            datasets, told = card.get("datasets") or datasets, card if card.get("license") else told
    except Exception as error:
        note(f"what the adapter was trained on can't be read ({reason(error)})")
    datasets = [name for name in (datasets if isinstance(datasets, list) else [datasets]) if isinstance(name, str)]
    licence = {name: told[name] for name in LICENCE_FIELDS if isinstance(told.get(name), str)}
    known = re.fullmatch("[a-z0-9][a-z0-9.-]*", licence.get("license", ""))
    return [name for name in datasets if is_hub_id(name)], licence if known else {}


def tell_licence(licence):
    """The sentence on the licence, in a list, which is empty where none is known."""
    name = licence.get("license_name") if licence.get("license") == "other" else licence.get("license")
    return [f"The base model's licence holds for it too{f': {code(name)}' if name else ''}."] if licence else []


def code(text):
    """The text as code, on one line, that ends neither a table's cell nor the code."""
    text = re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", str(text)).replace("|", "¦").replace("`", "ˋ")
    return f"`{text}`"


def plain(text):
    """The text as text on one line, whatever it holds."""
    return re.sub(r"([\\`*_~|<>\[\]#$])", r"\\\1", " ".join(str(text).split()))


def place(name, commit, kind=""):
    """A Hub repo with its address and commit, or the name of what lay on the machine."""
    if not is_hub_id(name):
        return f"{code(Path(name).name)} (not on the Hub)"
    return f"[{code(name)}](https://huggingface.co/{kind}{name})" + (f" at {code(commit[:12])}" if commit else "")


def export_rows(exports):
    """The copies beside the adapter, and those that could not be made."""
    lines = []
    for export in exports:
        size = [f"{export['gib']:.2f} GiB"] if export.get("gib") else []
        found = f"not made: {plain(export['error'])}" if export.get("error") else plain(export.get("checked") or "")
        lines.append((code(export["path"] or export["name"]), ", ".join([*size, *filter(None, [found])])))
    return lines


# ---- How to use it: the card's snippets ------------------------------------------------------------------------------

ASK = """\
messages = [{"role": "user", "content": "What can you do?"}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
"""
ASK_OF_PICTURE = """\
content = [{"type": "image", "image": "picture.jpg"}, {"type": "text", "text": "What is shown here?"}]
messages = [{"role": "user", "content": content}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
"""
GO_ON = """\
inputs = tokenizer("Once upon a time", return_tensors="pt")
"""
ANSWER = """\
settings = GenerationConfig.from_pretrained({place})
output = model.generate(**inputs.to(model.device), generation_config=settings, max_new_tokens=200)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))"""
PEFT_SNIPPET = """\
# pip install peft transformers accelerate{quantizer}
from peft import PeftModel
from transformers import {auto_model}, {auto_tokenizer}, GenerationConfig

tokenizer = {auto_tokenizer}.from_pretrained({place})
model = {auto_model}.from_pretrained(
    {base}, dtype="auto", device_map="auto"{code}
)
model = PeftModel.from_pretrained(model, {place})
"""
UNSLOTH_SNIPPET = """\
# pip install unsloth
from unsloth import {fast_model}  # before transformers
from transformers import GenerationConfig

model, tokenizer = {fast_model}.from_pretrained({place}, max_seq_length={max_length}, load_in_4bit={four_bits})
{fast_model}.for_inference(model)
"""
MERGED_SNIPPET = """\
# pip install transformers accelerate{quantizer}
{fetch}from transformers import {auto_model}, {auto_tokenizer}, GenerationConfig

place = {whole}
tokenizer = {auto_tokenizer}.from_pretrained(place)
model = {auto_model}.from_pretrained(place, dtype="auto", device_map="auto"{code})
"""
FETCH = "from huggingface_hub import snapshot_download\n"


def usage(folder, args, result, exports, commit):
    """How to use what was made, as (heading, language, text): each runs as it stands, in the folder if not pushed."""
    repo = result.get("output_repo")
    names = {
        "place": literal(repo or "."),
        "base": literal(args.model) + (f", revision={literal(commit)}" if commit else ""),
        "quantizer": " bitsandbytes" if "bnb-4bit" in args.model else "",
        "code": ", trust_remote_code=True" if args.trust_remote_code else "",
        "max_length": args.max_length,
        "four_bits": args.load_in == "4bit" and result["device"] != "cpu",
        "auto_model": "AutoModelForCausalLM",
        "auto_tokenizer": "AutoTokenizer",
        "fast_model": "FastLanguageModel",
    }
    settings = folder / "tokenizer_config.json"
    inside = settings.is_file() and '"chat_template"' in settings.read_text(encoding="utf-8")
    ask = ASK if inside or (folder / "chat_template.jinja").is_file() else GO_ON

    def snippet(text, **more):
        return text.format(**names | more) + ask + ANSWER.format(**names | more)

    shown = [
        ("transformers and PEFT", "python", snippet(PEFT_SNIPPET)),
        ("Unsloth", "python", snippet(UNSLOTH_SNIPPET)),
    ]
    made = [export for export in exports if not export.get("error")]
    for export in made:
        if export["kind"] == "merged":
            path, more = export["path"], " bitsandbytes" if export["name"] == "4bit" else ""
            whole, fetch = literal(export["repo"] or path), ""
            if path and export["repo"] and export["repo"] == repo:
                # A folder: with PEFT installed, transformers would take the adapter at the repo's root for the model.
                whole, fetch = f'snapshot_download({whole}, allow_patterns="{path}/*") + "/{path}"', FETCH
            merged = snippet(MERGED_SNIPPET, place="place", whole=whole, fetch=fetch, quantizer=more)
            shown.append((f"Merged, {export['name']}", "python", merged))
    files = [export for export in made if export["kind"] == "gguf"]
    if files:
        asked = '-p "What can you do?"'
        shown.append(("llama.cpp", "sh", "\n".join(f"llama-cli {called(file, files)} {asked}" for file in files)))
        pulled = [f"ollama run hf.co/{file['repo']}:{tag(file, files)}" for file in files if file["repo"]]
        name = re.sub("[^a-z0-9._-]+", "-", args.run_name.lower()).strip("-._") or "mine"
        local = [f"ollama create {name} -f Modelfile", f"ollama run {name}"]
        shown.append(("Ollama", "sh", "\n".join(pulled or local)))
    return shown


def literal(text):
    """The text as Python writes it."""
    return json.dumps(text) if text.isascii() else repr(text)


def called(export, files):
    """A GGUF file as llama.cpp is told of it; `files` are all of them."""
    if not export["repo"]:
        return f"-m {shlex.quote(export['path'])}"
    name = tag(export, files)
    return f"-hf {export['repo']} -hff {name}" if name == export["path"] else f"-hf {export['repo']}:{name}"


def tag(export, files):
    """The type of a repo's GGUF file; its whole name where llama.cpp, which takes the first match, finds another."""
    kind = export["name"].upper()
    held = sorted(file["path"] for file in files if file["repo"] == export["repo"])
    first = next((path for path in held if re.search(f"{kind}[.-]", path, re.IGNORECASE)), None)
    return kind if first == export["path"] else export["path"]


def volume():
    """The folder that outlives a Job's machine, or none where this is no Job."""
    if os.environ.get("LAUNCH_DATA_DIR"):
        return Path(os.environ["LAUNCH_DATA_DIR"])
    return Path("/data") if os.environ.get("JOB_ID") and Path("/data").is_dir() else None


def is_jobs_own(args):
    """Whether what is written goes to this Job's volume, where every attempt finds the same."""
    return bool(volume()) and not args.output_dir


def output_folder(args):
    """Where the model is saved."""
    if args.output_dir:
        return Path(args.output_dir)
    return volume() / "output" if volume() else Path("outputs", args.run_name)


def check_model(model, revision, trusted=False):
    """Ask for the smallest file of a Hub model first, whose absence has a short explanation."""
    if Path(model).is_dir():
        return
    from httpx import HTTPError
    from huggingface_hub import errors, hf_hub_download

    try:
        hf_hub_download(model, "config.json", revision=revision)
    except errors.GatedRepoError as error:
        hint = f"Accept its terms at https://huggingface.co/{model} with the account of your HF_TOKEN."
        raise UserError(f"{model} is gated and this account has no access.", hint, status=3) from error
    except (HTTPError, OSError, errors.HFValidationError) as error:
        hint = "Check the name, the revision, the token and the network."
        raise UserError(f"the model {model} can't be read ({reason(error)}).", hint, status=3) from error
    if trusted:
        check_code(model, revision)


def check_code(model, revision):
    """Refuse code of another repo: the revision pins the model's own, and of the other one the newest would be run."""
    from huggingface_hub import hf_hub_download, list_repo_files

    for name in list_repo_files(model, revision=revision):
        if "/" not in name and name.endswith("config.json"):
            content = json.loads(Path(hf_hub_download(model, name, revision=revision)).read_text(encoding="utf-8"))
            if "--" in json.dumps(content.get("auto_map")):
                hint = "Copy the code into a repo of your own, beside the model."
                raise UserError(f"{name} of {model} names code of another repo, which nothing pins.", hint, status=3)


# ---- The adapter -----------------------------------------------------------------------------------------------------


def fetch_adapter(args):
    """The adapter's folder; a repo's is that of its commit in the Hub's cache."""
    from huggingface_hub import errors, snapshot_download

    if Path(args.adapter).is_dir():
        folder = Path(args.adapter)
    else:
        fetch = partial(snapshot_download, args.adapter, revision=args.adapter_revision, allow_patterns=ADAPTER_FILES,
                        ignore_patterns=["*/*"])  # fmt: skip
        try:
            folder = Path(persist(f"fetching {args.adapter}", fetch))
        except (OSError, ValueError, errors.HfHubHTTPError) as error:
            hint = "Check the name, the revision, the token and the network."
            raise UserError(f"the adapter {args.adapter} can't be read ({reason(error)}).", hint, status=3) from error
    if not (folder / "adapter_config.json").is_file() or not any(folder.glob("adapter_model*")):
        hint = "One has adapter_config.json and adapter_model.safetensors."
        raise UserError(f"{args.adapter} is no adapter.", hint, status=3)
    return folder


def name_base(args, folder):
    """Let `args` name the model that the adapter was trained on, by what it and its record say."""
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    if args.model is None:
        args.model = settings["base_model_name_or_path"]
    if args.revision is None:
        record = folder / "run.json"
        known = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
        args.revision = settings.get("revision") or known.get("revisions", {}).get("model")
    if Path(args.model).is_absolute() and not Path(args.model).is_dir():
        hint = "Name the model that it was trained on with --model."
        raise UserError(f"{args.adapter} was trained on {args.model}, which is not here.", hint, status=3)
    check_model(args.model, args.revision, args.trust_remote_code)


def require_kind(args):
    """Refuse a model that sees pictures, too: another script is for those."""
    settings = read_config(args)
    trained = json.loads((fetch_adapter(args) / "adapter_config.json").read_text(encoding="utf-8"))
    if "vision_config" in settings and "vision" in json.dumps(trained.get("target_modules")):
        hint = "Use export_vlm.py, or `launch export`, which knows."
        raise UserError(f"the adapter's model, {args.model}, sees pictures.", hint, status=2)


def load(args, folder, base, on_gpu):
    """The adapter on its model, and its tokenizer as it was trained."""
    # Unsloth goes first: it patches the libraries that are imported after it.
    from unsloth import FastLanguageModel as FastModel  # isort: skip
    from peft import PeftModel

    with tempfile.TemporaryDirectory() as place:
        # It names the model as it was called where it was trained, and at no commit: here, the folder of its files.
        for path in folder.iterdir():
            if path.is_file() and path.name.startswith("adapter_"):
                shutil.copy(path, place)
        config = Path(place, "adapter_config.json")
        settings = json.loads(config.read_text(encoding="utf-8"))
        config.write_text(json.dumps(settings | {"base_model_name_or_path": str(base), "revision": None}))
        model, reader = FastModel.from_pretrained(
            place,
            max_seq_length=2048,
            load_in_4bit=args.load_in == "4bit" and on_gpu,
            use_exact_model_name=True,
            trust_remote_code=args.trust_remote_code,
        )
    if not isinstance(model, PeftModel):
        hint = "Its adapter_config.json says of what kind it is."
        raise UserError(f"Unsloth did not load {args.adapter} as an adapter.", hint)
    reader = reader_of(args, folder, reader)
    FastModel.for_inference(model)
    return model, reader


def reader_of(args, folder, own):
    """The tokenizer in the adapter's folder, else the model's own."""
    from transformers import AutoTokenizer as AutoReader

    if (folder / "tokenizer_config.json").is_file():
        own = AutoReader.from_pretrained(folder, trust_remote_code=args.trust_remote_code)
    return getattr(own, "tokenizer", own)


def tell_of_exports(args, folder, reader_at, output_dir, exports, result):
    """Let a card beside the copies tell of them: the adapter's, or one of their own. Raises nothing."""
    repo, card = result["output_repo"], output_dir / "README.md"
    try:
        own = find_card(folder, repo)
        if own:
            if own.resolve() != card.resolve():
                shutil.copy(own, card)
            amend_card(args, card, reader_at, exports + other_ggufs(output_dir, repo, exports), result)
        elif any(entry["repo"] == repo for entry in exports if repo and not entry["error"]):
            text = copies_card(args, reader_at, exports + other_ggufs(output_dir, repo, exports), repo, args.adapter)
            card.write_text(text, encoding="utf-8")
        else:
            return
        if repo:
            push(output_dir, repo, ["README.md"])
    except Exception as error:
        note(f"the card does not tell of the exports ({getattr(error, 'paragraph', reason(error))})")


def find_card(folder, repo):
    """The adapter's card, else the one that the copies' repo has; none where neither has one."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    if (folder / "README.md").is_file():
        return folder / "README.md"
    try:
        return Path(persist("reading the card", lambda: hf_hub_download(repo, "README.md"))) if repo else None
    except EntryNotFoundError:
        return None


def other_ggufs(folder, repo, exports):
    """The GGUF files of earlier exports that lie beside these, as entries like theirs."""
    from huggingface_hub import HfApi

    if repo:
        held = persist(f"looking at {repo}", lambda: list(HfApi().list_repo_tree(repo)))
        sizes = {entry.path: entry.size for entry in held if hasattr(entry, "size")}
    else:
        sizes = {path.name: path.stat().st_size for path in folder.glob("*.gguf")}
    named = {path: re.fullmatch(r"[^/]+\.(\w+)\.gguf", path) for path in sizes}
    kinds = {path: found[1].lower() for path, found in named.items() if found}
    known = {"kind": "gguf", "repo": repo, "checked": None, "error": None}
    return [
        known | {"name": kind, "path": path, "gib": sizes[path] / 2**30}
        for path, kind in kinds.items()
        if kind in GGUF_BITS and path not in [entry["path"] for entry in exports]
    ]


def amend_card(args, card, reader_at, exports, result):
    """The card with the exports in its table and how to use them, in place of what it said of earlier ones."""
    text = amend_table(card.read_text(encoding="utf-8"), [entry for entry in exports if not entry["error"]])
    for entry in exports:
        if entry["kind"] == "merged" and not entry["error"]:
            # In that place lies one, of whichever kind.
            there = re.escape(literal(entry["repo"] or entry["path"]))
            text = re.sub(rf"### Merged, \w+\n\n```python\n((?!```).)*{there}.*?\n```\n+", "", text, flags=re.DOTALL)
    for name, language, snippet in usage(reader_at, args, result, exports, None)[2:]:
        text = re.sub(rf"### {re.escape(name)}\n\n```.*?\n```\n+", "", text, flags=re.DOTALL)
        before, heading, after = text.partition("\n## How to use it\n")
        if not heading:
            before, heading, after = text.rstrip() + "\n", "\n## How to use it\n", ""
        own, *rest = re.split(r"(?=\n## )", after, maxsplit=1)
        text = f"{before}{heading}{own.rstrip()}\n\n### {name}\n\n```{language}\n{snippet}\n```\n{''.join(rest)}"
    card.write_text(text, encoding="utf-8")


def amend_table(text, exports):
    """The text with these exports in its table of copies, and without the GGUF files that are gone."""
    before, heading, after = text.partition("\n## Copies\n")
    if not heading:
        before, use, rest = text.partition("\n## How to use it\n")
        before, after = before.rstrip() + "\n", use + rest
    table, after = re.split(r"(?=\n## )|\Z", after, maxsplit=1) if heading else ("", after)
    rows = dict(re.findall(r"^\| (`[^`]*`) \| (.*) \|$", table, re.MULTILINE))
    paths = [code(entry["path"]) for entry in exports]
    # What could not be made before is called by its kind alone.
    dropped = {code(entry["name"]) for entry in exports}
    rows = {name: told for name, told in rows.items() if name not in dropped and (name in paths or ".gguf" not in name)}
    # Of what was there before, more was told then.
    fresh = {code(entry["path"]) for entry in exports if entry["checked"]}
    rows |= {name: told for name, told in export_rows(exports) if name in fresh or name not in rows}
    lines = "\n".join(f"| {name} | {told} |" for name, told in rows.items())
    return f"{before}\n## Copies\n\n| | |\n| --- | --- |\n{lines}\n{after}"


def main(args):
    # ---- Load --------------------------------------------------------------------------------------------------------

    phase("load model")
    exports, result = asked_exports(args), {"output_dir": str(output_folder(args)), "output_repo": args.output_repo}
    result |= {"status": "failed", "stopped": None, "adapter": args.adapter, "model": args.model, "url": None}

    def tell():
        """Print the RESULT line; the error of an export that is not all there, or none."""
        print("RESULT " + json.dumps(finite(result | {"exports": exports}), allow_nan=False), flush=True)
        return failed_exports(args, exports, args.adapter, None)

    def cut_off():
        """The last words where something does not return in time."""
        fail(exports, f"left out: {'asked to stop' if CLOCK.signalled else 'the time was up'}")
        error = tell()
        if error:
            print(f"error: {error.paragraph}", file=sys.stderr, flush=True)
        return error.status if error else 0

    CLOCK.start(deadline(args.timeout_s))
    # Until something is made there is nothing to keep.
    setup = ExitStack()
    setup.enter_context(CLOCK.or_else(cut_off, at_once=True))
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # Where CI is set, torch takes the memory planning that Unsloth turns on for an error.
    os.environ.pop("CI", None)
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", tempfile.mkdtemp(prefix="unsloth-"))
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    if args.device == "cpu":
        os.environ.update(CUDA_VISIBLE_DEVICES="", UNSLOTH_FORCE_CPU="1")
    import torch

    on_gpu = args.device == "auto" and torch.cuda.is_available()
    if not on_gpu and args.device == "auto":
        raise UserError("no usable CUDA GPU was found here.", "Use a machine with one, or add --device cpu.", status=3)
    folder = fetch_adapter(args)
    name_base(args, folder)
    require_kind(args)
    # Of the snippets in the card.
    args.max_length = 2048
    local = Path(args.adapter).is_dir() and not args.output_dir
    output_dir = folder if local else output_folder(args)
    output_repo = open_repo(args.output_repo, args.private) if args.output_repo else None
    merged_repo = open_merged_repo(args, output_repo)
    llama_cpp = open_llama_cpp(args) if args.gguf else None
    whole = find_whole(args)
    loads_whole = args.load_in == "16bit" or not on_gpu
    base = fetch_whole(*(whole if loads_whole else (args.model, args.revision)))
    model, reader = load(args, folder, base, on_gpu)
    tokenizer = getattr(reader, "tokenizer", reader)
    stop = end_of_turn(reader, tokenizer) if reader.chat_template else tokenizer.eos_token_id
    if (folder / "generation_config.json").is_file():
        from transformers import GenerationConfig

        model.get_base_model().generation_config = GenerationConfig.from_pretrained(folder)
    else:
        set_generation(model, args, stop)
    parts = export_bytes(args, whole_bytes(model), None if loads_whole else whole[0])
    place = Path(tempfile.gettempdir()) if is_jobs_own(args) else output_dir
    told = [f"{name} {size / 1e9:.1f} GB" for name, size in parts.items()]
    require_disk(place, sum(parts.values()), told, "Free some, or give --output-dir on another disk.")

    # ---- Export ------------------------------------------------------------------------------------------------------

    setup.close()
    with CLOCK.or_else(cut_off):
        left_s = CLOCK.left_s() - CLOSING_S
        export(args, exports, output_dir, model, reader, stop, llama_cpp, whole, output_repo, merged_repo, left_s)

        # ---- Result --------------------------------------------------------------------------------------------------

        made = [entry for entry in exports if not entry["error"]]
        address = output_repo or merged_repo
        result |= {
            "status": "done" if len(made) == len(exports) else "failed",
            "model": args.model,
            "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None,
            "device": torch.cuda.get_device_name() if on_gpu else "cpu",
            "output_dir": str(output_dir.resolve()),
            "output_repo": output_repo,
            "url": f"{os.environ.get('HF_ENDPOINT', 'https://huggingface.co')}/{address}" if made and address else None,
            "pushed": bool(made) and all(entry["repo"] for entry in made),
        }
        if made:
            reader_at = folder if (folder / "tokenizer_config.json").is_file() else base
            tell_of_exports(args, folder, reader_at, output_dir, exports, result)
    error = tell()
    if error:
        raise error


if __name__ == "__main__":
    try:
        arguments = parse_args(sys.argv[1:])
        check_args(arguments)
        main(arguments)
    except UserError as problem:
        CLOCK.last_words = None
        print(f"error: {problem.paragraph}", file=sys.stderr, flush=True)
        sys.exit(problem.status)
