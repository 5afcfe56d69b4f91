"""Serves the API with uvicorn over TLS on a socket that the caller opened.

uvicorn's own signal handling stays out: the supervisor decides when to stop. Watches and followed
logs are ended first, so that stopping does not wait for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from kserve_local.apiserver.protocol import BoundedHttp
from kserve_local.apiserver.watch import OpenStreams
from kserve_local.errors import ServiceUnavailable

_GRACE = 2


class _Server(uvicorn.Server):
    """A uvicorn server without signal handlers, that says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()
        self.ending = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    async def main_loop(self) -> None:
        # uvicorn's own wakes ten times a second, for headers and limits that are not in use here.
        await self.ending.wait()


@asynccontextmanager
async def serving(
    app: ASGIApp,
    sock: socket.socket,
    *,
    certificate: Path,
    key: Path,
    streams: OpenStreams,
) -> AsyncIterator[None]:
    """Serve while the block is open; then end open streams and let running requests finish.

    Args:
        sock: A bound TCP socket; closed at the end.
        certificate / key: PEM files; see `supervisor.certificates`.
        streams: The one that `create_app` got.

    Raises:
        ServiceUnavailable: The server did not start.
    """
    config = uvicorn.Config(
        app,
        http=BoundedHttp,
        ssl_certfile=certificate,
        ssl_keyfile=key,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        ws="none",
        timeout_keep_alive=120,
        timeout_graceful_shutdown=_GRACE,
    )
    # asyncio sets this itself only on sockets made with an explicit protocol number; accepted
    # sockets inherit it. Without it an answer's second packet waits 40 ms for an ACK.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[sock]), name="api-server")
    listening = asyncio.create_task(server.listening.wait(), name="api-server-listening")
    try:
        await asyncio.wait((task, listening), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            raise ServiceUnavailable("the API server did not start") from task.exception()
        yield
    finally:
        listening.cancel()
        streams.close()
        server.should_exit = True
        server.ending.set()
        await asyncio.gather(task, return_exceptions=True)
        sock.close()
