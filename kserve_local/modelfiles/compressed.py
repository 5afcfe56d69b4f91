"""A file's bytes without joblib's compression, which its first bytes tell: zlib, gzip, bz2, xz."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

_LZ4 = b"\x04\x22\x4d\x18"
_CHUNK = 1 << 16


class Compressed(ValueError):
    """The file is compressed in a way that cannot be undone here."""


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Give the plain content of a file, to be read once from front to back.

    Raises:
        Compressed: By lz4, which the standard library does not know.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        head = file.peek(8)[:8]
        if head.startswith(_LZ4):
            raise Compressed("it is compressed by lz4, which is not looked into")
        if head.startswith(b"\x1f\x8b"):
            plain = cast("IO[bytes]", gzip.GzipFile(fileobj=file))
        elif head.startswith(b"BZ"):
            plain = bz2.BZ2File(file)
        elif head.startswith((b"\xfd7zXZ", b"]\x00")):
            plain = lzma.LZMAFile(file)  # noqa: SIM115  # closed with the block below
        elif head.startswith(b"x"):
            plain = io.BufferedReader(_Inflated(file))
        else:
            plain = file
        with plain:
            yield plain


class _Inflated(io.RawIOBase):
    """The content of a zlib stream, a piece at a time."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._stream = zlib.decompressobj()
        self._input = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._stream.eof:
            self._input = self._input or self._file.read(_CHUNK)
            try:
                piece = self._stream.decompress(self._input, len(buffer))
            except zlib.error as error:
                raise OSError(f"damaged zlib stream: {error}") from error
            ended = not self._input and not piece
            self._input = self._stream.unconsumed_tail
            if piece:
                buffer[: len(piece)] = piece
                return len(piece)
            if ended:
                raise EOFError("the zlib stream is cut off")
        return 0
