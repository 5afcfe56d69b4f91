"""How an InferenceService's components are put together: which fields are what, and which
implementation a component has.

Pure. Struct shapes are KServe's (pkg/apis/serving/v1beta1/{predictor,component}.go;
control-plane.md 2.1 to 2.3, counting rule 2.5): a component is an inline PodSpec, an inline
ComponentExtensionSpec and its own fields, all in one JSON object.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kserve_local.api import names

# Legacy framework fields in the order in which the defaulting webhook looks for them.
FRAMEWORKS = (
    "sklearn",
    "tensorflow",
    "xgboost",
    "pytorch",
    "triton",
    "onnx",
    "huggingface",
    "pmml",
    "lightgbm",
    "paddle",
)
COMPONENTS = ("predictor", "transformer", "explainer")
# ComponentExtensionSpec plus `storageUris`, which all three components have.
EXTENSION_FIELDS = frozenset(
    (
        "annotations",
        "autoScaling",
        "batcher",
        "canaryTrafficPercent",
        "containerConcurrency",
        "deploymentStrategy",
        "labels",
        "logger",
        "maxReplicas",
        "minReplicas",
        "scaleMetric",
        "scaleMetricType",
        "scaleTarget",
        "storageUris",
        "timeout",
    )
)
_OWN_FIELDS = EXTENSION_FIELDS.union(
    FRAMEWORKS, ("art", "model", "name", "storageContainerName", "workerSpec")
)
# What of `model` (or a framework field) is no container field.
MODEL_FIELDS = frozenset(
    (
        "confidential",
        "modelFormat",
        "protocolVersion",
        "runtime",
        "runtimeVersion",
        "storage",
        "storageUri",
    )
)

Component = Mapping[str, Any]
Container = dict[str, Any]


def pod_fields(component: Component) -> dict[str, Any]:
    """Return the inline PodSpec of a component."""
    return {k: v for k, v in component.items() if k not in _OWN_FIELDS and v is not None}


def containers_of(component: Component) -> Sequence[Container]:
    """Return `containers` of the inline PodSpec."""
    return component.get("containers") or ()


def container_of(containers: Sequence[Container], name: str) -> Container | None:
    """Return the container of that name, if any."""
    return next((c for c in containers if c.get("name") == name), None)


def framework_of(predictor: Component) -> tuple[str, Mapping[str, Any]] | None:
    """Return field name and value of the predictor's model: `model`, else a legacy framework."""
    for field in ("model", *FRAMEWORKS):
        if predictor.get(field) is not None:
            return field, predictor[field]
    return None


def predictor_container(predictor: Component) -> Container | None:
    """Return the custom container that answers: `kserve-container`, else the first."""
    containers = containers_of(predictor)
    named = container_of(containers, names.PREDICTOR_CONTAINER)
    return named or (containers[0] if containers else None)


def storage_uri(predictor: Component) -> str | None:
    """Return the single source: the model's storageUri, or a custom container's STORAGE_URI."""
    model = framework_of(predictor)
    if model is not None:
        uri = model[1].get("storageUri")
        return None if uri is None else str(uri)
    for entry in (predictor_container(predictor) or {}).get("env") or ():
        if entry.get("name") == names.STORAGE_URI_ENV and entry.get("value"):
            return str(entry["value"])
    return None


def implementations(kind: str, component: Component) -> int:
    """Return how many implementations the component has; exactly one is legal.

    Args:
        kind: `predictor`, `transformer` or `explainer`.

    Source: control-plane.md 2.5, counting rule.
    """
    containers = containers_of(component)
    if kind == "predictor":
        count = sum(component.get(field) is not None for field in ("model", *FRAMEWORKS))
        count += sum(c.get("name") == names.PREDICTOR_CONTAINER for c in containers)
        return count or int(bool(containers))
    if kind == "explainer":
        return int(component.get("art") is not None) + int(bool(containers))
    return int(bool(containers))


def is_multi_model(predictor: Component) -> bool:
    """Whether KServe treats the predictor as a multi-model server (control-plane.md 10).

    So is any `model` without storage, except Hugging Face's.
    """
    containers = containers_of(predictor)
    if containers:
        return any(
            e.get("name") == names.MULTI_MODEL_ENV and e.get("value") == "true"
            for e in containers[0].get("env") or ()
        )
    model = predictor.get("model") or {}
    if (model.get("modelFormat") or {}).get("name") == "huggingface":
        return False
    return not (model.get("storageUri") or model.get("storage") or predictor.get("storageUris"))
