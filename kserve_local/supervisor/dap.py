"""What passes between an IDE and a debug adapter, as far as it says whether the program stands.

The Debug Adapter Protocol: JSON with a `Content-Length` before each message. Bytes come in as they
were received, in pieces of any size, and are not kept: a message that is larger than all those that
matter is counted off unread. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

State = Literal["attached", "stopped", "running"]

_MAX_HEAD = 4096
_MAX_MESSAGE = 65536
"""Bytes of a message that is looked at; stack traces and variables may be longer."""
_RESUMING = frozenset(
    {"continue", "next", "stepIn", "stepOut", "stepBack", "reverseContinue", "disconnect", "goto"}
)
_RUNS = frozenset({"continued", "terminated", "exited"})


class DapReader:
    """Reads what an adapter says to its client."""

    def __init__(self) -> None:
        self._head = b""
        self._body = bytearray()
        self._left = 0
        self._skipped = False
        self._lost = False

    def feed(self, data: bytes) -> Iterator[State]:
        """Yield what the next bytes tell, in order."""
        while data and not self._lost:
            if self._left:
                part, data = data[: self._left], data[self._left :]
                self._left -= len(part)
                if not self._skipped:
                    self._body += part
                if not self._left:
                    yield from self._end()
                continue
            head, mark, rest = (self._head + data).partition(b"\r\n\r\n")
            if not mark:
                self._head = head
                # No such protocol: the bytes pass, nothing is read any more.
                self._lost = len(head) > _MAX_HEAD
                return
            self._head, data = b"", rest
            self._left = _length(head)
            self._skipped = self._left > _MAX_MESSAGE

    def _end(self) -> Iterator[State]:
        body, self._body = bytes(self._body), bytearray()
        if self._skipped:
            return
        try:
            message = json.loads(body)
        except ValueError:
            return
        if isinstance(message, dict) and (said := meaning(message)) is not None:
            yield said


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length" and value.strip().isdigit():
            return int(value)
    return 0


def meaning(message: dict[str, Any]) -> State | None:
    """Return what a message of an adapter's says of the program; None: nothing."""
    if message.get("type") == "event":
        event = message.get("event")
        return "stopped" if event == "stopped" else "running" if event in _RUNS else None
    if message.get("type") != "response" or not message.get("success"):
        return None
    command = message.get("command")
    if command == "configurationDone":
        return "attached"
    return "running" if command in _RESUMING else None
