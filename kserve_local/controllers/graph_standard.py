"""InferenceGraph of Standard mode -> the workload of its router, and the graph's status. Pure.

Copies KServe v0.20 (pkg/controller/v1alpha1/inferencegraph/raw_ig.go; control-plane.md 9.2): the
router's container is named like the graph, no ingress leads to it although `status.url` reads as if
one did, and the graph is Ready as soon as its Deployment says anything of being available.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kserve_local.api import names
from kserve_local.api.config import InferenceServiceConfig
from kserve_local.api.meta import Object, annotations_of, get_condition, labels_of, name_of
from kserve_local.controllers import graph_knative, isvc_ingress
from kserve_local.controllers.standard_objects import Workload

_SCALING = ("minReplicas", "maxReplicas", "scaleMetric", "scaleTarget")


def workload(graph: Object, spec: Mapping[str, Any], config: InferenceServiceConfig) -> Workload:
    """Return the workload of a graph's router.

    Args:
        spec: The graph's spec, resolved.
    """
    pod = graph_knative.router_pod(spec, config)
    pod["containers"] = [{**pod["containers"][0], "name": name_of(graph)}]
    return Workload(
        owner=graph,
        name=name_of(graph),
        labels={**labels_of(graph), names.GRAPH_LABEL: name_of(graph)},
        # What `apply` and we remember of the YAML is no reason for new Pods.
        annotations=graph_knative.passed_on(annotations_of(graph)),
        pod=pod,
        component={field: spec[field] for field in _SCALING if spec.get(field) is not None},
    )


def url_of(graph: Object, config: InferenceServiceConfig) -> str:
    """Return `status.url`.

    Raises:
        Invalid: The host is no domain name.
    """
    return isvc_ingress.url_of(name_of(graph), graph, config.ingress)


def is_ready(deployment: Object) -> bool:
    """Whether the graph counts as Ready: there is a condition Available, whatever it says."""
    return get_condition(deployment, "Available") is not None


def conditions() -> list[dict[str, Any]]:
    """Return the conditions of a graph that is Ready."""
    return [{"type": "Ready", "status": "True"}, {"type": "Stopped", "status": "False"}]
