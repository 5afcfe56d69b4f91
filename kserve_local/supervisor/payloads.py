"""The events that the gateway's built-in sink keeps, for `kserve-local events --payloads`.

`GET /apis/kserve-local.dev/v1/payloads` answers one CloudEvent a line (JSON format, plus `target`),
oldest first, of `namespace` and `service` (names with commas) where given, the newest `limit`; with
`follow=true` it goes on with those that come. Reads the files of `gateway.payload_file`, writes
nothing.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from kserve_local.apiserver.watch import OpenStreams
from kserve_local.client.project import PAYLOADS
from kserve_local.gateway.payload_file import FILE, OLDER

DEFAULT_LIMIT = 100
_POLL = 0.1

Wanted = Callable[[dict[str, Any]], bool]


def routes(folder: Path, streams: OpenStreams) -> Sequence[BaseRoute]:
    """Return the route that the API server serves.

    Args:
        folder: The built-in sink's.
        streams: Ends followed answers when the server stops.
    """

    async def payloads(request: Request) -> Response:
        query = request.query_params
        limit = query.get("limit", "")
        wanted = _filter(query.get("namespace", ""), _names(query.get("service", "")))
        tail = Tail(folder)
        count = int(limit) if limit.isdigit() else DEFAULT_LIMIT
        first = await asyncio.to_thread(tail.newest, wanted, count)
        follow = query.get("follow") == "true"
        stream = _stream(tail, first, wanted, streams if follow else None)
        return StreamingResponse(stream, media_type="application/x-ndjson")

    return [Route(PAYLOADS, payloads, methods=["GET"])]


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _filter(namespace: str, services: Sequence[str]) -> Wanted:
    def wanted(event: dict[str, Any]) -> bool:
        if namespace and event.get("namespace") != namespace:
            return False
        return not services or event.get("inferenceservicename") in services

    return wanted


async def _stream(
    tail: Tail, first: Sequence[bytes], wanted: Wanted, streams: OpenStreams | None
) -> AsyncIterator[bytes]:
    for line in first:
        yield line
    if streams is None:
        return
    stopped = asyncio.Event()
    with streams.register(stopped.set):
        while not stopped.is_set():
            for line in await asyncio.to_thread(tail.more, wanted):
                yield line
            try:
                async with asyncio.timeout(_POLL):
                    await stopped.wait()
            except TimeoutError:
                continue


class Tail:
    """Reads the sink's files and remembers how far. Blocking."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._inode = 0
        self._offset = 0

    def newest(self, wanted: Wanted, count: int) -> list[bytes]:
        """Return the newest `count` lines that are wanted, oldest first."""
        found: deque[bytes] = deque(maxlen=max(count, 0))
        for line in self._read(OLDER, 0):
            if _is_wanted(line, wanted):
                found.append(line)
        # Between the two the file may be moved: what comes next is then not seen twice, only late.
        found.extend(self.more(wanted))
        return list(found)

    def more(self, wanted: Wanted) -> list[bytes]:
        """Return the lines that came since."""
        lines: list[bytes] = []
        now = _inode(self._folder / FILE)
        if self._inode and now != self._inode:
            if _inode(self._folder / OLDER) == self._inode:
                lines += self._read(OLDER, self._offset)
            self._offset = 0
        self._inode = now
        lines += self._read(FILE, self._offset)
        return [line for line in lines if _is_wanted(line, wanted)]

    def _read(self, name: str, start: int) -> Iterator[bytes]:
        """Yield the whole lines from `start` on; of the newest file remember where they end."""
        try:
            file = (self._folder / name).open("rb")
        except FileNotFoundError:
            return
        with file:
            if name == FILE:
                self._inode = os.fstat(file.fileno()).st_ino
            file.seek(start)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # It is being written.
                start += len(line)
                if name == FILE:
                    self._offset = start
                yield line


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return 0


def _is_wanted(line: bytes, wanted: Wanted) -> bool:
    try:
        event = orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return isinstance(event, dict) and wanted(event)
