"""Owned asyncio tasks, backoff and bounded waits. Knows nothing about serving."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager


@asynccontextmanager
async def running(work: Coroutine[object, object, None], *, name: str) -> AsyncIterator[None]:
    """Keep `work` running while the block is open, then cancel and await it.

    Raises:
        ExceptionGroup: `work` failed; the block is cancelled and the failure surfaces here.
    """
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(work, name=name)
        try:
            yield
        finally:
            task.cancel()


def backoff(attempt: int, *, first: float, cap: float, jitter: float = 0.0) -> float:
    """Return the wait in seconds before try `attempt` (0-based): `first * 2**attempt`, at most
    `cap`.

    `jitter` is the largest fraction added at random.
    """
    wait: float = min(cap, first * 2.0 ** min(attempt, 60))
    return wait * (1.0 + random.random() * jitter) if jitter else wait
