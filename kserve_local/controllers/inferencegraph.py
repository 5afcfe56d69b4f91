"""InferenceGraph -> the workload of its router, and the status that a KServe user reads.

Reads InferenceGraphs, the InferenceServices their steps name, runtimes, the ConfigMap
`inferenceservice-config` and the Knative Service or Deployment below; writes that, Events and the
graph's status. Conditions, Events and what is waited for are KServe v0.20's
(pkg/controller/v1alpha1/inferencegraph; control-plane.md 9.2, 11).

One thing is faster: the services a graph waits for wake it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kserve_local.api import names, validation
from kserve_local.api.config import InferenceServiceConfig, parse
from kserve_local.api.meta import (
    Key,
    Object,
    annotations_of,
    controller_of,
    get_condition,
    labels_of,
    name_of,
    namespace_of,
    timestamp,
    uid_of,
    with_status,
)
from kserve_local.api.scheme import (
    CLUSTER_SERVING_RUNTIME,
    CONFIG_MAP,
    DEPLOYMENT,
    INFERENCE_GRAPH,
    INFERENCE_SERVICE,
    KNATIVE_SERVICE,
    SERVICE,
    SERVING_RUNTIME,
    key_of,
)
from kserve_local.controllers import graph_knative, graph_standard
from kserve_local.controllers.isvc_ingress import with_domain
from kserve_local.controllers.isvc_knative import is_stopped
from kserve_local.controllers.isvc_status import NOT_AVAILABLE
from kserve_local.controllers.observed import Observations
from kserve_local.controllers.standard_apply import StandardObjects, StandardSettings
from kserve_local.errors import (
    AlreadyExists,
    Conflict,
    Forbidden,
    Invalid,
    KServeLocalError,
    NotFound,
    ServiceUnavailable,
)
from kserve_local.reconcile.conditions import FALSE, TRUE
from kserve_local.reconcile.controller import Watch, controlling, itself
from kserve_local.reconcile.result import DONE, RETRY, Result
from kserve_local.store.events import EventRecorder
from kserve_local.store.store import Store

COMPONENT = "InferenceGraphController"
"""`source.component` of the Events, as KServe's recorder is named."""
NOT_READY, NOT_FOUND = "ServiceNotReady", "ServiceNotFound"
"""Reasons (ours) why a graph has no Knative Service yet; on a cluster only the log says."""

_OF_KSVC = ("ConfigurationsReady", "Ready", "RoutesReady")


def plan_status(graph: Object, ksvc: Object | None, *, now: str) -> dict[str, Any]:
    """Return the graph's status: the Knative Service's conditions, and Stopped.

    Args:
        ksvc: As stored; None: it is stopped.
    """
    before: Mapping[str, Any] = graph.get("status") or {}
    status = {k: copy.deepcopy(v) for k, v in before.items() if k not in ("conditions", "url")}
    known = {str(c["type"]): c for c in before.get("conditions") or ()}
    if ksvc is None:
        wanted = [
            {"type": "Ready", "status": FALSE, "reason": "Stopped"},
            {"type": "Stopped", "status": TRUE},
        ]
    else:
        found = (ksvc.get("status") or {}).get("conditions") or ()
        wanted = [copy.deepcopy(c) for c in found if c["type"] in _OF_KSVC]
        wanted.append({"type": "Stopped", "status": FALSE})
        ready = next((c for c in wanted if c["type"] == "Ready"), {})
        url = (ksvc.get("status") or {}).get("url")
        if ready.get("status") == TRUE and url:
            status["url"] = url
    status["conditions"] = [_timed(c, known.get(c["type"]), now) for c in wanted]
    return status


def plan_standard_status(graph: Object, deployment: Object, url: str, *, now: str) -> Object:
    """Return the status of a graph of Standard mode whose Deployment says that it is available."""
    before: Mapping[str, Any] = graph.get("status") or {}
    known = {str(c["type"]): c for c in before.get("conditions") or ()}
    seen = (deployment.get("status") or {}).get("observedGeneration")
    return {
        **{k: copy.deepcopy(v) for k, v in before.items() if k != "conditions"},
        "url": url,
        **({"observedGeneration": seen} if seen else {}),
        "conditions": [_timed(c, known.get(c["type"]), now) for c in graph_standard.conditions()],
    }


def _timed(condition: dict[str, Any], before: Mapping[str, Any] | None, now: str) -> dict[str, Any]:
    if condition.get("lastTransitionTime"):
        return condition
    same = before is not None and before.get("status") == condition["status"]
    since = (before or {}).get("lastTransitionTime") if same else None
    return {**condition, "lastTransitionTime": since or now}


class InferenceGraphController:
    """Writes the next link: the workload of a graph's router, and the graph's status.

    Args:
        observed: Where it tells what became of each spec.
        standard: What Standard mode needs to know of the project.
    """

    name = "inferencegraph"

    def __init__(
        self,
        store: Store,
        events: EventRecorder,
        observed: Observations | None = None,
        standard: StandardSettings | None = None,
    ) -> None:
        self._standard = standard or StandardSettings()
        self._objects = StandardObjects(store, self._standard)
        self._store = store
        self._events = events
        self._observed = observed or Observations()
        self.watches = (
            Watch(INFERENCE_GRAPH.id, itself),
            Watch(KNATIVE_SERVICE.id, controlling(INFERENCE_GRAPH.id)),
            Watch(DEPLOYMENT.id, controlling(INFERENCE_GRAPH.id)),
            Watch(SERVICE.id, controlling(INFERENCE_GRAPH.id)),
            Watch(INFERENCE_SERVICE.id, self._users),
        )

    def _users(self, isvc: Object) -> Iterable[Key]:
        """Map an InferenceService to the graphs whose steps name it."""
        for graph in self._store.list(INFERENCE_GRAPH.id, namespace=namespace_of(isvc)):
            if name_of(isvc) in graph_knative.services_of(graph):
                yield key_of(graph)

    async def reconcile(self, key: Key) -> Result:
        """Bring the workload to what the graph asks for and say how it stands."""
        graph = self._store.find(key)
        if graph is None:
            self._observed.forget(key)
            return DONE
        if graph["metadata"].get("deletionTimestamp"):
            return DONE
        try:
            config = parse(
                self._store.find(Key(CONFIG_MAP.id, names.KSERVE_NAMESPACE, names.CONFIG_MAP))
            )
        except Invalid as error:
            return await self._failed(graph, "InternalError", error)
        mode = config.deployment_mode(annotations_of(graph).get(names.DEPLOYMENT_MODE))
        if is_stopped(graph):
            return await self._stop(graph)
        if mode == names.MODEL_MESH_MODE:
            return await self._refuse(graph, mode)
        in_standard_mode = mode == names.STANDARD_MODE
        try:
            if in_standard_mode:
                below = await self._apply_standard(graph, config)
            else:
                below = await self._apply(graph, config)
        except Conflict:
            raise
        except NotFound as error:
            return await self._waits(graph, NOT_FOUND, error)
        except ServiceUnavailable as error:
            return await self._waits(graph, NOT_READY, error)
        except KServeLocalError as error:
            return await self._failed(graph, "InternalError", error)
        settled = (below.get("status") or {}).get("observedGeneration") == below["metadata"].get(
            "generation"
        )
        if not in_standard_mode:
            await self._write(graph, plan_status(graph, below, now=timestamp()))
        elif graph_standard.is_ready(below):
            url = graph_standard.url_of(graph, with_domain(config, self._standard.domain))
            await self._write(graph, plan_standard_status(graph, below, url, now=timestamp()))
        else:
            settled = False
        self._observed.carried_out(graph, settled=settled)
        return DONE

    def _resolved(self, graph: Object) -> dict[str, Any]:
        """Return the graph's spec with the URLs of its steps.

        Raises:
            NotFound, ServiceUnavailable: A step's service is missing or has no address.
        """
        namespace = namespace_of(graph)
        return graph_knative.resolved(
            graph,
            service=lambda name: self._store.find(Key(INFERENCE_SERVICE.id, namespace, name)),
            runtime=lambda name: (
                self._store.find(Key(SERVING_RUNTIME.id, namespace, name))
                or self._store.find(Key(CLUSTER_SERVING_RUNTIME.id, "", name))
            ),
        )

    async def _apply_standard(self, graph: Object, config: InferenceServiceConfig) -> Object:
        """Create or update the router's workload; return its Deployment as stored."""
        config = with_domain(config, self._standard.domain)
        # A name that makes no host is refused before anything is written, as upstream.
        graph_standard.url_of(graph, config)
        workload = graph_standard.workload(graph, self._resolved(graph), config)
        return await self._objects.apply(workload, config)

    async def _apply(self, graph: Object, config: InferenceServiceConfig) -> Object:
        """Create or update the Knative Service; return it as stored."""
        wanted = graph_knative.knative_service(graph, self._resolved(graph), config)
        existing = self._store.find(key_of(wanted))
        if existing is None:
            self._review(wanted, None, config)
            created = await self._store.create(wanted)
            text = f'Created Knative Service "{name_of(created)}"'
            await self._event(graph, "Normal", "Created", text)
            return created
        owner = str((controller_of(existing) or {}).get("uid") or "")
        if owner != uid_of(graph):
            if owner and self._store.key_of_uid(owner) is None:
                # What is left of a deleted graph of the same name; the collector is at it.
                raise Conflict(f'Knative Service "{name_of(existing)}" is being collected')
            raise AlreadyExists(
                f'Knative Service "{name_of(existing)}" exists and is not owned by InferenceGraph'
                f' "{name_of(graph)}"; delete it or rename the InferenceGraph'
            )
        template = existing["spec"].get("template")
        if template == wanted["spec"]["template"] and labels_of(existing) == labels_of(wanted):
            return existing
        updated = {
            **existing,
            "metadata": {**existing["metadata"], "labels": wanted["metadata"]["labels"]},
            "spec": {**existing["spec"], "template": wanted["spec"]["template"]},
        }
        self._review(updated, existing, config)
        return await self._store.update(updated)

    def _review(self, ksvc: Object, old: Object | None, config: InferenceServiceConfig) -> None:
        """Ask Knative's webhook, which a controller's write passes too."""
        try:
            validation.validate(ksvc, old=old, config=config, lookup=self._lookup)
        except (Forbidden, Invalid) as error:
            raise Forbidden(f"fails to reconcile inference graph ksvc: {error}") from error

    def _lookup(self, resource: str, namespace: str | None) -> Sequence[Object]:
        return self._store.list(resource, namespace=namespace)

    async def _waits(self, graph: Object, reason: str, error: KServeLocalError) -> Result:
        """A step's service is missing or has no address: as on a cluster, the status stays.

        It may come with the same `apply`, so that is nothing to fail for.
        """
        known = self._observed.of(graph)
        if known is None or known.message != error.message:
            await self._event(graph, "Warning", reason, error.message)
        self._observed.waits(graph, reason, error.message)
        return RETRY

    async def _failed(self, graph: Object, reason: str, error: KServeLocalError) -> Result:
        self._observed.failed(graph, reason, str(error))
        await self._event(graph, "Warning", reason, str(error))
        return RETRY

    async def _stop(self, graph: Object) -> Result:
        # A cluster leaves the HPA behind; its Deployment is gone, so it does nothing.
        kinds = (KNATIVE_SERVICE.id, DEPLOYMENT.id, SERVICE.id)
        await self._objects.remove_owned(graph, kinds)
        await self._write(graph, plan_status(graph, None, now=timestamp()))
        self._observed.carried_out(graph)
        return DONE

    async def _refuse(self, graph: Object, mode: str) -> Result:
        """Say that graphs of this deployment mode are not run."""
        message = (
            f"deploymentMode {mode} is not available for InferenceGraphs in this version of "
            f"kserve-local; remove the annotation {names.DEPLOYMENT_MODE} to run it in Knative mode"
        )
        if (get_condition(graph, "Ready") or {}).get("message") != message:
            await self._event(graph, "Warning", NOT_AVAILABLE, message)
        condition = {"type": "Ready", "status": FALSE, "reason": NOT_AVAILABLE, "message": message}
        before = get_condition(graph, "Ready")
        await self._write(graph, {"conditions": [_timed(condition, before, timestamp())]})
        self._observed.carried_out(graph)
        return DONE

    async def _write(self, graph: Object, status: dict[str, Any]) -> None:
        was = (get_condition(graph, "Ready") or {}).get("status") == TRUE
        await self._store.update_status(with_status(graph, status))
        now = (get_condition({"status": status}, "Ready") or {}).get("status") == TRUE
        if now and not was:
            text = f"InferenceGraph [{name_of(graph)}] is Ready"
            await self._event(graph, "Normal", "InferenceGraphReady", text)
        elif was and not now:
            text = f"InferenceGraph [{name_of(graph)}] is no longer Ready"
            await self._event(graph, "Warning", "InferenceGraphNotReady", text)

    async def _event(self, graph: Object, type_: Any, reason: str, message: str) -> None:
        await self._events.event(graph, type_, reason, message, component=COMPONENT)
