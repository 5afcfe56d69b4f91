"""Canaries of Standard mode (`spec.canary[]`): their predictors, replicas and shares. Pure.

Copies KServe v0.20 (components/predictor.go; control-plane.md 6.2).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kserve_local.api import names
from kserve_local.api.meta import Object, name_of

_FIXED = ("maxReplicas", "scaleTarget", "scaleMetric", "autoScaling")


@dataclass(frozen=True, slots=True)
class Canary:
    """One entry of `spec.canary`.

    Args:
        name: `predictor.name`.
        workload: Its Deployment and Service.
    """

    name: str
    workload: str
    percent: int
    replicas: int


def canaries_of(isvc: Object) -> list[Canary]:
    """Return the canaries of a service."""
    return [_canary(isvc, entry) for entry in isvc["spec"].get("canary") or ()]


def _canary(isvc: Object, entry: Mapping[str, Any]) -> Canary:
    predictor: Mapping[str, Any] = entry.get("predictor") or {}
    name = str(predictor.get("name") or "")
    percent = int(entry.get("trafficPercent") or 0)
    own = predictor.get("minReplicas")
    stable = isvc["spec"]["predictor"].get("minReplicas")
    share = math.ceil((1 if stable is None else int(stable)) * percent / 100)
    return Canary(
        name=name,
        workload=names.predictor_name(name_of(isvc), name),
        percent=percent,
        replicas=share if own is None else int(own),
    )


def with_canary(isvc: Object, entry: Mapping[str, Any]) -> Object:
    """Return the service with the canary's predictor in the place of the stable one.

    The stable predictor with every field over it that the canary gives; its number of replicas is
    fixed.
    """
    spec: Mapping[str, Any] = isvc["spec"]
    merged = _merged(spec["predictor"], entry.get("predictor") or {})
    predictor = {k: v for k, v in merged.items() if k not in _FIXED}
    predictor["minReplicas"] = _canary(isvc, entry).replicas
    return {**isvc, "spec": {**spec, "predictor": predictor}}


def _merged(stable: Mapping[str, Any], canary: Mapping[str, Any]) -> dict[str, Any]:
    """Return `stable` with what `canary` gives over it: objects by field, everything else whole.

    An empty value gives nothing.
    """
    result = copy.deepcopy(dict(stable))
    for key, value in canary.items():
        if isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = _merged(result[key], value)
        elif value not in (None, "", 0, False, [], {}):
            result[key] = copy.deepcopy(value)
    return result


def stable_minimum(isvc: Object, ready: Collection[str]) -> int | None:
    """Return the stable predictor's minReplicas: less those of ready canaries, never below 1.

    Args:
        ready: Names of the canaries that are ready.

    Returns:
        None where the predictor gives none.
    """
    least = isvc["spec"]["predictor"].get("minReplicas")
    if least is None:
        return None
    taken = sum(c.replicas for c in canaries_of(isvc) if c.name in ready)
    return max(int(least) - taken, 1) if taken else int(least)


def shares(isvc: Object, ready: Collection[str]) -> list[tuple[str, int]]:
    """Return workload and percent of each canary that takes requests."""
    return [(c.workload, c.percent) for c in canaries_of(isvc) if c.name in ready]


def statuses(canaries: Sequence[Canary], ready: Collection[str]) -> list[dict[str, Any]]:
    """Return `status.canaryStatuses`."""
    return [
        {
            "name": c.name,
            "ready": c.name in ready,
            "trafficPercent": c.percent,
            "modelStatus": {"transitionStatus": ""},
        }
        for c in canaries
    ]
