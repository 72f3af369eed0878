"""The routes of xet: tokens on the Hub's side, chunks, xorbs, shards and reconstructions on the store's."""

from __future__ import annotations

import time

from tests.emulator import cas
from tests.emulator.accounts import signed_in
from tests.emulator.http import HubError, Request, Response, byte_range, download, reply
from tests.emulator.repos import find_repo
from tests.emulator.state import State


def repo_token(state: State, request: Request) -> Response:
    """A token for the content of a repo; write access asks for the right to write."""
    find_repo(state, request, write=request.params["scope"] == "write", content=True)
    return grant(state, request)


def grant(state: State, request: Request) -> Response:
    """The store's address and a token for it: the user's own, since it is the same server."""
    token = request.user.token if request.user else ""
    # The client keeps what it learned of a store by its address: another run of the stand-in is another store.
    store, expiry = f"{state.url}/cas/{state.root.name}-{id(state):x}", int(time.time()) + 3600
    headers = {"X-Xet-Cas-Url": store, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(expiry)}
    response = reply({"casUrl": store, "accessToken": token, "exp": expiry})
    response.headers.update(headers)
    return response


def unsupported(state: State, request: Request) -> Response:
    """What the client asks for first and does without: deduplication across users, upload grants, newer versions."""
    raise HubError(404, "Not found")


def ignore(state: State, request: Request) -> Response:
    return reply({})


def add_xorb(state: State, request: Request) -> Response:
    signed_in(request)
    try:
        return reply({"was_inserted": state.cas.add_xorb(request.params["hash"], request.body)})
    except (ValueError, IndexError) as error:
        raise HubError(400, f"Bad xorb: {error}") from error


def add_shard(state: State, request: Request) -> Response:
    signed_in(request)
    try:
        state.cas.add_shard(request.body)
    except ValueError as error:
        raise HubError(400, f"Bad shard: {error}") from error
    return reply({"result": 1})


def reconstruct(state: State, request: Request) -> Response:
    """Where the bytes of a file are, in the form of both versions of the route."""
    name = request.params["hash"]
    data = _content(state, name)
    first, last = byte_range(request, len(data)) or (0, len(data) - 1)
    terms, fetch_info, xorbs = [], {}, {}
    for piece, start, end in cas.pieces(len(data), first, last):
        base, xorb = piece * cas.PIECE_CHUNKS, cas.piece_name(name, piece)
        size = min((base + end) * cas.CHUNK, len(data)) - (base + start) * cas.CHUNK
        frames, where = {"start": start, "end": end}, f"{request.path.partition('/v')[0]}/data/{name}/{piece}"
        offset = start * (cas.CHUNK + 8)
        span = {"start": offset, "end": offset + size + 8 * (end - start) - 1}
        terms.append({"hash": xorb, "unpacked_length": size, "range": frames})
        fetch_info[xorb] = [{"range": frames, "url": state.url + where, "url_range": span}]
        xorbs[xorb] = [{"url": state.url + where, "ranges": [{"chunks": frames, "bytes": span}]}]
    skip = first % cas.CHUNK
    return reply({"offset_into_first_range": skip, "terms": terms, "fetch_info": fetch_info, "xorbs": xorbs})


def piece(state: State, request: Request) -> Response:
    """A piece of a file as a xorb. It needs no token, as the signed URLs of the real store."""
    data = cas.piece_bytes(_content(state, request.params["hash"]), int(request.params["piece"]))
    return download(data, request, {})


def _content(state: State, name: str) -> bytes:
    data = state.cas.content(name)
    if data is None:
        raise HubError(404, f"no file with the hash {name}")
    return data
