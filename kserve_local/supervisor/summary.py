"""What `kserve-local status` shows, put together where everything is known; and the stop route.

`GET /apis/kserve-local.dev/v1/status` answers `{"services": [...]}` with DESIGN.md section 6's
fields, and with `?changes=true` what was edited since a Pod read it; `.../observed` what became of
each service's spec, cheap enough to be asked while waiting; `POST .../stop` begins a clean stop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.routing import BaseRoute

from kserve_local.api import gaps, names, scheme
from kserve_local.api.meta import (
    Key,
    Object,
    annotations_of,
    get_condition,
    name_of,
    namespace_of,
    uid_of,
)
from kserve_local.api.pods import CREATING
from kserve_local.api.reloads import RELOADS
from kserve_local.apiserver.app import json_route
from kserve_local.controllers import empty_models, isvc_knative, isvc_status, pod_state
from kserve_local.controllers.isvc_standard_status import STILL_COMING
from kserve_local.controllers.observed import Observations, Observed
from kserve_local.controllers.pod_state import Failure
from kserve_local.devloop.problems import Problems
from kserve_local.interfaces.backend import Backend, ReplicaStatus
from kserve_local.settings import Settings
from kserve_local.store.store import Store
from kserve_local.supervisor import agents
from kserve_local.supervisor.broken_pods import broken, last_asked_for
from kserve_local.supervisor.cold_starts import ColdStarts
from kserve_local.supervisor.component_summary import (
    Part,
    at_zero,
    blamed,
    failing_hops,
    failure_of,
    given_up,
    last_seen,
    parts_of,
    restarts,
    scaled_by_hand,
    wanted_of,
    workload_of,
)
from kserve_local.supervisor.pod_usage import PodUsage
from kserve_local.supervisor.stale import changed_since_start
from kserve_local.supervisor.stats import Stats

PREFIX = "/apis/kserve-local.dev/v1"


def routes(
    settings: Settings,
    store: Store,
    backend: Backend,
    stats: Stats,
    observed: Observations,
    usage: PodUsage,
    starts: ColdStarts,
    stop: asyncio.Event,
    problems: Problems,
) -> Sequence[BaseRoute]:
    """Return the routes that the API server serves besides Kubernetes' own."""

    async def status(request: Request) -> object:
        replicas = {replica.id: replica for replica in await backend.list()}
        probes = _failed_probes(store)
        services = [
            await _service(isvc, store, replicas, usage, stats, starts, observed.of(isvc), probes)
            for isvc in store.list(scheme.INFERENCE_SERVICE.id)
        ]
        for service in services:
            await _tell_of_broken(service, store, settings)
        graphs = [
            await _graph(graph, store, stats, observed.of(graph))
            for graph in store.list(scheme.INFERENCE_GRAPH.id)
        ]
        if request.query_params.get("changes"):
            for service in services:
                pods = last_asked_for(_pods(store, service["namespace"], service["name"]))
                service["warnings"] += await asyncio.to_thread(changed_since_start, pods, settings)
        for service in services:
            broken = problems.of(service["namespace"], service["name"])
            service["warnings"] += [f"{p.told()}; what was there before serves" for p in broken]
        services += graphs
        services.sort(key=lambda s: (s["namespace"], s["name"]))
        return {
            "project": settings.name,
            "services": services,
            "problems": [problem.shown() for problem in problems.all()],
        }

    async def progress(request: Request) -> object:
        services = [
            *store.list(scheme.INFERENCE_SERVICE.id),
            *store.list(scheme.INFERENCE_GRAPH.id),
        ]
        return {"services": [_observed(s, observed.of(s), store) for s in services]}

    async def end(request: Request) -> object:
        stop.set()
        return {"stopping": True}

    return [
        json_route(f"{PREFIX}/status", status, "GET"),
        json_route(f"{PREFIX}/observed", progress, "GET"),
        json_route(f"{PREFIX}/stop", end, "POST"),
    ]


async def _service(
    isvc: Object,
    store: Store,
    replicas: dict[str, ReplicaStatus],
    usage: PodUsage,
    stats: Stats,
    starts: ColdStarts,
    observed: Observed | None,
    probes: Mapping[str, Object],
) -> dict[str, Any]:
    name, namespace = name_of(isvc), namespace_of(isvc)
    pods = _pods(store, namespace, name)
    status = isvc.get("status") or {}
    parts = await parts_of(isvc, pods, store, replicas, usage, stats, starts, probes)
    entry = next(p for p in parts if p.component == isvc_knative.entry_of(isvc))
    revisions = [r for part in parts for r in part.revisions]
    ready = get_condition(isvc, "Ready") or {}
    wanted = any(p.wanted for p in parts)
    missing = any(p.wanted and not p.served for p in parts)
    failed = any(p.failed for p in parts)
    unhealthy = [p.unhealthy for p in parts if p.unhealthy is not None]
    reason, message = why(
        isvc,
        observed,
        max(unhealthy, key=last_seen, default=None),
        next((p.stuck for p in parts if p.stuck is not None), None),
        next((p.preparing for p in parts if p.preparing), ""),
        absent=missing or failed,
    )
    served = any(p.served for p in parts) and not missing
    if _is_coming(isvc, parts):
        ready = {}
    return {
        "kind": "InferenceService",
        "namespace": namespace,
        "name": name,
        "ready": ready.get("status") == "True",
        "state": _state(ready, reason, served=served, wanted=wanted, failed=failed),
        "reason": reason,
        "message": message,
        "component": blamed(parts, reason, message),
        "notes": gaps.left_out(isvc),
        "warnings": [
            *empty_models.told_by(pods),
            *failing_hops(parts, name),
            *given_up(store, isvc, revisions),
        ],
        "overrides": scaled_by_hand(name, revisions),
        "agents": agents.told_by(pods),
        "standIns": sorted({a for pod in pods if (a := annotations_of(pod).get(names.STAND_IN))}),
        "url": status.get("url", ""),
        "runtime": status.get("clusterServingRuntimeName") or status.get("servingRuntimeName", ""),
        "components": [p.shown() for p in parts],
        "revisions": revisions,
        "memory": sum(p.memory for p in parts),
        "gpus": await _gpus(pods, usage),
        # Of its first hop: what comes after it are the same requests.
        "rps": entry.rps,
        "p95": entry.p95,
        "lastStart": entry.last_start,
        **restarts(pods),
    }


async def _tell_of_broken(service: dict[str, Any], store: Store, settings: Settings) -> None:
    """Add what of a service does not come up beside what serves, after a save."""
    pods = _pods(store, service["namespace"], service["name"])
    found = []
    if any(_reloaded(pod) and not pod_state.is_ready(pod) for pod in pods):
        found = await asyncio.to_thread(broken, pods, settings)
    service["broken"] = [b.shown() for b in found]
    service["warnings"] += [b.told() for b in found]
    if found and not service["message"]:
        service["reason"], service["message"] = "ModelLoadFailed", found[0].error
        if len(service["components"]) > 1:
            service["component"] = found[0].component


def _reloaded(pod: Object) -> bool:
    return any(name in annotations_of(pod) for name in RELOADS)


def _is_coming(isvc: Object, parts: Sequence[Part]) -> bool:
    """Whether a service is not Ready because its Pods are not yet: Standard mode says False then,
    as it does of one that has failed.
    """
    ready = get_condition(isvc, "Ready") or {}
    if (isvc.get("status") or {}).get("deploymentMode") != names.STANDARD_MODE:
        return False
    if ready.get("status") != "False" or ready.get("reason") == "Stopped":
        return False
    return not any(p.failed or p.stuck is not None for p in parts)


async def _graph(
    graph: Object, store: Store, stats: Stats, observed: Observed | None
) -> dict[str, Any]:
    """Return an InferenceGraph as a service is returned; its router needs no memory of its own."""
    name, namespace = name_of(graph), namespace_of(graph)
    pods = store.list(scheme.POD.id, namespace=namespace, labels={names.GRAPH_LABEL: name})
    ksvc = store.find(Key(scheme.KNATIVE_SERVICE.id, namespace, name))
    own = (ksvc or {}).get("status") or {}
    revisions: dict[str, dict[str, Any]] = {}

    def entry(revision: str) -> dict[str, Any]:
        empty = {"name": revision, "percent": 0, "replicas": 0, "pods": [], "pids": []}
        return revisions.setdefault(revision, empty)

    for target in own.get("traffic") or ():
        entry(str(target.get("revisionName", "")))["percent"] += int(target.get("percent") or 0)
    for pod in pods:
        found = entry(workload_of(pod))
        if ksvc is None:
            # In Standard mode there is one Deployment, which takes everything.
            found["percent"] = 100
        found["pods"].append(name_of(pod))
        found["replicas"] += 1 if pod_state.is_ready(pod) else 0
    shown = sorted(revisions.values(), key=lambda r: str(r["name"]), reverse=True)
    targets = [f"{namespace}/{r['name']}" for r in shown]
    figures = [stats.of(target) for target in targets]
    ready = get_condition(graph, "Ready") or {}
    told = observed if observed is not None and observed.message else None
    failure = next((f for pod in pods if (f := failure_of(pod)) is not None), None)
    reason, message = (told.reason, told.message) if told else ("", "")
    if not told and ready.get("status") != "True":
        reason, message = str(ready.get("reason", "")), str(ready.get("message", ""))
        if failure is not None:
            reason, message = failure.reason, failure.message
    for revision in shown:
        revision |= wanted_of(store, namespace, str(revision["name"]))
    wanted = sum(r["desired"] for r in shown)
    served = any(r["replicas"] for r in shown)
    state = _state(ready, reason, served=served, wanted=wanted > 0)
    return {
        "kind": "InferenceGraph",
        "namespace": namespace,
        "name": name,
        "ready": ready.get("status") == "True",
        "state": state,
        "reason": reason,
        "message": message,
        "notes": gaps.left_out(graph),
        "warnings": failing_steps(targets, name, stats),
        "overrides": scaled_by_hand(name, shown),
        "standIns": sorted({a for pod in pods if (a := annotations_of(pod).get(names.STAND_IN))}),
        "url": (graph.get("status") or {}).get("url", ""),
        "runtime": "",
        "revisions": shown,
        "memory": 0,
        "gpus": [],
        "rps": round(sum(f["rps"] for f in figures), 2),
        "p95": max((f["p95"] for f in figures), default=0.0),
        **restarts(pods),
    }


def failing_steps(targets: Sequence[str], name: str, stats: Stats) -> list[str]:
    """Return one line on a graph's request that failed lately; none if none did."""
    failed = [f for target in targets if (f := stats.failure(target)) is not None]
    if not failed:
        return []
    ago, failure = min(failed)
    look = f"See kserve-local predict {name} @FILE --trace"
    return [f"a request failed {ago:.0f} s ago. {failure}. {look}"]


async def _gpus(pods: Sequence[Object], usage: PodUsage) -> list[dict[str, Any]]:
    """Return the GPUs of a service's Pods; bytes and percent are None where nobody says."""
    held = [(pod, device) for pod in pods for device in usage.held_by(pod)]
    figures = await usage.figures() if held else {}
    found = []
    for pod, device in held:
        now = figures.get(device.id)
        found.append(
            {
                "pod": name_of(pod),
                "id": device.id,
                "index": device.index,
                "name": device.name,
                "resource": device.resource,
                "simulated": device.simulated,
                "memory": device.memory_bytes or None,
                "memoryUsed": now.memory_used_bytes if now else None,
                "utilization": now.utilization if now else None,
            }
        )
    return found


def _pods(store: Store, namespace: str, name: str) -> list[Object]:
    return store.list(scheme.POD.id, namespace=namespace, labels={names.ISVC_LABEL: name})


def _observed(isvc: Object, seen: Observed | None, store: Store) -> dict[str, Any]:
    """Return what became of a service's spec; `resourceVersion` is that of the status there is,
    `zero` are the components that should have no replica now.
    """
    return {
        "namespace": namespace_of(isvc),
        "name": name_of(isvc),
        "uid": uid_of(isvc),
        "resourceVersion": isvc["metadata"]["resourceVersion"],
        "generation": seen.generation if seen else 0,
        "settled": seen is not None and seen.settled,
        "reason": seen.reason if seen else "",
        "message": seen.message if seen else "",
        "zero": at_zero(isvc, store),
    }


def _failed_probes(store: Store) -> dict[str, Object]:
    """Return the latest Event about a probe of each Pod that failed one, by the Pod's uid."""
    latest: dict[str, Object] = {}
    for event in store.list(scheme.EVENT.id):
        about = event.get("involvedObject") or {}
        if event.get("reason") != "Unhealthy" or about.get("kind") != "Pod":
            continue
        before = latest.get(about.get("uid", ""))
        if before is None or last_seen(before) <= last_seen(event):
            latest[about.get("uid", "")] = event
    return latest


_TOLD_FIRST = tuple(
    types[component]
    for component in isvc_knative.COMPONENTS
    for types in (isvc_status.CONFIGURATION_READY_OF, isvc_status.READY_OF)
)


def why(
    isvc: Object,
    observed: Observed | None = None,
    unhealthy: Object | None = None,
    stuck: Failure | None = None,
    preparing: str = "",
    *,
    absent: bool = False,
) -> tuple[str, str]:
    """Return reason and message of what keeps a service from being what its spec says.

    In KServe's terms, the most telling place first. Older Events do not count: the failure of a
    spec that is not the service's any more explains nothing. Both empty when nothing is wrong; a
    service may be Ready and still have a spec that cannot be carried out.

    Args:
        observed: What became of the spec, which on a cluster an Event alone tells.
        unhealthy: The Event about a failed probe of a Pod that is not Ready.
        stuck: Why a Pod of the newest revision cannot be made, which KServe shows as Pending.
        preparing: What a Pod waits for before it can start.
        absent: No replica of a component is there although some are wanted, or its newest revision
            has failed: a service that was Ready once stays so in KServe's words, and what is not
            its predictor counts for its ingress only.
    """
    conditions = (isvc.get("status") or {}).get("conditions") or ()
    false = [
        c
        for c in conditions
        if c.get("status") == "False" and c.get("message") and c.get("reason") not in STILL_COMING
    ]
    model = (isvc.get("status") or {}).get("modelStatus") or {}
    invalid = model.get("transitionStatus") == "InvalidSpec"
    if observed is not None and observed.message and not invalid:
        told = [c for c in false if c["message"] == observed.message]
        return str(told[0].get("reason", "")) if told else observed.reason, observed.message
    failure = model.get("lastFailureInfo") or {}
    if failure and (invalid or model.get("transitionStatus") == "BlockedByFailedLoad"):
        return str(failure.get("reason", "")), str(failure.get("message", ""))
    ready = get_condition(isvc, "Ready") or {}
    if ready.get("status") == "True" and not absent:
        return "", ""
    if ready.get("reason") == "Stopped":
        return "Stopped", ""
    false.sort(key=lambda c: _TOLD_FIRST.index(c["type"]) if c["type"] in _TOLD_FIRST else 9)
    if false:
        return str(false[0].get("reason", "")), str(false[0]["message"])
    if stuck is not None:
        return stuck.reason, stuck.message
    if unhealthy is not None:
        return str(unhealthy["reason"]), str(unhealthy.get("message", ""))
    if preparing:
        return CREATING, preparing
    return str(ready.get("reason", "")), str(ready.get("message", ""))


def _state(ready: Any, reason: str, *, served: bool, wanted: bool, failed: bool = False) -> str:
    """Return how a service stands.

    Args:
        served: A replica is ready, of every component.
        wanted: There should be one now.
        failed: The newest revision of a component has failed.
    """
    if reason == "Stopped":
        return "Stopped"
    if failed:
        return "Failed"
    if ready.get("status") == "True" and served:
        return "Ready"
    if ready.get("status") == "True" and not wanted:
        return "Zero"
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
