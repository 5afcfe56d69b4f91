"""A workload of Standard mode: Deployment, Service, and what scales it. Pure.

What one component of an InferenceService, a canary, or an InferenceGraph's router consists of.
Copies KServe v0.20 (pkg/controller/v1beta1/inferenceservice/reconcilers/{deployment,service,hpa,
keda}; control-plane.md 2.7, 4.1, 6.3; traffic.md 5.1, 5.3), with the defaults that an API server
fills in, so that what is stored compares equal to what is wanted.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kserve_local.api import names
from kserve_local.api.config import InferenceServiceConfig
from kserve_local.api.hpa import DEFAULT_BEHAVIOR
from kserve_local.api.meta import Object, owner_reference
from kserve_local.api.scheme import (
    DEPLOYMENT,
    HORIZONTAL_POD_AUTOSCALER,
    SCALED_OBJECT,
    SERVICE,
)
from kserve_local.controllers.agent_injector import AGENT_PORT

HTTP_PORT = 80
CPU_UTILIZATION = 80
"""Percent of the requests, where a service says nothing else."""
H2C = "kubernetes.io/h2c"

HPA, KEDA, EXTERNAL, FIXED = "hpa", "keda", "external", "none"
"""Values of `serving.kserve.io/autoscalerClass`."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What a workload is made from.

    Args:
        owner: The InferenceService or InferenceGraph.
        name: Of all its objects.
        labels, annotations: Of all its objects, and of the Pods.
        pod: PodSpec before defaults.
        component: Its scaling fields, `deploymentStrategy`, `logger` and `batcher`.
    """

    owner: Object
    name: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    pod: Mapping[str, Any]
    component: Mapping[str, Any]

    @property
    def autoscaler(self) -> str:
        """The autoscaler class."""
        return self.annotations.get(names.AUTOSCALER_CLASS) or HPA

    @property
    def app(self) -> str:
        """Value of the label `app`, by which Deployment and Service find the Pods."""
        return app_of(self.name)

    def metadata(self) -> dict[str, Any]:
        """Return the metadata that all its objects have."""
        owner = self.owner["metadata"]
        metadata: dict[str, Any] = {
            "name": self.name,
            "namespace": owner["namespace"],
            "labels": {**self.labels, names.APP_LABEL: self.app},
            "ownerReferences": [owner_reference(self.owner)],
        }
        if self.annotations:
            metadata["annotations"] = dict(self.annotations)
        return metadata


def app_of(name: str) -> str:
    """Return the label `app` of a workload's Pods."""
    return f"isvc.{name}"


def workload_of(app: str) -> str:
    """Return the workload that a Pod's label `app` names, empty if none of Standard mode's."""
    return app.removeprefix("isvc.") if app.startswith("isvc.") else ""


def deployment(
    workload: Workload, config: InferenceServiceConfig, *, progress_deadline: float
) -> Object:
    """Return the Deployment. `spec.replicas` is only there for class `none`."""
    metadata = workload.metadata()
    template = {k: metadata[k] for k in ("labels", "annotations") if k in metadata}
    spec: dict[str, Any] = {
        "selector": {"matchLabels": {names.APP_LABEL: workload.app}},
        "strategy": _strategy(workload.component, config),
        "revisionHistoryLimit": 10,
        "progressDeadlineSeconds": max(1, int(progress_deadline)),
        "template": {"metadata": copy.deepcopy(template), "spec": pod_spec(workload.pod)},
    }
    least = workload.component.get("minReplicas")
    if workload.autoscaler == FIXED and least is not None:
        spec["replicas"] = int(least)
    return {
        "apiVersion": DEPLOYMENT.api_version,
        "kind": DEPLOYMENT.kind,
        "metadata": metadata,
        "spec": spec,
    }


def _strategy(component: Mapping[str, Any], config: InferenceServiceConfig) -> dict[str, Any]:
    """Return the rollout strategy: the component's, else the ConfigMap's, else 25 % and 25 %."""
    usual = {"maxSurge": "25%", "maxUnavailable": "25%"}
    given = component.get("deploymentStrategy")
    if given is not None:
        kind = given.get("type") or "RollingUpdate"
        if kind != "RollingUpdate":
            return {"type": kind}
        return {"type": kind, "rollingUpdate": {**usual, **(given.get("rollingUpdate") or {})}}
    if config.default_deployment_mode == names.STANDARD_MODE:
        usual["maxSurge"] = config.max_surge or usual["maxSurge"]
        usual["maxUnavailable"] = config.max_unavailable or usual["maxUnavailable"]
    return {"type": "RollingUpdate", "rollingUpdate": usual}


def pod_spec(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a PodSpec with KServe's defaults: a TCP readiness probe on the first port, else 8080,
    for the containers that serve.
    """
    spec = copy.deepcopy(dict(given))
    for field, value in (
        ("dnsPolicy", "ClusterFirst"),
        ("restartPolicy", "Always"),
        ("terminationGracePeriodSeconds", 30),
        ("securityContext", {}),
        ("schedulerName", "default-scheduler"),
    ):
        if spec.get(field) in (None, ""):
            spec[field] = value
    for container in spec["containers"]:
        container.setdefault("terminationMessagePath", "/dev/termination-log")
        container.setdefault("terminationMessagePolicy", "File")
        container.setdefault("imagePullPolicy", "IfNotPresent")
        serves = container["name"] in (names.PREDICTOR_CONTAINER, names.TRANSFORMER_CONTAINER)
        if serves and container.get("readinessProbe") is None:
            ports = container.get("ports") or ({"containerPort": names.DEFAULT_PORT},)
            container["readinessProbe"] = {
                "tcpSocket": {"port": ports[0]["containerPort"]},
                "timeoutSeconds": 1,
                "periodSeconds": 10,
                "successThreshold": 1,
                "failureThreshold": 3,
            }
    return spec


def service(workload: Workload, *, cluster_ip: str) -> Object:
    """Return the Service.

    Args:
        cluster_ip: Its address; `None` makes it headless.
    """
    ports = service_ports(workload.name, workload.pod["containers"])
    agent = workload.component.get("logger") is not None
    if agent or workload.component.get("batcher") is not None:
        ports[0]["targetPort"] = AGENT_PORT
    return {
        "apiVersion": SERVICE.api_version,
        "kind": SERVICE.kind,
        "metadata": workload.metadata(),
        "spec": {
            "type": "ClusterIP",
            "clusterIP": cluster_ip,
            "sessionAffinity": "None",
            "selector": {names.APP_LABEL: workload.app},
            "ports": ports,
        },
    }


def service_ports(name: str, containers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the ports of a Service: the first of the container that answers becomes 80."""
    answers = next((c for c in containers if c["name"] == names.TRANSFORMER_CONTAINER), None)
    found = (answers or containers[0]).get("ports") or ()
    if not found:
        target = names.DEFAULT_PORT
        return [{"name": name, "port": HTTP_PORT, "targetPort": target, "protocol": "TCP"}]
    ports = []
    for number, given in enumerate(found):
        target = int(given["containerPort"])
        port: dict[str, Any] = {
            "port": target if number else HTTP_PORT,
            "targetPort": target,
            "protocol": given.get("protocol") or "TCP",
        }
        if given.get("name"):
            port["name"] = given["name"]
        if is_grpc(str(given.get("name") or "")):
            port["appProtocol"] = H2C
        ports.append(port)
    return ports


def is_grpc(port_name: str) -> bool:
    """Whether KServe takes a port for gRPC's, by its name."""
    return "grpc" in port_name or "h2c" in port_name


def bounds(component: Mapping[str, Any]) -> tuple[int, int]:
    """Return the least and the most replicas of an HPA: never below one, never most below least."""
    least = max(1, int(component.get("minReplicas") or 0))
    return least, max(least, int(component.get("maxReplicas") or 0))


def hpa(workload: Workload) -> Object:
    """Return the HorizontalPodAutoscaler.

    `autoScaling.behavior` is not in it: KServe hands an empty one on, of which the API server makes
    its defaults.
    """
    least, most = bounds(workload.component)
    metrics = _hpa_metrics(workload.component) or [_utilization("cpu", CPU_UTILIZATION)]
    return hpa_object(
        workload.metadata(), workload.name, least, most, metrics, copy.deepcopy(DEFAULT_BEHAVIOR)
    )


def hpa_object(
    metadata: dict[str, Any],
    target: str,
    least: int,
    most: int,
    metrics: Sequence[Mapping[str, Any]],
    behavior: Mapping[str, Any],
) -> Object:
    """Return an HPA of the Deployment `target`."""
    return {
        "apiVersion": HORIZONTAL_POD_AUTOSCALER.api_version,
        "kind": HORIZONTAL_POD_AUTOSCALER.kind,
        "metadata": metadata,
        "spec": {
            "scaleTargetRef": {
                "apiVersion": DEPLOYMENT.api_version,
                "kind": DEPLOYMENT.kind,
                "name": target,
            },
            "minReplicas": least,
            "maxReplicas": most,
            "metrics": list(metrics),
            "behavior": dict(behavior),
        },
    }


def _hpa_metrics(component: Mapping[str, Any]) -> list[dict[str, Any]]:
    auto = component.get("autoScaling")
    if auto is not None:
        resources = [m.get("resource") or {} for m in auto.get("metrics") or ()]
        return [_of_resource(r) for r in resources if r.get("name") in ("cpu", "memory")]
    metric = component.get("scaleMetric") or "cpu"
    target = component.get("scaleTarget")
    if metric == "cpu":
        return [_utilization("cpu", CPU_UTILIZATION if target is None else int(target))]
    # Without a target there is no metric, of which the API server makes cpu 80.
    return [_utilization("memory", int(target))] if metric == "memory" and target else []


def _of_resource(resource: Mapping[str, Any]) -> dict[str, Any]:
    name = str(resource["name"])
    target: Mapping[str, Any] = resource.get("target") or {}
    percent = target.get("averageUtilization")
    if name == "cpu":
        return _utilization(name, CPU_UTILIZATION if percent is None else int(percent))
    if target.get("type") == "AverageValue":
        average = {"type": "AverageValue", "averageValue": str(target.get("averageValue") or "0")}
        return {"type": "Resource", "resource": {"name": name, "target": average}}
    return _utilization(name, int(percent or 0))


def _utilization(resource: str, percent: int) -> dict[str, Any]:
    target = {"type": "Utilization", "averageUtilization": percent}
    return {"type": "Resource", "resource": {"name": resource, "target": target}}


# KEDA


def scaled_object(workload: Workload, config: InferenceServiceConfig) -> Object:
    """Return KEDA's ScaledObject; it may go to zero."""
    component = workload.component
    least = component.get("minReplicas")
    least = 1 if least is None else int(least)
    spec: dict[str, Any] = {
        "scaleTargetRef": {"name": workload.name},
        "triggers": [
            _trigger(m, workload, config)
            for m in (component.get("autoScaling") or {}).get("metrics") or ()
        ],
        "minReplicaCount": least,
        "maxReplicaCount": max(least, int(component.get("maxReplicas") or 0)),
    }
    behavior = _windows(component, config)
    if behavior:
        spec["advanced"] = {"horizontalPodAutoscalerConfig": {"behavior": behavior}}
    return {
        "apiVersion": SCALED_OBJECT.api_version,
        "kind": SCALED_OBJECT.kind,
        "metadata": workload.metadata(),
        "spec": spec,
    }


def _windows(component: Mapping[str, Any], config: InferenceServiceConfig) -> dict[str, Any]:
    """Return the stabilization windows: all that is copied of `autoScaling.behavior`."""
    given = (component.get("autoScaling") or {}).get("behavior") or {}
    found = {}
    for direction, usual in (
        ("scaleDown", config.scale_down_window),
        ("scaleUp", config.scale_up_window),
    ):
        window = (given.get(direction) or {}).get("stabilizationWindowSeconds")
        if window is None and usual.isdigit():
            window = int(usual)
        if window is not None:
            found[direction] = {"stabilizationWindowSeconds": int(window)}
    return found


def _trigger(
    metric: Mapping[str, Any], workload: Workload, config: InferenceServiceConfig
) -> dict[str, Any]:
    match metric.get("type"):
        case "Resource":
            return _resource_trigger(metric.get("resource") or {})
        case "External":
            return _external_trigger(metric.get("external") or {})
        case _:
            return _pod_trigger(metric.get("podmetric") or {}, workload, config)


def _resource_trigger(resource: Mapping[str, Any]) -> dict[str, Any]:
    target: Mapping[str, Any] = resource.get("target") or {}
    kind = str(target.get("type") or "")
    field = {"Utilization": "averageUtilization", "AverageValue": "averageValue"}.get(kind, "value")
    value = target.get(field)
    if value is None and resource.get("name") == "cpu" and kind == "Utilization":
        value = CPU_UTILIZATION
    return {
        "type": str(resource.get("name") or ""),
        "metadata": {"value": str(0 if value is None else value)},
        "metricType": kind,
    }


def _external_trigger(external: Mapping[str, Any]) -> dict[str, Any]:
    metric: Mapping[str, Any] = external.get("metric") or {}
    value = (external.get("target") or {}).get("value")
    metadata = {
        "serverAddress": str(metric.get("serverAddress") or ""),
        "query": str(metric.get("query") or ""),
        "threshold": str(0 if value is None else value),
    }
    trigger: dict[str, Any] = {"type": str(metric.get("backend") or ""), "metadata": metadata}
    if trigger["type"] == "prometheus" and metric.get("namespace"):
        metadata["namespace"] = str(metric["namespace"])
    login: Mapping[str, Any] = external.get("authenticationRef") or {}
    if login.get("authModes"):
        metadata["authModes"] = str(login["authModes"])
    reference = login.get("authenticationRef") or {}
    if reference.get("name"):
        trigger["authenticationRef"] = {"name": str(reference["name"])}
    return trigger


def _pod_trigger(
    source: Mapping[str, Any], workload: Workload, config: InferenceServiceConfig
) -> dict[str, Any]:
    metric: Mapping[str, Any] = source.get("metric") or {}
    if metric.get("backend") != "opentelemetry":
        return {"type": "", "metadata": {}}
    value = (source.get("target") or {}).get("value")
    namespace = workload.owner["metadata"]["namespace"]
    query = (
        f'sum({metric.get("query") or ""}{{namespace="{namespace}", deployment="{workload.name}"}})'
    )
    metadata = {
        "metricQuery": query,
        "targetValue": str(0 if value is None else value),
        "scalerAddress": str(metric.get("serverAddress") or config.metric_scaler_endpoint),
    }
    if metric.get("operationOverTime"):
        metadata["operationOverTime"] = str(metric["operationOverTime"])
    return {"type": "external", "metadata": metadata}
