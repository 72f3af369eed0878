"""A run once more: the same script, byte for byte, with the same arguments, variables, machine and timeout.

What was started here is sent as it was. Anything else is a stranger's word: its script gets the user's token, so it has
to be exactly what this launcher renders, or to be trusted by its hash.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from launcher import __version__
from launcher.catalog import Catalog, Flavor
from launcher.catalog.machine import LOCAL
from launcher.errors import RefusedError, RequestError
from launcher.hub import access
from launcher.hub.client import Hub
from launcher.jobs import folder
from launcher.jobs import request as requests
from launcher.jobs.base import ARTIFACTS_ENV, ARTIFACTS_MOUNT, DEFAULT_IMAGE, TIMEOUT_FLAG, JobRequest
from launcher.jobs.folder import REQUEST, Run
from launcher.plan.record import Plan
from launcher.runs import record, rendered, resume
from launcher.runs.find import fetch
from launcher.runs.record import Kept
from launcher.spec import DATA_SUFFIXES, RepoName, require_apart
from launcher.text import mask

_OF_ONE_JOB = ("request", "artifacts", "resumes")


@dataclass(frozen=True, slots=True)
class Again:
    """The request to submit, whether it was this user's before, and what they should know of it."""

    request: JobRequest
    own: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Places:
    """Where the result is to be pushed, and its merged copy; none for where the run pushed it."""

    output_repo: str | None = None
    merged_repo: str | None = None


def find(name: str, tables: Catalog, trusted: str | None = None, places: Places = Places()) -> Again:
    """The request of a run, ready to be submitted as a new one.

    `trusted` is the SHA-256 of a script that the user has read; `places` are told to the script by its arguments.
    Raises `RefusedError` for a script that is neither this launcher's nor trusted, and `RequestError` for a run or a
    data file that is not there any more, and for places that can't be meant.
    """
    found = fetch(name)
    if isinstance(found, Kept):
        return _from_record(found, tables, trusted, places)
    if trusted:
        raise RequestError(
            f"--trust-script: {name} was started by you, with a script of its own.", "Leave --trust-script away."
        )
    if isinstance(found, Run):
        request = _from_run(found)
    else:
        request = _with_data(replace(found, artifacts=None, resumes=None), {})
    args, notes = _pushing_to(places, request.plan, request.script_args)
    plan = request.plan.model_copy(update=_repos(args))
    return Again(replace(request, plan=plan, script_args=args), own=True, notes=notes)


def adapt(request: JobRequest, tables: Catalog, timeout: str | None, flavor: str | None) -> JobRequest:
    """The request with another timeout or flavor, within what the run needs; the script stays as it is."""
    attempts = request.attempts
    return replace(resume.adapt(request, tables, timeout, flavor), attempts=attempts) if timeout or flavor else request


def bring_here(request: JobRequest, here: Flavor) -> JobRequest:
    """The request as this machine runs it; `RefusedError` for what can't be trained on it."""
    if request.flavor == LOCAL:
        return request
    if request.plan.modality == "vision" and not here.num_gpus:
        raise RefusedError(
            "this machine has no GPU, and Unsloth trains vision models on a GPU only.", "Leave --local away."
        )
    args = rendered.without(request.script_args, ("timeout_s",) if here.num_gpus else ("timeout_s", "device"))
    args += () if here.num_gpus else ("--device=cpu",)
    args += (TIMEOUT_FLAG, str(request.timeout_s))
    # Without a push, no account is needed here.
    pushes = request.plan.output_repo or request.plan.merged_repo
    secrets = tuple(name for name in request.secrets if name != "HF_TOKEN" or pushes)
    return replace(request, flavor=LOCAL, script_args=args, secrets=secrets, image=None, namespace=None)


def require_own_places(plan: Plan, hub: Hub) -> None:
    """Refuse a stranger's run that would send its result or its metrics where this user may not write, or to them."""
    if not (plan.output_repo or plan.merged_repo or plan.trackio_space):
        return
    hint = "The script stays as it is; give it a repo of yours: --output-repo NAME."
    hint += " --merged-repo NAME is for its merged copy." if plan.merged_repo else ""
    try:
        access.require_places(hub, plan.output_repo, plan.merged_repo, plan.adapter)
    except RefusedError as error:
        to = " and ".join(filter(None, (plan.output_repo, plan.merged_repo)))
        raise RefusedError(f"the run pushes to {to}. {error.message}", hint) from error
    owners = {hub.user, (plan.output_repo or "").partition("/")[0]}
    if plan.trackio_space and plan.trackio_space.partition("/")[0] not in owners:
        raise RefusedError(
            f"the run sends its metrics to the Space {plan.trackio_space}, which is not yours.",
            "Start a run of your own with the same options; `launch diff` shows in what two runs differ.",
        )


def _from_run(run: Run) -> JobRequest:
    """The request of a run that was started here, as it was sent."""
    kept, plan = run.read(REQUEST), run.plan()
    try:
        script = run.folder / str(kept["script_name"])
        image, labels, env = kept["image"], kept["labels"], kept["env"]
        request = JobRequest(
            plan=plan,
            script=script.read_bytes().decode(),
            script_name=script.name,
            script_args=tuple(kept["script_args"]),
            image=None if image == DEFAULT_IMAGE else image,
            flavor=str(kept["flavor"]),
            timeout_s=int(kept["timeout_s"]),
            env={name: value for name, value in env.items() if name != ARTIFACTS_ENV},
            secrets=tuple(kept["secrets"]),
            labels={name: value for name, value in labels.items() if name not in _OF_ONE_JOB},
            namespace=kept["namespace"],
            attempts=int(kept.get("attempts", plan.attempts)),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        raise RequestError(
            f"the request of run '{run.id}' can't be read: it is not whole, or another version of launch wrote it.",
            f"Look at {run.folder}, and start the run anew with its options.",
        ) from error
    return _with_data(request, kept.get("files") or {})


def _pushing_to(places: Places, plan: Plan, args: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The script's arguments with other places than the plan's, and what to say of them."""
    notes: tuple[str, ...] = ()
    merged, output = places.merged_repo, places.output_repo
    if merged and not plan.merge:
        raise RequestError(f"--merged-repo {merged}: the run makes no merged copy.", "Leave it away.")
    if output:
        args = (*rendered.without(args, ("output_repo",)), "--output-repo", _checked("--output-repo", output))
    if merged:
        args = (*rendered.without(args, ("merged_repo",)), "--merged-repo", _checked("--merged-repo", merged))
    elif output and plan.merged_repo:
        # Empty is none to the script. The first run's repo would hold this run's weights under its own name.
        args = (*rendered.without(args, ("merged_repo",)), "--merged-repo=")
        notes = (
            f"the merged copy goes into merged/ of {output}, not into {plan.merged_repo}; --merged-repo NAME gives it "
            "a repo of its own.",
        )
    require_apart(merged or (None if output else plan.merged_repo), output or plan.output_repo)
    return args, notes


def _repos(args: tuple[str, ...]) -> dict[str, str | None]:
    """The repos that the arguments name, by the plan's fields; none for an empty one."""
    return {name: value or None for name, value in rendered.flags(args) if name in ("output_repo", "merged_repo")}


def _checked(option: str, name: str) -> str:
    try:
        return str(TypeAdapter(RepoName).validate_python(name))
    except ValidationError as error:
        said = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise RequestError(f"{option} {mask(repr(name))}: {said}.", "Such as me/my-model.") from error


def _from_record(kept: Kept, tables: Catalog, trusted: str | None, places: Places) -> Again:
    """The request of a run that is known by its record only."""
    known, trusts = kept.record, _trusts(kept, trusted)
    written = rendered.read_plan(kept.text, known.script.name, tables, known.plan)
    if not trusts and not rendered.is_rendered(kept.script, written, tables):
        raise _untrusted(kept)
    machine = known.plan.flavor if known.plan else written.flavor
    args, told = _pushing_to(places, rendered.with_args(written, known.args), known.args)
    plan = rendered.with_args(written.model_copy(update={"flavor": machine}), args)
    if plan.dataset.startswith(f"{ARTIFACTS_MOUNT}/") and known.plan:
        plan = plan.model_copy(update={"dataset": known.plan.dataset})
    record.require_seen(plan.model_dump(exclude={"env"}), kept.where)  # the script's own values too
    _require_harmless(kept, plan)
    if not trusts:
        _require_data(kept, plan)
    notes = told + _left_out(kept, plan, trusts)
    plan = plan.model_copy(update={"env": {}, "namespace": None, "image": plan.image if trusts else None})
    made = requests.from_plan(plan, tables)
    given = rendered.without(args, (name for name, _ in rendered.flags(made.script_args)))
    request = replace(
        made, script=kept.text, script_name=known.script.name, script_args=(*given, *made.script_args),
        secrets=tuple(name for name in plan.secrets if trusts or name == "HF_TOKEN"),
    )  # fmt: skip
    _require_no_files(kept, request)
    return Again(_with_data(request, known.inputs), notes=notes)


def _trusts(kept: Kept, trusted: str | None) -> bool:
    digest = kept.record.script.sha256
    if trusted and trusted.lower() != digest:
        raise RefusedError(
            f"{kept.where}: the script's SHA-256 is {digest}, and --trust-script says {trusted}.",
            "It is not the script that you have read: read this one.",
        )
    return bool(trusted)


def _untrusted(kept: Kept) -> RefusedError:
    known = kept.record
    if known.launcher is None:
        why = "somebody has changed it, or another version of launch made it"
    elif known.launcher != __version__:
        why = f"launch {known.launcher} made it, and this is {__version__}"
    else:
        why = "somebody has changed it"
    return RefusedError(
        f"{kept.where}: {known.script.name} is not what this launcher renders ({why}), and it would run with your "
        "token.",
        f"Read it first: {kept.page}\nTo run it all the same, add\n--trust-script {known.script.sha256}",
    )


def _require_harmless(kept: Kept, plan: Plan) -> None:
    """Refuse what runs code that stands in neither the script nor this launcher."""
    if plan.trust_remote_code:
        raise RefusedError(
            f"{kept.where} runs the Python of the repo {plan.repo} at {plan.revision}, with your token.",
            "Read that, then start a run of your own with --trust-remote-code.",
        )


def _require_data(kept: Kept, plan: Plan) -> None:
    """Refuse a file of this machine that the run did not read: a record could name any, and publish what is in it."""
    path = Path(plan.dataset).expanduser()
    if not path.exists():
        return
    if path.is_dir() or _recorded(kept.record.inputs, plan.dataset) is None:
        raise RefusedError(
            f"{kept.where} trains on {plan.dataset} of this machine, and does not say by a hash that it is the same.",
            f"Look at that file. To use it all the same, add\n--trust-script {kept.record.script.sha256}",
        )


def _require_no_files(kept: Kept, request: JobRequest) -> None:
    """Refuse arguments that would send other files along than the dataset."""
    dataset = Path(request.plan.dataset).expanduser()
    others = [name for name in request.files if Path(name).resolve() != dataset.resolve()]
    if others:
        raise RefusedError(
            f"{kept.where}: its arguments name {', '.join(others)}, which would be sent along.",
            "Start a run of your own with the options that you want.",
        )


def _left_out(kept: Kept, plan: Plan, trusts: bool) -> tuple[str, ...]:
    """What of the run is not sent: what nobody recorded, and what a stranger may not decide."""
    names = dict.fromkeys((*kept.record.env, *plan.env))
    notes = [f"the run had the variables {', '.join(names)}: a record holds no values, so they are not set."] * bool(
        names
    )
    said = [f"the image {plan.image}"] if plan.image else []
    said += [f"the secret {name}" for name in plan.secrets if name != "HF_TOKEN"]
    if said and not trusts:
        sha256 = kept.record.script.sha256
        notes.append(f"left out, since others chose it: {', '.join(said)}; --trust-script {sha256} takes it over.")
    return tuple(notes)


def _recorded(files: Mapping[str, str], name: str) -> str | None:
    """The hash of a data file, which is recorded under the path that the user gave or the whole one."""
    return next((files[item] for item in (name, str(Path(name).expanduser().resolve())) if item in files), None)


def _with_data(request: JobRequest, files: Mapping[str, str]) -> JobRequest:
    """The request with its data file where that lies now; raises where it is gone, or is another one."""
    named = next((value for name, value in rendered.flags(request.script_args) if name == "dataset" and value), None)
    if named is None:
        return request
    path = Path(named).expanduser()
    if named.startswith(f"{ARTIFACTS_MOUNT}/") and not path.exists():
        path = Path(request.plan.dataset).expanduser()
        args = (*rendered.without(request.script_args, ("dataset",)), "--dataset", str(path.absolute()))
        request = replace(request, script_args=args)
    if not path.exists() and (path.suffix in DATA_SUFFIXES or path.is_absolute()):
        raise RequestError(f"the dataset of the run, {path}, is not there any more.", "Put it back, then try again.")
    expected = _recorded(files, named) or _recorded(files, request.plan.dataset)
    if path.is_file() and expected and folder.digest(path) != expected:
        raise RequestError(
            f"{path} is not what the run was trained on: its SHA-256 is another one.",
            "Put the former file back, or start a new run on this one.",
        )
    return request
