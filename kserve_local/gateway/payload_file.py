"""The built-in sink: CloudEvents whose URL exists only in a cluster, the newest of a project.

One JSON object a line in `<state>/payloads/events.jsonl`: the event in CloudEvents' JSON format,
plus `target`, the URL it was for. A full file is moved to `events.1.jsonl` and a new one begun, so
that at most `limit` bytes are kept. Written by the gateway alone, so it outlives a supervisor; read
by whoever shows it.
"""

from __future__ import annotations

import base64
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

FILE = "events.jsonl"
OLDER = "events.1.jsonl"
LIMIT = 64 * 1024 * 1024
BODY_LIMIT = 4 * 1024 * 1024
SHOWN = 64 * 1024
"""Bytes of a body over the limit that are kept."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event to keep; `kind` is its body's content type."""

    target: str
    attributes: Mapping[str, str]
    kind: str
    body: bytes


class PayloadFile:
    """Where events are kept. Blocking; may be called by several threads.

    Args:
        folder: Made on the first event.
        limit: Bytes in both files together.
    """

    def __init__(self, folder: Path, limit: int = LIMIT) -> None:
        self._folder = folder
        self._limit = limit
        self._lock = threading.Lock()

    def add(self, events: Sequence[Event]) -> None:
        """Keep events.

        Raises:
            OSError: They could not be written.
        """
        lines = b"".join(orjson.dumps(document(event)) + b"\n" for event in events)
        path = self._folder / FILE
        with self._lock:
            # Not its parents: a state folder that is gone is not made anew.
            self._folder.mkdir(mode=0o700, exist_ok=True)
            try:
                full = path.stat().st_size + len(lines) > self._limit // 2
            except FileNotFoundError:
                full = False
            if full:
                path.replace(self._folder / OLDER)
            fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(lines)


def document(event: Event) -> dict[str, Any]:
    """Return an event in CloudEvents' JSON format, with `target`.

    Of a body over the limit there is the beginning, and `truncated` says how large it is.
    """
    found: dict[str, Any] = {**event.attributes, "target": event.target}
    if event.kind:
        found["datacontenttype"] = event.kind
    body = event.body
    binary = event.kind.startswith("application/grpc")
    if len(body) > BODY_LIMIT:
        shown = body[:SHOWN]
        data = _base64(shown) if binary else {"data": shown.decode("utf-8", "replace")}
        return {**found, **data, "truncated": len(body)}
    if binary and body:
        return {**found, **_base64(body)}
    try:
        return {**found, "data": orjson.loads(body)}
    except orjson.JSONDecodeError:
        pass
    try:
        return {**found, "data": body.decode()} if body else found
    except UnicodeDecodeError:
        return {**found, **_base64(body)}


def _base64(body: bytes) -> dict[str, Any]:
    return {"data_base64": base64.b64encode(body).decode()}
