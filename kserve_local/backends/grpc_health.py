"""Ask `grpc.health.v1.Health/Check` over one HTTP/2 connection: just enough of both protocols.

Source: RFC 9113 (frames), RFC 7541 (literal header fields without indexing), gRPC over HTTP/2.
The answer's status is a field of the message, so response headers need no decoding.
"""

from __future__ import annotations

import asyncio
import struct

SERVING = 1
NAMES = {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}

_DATA, _HEADERS, _RST, _SETTINGS, _PING, _GOAWAY = 0, 1, 3, 4, 6, 7
_END_STREAM, _END_HEADERS, _PADDED, _ACK = 1, 4, 8, 1


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _literal(name: str, value: str) -> bytes:
    return b"\x00" + b"".join(_length(len(text.encode())) + text.encode() for text in (name, value))


def _length(size: int) -> bytes:
    """An HPACK integer with a 7-bit prefix."""
    if size < 127:
        return bytes([size])
    out = bytearray([127])
    size -= 127
    while size >= 128:
        out.append(size % 128 + 128)
        size //= 128
    out.append(size)
    return bytes(out)


def _varint(size: int) -> bytes:
    out = bytearray()
    while size >= 128:
        out.append(size % 128 + 128)
        size //= 128
    out.append(size)
    return bytes(out)


async def ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, service: str, authority: str
) -> int:
    """Return the serving status (see NAMES) of `service`; empty: of the server.

    Raises:
        EOFError: The server hung up.
        ValueError: It answered without a health message (no health service, unknown service).
    """
    name = service.encode()
    message = b"\x0a" + _varint(len(name)) + name if name else b""
    headers = b"".join(
        _literal(*pair)
        for pair in (
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/grpc.health.v1.Health/Check"),
            (":authority", authority),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("user-agent", "kube-probe/1.34"),
        )
    )
    writer.write(
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + _frame(_SETTINGS, 0, 0, b"")
        + _frame(_HEADERS, _END_HEADERS, 1, headers)
        + _frame(_DATA, _END_STREAM, 1, b"\0" + struct.pack(">I", len(message)) + message)
    )
    body = b""
    while True:
        head = await reader.readexactly(9)
        size = int.from_bytes(head[:3], "big")
        kind, flags = head[3], head[4]
        payload = await reader.readexactly(size)
        if kind == _SETTINGS and not flags & _ACK:
            writer.write(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            writer.write(_frame(_PING, _ACK, 0, payload))
        elif kind == _DATA:
            body += payload[1 : size - payload[0]] if flags & _PADDED else payload
        elif kind in (_RST, _GOAWAY):
            raise ValueError("the server refused the call")
        if len(body) >= 5 and len(body) >= 5 + int.from_bytes(body[1:5], "big"):
            return _status(body[5 : 5 + int.from_bytes(body[1:5], "big")])
        if kind in (_DATA, _HEADERS) and flags & _END_STREAM:
            raise ValueError("the server has no health service, or not this service")


def _status(message: bytes) -> int:
    """Return field 1 of a HealthCheckResponse; a missing field is 0."""
    return message[1] if len(message) >= 2 and message[0] == 0x08 else 0
