"""What a Pod's status says, for whoever shows it. Pure."""

from __future__ import annotations

from kserve_local.api.meta import Object, get_condition

CREATING = "ContainerCreating"
"""Why a container waits that is being made."""


WAITING_FOR_MEMORY = "WaitingForMemory"
"""Why a Pod is not scheduled that will be, once others have made room (`resourcesBudget`)."""


def preparation(pod: Object) -> str:
    """Return what a Pod that is being made waits for, e.g. an image that is built; else empty."""
    placed = get_condition(pod, "PodScheduled") or {}
    if placed.get("reason") == WAITING_FOR_MEMORY:
        return str(placed.get("message", ""))
    for container in (pod.get("status") or {}).get("containerStatuses") or ():
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") == CREATING and waiting.get("message"):
            return str(waiting["message"])
    return ""
