"""Scaling and rollout rules of an LLMInferenceService workload (decode or prefill).

Pure (pkg/apis/serving/v1alpha2/llm_inference_service_validation.go; llm.md 1.4).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from kserve_local.api.field_errors import FieldError, forbidden, invalid, required

_COST = re.compile(r"\d+(\.\d+)?")
_PERCENT = re.compile(r"[0-9]+%")
_PERCENT_TEXT = (
    "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%', or "
    "'93%', regex used for validation is '[0-9]+%')"
)

Spec = Mapping[str, Any]


def scaling(path: str, workload: Spec) -> list[FieldError]:
    """Return what is wrong with `scaling` of the workload at `path`."""
    value: Spec | None = workload.get("scaling")
    if value is None:
        return []
    where = f"{path}.scaling"
    errors: list[FieldError] = []
    if workload.get("replicas") is not None:
        errors.append(
            invalid(
                where,
                value,
                "scaling and replicas are mutually exclusive; use scaling for autoscaled "
                "deployments or replicas for static deployments",
            )
        )
    least, most = value.get("minReplicas"), int(value.get("maxReplicas") or 0)
    if least is not None and least > most:
        detail = f"minReplicas ({least}) cannot exceed maxReplicas ({most})"
        errors.append(invalid(f"{where}.minReplicas", least, detail))
    wva, keda = value.get("wva"), value.get("keda")
    if wva is not None and keda is not None:
        detail = "wva and keda are mutually exclusive; choose one scaling mechanism"
        return [*errors, invalid(where, value, detail)]
    if wva is not None:
        return errors + _wva(where, value, wva)
    if keda is not None:
        return errors + _direct_keda(where, value, keda)
    detail = "either wva or keda must be specified when scaling is configured"
    return [*errors, required(where, detail)]


def _wva(where: str, value: Spec, wva: Spec) -> list[FieldError]:
    path = f"{where}.wva"
    errors: list[FieldError] = []
    hpa, keda = wva.get("hpa"), wva.get("keda")
    if hpa is not None and keda is not None:
        detail = "hpa and keda are mutually exclusive; choose one actuator backend"
        errors.append(invalid(path, wva, detail))
    if hpa is None and keda is None:
        detail = "either hpa or keda must be specified as the actuator backend"
        errors.append(required(path, detail))
    cost = wva.get("variantCost")
    if cost and not _COST.fullmatch(cost):
        detail = 'variantCost must be a non-negative numeric string (e.g., "10", "10.0", "0.5")'
        errors.append(invalid(f"{path}.variantCost", cost, detail))
    if keda is not None:
        errors += _keda_advanced(f"{path}.keda", keda, modifiers_allowed=False)
        errors += _idle_replicas(where, f"{path}.keda", value, keda)
    return errors


def _direct_keda(where: str, value: Spec, keda: Spec) -> list[FieldError]:
    path = f"{where}.keda"
    errors: list[FieldError] = []
    if not keda.get("triggers"):
        detail = "at least one trigger is required when using direct KEDA scaling"
        errors.append(required(f"{path}.triggers", detail))
    errors += _keda_advanced(path, keda, modifiers_allowed=True)
    return errors + _idle_replicas(where, path, value, keda)


def _keda_advanced(path: str, keda: Spec, *, modifiers_allowed: bool) -> list[FieldError]:
    advanced: Spec = keda.get("advanced") or {}
    errors: list[FieldError] = []
    modifiers: Spec = advanced.get("scalingModifiers") or {}
    fields = ("formula", "target", "activationTarget", "metricType")
    if not modifiers_allowed and any(modifiers.get(field) for field in fields):
        errors.append(
            forbidden(
                f"{path}.advanced.scalingModifiers",
                "scalingModifiers must not be set; WVA controls the scaling metric formula and "
                "logic",
            )
        )
    if (advanced.get("horizontalPodAutoscalerConfig") or {}).get("name"):
        errors.append(
            forbidden(
                f"{path}.advanced.horizontalPodAutoscalerConfig.name",
                "horizontalPodAutoscalerConfig.name must not be set; the controller manages the "
                "HPA name",
            )
        )
    return errors


def _idle_replicas(where: str, path: str, value: Spec, keda: Spec) -> list[FieldError]:
    idle = keda.get("idleReplicaCount")
    least = value.get("minReplicas")
    if idle is None:
        return []
    if least is None:
        detail = (
            "minReplicas is required when idleReplicaCount is set; idleReplicaCount "
            f"({idle}) must be less than minReplicas"
        )
        return [required(f"{where}.minReplicas", detail)]
    if idle < least:
        return []
    detail = (
        f"idleReplicaCount ({idle}) must be less than minReplicas ({least}); idleReplicaCount "
        "defines the replica floor when no triggers are active"
    )
    return [invalid(f"{path}.idleReplicaCount", idle, detail)]


def consistency(decode: Spec, prefill: Spec | None) -> list[FieldError]:
    """Return what is wrong between decode's and prefill's scaling: they must use the same."""
    ours: Spec | None = decode.get("scaling")
    theirs: Spec | None = (prefill or {}).get("scaling")
    if ours is None or theirs is None:
        return []
    if (ours.get("keda") is None) != (theirs.get("keda") is None):
        modes = ["direct keda" if s.get("keda") is not None else "wva" for s in (ours, theirs)]
        detail = (
            f"decode and prefill must use the same scaling mode; decode uses {modes[0]} but "
            f"prefill uses {modes[1]}"
        )
        return [invalid("spec.prefill.scaling", theirs, detail)]
    wvas = [s.get("wva") for s in (ours, theirs)]
    if any(wva is None for wva in wvas):
        return []
    backends = ["hpa" if wva and wva.get("hpa") is not None else "keda" for wva in wvas]
    if backends[0] == backends[1]:
        return []
    detail = (
        f"decode and prefill must use the same actuator backend; decode uses {backends[0]} but "
        f"prefill uses {backends[1]} — mixing backends requires two separate metric pipelines and "
        "leads to independent, unsynchronised scaling decisions"
    )
    return [invalid("spec.prefill.scaling.wva", theirs.get("wva"), detail)]


def rollout(path: str, workload: Spec) -> list[FieldError]:
    """Return what is wrong with `rolloutStrategy` of the workload at `path`."""
    strategy: Spec | None = workload.get("rolloutStrategy")
    if strategy is None:
        return []
    where = f"{path}.rolloutStrategy"
    unavailable, surge = strategy.get("maxUnavailable"), strategy.get("maxSurge")
    errors = [
        *_int_or_percent(f"{where}.maxUnavailable", unavailable),
        *_int_or_percent(f"{where}.maxSurge", surge),
    ]
    if errors or unavailable is None:
        return errors
    none_down = _of_one(unavailable, math.floor) == 0
    if surge is not None and none_down and _of_one(surge, math.ceil) == 0:
        detail = (
            "maxUnavailable and maxSurge cannot both be zero; this would prevent any rolling "
            "update progress"
        )
        return [invalid(where, strategy, detail)]
    if workload.get("worker") is not None and surge is None and none_down:
        detail = (
            "maxSurge is required for multi-node workloads when maxUnavailable is 0, otherwise no "
            "rolling update progress is possible"
        )
        return [required(f"{where}.maxSurge", detail)]
    return []


def _int_or_percent(path: str, value: int | str | None) -> list[FieldError]:
    if isinstance(value, int):
        detail = "must be greater than or equal to 0"
        return [invalid(path, value, detail)] if value < 0 else []
    if value is None:
        return []
    if not _PERCENT.fullmatch(value):
        return [invalid(path, value, _PERCENT_TEXT)]
    if int(value[:-1]) > 100:
        return [invalid(path, value, "must not be greater than 100%")]
    return []


def _of_one(value: int | str, rounded: Any) -> int:
    """Return what the value means for one pod: itself, or a rounded percentage of 1."""
    return value if isinstance(value, int) else int(rounded(int(value[:-1]) / 100))
