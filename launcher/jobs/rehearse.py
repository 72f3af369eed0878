"""A rehearsal: the very script of a run, on its rows, on this machine's CPU, with a tiny random twin of the model.

It is started, killed after its first step and started once more, as a Job may be; what it leaves is looked at.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from launcher import home
from launcher.errors import JobFailedError, RefusedError, RequestError
from launcher.hub.client import Hub
from launcher.jobs import events, folder, supervise, twin
from launcher.jobs.base import MARK_ENV, JobRequest, new_mark
from launcher.jobs.environment import stack_python, variables
from launcher.jobs.events import Checkpoint, Line, Phase, Progress
from launcher.jobs.folder import PLAN, RECORD
from launcher.jobs.local import require_space
from launcher.plan.record import Plan
from launcher.spec import path_of
from launcher.text import held, safe

STEPS = 2
_ROWS, _MOST_ROWS, _MOST_TOKENS, _EVAL_ROWS = 2, 16, 2**14, 4
"""Rows at once, rows and tokens of a step at most, rows to evaluate on: long rows would take minutes."""
_SHOWN = 12
_FREE = "Nothing was started or paid for."
_CARD = "README.md"


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """What a rehearsal showed, and what none on a CPU can show.

    `script` is the SHA-256 of the script that ran; `files` are what a push would send, in bytes.
    """

    script: str
    seconds: float
    proved: tuple[str, ...]
    unproved: tuple[str, ...]
    files: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def rehearse(request: JobRequest, hub: Hub) -> Generator[Line | Rehearsed]:
    """Rehearse a training: every line of it, and at last what it showed.

    Raises `JobFailedError` with the exit status of the script where that fails. Nothing is paid for or pushed, and
    nothing is left but the twin and the training stack, in the cache. What still runs ends with this generator.
    """
    plan, began = _checked(request), time.monotonic()
    cache = home.cache()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix="rehearsal-", dir=cache) as name:
            yield from _in(Path(name), request, plan, hub, began)
    except OSError as error:
        raise RefusedError(
            f"nothing can be rehearsed in {cache}: {error.strerror or error}.",
            "Make room there, or set LAUNCH_HOME to another folder.",
        ) from error


def flags(plan: Plan, model: Path, output: Path) -> tuple[str, ...]:
    """The arguments that make a rehearsal of the script of a plan."""
    made, asked, sees = plan.decisions, plan.asked, plan.decisions.modality.value == "vision"
    evaluates = made.eval_rows.value != 0 or bool(asked.eval_split)
    rows = min(_ROWS, made.batch_size.value)
    most = min(made.effective_batch_size.value, _MOST_ROWS, _MOST_TOKENS // made.max_length.value)
    passes = max(most // rows, 1)
    words = [
        f"--model={model}", "--revision=", "--no-trust-remote-code", "--device=cpu", f"--output-dir={output}",
        f"--max-steps={STEPS}", "--logging-steps=1", "--checkpoint-minutes=0.0001",
        f"--batch-size={rows}", f"--gradient-accumulation={passes}",
        f"--eval-rows={_EVAL_ROWS if evaluates else 0}", *(["--eval-steps=1"] if evaluates else []),
        f"--sample-rows={min(asked.sample_rows, 1)}",
        "--output-repo=", "--merge=", "--merged-repo=", "--gguf=", "--trackio-project=", "--trackio-space=",
    ]  # fmt: skip
    # No more rows are prepared than are read, which packing would; a dataset of the Hub is not downloaded whole.
    words += [] if sees else ["--no-packing"]
    words += ["--streaming"] if path_of(made.dataset.value) is None else []
    return tuple(words)


def _checked(request: JobRequest) -> Plan:
    plan = request.plan
    if plan.task != "sft":
        raise RequestError("an export can't be rehearsed.", "Leave --rehearse away.")
    if plan.asked.trust_remote_code:
        raise RequestError(
            "--rehearse makes a twin of the model, which the Python of its repo can't be run for.",
            "Leave --rehearse or --trust-remote-code away.",
        )
    if os.name != "posix":
        raise RefusedError("a rehearsal needs Linux or macOS.", "Leave --rehearse away, or use WSL.")
    require_space()
    return plan


def _in(place: Path, request: JobRequest, plan: Plan, hub: Hub, began: float) -> Iterator[Line | Rehearsed]:
    yield _phase("rehearsal: the training stack (installed once)")
    stack = _Stack(stack_python(request.script), place, request.env)
    yield _phase("rehearsal: the model's tokenizer and a tiny twin of the model (made once)")
    model = twin.folder_of(plan, hub, stack.make)
    script, output = place / request.script_name, place / "output"
    folder.Run(place).write(PLAN, plan.model_dump_json(indent=2) + "\n")
    script.write_bytes(request.script.encode())
    words = (*request.script_args, *flags(plan, model, output))
    if plan.decisions.modality.value == "vision":
        yield _phase(f"rehearsal: {script.name} on this CPU, as far as its labels")
        yield from stack.run(str(twin.SCRIPT), "look", str(script), *words)
        stack.require("the rows are refused in the rehearsal")
        labels = next((line for line in stack.seen.tail if line.startswith("labels: ")), "labels: ?")
        shown = (_script(request, "the first of them"), _SEEN, labels.partition(". One of")[0])
        yield Rehearsed(folder.digest(script), time.monotonic() - began, shown, _unproved(plan))
        return
    # Its imports take as long as all it does: they go on beside the training's.
    with stack.started(str(twin.SCRIPT), "load", str(output)) as loader:
        yield _phase(f"rehearsal: {script.name}, to be killed after its first step")
        yield from stack.run(str(script), *words, kill_after=1)
        if not stack.killed:
            stack.require("the script failed in its rehearsal")
        yield _phase(f"rehearsal: {script.name} once more")
        yield from stack.run(str(script), *words)
        stack.require("the script failed in its rehearsal")
        seen = stack.seen
        yield _phase("rehearsal: what it left")
        yield from stack.lines(loader)
    stack.require("the adapter that was saved can't be used")
    files = _pushed(output, script.name)
    proved = tuple(_proved(request, plan, seen, files))
    late = () if seen.resumed_from else ("going on from a checkpoint: it had ended before it could be killed",)
    yield Rehearsed(folder.digest(script), time.monotonic() - began, proved, (*late, *_unproved(plan)), files)


class _Stack:
    """Runs programs in the training stack; of the one that ended last it knows the status and what was seen."""

    def __init__(self, python: str, place: Path, env: dict[str, str]) -> None:
        self._python, self._place, self._mark = python, place, new_mark()
        self.seen, self.status, self.killed = Progress(), 0, False
        # Compiling its layers takes longer than these few steps; the numbers are the same.
        told = {"PYTHONUNBUFFERED": "1", "UNSLOTH_COMPILE_DISABLE": "1", "CUDA_VISIBLE_DEVICES": ""}
        self._env = variables() | told | env | {MARK_ENV: self._mark}

    def make(self, model: Path) -> None:
        """Give weights to the twin in that folder."""
        for _ in self.run(str(twin.SCRIPT), "make", str(model)):
            pass
        self.require("no twin of this model can be made")

    def run(self, *words: str, kill_after: int | None = None) -> Iterator[Line]:
        """Each line of the program, from its start to its end."""
        with self.started(*words) as process:
            yield from self.lines(process, kill_after)

    @contextmanager
    def started(self, *words: str) -> Iterator[subprocess.Popen[bytes]]:
        """The program, which ends with this context."""
        process = subprocess.Popen(
            [self._python, *words], cwd=self._place, env=self._env, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        leader = supervise.describe(process.pid)
        try:
            yield process
        finally:
            supervise.end_group(leader, grace_s=1.0, reap=process.poll)
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                stream.close()
            process.wait()

    def lines(self, process: subprocess.Popen[bytes], kill_after: int | None = None) -> Iterator[Line]:
        """What is left of its lines; it is killed, as by the kernel, once it has kept the step `kill_after`."""
        assert process.stdin is not None
        process.stdin.close()
        self.killed = False
        for line in events.watch(_decoded(process), self._mark):
            self.seen = line.progress
            if isinstance(line.event, Checkpoint) and line.event.step == kill_after:
                with suppress(ProcessLookupError, PermissionError):  # it has ended in this moment
                    os.killpg(process.pid, signal.SIGKILL)
                    self.killed = True
            yield line
        self.status = process.wait()

    def require(self, what: str) -> None:
        """Raise `JobFailedError`, of the program's own status, where it did not end well."""
        if not self.status:
            return
        said = self.seen.error or "".join(f"\n  {line}" for line in list(self.seen.tail)[-_SHOWN:])
        failed = JobFailedError(f"{what}: {said or f'status {self.status}'}", _FREE)
        failed.exit_code = self.status if self.status in (2, 3) else 1
        raise failed


def _decoded(process: subprocess.Popen[bytes]) -> Iterator[str]:
    assert process.stdout is not None
    hidden = held()
    for line in process.stdout:
        yield safe(line.decode("utf-8", "replace").rstrip("\n"), hidden)


def _phase(text: str) -> Line:
    return Line(f"== {text}", Phase(text), Progress())


# ---- What it showed --------------------------------------------------------------------------------------------------

_SEEN = "pictures opened, chats templated, batches collated, by the script's own functions"
_TRAINING = "the training, saving and pushing: Unsloth trains vision models on a GPU only"


def _script(request: JobRequest, rows: str) -> str:
    return f"{request.script_name}, byte for byte as a Job gets it, takes your rows ({rows})"


def _pushed(output: Path, script: str) -> dict[str, int]:
    """What a push would send, each file as the record says that it is; `JobFailedError` for one that is not so."""
    told = folder.Run(output).read(RECORD).get("files") or {}
    missing = [name for name in (RECORD, _CARD, *told) if not (output / name).is_file()]
    wrong = missing or [name for name, digest in told.items() if folder.digest(output / name) != digest]
    if wrong or not told:
        raise JobFailedError(f"the script did not leave {', '.join(wrong) or RECORD} as it says.", _FREE)
    sent = {*told, RECORD, _CARD, script, *(path.name for path in output.glob("*.png"))}
    return {name: (output / name).stat().st_size for name in sorted(sent)}


def _proved(request: JobRequest, plan: Plan, seen: Progress, files: dict[str, int]) -> Iterator[str]:
    result = seen.result or {}
    yield _script(request, f"{result['rows']} of them" if result.get("rows") else "the first of a stream")
    yield f"labels: {result.get('tokens_trained')} of {result.get('tokens_seen')} tokens are trained on"
    before, after = result.get("eval_loss_before"), result.get("eval_loss")
    if before is not None and after is not None:
        yield f"evaluation: loss {before:.4f} before, {after:.4f} after"
    if seen.resumed_from:
        yield f"checkpoints: killed after its first step (SIGKILL), it goes on from step {seen.resumed_from}"
    yield "the adapter: saved whole, and PEFT alone loads each of its weights"
    repo = plan.decisions.output_repo.value
    where = f"for {repo} ({'private' if plan.values['private'] else 'public'})" if repo else "which stay in its folder"
    yield f"the card and the record: written, with {len(files)} files of {sum(files.values()) / 1e6:.1f} MB {where}"


def _unproved(plan: Plan) -> tuple[str, ...]:
    made, gpu = plan.decisions, ["its kernels", "its memory", "its speed"]
    gpu += ["4-bit weights"] if made.load_in.value == "4bit" else []
    gpu += ["packing"] if made.packing.value else []
    gpu += [plan.asked.optim] if "8bit" in plan.asked.optim else []
    learned = "what the model learns: the twin's weights are random"
    left = [f"the GPU: {', '.join(gpu)}", _TRAINING if made.modality.value == "vision" else learned, "all other rows"]
    left += ["the copies (--merge, --gguf)"] if made.merge.value or made.gguf.value else []
    left += [f"whether your token may write to {made.output_repo.value}"] if made.output_repo.value else []
    return tuple(left)
