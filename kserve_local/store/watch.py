"""Fan-out of committed changes to watchers: bounded, resumable, Gone (410) when too old.

Each resource keeps its last changes in a ring; a watch that resumes inside the ring replays them,
one that asks for something older must list again. A watcher that does not keep up with its own
bounded queue is ended with Gone instead of slowing the store or the other watchers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Iterable

from kserve_local.api.meta import WatchEvent, namespace_of
from kserve_local.errors import Gone


class History:
    """The last `size` changes of one resource.

    Args:
        floor: Changes up to this sequence are not known any more.
    """

    def __init__(self, floor: int, size: int) -> None:
        self._events: deque[WatchEvent] = deque()
        self._size = size
        self._floor = floor

    def append(self, event: WatchEvent) -> None:
        """Remember a change, forgetting the oldest one when full."""
        self._events.append(event)
        if len(self._events) > self._size:
            self._floor = self._events.popleft().resource_version

    def after(self, since: int) -> list[WatchEvent]:
        """Return the changes after `since`, oldest first.

        Raises:
            Gone: Some of them are forgotten.
        """
        if since < self._floor:
            raise Gone(f"too old resource version: {since} ({self._floor})")
        newer: list[WatchEvent] = []
        for event in reversed(self._events):
            if event.resource_version <= since:
                break
            newer.append(event)
        newer.reverse()
        return newer


class Watcher:
    """One subscription: an async iterator over changes.

    Args:
        namespace: Only changes there; None: everywhere.
        first: Delivered before anything that `offer` brings; not counted against `limit`.
        limit: Undelivered changes it may be behind before it is ended with Gone.
    """

    def __init__(self, namespace: str | None, first: Iterable[WatchEvent], limit: int) -> None:
        self._namespace = namespace
        self._events = deque(first)
        self._limit = limit + len(self._events)
        self._lost = False
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None

    def offer(self, event: WatchEvent) -> None:
        """Queue a change if it concerns this watcher."""
        if self._namespace is not None and namespace_of(event.object) != self._namespace:
            return
        if len(self._events) >= self._limit:
            self._lost = True
            self._events.clear()
        if not self._lost:
            self._events.append(event)
        self._wake()

    def close(self) -> None:
        """End the iteration after what is queued."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __aiter__(self) -> AsyncIterator[WatchEvent]:
        return self

    async def __anext__(self) -> WatchEvent:
        while not self._events:
            if self._ended():
                raise StopAsyncIteration
            await self._arrival()
        return self._events.popleft()

    async def take(self, seconds: float | None) -> list[WatchEvent] | None:
        """Return everything queued, waiting for it up to `seconds`; [] then, None at the end.

        Raises:
            Gone: The watcher fell too far behind.
        """
        if not self._events and not self._ended() and (seconds is None or seconds > 0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._arrival()
        if not self._events:
            return None if self._ended() else []
        taken = list(self._events)
        self._events.clear()
        return taken

    def _ended(self) -> bool:
        if self._lost:
            raise Gone("too old resource version: the watch fell behind; list again")
        return self._closed

    async def _arrival(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
