"""Where agents meet the rest of the gateway: events for its own services, and the built-in sink."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kserve_local.gateway import errors
from kserve_local.gateway.agent import AgentHost
from kserve_local.gateway.blobs import Store
from kserve_local.gateway.inside import inside
from kserve_local.gateway.logger import Delivery
from kserve_local.gateway.payload_file import PayloadFile
from kserve_local.gateway.proxy import Dataplane


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

    delivery = Delivery(
        knows=lambda host: host in plane.table.by_host,
        inside=inside(plane, admin),
        sink=PayloadFile(folder),
    )
    return AgentHost(delivery, store)
