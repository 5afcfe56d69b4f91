"""Requests of the gateway to itself: steps of graphs and events that go to one of its own routes.

Each is one more client of the gateway, at the other end of a pipe, so that a service at zero is
woken and held for as for every other caller.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kserve_local.gateway import errors, pipe
from kserve_local.gateway.http1 import ClientConnection
from kserve_local.gateway.proxy import Dataplane

Inside = Callable[[asyncio.Protocol], asyncio.Transport]
"""Connects a protocol to the gateway and returns its transport."""

# Of no Service: such a connection needs no token, and the Host of each request says the rest.
_SERVICE = b"inside.invalid"


def inside(plane: Dataplane, admin: Callable[[bytes], errors.Answer | None]) -> Inside:
    """Return what connects to this gateway."""

    def connect(near: asyncio.Protocol) -> asyncio.Transport:
        return pipe.connect(near, ClientConnection(plane, admin, _SERVICE))

    return connect
