"""What every server does in a zygote before replicas are forked: import, and make first uses cheap.

A zygote sets OMP_NUM_THREADS, OPENBLAS_NUM_THREADS and MKL_NUM_THREADS to 1 before it imports
anything, calls a server's `warm()`, and forks. Afterwards the process has one thread, no event
loop and no open socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket

from modelserver import cli, serve
from modelserver.http import Server
from modelserver.oip import new_id


class _NoApp:
    def route(self, head: object) -> None:
        return None

    def handle(self, connection: object, head: object, body: bytes) -> None:
        raise NotImplementedError


def warm() -> None:
    """Import the server's parts and run an event loop with a listener once, then throw it away."""
    cli.make_parser("warm").parse_known_args([])
    new_id()
    with contextlib.suppress(ImportError):
        # Imports grpcio, which starts threads only once a server or a channel is made.
        import modelserver.grpc_server  # noqa: F401
    loop = serve._new_loop("auto")
    try:
        loop.run_until_complete(_listen(loop))
    finally:
        loop.close()
        asyncio.set_event_loop(None)


async def _listen(loop: asyncio.AbstractEventLoop) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = Server(_NoApp(), loop)
        listening = await loop.create_server(server.protocol, sock=listener)
        listening.close()
        await listening.wait_closed()
