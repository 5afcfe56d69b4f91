"""Watch streams: store changes -> newline-separated `{"type", "object"}`.

An object that stops matching the selectors is sent as DELETED, one that begins to match as ADDED.
A watch that cannot go on ends with an ERROR event holding the 410 `Status`; lines go out at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager

import orjson

from kserve_local.api.meta import Object, WatchEvent
from kserve_local.apiserver.errors import failure
from kserve_local.apiserver.paths import Target
from kserve_local.apiserver.selectors import Predicate
from kserve_local.errors import Gone
from kserve_local.store.store import Store

BOOKMARK_PERIOD = 60.0


class OpenStreams:
    """Answers that go on until somebody ends them: watches, followed logs."""

    def __init__(self) -> None:
        self._ends: set[Callable[[], None]] = set()
        self._closed = False

    @contextmanager
    def register(self, end: Callable[[], None]) -> Iterator[None]:
        """Have `end` called when the server stops while the block is open."""
        if self._closed:
            end()
        self._ends.add(end)
        try:
            yield
        finally:
            self._ends.discard(end)

    def close(self) -> None:
        """End all streams, and those that begin later."""
        self._closed = True
        for end in list(self._ends):
            end()


async def lines(
    store: Store,
    target: Target,
    streams: OpenStreams,
    *,
    since: int | None,
    matches: Predicate | None,
    render: Callable[[Object], Object],
    bookmark: Callable[[int, bool], Object] | None,
    initial_bookmark: bool,
    seconds: float | None,
) -> AsyncIterator[bytes]:
    """Yield lines for every change until the timeout, the server's end, or the client's.

    Args:
        since: resourceVersion to resume from; None: an ADDED for everything first.
        render: How an object is shown (version of the request, Table row).
        bookmark: Makes the object of a BOOKMARK out of the resourceVersion and whether it ends the
            initial events; None: the client wants none.
        initial_bookmark: Send one right after the initial ADDED events (`sendInitialEvents`).
        seconds: When to end; None: never.
    """
    loop = asyncio.get_running_loop()
    end = None if seconds is None else loop.time() + seconds
    resource, namespace = target.kind.id, target.namespace
    try:
        async with store.watch(resource, namespace=namespace, since=since) as watcher:
            with streams.register(watcher.close):
                mark = store.resource_version
                first = await watcher.take(0)
                if chunk := _lines(first or (), matches, render):
                    yield chunk
                if initial_bookmark and bookmark is not None:
                    yield _line("BOOKMARK", bookmark(mark, True))
                while end is None or loop.time() < end:
                    left = BOOKMARK_PERIOD if end is None else end - loop.time()
                    batch = await watcher.take(max(0.001, min(BOOKMARK_PERIOD, left)))
                    if batch is None:
                        return
                    if chunk := _lines(batch, matches, render):
                        yield chunk
                    elif not batch and bookmark is not None:
                        yield _line("BOOKMARK", bookmark(store.resource_version, False))
    except Gone as error:
        yield _line("ERROR", failure(error))


def _lines(
    events: Iterable[WatchEvent], matches: Predicate | None, render: Callable[[Object], Object]
) -> bytes:
    shown = ((_shown_as(event, matches), event) for event in events)
    return b"".join(_line(type_, render(event.object)) for type_, event in shown if type_)


def _shown_as(event: WatchEvent, matches: Predicate | None) -> str | None:
    if matches is None:
        return event.type
    before = event.previous is not None and matches(event.previous)
    if event.type != "DELETED" and matches(event.object):
        return "MODIFIED" if before else "ADDED"
    return "DELETED" if before else None


def _line(type_: str, obj: Object) -> bytes:
    return orjson.dumps({"type": type_, "object": obj}) + b"\n"
