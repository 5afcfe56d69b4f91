"""Deployment, Service, HPA and ScaledObject of a workload, as KServe writes them."""

from __future__ import annotations

from typing import Any

import pytest

from kserve_local.api import builtin
from kserve_local.api.config import InferenceServiceConfig, parse
from kserve_local.api.meta import Object
from kserve_local.controllers import keda, standard_objects
from kserve_local.controllers.standard_objects import Workload

CONFIG = parse(builtin.config_map())
CLASS = "serving.kserve.io/autoscalerClass"


def workload(
    *, annotations: dict[str, str] | None = None, containers: Any = None, **component: Any
) -> Workload:
    owner: Object = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "iris", "namespace": "default", "uid": "u"},
    }
    pod = {"containers": containers or [{"name": "kserve-container", "image": "i"}]}
    labels = {"serving.kserve.io/inferenceservice": "iris", "component": "predictor"}
    return Workload(owner, "iris-predictor", labels, annotations or {}, pod, component)


def deployment(made: Workload, config: InferenceServiceConfig = CONFIG) -> Object:
    return standard_objects.deployment(made, config, progress_deadline=600.0)


def test_a_deployment_finds_its_pods_by_the_app_label() -> None:
    made = deployment(workload())
    assert made["spec"]["selector"] == {"matchLabels": {"app": "isvc.iris-predictor"}}
    template = made["spec"]["template"]
    assert template["metadata"]["labels"] == {
        "serving.kserve.io/inferenceservice": "iris",
        "component": "predictor",
        "app": "isvc.iris-predictor",
    }
    (container,) = template["spec"]["containers"]
    assert container["readinessProbe"] == {
        "tcpSocket": {"port": 8080},
        "timeoutSeconds": 1,
        "periodSeconds": 10,
        "successThreshold": 1,
        "failureThreshold": 3,
    }
    assert template["spec"]["terminationGracePeriodSeconds"] == 30
    assert made["spec"]["progressDeadlineSeconds"] == 600


def test_the_probe_is_on_the_first_port_and_the_users_own_stays() -> None:
    ports = [{"containerPort": 5000, "name": "http1"}]
    named = {"name": "kserve-container", "image": "i", "ports": ports}
    other = {"name": "sidecar", "image": "s"}
    own = {"name": "transformer-container", "image": "t", "readinessProbe": {"exec": {}}}
    made = deployment(workload(containers=[named, other, own]))
    first, second, third = made["spec"]["template"]["spec"]["containers"]
    assert first["readinessProbe"]["tcpSocket"] == {"port": 5000}
    assert "readinessProbe" not in second
    assert third["readinessProbe"] == {"exec": {}}


ROLLOUT = {
    "defaultDeploymentMode": "Standard",
    "deploymentRolloutStrategy": {"defaultRollout": {"maxSurge": "1", "maxUnavailable": "0"}},
}


def configured(**deploy: Any) -> InferenceServiceConfig:
    import json

    return parse({"data": {"deploy": json.dumps(deploy)}})


@pytest.mark.parametrize(
    ("component", "config", "surge", "unavailable"),
    [
        ({}, CONFIG, "25%", "25%"),
        ({}, configured(**ROLLOUT), "1", "0"),
        ({}, configured(**{**ROLLOUT, "defaultDeploymentMode": "Knative"}), "25%", "25%"),
        (
            {"deploymentStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 2}}},
            configured(**ROLLOUT),
            2,
            "25%",
        ),
    ],
)
def test_whose_rollout_strategy_holds(
    component: Any, config: InferenceServiceConfig, surge: Any, unavailable: Any
) -> None:
    strategy = deployment(workload(**component), config)["spec"]["strategy"]
    assert strategy["rollingUpdate"] == {"maxSurge": surge, "maxUnavailable": unavailable}


def test_recreate_has_no_rolling_update() -> None:
    made = deployment(workload(deploymentStrategy={"type": "Recreate"}))
    assert made["spec"]["strategy"] == {"type": "Recreate"}


def test_only_class_none_writes_the_number_of_replicas() -> None:
    assert "replicas" not in deployment(workload(minReplicas=3))["spec"]
    fixed = workload(annotations={CLASS: "none"}, minReplicas=0)
    assert deployment(fixed)["spec"]["replicas"] == 0
    assert "replicas" not in deployment(workload(annotations={CLASS: "none"}))["spec"]


@pytest.mark.parametrize(
    ("containers", "component", "ports"),
    [
        (
            None,
            {},
            [{"name": "iris-predictor", "port": 80, "targetPort": 8080, "protocol": "TCP"}],
        ),
        (
            None,
            {"logger": {"mode": "all"}},
            [{"name": "iris-predictor", "port": 80, "targetPort": 9081, "protocol": "TCP"}],
        ),
        (
            [
                {
                    "name": "kserve-container",
                    "ports": [
                        {"containerPort": 8000, "name": "http1"},
                        {"containerPort": 9000, "name": "grpc-port"},
                    ],
                }
            ],
            {"batcher": {}},
            [
                {"name": "http1", "port": 80, "targetPort": 9081, "protocol": "TCP"},
                {
                    "name": "grpc-port",
                    "port": 9000,
                    "targetPort": 9000,
                    "protocol": "TCP",
                    "appProtocol": "kubernetes.io/h2c",
                },
            ],
        ),
        (
            [
                {"name": "kserve-container", "ports": [{"containerPort": 1}]},
                {"name": "transformer-container", "ports": [{"containerPort": 2}]},
            ],
            {},
            [{"port": 80, "targetPort": 2, "protocol": "TCP"}],
        ),
    ],
)
def test_the_ports_of_a_service(containers: Any, component: Any, ports: Any) -> None:
    made = standard_objects.service(
        workload(containers=containers, **component), cluster_ip="127.64.0.9"
    )
    assert made["spec"]["ports"] == ports
    assert made["spec"]["selector"] == {"app": "isvc.iris-predictor"}


@pytest.mark.parametrize(
    ("component", "bounds"),
    [
        ({}, (1, 1)),
        ({"minReplicas": 0}, (1, 1)),
        ({"minReplicas": 0, "maxReplicas": 3}, (1, 3)),
        ({"minReplicas": 2}, (2, 2)),
        ({"minReplicas": 2, "maxReplicas": 5}, (2, 5)),
    ],
)
def test_the_bounds_of_an_hpa(component: Any, bounds: tuple[int, int]) -> None:
    spec = standard_objects.hpa(workload(**component))["spec"]
    assert (spec["minReplicas"], spec["maxReplicas"]) == bounds
    assert spec["scaleTargetRef"] == {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "name": "iris-predictor",
    }


def target(name: str, kind: str, **value: Any) -> dict[str, Any]:
    return {"type": "Resource", "resource": {"name": name, "target": {"type": kind, **value}}}


CPU_80 = target("cpu", "Utilization", averageUtilization=80)


@pytest.mark.parametrize(
    ("component", "metrics"),
    [
        ({}, [CPU_80]),
        ({"scaleTarget": 60}, [target("cpu", "Utilization", averageUtilization=60)]),
        ({"scaleMetric": "memory"}, [CPU_80]),
        (
            {"scaleMetric": "memory", "scaleTarget": 70},
            [target("memory", "Utilization", averageUtilization=70)],
        ),
        (
            {
                "autoScaling": {
                    "metrics": [
                        target("cpu", "Utilization"),
                        target("memory", "AverageValue", averageValue="100Mi"),
                    ],
                    "behavior": {"scaleDown": {"stabilizationWindowSeconds": 1}},
                },
                "scaleTarget": 60,
            },
            [CPU_80, target("memory", "AverageValue", averageValue="100Mi")],
        ),
    ],
)
def test_the_metrics_of_an_hpa(component: Any, metrics: Any) -> None:
    spec = standard_objects.hpa(workload(**component))["spec"]
    assert spec["metrics"] == metrics
    assert "stabilizationWindowSeconds" not in spec["behavior"]["scaleDown"]


def external(**metric: Any) -> dict[str, Any]:
    found = {"backend": "prometheus", "serverAddress": "http://p", "query": "q", **metric}
    return {"type": "External", "external": {"metric": found, "target": {"value": "5.5"}}}


def test_a_scaled_object_has_keda_triggers() -> None:
    pod_metric = {
        "type": "PodMetric",
        "podmetric": {
            "metric": {"backend": "opentelemetry", "query": "vllm:num_requests_running"},
            "target": {"value": 4},
        },
    }
    behavior = {"scaleDown": {"stabilizationWindowSeconds": 5, "selectPolicy": "Min"}}
    metrics = [target("cpu", "Utilization"), external(namespace="n"), pod_metric]
    made = standard_objects.scaled_object(
        workload(minReplicas=0, autoScaling={"metrics": metrics, "behavior": behavior}), CONFIG
    )
    assert made["spec"] == {
        "scaleTargetRef": {"name": "iris-predictor"},
        "minReplicaCount": 0,
        "maxReplicaCount": 0,
        "triggers": [
            {"type": "cpu", "metadata": {"value": "80"}, "metricType": "Utilization"},
            {
                "type": "prometheus",
                "metadata": {
                    "serverAddress": "http://p",
                    "query": "q",
                    "threshold": "5.5",
                    "namespace": "n",
                },
            },
            {
                "type": "external",
                "metadata": {
                    "metricQuery": 'sum(vllm:num_requests_running{namespace="default", '
                    'deployment="iris-predictor"})',
                    "targetValue": "4",
                    "scalerAddress": "keda-otel-scaler.keda.svc:4318",
                },
            },
        ],
        "advanced": {
            "horizontalPodAutoscalerConfig": {
                "behavior": {
                    "scaleDown": {"stabilizationWindowSeconds": 5},
                    "scaleUp": {"stabilizationWindowSeconds": 0},
                }
            }
        },
    }


def test_what_keda_makes_of_it() -> None:
    metrics = [target("cpu", "Utilization", averageUtilization=50), external()]
    scaled = standard_objects.scaled_object(
        workload(maxReplicas=3, autoScaling={"metrics": metrics}), CONFIG
    )
    scaled["metadata"]["uid"] = "s"
    hpa = keda.hpa_of(scaled)
    assert hpa is not None
    assert hpa["metadata"]["name"] == "keda-hpa-iris-predictor"
    assert hpa["spec"]["metrics"] == [target("cpu", "Utilization", averageUtilization=50)]
    assert (hpa["spec"]["minReplicas"], hpa["spec"]["maxReplicas"]) == (1, 3)
    assert hpa["spec"]["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 300
    status = keda.status_of(scaled, hpa)
    (ready, *_) = status["conditions"]
    assert ready["status"] == "True"
    assert "asks nothing of prometheus" in ready["message"]


def test_a_scaled_object_of_outside_metrics_alone_is_not_ready() -> None:
    scaled = standard_objects.scaled_object(workload(autoScaling={"metrics": [external()]}), CONFIG)
    assert keda.hpa_of(scaled) is None
    (ready, *_) = keda.status_of(scaled, None)["conditions"]
    assert (ready["status"], ready["reason"]) == ("False", "NotImplemented")
    bare = standard_objects.scaled_object(workload(), CONFIG)
    (ready, *_) = keda.status_of(bare, None)["conditions"]
    assert ready["reason"] == "ScaledObjectCheckFailed"
