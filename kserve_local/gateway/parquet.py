"""Records as a Parquet file: one row group, plain and uncompressed. Pure.

Just what the logger's `format: parquet` needs: required columns of UTF-8 texts and one of truth
values, with the names and types of KServe's (pkg/logger/marshaller_record.go). Any reader takes it;
it is not byte for byte what parquet-go writes.

Source: Apache Parquet, file format and Thrift definitions (parquet.thrift), compact protocol.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from kserve_local.gateway.payload import COLUMNS, Payload, row

_MAGIC = b"PAR1"
_BOOLEAN, _BYTE_ARRAY = 0, 6
_REQUIRED, _UTF8, _PLAIN, _RLE = 0, 0, 0, 3
# Compact protocol's types of fields.
_I32, _I64, _BINARY, _LIST, _STRUCT = 5, 6, 8, 9, 12


def parquet_document(batch: Sequence[Payload]) -> bytes:
    """Return the records as one file."""
    rows = [row(payload) for payload in batch]
    out = bytearray(_MAGIC)
    chunks: list[tuple[int, int]] = []
    for column in range(len(COLUMNS)):
        values = [each[column] for each in rows]
        page = _truths(values) if _is_truth(column) else _texts(values)
        start = len(out)
        out += _page_header(len(page), len(values)) + page
        chunks.append((start, len(out) - start))
    footer = _footer(chunks, len(rows))
    return bytes(out + footer + struct.pack("<I", len(footer)) + _MAGIC)


def _is_truth(column: int) -> bool:
    return COLUMNS[column] == "tlsSkipVerify"


def _texts(values: Sequence[str]) -> bytes:
    encoded = [value.encode("utf-8", "replace") for value in values]
    return b"".join(struct.pack("<I", len(value)) + value for value in encoded)


def _truths(values: Sequence[str]) -> bytes:
    out = bytearray((len(values) + 7) // 8)
    for index, value in enumerate(values):
        if value == "true":
            out[index // 8] |= 1 << index % 8
    return bytes(out)


def _page_header(size: int, count: int) -> bytes:
    data_page = _Struct().i32(1, count).i32(2, _PLAIN).i32(3, _RLE).i32(4, _RLE)
    header = _Struct().i32(1, 0).i32(2, size).i32(3, size).struct(5, data_page)
    return header.encode()


def _footer(chunks: Sequence[tuple[int, int]], count: int) -> bytes:
    schema = [_Struct().text(4, "logRecord").i32(5, len(COLUMNS))]
    columns = []
    for index, name in enumerate(COLUMNS):
        kind = _BOOLEAN if _is_truth(index) else _BYTE_ARRAY
        element = _Struct().i32(1, kind).i32(3, _REQUIRED).text(4, name)
        if kind == _BYTE_ARRAY:
            # ConvertedType UTF8 and, for newer readers, LogicalType STRING.
            element.i32(6, _UTF8).struct(10, _Struct().struct(1, _Struct()))
        schema.append(element)
        start, size = chunks[index]
        meta = (
            _Struct()
            .i32(1, kind)
            .list(2, _I32, [_zigzag(_PLAIN), _zigzag(_RLE)])
            .list(3, _BINARY, [_bytes(name.encode())])
            .i32(4, 0)
            .i64(5, count)
            .i64(6, size)
            .i64(7, size)
            .i64(9, start)
        )
        columns.append(_Struct().i64(2, start).struct(3, meta))
    total = sum(size for _, size in chunks)
    group = _Struct().list(1, _STRUCT, [c.encode() for c in columns]).i64(2, total).i64(3, count)
    return (
        _Struct()
        .i32(1, 1)
        .list(2, _STRUCT, [s.encode() for s in schema])
        .i64(3, count)
        .list(4, _STRUCT, [group.encode()])
        .text(6, "kserve-local")
        .encode()
    )


class _Struct:
    """A Thrift struct in the compact protocol; fields in rising order."""

    def __init__(self) -> None:
        self._out = bytearray()
        self._last = 0

    def _field(self, number: int, kind: int, value: bytes) -> _Struct:
        self._out.append((number - self._last) << 4 | kind)
        self._last = number
        self._out += value
        return self

    def i32(self, number: int, value: int) -> _Struct:
        return self._field(number, _I32, _zigzag(value))

    def i64(self, number: int, value: int) -> _Struct:
        return self._field(number, _I64, _zigzag(value))

    def text(self, number: int, value: str) -> _Struct:
        return self._field(number, _BINARY, _bytes(value.encode()))

    def struct(self, number: int, value: _Struct) -> _Struct:
        return self._field(number, _STRUCT, value.encode())

    def list(self, number: int, kind: int, items: Sequence[bytes]) -> _Struct:
        size = len(items)
        head = bytes([size << 4 | kind]) if size < 15 else bytes([0xF0 | kind]) + _varint(size)
        return self._field(number, _LIST, head + b"".join(items))

    def encode(self) -> bytes:
        return bytes(self._out) + b"\x00"


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _zigzag(value: int) -> bytes:
    return _varint(value << 1)


def _bytes(value: bytes) -> bytes:
    return _varint(len(value)) + value
