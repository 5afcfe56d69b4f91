"""What the specs of Deployments and Pods ask for. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from kserve_local.api import quantity
from kserve_local.api.meta import Object


def replicas_of(deployment: Object) -> int:
    """Return `spec.replicas`, 1 when not given."""
    given = deployment["spec"].get("replicas")
    return 1 if given is None else int(given)


def asked_of(container: Mapping[str, Any], resource: str) -> Decimal | None:
    """Return what a container requests of `cpu` or `memory`, in cores or bytes; None: nothing.

    A limit alone is a request of as much, by the API server's defaults.
    """
    resources: Mapping[str, Any] = container.get("resources") or {}
    for which in ("requests", "limits"):
        given = (resources.get(which) or {}).get(resource)
        if given is not None:
            return Decimal(quantity.parse(given))
    return None
