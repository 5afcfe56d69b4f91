"""What every backend keeps beside its replicas: tasks, events, a stop's deadline, logs in bounds.

Knows nothing of processes or containers.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from kserve_local.backends import output
from kserve_local.interfaces.backend import ReplicaEvent
from kserve_local.settings import Settings

log = logging.getLogger(__name__)

# Whole states travel in events, so dropping the oldest of too many loses nothing for good.
_MAX_EVENTS = 10_000
_LOG_CHECK = 2.0


class Tasks:
    """Background work of one backend; what fails is logged."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def own(self, work: Coroutine[object, object, None], name: str) -> asyncio.Task[None]:
        """Run `work` until it ends or `cancel` comes."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s failed", task.get_name(), exc_info=error)

    async def cancel(self) -> None:
        """End everything and wait for it."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Events:
    """Changes that wait for their one consumer, the oldest dropped when there are too many."""

    def __init__(self) -> None:
        self._waiting: deque[ReplicaEvent] = deque(maxlen=_MAX_EVENTS)
        self._news = asyncio.Event()
        self._closed = False

    def put(self, event: ReplicaEvent) -> None:
        """Add a change."""
        self._waiting.append(event)
        self._news.set()

    def close(self) -> None:
        """Let the consumer end once it has seen what waits."""
        self._closed = True
        self._news.set()

    async def read(self) -> AsyncIterator[ReplicaEvent]:
        """Yield changes until closed. See `Backend.events`."""
        while True:
            while self._waiting:
                yield self._waiting.popleft()
            if self._closed:
                return
            self._news.clear()
            await self._news.wait()


@dataclass
class Ending:
    """The stop of one replica: under way or not, and until when it may take."""

    deadline: float = 0.0
    task: asyncio.Task[None] | None = None
    _hurry: asyncio.Event = field(default_factory=asyncio.Event)

    def begin(self, grace: float, start: Callable[[], asyncio.Task[None]]) -> asyncio.Task[None]:
        """Begin the stop with `start`; one that is under way is shortened by less grace."""
        deadline = asyncio.get_running_loop().time() + grace
        if self.task is None:
            self.deadline = deadline
            self.task = start()
        elif deadline < self.deadline:
            self.deadline = deadline
            self._hurry.set()
        return self.task

    async def patience(self, gone: asyncio.Future[list[None]]) -> None:
        """Wait until all is gone or the deadline, which may come nearer, has passed."""
        loop = asyncio.get_running_loop()
        while not gone.done() and (left := self.deadline - loop.time()) > 0:
            self._hurry.clear()
            hurry = asyncio.ensure_future(self._hurry.wait())
            await asyncio.wait((gone, hurry), timeout=left, return_when="FIRST_COMPLETED")
            hurry.cancel()


async def rotate_logs(settings: Settings, paths: Callable[[], Iterable[Path]]) -> None:
    """Keep the logs below `log_max_bytes`, until cancelled."""
    limit, files = settings.log_max_bytes, settings.log_files
    folder = f"{settings.log_dir}{os.sep}"
    while True:
        await asyncio.sleep(_LOG_CHECK)
        for path in list(paths()):
            if not str(path).startswith(folder):
                continue  # a run file that is not ours: nothing of it is cut short
            try:
                if os.stat(path).st_size > limit:
                    await asyncio.to_thread(output.rotate, path, max_bytes=limit, files=files)
            except FileNotFoundError:
                continue
            except OSError:
                log.exception("cannot rotate %s", path)
