"""Where and how a script runs: one name for each backend, loaded only when it is used."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from launcher.errors import unknown
from launcher.hub.client import Hub, read_token
from launcher.jobs.base import Backend, Job

# name: module and class. The Hub's client alone takes most of a second to import.
BACKENDS = {
    "hub": ("launcher.jobs.service", "HubBackend"),
    "local": ("launcher.jobs.local", "LocalBackend"),
}


def get(name: str, hub: Hub | None = None) -> Backend:
    """The backend of that name, which asks that `hub`; `RequestError` with the choices for any other name."""
    if name not in BACKENDS:
        raise unknown("backend", name, BACKENDS)
    module, member = BACKENDS[name]
    backend: Backend = getattr(import_module(module), member)(hub)
    return backend


def list_jobs(every: bool = False, names: Sequence[str] | None = None) -> list[Job]:
    """The Jobs of the named backends, newest first; of all where none is named, leaving out the Hub without a login."""
    if names is None:
        names = [name for name in BACKENDS if name != "hub" or read_token()]
    jobs = [job for name in names for job in get(name).list(all=every)]
    return sorted(jobs, key=lambda job: job.created_at, reverse=True)
