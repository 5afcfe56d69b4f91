"""Extended resources (`nvidia.com/gpu`) of containers, as Kubernetes' API server checks them.

Pure. Whole numbers only, and no request beyond the limit or without one: a device is not shared.
Source: kubernetes pkg/apis/core/validation `ValidateResourceQuantityValue`,
`validateContainerResources` (isNotIntegerErrorMsg); what `kubectl apply` of a Pod or a Deployment
is answered with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kserve_local.api import quantity
from kserve_local.api.field_errors import FieldError, FieldErrors, invalid, required
from kserve_local.api.meta import Object
from kserve_local.errors import Invalid


def is_extended(resource: str) -> bool:
    """Whether a resource is one that nodes count in whole devices: it has a domain of its own."""
    domain, slash, _ = resource.partition("/")
    return bool(slash) and domain != "kubernetes.io" and not domain.endswith(".kubernetes.io")


def check(obj: Object) -> None:
    """Check a Pod or Deployment; other kinds hold nothing of it.

    Raises:
        Invalid: One cause per field.
    """
    if obj["kind"] == "Pod":
        path, spec = "spec", obj.get("spec") or {}
    elif obj["kind"] == "Deployment":
        path = "spec.template.spec"
        spec = ((obj.get("spec") or {}).get("template") or {}).get("spec") or {}
    else:
        return
    found = [
        error
        for field in ("initContainers", "containers")
        for number, container in enumerate(spec.get(field) or ())
        for error in problems(container, f"{path}.{field}[{number}]")
    ]
    if found:
        errors = FieldErrors(found)
        raise Invalid(errors.message_for(obj), causes=errors.causes)


def problems(container: Mapping[str, Any], path: str) -> Iterator[FieldError]:
    """Yield what is wrong with a container's extended resources.

    Args:
        path: Where the container is.
    """
    resources = container.get("resources") or {}
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    for what, given in (("limits", limits), ("requests", requests)):
        for resource, value in given.items():
            at = f"{path}.resources.{what}[{resource}]"
            if is_extended(resource) and quantity.parse(value) % 1:
                yield invalid(at, str(value), "must be an integer")
    for resource, value in requests.items():
        if not is_extended(resource):
            continue
        if resource not in limits:
            at = f"{path}.resources.limits"
            yield required(at, "Limit must be set for non overcommitable resources")
        elif quantity.parse(limits[resource]) != quantity.parse(value):
            at = f"{path}.resources.requests"
            detail = f"must be equal to {resource} limit of {limits[resource]}"
            yield invalid(at, str(value), detail)
