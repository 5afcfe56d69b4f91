"""What the dev loop did, newest last, and what it still waits for."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import Any

logger = logging.getLogger(__name__)

_KEPT = 200


class Activity:
    """The last things done; `status` and the dashboard show them."""

    def __init__(self) -> None:
        self.replacing: set[int] = set()
        """Numbers of the saves whose new replicas do not serve yet, and have not failed."""
        self._done: deque[dict[str, Any]] = deque(maxlen=_KEPT)
        self._sequence = 0
        self._news = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def add(
        self,
        what: str,
        text: str,
        *,
        services: Sequence[tuple[str, str]] = (),
        ms: int | None = None,
        details: Sequence[Any] = (),
    ) -> None:
        """Record one thing.

        Args:
            what: `swapped`, `replacing`, `replaced`, `refused`, `applied`, `deleted`, `answers`.
            ms: From the save, or its notice, until it was live.
        """
        self._sequence += 1
        took = "" if ms is None else f" ({ms} ms)"
        logger.info("%s: %s%s", what, text, took)
        self._done.append(
            {
                "seq": self._sequence,
                "ts": time.time(),
                "what": what,
                "message": text,
                "ms": ms,
                "services": [{"namespace": n, "name": s} for n, s in services],
                "details": list(details),
            }
        )
        self._news.set()
        self._news = asyncio.Event()

    async def wait(self, sequence: int, *, patience: float) -> None:
        """Return once something was done after that number, or `patience` seconds have passed."""
        if self._sequence > sequence:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._news.wait()

    def since(self, sequence: int) -> list[dict[str, Any]]:
        """Return what was done after that number, as far as it is kept."""
        return [entry for entry in self._done if entry["seq"] > sequence]

    def follow(self, work: Coroutine[object, object, None], *, name: str) -> None:
        """Run `work` beside the loop, until `close`."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("%s failed", task.get_name(), exc_info=error)

    async def close(self) -> None:
        """End what is still followed."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
