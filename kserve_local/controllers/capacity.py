"""Whether this machine is large enough for a Pod at all, in the scheduler's words. Pure.

Only the Pod's own requests count, against the whole machine: what other Pods have requested keeps
none away, for a laptop runs more than its requests add up to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from kserve_local.api import quantity
from kserve_local.api.meta import Object
from kserve_local.controllers.environment import NodeFacts


def requested(pod: Object, resource: str) -> Decimal:
    """Return what the Pod requests of `cpu` or `memory`, in cores or bytes; limits do not count.

    Source: the scheduler's rule, the larger of all containers together and each init container.
    """
    spec = pod.get("spec") or {}
    together = sum(_requests(spec.get("containers") or (), resource), Decimal(0))
    return max([together, *_requests(spec.get("initContainers") or (), resource)])


def _requests(containers: Sequence[Mapping[str, Any]], resource: str) -> list[Decimal]:
    given = [((c.get("resources") or {}).get("requests") or {}).get(resource) for c in containers]
    return [Decimal(quantity.parse(value)) for value in given if value is not None]


def refusal(pod: Object, node: NodeFacts) -> str:
    """Return why the Pod cannot be placed, empty if it can, or if the node's size is unknown."""
    has = {"cpu": Decimal(str(node.cpu)), "memory": Decimal(node.memory_bytes)}
    short = [name for name, size in has.items() if size > 0 and requested(pod, name) > size]
    if not short:
        return ""
    reasons = ", ".join(f"1 Insufficient {name}" for name in short)
    sizes = {"cpu": f"{node.cpu:g} cores", "memory": f"{node.memory_bytes / 2**30:.1f} Gi"}
    return (
        f"0/1 nodes are available: {reasons}.\nNext step: this machine has "
        f"{' and '.join(sizes[name] for name in short)}; lower "
        f"{' and '.join(f'resources.requests.{name}' for name in short)}"
    )
