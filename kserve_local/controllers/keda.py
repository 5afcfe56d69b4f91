"""ScaledObject -> the HorizontalPodAutoscaler that KEDA would make of it, and its status.

Reads ScaledObjects, writes the HPA `keda-hpa-<name>` and the status. Only cpu and memory are
measured here: of a trigger that asks elsewhere (Prometheus, an external scaler) the status says
that nothing is asked. With cpu and memory alone KEDA never goes to zero, and neither does this.

Source: KEDA 2.18 (controllers/keda/hpa.go); traffic.md 5.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kserve_local.api.hpa import DEFAULT_BEHAVIOR
from kserve_local.api.meta import (
    Key,
    Object,
    labels_of,
    name_of,
    namespace_of,
    owner_reference,
    with_status,
)
from kserve_local.api.scheme import DEPLOYMENT, HORIZONTAL_POD_AUTOSCALER, SCALED_OBJECT
from kserve_local.controllers import standard_objects
from kserve_local.controllers.standard_apply import StandardObjects, StandardSettings
from kserve_local.reconcile.controller import Watch, controlling, itself
from kserve_local.reconcile.result import DONE, Result
from kserve_local.store.store import Store

MEASURED = ("cpu", "memory")


def hpa_of(scaled: Object) -> Object | None:
    """Return the HPA of a ScaledObject, None where nothing that it asks for is measured here."""
    spec: Mapping[str, Any] = scaled["spec"]
    metrics = [_metric(t) for t in spec.get("triggers") or () if t.get("type") in MEASURED]
    if not metrics:
        return None
    least = max(1, int(spec.get("minReplicaCount") or 0))
    most = spec.get("maxReplicaCount")
    advanced = (spec.get("advanced") or {}).get("horizontalPodAutoscalerConfig") or {}
    given = advanced.get("behavior") or {}
    behavior = {
        direction: {**DEFAULT_BEHAVIOR[direction], **(given.get(direction) or {})}
        for direction in ("scaleUp", "scaleDown")
    }
    metadata: dict[str, Any] = {
        "name": f"keda-hpa-{name_of(scaled)}",
        "namespace": namespace_of(scaled),
        "labels": {
            **labels_of(scaled),
            "app.kubernetes.io/managed-by": "keda-operator",
            "app.kubernetes.io/name": f"keda-hpa-{name_of(scaled)}",
            "app.kubernetes.io/part-of": name_of(scaled),
            "scaledobject.keda.sh/name": name_of(scaled),
        },
        "ownerReferences": [owner_reference(scaled)],
    }
    return standard_objects.hpa_object(
        metadata,
        str(spec["scaleTargetRef"]["name"]),
        least,
        max(least, 100 if most is None else int(most)),
        metrics,
        behavior,
    )


def _metric(trigger: Mapping[str, Any]) -> dict[str, Any]:
    value = str((trigger.get("metadata") or {}).get("value") or "0")
    target: dict[str, Any] = {"type": "AverageValue", "averageValue": value}
    if trigger.get("metricType", "Utilization") == "Utilization":
        target = {"type": "Utilization", "averageUtilization": int(value)}
    return {"type": "Resource", "resource": {"name": trigger["type"], "target": target}}


def status_of(scaled: Object, hpa: Object | None) -> dict[str, Any]:
    """Return the ScaledObject's status."""
    triggers = scaled["spec"].get("triggers") or ()
    kinds = [str(t.get("type") or "") for t in triggers]
    unasked = [kind for kind in kinds if kind not in MEASURED]
    said = f"kserve-local asks nothing of {', '.join(unasked)}, so they scale nothing"
    if not triggers:
        ready = ("False", "ScaledObjectCheckFailed", "no triggers defined in the ScaledObject")
    elif hpa is None:
        ready = ("False", "NotImplemented", said)
    else:
        text = "ScaledObject is defined correctly and is ready for scaling"
        ready = ("True", "ScaledObjectReady", f"{text}; {said}" if unasked else text)
    active = ("True", "ScalerActive", "Scaling is performed because triggers are active")
    if hpa is None:
        text = "Scaling is not performed because triggers are not active"
        active = ("False", "ScalerNotActive", text)
    told = (
        ("Ready", *ready),
        ("Active", *active),
        ("Fallback", "False", "NoFallbackFound", "No fallbacks are active on this scaled object"),
        ("Paused", "Unknown", "", ""),
    )
    status: dict[str, Any] = {
        "scaleTargetKind": f"{DEPLOYMENT.api_version}.{DEPLOYMENT.kind}",
        "scaleTargetGVKR": {
            "group": DEPLOYMENT.group,
            "kind": DEPLOYMENT.kind,
            "resource": DEPLOYMENT.plural,
            "version": DEPLOYMENT.versions[0],
        },
        "triggersTypes": ",".join(kinds),
        "conditions": [_condition(*entry) for entry in told],
    }
    if hpa is not None:
        status["hpaName"] = name_of(hpa)
    return status


def _condition(type_: str, status: str, reason: str, message: str) -> dict[str, Any]:
    # KEDA's conditions have no times.
    condition = {"type": type_, "status": status}
    if reason:
        condition |= {"reason": reason, "message": message}
    return condition


class KEDAController:
    """Writes the HPA of a ScaledObject."""

    name = "keda"

    def __init__(self, store: Store) -> None:
        self._store = store
        self._objects = StandardObjects(store, StandardSettings())
        self.watches = (
            Watch(SCALED_OBJECT.id, itself),
            Watch(HORIZONTAL_POD_AUTOSCALER.id, controlling(SCALED_OBJECT.id)),
        )

    async def reconcile(self, key: Key) -> Result:
        """Bring the HPA to what the triggers ask for."""
        scaled = self._store.find(key)
        if scaled is None or scaled["metadata"].get("deletionTimestamp"):
            return DONE
        wanted = hpa_of(scaled)
        if wanted is not None:
            await self._objects.put(wanted)
        else:
            await self._objects.remove_owned(scaled, (HORIZONTAL_POD_AUTOSCALER.id,))
        status = status_of(scaled, wanted)
        if status != scaled.get("status"):
            await self._store.update_status(with_status(scaled, status))
        return DONE
