"""What the client of the Hub raises, and what a user is told of it."""

from __future__ import annotations

import builtins
import json

import httpx2
import pytest
from huggingface_hub import errors
from huggingface_hub.utils._http import hf_raise_for_status

from launcher.errors import LauncherError, RefusedError, RequestError, ServiceError
from launcher.hub.errors import TABLE, translate

TOKEN = "hf_" + "s3cret" * 6


def test_every_row_of_the_error_table_names_a_class_that_exists() -> None:
    for row in TABLE:
        assert any(hasattr(module, row.kind) for module in (errors, httpx2, builtins, json)), row.kind


def http_error(status: int, message: str | None = None, path: str = "/api/jobs/me", **headers: str) -> Exception:
    response = httpx2.Response(
        status, request=httpx2.Request("GET", f"https://hub{path}"), headers=headers, json={"error": message or ""}
    )
    try:
        hf_raise_for_status(response)
    except Exception as error:
        return error
    raise AssertionError("no error")


def repo_error(status: int, repo: str, code: str) -> Exception:
    return http_error(status, path=f"/api/{repo}", **{"X-Error-Code": code})


@pytest.mark.parametrize(
    ("error", "becomes", "words"),
    [
        (http_error(400, "bad flavor"), RequestError, "bad flavor"),
        (http_error(401), RefusedError, "does not accept your token"),
        (http_error(402, "no credits left"), RefusedError, "no credits left"),
        (http_error(403), RefusedError, "may not do that"),
        (http_error(404), RequestError, "no such thing"),
        (http_error(404, path="/api/jobs/me/abc"), RequestError, "no Job 'abc'"),
        (repo_error(404, "models/a/b", "RepoNotFound"), RequestError, "the model 'a/b' does not exist"),
        (repo_error(403, "datasets/a/b", "GatedRepo"), RefusedError, "the dataset 'a/b' is gated"),
        (repo_error(404, "models/a/b", "RevisionNotFound"), RequestError, "the model 'a/b' has no such revision"),
        (http_error(409), RequestError, "conflicts"),
        (http_error(413), RequestError, "too large"),
        (http_error(422, "timeout too long"), RequestError, "timeout too long"),
        (http_error(429), ServiceError, "too many requests"),
        (http_error(500), ServiceError, "status 500"),
        (http_error(503), ServiceError, "status 503"),
        (errors.OfflineModeIsEnabled("offline"), ServiceError, "HF_HUB_OFFLINE"),
        (errors.LocalTokenNotFoundError("no token"), RefusedError, "not logged in"),
        (errors.HFValidationError("repo id"), RequestError, "not the name of a repo"),
        (httpx2.ConnectTimeout("slow"), ServiceError, "in time"),
        (httpx2.ReadTimeout("slow"), ServiceError, "in time"),
        (httpx2.ConnectError("refused"), ServiceError, "can't be reached"),
        (httpx2.RemoteProtocolError("cut"), ServiceError, "can't be reached"),
        (ConnectionResetError("reset"), ServiceError, "can't be reached"),
    ],
)  # fmt: skip
def test_what_the_client_raises_becomes_one_paragraph(
    error: Exception, becomes: type[LauncherError], words: str
) -> None:
    known = translate(error, "starting the Job")
    assert type(known) is becomes
    assert words in known.message
    assert known.hint
    assert "\n" not in known.message + known.hint


@pytest.mark.parametrize(
    "error",
    [
        KeyError("name"),
        IndexError(),
        TypeError(),
        AttributeError(),
        RecursionError(),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"),
    ],
)
def test_an_answer_of_another_form_is_the_services_failure(error: Exception) -> None:
    known = translate(error, "starting the Job")
    assert type(known) is ServiceError
    assert "not of the form" in known.message


def test_a_bug_stays_a_bug() -> None:
    assert translate(RuntimeError("broken"), "starting the Job") is None


def test_no_error_holds_a_token() -> None:
    said = http_error(400, f"bad token {TOKEN} and hf_{'z' * 30}\x1b[31m")
    known = translate(said, "starting the Job", secrets=(TOKEN,))
    assert known and known.message.endswith("bad token *** and ***.")
