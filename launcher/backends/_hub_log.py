"""Following a Job's log: the stream breaks off, repeats itself and lies about the end; the Job's stage does not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

from launcher.backends._hub_client import read_token, told
from launcher.backends._text import plain, redact
from launcher.errors import ServiceError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

ATTEMPTS = 8
"""Failures in a row, with nothing new between them, after which following gives up."""

_LONGEST_PAUSE_S = 30.0


def follow(api: HfApi, namespace: str, job_id: str, has_ended: Callable[[], bool], pause_s: float) -> Iterator[str]:
    """Each line once, from the first, until the Job has ended and what was left has been read too."""
    token = read_token() or ""
    seen, failures, wait_s, last = 0, 0, pause_s, False
    while True:
        before = seen
        try:
            for event in _events(api, namespace, job_id, skip=seen, follow=not last):
                seen += 1
                yield from _lines(event, token)
            if last:
                return
            last, failures = has_ended(), 0
        except ServiceError as error:
            failures = 1 if seen > before else failures + 1
            if failures == ATTEMPTS:
                hint = f"The Job may well go on: `launch logs -f {job_id}` follows it again."
                raise ServiceError(error.message, hint) from error
        if failures or not last:
            wait_s = pause_s if seen > before else min(wait_s * 2, _LONGEST_PAUSE_S)
            time.sleep(wait_s)


def read(api: HfApi, namespace: str, job_id: str) -> Iterator[str]:
    """The lines so far."""
    token = read_token() or ""
    for event in _events(api, namespace, job_id, skip=0, follow=False):
        yield from _lines(event, token)


def _events(api: HfApi, namespace: str, job_id: str, skip: int, follow: bool) -> Iterator[str]:
    """What the service has logged; it sends everything from the start each time."""
    with told("reading the Job's log"):
        yield from islice(api.fetch_job_logs(job_id=job_id, namespace=namespace, follow=follow), skip, None)


def _lines(event: str, token: str) -> Iterator[str]:
    for line in event.split("\n"):
        yield redact(plain(line), (token,))
