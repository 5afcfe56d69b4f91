"""What a Pod's status says, for whoever shows it. Pure."""

from __future__ import annotations

from kserve_local.api.meta import Object

CREATING = "ContainerCreating"
"""Why a container waits that is being made."""


def preparation(pod: Object) -> str:
    """Return what a Pod that is being made waits for, e.g. an image that is built; else empty."""
    for container in (pod.get("status") or {}).get("containerStatuses") or ():
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") == CREATING and waiting.get("message"):
            return str(waiting["message"])
    return ""
