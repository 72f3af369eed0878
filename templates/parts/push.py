"""The push: known to be possible before the training, verified file by file, and kept with a command where it fails."""

from __future__ import annotations

import os
import random
import re
import shlex
import shutil
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

from parts.clock import CLOCK, LAST_S
from parts.places import volume
from parts.say import UserError, note, reason

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
