"""Decodes LZ4 frames, which is how xet compresses its chunks. Format: github.com/lz4/lz4/tree/dev/doc."""

from __future__ import annotations

MAGIC = b"\x04\x22\x4d\x18"


def decode_frame(frame: bytes) -> bytes:
    """The bytes that one frame holds; checksums are skipped, not checked. Raises ValueError for another format."""
    if frame[:4] != MAGIC:
        raise ValueError("not an LZ4 frame")
    flags = frame[4]
    position = 7 + (8 if flags & 0x08 else 0) + (4 if flags & 0x01 else 0)
    trailer = 4 if flags & 0x10 else 0
    output = bytearray()
    while size := int.from_bytes(frame[position : position + 4], "little"):
        position += 4
        raw, size = bool(size >> 31), size & 0x7FFFFFFF
        block = frame[position : position + size]
        if raw:
            output += block
        else:
            _decode_block(block, output)
        position += size + trailer
    return bytes(output)


def _decode_block(block: bytes, output: bytearray) -> None:
    """Appends one block: runs of literals, each followed by a copy of earlier output."""
    position, end = 0, len(block)
    while position < end:
        token = block[position]
        position += 1
        length = token >> 4
        if length == 15:
            length, position = _extend(length, block, position)
        output += block[position : position + length]
        position += length
        if position >= end:  # the last run has literals only
            return
        distance = block[position] | block[position + 1] << 8
        position += 2
        length = token & 15
        if length == 15:
            length, position = _extend(length, block, position)
        length += 4
        start = len(output) - distance
        if not 0 <= start < len(output):
            raise ValueError("LZ4: a copy from before the beginning")
        if distance >= length:
            output += output[start : start + length]
        else:  # the copy overlaps what it writes: its pattern repeats
            pattern = output[start:]
            output += (pattern * (length // distance + 1))[:length]


def _extend(length: int, block: bytes, position: int) -> tuple[int, int]:
    while True:
        byte = block[position]
        position += 1
        length += byte
        if byte != 255:
            return length, position
