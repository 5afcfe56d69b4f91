"""How an InferenceService of Standard mode is reached from outside: Ingress or HTTPRoutes. Pure.

Copies KServe v0.20 (reconcilers/ingress/{domain,kube_ingress_reconciler,httproute_reconciler}.go;
control-plane.md 4.2, 4.3, 5.4; traffic.md 7.4, 7.5), quirks included: an Ingress leads the
transformer's host to the predictor and knows no canaries; HTTPRoutes weigh canaries in every rule,
also where a transformer is meant.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from kserve_local.api import names
from kserve_local.api.config import InferenceServiceConfig, IngressConfig
from kserve_local.api.meta import (
    Object,
    annotations_of,
    labels_of,
    name_of,
    namespace_of,
    owner_reference,
)
from kserve_local.api.scheme import HTTP_ROUTE, INGRESS, SERVICE
from kserve_local.controllers import placeholders
from kserve_local.controllers.isvc_knative import Component, components_of, entry_of, service_name
from kserve_local.controllers.standard_objects import H2C, HTTP_PORT, is_grpc
from kserve_local.errors import Invalid

EXPLAIN = r"^/v1/models/[\w-]+:explain$"
ANYTHING = "^/.*$"
RPC = r"^/inference\.GRPCInferenceService/.*$"
DEFAULT_TIMEOUT = 60
"""Seconds a request may take through an HTTPRoute."""

_CLUSTER_DOMAIN = "svc.cluster.local"
_DOMAIN_FIELD = re.compile(r"\{\{-?\s*\.IngressDomain\s*-?\}\}")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_LONGEST_LABEL, _LONGEST_NAME = 63, 253


def with_domain(config: InferenceServiceConfig, domain: str) -> InferenceServiceConfig:
    """Return the configuration with the project's domain where the ConfigMap has the shipped one.

    Args:
        domain: `gateway.domain` of kserve-local.yaml.
    """
    if config.ingress.domain != IngressConfig().domain or domain == config.ingress.domain:
        return config
    return replace(config, ingress=replace(config.ingress, domain=domain))


def is_internal(isvc: Object, config: IngressConfig) -> bool:
    """Whether nothing leads to the service from outside."""
    return (
        labels_of(isvc).get(names.STANDARD_VISIBILITY) == "cluster-local"
        or config.domain == _CLUSTER_DOMAIN
        or config.disable_ingress_creation
    )


def host_of(name: str, owner: Object, config: IngressConfig) -> str:
    """Return the public host of a name, by the ConfigMap's domainTemplate.

    Raises:
        Invalid: The template is none, or what comes out is no domain name.
    """
    template = _DOMAIN_FIELD.sub(config.domain, config.domain_template)
    try:
        host = placeholders.render(template, {**owner["metadata"], "name": name})
    except placeholders.TemplateError as error:
        raise Invalid(f"error rendering the domain template: {error}") from error
    labels = host.removesuffix(".").split(".")
    problem = ""
    if len(labels) < 2:
        problem = "should be a domain with at least two segments separated by dots"
    elif any(len(label) > _LONGEST_LABEL for label in labels):
        problem = "must be no more than 63 characters"
    elif len(host) > _LONGEST_NAME or not all(map(_LABEL.fullmatch, labels)):
        problem = (
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, "
            "'-' or '.', and must start and end with an alphanumeric character"
        )
    if problem:
        raise Invalid(f'invalid domain name "{host}": url: Invalid value: "{host}": {problem}')
    return host


def url_of(name: str, owner: Object, config: IngressConfig, *, scheme: str = "http") -> str:
    """Return the URL of a component (always http), or with `scheme` that of the service."""
    return f"{scheme}://{host_of(name, owner, config)}"


def address_of(isvc: Object, service: Object, *, headless: bool) -> str:
    """Return `status.address.url`: the entry component's Service, with its port if headless."""
    host = f"{name_of(service)}.{namespace_of(isvc)}.{_CLUSTER_DOMAIN}"
    if headless:
        plain = (p for p in service["spec"].get("ports") or () if not _is_rpc_port(p))
        port = next((int(p.get("targetPort") or 0) for p in plain), 0)
        host = f"{host}:{port or names.DEFAULT_PORT}"
    return f"http://{host}"


# Ingress


def ingress(isvc: Object, config: InferenceServiceConfig) -> Object:
    """Return the Ingress of a service whose components are ready.

    Raises:
        Invalid: A host cannot be made.
    """
    settings = config.ingress

    def rule(name: str, component: Component) -> dict[str, Any]:
        backend = {"name": service_name(isvc, component), "port": {"number": HTTP_PORT}}
        path = {"path": "/", "pathType": "Prefix", "backend": {"service": backend}}
        return {"host": host_of(name, isvc, settings), "http": {"paths": [path]}}

    top = name_of(isvc)
    present = components_of(isvc)
    rules = []
    if "transformer" in present:
        transformer = service_name(isvc, "transformer")
        if "explainer" in present:
            rules.append(rule(transformer, "explainer"))
        rules += [rule(top, "transformer"), rule(transformer, "predictor")]
    elif "explainer" in present:
        explainer = service_name(isvc, "explainer")
        rules += [rule(top, "predictor"), rule(explainer, "explainer")]
    else:
        rules.append(rule(top, "predictor"))
    rules.append(rule(service_name(isvc, "predictor"), "predictor"))
    metadata: dict[str, Any] = {
        "name": top,
        "namespace": namespace_of(isvc),
        "ownerReferences": [owner_reference(isvc)],
    }
    if annotations_of(isvc):
        metadata["annotations"] = dict(annotations_of(isvc))
    return {
        "apiVersion": INGRESS.api_version,
        "kind": INGRESS.kind,
        "metadata": metadata,
        "spec": {"ingressClassName": settings.ingress_class, "rules": rules},
    }


# HTTPRoutes


def http_routes(
    isvc: Object,
    config: InferenceServiceConfig,
    services: Mapping[str, Object],
    canaries: Sequence[tuple[str, int]],
) -> list[Object]:
    """Return the HTTPRoutes of a service whose components are ready: one each, and the top one.

    Args:
        services: The components' Services by name, for their ports.
        canaries: Service and percent of each canary that is ready.

    Raises:
        Invalid: A host or path cannot be made.
    """
    routes = []
    for component in components_of(isvc):
        # The predictor's name and host stay the same when a canary is promoted.
        name = names.component_name(name_of(isvc), component)
        rules = _rules(isvc, component, config, services)
        if component == "predictor":
            rules = [_weighted(rule, canaries) for rule in rules] if _splits(isvc) else rules
        routes.append(_route(isvc, name, [host_of(name, isvc, config.ingress)], rules, config))
    return [*routes, _top_route(isvc, config, services, canaries)]


def _top_route(
    isvc: Object,
    config: InferenceServiceConfig,
    services: Mapping[str, Object],
    canaries: Sequence[tuple[str, int]],
) -> Object:
    settings = config.ingress
    name = name_of(isvc)
    host = host_of(name, isvc, settings)
    entry = entry_of(isvc)
    explains = "explainer" in components_of(isvc)
    rules = []
    if explains:
        rules.append(_rule(isvc, "explainer", config, _path(EXPLAIN), HTTP_PORT))
    rules += _rules(isvc, entry, config, services)
    hosts = [host]
    if host.endswith(settings.domain):
        head = host.removesuffix(settings.domain)
        hosts += [f"{head}{d}" for d in dict.fromkeys(settings.additional_domains)]
    if settings.path_template:
        path = placeholders.render(settings.path_template, isvc["metadata"]).strip().rstrip("/")
        hosts.append(settings.domain)
        if explains:
            within = _path(rf"{path}(/v1/models/[\w-]+:explain)$")
            rules.append(_rule(isvc, "explainer", config, within, HTTP_PORT))
        rules.append(_rule(isvc, entry, config, _path(f"{path}/"), HTTP_PORT))
    if _splits(isvc):
        rules = [_weighted(rule, canaries) for rule in rules]
    return _route(isvc, name, list(dict.fromkeys(hosts)), rules, config)


def _splits(isvc: Object) -> bool:
    return bool(isvc["spec"].get("canary"))


def _rules(
    isvc: Object,
    component: Component,
    config: InferenceServiceConfig,
    services: Mapping[str, Object],
) -> list[dict[str, Any]]:
    """Return the rules of one component: gRPC apart where its Service has a port for each."""
    service = services.get(service_name(isvc, component))
    ports = ((service or {}).get("spec") or {}).get("ports") or ()
    rpc = next((int(p["port"]) for p in ports if _is_rpc_port(p)), 0)
    rest = next((int(p["port"]) for p in ports if not _is_rpc_port(p)), 0)
    if not (rpc and rest):
        return [_rule(isvc, component, config, _path(ANYTHING), HTTP_PORT)]
    header = {
        "type": "RegularExpression",
        "name": "content-type",
        "value": "^application/grpc.*",
    }
    calls = [{**_path(RPC)[0], "headers": [header]}]
    return [
        _rule(isvc, component, config, calls, rpc),
        _rule(isvc, component, config, _path(ANYTHING), rest),
    ]


def _is_rpc_port(port: Mapping[str, Any]) -> bool:
    return port.get("appProtocol") == H2C or is_grpc(str(port.get("name") or "").lower())


def _path(pattern: str) -> list[dict[str, Any]]:
    return [{"path": {"type": "RegularExpression", "value": pattern}}]


def _rule(
    isvc: Object,
    component: Component,
    config: InferenceServiceConfig,
    matches: list[dict[str, Any]],
    port: int,
) -> dict[str, Any]:
    set_ = [
        {"name": "KServe-Isvc-Name", "value": name_of(isvc)},
        {"name": "KServe-Isvc-Namespace", "value": namespace_of(isvc)},
    ]
    rule: dict[str, Any] = {
        "matches": matches,
        "filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": set_}}],
        "backendRefs": [
            {
                "group": "",
                "kind": SERVICE.kind,
                "name": service_name(isvc, component),
                "namespace": namespace_of(isvc),
                "port": port,
                "weight": 1,
            }
        ],
    }
    if not config.ingress.disable_http_route_timeout:
        given = isvc["spec"][component].get("timeout")
        seconds = DEFAULT_TIMEOUT if given is None else int(given)
        rule["timeouts"] = {"request": f"{seconds}s"}
    return rule


def _weighted(rule: Mapping[str, Any], canaries: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """Return the rule with a share for each ready canary, the rest for what it named."""
    stable = rule["backendRefs"][0]
    left = 100 - sum(percent for _, percent in canaries)
    refs = [{**stable, "weight": left}]
    refs += [{**stable, "name": name, "weight": percent} for name, percent in canaries]
    return {**rule, "backendRefs": refs}


def _route(
    isvc: Object,
    name: str,
    hosts: list[str],
    rules: list[dict[str, Any]],
    config: InferenceServiceConfig,
) -> Object:
    namespace, _, gateway = config.ingress.kserve_gateway.partition("/")
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": namespace_of(isvc),
        "ownerReferences": [owner_reference(isvc)],
    }
    given = (
        ("labels", labels_of(isvc), config.labels_disallowed),
        ("annotations", annotations_of(isvc), config.annotations_disallowed),
    )
    for field, values, disallowed in given:
        kept = {k: v for k, v in values.items() if k not in disallowed}
        if kept:
            metadata[field] = kept
    parent = {
        "group": "gateway.networking.k8s.io",
        "kind": "Gateway",
        "namespace": namespace,
        "name": gateway,
    }
    return {
        "apiVersion": HTTP_ROUTE.api_version,
        "kind": HTTP_ROUTE.kind,
        "metadata": metadata,
        "spec": {
            "hostnames": hosts,
            "parentRefs": [parent],
            "rules": copy.deepcopy(rules),
        },
    }


def weights_of(rule: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Return Service and weight of a rule's backends."""
    refs: Sequence[Mapping[str, Any]] = rule.get("backendRefs") or ()
    return [(str(r["name"]), int(r.get("weight", 1))) for r in refs]


def seconds_of(rule: Mapping[str, Any]) -> float:
    """Return a rule's request timeout, 0 without one."""
    text = str((rule.get("timeouts") or {}).get("request") or "0s")
    return _duration(text)


_PART = re.compile(r"(\d+)(ms|h|m|s)")
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def _duration(text: str) -> float:
    return sum(int(number) * _UNITS[unit] for number, unit in _PART.findall(text))


def parents_status(
    route: Object, *, missing: Sequence[str], served: bool, now: str
) -> dict[str, Any]:
    """Return the `status` that a Gateway's controller gives an HTTPRoute.

    Args:
        missing: Services that its rules name and that do not exist.
        served: It is KServe's, and so is carried out here.
    """
    before = {
        c["type"]: c
        for parent in (route.get("status") or {}).get("parents") or ()
        for c in parent.get("conditions") or ()
    }
    generation = route["metadata"]["generation"]

    def condition(type_: str, status: str, reason: str, message: str) -> dict[str, Any]:
        old = before.get(type_) or {}
        since = old.get("lastTransitionTime") if old.get("status") == status else None
        return {
            "type": type_,
            "status": status,
            "reason": reason,
            "message": message,
            "observedGeneration": generation,
            "lastTransitionTime": since or now,
        }

    resolved = ("True", "ResolvedRefs", "All references resolved")
    if missing:
        resolved = ("False", "BackendNotFound", f"backend(s) not found: {', '.join(missing)}")
    conditions = [
        condition("Accepted", "True", "Accepted", "Route was valid")
        if served
        else condition(
            "Accepted",
            "False",
            "NotImplemented",
            "kserve-local routes by the HTTPRoutes of InferenceServices only",
        ),
        condition("ResolvedRefs", *resolved),
    ]
    return {
        "parents": [
            {"controllerName": CONTROLLER, "parentRef": parent, "conditions": conditions}
            for parent in route["spec"].get("parentRefs") or ()
        ]
    }


CONTROLLER = f"{names.LOCAL_PREFIX}/gateway"
"""Who serves HTTPRoutes here, in their status."""
