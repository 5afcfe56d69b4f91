"""`kubectl get` columns: objects -> `meta.k8s.io/v1 Table`. Pure.

Custom kinds have the `additionalPrinterColumns` of their CRDs (reference: KServe v0.20 and Knative
Serving CRDs), built-in kinds the columns of Kubernetes' own printers. A path with several matches
shows only the first, one without a match nothing, as upstream.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kserve_local.api import scheme
from kserve_local.api.meta import Object, get_condition, labels_of, name_of, parse_timestamp
from kserve_local.apiserver.durations import human

Cell = str | int | bool | None


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Args:
        cell: Object and time now -> what is shown.
        priority: 0: always, 1: only with `-o wide`.
    """

    name: str
    type: str
    cell: Callable[[Object, datetime], Cell]
    priority: int = 0
    format: str = ""


def table(
    resource: str,
    objects: Sequence[Object],
    *,
    include: str,
    resource_version: str,
    now: datetime,
    api_version: str,
) -> Object:
    """Return the Table of these objects.

    Args:
        include: `Metadata`, `Object` or `None`: what each row carries beside its cells.
        api_version: `apiVersion` of the objects as the request speaks it.
    """
    columns = COLUMNS.get(resource, _DEFAULT)
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {"resourceVersion": resource_version},
        "columnDefinitions": [
            {
                "name": column.name,
                "type": column.type,
                "format": column.format,
                "description": "",
                "priority": column.priority,
            }
            for column in columns
        ],
        "rows": [
            {
                "cells": [column.cell(obj, now) for column in columns],
                **_row_object(obj, include, api_version),
            }
            for obj in objects
        ],
    }


def _row_object(obj: Object, include: str, api_version: str) -> dict[str, Any]:
    if include == "None":
        return {}
    if include == "Object":
        return {"object": {**obj, "apiVersion": api_version}}
    return {
        "object": {
            "kind": "PartialObjectMetadata",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": obj["metadata"],
        }
    }


def age(text: object, now: datetime) -> str:
    """Return how long ago an RFC 3339 time was, `<unknown>` without one."""
    if not isinstance(text, str) or not text:
        return "<unknown>"
    return human((now - parse_timestamp(text)).total_seconds())


def _at(obj: Any, *path: str) -> Any:
    for step in path:
        obj = obj.get(step) if isinstance(obj, Mapping) else None
    return obj


def _text(*path: str) -> Callable[[Object, datetime], Cell]:
    def cell(obj: Object, now: datetime) -> Cell:
        value = _at(obj, *path)
        return value if isinstance(value, (str, int, bool)) else ""

    return cell


def _first(*path: str, field: str) -> Callable[[Object, datetime], Cell]:
    def cell(obj: Object, now: datetime) -> Cell:
        items = _at(obj, *path) or ()
        return next((str(i[field]) for i in items if isinstance(i, Mapping) and field in i), "")

    return cell


def _condition(type_: str, field: str) -> Callable[[Object, datetime], Cell]:
    return lambda obj, now: str((get_condition(obj, type_) or {}).get(field, ""))


def _traffic(field: str, match: str, value: object) -> Callable[[Object, datetime], Cell]:
    def cell(obj: Object, now: datetime) -> Cell:
        targets = _at(obj, "status", "components", "predictor", "traffic") or ()
        found: Mapping[str, Any] = next((t for t in targets if t.get(match) == value), {})
        shown = found.get(field)
        return shown if isinstance(shown, (str, int)) else None if field == "percent" else ""

    return cell


def _label(name: str) -> Callable[[Object, datetime], Cell]:
    return lambda obj, now: labels_of(obj).get(name, "")


def _name(obj: Object, now: datetime) -> Cell:
    return name_of(obj)


def _age(obj: Object, now: datetime) -> Cell:
    return age(obj["metadata"].get("creationTimestamp"), now)


_NAME = Column("Name", "string", _name, format="name")
_AGE = Column("Age", "string", _age)
_CR_AGE = Column("Age", "date", _age)
_DEFAULT = (_NAME, _CR_AGE)
_READY = Column("Ready", "string", _condition("Ready", "status"))
_REASON = Column("Reason", "string", _condition("Ready", "reason"))
_URL = Column("URL", "string", _text("status", "url"))


# -- pods -------------------------------------------------------------------------------------


def _statuses(pod: Object, field: str = "containerStatuses") -> list[Mapping[str, Any]]:
    return list(_at(pod, "status", field) or ())


def _pod_ready(pod: Object, now: datetime) -> Cell:
    total = len(_at(pod, "spec", "containers") or ())
    return f"{sum(bool(s.get('ready')) for s in _statuses(pod))}/{total}"


def pod_status(pod: Object) -> str:
    """Return kubectl's STATUS of a Pod: phase, or why a container waits or ended."""
    shown = str(_at(pod, "status", "reason") or _at(pod, "status", "phase") or "Unknown")
    inits = _statuses(pod, "initContainerStatuses")
    for index, status in enumerate(inits):
        ended, waiting = _at(status, "state", "terminated"), _at(status, "state", "waiting")
        if ended and not ended.get("exitCode"):
            continue
        if ended:
            shown = f"Init:{ended.get('reason') or 'ExitCode:' + str(ended.get('exitCode'))}"
        elif waiting and waiting.get("reason") not in (None, "", "PodInitializing"):
            shown = f"Init:{waiting['reason']}"
        else:
            shown = f"Init:{index}/{len(_at(pod, 'spec', 'initContainers') or inits)}"
        break
    else:
        running = False
        for status in reversed(_statuses(pod)):
            ended, waiting = _at(status, "state", "terminated"), _at(status, "state", "waiting")
            if waiting and waiting.get("reason"):
                shown = str(waiting["reason"])
            elif ended and ended.get("reason"):
                shown = str(ended["reason"])
            elif ended:
                shown = f"ExitCode:{ended.get('exitCode', 0)}"
            elif status.get("ready") and _at(status, "state", "running") is not None:
                running = True
        if shown == "Completed" and running:
            shown = (
                "Running"
                if (get_condition(pod, "Ready") or {}).get("status") == "True"
                else ("NotReady")
            )
    return "Terminating" if "deletionTimestamp" in pod["metadata"] else shown


def _pod_restarts(pod: Object, now: datetime) -> Cell:
    statuses = _statuses(pod)
    count = sum(int(s.get("restartCount") or 0) for s in statuses)
    last = max(
        (str(_at(s, "lastState", "terminated", "finishedAt") or "") for s in statuses), default=""
    )
    return f"{count} ({age(last, now)} ago)" if count and last else str(count)


def _or_none(*path: str) -> Callable[[Object, datetime], Cell]:
    return lambda obj, now: str(_at(obj, *path) or "<none>")


# -- other built-in kinds ---------------------------------------------------------------------


def _replicas(deployment: Object, now: datetime) -> Cell:
    wanted = _at(deployment, "spec", "replicas")
    return f"{_at(deployment, 'status', 'readyReplicas') or 0}/{1 if wanted is None else wanted}"


def _number(*path: str) -> Callable[[Object, datetime], Cell]:
    return lambda obj, now: int(_at(obj, *path) or 0)


def _containers(field: str) -> Callable[[Object, datetime], Cell]:
    def cell(obj: Object, now: datetime) -> Cell:
        containers = _at(obj, "spec", "template", "spec", "containers") or ()
        return ",".join(str(c.get(field, "")) for c in containers)

    return cell


def _selector(*path: str) -> Callable[[Object, datetime], Cell]:
    def cell(obj: Object, now: datetime) -> Cell:
        labels = _at(obj, *path) or {}
        return ",".join(f"{k}={v}" for k, v in sorted(labels.items())) or "<none>"

    return cell


def _ports(service: Object, now: datetime) -> Cell:
    ports = _at(service, "spec", "ports") or ()
    return ",".join(f"{p.get('port')}/{p.get('protocol', 'TCP')}" for p in ports) or "<none>"


def _external(service: Object, now: datetime) -> Cell:
    if _at(service, "spec", "type") == "ExternalName":
        return str(_at(service, "spec", "externalName") or "<none>")
    return ",".join(_at(service, "spec", "externalIPs") or ()) or "<none>"


def _size(field: str) -> Callable[[Object, datetime], Cell]:
    return lambda obj, now: len(obj.get(field) or ())


def _config_map_size(obj: Object, now: datetime) -> Cell:
    return len(obj.get("data") or ()) + len(obj.get("binaryData") or ())


def _event_seen(field: str) -> Callable[[Object, datetime], Cell]:
    return lambda obj, now: age(obj.get(field) or obj.get("eventTime"), now)


def _involved(event: Object, now: datetime) -> Cell:
    about = event.get("involvedObject") or {}
    return f"{str(about.get('kind', '')).lower()}/{about.get('name', '')}"


def _message(event: Object, now: datetime) -> Cell:
    return str(event.get("message") or "").strip()


def _node_roles(node: Object, now: datetime) -> Cell:
    prefix = "node-role.kubernetes.io/"
    roles = [k.removeprefix(prefix) for k in labels_of(node) if k.startswith(prefix)]
    return ",".join(sorted(roles)) or "<none>"


def _node_status(node: Object, now: datetime) -> Cell:
    ready = (get_condition(node, "Ready") or {}).get("status")
    return "Ready" if ready == "True" else "NotReady" if ready else "Unknown"


def _hpa_reference(hpa: Object, now: datetime) -> Cell:
    target = _at(hpa, "spec", "scaleTargetRef") or {}
    return f"{target.get('kind', '')}/{target.get('name', '')}"


def _hpa_targets(hpa: Object, now: datetime) -> Cell:
    """Return each metric as `cpu: 12%/80%`, `<unknown>` before it was measured."""
    current = {
        (m.get("resource") or {}).get("name"): (m.get("resource") or {}).get("current") or {}
        for m in _at(hpa, "status", "currentMetrics") or ()
    }
    shown = []
    for metric in _at(hpa, "spec", "metrics") or ():
        resource = metric.get("resource") or {}
        name, target = resource.get("name"), resource.get("target") or {}
        found = current.get(name, {})
        if target.get("averageUtilization") is not None:
            now_ = found.get("averageUtilization")
            text = "<unknown>" if now_ is None else f"{now_}%"
            shown.append(f"{name}: {text}/{target['averageUtilization']}%")
        else:
            shown.append(
                f"{name}: {found.get('averageValue') or '<unknown>'}/{target.get('averageValue')}"
            )
    return ", ".join(shown) or "<none>"


def _ingress_hosts(ingress: Object, now: datetime) -> Cell:
    hosts = [r["host"] for r in _at(ingress, "spec", "rules") or () if r.get("host")]
    more = f" + {len(hosts) - 3} more..." if len(hosts) > 3 else ""
    return (",".join(hosts[:3]) + more) or "*"


def _ingress_address(ingress: Object, now: datetime) -> Cell:
    points = _at(ingress, "status", "loadBalancer", "ingress") or ()
    return ",".join(p.get("ip") or p.get("hostname") or "" for p in points)


def _hostnames(route: Object, now: datetime) -> Cell:
    names = _at(route, "spec", "hostnames")
    return "" if names is None else json.dumps(names, separators=(",", ":"))


def _condition_status(type_: str) -> Callable[[Object, datetime], Cell]:
    return lambda obj, now: str((get_condition(obj, type_) or {}).get("status") or "")


COLUMNS: dict[str, tuple[Column, ...]] = {
    scheme.INFERENCE_SERVICE.id: (
        _NAME,
        _URL,
        _READY,
        Column("Prev", "integer", _traffic("percent", "tag", "prev")),
        Column("Latest", "integer", _traffic("percent", "latestRevision", True)),
        Column("PrevRolledoutRevision", "string", _traffic("revisionName", "tag", "prev")),
        Column("LatestReadyRevision", "string", _traffic("revisionName", "latestRevision", True)),
        _CR_AGE,
    ),
    scheme.INFERENCE_GRAPH.id: (_NAME, _URL, _READY, _CR_AGE),
    scheme.TRAINED_MODEL.id: (_NAME, _URL, _READY, _CR_AGE),
    scheme.LLM_INFERENCE_SERVICE.id: (
        _NAME,
        _URL,
        _READY,
        _REASON,
        _CR_AGE,
        Column("URLs", "string", _first("status", "addresses", field="url"), priority=1),
    ),
    scheme.LLM_INFERENCE_SERVICE_CONFIG.id: (_NAME, _READY, _REASON, _CR_AGE),
    scheme.KNATIVE_SERVICE.id: (
        _NAME,
        _URL,
        Column("LatestCreated", "string", _text("status", "latestCreatedRevisionName")),
        Column("LatestReady", "string", _text("status", "latestReadyRevisionName")),
        _READY,
        _REASON,
    ),
    scheme.REVISION.id: (
        _NAME,
        Column("Config Name", "string", _label("serving.knative.dev/configuration")),
        Column("Generation", "string", _label("serving.knative.dev/configurationGeneration")),
        _READY,
        _REASON,
        Column("Actual Replicas", "integer", _text("status", "actualReplicas")),
        Column("Desired Replicas", "integer", _text("status", "desiredReplicas")),
    ),
    scheme.POD_AUTOSCALER.id: (
        _NAME,
        Column("DesiredScale", "integer", _text("status", "desiredScale")),
        Column("ActualScale", "integer", _text("status", "actualScale")),
        _READY,
        _REASON,
    ),
    scheme.POD.id: (
        _NAME,
        Column("Ready", "string", _pod_ready),
        Column("Status", "string", lambda pod, now: pod_status(pod)),
        Column("Restarts", "string", _pod_restarts),
        _AGE,
        Column("IP", "string", _or_none("status", "podIP"), priority=1),
        Column("Node", "string", _or_none("spec", "nodeName"), priority=1),
        Column("Nominated Node", "string", _or_none("status", "nominatedNodeName"), priority=1),
        Column("Readiness Gates", "string", lambda pod, now: "<none>", priority=1),
    ),
    scheme.DEPLOYMENT.id: (
        _NAME,
        Column("Ready", "string", _replicas),
        Column("Up-to-date", "string", _number("status", "updatedReplicas")),
        Column("Available", "string", _number("status", "availableReplicas")),
        _AGE,
        Column("Containers", "string", _containers("name"), priority=1),
        Column("Images", "string", _containers("image"), priority=1),
        Column("Selector", "string", _selector("spec", "selector", "matchLabels"), priority=1),
    ),
    scheme.HORIZONTAL_POD_AUTOSCALER.id: (
        _NAME,
        Column("Reference", "string", _hpa_reference),
        Column("Targets", "string", _hpa_targets),
        Column("MinPods", "string", _text("spec", "minReplicas")),
        Column("MaxPods", "string", _text("spec", "maxReplicas")),
        Column("Replicas", "string", _number("status", "currentReplicas")),
        _AGE,
    ),
    scheme.INGRESS.id: (
        _NAME,
        Column("Class", "string", _or_none("spec", "ingressClassName")),
        Column("Hosts", "string", _ingress_hosts),
        Column("Address", "string", _ingress_address),
        Column("Ports", "string", lambda o, now: "80, 443" if _at(o, "spec", "tls") else "80"),
        _AGE,
    ),
    scheme.HTTP_ROUTE.id: (_NAME, Column("Hostnames", "string", _hostnames), _CR_AGE),
    scheme.SCALED_OBJECT.id: (
        _NAME,
        Column("ScaleTargetKind", "string", _text("status", "scaleTargetKind")),
        Column("ScaleTargetName", "string", _text("spec", "scaleTargetRef", "name")),
        Column("Min", "integer", _text("spec", "minReplicaCount")),
        Column("Max", "integer", _text("spec", "maxReplicaCount")),
        Column("Ready", "string", _condition_status("Ready")),
        Column("Active", "string", _condition_status("Active")),
        Column("Fallback", "string", _condition_status("Fallback")),
        Column("Paused", "string", _condition_status("Paused")),
        Column("Triggers", "string", _text("status", "triggersTypes")),
        Column("Authentications", "string", _text("status", "authenticationsTypes")),
        _CR_AGE,
    ),
    scheme.SERVICE.id: (
        _NAME,
        Column("Type", "string", lambda o, now: str(_at(o, "spec", "type") or "ClusterIP")),
        Column("Cluster-IP", "string", _or_none("spec", "clusterIP")),
        Column("External-IP", "string", _external),
        Column("Port(s)", "string", _ports),
        _AGE,
        Column("Selector", "string", _selector("spec", "selector"), priority=1),
    ),
    scheme.EVENT.id: (
        Column("Last Seen", "string", _event_seen("lastTimestamp")),
        Column("Type", "string", _text("type")),
        Column("Reason", "string", _text("reason")),
        Column("Object", "string", _involved),
        Column("Subobject", "string", _text("involvedObject", "fieldPath"), priority=1),
        Column("Source", "string", _text("source", "component"), priority=1),
        Column("Message", "string", _message),
        Column("First Seen", "string", _event_seen("firstTimestamp"), priority=1),
        Column("Count", "string", _number("count"), priority=1),
        Column("Name", "string", _name, priority=1, format="name"),
    ),
    scheme.NAMESPACE.id: (_NAME, Column("Status", "string", _text("status", "phase")), _AGE),
    scheme.NODE.id: (
        _NAME,
        Column("Status", "string", _node_status),
        Column("Roles", "string", _node_roles),
        _AGE,
        Column("Version", "string", _text("status", "nodeInfo", "kubeletVersion")),
    ),
    scheme.SECRET.id: (
        _NAME,
        Column("Type", "string", _text("type")),
        Column("Data", "string", _size("data")),
        _AGE,
    ),
    scheme.CONFIG_MAP.id: (_NAME, Column("Data", "string", _config_map_size), _AGE),
    scheme.SERVICE_ACCOUNT.id: (_NAME, Column("Secrets", "string", _size("secrets")), _AGE),
    scheme.PERSISTENT_VOLUME_CLAIM.id: (
        _NAME,
        Column("Status", "string", _text("status", "phase")),
        Column("Volume", "string", _text("spec", "volumeName")),
        Column("Capacity", "string", _text("status", "capacity", "storage")),
        Column("StorageClass", "string", _text("spec", "storageClassName")),
        _AGE,
    ),
}
for _runtime in (scheme.SERVING_RUNTIME.id, scheme.CLUSTER_SERVING_RUNTIME.id):
    COLUMNS[_runtime] = (
        _NAME,
        Column("Disabled", "boolean", _text("spec", "disabled")),
        Column("ModelType", "string", _first("spec", "supportedModelFormats", field="name")),
        Column("Containers", "string", _first("spec", "containers", field="name")),
        _CR_AGE,
    )


def now() -> datetime:
    """Return the time that ages count from."""
    return datetime.now(UTC)
