"""The gateway's figures as the supervisor keeps them: the last minute per target, and pokes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from kserve_local.interfaces.stats import RequestStat, StatSink

_WINDOW = 60.0
_MOST = 1200
"""Reports in a window, at the highest speed of the autoscaler's clock."""


class Stats:
    """A `StatSink` that remembers one minute for `status`. Silence costs nothing.

    Args:
        clock: Monotonic seconds; for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[str, deque[tuple[float, RequestStat]]] = {}
        self._listeners: list[StatSink] = []

    def pass_on(self, sink: StatSink) -> None:
        """Have everything from now on told to `sink` too."""
        self._listeners.append(sink)

    def record(self, stats: tuple[RequestStat, ...]) -> None:
        """Take one batch of the gateway."""
        now = self._clock()
        for stat in stats:
            kept = self._seen.setdefault(stat.target, deque(maxlen=_MOST))
            kept.append((now, stat))
        for listener in self._listeners:
            listener.record(stats)

    def failure(self, target: str) -> tuple[float, str] | None:
        """Return the last failure of the last minute, in words, and how many seconds ago it was."""
        now = self._clock()
        for when, stat in reversed(self._seen.get(target) or ()):
            if when < now - _WINDOW:
                return None
            if stat.failure:
                return now - when, stat.failure
        return None

    def poke(self, target: str) -> None:
        """A request found no replica of `target`."""
        for listener in self._listeners:
            listener.poke(target)

    def of(self, target: str) -> dict[str, float]:
        """Return requests per second, error rate and p95 (seconds) over the last minute."""
        now = self._clock()
        kept = self._seen.get(target)
        while kept and kept[0][0] < now - _WINDOW:
            kept.popleft()
        if not kept:
            self._seen.pop(target, None)
            return {"rps": 0.0, "errors": 0.0, "p95": 0.0}
        stats = [stat for _, stat in kept]
        requests = sum(s.requests for s in stats)
        # A weighted mean of p95s is no p95; the largest recent one errs on the honest side.
        return {
            "rps": requests / _WINDOW,
            "errors": sum(s.errors for s in stats) / requests if requests else 0.0,
            "p95": max(s.p95 for s in stats),
        }
