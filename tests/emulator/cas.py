"""The content store behind xet: xorbs and shards come in, whole files are known by their hash, and go out again.

Formats: github.com/huggingface/xet-core, spec/xorb.md and spec/shard.md.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.emulator.lz4 import decode_frame

CHUNK = 64 * 1024
"""What we serve is cut anew, into uncompressed chunks of this size..."""
PIECE_CHUNKS = 512
"""...of which so many make a xorb."""
_HEADER = 8
_VERIFICATION, _METADATA = 1 << 31, 1 << 30


@dataclass
class Cas:
    xorbs: dict[str, list[bytes]] = field(default_factory=dict, repr=False)
    """Hash to decoded chunks."""
    files: dict[str, bytes | Path] = field(default_factory=dict, repr=False)
    """Xet hash, and SHA-256 as well, to content."""
    hashes: dict[str, str] = field(default_factory=dict, repr=False)
    """SHA-256 to xet hash, for what came through xet."""

    def content(self, name: str) -> bytes | None:
        """A file by its xet hash or its SHA-256."""
        found = self.files.get(name)
        return found.read_bytes() if isinstance(found, Path) else found

    def add_xorb(self, name: str, body: bytes) -> bool:
        """Takes a xorb; whether it is new. Raises ValueError for a malformed one."""
        if name in self.xorbs:
            return False
        self.xorbs[name] = list(_chunks(body))
        return True

    def add_shard(self, body: bytes) -> None:
        """Puts together the files of a shard. Raises ValueError where a xorb is missing or a hash is wrong."""
        for name, segments, sha256 in _shard_files(body):
            parts: list[bytes] = []
            for xorb, first, last in segments:
                if xorb not in self.xorbs:
                    raise ValueError(f"shard names an unknown xorb {xorb}")
                parts += self.xorbs[xorb][first:last]
            data = b"".join(parts)
            actual = hashlib.sha256(data).hexdigest()
            if sha256 and sha256 != actual:
                raise ValueError(f"file {name} has SHA-256 {actual}, not {sha256}")
            self.files[name] = self.files[actual] = data
            self.hashes[actual] = name


def xet_hash(raw: bytes) -> str:
    """A hash as xet writes it: four 64-bit numbers, each stored with its low byte first."""
    return "".join(raw[i : i + 8][::-1].hex() for i in range(0, 32, 8))


def piece_name(name: str, piece: int) -> str:
    """The hash under which one piece of a file is served as a xorb."""
    return hashlib.sha256(f"{name}/{piece}".encode()).hexdigest()


def pieces(size: int, first: int, last: int) -> Iterator[tuple[int, int, int]]:
    """The piece, and its first and last (exclusive) chunk, for each piece that holds some of the bytes."""
    start, end = first // CHUNK, last // CHUNK + 1
    for piece in range(start // PIECE_CHUNKS, (end - 1) // PIECE_CHUNKS + 1):
        base = piece * PIECE_CHUNKS
        yield piece, max(start - base, 0), min(end - base, PIECE_CHUNKS)


def piece_bytes(data: bytes, piece: int) -> bytes:
    """One piece of a file in the form of a xorb."""
    base = piece * PIECE_CHUNKS * CHUNK
    ends = range(base, min(base + PIECE_CHUNKS * CHUNK, len(data)), CHUNK)
    return b"".join(_frame(data[start : start + CHUNK]) for start in ends)


def _frame(chunk: bytes) -> bytes:
    size = len(chunk).to_bytes(3, "little")
    return b"\0" + size + b"\0" + size + chunk


def _chunks(body: bytes) -> Iterator[bytes]:
    position = 0
    # A serialised xorb may end with a footer, which begins with this name.
    while position < len(body) and body[position : position + 7] != b"XETBLOB":
        packed = int.from_bytes(body[position + 1 : position + 4], "little")
        scheme = body[position + 4]
        size = int.from_bytes(body[position + 5 : position + 8], "little")
        position += _HEADER
        chunk = _decode(scheme, body[position : position + packed])
        if len(chunk) != size:
            raise ValueError(f"a chunk of {len(chunk)} bytes where {size} were announced")
        yield chunk
        position += packed


def _decode(scheme: int, packed: bytes) -> bytes:
    if scheme == 0:
        return packed
    if scheme == 1:
        return decode_frame(packed)
    if scheme == 2:
        return _ungroup(decode_frame(packed))
    raise ValueError(f"unknown compression {scheme}")


def _ungroup(grouped: bytes) -> bytes:
    """Undoes xet's grouping: all first bytes of each four, then all second ones, and so on."""
    output = bytearray(len(grouped))
    position = 0
    for lane in range(4):
        count = len(range(lane, len(grouped), 4))
        output[lane::4] = grouped[position : position + count]
        position += count
    return bytes(output)


def _shard_files(body: bytes) -> Iterator[tuple[str, list[tuple[str, int, int]], str | None]]:
    """The hash of each file, its segments (xorb, first and last chunk), and its SHA-256 where it is told."""
    position = 48
    while body[position : position + 32] != b"\xff" * 32:
        flags, count = struct.unpack_from("<II", body, position + 32)
        name = xet_hash(body[position : position + 32])
        position += 48
        segments = []
        for _ in range(count):
            first, last = struct.unpack_from("<II", body, position + 40)
            segments.append((xet_hash(body[position : position + 32]), first, last))
            position += 48
        position += 48 * count if flags & _VERIFICATION else 0
        sha256 = xet_hash(body[position : position + 32]) if flags & _METADATA else None
        position += 48 if flags & _METADATA else 0
        yield name, segments, sha256
