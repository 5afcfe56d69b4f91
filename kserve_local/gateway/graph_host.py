"""Where the routers of graphs meet the rest of the gateway: steps that stay inside it."""

from __future__ import annotations

from collections.abc import Callable

from kserve_local.gateway import errors
from kserve_local.gateway.graph_client import StepClient
from kserve_local.gateway.graph_server import GraphHost
from kserve_local.gateway.inside import inside
from kserve_local.gateway.proxy import Dataplane


def graph_host(plane: Dataplane, admin: Callable[[bytes], errors.Answer | None]) -> GraphHost:
    """Return the host of all graphs that `plane` serves."""
    client = StepClient(knows=lambda host: host in plane.table.by_host, inside=inside(plane, admin))
    return GraphHost(
        client,
        point=lambda: int(plane.draw.random() * 100),
        hop=plane.traces.hop,
        failed=plane.failed,
    )
