"""A queue of keys that need a look: no key twice, no key in two workers, waits where asked.

Reads and writes only memory. Copies the semantics of client-go's rate limiting work queue: a key
that is added while a worker holds it is handed out again when the worker is done; delayed keys are
kept apart and cost one timer each; failures of a key are counted and spaced exponentially.
"""

from __future__ import annotations

import asyncio
from collections import deque

from kserve_local.aio import backoff
from kserve_local.api.meta import Key

HOT = 10
"""Failures in a row after which a key is no longer looked at the moment something changes."""
CALM = 0.25


class WorkQueue:
    """Keys in the order they were added. All methods belong to one event loop.

    Args:
        first: Seconds before the first retry of a key; doubles with each failure in a row.
        cap: Longest wait between retries.
    """

    def __init__(self, *, first: float = 0.005, cap: float = 60.0) -> None:
        self._first = first
        self._cap = cap
        self._ready: deque[Key] = deque()
        self._dirty: set[Key] = set()
        self._active: set[Key] = set()
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._failures: dict[Key, int] = {}
        self._waiters: deque[asyncio.Future[None]] = deque()

    def __len__(self) -> int:
        """Keys that wait for a worker; delayed ones are not counted."""
        return len(self._ready)

    @property
    def idle(self) -> bool:
        """Whether nothing waits, runs or is delayed."""
        return not (self._ready or self._active or self._dirty or self._timers)

    def add(self, key: Key) -> None:
        """Hand the key to a worker as soon as one is free.

        A key that fails time after time waits `CALM` seconds instead: what fails may itself make
        the event that asks for the next look (an Event, a half-done write), for ever.
        """
        if self._failures.get(key, 0) >= HOT:
            self.add_after(key, CALM)
        else:
            self._push(key)

    def _push(self, key: Key) -> None:
        self._cancel_timer(key)
        if key in self._dirty:
            return
        self._dirty.add(key)
        if key not in self._active:
            self._ready.append(key)
            self._wake_one()

    def add_after(self, key: Key, delay: float) -> None:
        """Add the key in `delay` seconds, unless it is added earlier by something else.

        Of several delays for one key the one that ends first counts.
        """
        if delay <= 0:
            self._push(key)
            return
        if key in self._dirty:
            return
        loop = asyncio.get_running_loop()
        due = loop.time() + delay
        timer = self._timers.get(key)
        if timer is not None:
            if timer.when() <= due:
                return
            timer.cancel()
        self._timers[key] = loop.call_at(due, self._due, key)

    def add_failed(self, key: Key) -> float:
        """Add the key after its backoff and return the wait in seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        wait = backoff(failures, first=self._first, cap=self._cap, jitter=0.1)
        self.add_after(key, wait)
        return wait

    def forget(self, key: Key) -> None:
        """Start the key's backoff from the beginning."""
        self._failures.pop(key, None)

    async def get(self) -> Key:
        """Return the next key; it is the caller's until `done`."""
        while not self._ready:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                # A wake-up that was meant for us must reach somebody else.
                if waiter.done() and not waiter.cancelled():
                    self._wake_one()
                elif waiter in self._waiters:
                    self._waiters.remove(waiter)
                raise
        key = self._ready.popleft()
        self._dirty.discard(key)
        self._active.add(key)
        return key

    def done(self, key: Key) -> None:
        """Give the key back; if it was added meanwhile it is handed out again."""
        self._active.discard(key)
        if key in self._dirty:
            self._ready.append(key)
            self._wake_one()

    def close(self) -> None:
        """Cancel all timers."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _due(self, key: Key) -> None:
        self._timers.pop(key, None)
        self._push(key)

    def _cancel_timer(self, key: Key) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()

    def _wake_one(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
