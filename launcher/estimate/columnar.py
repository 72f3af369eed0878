"""How many rows a parquet file or an arrow stream has, read from their headers without a library for them."""

from __future__ import annotations

import struct
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

# Of thrift's compact protocol.
_STOP, _TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT, _UUID = 0, 1, 2, 3, 7, 8, 9, 10, 11, 12, 13
_INTEGERS = (4, 5, 6)
_NUM_ROWS_FIELD = 3
# What comes before the rows is one entry for each column.
_LONGEST_LIST = 1_000_000
_RECORD_BATCH = 3


def parquet_rows(path: Path) -> int:
    """The rows of a parquet file, from its footer; ValueError where that is not one.

    The footer is a `FileMetaData` in thrift's compact protocol (apache/parquet-format), whose third field they are.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(size - 8, 0))
        length, magic = struct.unpack("<I4s", file.read(8).rjust(8))
        if magic != b"PAR1" or length > size - 12:
            raise ValueError("it has no parquet footer")
        file.seek(size - 8 - length)
        footer = BytesIO(file.read(length))
    try:
        return _num_rows(footer)
    except (IndexError, RecursionError) as error:
        raise ValueError("its parquet footer is broken") from error


def arrow_rows(path: Path) -> int:
    """The rows of an arrow stream, as `Dataset.save_to_disk` writes them; ValueError where that is not one.

    Each message is a marker, the length of its flatbuffer header, the header and a body (arrow's IPC streaming format).
    """
    rows = 0
    with path.open("rb") as file:
        while len(start := file.read(8)) == 8:
            marker, length = struct.unpack("<II", start)
            if marker != 0xFFFFFFFF:
                raise ValueError("it is not an arrow stream")
            if length == 0:
                break
            try:
                count, body = _message(file.read(length))
            except (struct.error, IndexError) as error:
                raise ValueError("a header of the arrow stream is broken") from error
            rows += count
            if body < 0:
                raise ValueError("a header of the arrow stream is broken")
            file.seek(body, 1)
    return rows


def _num_rows(footer: BinaryIO) -> int:
    field = 0
    while (kind := _byte(footer)) & 15 != _STOP:
        field = field + (kind >> 4) if kind >> 4 else _zigzag(footer)
        if field == _NUM_ROWS_FIELD and kind & 15 in _INTEGERS:
            rows = _zigzag(footer)
            if rows < 0:
                break
            return rows
        _skip(footer, kind & 15)
    raise ValueError("its parquet footer does not say how many rows it has")


def _skip(data: BinaryIO, kind: int) -> None:
    """Pass over one value of that type."""
    if kind in (_TRUE, _FALSE):
        return
    if kind in _INTEGERS:
        _varint(data)
    elif kind in (_BYTE, _DOUBLE, _UUID):
        data.seek({_BYTE: 1, _DOUBLE: 8, _UUID: 16}[kind], 1)
    elif kind == _BINARY:
        data.seek(_varint(data), 1)
    elif kind in (_LIST, _SET):
        head = _byte(data)
        count = _varint(data) if head >> 4 == 15 else head >> 4
        if count > _LONGEST_LIST:
            raise ValueError("its parquet footer is broken")
        for _ in range(count):
            # A bool takes a byte here, and none as a field.
            _skip(data, _BYTE if head & 15 in (_TRUE, _FALSE) else head & 15)
    elif kind == _STRUCT:
        while (head := _byte(data)) & 15 != _STOP:
            if not head >> 4:
                _zigzag(data)
            _skip(data, head & 15)
    else:
        raise ValueError(f"its parquet footer has a value of the unknown type {kind}")


def _byte(data: BinaryIO) -> int:
    return data.read(1)[0]


def _varint(data: BinaryIO) -> int:
    value = shift = 0
    while (byte := _byte(data)) & 128:
        value |= (byte & 127) << shift
        shift += 7
    return value | byte << shift


def _zigzag(data: BinaryIO) -> int:
    value = _varint(data)
    return value >> 1 ^ -(value & 1)


def _message(header: bytes) -> tuple[int, int]:
    """Rows and bytes of the body of a message, whose table has version, kind, header and the body's length."""
    (root,) = struct.unpack_from("<I", header)
    kind_at, inner_at, body_at = (_field(header, root, number) for number in (1, 2, 3))
    (body,) = struct.unpack_from("<q", header, body_at) if body_at else (0,)
    if not kind_at or header[kind_at] != _RECORD_BATCH or not inner_at:
        return 0, body
    inner = inner_at + struct.unpack_from("<I", header, inner_at)[0]
    length_at = _field(header, inner, 0)
    return (struct.unpack_from("<q", header, length_at)[0] if length_at else 0), body


def _field(data: bytes, table: int, number: int) -> int:
    """Where a flatbuffer table's field lies; 0 where it has its default."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    (size,) = struct.unpack_from("<H", data, vtable)
    if 4 + 2 * number + 2 > size:
        return 0
    (offset,) = struct.unpack_from("<H", data, vtable + 4 + 2 * number)
    return table + offset if offset else 0
