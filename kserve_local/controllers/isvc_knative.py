"""InferenceService -> the Knative Service of each component. Pure.

Copies KServe v0.20's ksvc reconciler (pkg/controller/v1beta1/inferenceservice/reconcilers/knative):
the traffic block of a canary (control-plane.md 6.1), and what goes to the service instead of the
revision template.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from kserve_local.api import names
from kserve_local.api.meta import (
    Object,
    annotations_of,
    name_of,
    namespace_of,
    owner_reference,
)
from kserve_local.api.revision_template import limits, template_annotations
from kserve_local.api.scheme import KNATIVE_SERVICE, SERVICE
from kserve_local.controllers import knative_names
from kserve_local.controllers.podspec import PodParts

Component = Literal["predictor", "transformer", "explainer"]
COMPONENTS: tuple[Component, ...] = ("predictor", "transformer", "explainer")
"""In the order in which KServe's controller takes them."""


def components_of(isvc: Object) -> tuple[Component, ...]:
    """Return the components that the spec has, the predictor first."""
    return tuple(c for c in COMPONENTS if isvc["spec"].get(c) is not None)


def entry_of(isvc: Object) -> Component:
    """Return the component that requests to the service as a whole reach first."""
    return "transformer" if isvc["spec"].get("transformer") is not None else "predictor"


def service_name(isvc: Object, component: Component) -> str:
    """Return a component's Knative Service: `<isvc>-<component>`, or
    `<isvc>-<predictor.name>-predictor`.
    """
    variant = isvc["spec"]["predictor"].get("name") or ""
    return names.component_name(name_of(isvc), component, variant)


def knative_service(
    isvc: Object,
    component: Component,
    parts: PodParts,
    *,
    rolled_out: str,
    allow_zero: bool = False,
) -> Object:
    """Return a component's Knative Service.

    Args:
        parts: The component's Pod.
        rolled_out: `latestRolledoutRevision` of the status, empty before the first rollout.
        allow_zero: Revisions may start without a Pod (`allow-zero-initial-scale`).
    """
    spec: Mapping[str, Any] = isvc["spec"][component]
    annotations = template_annotations(spec, parts.annotations, allow_zero=allow_zero)
    own = {k: v for k, v in annotations.items() if k == names.ROLLOUT_DURATION}
    template = {
        "metadata": {
            "labels": dict(parts.labels),
            "annotations": {k: v for k, v in annotations.items() if k not in own},
        },
        "spec": {**parts.spec, **limits(spec)},
    }
    metadata: dict[str, Any] = {
        "name": service_name(isvc, component),
        "namespace": namespace_of(isvc),
        "labels": dict(parts.object_labels),
        "ownerReferences": [owner_reference(isvc)],
    }
    if own:
        metadata["annotations"] = own
    return {
        "apiVersion": KNATIVE_SERVICE.api_version,
        "kind": KNATIVE_SERVICE.kind,
        "metadata": metadata,
        "spec": {
            "template": template,
            "traffic": traffic(
                spec.get("canaryTrafficPercent"),
                rolled_out=rolled_out,
                tag_latest=annotations.get(names.ENABLE_TAG_ROUTING) == "true",
            ),
        },
    }


def traffic(canary: int | None, *, rolled_out: str, tag_latest: bool) -> list[dict[str, Any]]:
    """Return the traffic block for `canaryTrafficPercent` (control-plane.md 6.1)."""
    percent = 100 if canary is None or not rolled_out else int(canary)
    latest: dict[str, Any] = {"latestRevision": True, "percent": percent}
    if tag_latest:
        latest["tag"] = "latest"
    if percent >= 100:
        return [latest]
    previous = {
        "latestRevision": False,
        "percent": 100 - percent,
        "revisionName": rolled_out,
        "tag": "prev",
    }
    return [latest, previous]


def external_service(isvc: Object) -> Object:
    """Return the Service `<isvc>`, ExternalName to the local gateway (control-plane.md 4.1)."""
    return {
        "apiVersion": SERVICE.api_version,
        "kind": SERVICE.kind,
        "metadata": {
            "name": name_of(isvc),
            "namespace": namespace_of(isvc),
            "labels": {names.ISVC_LABEL: name_of(isvc)},
            "ownerReferences": [owner_reference(isvc)],
        },
        "spec": {
            "type": "ExternalName",
            "externalName": knative_names.LOCAL_GATEWAY,
            "sessionAffinity": "None",
        },
    }


def is_stopped(isvc: Object) -> bool:
    """Whether the stop annotation says so, in any case (control-plane.md 11)."""
    return annotations_of(isvc).get(names.STOP, "").lower() == "true"
