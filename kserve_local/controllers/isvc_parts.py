"""A component's Pod out of an InferenceService, whatever the deployment mode. Pure.

One place decides which builder makes it, `podspec` or `component_pods`, and which runtime it uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kserve_local.api.config import InferenceServiceConfig
from kserve_local.api.inferenceservice import framework_of
from kserve_local.api.meta import Object
from kserve_local.api.runtime_selection import Selection, select
from kserve_local.controllers import component_pods, podspec
from kserve_local.controllers.isvc_knative import Component
from kserve_local.controllers.podspec import PodParts
from kserve_local.errors import Forbidden


class ReconcileFailed(Forbidden):
    """A component's workload was refused; the component's condition says so with the reason of
    this name.
    """


@dataclass(frozen=True, slots=True)
class Cluster:
    """What besides the service a Pod is made from.

    Args:
        runtimes: ServingRuntimes of the service's namespace.
    """

    config: InferenceServiceConfig
    storage_containers: Sequence[Object]
    runtimes: Sequence[Object]
    cluster_runtimes: Sequence[Object]


def chosen(isvc: Object, cluster: Cluster) -> Selection | None:
    """Return the predictor's runtime, None for a container of the user's own.

    Raises:
        SelectionError: No runtime fits; for modelStatus.
    """
    if framework_of(isvc["spec"]["predictor"]) is None:
        return None
    return select(isvc, runtimes=cluster.runtimes, cluster_runtimes=cluster.cluster_runtimes)


def build(
    isvc: Object, component: Component, cluster: Cluster, selection: Selection | None
) -> PodParts:
    """Return a component's Pod.

    Args:
        selection: Of the predictor, `chosen`.

    Raises:
        SelectionError: The runtime makes no Pod with this spec; for modelStatus.
        Invalid: The storage cannot be used.
    """
    config, containers = cluster.config, cluster.storage_containers
    if component == "predictor":
        return podspec.predictor_pod(isvc, selection, config=config, storage_containers=containers)
    pod = (
        component_pods.transformer_pod
        if component == "transformer"
        else component_pods.explainer_pod
    )
    return pod(isvc, config=config, storage_containers=containers)
