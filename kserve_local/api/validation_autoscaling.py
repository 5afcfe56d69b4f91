"""Validation of a component's autoscaling fields.

Pure. Which autoscaler's rules apply is decided by annotations alone, as upstream does; rules and
texts are control-plane.md 2.7 (inference_service_validation.go).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kserve_local.api import names, quantity
from kserve_local.errors import Forbidden

_MEBIBYTE = 1 << 20


def check(component: Mapping[str, Any], annotations: Mapping[str, str]) -> None:
    """Check the scaling fields of one component.

    Args:
        annotations: Of the InferenceService, deploymentMode already in its current spelling.

    Raises:
        Forbidden: The first rule that it breaks.
    """
    if annotations.get(names.DEPLOYMENT_MODE) == names.STANDARD_MODE:
        kind = annotations.get(names.AUTOSCALER_CLASS)
        if kind == "hpa":
            _check_hpa(component)
        elif kind == "keda":
            _check_keda(component)
    elif annotations.get(names.AUTOSCALING_CLASS) == names.HPA_CLASS:
        _check_hpa(component)
    else:
        _check_kpa(component)


def _check_kpa(component: Mapping[str, Any]) -> None:
    if component.get("deploymentStrategy") is not None:
        raise Forbidden("customizing deploymentStrategy is only supported for raw deployment mode")
    metric = component.get("scaleMetric") or "concurrency"
    if metric not in ("concurrency", "rps"):
        raise Forbidden(f"[{metric}] is not a supported metric")
    target = component.get("scaleTarget")
    if metric == "rps" and target is not None and target < 1:
        raise Forbidden("the target for rps should be greater than 1")


def _check_hpa(component: Mapping[str, Any]) -> None:
    metric = component.get("scaleMetric") or "cpu"
    if metric not in ("cpu", "memory"):
        raise Forbidden(f"[{metric}] is not a supported metric")
    target = component.get("scaleTarget")
    if target is not None:
        # Upper bound for every metric: upstream's condition binds that way.
        if target > 100 or (metric == "cpu" and target < 1):
            raise Forbidden("the target utilization percentage should be a [1-100] integer")
        if metric == "memory" and target < 1:
            raise Forbidden("the target memory should be greater than 1 MiB")
    for spec in _metrics(component):
        kind = spec.get("type") or ""
        if kind != "Resource":
            raise Forbidden(
                f"invalid HPA metric source type with value [{kind}],valid metric source types "
                "are Resource"
            )
        if spec.get("resource") is None:
            raise Forbidden("metricSpec.Resource is not set for resource metric source type")


def _check_keda(component: Mapping[str, Any]) -> None:
    if component.get("scaleMetric") is not None:
        raise Forbidden("ScaleMetric is not supported for KEDA")
    for spec in _metrics(component):
        kind = spec.get("type") or ""
        if kind == "Resource":
            _check_keda_resource(spec.get("resource"))
        elif kind == "External":
            _check_keda_query(spec.get("external"), "External", "external")
        elif kind == "PodMetric":
            _check_keda_query(spec.get("podmetric"), "PodMetric", "pod")
        else:
            raise Forbidden(
                f"unknown KEDA metric type with value [{kind}].Valid types are "
                "Resource,External,PodMetric"
            )


def _check_keda_resource(resource: Mapping[str, Any] | None) -> None:
    if resource is None:
        raise Forbidden("metricSpec.Resource is not set for resource metric source type")
    target: Mapping[str, Any] = resource.get("target") or {}
    kind = target.get("type")
    name = resource.get("name") or ""
    if name == "cpu":
        if kind != "Utilization":
            raise Forbidden("the cpu target value type should be Utilization")
    elif name == "memory":
        if kind not in ("AverageValue", "Utilization"):
            raise Forbidden("the memory target value type should be AverageValue or Utilization")
        value = target.get("averageValue")
        # A missing value counts as 0 upstream, so it is refused here and not below.
        if kind == "AverageValue" and (value is None or quantity.parse(value) < _MEBIBYTE):
            raise Forbidden("the memory target value should be greater than 1 MiB")
    else:
        raise Forbidden(f"resource type {name} is not supported")
    _check_target(target)


def _check_keda_query(source: Mapping[str, Any] | None, title: str, word: str) -> None:
    if source is None:
        raise Forbidden(f"metricSpec.{title} is not set for {word} metric source type")
    if not (source.get("metric") or {}).get("query"):
        raise Forbidden("the query should not be empty")
    target: Mapping[str, Any] = source.get("target") or {}
    if target.get("value") is None:
        raise Forbidden("the target threshold value should not be empty")
    _check_target(target)


def _check_target(target: Mapping[str, Any]) -> None:
    kind = target.get("type")
    if kind == "Utilization":
        utilization = target.get("averageUtilization")
        if utilization is None:
            raise Forbidden("the AverageUtilization type should be set")
        if not 1 <= utilization <= 100:
            raise Forbidden("the target utilization percentage should be a [1-100] integer")
    elif kind == "AverageValue" and target.get("averageValue") is None:
        raise Forbidden("the AverageValue type should be set")
    elif kind == "Value" and target.get("value") is None:
        raise Forbidden("the Value type should be set")


def _metrics(component: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list((component.get("autoScaling") or {}).get("metrics") or ())
