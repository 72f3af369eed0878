"""The server: takes requests in, finds who asks and which route it is, injects failures, sends answers out."""

from __future__ import annotations

import contextlib
import io
import secrets
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Self
from urllib.parse import parse_qs, urlsplit

from tests.emulator import routes
from tests.emulator.accounts import identify
from tests.emulator.cas import Cas
from tests.emulator.failures import Failure, Failures, halves
from tests.emulator.http import HubError, Request, Response
from tests.emulator.runner import Runner, find_uv
from tests.emulator.state import Recorded, Repo, State, StoredFile, User, is_large


class Hub(State):
    """A Hub with one user, `tester`, on a free port of this machine, from `with` to the end of the block.

    `run=False` only records Jobs: a test plays the machine through `hub.jobs[id]`. `uv`, `python` and `env` are what
    Jobs are run with.
    """

    def __init__(
        self,
        root: Path,
        *,
        port: int = 0,
        run: bool = True,
        uv: str | None = None,
        python: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(root.resolve(), Cas())
        self.root.mkdir(parents=True, exist_ok=True)
        self.runner = Runner(self, uv or find_uv(), python, env or {}) if run else None
        self.failures = Failures()
        self.lock = threading.RLock()
        self.server = _Server(("127.0.0.1", port), self)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.token = self.add_user("tester").token

    def __repr__(self) -> str:
        return f"Hub({self.url})"

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, args=(0.05,), name="hub", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stops the server and kills the Jobs that still run."""
        self.closing.set()
        for job in list(self.jobs.values()):
            job.canceled.set()
            job.finish("CANCELED", "the Hub was closed")
        self.server.shutdown()
        self.server.close_connections()
        self.server.server_close()

    def env(self, token: str | None = None) -> dict[str, str]:
        """The environment in which the client finds this Hub, as this user, with a home of its own."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": token or self.token,
            "HF_HOME": str(self.root / "huggingface"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }

    def add_user(
        self,
        name: str,
        *,
        token: str | None = None,
        role: str = "write",
        orgs: Iterable[str] = (),
        permissions: Iterable[str] = (),
        expires_at: str | None = None,
    ) -> User:
        """A user with one more token, by default a fresh one, whose role is write, read or fineGrained.

        One that `expires_at` a time is of an OAuth login.
        """
        fresh = token or f"hf_{secrets.token_hex(17)}"
        user = User(name, fresh, role, tuple(orgs), frozenset(permissions), expires_at)
        self.users[user.token] = user
        return user

    def add_repo(
        self,
        name: str,
        *,
        type: str = "model",
        files: Mapping[str, bytes | str] | None = None,
        folder: Path | None = None,
        private: bool = False,
        gated: str | None = None,
        granted: Iterable[str] = (),
    ) -> Repo:
        """A repo that holds these files, or those of a folder."""
        content = {path: text.encode() if isinstance(text, str) else text for path, text in (files or {}).items()}
        if folder:
            found = (path for path in folder.rglob("*") if path.is_file())
            content |= {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}
        kind = f"{type}s"
        self.repos[self.key(kind, name)] = repo = Repo(name, kind, private, gated, set(granted))
        stored = {path: StoredFile(data, is_large(path, len(data), data[:512])) for path, data in content.items()}
        repo.commit(stored, "initial commit")
        return repo

    def rename_repo(self, name: str, new: str, *, type: str = "model") -> None:
        """Gives a repo another name; the old one leads there."""
        repo = self.repos.pop(self.key(f"{type}s", name))
        repo.id = new
        self.repos[self.key(repo.kind, new)] = repo
        self.renamed[self.key(repo.kind, name)] = new

    def tear_next(self, path: str, *, times: int = 1) -> None:
        """Lets the next commits of this file keep only half of it, and answer as if all was well."""
        self.torn[path] = times

    def fail_next(
        self,
        kind: int | str,
        route: str | None = None,
        *,
        times: int = 1,
        retry_after: int | str | None = None,
        message: str = "the emulator was told to fail",
        seconds: float = 1.0,
        events: int = 1,
        location: str = "",
        change: Callable[[bytes], bytes] = bytes,
    ) -> None:
        """Orders a failure (see Failure) for the next requests that begin with `route`, as in `POST /api/jobs`."""
        self.failures.add(Failure(kind, route, times, retry_after, message, seconds, events, location, change))

    def answer(self, request: Request, authorization: str) -> tuple[Response, Failure | None]:
        """The answer to a request, after its effect, and the failure with which it is to be sent."""
        found = routes.find(request.method, request.path)
        failure = self.failures.take(request.method, request.path, found[0] if found else "")
        user, response = None, Response()
        if failure and failure.kind == "slow":
            time.sleep(failure.seconds)
        if failure and isinstance(failure.kind, int):
            response = failure.refusal()
        elif not failure or failure.kind != "reset":
            with self.lock:
                try:
                    user = identify(self, authorization)
                    response = self._dispatch(request, found, user)
                except HubError as error:
                    response = error.response()
            if failure and failure.kind == "after_commit":
                response = failure.refusal()
            if failure and failure.kind == "odd" and isinstance(response.body, bytes):
                response.body = failure.change(response.body)
        shown = {name: value for name, value in request.headers.items() if name not in ("authorization", "cookie")}
        name = user.name if user else None
        self.requests.append(Recorded(request.method, request.path, shown, name, response.status))
        return response, failure

    def _dispatch(
        self, request: Request, found: tuple[str, routes.Handler, dict[str, str]] | None, user: User | None
    ) -> Response:
        if found is None:
            line = f"{request.method} {request.path}"
            self.unknown_requests.append(line)
            print(f"emulator: no route for {line}", file=sys.stderr)
            raise HubError(404, f"Cannot {line}")
        _, handler, params = found
        about = (request.method, request.path, request.query, request.headers, request.body)
        return handler(self, Request(*about, user=user, params=params))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], hub: Hub) -> None:
        super().__init__(address, _Connection)
        self.hub = hub
        self.open: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.open.discard(request)
        super().shutdown_request(request)

    def close_connections(self) -> None:
        """Wakes the threads that wait for a next request on a connection kept alive."""
        for connection in list(self.open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that goes away is its own affair; anything else is a bug of ours.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm: ClassVar[bool] = True
    server: _Server

    def handle_any(self) -> None:
        url = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, url.path, parse_qs(url.query), headers, self._read_body())
        response, failure = self.server.hub.answer(request, headers.get("authorization", ""))
        kind = failure.kind if failure else None
        if kind == "reset":
            self._reset()
        elif kind in ("cut", "stall"):
            self._send_head(response, length="1000000000")
            self.wfile.write(halves(response.body, failure.events if failure else 1))
            if kind == "stall":
                self.server.hub.closing.wait(failure.seconds if failure else 1.0)
            self._reset()
        elif failure and kind == "drip" and isinstance(response.body, bytes):
            self._drip(response, failure.seconds)
        elif failure and kind == "drip":
            self._send_head(response, length=None)
            with suppress(OSError):
                while not self.server.hub.closing.wait(failure.seconds):
                    self.wfile.write(b"1\r\nx\r\n")
            self.close_connection = True
        elif isinstance(response.body, bytes):
            self._send_head(response, length=str(len(response.body)))
            if self.command != "HEAD":
                self.wfile.write(response.body)
        else:
            self._send_head(response, length=None)
            for part in response.body:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
            self.wfile.write(b"0\r\n\r\n")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = handle_any

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: `hub.requests` holds it all."""

    def _drip(self, response: Response, seconds: float) -> None:
        """Sends the headers too byte by byte."""
        assert isinstance(response.body, bytes)
        sink, self.wfile = self.wfile, io.BytesIO()
        self._send_head(response, length=str(len(response.body)))
        whole, self.wfile = self.wfile.getvalue() + (b"" if self.command == "HEAD" else response.body), sink
        for place in range(len(whole)):
            if self.server.hub.closing.wait(seconds):
                break
            sink.write(whole[place : place + 1])
        self.close_connection = True

    def _send_head(self, response: Response, length: str | None) -> None:
        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.send_header(*(("Content-Length", length) if length else ("Transfer-Encoding", "chunked")))
        self.send_header("X-Request-Id", f"Root=1-{secrets.token_hex(8)}")
        self.end_headers()

    def _read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _reset(self) -> None:
        """Breaks the connection as a network does: the other side gets a reset, not an end."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # Closed here and now: socketserver would say goodbye first.
        socket.close(self.connection.detach())
        self.close_connection = True
