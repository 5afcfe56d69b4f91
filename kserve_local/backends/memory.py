"""Memory limits without a container: measure, and say when it is too much.

RSS counts shared pages once per process, so it is never less than the PSS that the limit is about:
while RSS is below the limit nothing else need be read. The nearer it is, the more often it is read,
ten times a second at most; a process far from its limit costs a few small reads every other second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kserve_local.backends import processes, rhythm

_FASTEST = 0.1
_SLOWEST = 2.0
# About what one thread can fill in fresh pages.
_BYTES_PER_SECOND = 1 << 30


def next_look(used: int, limit: int) -> float:
    """Return seconds until usage should be read again, by the distance to the limit."""
    return min(_SLOWEST, max(_FASTEST, (limit - used) / _BYTES_PER_SECOND))


async def watch(pid: int, limit: int, exceeded: Callable[[int], None]) -> None:
    """Call `exceeded` with the bytes in use, once, when `pid` and its descendants pass `limit`."""
    loop = asyncio.get_running_loop()
    pids: list[int] = []
    known = b""
    while True:
        newest = processes.newest()
        if not newest or newest != known:
            pids, known = processes.descendants(pid), newest
        used = processes.rss(pids)
        if used > limit:
            # Walking page tables of gigabytes takes a while; not on the event loop.
            used = await asyncio.to_thread(processes.pss, pids)
            if used > limit:
                exceeded(used)
                return
        await asyncio.sleep(rhythm.together(next_look(used, limit), loop.time()))
