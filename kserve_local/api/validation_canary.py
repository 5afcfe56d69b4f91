"""Validation of `spec.canary[]`, Standard mode's canaries.

Pure (inference_service_validation.go; control-plane.md 6.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kserve_local.api import inferenceservice as shape
from kserve_local.api import names, validation_component
from kserve_local.api.meta import Object, annotations_of
from kserve_local.errors import Forbidden

_FIXED = ("scaleTarget", "scaleMetric", "autoScaling")


def check(obj: Object) -> None:
    """Check all canaries of an InferenceService.

    Raises:
        Forbidden: The first rule that one of them breaks.
    """
    spec: Mapping[str, Any] = obj.get("spec") or {}
    canaries = spec.get("canary") or ()
    if not canaries:
        return
    stable: Mapping[str, Any] = spec.get("predictor") or {}
    if annotations_of(obj).get(names.DEPLOYMENT_MODE) != names.STANDARD_MODE:
        raise Forbidden("canary is only supported in Standard deployment mode")
    if stable.get("model") is None and shape.storage_uri(stable) is None:
        raise Forbidden(
            "canary requires a stable predictor with a model (multi-model serving is not "
            "supported with canary)"
        )
    seen: set[str] = set()
    for index, canary in enumerate(canaries):
        predictor: Mapping[str, Any] = canary.get("predictor") or {}
        name = predictor.get("name") or ""
        if not name:
            raise Forbidden(f"canary[{index}] predictor.name is required")
        if name in seen:
            raise Forbidden(f'canary predictor.name "{name}" is duplicated')
        seen.add(name)
        if name == (stable.get("name") or ""):
            raise Forbidden(f'canary predictor.name "{name}" conflicts with stable predictor name')
        _check_one(name, canary, predictor, stable)
    total = sum(int(canary.get("trafficPercent") or 0) for canary in canaries)
    if total > 100:
        raise Forbidden(f"sum of canary trafficPercent values ({total}) must be <= 100")


def _check_one(
    name: str,
    canary: Mapping[str, Any],
    predictor: Mapping[str, Any],
    stable: Mapping[str, Any],
) -> None:
    percent = int(canary.get("trafficPercent") or 0)
    if not 0 <= percent <= 100:
        raise Forbidden(f'canary "{name}" trafficPercent must be between 0 and 100, got {percent}')
    try:
        validation_component.check("predictor", predictor)
    except Forbidden as error:
        raise Forbidden(f'canary "{name}" predictor: {error}') from error
    if predictor.get("workerSpec") is not None:
        raise Forbidden(
            f'canary "{name}" must not set workerSpec (multi-node is not yet supported for canary)'
        )
    fixed = ["maxReplicas"] if (predictor.get("maxReplicas") or 0) > 0 else []
    fixed += [field for field in _FIXED if predictor.get(field) is not None]
    if fixed:
        raise Forbidden(f'canary "{name}" must not set {fixed[0]} (canary uses fixed replicas)')
    least = predictor.get("minReplicas")
    most = stable.get("minReplicas")
    most = 1 if most is None else most
    if least is not None and least > most:
        raise Forbidden(
            f'canary "{name}" minReplicas ({least}) must not exceed stable predictor minReplicas '
            f"({most})"
        )
