"""What `kserve-local status` shows, put together where everything is known; and the stop route.

`GET /apis/kserve-local.dev/v1/status` answers `{"services": [...]}` with DESIGN.md section 6's
fields; `POST /apis/kserve-local.dev/v1/stop` begins a clean stop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.routing import BaseRoute

from kserve_local.api import names, scheme
from kserve_local.api.meta import (
    Object,
    annotations_of,
    get_condition,
    labels_of,
    name_of,
    namespace_of,
    uid_of,
)
from kserve_local.apiserver.app import json_route
from kserve_local.backends.process import ProcessBackend
from kserve_local.controllers import isvc_gaps
from kserve_local.controllers.isvc_status import NOT_AVAILABLE
from kserve_local.errors import NotFound
from kserve_local.interfaces.backend import ReplicaStatus
from kserve_local.settings import Settings
from kserve_local.store.store import Store
from kserve_local.supervisor.stats import Stats

PREFIX = "/apis/kserve-local.dev/v1"


def routes(
    settings: Settings, store: Store, backend: ProcessBackend, stats: Stats, stop: asyncio.Event
) -> Sequence[BaseRoute]:
    """Return the routes that the API server serves besides Kubernetes' own."""

    async def status(request: Request) -> object:
        replicas = {replica.id: replica for replica in await backend.list()}
        warnings = _warnings(store)
        services = [
            await _service(isvc, store, replicas, backend, stats, warnings)
            for isvc in store.list(scheme.INFERENCE_SERVICE.id)
        ]
        services.sort(key=lambda s: (s["namespace"], s["name"]))
        return {"project": settings.name, "services": services}

    async def end(request: Request) -> object:
        stop.set()
        return {"stopping": True}

    return [
        json_route(f"{PREFIX}/status", status, "GET"),
        json_route(f"{PREFIX}/stop", end, "POST"),
    ]


async def _service(
    isvc: Object,
    store: Store,
    replicas: dict[str, ReplicaStatus],
    backend: ProcessBackend,
    stats: Stats,
    warnings: Mapping[str, Object],
) -> dict[str, Any]:
    name, namespace = name_of(isvc), namespace_of(isvc)
    pods = store.list(scheme.POD.id, namespace=namespace, labels={names.ISVC_LABEL: name})
    status = isvc.get("status") or {}
    predictor = (status.get("components") or {}).get("predictor") or {}
    memory = 0
    for pod in pods:
        if uid_of(pod) in replicas:
            try:
                memory += (await backend.usage(uid_of(pod))).memory_bytes
            except NotFound:
                continue
    revisions = _revisions(predictor, pods, replicas)
    figures = [stats.of(f"{namespace}/{r['name']}") for r in revisions]
    ready = get_condition(isvc, "Ready") or {}
    reason, message = why(isvc, warnings.get(uid_of(isvc)))
    return {
        "kind": "InferenceService",
        "namespace": namespace,
        "name": name,
        "ready": ready.get("status") == "True",
        "state": _state(ready, reason, revisions),
        "reason": reason,
        "message": message,
        "notes": isvc_gaps.left_out(isvc),
        "standIns": sorted({a for pod in pods if (a := annotations_of(pod).get(names.STAND_IN))}),
        "url": status.get("url", ""),
        "runtime": status.get("clusterServingRuntimeName") or status.get("servingRuntimeName", ""),
        "revisions": revisions,
        "memory": memory,
        "rps": round(sum(f["rps"] for f in figures), 2),
        "p95": max((f["p95"] for f in figures), default=0.0),
        "restarts": sum(
            int(c.get("restartCount", 0))
            for pod in pods
            for c in (pod.get("status") or {}).get("containerStatuses") or ()
        ),
    }


def _warnings(store: Store) -> dict[str, Object]:
    """Return the latest Warning about each InferenceService, by uid."""
    latest: dict[str, Object] = {}
    for event in store.list(scheme.EVENT.id):
        about = event.get("involvedObject") or {}
        if event.get("type") != "Warning" or about.get("kind") != "InferenceService":
            continue
        before = latest.get(about.get("uid", ""))
        if before is None or before.get("lastTimestamp", "") <= event.get("lastTimestamp", ""):
            latest[about.get("uid", "")] = event
    return latest


def why(isvc: Object, warning: Object | None = None) -> tuple[str, str]:
    """Return reason and message of what keeps a service from being Ready, in KServe's terms.

    The model's failure says more than the conditions, which only wait; where KServe says it in an
    Event alone, that is what comes back. Both empty when Ready.

    Args:
        warning: The latest Warning about the service.
    """
    ready = get_condition(isvc, "Ready") or {}
    model = (isvc.get("status") or {}).get("modelStatus") or {}
    failure = model.get("lastFailureInfo") or {}
    failed = model.get("transitionStatus") in ("BlockedByFailedLoad", "InvalidSpec")
    if failure and failed:
        return str(failure.get("reason", "")), str(failure.get("message", ""))
    if ready.get("status") == "True":
        return "", ""
    if ready.get("reason") == "Stopped":
        return "Stopped", ""
    for type_ in ("PredictorConfigurationReady", "PredictorReady"):
        condition = get_condition(isvc, type_) or {}
        if condition.get("status") == "False" and condition.get("message"):
            return str(condition.get("reason", "")), str(condition["message"])
    if warning is not None and warning["reason"] != NOT_AVAILABLE and not ready.get("message"):
        return str(warning.get("reason", "")), str(warning.get("message", ""))
    return str(ready.get("reason", "")), str(ready.get("message", ""))


def _state(ready: Any, reason: str, revisions: list[dict[str, Any]]) -> str:
    if reason == "Stopped":
        return "Stopped"
    if ready.get("status") == "True":
        return "Ready" if any(r["replicas"] for r in revisions) else "Zero"
    if ready.get("status") == "False" or reason in (
        "ModelLoadFailed",
        "NoSupportingRuntime",
        "RuntimeNotRecognized",
        "RuntimeDisabled",
        "InvalidPredictorSpec",
        "InternalError",
    ):
        return "Failed"
    return "Loading"


def _revisions(
    predictor: Any, pods: Sequence[Object], replicas: dict[str, ReplicaStatus]
) -> list[dict[str, Any]]:
    percents: dict[str, int] = {}
    for entry in predictor.get("traffic") or ():
        revision = str(entry.get("revisionName", ""))
        percents[revision] = percents.get(revision, 0) + int(entry.get("percent") or 0)
    found: dict[str, dict[str, Any]] = {
        name: {"name": name, "percent": percent, "replicas": 0, "pods": [], "pids": []}
        for name, percent in percents.items()
    }
    for pod in pods:
        name = labels_of(pod).get(names.REVISION_LABEL, "")
        entry = found.setdefault(
            name, {"name": name, "percent": 0, "replicas": 0, "pods": [], "pids": []}
        )
        entry["pods"].append(name_of(pod))
        replica = replicas.get(uid_of(pod))
        running = [c for c in replica.containers if c.state == "running"] if replica else []
        entry["pids"] += [c.pid for c in running if c.pid]
        entry["replicas"] += 1 if running and all(c.ready for c in running) else 0
    return sorted(found.values(), key=lambda r: str(r["name"]), reverse=True)
