"""What serves an InferenceService or InferenceGraph of Standard mode -> the gateway's routes. Pure.

The Ingress or HTTPRoutes that KServe wrote say which hosts lead where; a Service's cluster name
leads to its Pods; the path `/serving/<namespace>/<name>` and the short form by model are ours and
lead where the service's own host does. A cluster's gateway holds no request, and neither does ours
(`Target.plain`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from kserve_local.api import names
from kserve_local.api.meta import Object, get_condition, name_of, namespace_of
from kserve_local.controllers import graph_pod, isvc_ingress, isvc_knative, isvc_status, pod_state
from kserve_local.controllers.endpoints import endpoints_of, model_names, reason_text
from kserve_local.interfaces.routing import Route, Target

_ANY_TIME = 0.0


@dataclass(frozen=True, slots=True)
class Standing:
    """One workload: its Deployment and Pods."""

    deployment: Object
    pods: Sequence[Object]


@dataclass(frozen=True, slots=True)
class Below:
    """What the store has for a service.

    Args:
        workloads: By the name that Deployment and Service share.
        services: Names of the Services that exist.
        ingress: None: there is none.
        http_routes: By name.
    """

    workloads: Mapping[str, Standing] = field(default_factory=dict)
    services: frozenset[str] = frozenset()
    ingress: Object | None = None
    http_routes: Mapping[str, Object] = field(default_factory=dict)


def compile_service(isvc: Object, below: Below, *, domain: str) -> tuple[Route, ...]:
    """Return the routes of one InferenceService.

    Args:
        domain: Whose hosts also get a `*.localhost` form.
    """
    if isvc_knative.is_stopped(isvc) or isvc["metadata"].get("deletionTimestamp"):
        return ()
    namespace, name = namespace_of(isvc), name_of(isvc)
    entry = isvc_knative.entry_of(isvc)
    compiler = _Compiler(isvc, below, domain)
    top = urlsplit(str((isvc.get("status") or {}).get("url") or "")).netloc
    outside = [*compiler.by_http_routes(), *compiler.by_ingress()]
    main = next((r for r in outside if top in r.hosts), None)
    workload = isvc_knative.service_name(isvc, entry)
    standing = below.workloads.get(workload)
    template = [standing.deployment["spec"]["template"]["spec"]] if standing else []
    shared: dict[str, Any] = {
        "path": f"/serving/{namespace}/{name}",
        "models": model_names(isvc, template),
    }
    if main is None:
        main = compiler.route(entry, (), (compiler.target(workload, 100),), **shared)
    else:
        outside.remove(main)
        main = replace(main, **shared)
    # Last: the first host is what users are told.
    main = replace(main, hosts=(*main.hosts, f"{name}.{namespace}.localhost".lower()))
    return (main, *outside, *compiler.by_service())


class _Compiler:
    """Makes the routes of one service."""

    def __init__(self, isvc: Object, below: Below, domain: str) -> None:
        self._isvc = isvc
        self._below = below
        self._domain = domain
        self._component = {
            isvc_knative.service_name(isvc, c): c for c in isvc_knative.components_of(isvc)
        }

    def route(
        self, component: str, hosts: Iterable[str], targets: tuple[Target, ...], **more: Any
    ) -> Route:
        values: dict[str, Any] = {"names_service": False, "timeout": _ANY_TIME, **more}
        return Route(
            namespace=namespace_of(self._isvc),
            service=name_of(self._isvc),
            component=component,
            hosts=tuple(hosts),
            targets=targets,
            **values,
        )

    def target(self, workload: str, percent: int) -> Target:
        return target_of(
            namespace_of(self._isvc),
            workload,
            percent,
            self._below.workloads.get(workload),
            _why_not(self._isvc, self._component.get(workload, "predictor")),
        )

    def by_service(self) -> Iterator[Route]:
        """Yield a route for each Service, by its cluster names."""
        for workload in sorted(self._below.services):
            hosts = names.cluster_hosts(workload, namespace_of(self._isvc))
            component = self._component.get(workload, "predictor")
            yield self.route(component, hosts, (self.target(workload, 100),))

    def by_ingress(self) -> Iterator[Route]:
        """Yield a route for each rule of the Ingress."""
        rules = ((self._below.ingress or {}).get("spec") or {}).get("rules") or ()
        for rule in rules:
            for path in (rule.get("http") or {}).get("paths") or ():
                workload = str(path["backend"]["service"]["name"])
                component = self._component.get(workload, "predictor")
                hosts = self._hosts([str(rule.get("host") or "")])
                yield self.route(component, hosts, (self.target(workload, 100),))

    def by_http_routes(self) -> Iterator[Route]:
        """Yield a route for each HTTPRoute; its rule for `:explain` goes into the same."""
        for route in self._below.http_routes.values():
            hosts = self._hosts(route["spec"].get("hostnames") or ())
            main: Mapping[str, Any] = {}
            explain: Mapping[str, Any] = {}
            for rule in route["spec"].get("rules") or ():
                matches: Sequence[Mapping[str, Any]] = rule.get("matches") or ({},)
                path = (matches[0].get("path") or {}).get("value")
                if path == isvc_ingress.EXPLAIN:
                    explain = rule
                elif path == isvc_ingress.ANYTHING:
                    main = rule
            targets = self._weighted(main)
            if not targets:
                continue
            first = isvc_ingress.weights_of(main)[0][0]
            yield self.route(
                self._component.get(first, "predictor"),
                hosts,
                targets,
                names_service=True,
                timeout=isvc_ingress.seconds_of(main),
                explain=self._weighted(explain),
                explain_timeout=isvc_ingress.seconds_of(explain) if explain else None,
            )

    def _weighted(self, rule: Mapping[str, Any]) -> tuple[Target, ...]:
        weights = [(name, weight) for name, weight in isvc_ingress.weights_of(rule) if weight]
        total = sum(weight for _, weight in weights)
        # A rule without weights of its own has one backend of weight 1.
        return tuple(self.target(name, round(100 * w / total)) for name, w in weights)

    def _hosts(self, hosts: Iterable[str]) -> list[str]:
        found = [host.lower() for host in hosts if host]
        suffix = f".{self._domain}"
        local = [f"{h.removesuffix(suffix)}.localhost" for h in found if h.endswith(suffix)]
        return list(dict.fromkeys((*found, *local)))


def compile_graph(graph: Object, standing: Standing | None, *, exists: bool) -> tuple[Route, ...]:
    """Return the route of an InferenceGraph: by its Service's names, for nothing else leads to it.

    Args:
        exists: Its Service does.
    """
    if isvc_knative.is_stopped(graph) or graph["metadata"].get("deletionTimestamp"):
        return ()
    namespace, name = namespace_of(graph), name_of(graph)
    return (
        Route(
            namespace=namespace,
            service=name,
            component="graph",
            hosts=(
                *(names.cluster_hosts(name, namespace) if exists else ()),
                f"{name}.{namespace}.localhost".lower(),
            ),
            targets=(target_of(namespace, name, 100, standing, ""),),
            path=f"/serving/{namespace}/{name}",
            timeout=_ANY_TIME,
        ),
    )


def target_of(
    namespace: str, workload: str, percent: int, standing: Standing | None, why: str
) -> Target:
    """Return a Deployment as a target.

    Args:
        standing: None: there is no such Deployment.
        why: What is known of why it has no replica, for the answer's hint.
    """
    spec: Mapping[str, Any] = {}
    endpoints = endpoints_of(standing.pods) if standing is not None else ()
    if standing is not None:
        spec = standing.deployment["spec"]["template"]["spec"]
    graph, propagate = graph_pod.routes_by(spec) or (None, ())
    reason = "" if endpoints else (_failure(standing) or why)
    state = "ready" if endpoints else "failed" if reason else "starting"
    return Target(
        id=f"{namespace}/{workload}",
        percent=percent,
        endpoints=endpoints,
        state=state,
        reason=reason,
        graph=graph,
        propagate=propagate,
        plain=True,
    )


def _failure(standing: Standing | None) -> str:
    for pod in pod_state.newest_first(standing.pods)[:1] if standing is not None else ():
        failure = pod_state.failure_of(pod)
        if failure is not None:
            return reason_text(failure.info())
    return ""


def _why_not(isvc: Object, component: str) -> str:
    model = (isvc.get("status") or {}).get("modelStatus") or {}
    if model.get("transitionStatus") == "InvalidSpec":
        return reason_text(model.get("lastFailureInfo") or {})
    own = get_condition(isvc, isvc_status.READY_OF[component]) or {}
    return reason_text(own) if own.get("status") == "False" else ""
