"""What became of a run, from anywhere: its stage, its log, and what it left on the Hub and in /data."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from launcher import catalog
from launcher.catalog import Catalog, Flavor
from launcher.errors import LauncherError, RequestError, ServiceError
from launcher.jobs import folder
from launcher.jobs.base import Backend, Job
from launcher.jobs.events import Progress, summarize
from launcher.jobs.folder import RECORD
from launcher.plan import command
from launcher.plan.record import AnyPlan, Plan
from launcher.runs import outcome, record
from launcher.runs.outcome import Outcome

_BESIDE = ("README.md", "loss.png")
"""What a run writes after its record."""


def explain(backend: Backend, job: Job, progress: Progress) -> Outcome:
    """How the run ended, looking at what it left behind where the log does not tell."""
    if not job.ended or (job.succeeded and progress.result is not None and not progress.result.get("stopped")):
        return outcome.outcome(job, progress)
    if job.succeeded and progress.result is None:
        with suppress(ServiceError):  # the stream lost its end, perhaps
            progress = read(backend, job)
    plan = plan_of(job.id) or _recalled(backend, job)
    left = None
    if progress.result is None:
        # An export's repo may hold the adapter, which says nothing of it.
        repo = plan.decisions.output_repo.value if plan and plan.task == "sft" else None
        left = backend.left(job.address, repo)
    filled = values(job, plan, progress, catalog.load())
    if plan and plan.task == "sft" and (progress.result or {}).get("push_error"):
        filled["rescue"] = _rescue(backend, job, plan, progress)
    return outcome.outcome(
        job, progress, timeout_s=plan.decisions.timeout_s.value if plan else None, values=filled, left=left
    )


def read(backend: Backend, job: Job) -> Progress:
    """What the log adds up to now; of a log that can't be had, what was kept of it here."""
    try:
        return summarize(backend.logs(job.address, follow=False), job.mark)
    except ServiceError:
        run = folder.find(job.id)
        if run is None or not run.log.is_file():
            raise
        with run.log.open(encoding="utf-8", errors="replace") as kept:
            return summarize((line.rstrip("\n") for line in kept), job.mark)


def seen(backend: Backend, job: Job) -> Progress:
    """The same, or nothing of a run that is over: how it ended is known without."""
    try:
        return read(backend, job)
    except ServiceError:
        if job.live:
            raise
        return Progress(job.mark)


def plan_of(job_id: str) -> AnyPlan | None:
    """The plan that this launcher kept, where it did and can still read it."""
    run = folder.find(job_id)
    try:
        return run.plan() if run else None
    except RequestError:
        return None


def _recalled(backend: Backend, job: Job) -> AnyPlan | None:
    """The plan that lies beside the Job's script, for a run that was started elsewhere."""
    try:
        return backend.recall(job.address).plan
    except LauncherError:
        return None


def as_dict(job: Job, found: Outcome, progress: Progress) -> dict[str, Any]:
    """What `launch why --json` prints."""
    return {
        "id": job.id,
        "url": job.url,
        "stage": job.stage,
        "status": found.status,
        "cause": found.cause,
        "message": found.message,
        "next": list(found.next),
        "phase": progress.phase,
        "step": progress.step,
        "total": progress.total,
        "checkpoint": progress.checkpoint,
        "result": found.result,
    }


def values(job: Job, plan: AnyPlan | None, progress: Progress, tables: Catalog) -> dict[str, object]:
    """What the commands of the table are filled with; what is not known is none."""
    filled: dict[str, object] = {"id": job.address} | _flavors(job.flavor, tables)
    filled["page"] = _page(plan, progress)
    began, ended = job.started_at, job.finished_at
    ran_s = plan.decisions.timeout_s.value if plan else (ended - began).total_seconds() if began and ended else 0
    if ran_s:
        filled["longer"] = f"{max(math.ceil(2 * ran_s / 60), 10)}m"
    if plan is None:
        return filled
    if plan.task == "export":
        return filled | {"again": command.export(plan)}
    asked, length = plan.asked, plan.decisions.max_length.value
    rows = (progress.batch_size or plan.decisions.batch_size.value) // 2
    # As many rows a step as before, where that was asked for.
    passes = asked.gradient_accumulation and (None if asked.effective_batch_size else 2 * asked.gradient_accumulation)
    return filled | {
        "export": _export(job, plan, progress),
        "look": _with(command.launch(asked), "--dry-run"),
        "no_evaluation": command.launch(asked, eval_rows=0, eval_split=None, eval_steps=None),
        "smaller_batch": rows and command.launch(asked, batch_size=rows, gradient_accumulation=passes),
        "shorter_rows": length >= 256 and command.launch(asked, max_length=length // 2),
        "longer_rows": command.launch(asked, max_length=length * 2),
        "slower": command.launch(asked, learning_rate=min(asked.learning_rate / 4, 5e-5)),
    }


def _with(words: str | None, option: str) -> str | None:
    return words and f"{words} {option}"


def _flavors(name: str, tables: Catalog) -> dict[str, object]:
    """The cheapest flavors that have more of something than this one, and no less of the rest."""
    here = tables.flavors.get(name)
    if here is None:
        return {}

    def cheapest(more: str) -> str | None:
        fitting = [other for other in tables.flavors.values() if _exceeds(other, here, more)]
        return min(fitting, key=lambda other: other.usd_per_hour).name if fitting else None

    return {"larger": cheapest("vram"), "more_ram": cheapest("ram"), "more_disk": cheapest("disk")}


def _exceeds(other: Flavor, here: Flavor, more: str) -> bool:
    sizes = {
        "vram": (_vram(other), _vram(here)),
        "ram": (other.ram_gb, here.ram_gb),
        "disk": (other.disk_gb, here.disk_gb),
    }
    least = all(sizes[key][0] >= sizes[key][1] for key in ("vram", more))
    return other.num_gpus == here.num_gpus and not other.accelerator and least and sizes[more][0] > sizes[more][1]


def _vram(flavor: Flavor) -> float:
    return flavor.gpu.memory_gib if flavor.gpu else 0.0


def _page(plan: AnyPlan | None, progress: Progress) -> str | None:
    """The page of the run's repo that the log speaks of last, else the model's."""
    if plan is None:
        return None
    pages = {plan.facts.repo: plan.facts.repo}
    if plan.task == "sft":
        pages[plan.decisions.dataset.value] = f"datasets/{plan.decisions.dataset.value}"
    named = (page for line in reversed(progress.last_words) for repo, page in pages.items() if repo in line)
    return f"https://huggingface.co/{next(named, plan.facts.repo)}"


def _rescue(backend: Backend, job: Job, plan: Plan, progress: Progress) -> str | None:
    """What pushes a model that the run could not push; none where its place is not known.

    Made of what is known here, as every command is: whatever stands in a log may be a row of a dataset.
    """
    repo = plan.decisions.output_repo.value
    if not repo:
        return None
    name, place = repo.partition("/")[2], (progress.result or {}).get("output_dir")
    with suppress(LauncherError, OSError):
        if backend.name == "local" and isinstance(place, str):
            # Anything may lie beside what the run wrote.
            kept = record.read(Path(place) / RECORD).record
            wrote = [
                *kept.files,
                kept.script.name,
                RECORD,
                *(item for item in _BESIDE if (Path(place) / item).is_file()),
            ]
            return f"{_upload(repo, wrote)} {shlex.quote(place)} ."
        if backend.name != "local" and (artifacts := backend.recall(job.address).artifacts):
            # The Job's own, in which nothing else lies.
            found = (path.removeprefix("output/") for path in backend.left(job.address, None).output_files)
            upload = _upload(repo, [path for path in found if not path.startswith((".", "checkpoints/"))])
            return f"hf buckets sync {shlex.quote(f'{artifacts}/output')} {name} && {upload} {name} ."
    return None


def _upload(repo: str, files: Iterable[str]) -> str:
    return f"hf upload --private {' '.join(f'--include {shlex.quote(name)}' for name in sorted({*files}))} {repo}"


def _export(job: Job, plan: Plan, progress: Progress) -> str | None:
    """What makes the copies that the run could not make; none where it says of none that it failed."""
    failed = [
        (item.get("kind"), item.get("name"))
        for item in (progress.result or {}).get("exports") or ()
        if item.get("error")
    ]
    made = plan.decisions
    words = [f"--merge {made.merge.value}"] if ("merged", made.merge.value) in failed else []
    if words and made.merged_repo.value:
        words.append(f"--merged-repo {made.merged_repo.value}")
    words += [f"--gguf {kind}" for kind in made.gguf.value if ("gguf", kind) in failed]
    words += ["--private"] if words and plan.values["private"] else []
    words += ["--local"] if words and job.backend == "local" else []
    return f"launch export {job.address} {' '.join(words)}" if words else None
