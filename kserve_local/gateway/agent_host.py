"""Where agents meet the rest of the gateway: events for its own services, and the built-in sink."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

from kserve_local.gateway import errors
from kserve_local.gateway.agent import AgentHost
from kserve_local.gateway.blobs import Store
from kserve_local.gateway.http1 import ClientConnection
from kserve_local.gateway.logger import Delivery
from kserve_local.gateway.payload_file import PayloadFile
from kserve_local.gateway.proxy import Dataplane

# A connection of a Service's own, which needs no token; the Host of each request says the rest.
_INSIDE = b"event.invalid"


def agent_host(
    plane: Dataplane,
    admin: Callable[[bytes], errors.Answer | None],
    *,
    folder: Path,
    store: Store,
) -> AgentHost:
    """Return the host of all agents that `plane` passes.

    Args:
        folder: Of the built-in sink.
        store: Takes objects for a bucket.
    """

    async def inside() -> socket.socket:
        near, far = socket.socketpair()
        near.setblocking(False)
        far.setblocking(False)
        await asyncio.get_running_loop().create_unix_connection(
            lambda: ClientConnection(plane, admin, _INSIDE), sock=far
        )
        return near

    delivery = Delivery(
        knows=lambda host: host in plane.table.by_host,
        inside=inside,
        sink=PayloadFile(folder),
    )
    return AgentHost(delivery, store)
