"""The tables of control-plane.md 2.7: which autoscaler's rules apply, and what they say."""

from __future__ import annotations

from typing import Any

import pytest

from kserve_local.api import validation_autoscaling
from kserve_local.errors import Forbidden

KPA: dict[str, str] = {}
KNATIVE_HPA = {"autoscaling.knative.dev/class": "hpa.autoscaling.knative.dev"}
STANDARD = {"serving.kserve.io/deploymentMode": "Standard"}
HPA = {**STANDARD, "serving.kserve.io/autoscalerClass": "hpa"}
KEDA = {**STANDARD, "serving.kserve.io/autoscalerClass": "keda"}


def metrics(*specs: dict[str, Any]) -> dict[str, Any]:
    return {"autoScaling": {"metrics": list(specs)}}


def resource(name: str, **target: Any) -> dict[str, Any]:
    return metrics({"type": "Resource", "resource": {"name": name, "target": target}})


def external(query: str = "sum(x)", **target: Any) -> dict[str, Any]:
    return metrics({"type": "External", "external": {"metric": {"query": query}, "target": target}})


PERCENT = "the target utilization percentage should be a [1-100] integer"
REFUSED: list[Any] = [
    (HPA, {"scaleMetric": "rps"}, "[rps] is not a supported metric"),
    (HPA, {"scaleTarget": 101}, PERCENT),
    (HPA, {"scaleMetric": "memory", "scaleTarget": 101}, PERCENT),
    (HPA, {"scaleTarget": 0}, PERCENT),
    (
        HPA,
        {"scaleMetric": "memory", "scaleTarget": 0},
        "the target memory should be greater than 1 MiB",
    ),
    (
        HPA,
        metrics({"type": "External"}),
        "invalid HPA metric source type with value [External],valid metric source types are "
        "Resource",
    ),
    (
        HPA,
        metrics({"type": "Resource"}),
        "metricSpec.Resource is not set for resource metric source type",
    ),
    (KNATIVE_HPA, {"scaleMetric": "concurrency"}, "[concurrency] is not a supported metric"),
    (
        KPA,
        {"deploymentStrategy": {}},
        "customizing deploymentStrategy is only supported for raw deployment mode",
    ),
    (KPA, {"scaleMetric": "cpu"}, "[cpu] is not a supported metric"),
    (
        KPA,
        {"scaleMetric": "rps", "scaleTarget": 0},
        "the target for rps should be greater than 1",
    ),
    (KEDA, {"scaleMetric": "cpu"}, "ScaleMetric is not supported for KEDA"),
    (
        KEDA,
        metrics({"type": "Resource"}),
        "metricSpec.Resource is not set for resource metric source type",
    ),
    (
        KEDA,
        resource("cpu", type="AverageValue"),
        "the cpu target value type should be Utilization",
    ),
    (
        KEDA,
        resource("memory", type="Value"),
        "the memory target value type should be AverageValue or Utilization",
    ),
    (
        KEDA,
        resource("memory", type="AverageValue", averageValue="500Ki"),
        "the memory target value should be greater than 1 MiB",
    ),
    (KEDA, resource("gpu", type="Utilization"), "resource type gpu is not supported"),
    (KEDA, resource("cpu", type="Utilization"), "the AverageUtilization type should be set"),
    (KEDA, resource("cpu", type="Utilization", averageUtilization=0), PERCENT),
    (
        KEDA,
        metrics({"type": "External"}),
        "metricSpec.External is not set for external metric source type",
    ),
    (
        KEDA,
        metrics({"type": "PodMetric"}),
        "metricSpec.PodMetric is not set for pod metric source type",
    ),
    (KEDA, external("", type="Value"), "the query should not be empty"),
    (
        KEDA,
        external(type="Value"),
        "the target threshold value should not be empty",
    ),
    (
        KEDA,
        external(type="AverageValue", value="1"),
        "the AverageValue type should be set",
    ),
    (
        KEDA,
        metrics({"type": "Pods"}),
        "unknown KEDA metric type with value [Pods].Valid types are Resource,External,PodMetric",
    ),
]


@pytest.mark.parametrize(("annotations", "component", "message"), REFUSED)
def test_refused(annotations: dict[str, str], component: dict[str, Any], message: str) -> None:
    """Word for word."""
    with pytest.raises(Forbidden) as caught:
        validation_autoscaling.check(component, annotations)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("annotations", "component"),
    [
        (STANDARD, {"scaleMetric": "rps", "scaleTarget": 0, "deploymentStrategy": {}}),
        (
            {**STANDARD, "serving.kserve.io/autoscalerClass": "external"},
            {"scaleMetric": "rps"},
        ),
        ({**STANDARD, "serving.kserve.io/autoscalerClass": "none"}, {"scaleMetric": "rps"}),
        (HPA, {"scaleMetric": "cpu", "scaleTarget": 80, "deploymentStrategy": {}}),
        (KPA, {"scaleMetric": "rps", "scaleTarget": 1}),
        (KPA, {"scaleTarget": 0}),
        (KEDA, resource("memory", type="AverageValue", averageValue="1Mi")),
        (KEDA, external(type="Value", value="10")),
    ],
)
def test_accepted(annotations: dict[str, str], component: dict[str, Any]) -> None:
    """Standard mode without an autoscaler class is not checked at all."""
    validation_autoscaling.check(component, annotations)
