"""What the service says of a Job, held to the types that the rest counts on: the client takes any JSON as it comes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict

from launcher.hub.client import Hub
from launcher.jobs.base import MARK_ENV

if TYPE_CHECKING:
    from huggingface_hub import JobInfo


class _Answer(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class _Named(_Answer):
    name: str | None


class _Owner(_Answer):
    name: str


class _Status(_Answer):
    stage: str
    message: str | None


class _Volume(_Answer):
    type: str
    source: str
    mount_path: str
    path: str | None
    read_only: bool | None


class _Job(_Answer):
    id: str
    created_at: AwareDatetime | None
    started_at: AwareDatetime | None
    finished_at: AwareDatetime | None
    docker_image: str | None
    space_id: str | None
    command: list[str] | None
    environment: dict[str, str] | None
    secrets: dict[str, Any] | list[str] | None
    flavor: str | None
    labels: dict[str, str] | None
    volumes: list[_Volume] | None
    status: _Status
    owner: _Owner
    initiator: _Named | None
    retry: int | None


def checked(info: JobInfo) -> JobInfo:
    """The same, where it is of the form that this version knows; else `ValueError`."""
    _Job.model_validate(info)
    return info


def inspect(hub: Hub, namespace: str, job_id: str) -> JobInfo:
    """The Job as the service sees it; called where the client's errors are translated."""
    return checked(hub.api.inspect_job(job_id=job_id, namespace=namespace))


def stage_of(info: JobInfo) -> str:
    """The stage's name, one that this client does not know too."""
    return str(getattr(info.status.stage, "value", info.status.stage))


def mark_of(info: JobInfo) -> str | None:
    """How the lines end that the Job says for the launcher; none where it says them without."""
    return (info.environment or {}).get(MARK_ENV) or None


def by_age(jobs: Iterable[JobInfo]) -> list[JobInfo]:
    """The eldest first, in an order that all who look agree on."""
    return sorted(jobs, key=lambda info: (str(info.created_at), info.id))
