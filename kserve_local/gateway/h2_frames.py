"""HTTP/2 frames: bytes -> frames with their rules on length and flags, and frames -> bytes. Pure.

What a frame means for a stream or a connection is `h2_connection`'s.

Source: RFC 9113 sections 4, 6, 7.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DEFAULT_WINDOW = 65535
DEFAULT_FRAME = 16384
MAX_WINDOW = 2**31 - 1
MAX_FRAME = 2**24 - 1

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE = range(9)
CONTINUATION = 9

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
HAS_PRIORITY = 0x20

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS = 1, 2, 3
INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = 4, 5, 6

_HEAD = struct.Struct(">HBBBI")
_SETTING = struct.Struct(">HI")
_FIXED = {PRIORITY: 5, RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4}
_ON_STREAM = frozenset((DATA, HEADERS, PRIORITY, RST_STREAM, PUSH_PROMISE, CONTINUATION))
_ON_CONNECTION = frozenset((SETTINGS, PING, GOAWAY))


class Code(IntEnum):
    """Why a stream or a connection ends."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


class ConnectionBroken(Exception):
    """The peer broke the protocol so that the connection has to end."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code = code


class FrameReader:
    """Cuts bytes into frames.

    Args:
        max_frame: Bytes of payload that we said we take.

    Attributes:
        padding: Bytes that were cut off the frame that was yielded last.
    """

    __slots__ = ("_buffer", "max_frame", "padding")

    def __init__(self, max_frame: int) -> None:
        self.max_frame = max_frame
        self.padding = 0
        self._buffer = b""

    def feed(self, data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
        """Yield (type, flags, stream, payload) of each frame that is complete.

        Padding and priority are cut off DATA and HEADERS.

        Raises:
            ConnectionBroken: A frame that no peer may send.
        """
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        at, size = 0, len(data)
        while size - at >= 9:
            high, low, kind, flags, stream = _HEAD.unpack_from(data, at)
            length = (high << 8) | low
            if length > self.max_frame:
                raise ConnectionBroken(Code.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
            end = at + 9 + length
            if end > size:
                break
            stream &= MAX_WINDOW
            if kind <= CONTINUATION:
                _check(kind, stream, length)
            payload = data[at + 9 : end]
            self.padding = 0
            if kind <= HEADERS and flags & (PADDED | HAS_PRIORITY):
                payload = _cut(kind, flags, stream, payload)
                self.padding = length - len(payload)
            at = end
            yield kind, flags, stream, payload
        if at < size:
            self._buffer = data[at:] if at else data


def _check(kind: int, stream: int, length: int) -> None:
    if kind in _ON_STREAM and not stream:
        raise ConnectionBroken(Code.PROTOCOL_ERROR, "a stream's frame without a stream")
    if kind in _ON_CONNECTION and stream:
        raise ConnectionBroken(Code.PROTOCOL_ERROR, "a connection's frame on a stream")
    fixed = _FIXED.get(kind)
    if fixed is not None and length != fixed:
        raise ConnectionBroken(Code.FRAME_SIZE_ERROR, "a frame of the wrong size")
    if (kind == SETTINGS and length % 6) or (kind == GOAWAY and length < 8):
        raise ConnectionBroken(Code.FRAME_SIZE_ERROR, "a frame of the wrong size")


def _cut(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return the payload without padding and priority."""
    start, end = 0, len(payload)
    if flags & PADDED:
        if not payload:
            raise ConnectionBroken(Code.FRAME_SIZE_ERROR, "a padded frame without its length")
        start, end = 1, end - payload[0]
    if kind == HEADERS and flags & HAS_PRIORITY:
        if start + 5 > len(payload):
            raise ConnectionBroken(Code.FRAME_SIZE_ERROR, "a frame too short for its priority")
        if int.from_bytes(payload[start : start + 4], "big") & MAX_WINDOW == stream:
            raise ConnectionBroken(Code.PROTOCOL_ERROR, "a stream that depends on itself")
        start += 5
    if start > end:
        raise ConnectionBroken(Code.PROTOCOL_ERROR, "more padding than frame")
    return payload[start:end]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return one frame."""
    length = len(payload)
    return _HEAD.pack(length >> 8, length & 0xFF, kind, flags, stream) + payload


def frame_head(kind: int, flags: int, stream: int, length: int) -> bytes:
    """Return what goes before a payload of `length` bytes."""
    return _HEAD.pack(length >> 8, length & 0xFF, kind, flags, stream)


def headers(stream: int, block: bytes, *, end: bool, max_frame: int) -> bytes:
    """Return a header block as HEADERS and, where it is long, CONTINUATION frames."""
    flags = END_STREAM if end else 0
    if len(block) <= max_frame:
        return frame(HEADERS, flags | END_HEADERS, stream, block)
    pieces = [block[n : n + max_frame] for n in range(0, len(block), max_frame)]
    out = [frame(HEADERS, flags, stream, pieces[0])]
    out += [frame(CONTINUATION, 0, stream, piece) for piece in pieces[1:-1]]
    out.append(frame(CONTINUATION, END_HEADERS, stream, pieces[-1]))
    return b"".join(out)


def settings(values: dict[int, int]) -> bytes:
    """Return a SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*item) for item in values.items()))


def read_settings(payload: bytes) -> list[tuple[int, int]]:
    """Return what a SETTINGS frame says, in order; unknown settings too.

    Raises:
        ConnectionBroken: A value that is not allowed.
    """
    found = list(_SETTING.iter_unpack(payload))
    for name, value in found:
        if name == INITIAL_WINDOW_SIZE and value > MAX_WINDOW:
            raise ConnectionBroken(Code.FLOW_CONTROL_ERROR, "a window that is too large")
        if name == MAX_FRAME_SIZE and not DEFAULT_FRAME <= value <= MAX_FRAME:
            raise ConnectionBroken(Code.PROTOCOL_ERROR, "a frame size that is not allowed")
        if name == ENABLE_PUSH and value > 1:
            raise ConnectionBroken(Code.PROTOCOL_ERROR, "a setting that is neither 0 nor 1")
    return found


def window_update(stream: int, size: int) -> bytes:
    """Return a frame that lets the peer send `size` bytes more."""
    return frame(WINDOW_UPDATE, 0, stream, size.to_bytes(4, "big"))


def rst_stream(stream: int, code: int) -> bytes:
    """Return a frame that ends a stream."""
    return frame(RST_STREAM, 0, stream, code.to_bytes(4, "big"))


def goaway(last: int, code: int, text: str = "") -> bytes:
    """Return a frame that announces the connection's end."""
    payload = last.to_bytes(4, "big") + code.to_bytes(4, "big") + text.encode()
    return frame(GOAWAY, 0, 0, payload)
