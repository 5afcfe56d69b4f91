"""What a component's fields and annotations say of its revisions: scaling and limits. Pure.

Copies KServe v0.20's ksvc reconciler (pkg/controller/v1beta1/inferenceservice/reconcilers/knative;
traffic.md 1.10), and judges the result before Knative's webhook does, which a cluster asks only
while it reconciles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kserve_local.api import names
from kserve_local.api.validation_knative import template_problems

Path_ = tuple[str | int, ...]

_FIELD_OF = {
    names.MIN_SCALE: "minReplicas",
    names.MAX_SCALE: "maxReplicas",
    names.AUTOSCALING_TARGET: "scaleTarget",
    names.AUTOSCALING_METRIC: "scaleMetric",
    "containerConcurrency": "containerConcurrency",
    "timeoutSeconds": "timeout",
    "responseStartTimeoutSeconds": "timeout",
}
"""Field of the component -> what the template calls it, the other way round."""


def template_annotations(
    component: Mapping[str, Any], given: Mapping[str, str], *, allow_zero: bool = False
) -> dict[str, str]:
    """Return the revision template's annotations: those given plus the autoscaling ones.

    An initial scale that is no number, or zero where the cluster forbids that, is left out.
    """
    annotations = dict(given)
    annotations.setdefault(names.AUTOSCALING_CLASS, names.KPA_CLASS)
    initial = annotations.get(names.INITIAL_SCALE)
    if initial is not None and (not _is_int(initial) or (int(initial) == 0 and not allow_zero)):
        del annotations[names.INITIAL_SCALE]
    least = component.get("minReplicas")
    annotations[names.MIN_SCALE] = str(1 if least is None else int(least))
    for field, annotation in (
        ("maxReplicas", names.MAX_SCALE),
        ("scaleTarget", names.AUTOSCALING_TARGET),
        ("scaleMetric", names.AUTOSCALING_METRIC),
    ):
        value = component.get(field)
        if value is not None and not (field == "maxReplicas" and value == 0):
            annotations[annotation] = str(value)
    return annotations


def limits(component: Mapping[str, Any]) -> dict[str, Any]:
    """Return the limits of the revision template's spec."""
    spec: dict[str, Any] = {}
    if component.get("containerConcurrency") is not None:
        spec["containerConcurrency"] = component["containerConcurrency"]
    if component.get("timeout") is not None:
        spec["timeoutSeconds"] = component["timeout"]
        spec["responseStartTimeoutSeconds"] = component["timeout"]
    return spec


def _is_int(text: str) -> bool:
    try:
        int(text)
    except ValueError:
        return False
    return True


def problems(
    component: Mapping[str, Any],
    given: Mapping[str, str],
    settings: Mapping[str, str],
) -> Iterator[tuple[str, str]]:
    """Yield (text, name of the field or annotation) for each thing Knative will refuse.

    Args:
        component: Of the InferenceService, with KServe's defaults.
        given: Annotations of service and component that go to the template.
        settings: Data of the ConfigMap `knative-serving/config-autoscaler`.
    """
    allow_zero = settings.get("allow-zero-initial-scale", "").lower() == "true"
    annotations = template_annotations(component, given, allow_zero=allow_zero)
    for message, blamed in template_problems(annotations, limits(component), settings):
        yield message, next((_FIELD_OF[name] for name in blamed if name in _FIELD_OF), blamed[0])
    percent = component.get("canaryTrafficPercent")
    if percent is not None and not 0 <= int(percent) <= 100:
        yield f"expected 0 <= {percent} <= 100", "canaryTrafficPercent"
