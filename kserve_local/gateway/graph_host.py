"""Where the routers of graphs meet the rest of the gateway: steps that stay inside it.

A step whose host the table knows is one more client of this gateway, over a pair of sockets.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from kserve_local.gateway import errors
from kserve_local.gateway.graph_client import StepClient
from kserve_local.gateway.graph_server import GraphHost, pair
from kserve_local.gateway.http1 import ClientConnection
from kserve_local.gateway.proxy import Dataplane

# A connection of a Service's own, which needs no token; the Host of each request says the rest.
_INSIDE = b"step.invalid"


def graph_host(plane: Dataplane, admin: Callable[[bytes], errors.Answer | None]) -> GraphHost:
    """Return the host of all graphs that `plane` serves."""

    async def inside() -> socket.socket:
        near, far = pair()
        await asyncio.get_running_loop().create_unix_connection(
            lambda: ClientConnection(plane, admin, _INSIDE), sock=far
        )
        return near

    client = StepClient(knows=lambda host: host in plane.table.by_host, inside=inside)
    return GraphHost(client, point=lambda: int(plane.draw.random() * 100))
