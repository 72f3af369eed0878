"""One table from what the Hub's client raises to what a user is told.

Its rows name classes instead of holding them, so that this module needs no client; a test finds each name there.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from pydantic import ValidationError

from launcher.errors import LauncherError, RefusedError, RequestError, ServiceError
from launcher.text import mask, plain

if TYPE_CHECKING:
    import httpx2

LONGEST_ASKED_S = 180.0
"""Seconds that an answer may ask to wait; for more than that nobody waits here, and the error says how long it is."""

_LOGIN = "Run `hf auth login`, or set HF_TOKEN; https://huggingface.co/settings/tokens makes a token of role 'write'."
_AGAIN = "Try again in a minute; https://status.huggingface.co shows whether the Hub is down."
# hf_xet, which uploads files, tells a status only in words.
_XET_STATUS = re.compile(r"HTTP status (?:client|server) error \((\d{3})")
_PASSING = {"TransportError", "ConnectionError", "TimeoutError", "JSONDecodeError"}
# These name what was asked for, or this machine: asking again changes nothing.
_LASTING = {"UnsupportedProtocol", "LocalProtocolError", "OfflineModeIsEnabled"}
# What reading an answer of another form ends in; none of them is raised before the request was sent.
ODD = ("LookupError", "TypeError", "AttributeError", "ValueError", "RecursionError")
_UNSENT = {"ConnectError", "ConnectTimeout", "PoolTimeout"}
_NETWORK = "Check the network, a proxy (HTTPS_PROXY) and HF_ENDPOINT, then run the same command again."


@dataclass(frozen=True, slots=True)
class Row:
    """For errors of a class, by the name of any of its bases, and of some statuses (none: all)."""

    kind: str
    statuses: range | tuple[int, ...] | None
    becomes: type[LauncherError]
    message: str
    hint: str


def _row(kind: str, becomes: type[LauncherError], message: str, hint: str,
         statuses: range | tuple[int, ...] | None = None) -> Row:  # fmt: skip
    return Row(kind, statuses, becomes, message, hint)


# The first row that fits wins: classes before their bases, statuses before the rest of their class.
TABLE = (
    _row("OfflineModeIsEnabled", ServiceError, "{action} failed: HF_HUB_OFFLINE is set, so nothing may be asked of the "
         "Hub.", "Unset HF_HUB_OFFLINE, or run on this machine with --local."),
    _row("LocalTokenNotFoundError", RefusedError, "{action} failed: you are not logged in to the Hub.", _LOGIN),
    _row("GatedRepoError", RefusedError, "{what} is gated, and your account has no access to it yet.",
         "Ask for access at {page}, and run the same command again once it is granted."),
    _row("DisabledRepoError", RefusedError, "{what} is disabled on the Hub.", "Choose another one."),
    _row("RevisionNotFoundError", RequestError, "{what} has no such revision.",
         "Its branches and tags: {page}/tree/main."),
    _row("JobNotFoundError", RequestError, "there is no Job '{job}' here.",
         "`launch ps --all` lists yours; for a Job of an organisation write NAMESPACE/ID."),
    _row("RepositoryNotFoundError", RequestError, "{what} does not exist, or your account may not see it.",
         "Check the spelling at https://huggingface.co; if it is private, use a token that may read it."),
    _row("RemoteEntryNotFoundError", RequestError, "{what} lacks a file that is needed.", "Look at {page}/tree/main."),
    _row("LocalEntryNotFoundError", ServiceError, "{action} failed: the Hub can't be reached.", _NETWORK),
    _row("EntryNotFoundError", RequestError, "{what} lacks a file that is needed.{detail}", "Start the run anew."),
    _row("HfHubHTTPError", RefusedError, "{action} failed: the Hub does not accept your token.{detail}",
         _LOGIN + " HF_TOKEN wins over a login.", (401,)),
    _row("HfHubHTTPError", RefusedError, "{action} failed: payment is required.{detail}",
         "Add a payment method or credits at https://huggingface.co/settings/billing.", (402,)),
    _row("HfHubHTTPError", RefusedError, "{action} failed: your token may not do that.{detail}",
         "Use a token of role 'write' (for a fine-grained one: write access to repos and to Jobs of that namespace).",
         (403,)),
    _row("HfHubHTTPError", RequestError, "{action} failed: the Hub knows no such thing.{detail}",
         "Check the names in the command, and HF_ENDPOINT if it is set.", (404, 410)),
    _row("HfHubHTTPError", RequestError, "{action} failed: it conflicts with what is there already.{detail}",
         "Look at `launch ps`, or choose another name.", (409,)),
    _row("HfHubHTTPError", RequestError, "{action} failed: the file is too large.{detail}",
         "Push the dataset to the Hub and pass its name to --dataset.", (413,)),
    _row("HfHubHTTPError", ServiceError, "{action} failed: too many requests.{detail}",
         "Wait some minutes, then run the same command again.", (429,)),
    _row("HfHubHTTPError", ServiceError, "{action} failed: the Hub answered with status {status}.{detail}", _AGAIN,
         (408, *range(500, 600))),
    _row("HfHubHTTPError", RequestError, "{action} failed: the Hub refused the request (status {status}).{detail}",
         "Check --flavor, --timeout, --label and --image.", range(400, 500)),
    _row("HfHubHTTPError", ServiceError, "{action} failed: the Hub's answer was not understood.{detail}", _AGAIN),
    _row("HFValidationError", RequestError, "{action} failed: that is not the name of a repo.{detail}",
         "Write NAMESPACE/NAME."),
    _row("TimeoutException", ServiceError, "{action} failed: the Hub did not answer in time.", _NETWORK),
    _row("InvalidURL", RequestError, "{action} failed: HF_ENDPOINT is not a URL.", "Unset HF_ENDPOINT, or mend it."),
    _row("UnsupportedProtocol", RequestError, "{action} failed: HF_ENDPOINT is not a URL.", "Unset it, or mend it."),
    _row("HTTPError", ServiceError, "{action} failed: the Hub can't be reached.{detail}", _NETWORK),
    _row("TimeoutError", ServiceError, "{action} failed: the Hub did not answer in time.", _NETWORK),
    _row("ConnectionError", RefusedError, "{action} failed: your token may not do that.", _LOGIN, (401, 403)),
    _row("ConnectionError", ServiceError, "{action} failed: the Hub can't be reached.{detail}", _NETWORK),
    _row("JSONDecodeError", ServiceError, "{action} failed: the answer was not JSON.{came}", _NETWORK),
    *(_row(kind, ServiceError, "{action} failed: the service's answer is not of the form that this version knows."
           "{came}",
           "Update launch; https://status.huggingface.co shows whether the Hub is well.") for kind in ODD),
)  # fmt: skip


def translate(error: Exception, action: str, *, what: str = "", secrets: tuple[str, ...] = ()) -> LauncherError | None:
    """The error a user is shown for one of the client's; none for what is not in the table, and so is a bug.

    `action` begins the message ("starting the Job"), `what` names the repo in question.
    """
    names = {base.__name__ for base in type(error).__mro__}
    status = status_of(error)
    for row in TABLE:
        if row.kind in names and (row.statuses is None or status in row.statuses):
            facts = {
                "action": action,
                "what": what or _repo(error),
                "page": _page(error),
                "job": getattr(error, "job_id", ""),
                "status": status,
                "detail": _detail(error),
                "came": _came(error),
            }
            return row.becomes(mask(row.message.format(**facts), secrets), row.hint.format(**facts))
    return None


def _came(error: Exception) -> str:
    """The beginning of an answer that can't be read, or where in it something is of another form."""
    if isinstance(error, ValidationError):
        found = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in found["loc"]) or "the whole"
        said = plain(f"{place}: {found['msg']}")[:200]
        return f" What came: {said}."
    text = getattr(error, "doc", None)
    if not isinstance(text, str):
        return ""
    start = plain(re.sub(r"\s+", " ", text[:200]).strip())[:80]
    return f" What came begins with {start!r}." if start else " Nothing came."


def status_of(error: Exception) -> int | None:
    """The status of the answer that the error is about; none where there was no answer."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        return status
    found = _XET_STATUS.search(str(error)) if isinstance(error, ConnectionError) else None
    return int(found[1]) if found else None


def may_pass(error: Exception) -> bool:
    """True for a failure of the network or the service, not of the request: 408, 429, 5xx, no answer or half of one."""
    if (status := status_of(error)) is not None:
        return status in (408, 429) or status >= 500
    names = {base.__name__ for base in type(error).__mro__}
    return bool(names & _PASSING) and not names & _LASTING


def is_odd(error: Exception) -> bool:
    """True for an answer that came, and can't be read."""
    names = {base.__name__ for base in type(error).__mro__}
    refused = status_of(error) is not None or "HFValidationError" in names
    return bool(names & {*ODD}) and not refused and not may_pass(error)


def may_have_worked(error: Exception) -> bool:
    """False only where it is certain that the service did not act on the request."""
    return type(error).__name__ not in _UNSENT and status_of(error) != 429


def asked_wait(response: httpx2.Response | None) -> float:
    """Seconds that an answer asks to wait (`Retry-After`, a number or a date, or `RateLimit` as the Hub sends it)."""
    if response is None:
        return 0.0
    said = response.headers.get("Retry-After", "").strip()
    if not said and (limit := re.search(r"r=0;t=(\d{1,9})", response.headers.get("RateLimit", ""))):
        said = limit[1]
    if said.isdigit():
        return float(said[:9])
    try:
        return max((parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds(), 0.0)
    except (TypeError, ValueError):
        return 0.0


def _repo(error: Exception) -> str:
    kind, name = getattr(error, "repo_type", None) or "repo", getattr(error, "repo_id", None)
    return f"the {kind} '{name}'" if name else "a repo of this run"


def _page(error: Exception) -> str:
    kind, name = getattr(error, "repo_type", None), getattr(error, "repo_id", None)
    return f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{name or ''}"


def _detail(error: Exception) -> str:
    """The server's own sentence, or the transport's, short and in one line; nothing where there is none."""
    said = getattr(error, "server_message", None)
    if status_of(error) is None:
        said = str(error)
    text = plain(re.sub(r"\s+", " ", said or "").strip())[:300]
    detail = f" It says: {text.rstrip('.')}." if text else ""
    asked_s = asked_wait(getattr(error, "response", None))
    return detail + (f" It asks to wait {math.ceil(asked_s / 60)} minutes." if asked_s > LONGEST_ASKED_S else "")
