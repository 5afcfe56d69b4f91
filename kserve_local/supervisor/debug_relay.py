"""Between an IDE and the debugger in a replica: passes bytes on unchanged, and tells who stands.

One IDE at a time. The replica is looked for when an IDE comes, so one that was replaced since is
found; when either side leaves, the other is left, too, and the replica runs on.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from kserve_local.errors import KServeLocalError
from kserve_local.supervisor.dap import DapReader

logger = logging.getLogger(__name__)

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Reach = Callable[[], AbstractAsyncContextManager[Streams]]
Tell = Callable[[str, str], Awaitable[None]]

_CHUNK = 65536


class Relay:
    """Listens for an IDE.

    Args:
        reach: Connects to the debugger of the replica while the block is open.
        tell: Called with each new state (`waiting`, `attached`, `stopped`, `running`, `failed`),
            and why, in order.
    """

    def __init__(self, listener: socket.socket, reach: Reach, tell: Tell) -> None:
        self._listener = listener
        self._reach = reach
        self._tell = tell
        self._busy = False
        self.port = int(listener.getsockname()[1])

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Take IDEs while the block is open; then hang up on whoever is there."""
        talks: set[asyncio.Task[None]] = set()

        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None  # it runs in one
            talks.add(task)
            try:
                await self._talk(reader, writer)
            except asyncio.CancelledError:
                # The end of `open`, which waits for us: to asyncio's server nothing went wrong.
                pass
            finally:
                talks.discard(task)

        server = await asyncio.start_server(accepted, sock=self._listener)
        try:
            yield
        finally:
            server.close()
            for talk in list(talks):
                talk.cancel()
            await asyncio.gather(*talks, return_exceptions=True)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._busy:
            logger.info("a second debugger was turned away: one is attached")
            writer.close()
            return
        self._busy = True
        try:
            async with self._reach() as (replica, to_replica):
                await self._both_ways(reader, writer, replica, to_replica)
        except KServeLocalError as error:
            logger.warning("a debugger could not be attached: %s", error)
            await self._tell("failed", str(error))
        except OSError as error:
            logger.info("the debugger's connection ended: %s", error)
        finally:
            self._busy = False
            writer.close()
            await self._tell("waiting", "")

    async def _both_ways(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        replica: asyncio.StreamReader,
        to_replica: asyncio.StreamWriter,
    ) -> None:
        """Pass bytes on until one side has no more."""
        ways = [
            asyncio.create_task(_pass(reader, to_replica), name="debugger-to-replica"),
            asyncio.create_task(self._listen(replica, writer), name="replica-to-debugger"),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            for ended in await asyncio.gather(*ways, return_exceptions=True):
                if isinstance(ended, Exception) and not isinstance(ended, OSError):
                    logger.error("the relay of a debugger failed", exc_info=ended)

    async def _listen(self, replica: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        messages = DapReader()
        while data := await replica.read(_CHUNK):
            for said in messages.feed(data):
                # Told before it is passed on: what stands does so before a person can see it.
                await self._tell(said, "")
            writer.write(data)
            await writer.drain()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()
