"""What `status` shows of one component of a service: predictor, transformer or explainer.

Reads what the component's Knative Service says in the InferenceService's status, the component's
Pods, and the gateway's figures of its Revisions. `summary` puts a service together from these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kserve_local.api import names, pod_autoscaler, scheme, start_phases
from kserve_local.api.meta import (
    Key,
    Object,
    condition_is,
    get_condition,
    labels_of,
    name_of,
    namespace_of,
    uid_of,
)
from kserve_local.api.pods import CREATING, preparation
from kserve_local.api.workloads import replicas_of
from kserve_local.autoscaler.bounds import TIMED_OUT
from kserve_local.controllers import (
    isvc_canary,
    isvc_knative,
    isvc_status,
    pod_state,
    standard_objects,
)
from kserve_local.controllers.isvc_knative import Component
from kserve_local.controllers.isvc_standard_status import STILL_COMING
from kserve_local.controllers.pod_state import Failure
from kserve_local.interfaces.backend import ReplicaStatus
from kserve_local.store.store import Store
from kserve_local.supervisor.cold_starts import ColdStarts, shown_start
from kserve_local.supervisor.pod_usage import PodUsage
from kserve_local.supervisor.stats import Stats


@dataclass(frozen=True, slots=True)
class Part:
    """One component as it stands.

    Args:
        revisions: Entries of `status --json`, newest first.
        wanted: A replica should be there now.
        served: One is ready.
        failed: Its newest revision cannot be had.
        unhealthy: The Event about a failed probe of a Pod that is not Ready.
        stuck: Why a Pod of the newest revision cannot be made.
        preparing: What a Pod waits for before it can start.
        reason, message: What keeps it from being what its spec says; both empty: nothing.
        failure: What its last failed request in the last minute was, and how long ago.
        last_start: How long its last Pod took to start, phase by phase; None: nobody saw it.
    """

    component: Component
    name: str
    pods: Sequence[Object]
    revisions: Sequence[dict[str, Any]]
    wanted: bool
    served: bool
    failed: bool
    unhealthy: Object | None
    stuck: Failure | None
    preparing: str
    reason: str
    message: str
    url: str
    memory: int
    rps: float
    p95: float
    failure: tuple[float, str] | None
    last_start: dict[str, Any] | None = None

    @property
    def state(self) -> str:
        """`Ready`, `Zero`, `Failed` or `Loading`."""
        if self.failed:
            return "Failed"
        if self.served:
            return "Ready"
        return "Loading" if self.wanted or not self.revisions else "Zero"

    def shown(self) -> dict[str, Any]:
        """Return the entry of `status --json`."""
        return {
            "component": self.component,
            "name": self.name,
            "state": self.state,
            "reason": self.reason,
            "message": self.message,
            "url": self.url,
            "revisions": list(self.revisions),
            "memory": self.memory,
            "rps": self.rps,
            "p95": self.p95,
            "lastStart": self.last_start,
            "lastFailure": self.failure[1] if self.failure else "",
            **restarts(self.pods),
        }


async def parts_of(
    isvc: Object,
    pods: Sequence[Object],
    store: Store,
    replicas: Mapping[str, ReplicaStatus],
    usage: PodUsage,
    stats: Stats,
    starts: ColdStarts,
    probes: Mapping[str, Object],
) -> list[Part]:
    """Return the components of a service, the predictor first.

    Args:
        pods: All Pods of the service.
        replicas: What the backend runs, by the Pod's uid.
        probes: The latest Event about a failed probe, by the Pod's uid.
    """
    found = []
    for component in isvc_knative.components_of(isvc):
        own = [p for p in pods if labels_of(p).get(names.COMPONENT_LABEL) == component]
        found.append(
            await _part(isvc, component, own, store, replicas, usage, stats, starts, probes)
        )
    return found


async def _part(
    isvc: Object,
    component: Component,
    pods: Sequence[Object],
    store: Store,
    replicas: Mapping[str, ReplicaStatus],
    usage: PodUsage,
    stats: Stats,
    starts: ColdStarts,
    probes: Mapping[str, Object],
) -> Part:
    namespace = namespace_of(isvc)
    status = ((isvc.get("status") or {}).get("components") or {}).get(component) or {}
    memory = 0
    for pod in pods:
        if uid_of(pod) in replicas and (used := await usage.of(pod)) is not None:
            memory += used.memory_bytes
    standard = _standard_traffic(isvc, component, store)
    revisions = _revisions(component, status, pods, replicas, standard)
    for entry in revisions:
        entry |= wanted_of(store, namespace, str(entry["name"]))
    targets = [f"{namespace}/{r['name']}" for r in revisions]
    figures = [stats.of(t) for t in targets]
    waiting = [p for p in pods if _waits(p)]
    unhealthy = [probes[uid_of(p)] for p in waiting if uid_of(p) in probes]
    latest = str(status.get("latestCreatedRevision") or "")
    stuck = [
        failure
        for pod in waiting
        if latest in ("", pod_state.revision_of(pod)) and (failure := failure_of(pod))
    ]
    conditions = [
        get_condition(isvc, types[component]) or {}
        for types in (isvc_status.CONFIGURATION_READY_OF, isvc_status.READY_OF)
    ]
    last_probe = max(unhealthy, key=last_seen, default=None)
    preparing = next(filter(None, map(preparation, waiting)), "")
    reason, message = _why(conditions, next(iter(stuck), None), last_probe, preparing)
    failures = [f for t in targets if (f := stats.failure(t)) is not None]
    return Part(
        component=component,
        name=isvc_knative.service_name(isvc, component),
        pods=pods,
        revisions=revisions,
        wanted=any(r["desired"] for r in revisions),
        served=any(r["replicas"] for r in revisions),
        failed=_has_failed(conditions[1]),
        unhealthy=last_probe,
        stuck=next(iter(stuck), None),
        preparing=preparing,
        reason=reason,
        message=message,
        url=str(status.get("url") or ""),
        memory=memory,
        rps=round(sum(f["rps"] for f in figures), 2),
        p95=max((f["p95"] for f in figures), default=0.0),
        failure=min(failures, default=None),
        last_start=starts.last(namespace, name_of(isvc), component) or _written_start(pods),
    )


def _written_start(pods: Sequence[Object]) -> dict[str, Any] | None:
    """Return the last start that is written down at a Pod, where an earlier supervisor told it."""
    for pod in pod_state.newest_first(pods):
        start = start_phases.of_pod(pod)
        if start is not None:
            return shown_start(name_of(pod), str(pod["metadata"]["creationTimestamp"]), start)
    return None


def blamed(parts: Sequence[Part], reason: str, message: str) -> str:
    """Return which of several components a reason is about, empty if it is not one's own."""
    if len(parts) < 2 or not (reason or message):
        return ""
    told = (p.component for p in parts if (p.reason, p.message) == (reason, message))
    return next(told, "")


def failing_hops(parts: Sequence[Part], name: str) -> list[str]:
    """Return one line on the requests that failed lately, hop by hop; none if none did.

    With one component the client has seen all there is to see.
    """
    failing = [p for p in parts if p.failure is not None]
    if len(parts) < 2 or not failing:
        return []
    # From the model outwards: the first hop that failed mostly is why the others did.
    order = ("predictor", "explainer", "transformer")
    failing.sort(key=lambda p: order.index(p.component))
    hops = "; ".join(f"{p.component}: {p.failure[1]}" for p in failing if p.failure)
    ago = min(p.failure[0] for p in failing if p.failure)
    look = " or ".join(f"--component {p.component}" for p in failing)
    return [f"a request failed {ago:.0f} s ago. {hops}. See kserve-local logs {name} {look}"]


def _has_failed(ready: Mapping[str, Any]) -> bool:
    reason = str(ready.get("reason") or "")
    return ready.get("status") == "False" and reason not in ("Stopped", *STILL_COMING)


def _why(
    conditions: Sequence[Mapping[str, Any]],
    stuck: Failure | None,
    unhealthy: Object | None,
    preparing: str,
) -> tuple[str, str]:
    for condition in conditions:
        if _has_failed(condition) and condition.get("message"):
            return str(condition.get("reason", "")), str(condition["message"])
    if stuck is not None:
        return stuck.reason, stuck.message
    if unhealthy is not None:
        return str(unhealthy["reason"]), str(unhealthy.get("message", ""))
    return (CREATING, preparing) if preparing else ("", "")


def failure_of(pod: Object) -> Failure | None:
    """Return why a Pod that is not Ready is not, None if it may still be."""
    return pod_state.failure_of(pod) or pod_state.is_not_coming(pod) if _waits(pod) else None


def desired(store: Store, namespace: str, revision: str) -> int:
    """Return how many replicas a Revision should have now; its condition Ready does not tell.

    Standard mode's Deployments stand for themselves.
    """
    found = store.find(Key(scheme.DEPLOYMENT.id, namespace, revision))
    if found is not None:
        return replicas_of(found)
    found = store.find(Key(scheme.REVISION.id, namespace, revision))
    return int(((found or {}).get("status") or {}).get("desiredReplicas") or 0)


def workload_of(pod: Object) -> str:
    """Return the Revision of a Pod, or its Deployment in Standard mode."""
    app = labels_of(pod).get(names.APP_LABEL, "")
    return labels_of(pod).get(names.REVISION_LABEL) or standard_objects.workload_of(app)


def wanted_of(store: Store, namespace: str, revision: str) -> dict[str, Any]:
    """Return how many replicas a Revision should have, the number set by hand or for want
    of memory (None: none), and why it was evicted.
    """
    autoscaler = store.find(Key(scheme.POD_AUTOSCALER.id, namespace, revision))
    for name in (revision, f"keda-hpa-{revision}"):
        autoscaler = autoscaler or store.find(
            Key(scheme.HORIZONTAL_POD_AUTOSCALER.id, namespace, name)
        )
    return {
        "desired": desired(store, namespace, revision),
        "override": pod_autoscaler.override(autoscaler),
        "evicted": pod_autoscaler.evicted(autoscaler),
    }


def at_zero(service: Object, store: Store) -> list[str]:
    """Return the components (of a graph: `graph`) that should have no replica: whose Revisions
    with traffic, or Standard mode's Deployment, are scaled to zero.
    """
    namespace = namespace_of(service)
    if service["kind"] == scheme.INFERENCE_GRAPH.kind:
        ksvcs = {"graph": name_of(service)}
    else:
        ksvcs = {
            component: isvc_knative.service_name(service, component)
            for component in isvc_knative.components_of(service)
        }
    found = []
    for component, name in ksvcs.items():
        ksvc = store.find(Key(scheme.KNATIVE_SERVICE.id, namespace, name)) or {}
        routed = [
            str(t.get("revisionName")) for t in (ksvc.get("status") or {}).get("traffic") or ()
        ]
        if not routed and store.find(Key(scheme.DEPLOYMENT.id, namespace, name)) is not None:
            routed = [name]
        if routed and not any(desired(store, namespace, revision) for revision in routed):
            found.append(component)
    return found


def scaled_by_hand(name: str, revisions: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return one line for each Revision whose replicas `kserve-local scale` set."""
    return [
        f"{r['name']} is at zero until the next request, {r['evicted']}"
        if r.get("evicted")
        else f"{r['name']} has {r['override']} replica{'' if r['override'] == 1 else 's'} by hand; "
        f"to the autoscaler again: kserve-local scale {name} auto"
        for r in revisions
        if r["override"] is not None
    ]


def given_up(store: Store, service: Object, revisions: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return one line for each Revision that is at zero because its last start did not end."""
    found = []
    for revision in revisions:
        key = Key(scheme.POD_AUTOSCALER.id, namespace_of(service), revision["name"])
        active = get_condition(store.find(key) or {}, "Active") or {}
        if (active.get("status"), active.get("reason")) == ("False", TIMED_OUT[0]):
            name = name_of(service)
            found.append(
                f"{revision['name']} is at zero because its last start was given up "
                f"(kserve-local events {name}); the next request tries again"
            )
    return found


def last_seen(event: Object) -> str:
    """Return when an Event was seen last, in Kubernetes' form, which sorts."""
    return str(event.get("lastTimestamp") or "")


def _waits(pod: Object) -> bool:
    return not pod["metadata"].get("deletionTimestamp") and not condition_is(pod, "Ready")


def restarts(pods: Sequence[Object]) -> dict[str, Any]:
    """Return how often containers were restarted, and when the last one had ended ("": never)."""
    containers = [c for p in pods for c in (p.get("status") or {}).get("containerStatuses") or ()]
    ended = [(c.get("lastState") or {}).get("terminated") or {} for c in containers]
    return {
        "restarts": sum(int(c.get("restartCount") or 0) for c in containers),
        "lastRestart": max((str(e.get("finishedAt") or "") for e in ended), default=""),
    }


def _standard_traffic(isvc: Object, component: Component, store: Store) -> dict[str, int] | None:
    """Return the percent of requests of each Deployment of a component, None in Knative mode."""
    own = isvc.get("status") or {}
    if own.get("deploymentMode") != names.STANDARD_MODE:
        return None
    stable = isvc_knative.service_name(isvc, component)
    if component != "predictor":
        return {stable: 100}
    # With an Ingress canaries get nothing.
    split = store.find(Key(scheme.HTTP_ROUTE.id, namespace_of(isvc), name_of(isvc))) is not None
    ready = {s["name"] for s in own.get("canaryStatuses") or () if s.get("ready") and split}
    shares = dict(isvc_canary.shares(isvc, ready))
    every = {c.workload: shares.get(c.workload, 0) for c in isvc_canary.canaries_of(isvc)}
    return {stable: 100 - sum(shares.values()), **every}


def _revisions(
    component: str,
    status: Mapping[str, Any],
    pods: Sequence[Object],
    replicas: Mapping[str, ReplicaStatus],
    standard: Mapping[str, int] | None = None,
) -> list[dict[str, Any]]:
    percents = dict(standard or ())
    for entry in status.get("traffic") or ():
        revision = str(entry.get("revisionName", ""))
        percents[revision] = percents.get(revision, 0) + int(entry.get("percent") or 0)

    def fresh(name: str, percent: int) -> dict[str, Any]:
        return {
            "name": name,
            "component": component,
            "percent": percent,
            "replicas": 0,
            "pods": [],
            "pids": [],
        }

    found = {name: fresh(name, percent) for name, percent in percents.items()}
    for pod in pods:
        name = workload_of(pod)
        entry = found.setdefault(name, fresh(name, 0))
        entry["pods"].append(name_of(pod))
        replica = replicas.get(uid_of(pod))
        running = [c for c in replica.containers if c.state == "running"] if replica else []
        entry["pids"] += [c.pid for c in running if c.pid]
        ready = bool(running) and all(c.ready for c in running)
        entry["replicas"] += 1 if ready and not pod_state.is_terminating(pod) else 0
    return sorted(found.values(), key=lambda r: str(r["name"]), reverse=True)
