"""InferenceServices, InferenceGraphs, workloads and ready Pods -> the gateway's RouteTable.

Reads the store; writes nothing to it and publishes whole snapshots to a RouteSink. `compile_routes`
is pure and works on one InferenceService, so that a change costs the routes of one service; the
table is put together from what was compiled before. The first change goes out at once, later ones
are collected for a few milliseconds (longer where a table is expensive to hand over).

Hosts and weights are KServe's and Knative's (control-plane.md 4.2, 6.1; traffic.md 4.2, 7.2); what
a cluster answers while nothing is ready is not copied: a request waits here while a replica starts.
Standard mode's routes, where none waits, are compiled in `standard_routes`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kserve_local.api import names, pod_autoscaler
from kserve_local.api.config import parse
from kserve_local.api.meta import (
    Key,
    Object,
    annotations_of,
    condition_is,
    get_condition,
    labels_of,
    name_of,
    namespace_of,
    uid_of,
)
from kserve_local.api.scheme import (
    CONFIG_MAP,
    DEPLOYMENT,
    HTTP_ROUTE,
    INFERENCE_GRAPH,
    INFERENCE_SERVICE,
    INGRESS,
    KNATIVE_SERVICE,
    POD,
    POD_AUTOSCALER,
    REVISION,
    SERVICE,
    key_of,
)
from kserve_local.controllers import (
    graph_knative,
    graph_pod,
    isvc_knative,
    isvc_status,
    knative_names,
    pod_state,
    standard_routes,
)
from kserve_local.controllers.endpoints import endpoints_of, model_names, reason_text
from kserve_local.controllers.isvc_knative import Component
from kserve_local.controllers.knative_service import DEFAULT_TIMEOUT, newest, number_of
from kserve_local.controllers.revision import pods_of, replicas
from kserve_local.controllers.standard_routes import Below, Standing
from kserve_local.errors import Invalid
from kserve_local.interfaces.routing import Route, RouteSink, RouteTable, Target
from kserve_local.reconcile.controller import Watch, controlling, itself, labelled
from kserve_local.reconcile.result import DONE, Result
from kserve_local.store.store import Store

logger = logging.getLogger(__name__)

COALESCE = 0.005
COALESCE_PER_ROUTE = 5e-6
"""Seconds in which further changes are collected after a publish: so many, and more by route."""


@dataclass(frozen=True, slots=True)
class Backing:
    """What one Revision has to serve with.

    Args:
        replicas: How many Pods it should have now.
        direct: Requests go to its Pods without passing the activator.
    """

    revision: Object
    pods: Sequence[Object]
    replicas: int = 1
    direct: bool = False


@dataclass(frozen=True, slots=True)
class Served:
    """What one component has to serve with.

    Args:
        ksvc: Its Knative Service; None: nothing could be made of the spec.
        backings: Revisions of `ksvc` by name.
    """

    ksvc: Object | None = None
    backings: Mapping[str, Backing] = field(default_factory=dict)


def compile_routes(
    isvc: Object, served: Mapping[Component, Served], *, domain: str
) -> tuple[Route, ...]:
    """Return the routes of one InferenceService: its entry, its components, their tags and
    Revisions.

    Args:
        domain: Knative's domain.
    """
    if isvc_knative.is_stopped(isvc) or isvc["metadata"].get("deletionTimestamp"):
        return ()
    name, namespace = name_of(isvc), namespace_of(isvc)
    local_only = labels_of(isvc).get(names.KNATIVE_VISIBILITY) == "cluster-local"
    public = "" if local_only else domain
    below = {c: served.get(c, Served()) for c in isvc_knative.components_of(isvc)}
    targets = {c: _targets(isvc, c, s) for c, s in below.items()}
    entry = isvc_knative.entry_of(isvc)
    routes = [
        Route(
            namespace=namespace,
            service=name,
            component=entry,
            hosts=entry_hosts(isvc, public),
            targets=targets[entry],
            path=f"/serving/{namespace}/{name}",
            models=model_names(isvc, _newest_spec(below[entry].backings)),
            explain=targets.get("explainer", ()),
        )
    ]
    for component, has in below.items():
        ksvc_name = isvc_knative.service_name(isvc, component)
        hosts = [(ksvc_name, public, targets[component])]
        hosts += [(f"{tag}-{ksvc_name}", public, to) for tag, to in _tagged(has).items()]
        # A Revision's own Service is inside the cluster only.
        hosts += [(revision, "", (_target(b, 100),)) for revision, b in has.backings.items()]
        routes += [
            Route(
                namespace=namespace,
                service=name,
                component=component,
                hosts=hosts_of(host, namespace, among),
                targets=to,
                names_service=False,
            )
            for host, among, to in hosts
        ]
    return tuple(routes)


def _tagged(served: Served) -> dict[str, tuple[Target, ...]]:
    """Return where the hosts of tags lead; to several Revisions while one is rolled out."""
    weights: dict[str, dict[str, int]] = {}
    for entry in _traffic(served.ksvc):
        tag, revision = entry.get("tag"), entry.get("revisionName", "")
        if tag and revision in served.backings:
            weights.setdefault(tag, {})[revision] = int(entry.get("percent") or 0)
    return {
        tag: tuple(
            _target(served.backings[revision], percent)
            for revision, percent in _of_hundred(shares).items()
        )
        for tag, shares in weights.items()
    }


def _of_hundred(shares: Mapping[str, int]) -> dict[str, int]:
    """Return the shares as percents of their own sum; one alone has all of it."""
    *others, last = shares
    total = sum(shares.values()) or 1
    scaled = {revision: shares[revision] * 100 // total for revision in others}
    return {**scaled, last: 100 - sum(scaled.values())}


def compile_graph(
    graph: Object,
    ksvc: Object | None,
    backings: Mapping[str, Backing],
    *,
    domain: str,
    missing: Sequence[str] = (),
) -> tuple[Route, ...]:
    """Return the route of one InferenceGraph; its targets tell what the gateway routes by.

    Args:
        ksvc: Its Knative Service; None: what its steps name is not there yet.
        missing: InferenceServices that its steps name and that do not exist.
    """
    if isvc_knative.is_stopped(graph) or graph["metadata"].get("deletionTimestamp"):
        return ()
    name, namespace = name_of(graph), namespace_of(graph)
    local_only = labels_of(graph).get(names.KNATIVE_VISIBILITY) == "cluster-local"
    targets = _revision_targets(Served(ksvc, backings))
    if not targets:
        ready = get_condition(graph, "Ready") or {}
        reason = reason_text(ready) if ready.get("status") == "False" else ""
        if missing and ksvc is None:
            reason = f"Failed to find graph service {missing[0]}"
        state = "failed" if reason else "starting"
        targets = (Target(id=f"{namespace}/{name}", percent=100, state=state, reason=reason),)
    return (
        Route(
            namespace=namespace,
            service=name,
            component="graph",
            hosts=hosts_of(name, namespace, "" if local_only else domain),
            targets=targets,
            path=f"/serving/{namespace}/{name}",
        ),
    )


def hosts_of(name: str, namespace: str, domain: str) -> tuple[str, ...]:
    """Return every host a name answers to; without a domain only inside the cluster."""
    cluster = names.cluster_hosts(name, namespace)
    short = cluster[0]
    public = (f"{short}.{domain.lower()}", f"{short}.localhost") if domain else ()
    return (*public, *cluster)


def entry_hosts(isvc: Object, domain: str) -> tuple[str, ...]:
    """Return the hosts of the service as a whole.

    With a `predictor.name` the host of `status.url` has that name in it (control-plane.md 4.2); it
    is added to what every service has.
    """
    name, namespace = name_of(isvc), namespace_of(isvc)
    hosts = hosts_of(name, namespace, domain)
    entry = isvc_knative.entry_of(isvc)
    ksvc = isvc_knative.service_name(isvc, entry)
    shown = isvc_status.knative_url(f"http://{ksvc}", entry, scheme="http").removeprefix("http://")
    if not domain or shown in (name, ksvc):
        return hosts
    return (*hosts, *(h.lower() for h in hosts_of(shown, namespace, domain)[:2]))


def _newest_spec(backings: Mapping[str, Backing]) -> list[Mapping[str, Any]]:
    latest = newest([b.revision for b in backings.values()])
    return [] if latest is None else [latest["spec"]]


def _traffic(ksvc: Object | None) -> Sequence[Mapping[str, Any]]:
    return ((ksvc or {}).get("status") or {}).get("traffic") or ()


def _targets(isvc: Object, component: Component, served: Served) -> tuple[Target, ...]:
    """Return where requests go. Before the first Revision is ready they wait for the newest."""
    return _revision_targets(served) or (_without_revision(isvc, component),)


def _revision_targets(served: Served) -> tuple[Target, ...]:
    """Return the Revisions that take requests; empty: there is none yet."""
    backings = served.backings
    weights: dict[str, int] = {}
    for entry in _traffic(served.ksvc):
        revision = entry.get("revisionName", "")
        if revision in backings:
            weights[revision] = weights.get(revision, 0) + int(entry.get("percent") or 0)
    # Knative leaves targets of 0 % out of the gateway's rule.
    weights = {revision: percent for revision, percent in weights.items() if percent}
    if not weights:
        latest = newest([b.revision for b in backings.values()])
        if latest is None:
            return ()
        weights = {name_of(latest): 100}
    return tuple(_target(backings[name], percent) for name, percent in weights.items())


def _without_revision(isvc: Object, component: Component) -> Target:
    """Return the target of a component that has no Revision: on its way, or why there is none.

    A transformer or explainer is not made before something could be made of the predictor.
    """
    model = (isvc.get("status") or {}).get("modelStatus") or {}
    own = get_condition(isvc, isvc_status.READY_OF[component]) or {}
    predictor = get_condition(isvc, isvc_status.PREDICTOR_READY) or {}
    reason = ""
    if model.get("transitionStatus") == "InvalidSpec":
        reason = reason_text(model.get("lastFailureInfo") or {})
    elif own.get("status") == "False":
        reason = reason_text(own)
    elif predictor.get("reason") == isvc_status.RECONCILE_FAILED:
        reason = reason_text(predictor)
    return Target(
        id=f"{namespace_of(isvc)}/{isvc_knative.service_name(isvc, component)}",
        percent=100,
        state="failed" if reason else "starting",
        reason=reason,
    )


def _target(backing: Backing, percent: int) -> Target:
    revision = backing.revision
    endpoints = endpoints_of(backing.pods)
    spec = revision["spec"]
    state, reason = ("ready", "") if endpoints else _state(backing)
    graph, propagate = graph_pod.routes_by(spec) or (None, ())
    return Target(
        id=f"{namespace_of(revision)}/{name_of(revision)}",
        percent=percent,
        endpoints=endpoints,
        state=state,
        reason=reason,
        container_concurrency=int(spec.get("containerConcurrency") or 0),
        timeout=float(spec.get("timeoutSeconds") or DEFAULT_TIMEOUT),
        graph=graph,
        propagate=propagate,
        direct=backing.direct,
    )


def _state(backing: Backing) -> tuple[str, str]:
    """Return state and reason of a Revision without a ready Pod.

    A Revision that served before will again: its Pod restarts; unless that fails too. One that
    never came up and whose newest Pod failed will not without a change; neither will one past its
    progress deadline.
    """
    revision = backing.revision
    if backing.replicas == 0:
        return "zero", ""
    served = condition_is(revision, "ResourcesAvailable")
    live = [p for p in backing.pods if not pod_state.is_terminating(p)]
    for pod in pod_state.newest_first(live)[:1]:
        failure = pod_state.is_not_coming(pod) if served else pod_state.failure_of(pod)
        if failure is not None:
            return "failed", reason_text(failure.info())
    if served:
        return "starting", ""
    ready = get_condition(revision, "Ready") or {}
    if ready.get("status") == "False":
        return "failed", reason_text(ready)
    return "starting", ""


class RoutesController:
    """Compiles the routes of the services and graphs that changed and publishes the table.

    Args:
        sink: Takes the snapshots.
        domain: Knative's domain.
        host_address: This machine's address in a network of replicas' own (`Backend`).
        clock: Monotonic seconds.
    """

    name = "routes"

    def __init__(
        self,
        store: Store,
        sink: RouteSink,
        *,
        domain: str,
        host_address: Callable[[], str] = str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.watches = (
            Watch(INFERENCE_SERVICE.id, itself),
            Watch(KNATIVE_SERVICE.id, controlling(INFERENCE_SERVICE.id)),
            Watch(REVISION.id, labelled(INFERENCE_SERVICE.id, names.ISVC_LABEL)),
            Watch(POD_AUTOSCALER.id, labelled(INFERENCE_SERVICE.id, names.ISVC_LABEL)),
            Watch(POD.id, labelled(INFERENCE_SERVICE.id, names.ISVC_LABEL)),
            Watch(DEPLOYMENT.id, controlling(INFERENCE_SERVICE.id)),
            Watch(SERVICE.id, controlling(INFERENCE_SERVICE.id)),
            Watch(INGRESS.id, controlling(INFERENCE_SERVICE.id)),
            Watch(HTTP_ROUTE.id, controlling(INFERENCE_SERVICE.id)),
            Watch(INFERENCE_GRAPH.id, itself),
            Watch(DEPLOYMENT.id, controlling(INFERENCE_GRAPH.id)),
            Watch(SERVICE.id, controlling(INFERENCE_GRAPH.id)),
            Watch(INFERENCE_SERVICE.id, self._waiting_graphs),
            Watch(KNATIVE_SERVICE.id, controlling(INFERENCE_GRAPH.id)),
            Watch(REVISION.id, labelled(INFERENCE_GRAPH.id, names.GRAPH_LABEL)),
            Watch(POD_AUTOSCALER.id, labelled(INFERENCE_GRAPH.id, names.GRAPH_LABEL)),
            Watch(POD.id, labelled(INFERENCE_GRAPH.id, names.GRAPH_LABEL)),
        )
        self._host_address = host_address
        self._store = store
        self._sink = sink
        self._domain = domain
        self._clock = clock
        self._routes: dict[Key, tuple[Route, ...]] | None = None
        self._service_hosts: dict[Key, dict[str, str]] = {}
        self._version = 0
        self._quiet_until = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def _waiting_graphs(self, isvc: Object) -> Iterable[Key]:
        """Map an InferenceService to the graphs that are still without a Knative Service.

        One of Standard mode never has any; its routes are cheap to look at.
        """
        for graph in self._store.list(INFERENCE_GRAPH.id, namespace=namespace_of(isvc)):
            key = Key(KNATIVE_SERVICE.id, namespace_of(graph), name_of(graph))
            if name_of(isvc) in graph_knative.services_of(graph) and self._store.find(key) is None:
                yield key_of(graph)

    def attach(self, add: Callable[[Key], None]) -> None:
        """Have the first table published even when there is no service yet.

        The gateway serves nothing before it has a table.
        """
        add(Key(INFERENCE_SERVICE.id, "", ""))

    async def reconcile(self, key: Key) -> Result:
        """Compile the routes of one service or graph again and publish what changed."""
        if self._routes is None:
            # The first table must be whole: a gateway that outlived us serves all of them.
            self._routes = {}
            for kind in (INFERENCE_SERVICE, INFERENCE_GRAPH):
                for obj in self._store.list(kind.id):
                    self._compile(Key(kind.id, namespace_of(obj), name_of(obj)))
            self._publish()
            return DONE
        if self._compile(key):
            self._schedule()
        return DONE

    def _routes_of(self, key: Key, obj: Object) -> tuple[Route, ...]:
        if self._is_standard(obj):
            return self._standard_routes(key, obj)
        if key.resource != INFERENCE_GRAPH.id:
            services = {
                c: self._served(key.namespace, isvc_knative.service_name(obj, c))
                for c in isvc_knative.components_of(obj)
            }
            return compile_routes(obj, services, domain=self._domain)
        served = self._served(key.namespace, key.name)
        missing = [
            step
            for step in (graph_knative.services_of(obj) if served.ksvc is None else ())
            if self._store.find(Key(INFERENCE_SERVICE.id, key.namespace, step)) is None
        ]
        return compile_graph(
            obj, served.ksvc, served.backings, domain=self._domain, missing=missing
        )

    def _is_standard(self, obj: Object) -> bool:
        """Whether it is of Standard mode; a graph's status does not say."""
        mode = (obj.get("status") or {}).get("deploymentMode") or ""
        given = annotations_of(obj).get(names.DEPLOYMENT_MODE)
        if mode or given in names.MODES:
            return (mode or given) == names.STANDARD_MODE
        try:
            config = parse(
                self._store.find(Key(CONFIG_MAP.id, names.KSERVE_NAMESPACE, names.CONFIG_MAP))
            )
        except Invalid:
            return False
        return config.deployment_mode(given) == names.STANDARD_MODE

    def _standard_routes(self, key: Key, obj: Object) -> tuple[Route, ...]:
        owned = {
            kind: {name_of(o): o for o in self._store.owned_by(uid_of(obj), kind.id)}
            for kind in (DEPLOYMENT, SERVICE, INGRESS, HTTP_ROUTE)
        }
        self._service_hosts[key] = {
            address: f"{name}.{key.namespace}"
            for name, service in owned[SERVICE].items()
            if (address := str(service["spec"].get("clusterIP") or "None")) != "None"
        }
        standing = {
            name: Standing(d, self._store.owned_by(uid_of(d), POD.id))
            for name, d in owned[DEPLOYMENT].items()
        }
        if key.resource == INFERENCE_GRAPH.id:
            exists = key.name in owned[SERVICE]
            return standard_routes.compile_graph(obj, standing.get(key.name), exists=exists)
        below = Below(
            workloads=standing,
            services=frozenset(owned[SERVICE]),
            ingress=owned[INGRESS].get(key.name),
            http_routes=owned[HTTP_ROUTE],
        )
        return standard_routes.compile_service(obj, below, domain=self._domain)

    def close(self) -> None:
        """Publish what is still waiting and stop."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._publish()

    def _compile(self, key: Key) -> bool:
        """Compile one service; return whether its routes are other ones now."""
        assert self._routes is not None
        obj = self._store.find(key)
        self._service_hosts.pop(key, None)
        if obj is None:
            return self._routes.pop(key, None) is not None
        routes = self._routes_of(key, obj)
        if self._routes.get(key) == routes:
            return False
        self._routes[key] = routes
        return True

    def _served(self, namespace: str, name: str) -> Served:
        ksvc = self._store.find(Key(KNATIVE_SERVICE.id, namespace, name))
        return Served(ksvc, {} if ksvc is None else self._backings(ksvc))

    def _backings(self, ksvc: Object) -> dict[str, Backing]:
        routed = {entry.get("revisionName") for entry in _traffic(ksvc)}
        revisions = self._store.owned_by(uid_of(ksvc), REVISION.id)
        last = max((number_of(r) for r in revisions), default=0)
        return {
            name_of(r): self._backing(r)
            for r in revisions
            if name_of(r) in routed or number_of(r) == last
        }

    def _backing(self, revision: Object) -> Backing:
        namespace, name = namespace_of(revision), name_of(revision)
        autoscaler = self._store.find(Key(POD_AUTOSCALER.id, namespace, name))
        return Backing(
            revision,
            pods_of(self._store, namespace, name),
            replicas=replicas(revision, autoscaler),
            direct=pod_autoscaler.is_direct(autoscaler),
        )

    def _schedule(self) -> None:
        if self._timer is not None:
            return
        wait = self._quiet_until - self._clock()
        if wait <= 0:
            self._publish()
        else:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(wait, self._publish)

    def _publish(self) -> None:
        self._timer = None
        assert self._routes is not None
        routes = tuple(itertools.chain.from_iterable(self._routes.values()))
        self._version += 1
        self._sink.publish(RouteTable(version=self._version, routes=routes, listen=self._listen()))
        # What a large table costs, here and at the gateway, must not be most of what they do.
        self._quiet_until = self._clock() + COALESCE + COALESCE_PER_ROUTE * len(routes)

    def _listen(self) -> dict[str, str]:
        """Return which host a call to an address is for: that of a Service, or the local gateway,
        whose callers name a Host.
        """
        host = knative_names.LOCAL_GATEWAY.removesuffix(".svc.cluster.local")
        name, _, namespace = host.partition(".")
        gateway = self._store.find(Key(SERVICE.id, namespace, name))
        address = str(((gateway or {}).get("spec") or {}).get("clusterIP") or "")
        addresses = [a for a in (address, self._host_address()) if a and a != "None"]
        listen = {k: v for of in self._service_hosts.values() for k, v in of.items()}
        return {**listen, **dict.fromkeys(addresses, knative_names.LOCAL_GATEWAY)}
