"""The fields of a protobuf message in a file, without its schema and without reading what is big.

Source: protobuf's encoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LONGEST_TEXT = 4096


class Damaged(ValueError):
    """The bytes are no protobuf message."""


class Message:
    """A message between two positions of a file.

    Args:
        file: Seekable; positions of messages in it may be visited in any order.
    """

    def __init__(self, file: IO[bytes], start: int, end: int) -> None:
        self._file = file
        self._start = start
        self._end = end

    @classmethod
    def of(cls, file: IO[bytes]) -> Message:
        """Return the whole file as a message."""
        return cls(file, 0, file.seek(0, 2))

    def fields(self) -> Iterator[tuple[int, int | Message]]:
        """Yield number and value of each field: a number, or a message that may be a text.

        Raises:
            Damaged: It is no message.
        """
        at = self._start
        while at < self._end:
            tag, at = self._varint(at)
            number, kind = tag >> 3, tag & 7
            if not number:
                raise Damaged("field number 0")
            if kind == _VARINT:
                value, at = self._varint(at)
                yield number, value
            elif kind == _BYTES:
                size, at = self._varint(at)
                if at + size > self._end:
                    raise Damaged("it is cut off")
                yield number, Message(self._file, at, at + size)
                at += size
            elif kind in (_FIXED32, _FIXED64):
                at += 4 if kind == _FIXED32 else 8
            else:
                raise Damaged(f"wire type {kind}")

    def messages(self, number: int) -> Iterator[Message]:
        """Yield the messages of one field."""
        for found, value in self.fields():
            if found == number and isinstance(value, Message):
                yield value

    def first(self, number: int) -> Message | None:
        """Return the first message of a field, None without one."""
        return next(self.messages(number), None)

    def number(self, number: int) -> int | None:
        """Return the last number of a field, None without one."""
        found = [v for n, v in self.fields() if n == number and isinstance(v, int)]
        return found[-1] if found else None

    def text(self, number: int) -> str:
        """Return a field's text, empty without one."""
        found = self.first(number)
        return found.content().decode("utf-8", "replace") if found is not None else ""

    def content(self) -> bytes:
        """Return the bytes, of long ones the beginning."""
        self._file.seek(self._start)
        return self._file.read(min(self._end - self._start, _LONGEST_TEXT))

    def _varint(self, at: int) -> tuple[int, int]:
        self._file.seek(at)
        value = 0
        for place, byte in enumerate(self._file.read(10)):
            value |= (byte & 0x7F) << (7 * place)
            if not byte & 0x80:
                return value, at + place + 1
        raise Damaged("a number without an end")
