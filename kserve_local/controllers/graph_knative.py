"""InferenceGraph -> the Knative Service of its router. Pure.

Copies KServe v0.20's graph controller (pkg/controller/v1alpha1/inferencegraph; control-plane.md
9.2): each `serviceName` becomes the URL of that InferenceService, the resolved spec is the router
container's `--graph-json`, in the field order of upstream's Go types.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kserve_local.api import names
from kserve_local.api.config import InferenceServiceConfig
from kserve_local.api.inferenceservice import container_of, framework_of, is_multi_model
from kserve_local.api.meta import (
    Object,
    annotations_of,
    labels_of,
    name_of,
    namespace_of,
    owner_reference,
)
from kserve_local.api.revision_template import template_annotations
from kserve_local.api.scheme import KNATIVE_SERVICE
from kserve_local.errors import NotFound, ServiceUnavailable

CONTAINER = "user-container"
"""What Knative calls a container without a name."""
GRAPH_JSON = "--graph-json"
PROPAGATE_ENV = "PROPAGATE_HEADERS"
PORT = 8080

_V1, _V2 = "v1", "v2"
_SPEC_ORDER = (
    "nodes", "resources", "affinity", "timeout", "routerTimeouts", "minReplicas", "maxReplicas",
    "scaleTarget", "scaleMetric", "tolerations", "nodeSelector", "nodeName", "serviceAccountName",
)  # fmt: skip
_NODE_ORDER = ("routerType", "steps")
_STEP_ORDER = (
    "name", "nodeName", "serviceName", "serviceUrl", "data", "mapPredictionsToInstances", "weight",
    "condition", "dependency",
)  # fmt: skip
_POD_FIELDS = ("affinity", "tolerations", "nodeSelector", "nodeName", "serviceAccountName")

Lookup = Callable[[str], Object | None]
"""Finds an InferenceService of the graph's namespace, or a runtime, by name."""


def services_of(graph: Object) -> list[str]:
    """Return the InferenceServices that steps name, each once."""
    found = dict.fromkeys(str(s["serviceName"]) for s in _steps(graph) if s.get("serviceName"))
    return list(found)


def _steps(graph: Object) -> Iterator[Mapping[str, Any]]:
    nodes = (graph.get("spec") or {}).get("nodes") or {}
    for name in sorted(nodes):
        yield from (nodes[name] or {}).get("steps") or ()


def resolved(graph: Object, *, service: Lookup, runtime: Lookup) -> dict[str, Any]:
    """Return the graph's spec with a URL at every step that names an InferenceService.

    Raises:
        NotFound: There is no such service.
        ServiceUnavailable: It has no address yet, or no protocol that a graph can speak.
    """
    spec = dict(graph["spec"])
    nodes: dict[str, Any] = {}
    for name, node in (spec.get("nodes") or {}).items():
        steps = [_resolved(step, service, runtime) for step in (node or {}).get("steps") or ()]
        nodes[name] = {**(node or {}), **({"steps": steps} if steps else {})}
    return {**spec, "nodes": nodes}


def _resolved(step: Mapping[str, Any], service: Lookup, runtime: Lookup) -> dict[str, Any]:
    name = step.get("serviceName") or ""
    if not name:
        return dict(step)
    isvc = service(name)
    if isvc is None:
        raise NotFound(f"Failed to find graph service {name}")
    return {**step, "serviceUrl": step.get("serviceUrl") or endpoint(isvc, runtime)}


def endpoint(isvc: Object, runtime: Lookup) -> str:
    """Return the URL at which a graph calls an InferenceService.

    Raises:
        ServiceUnavailable: It has no address yet, or no protocol that a graph can speak.

    Source: GetPredictorEndpoint.
    """
    address = ((isvc.get("status") or {}).get("address") or {}).get("url")
    if not address:
        raise ServiceUnavailable(f"service {name_of(isvc)} is not ready")
    model = model_name(isvc)
    path = {_V1: f"/v1/models/{model}:predict", _V2: f"/v2/models/{model}/infer"}
    return f"{address}{path.get(_protocol(isvc, runtime), '')}"


def model_name(isvc: Object) -> str:
    """Return the name under which an InferenceService's model is called."""
    spec = isvc["spec"]
    transformer = (spec.get("transformer") or {}).get("containers") or ()
    if transformer and (found := _name_from(transformer[0].get("args") or ())):
        return found
    predictor = spec["predictor"]
    model = predictor.get("model")
    if model is not None:
        for entry in model.get("env") or ():
            if entry.get("name") == "MLSERVER_MODEL_NAME":
                return str(entry.get("value") or "")
        return _name_from(model.get("args") or ()) or name_of(isvc)
    containers = predictor.get("containers") or ()
    found = _name_from(containers[0].get("args") or ()) if containers else ""
    return found or name_of(isvc)


def _name_from(args: Sequence[str]) -> str:
    for at, word in enumerate(args):
        if word.startswith("--model_name="):
            return word.partition("=")[2]
        if word == "--model_name" and at + 1 < len(args):
            return args[at + 1]
    return ""


def _protocol(isvc: Object, runtime: Lookup) -> str:
    spec = isvc["spec"]
    predictor = spec["predictor"]
    containers: Sequence[dict[str, Any]]
    if spec.get("transformer"):
        containers = spec["transformer"].get("containers") or ({},)
        return _from_env(containers[0])
    if is_multi_model(predictor):
        return ""
    framework = framework_of(predictor)
    if framework is None:
        containers = predictor.get("containers") or ({},)
        collocated = container_of(containers, "transformer-container")
        return _from_env(containers[0] if collocated is None else collocated)
    model = framework[1]
    if model.get("runtime"):
        found = runtime(str(model["runtime"]))
        if found is None:
            raise ServiceUnavailable(
                f"No ServingRuntimes or ClusterServingRuntimes with the name: {model['runtime']}"
            )
        versions = (found.get("spec") or {}).get("protocolVersions") or ()
        if versions:
            usable = next((v for v in versions if v in (_V1, _V2)), "")
            if not usable:
                raise ServiceUnavailable(
                    "the runtime does not support a protocol compatible with Inference Graphs"
                )
            return str(usable)
    return str(model.get("protocolVersion") or _V1)


def _from_env(container: Mapping[str, Any]) -> str:
    for entry in container.get("env") or ():
        if entry.get("name") == names.PROTOCOL_ENV:
            return str(entry.get("value") or "")
    return _V1


def graph_json(spec: Mapping[str, Any]) -> str:
    """Return a resolved spec as Go writes it: fields in the order of its types, no blanks."""

    def ordered(value: Mapping[str, Any], order: Sequence[str]) -> dict[str, Any]:
        known = {k: value[k] for k in order if value.get(k) not in (None, "", False)}
        return {**known, **{k: v for k, v in value.items() if k not in order}}

    nodes = {
        name: {
            **ordered(node, _NODE_ORDER),
            **(
                {"steps": [ordered(s, _STEP_ORDER) for s in node["steps"]]}
                if node.get("steps")
                else {}
            ),
        }
        for name, node in sorted((spec.get("nodes") or {}).items())
    }
    whole = ordered({"resources": {}, **spec, "nodes": nodes}, _SPEC_ORDER)
    return json.dumps(whole, separators=(",", ":"), ensure_ascii=False)


def knative_service(
    graph: Object, spec: Mapping[str, Any], config: InferenceServiceConfig
) -> Object:
    """Return the Knative Service of a graph's router.

    Args:
        spec: The graph's spec, resolved.
    """
    pod = router_pod(spec, config)
    if spec.get("timeout") is not None:
        pod["timeoutSeconds"] = spec["timeout"]
    labels = {k: v for k, v in labels_of(graph).items() if k != names.KNATIVE_VISIBILITY}
    own = {names.GRAPH_LABEL: name_of(graph), names.KIND_LABEL: graph["kind"]}
    given = passed_on(annotations_of(graph))
    return {
        "apiVersion": KNATIVE_SERVICE.api_version,
        "kind": KNATIVE_SERVICE.kind,
        "metadata": {
            "name": name_of(graph),
            "namespace": namespace_of(graph),
            "labels": dict(labels_of(graph)),
            "annotations": {},
            "ownerReferences": [owner_reference(graph)],
        },
        "spec": {
            "template": {
                "metadata": {
                    "labels": {**labels, **own},
                    "annotations": template_annotations(spec, given),
                },
                "spec": pod,
            },
        },
    }


def passed_on(annotations: Mapping[str, str]) -> dict[str, str]:
    """Return the annotations of a graph that its Pods get.

    What `apply` and we remember of the YAML is no reason for new ones.
    """
    return {k: v for k, v in annotations.items() if k not in (names.LAST_APPLIED, names.MANIFEST)}


def router_pod(spec: Mapping[str, Any], config: InferenceServiceConfig) -> dict[str, Any]:
    """Return the PodSpec of a router.

    Args:
        spec: The graph's spec, resolved.
    """
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": config.router.image,
        "args": [GRAPH_JSON, graph_json(spec)],
        "resources": dict(spec.get("resources") or config.router.resources()),
        "securityContext": {
            "privileged": False,
            "runAsNonRoot": True,
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
        "readinessProbe": {
            "httpGet": {"path": "/readyz", "port": PORT, "scheme": "HTTP"},
            "initialDelaySeconds": 5,
            "timeoutSeconds": 2,
            "periodSeconds": 5,
            "successThreshold": 1,
            "failureThreshold": 3,
        },
    }
    if config.router_pull_policy:
        container["imagePullPolicy"] = config.router_pull_policy
    if config.router_propagates:
        container["env"] = [{"name": PROPAGATE_ENV, "value": ",".join(config.router_headers)}]
    pod: dict[str, Any] = {
        "containers": [container],
        "automountServiceAccountToken": False,
        **{field: spec[field] for field in _POD_FIELDS if spec.get(field)},
    }
    if config.router_pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in config.router_pull_secrets]
    return pod
