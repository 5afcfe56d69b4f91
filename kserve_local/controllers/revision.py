"""Revision -> Deployment, PodAutoscaler, its Services, and the Revision's conditions.

Reads Revisions, their Deployment, PodAutoscaler and Pods; writes the Deployment, the PodAutoscaler,
the two Services a Revision has on a cluster, and the Revision's status. Conditions, reasons and
messages are Knative's (knative/serving pkg/apis/serving/v1/revision_lifecycle.go,
pkg/reconciler/revision).

Not shown here: the queue-proxy container. Users name `kserve-container` (logs, exec) and nothing
else, every request passes our gateway, and what queue-proxy does (readiness by TCP, PORT and K_*
variables, the concurrency limit) is put onto the serving container or done by the gateway.

How many Pods there are the autoscaler says in the PodAutoscaler's status; `replicas` adds what
holds before its first word and out of all traffic.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kserve_local.api import pod_autoscaler, reloads
from kserve_local.api.meta import (
    Key,
    Object,
    annotations_of,
    condition_is,
    controller_of,
    get_condition,
    labels_of,
    name_of,
    namespace_of,
    owner_reference,
    timestamp,
    uid_of,
    with_status,
)
from kserve_local.api.names import AUTOSCALING, INITIAL_SCALE, MAX_SCALE, MIN_SCALE
from kserve_local.api.pods import WAITING_FOR_MEMORY
from kserve_local.api.scheme import (
    DEPLOYMENT,
    POD,
    POD_AUTOSCALER,
    REVISION,
    SERVICE,
    key_of,
)
from kserve_local.controllers import knative_names as names
from kserve_local.controllers import pod_state
from kserve_local.controllers.knative_service import ACTIVE as ACTIVE_ROUTE
from kserve_local.controllers.knative_service import RESERVE
from kserve_local.controllers.modelcars import image_volumes
from kserve_local.errors import AlreadyExists, Conflict
from kserve_local.reconcile.conditions import FALSE, TRUE, ConditionSet
from kserve_local.reconcile.controller import Watch, controlling, itself, labelled
from kserve_local.reconcile.result import DONE, Result
from kserve_local.store.events import EventRecorder
from kserve_local.store.store import Store

RESOURCES_AVAILABLE = "ResourcesAvailable"
CONTAINER_HEALTHY = "ContainerHealthy"
ACTIVE = "Active"
DEPLOYING = "Deploying"

_NO_IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")
_NOT_ON_PODS = (names.ROUTING_STATE_MODIFIED, names.ROUTES, names.TEMPLATE_HASH)


def replicas(revision: Object, autoscaler: Object | None) -> int:
    """Return how many Pods the Revision should have now.

    Out of all traffic: none. Otherwise what the autoscaler decided; before it did, what the
    Revision starts with: the larger of min-scale and initial-scale, at most max-scale.
    """
    if labels_of(revision).get(names.ROUTING_STATE) == RESERVE:
        return 0
    decided = pod_autoscaler.replicas(autoscaler)
    if decided != pod_autoscaler.UNDECIDED:
        return decided
    least = max(minimum(revision), initial(revision))
    most = _number(revision, MAX_SCALE, 0)
    return min(least, most) if most else least


def minimum(revision: Object) -> int:
    """Return min-scale, 0 when not given."""
    return max(0, _number(revision, MIN_SCALE, 0))


def initial(revision: Object) -> int:
    """Return initial-scale, 1 when not given.

    0 comes only where the cluster allows it: `isvc_knative` leaves it out elsewhere.
    """
    return max(0, _number(revision, INITIAL_SCALE, 1))


def _number(revision: Object, annotation: str, default: int) -> int:
    try:
        return int(annotations_of(revision).get(annotation, default))
    except ValueError:
        return default


def pods_of(store: Store, namespace: str, revision: str) -> list[Object]:
    """Return a Revision's Pods, by owner: the cost does not grow with the number of Revisions."""
    deployment = store.find(Key(DEPLOYMENT.id, namespace, names.deployment_name(revision)))
    return [] if deployment is None else store.owned_by(uid_of(deployment), POD.id)


def deployment_for(revision: Object, *, replicas: int, progress_deadline: float) -> Object:
    """Return the Deployment that runs the Revision."""
    name = name_of(revision)
    labels = {
        **{k: v for k, v in labels_of(revision).items() if k != names.ROUTING_STATE},
        names.REVISION: name,
        names.REVISION_UID: uid_of(revision),
        "app": name,
    }
    annotations = {k: v for k, v in annotations_of(revision).items() if k not in _NOT_ON_PODS}
    return {
        "apiVersion": DEPLOYMENT.api_version,
        "kind": DEPLOYMENT.kind,
        "metadata": {
            "name": names.deployment_name(name),
            "namespace": namespace_of(revision),
            "labels": labels,
            "annotations": annotations,
            "ownerReferences": [owner_reference(revision)],
        },
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {names.REVISION_UID: uid_of(revision)}},
            "progressDeadlineSeconds": max(1, math.ceil(progress_deadline)),
            "revisionHistoryLimit": 10,
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0},
            },
            "template": {
                "metadata": {"labels": labels, "annotations": annotations},
                "spec": pod_spec(revision),
            },
        },
    }


def pod_spec(revision: Object) -> dict[str, Any]:
    """Return the Pod's spec: the Revision's, with what Knative puts onto the serving container."""
    spec = copy.deepcopy(dict(revision["spec"]))
    timeout = int(spec.pop("timeoutSeconds", 300) or 300)
    for field in ("containerConcurrency", "responseStartTimeoutSeconds", "idleTimeoutSeconds"):
        spec.pop(field, None)
    spec.setdefault("restartPolicy", "Always")
    # Requests in progress get as long as a request may take at most (traffic.md 3.4).
    spec.setdefault("terminationGracePeriodSeconds", timeout)
    serving = pod_state.serving_container(spec)
    containers: list[dict[str, Any]] = spec["containers"]
    for container in containers:
        container.setdefault("terminationMessagePolicy", "FallbackToLogsOnError")
        if container is serving:
            _serve(container, revision)
    return spec


def _serve(container: dict[str, Any], revision: Object) -> None:
    port = pod_state.serving_port(container)
    if not container.get("ports"):
        container["ports"] = [{"name": "user-port", "containerPort": port, "protocol": "TCP"}]
    given = {e["name"] for e in container.get("env") or ()}
    configuration = labels_of(revision).get(names.CONFIGURATION, "")
    knative = {
        "PORT": str(port),
        "K_REVISION": name_of(revision),
        "K_CONFIGURATION": configuration,
        "K_SERVICE": labels_of(revision).get(names.SERVICE, configuration),
    }
    container["env"] = [
        *(container.get("env") or ()),
        *({"name": k, "value": v} for k, v in knative.items() if k not in given),
    ]
    # queue-proxy's default probe: the port answers. It asks far more often than a kubelet.
    probe = container.setdefault("readinessProbe", {})
    if not any(kind in probe for kind in ("httpGet", "tcpSocket", "exec", "grpc")):
        probe["tcpSocket"] = {"port": port}
        probe.setdefault("periodSeconds", 1)
    for kind in ("readinessProbe", "livenessProbe", "startupProbe"):
        for handler in ("httpGet", "tcpSocket"):
            target = (container.get(kind) or {}).get(handler)
            if target is not None and not target.get("port"):
                target["port"] = port
    probe.setdefault("successThreshold", 1)


def autoscaler_for(revision: Object) -> Object:
    """Return the Revision's PodAutoscaler, which has its name."""
    name = name_of(revision)
    state = labels_of(revision).get(names.ROUTING_STATE)
    reach = {
        ACTIVE_ROUTE: pod_autoscaler.REACHABLE,
        RESERVE: pod_autoscaler.UNREACHABLE,
    }.get(state or "", pod_autoscaler.UNKNOWN)
    spec = {
        "containerConcurrency": int(revision["spec"].get("containerConcurrency") or 0),
        "protocolType": _protocol(revision),
        "scaleTargetRef": {
            "apiVersion": DEPLOYMENT.api_version,
            "kind": DEPLOYMENT.kind,
            "name": names.deployment_name(name),
        },
    }
    if reach:
        spec["reachability"] = reach
    annotations = {
        k: v for k, v in annotations_of(revision).items() if k.startswith(f"{AUTOSCALING}/")
    }
    return {
        "apiVersion": POD_AUTOSCALER.api_version,
        "kind": POD_AUTOSCALER.kind,
        "metadata": {
            "name": name,
            "namespace": namespace_of(revision),
            "labels": {
                **{k: v for k, v in labels_of(revision).items() if k != names.ROUTING_STATE},
                names.REVISION: name,
                names.REVISION_UID: uid_of(revision),
                "app": name,
            },
            "annotations": annotations,
            "ownerReferences": [owner_reference(revision)],
        },
        "spec": spec,
    }


def _protocol(revision: Object) -> str:
    ports = pod_state.serving_container(revision["spec"]).get("ports") or ()
    return "h2c" if any(p.get("name") in ("h2c", "http2") for p in ports) else "http1"


def services_for(revision: Object) -> tuple[Object, Object]:
    """Return the Services `<revision>` and `<revision>-private`, which the cluster shows.

    Headless here: nothing calls a Revision but the gateway, which knows its Pods.
    """
    name = name_of(revision)
    selector = {names.REVISION_UID: uid_of(revision)}
    ports = [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8012}]

    def service(suffix: str, kind: str, select: Mapping[str, str] | None) -> Object:
        spec: dict[str, Any] = {"type": "ClusterIP", "clusterIP": "None", "ports": ports}
        if select:
            spec["selector"] = dict(select)
        return {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": names.child_name(name, suffix),
                "namespace": namespace_of(revision),
                "labels": {
                    **{k: v for k, v in labels_of(revision).items() if k != names.ROUTING_STATE},
                    names.REVISION: name,
                    names.REVISION_UID: uid_of(revision),
                    "networking.internal.knative.dev/serviceType": kind,
                },
                "ownerReferences": [owner_reference(revision)],
            },
            "spec": spec,
        }

    return service("", "Public", None), service("-private", "Private", selector)


def plan_status(
    revision: Object, deployment: Object, pods: Sequence[Object], *, now: str
) -> dict[str, Any]:
    """Return the Revision's status."""
    before: Mapping[str, Any] = revision.get("status") or {}
    source: Mapping[str, Any] = deployment.get("status") or {}
    want = int(deployment["spec"].get("replicas") or 0)
    available = int(source.get("availableReplicas") or 0)
    conditions = ConditionSet(
        "Ready",
        (RESOURCES_AVAILABLE, CONTAINER_HEALTHY),
        before.get("conditions") or (),
        now=now,
    )
    # Once the initial scale was reached it counts as reached (traffic.md 1.5).
    start = min(initial(revision), max(want, 1))
    initialized = condition_is(revision, RESOURCES_AVAILABLE) or available >= start
    _resources(conditions, deployment, initialized=initialized)
    crash = _crash(pods) if want > 0 and available == 0 else None
    missing = _missing_image(pods) if want > 0 and available == 0 else None
    if crash is not None:
        conditions.mark_false(CONTAINER_HEALTHY, *crash)
    elif missing is not None:
        conditions.mark_false(CONTAINER_HEALTHY, "ContainerMissing", missing)
    elif want > 0 and not _live(pods) and conditions.status(CONTAINER_HEALTHY) == FALSE:
        pass  # the failed Pod is gone and the next one not there yet: nothing new is known
    elif initialized:
        conditions.mark_true(CONTAINER_HEALTHY)
    else:
        conditions.mark_unknown(CONTAINER_HEALTHY, DEPLOYING)
    if want > 0 and available == 0:
        _unavailable(conditions, deployment, pods)
    _activity(conditions, want=want, ready=available, least=max(minimum(revision), 1))
    return {
        "observedGeneration": revision["metadata"]["generation"],
        "conditions": conditions.result(),
        "actualReplicas": available,
        "desiredReplicas": want,
        "containerStatuses": [
            {"name": c.get("name", ""), "imageDigest": c.get("image", "")}
            for c in revision["spec"]["containers"]
        ],
    }


def _resources(conditions: ConditionSet, deployment: Object, *, initialized: bool) -> None:
    for type_, bad in (("Progressing", FALSE), ("ReplicaFailure", TRUE)):
        condition = get_condition(deployment, type_) or {}
        if condition.get("status") == bad and not initialized:
            conditions.mark_false(
                RESOURCES_AVAILABLE, condition.get("reason", ""), condition.get("message", "")
            )
            return
    if initialized:
        conditions.mark_true(RESOURCES_AVAILABLE)
    else:
        conditions.mark_unknown(RESOURCES_AVAILABLE, DEPLOYING)


def _live(pods: Sequence[Object]) -> list[Object]:
    """Return the Pods that were not told to go, newest first."""
    return pod_state.newest_first([p for p in pods if not pod_state.is_terminating(p)])


def _crash(pods: Sequence[Object]) -> tuple[str, str] | None:
    """Return ContainerHealthy's reason and message if a serving Pod's container keeps exiting."""
    for pod in _live(pods)[:1]:
        for status in pod_state.statuses(pod):
            ended = pod_state.last_terminated(status) or pod_state.terminated(status)
            if ended is None:
                continue
            code = int(ended.get("exitCode") or 0)
            message = str(ended.get("message") or "")
            if code == 0 and not message:
                message = "container exited with no error"
            return f"ExitCode{code}", f"Container failed with: {message}"
    return None


def _missing_image(pods: Sequence[Object]) -> str | None:
    """Return the message for an image that cannot be had.

    On a cluster the Revision fails when its image's digest is resolved, before there is a Pod;
    here the Pod is where an image is looked for first.
    """
    for pod in _live(pods)[:1]:
        for status in (*pod_state.model_inits(pod), *pod_state.statuses(pod)):
            waiting = (status.get("state") or {}).get("waiting") or {}
            if waiting.get("reason") in _NO_IMAGE:
                message = str(waiting.get("message", ""))
                mounted = (v.image for v in image_volumes(pod) if v.image and v.image in message)
                image = next(mounted, str(status.get("image") or ""))
                return f'Unable to fetch image "{image}": {message}'
    return None


def _unavailable(conditions: ConditionSet, deployment: Object, pods: Sequence[Object]) -> None:
    """Add what a Pod says that cannot be placed, or that still waits when the time is over."""
    for pod in pod_state.newest_first(pods)[:1]:
        placed = get_condition(pod, "PodScheduled") or {}
        if placed.get("status") == FALSE and placed.get("reason") != WAITING_FOR_MEMORY:
            conditions.mark_false(
                RESOURCES_AVAILABLE, placed.get("reason", ""), placed.get("message", "")
            )
        progressing = get_condition(deployment, "Progressing") or {}
        if progressing.get("reason") != "ProgressDeadlineExceeded":
            return
        for status in pod_state.statuses(pod):
            waiting = (status.get("state") or {}).get("waiting") or {}
            # A wait without a message would take the deadline's own message away.
            if waiting.get("message") and not pod_state.last_terminated(status):
                conditions.mark_false(RESOURCES_AVAILABLE, waiting["reason"], waiting["message"])


def _activity(conditions: ConditionSet, *, want: int, ready: int, least: int) -> None:
    if want == 0:
        conditions.mark_false(ACTIVE, "NoTraffic", "The target is not receiving traffic.")
    elif ready >= least:
        conditions.mark_true(ACTIVE)
    else:
        conditions.mark_unknown(
            ACTIVE,
            "Queued",
            "Requests to the target are being buffered as resources are provisioned.",
        )


@dataclass(frozen=True, slots=True)
class _Children:
    """What a Revision makes; the Deployment's replicas aside."""

    deployment: Object
    autoscaler: Object
    services: tuple[Object, Object]


class RevisionController:
    """Writes the next link: the Deployment of a Revision, and the Revision's status.

    Args:
        progress_deadline: Seconds a Deployment may take before it counts as failed.
    """

    name = "revision"
    watches = (
        Watch(REVISION.id, itself),
        Watch(DEPLOYMENT.id, controlling(REVISION.id)),
        Watch(SERVICE.id, controlling(REVISION.id)),
        Watch(POD_AUTOSCALER.id, controlling(REVISION.id)),
        Watch(POD.id, labelled(REVISION.id, names.REVISION)),
    )

    def __init__(
        self, store: Store, events: EventRecorder, *, progress_deadline: float = 600.0
    ) -> None:
        self._store = store
        self._events = events
        self._deadline = progress_deadline
        self._made: dict[Key, tuple[tuple[object, ...], _Children]] = {}

    async def reconcile(self, key: Key) -> Result:
        """Keep the Deployment at what the Revision wants and say how it stands."""
        revision = self._store.find(key)
        if revision is None or revision["metadata"].get("deletionTimestamp"):
            self._made.pop(key, None)
            return DONE
        deployment = await self._deploy(revision)
        pods = pods_of(self._store, key.namespace, key.name)
        status = plan_status(revision, deployment, pods, now=timestamp())
        await self._store.update_status(with_status(revision, status))
        became = get_condition({"status": status}, "Ready") or {}
        if became.get("status") == TRUE and not condition_is(revision, "Ready"):
            await self._events.event(
                revision,
                "Normal",
                "RevisionReady",
                "Revision becomes ready upon all resources being ready",
                component="revision-controller",
            )
        return DONE

    def _wanted(self, revision: Object) -> _Children:
        """Return the objects to have, computed anew when the Revision changed."""
        # Objects are never changed in place, so comparing them is comparing references first.
        inputs = (
            uid_of(revision),
            revision["spec"],
            labels_of(revision),
            annotations_of(revision),
        )
        key = Key(REVISION.id, namespace_of(revision), name_of(revision))
        made = self._made.get(key)
        if made is None or made[0] != inputs:
            wanted = _Children(
                deployment_for(revision, replicas=0, progress_deadline=self._deadline),
                autoscaler_for(revision),
                services_for(revision),
            )
            made = self._made[key] = (inputs, wanted)
        return made[1]

    async def _deploy(self, revision: Object) -> Object:
        """Bring the Revision's objects to what they should be; return the Deployment."""
        wanted = self._wanted(revision)
        for service in wanted.services:
            await self._have(service)
        autoscaler = await self._have(wanted.autoscaler)
        if autoscaler is not None and autoscaler["spec"] != wanted.autoscaler["spec"]:
            autoscaler = await self._store.update({**autoscaler, "spec": wanted.autoscaler["spec"]})
        count = replicas(revision, autoscaler)
        spec = {**wanted.deployment["spec"], "replicas": count}
        existing = self._store.find(key_of(wanted.deployment))
        if existing is None:
            return await self._store.create({**wanted.deployment, "spec": spec})
        if (controller_of(existing) or {}).get("uid") != uid_of(revision):
            name = name_of(existing)
            raise Conflict(f'There is an existing Deployment "{name}" that we do not own.')
        spec = reloads.kept(existing, spec)
        if existing["spec"] == spec:
            return existing
        return await self._store.update({**existing, "spec": spec})

    async def _have(self, wanted: Object) -> Object | None:
        """Create the object unless there is one; return what there is."""
        existing = self._store.find(key_of(wanted))
        if existing is not None:
            return existing
        try:
            return await self._store.create(wanted)
        except AlreadyExists:
            return None
