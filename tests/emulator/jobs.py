"""The routes of Jobs."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from typing import Any

from tests.emulator.accounts import demand, demand_member, object_id
from tests.emulator.http import HubError, Request, Response, reply
from tests.emulator.job import Job
from tests.emulator.job_spec import check_labels, check_spec
from tests.emulator.state import State, User, stamp

KEEP_ALIVE_S = 15.0


def hardware(state: State, request: Request) -> Response:
    return reply(list(state.flavors.values()))


def submit(state: State, request: Request) -> Response:
    namespace = request.params["namespace"]
    user = demand(request, namespace, "job.write")
    spec = request.form()
    check_spec(spec, state)
    for volume in spec.get("volumes", []):
        if volume["type"] == "bucket" and not user.owns(volume["source"].partition("/")[0]):
            raise HubError(403, f"You don't have access to the bucket {volume['source']}")
    return reply(_begin(state, user, namespace, spec, {"type": "user", "id": object_id(user.name), "name": user.name}))


def index(state: State, request: Request) -> Response:
    """The Jobs of a namespace, the newest first, of any of the stages asked for and with all of the labels."""
    namespace = request.params["namespace"]
    demand_member(request, namespace)
    stages = set(request.query.get("stage", []))
    labels = {tuple(pair.partition("=")[::2]) for pair in request.query.get("label", [])}
    listed = stamp(time.time() - state.listing_delay_s)
    found = [
        job.info()
        for job in reversed(state.jobs.values())
        if job.created_at <= listed
        and job.namespace == namespace
        and (not stages or job.stage in stages)
        and labels <= set(job.labels.items())
    ]
    return reply(found)


def inspect(state: State, request: Request) -> Response:
    return reply(find_job(state, request).info())


def cancel(state: State, request: Request) -> Response:
    job = find_job(state, request, write=True)
    if not job.ended:
        job.canceled.set()
        job.finish("CANCELED")
    return reply(job.info())


def duplicate(state: State, request: Request) -> Response:
    job = find_job(state, request, write=True)
    user = demand(request, job.namespace, "job.write")
    spec = {**job.spec, "secrets": dict(job.secrets)}
    return reply(_begin(state, user, job.namespace, spec, {"type": "duplicated-job", "id": job.id}))


def relabel(state: State, request: Request) -> Response:
    job = find_job(state, request, write=True)
    labels = request.form().get("labels")
    check_labels(labels)
    job.spec["labels"] = labels
    return reply(job.info())


def logs(state: State, request: Request) -> Response:
    """The log as server-sent events, from its beginning or its last lines, until the Job ends."""
    job = find_job(state, request)
    tail = request.one("tail")

    def events() -> Iterator[bytes]:
        for event in job.follow(int(tail) if tail else None, KEEP_ALIVE_S, state.closing):
            yield b"data: %b\n\n" % _json(event) if event else b": keep-alive\n\n"

    return Response(events(), headers={"Content-Type": "text/event-stream"})


def _json(event: dict[str, str]) -> bytes:
    """As `JSON.stringify` writes it: all of Unicode as it is, U+0085 and U+2028 too, but for lone surrogates."""
    try:
        return json.dumps(event, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(event).encode()


def metrics(state: State, request: Request) -> Response:
    """One sample a second while the Job runs; 406 when it has ended."""
    job = find_job(state, request)
    if job.ended:
        raise HubError(406, "Job is not running")
    sample = json.dumps(_sample(state, job))

    def events() -> Iterator[bytes]:
        while not job.ended and not state.closing.is_set():
            yield f"event: metric\ndata: {sample}\n\n".encode()
            time.sleep(1)

    return Response(events(), headers={"Content-Type": "text/event-stream"})


def find_job(state: State, request: Request, *, write: bool = False) -> Job:
    namespace = request.params["namespace"]
    if write:
        demand(request, namespace, "job.write")
    else:
        demand_member(request, namespace)
    job = state.jobs.get(request.params["id"])
    if job is None or job.namespace != namespace:
        raise HubError(404, "Job not found")
    return job


def _begin(state: State, user: User, namespace: str, spec: dict[str, Any], initiator: dict[str, str]) -> dict[str, Any]:
    """A new Job, which is run if this Hub runs Jobs; told as it was before it began."""
    hidden = spec.pop("secrets", None) or {}
    owner = {
        "id": object_id(namespace),
        "name": namespace,
        "type": "user" if namespace == user.name else "org",
    }
    job = Job(secrets.token_hex(12), namespace, owner, spec, hidden, initiator)
    state.jobs[job.id] = job
    answer = job.info()
    if state.runner:
        state.runner.start(job)
    return answer


def _sample(state: State, job: Job) -> dict[str, Any]:
    machine = state.flavors[job.spec["flavor"]]
    accelerator = machine["accelerator"]
    gpus = {}
    if accelerator:
        count = int(accelerator["quantity"])
        memory = int(accelerator["vram"].split()[0]) * 10**9 // count
        gpus = {
            f"gpu{i}": {"utilization": 50, "memory_used_bytes": memory // 2, "memory_total_bytes": memory}
            for i in range(count)
        }
    cpus, ram = int(machine["cpu"].split()[0]), int(machine["ram"].split()[0]) * 10**9
    usage = {"cpu_usage_pct": 50, "cpu_millicores": 1000 * cpus, "rx_bps": 0, "tx_bps": 0}
    return {**usage, "memory_used_bytes": ram // 2, "memory_total_bytes": ram, "gpus": gpus, "replica": job.id[:5]}
