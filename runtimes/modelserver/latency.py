"""The per-request latency lines of `--enable_latency_logging`, cheap enough to leave on.

The wording is KServe's. Lines are collected and written a few times a second in one piece; beyond
a number per second only a count is written, where KServe writes every line.
"""

from __future__ import annotations

import asyncio
import logging

logger = logging.getLogger("kserve.trace")

INTERVAL = 0.2
MAX_LINES = 20

_Entry = tuple[str | None, float, float, float, float]


class LatencyLog:
    """Collects latencies (seconds) and logs them (milliseconds)."""

    __slots__ = ("_entries", "_loop", "_timer", "full", "more")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._entries: list[_Entry] = []
        # Once `full`, requests are only counted, in `more`, until the next flush.
        self.full = False
        self.more = 0
        self._timer: asyncio.TimerHandle | None = None

    def add(
        self,
        request_id: str | None,
        preprocess: float,
        explain: float,
        predict: float,
        postprocess: float,
    ) -> None:
        """Take one request's latencies."""
        self._entries.append((request_id, preprocess, explain, predict, postprocess))
        if self._timer is None:
            self._timer = self._loop.call_later(INTERVAL, self.flush)
        elif len(self._entries) == MAX_LINES:
            self.full = True

    def flush(self) -> None:
        """Write what was collected."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        entries, self._entries = self._entries, []
        more, self.more = self.more, 0
        self.full = False
        for request_id, preprocess, explain, predict, postprocess in entries:
            logger.info(
                "requestId: %s, preprocess_ms: %.9f, explain_ms: %.9f, predict_ms: %.9f, "
                "postprocess_ms: %.9f",
                request_id or "N.A.",
                preprocess * 1e3,
                explain * 1e3,
                predict * 1e3,
                postprocess * 1e3,
            )
        if more:
            logger.info("and %d more requests in %.1f s", more, INTERVAL)
