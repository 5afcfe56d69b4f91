"""The chunked coding, read strictly and piece by piece; pure, holds at most one line.

What comes out is the payload; the sender frames it anew, so extensions and trailers end here.

Source: RFC 9112 section 7.1.
"""

from __future__ import annotations

import re

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")
_PART = re.compile(rb"[0-9A-Fa-f]{1,15}(?:[ \t]*|[ \t]*;[\t\x20-\x7e\x80-\xff]*)\r?")
_TRAILER = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*")
_MAX_LINE = 4096
_MAX_EXTRA = 64 * 1024

LAST = b"0\r\n\r\n"


class ChunkError(ValueError):
    """The coding is broken; the text says how."""


class ChunkDecoder:
    """One message's body.

    Attributes:
        done: The last chunk and its trailers have been read.
        rest: After `done`: bytes that belong to the next message.
    """

    __slots__ = ("_extra", "_left", "_line", "_step", "done", "rest")

    def __init__(self) -> None:
        self.done = False
        self.rest = b""
        self._left = 0
        self._line = b""
        self._step = 0  # 0: size line, 1: data, 2: CRLF after data, 3: trailers
        self._extra = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Return the pieces of payload in `data`.

        Raises:
            ChunkError: Anything but the grammar; nothing after it is to be trusted.
        """
        pieces: list[bytes] = []
        at, size = 0, len(data)
        while at < size:
            if self._step == 1:
                piece = data[at : at + self._left]
                at += len(piece)
                self._left -= len(piece)
                pieces.append(piece)
                if not self._left:
                    self._step = 2
                continue
            end = data.find(b"\n", at)
            line = self._line + (data[at:] if end < 0 else data[at : end + 1])
            if len(line) > _MAX_LINE:
                raise ChunkError("a chunk line that is too long")
            if end < 0:
                if self._step == 2 and line != b"\r":
                    raise ChunkError("no line end after the chunk's data")
                if self._step == 0 and not _PART.fullmatch(line):
                    raise ChunkError("a bad chunk size")
                self._line = line
                break
            at = end + 1
            self._line = b""
            if line[-2:] != b"\r\n":
                raise ChunkError("a bare line feed in the chunked body")
            self._take(line[:-2])
            if self.done:
                self.rest = data[at:]
                break
        return pieces

    def _take(self, line: bytes) -> None:
        if self._step == 2:
            if line:
                raise ChunkError("no line end after the chunk's data")
            self._step = 0
        elif self._step == 0:
            match = _SIZE.fullmatch(line)
            if match is None:
                raise ChunkError("a bad chunk size")
            digits = match.group(1)
            self._count(len(line) - len(digits))
            self._left = int(digits, 16)
            self._step = 1 if self._left else 3
        elif not line:
            self.done = True
        elif not _TRAILER.fullmatch(line):
            raise ChunkError("a malformed trailer")
        else:
            self._count(len(line))

    def _count(self, size: int) -> None:
        # Extensions and trailers carry nothing for us: a flood of them is an attack on our time.
        self._extra += size
        if self._extra > _MAX_EXTRA:
            raise ChunkError("too many chunk extensions or trailers")


def encode(pieces: list[bytes]) -> list[bytes]:
    """Return `pieces` framed as one chunk, as buffers to write in order; empty for no payload."""
    size = sum(map(len, pieces))
    if not size:
        return []
    return [b"%x\r\n" % size, *pieces, b"\r\n"]
