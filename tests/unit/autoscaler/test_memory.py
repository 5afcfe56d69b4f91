"""What a Pod is expected to hold before anybody has measured it."""

from __future__ import annotations

from typing import Any

import pytest

from kserve_local.autoscaler.memory import said_to_need, service_of

MIB = 2**20


def pod(*resources: dict[str, Any]) -> dict[str, Any]:
    return {
        "metadata": {"name": "p", "namespace": "d", "labels": {}},
        "spec": {"containers": [{"name": str(n), "resources": r} for n, r in enumerate(resources)]},
    }


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ([{"requests": {"memory": "100Mi"}, "limits": {"memory": "1Gi"}}], 100 * MIB),
        ([{"limits": {"memory": "300Mi"}}], 300 * MIB),
        ([{"requests": {"memory": "100Mi"}}, {"limits": {"memory": "20Mi"}}], 120 * MIB),
        ([{"requests": {"cpu": "1"}}], 0),
        ([{}], 0),
    ],
)
def test_requests_count_then_limits(resources: list[dict[str, Any]], expected: int) -> None:
    assert said_to_need(pod(*resources)) == expected


def test_what_belongs_to_no_service_goes_by_its_own_name() -> None:
    labels = {"serving.kserve.io/inferenceservice": "iris"}
    of_service = {"metadata": {"name": "iris-x", "namespace": "d", "labels": labels}}
    assert (service_of(of_service), service_of(pod())) == ("d/iris", "d/p")
