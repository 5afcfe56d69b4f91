"""The mutating webhooks: what KServe changes on an object before it is stored.

Pure; `default` returns a new object and never touches its argument. InferenceService: the eight
effects of control-plane.md 2.4 in their order (inference_service_defaults.go). LLMInferenceService:
llm.md 1.3. Schema defaults are the schema's (`api/schema.py`), server-type defaults the pod's
(`controllers/podspec.py`); neither is here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kserve_local.api import inferenceservice as shape
from kserve_local.api import names
from kserve_local.api.config import ContainerResources, InferenceServiceConfig
from kserve_local.api.meta import Object, annotations_of, labels_of, name_of, namespace_of

Lookup = Callable[[str, str | None], Sequence[Object]]

# Formats whose `model` means protocol v2 when it names none (2.4, 4); legacy fields add onnx and
# huggingface (2.4, 3).
_V2_FORMATS = ("triton", "vLLM")
_V2_FRAMEWORKS = ("triton", "onnx", "huggingface")


def default(obj: Object, *, config: InferenceServiceConfig, lookup: Lookup | None = None) -> Object:
    """Return the object as KServe's mutating webhook would store it.

    Args:
        obj: Any object; kinds without a mutating webhook come back as they are.
        config: The parsed `inferenceservice-config`.
        lookup: Gives the existing objects of a resource in a namespace (None: all), for local
            model caches; without it no cache is matched.
    """
    kind = obj.get("kind")
    if kind == "InferenceService":
        return _inference_service(obj, config, lookup)
    if kind == "LLMInferenceService":
        return _llm_inference_service(obj, config, lookup)
    return obj


def _inference_service(
    obj: Object, config: InferenceServiceConfig, lookup: Lookup | None
) -> Object:
    annotations = dict(annotations_of(obj))
    given = annotations.get(names.DEPLOYMENT_MODE)
    if given in names.LEGACY_MODES:
        annotations[names.DEPLOYMENT_MODE] = names.LEGACY_MODES[given]
    elif given is None and config.default_deployment_mode != names.KNATIVE_MODE:
        annotations[names.DEPLOYMENT_MODE] = config.default_deployment_mode
    spec: dict[str, Any] = dict(obj.get("spec") or {})
    mesh = given == names.MODEL_MESH_MODE
    predictor: dict[str, Any] = dict(spec.get("predictor") or {})
    if not mesh:
        predictor = _with_model(predictor)
        format_name = ((predictor.get("model") or {}).get("modelFormat") or {}).get("name")
        if format_name:
            annotations.setdefault(names.MODEL_FORMAT, format_name)
    if "predictor" in spec:
        spec["predictor"] = predictor
    for component in shape.COMPONENTS:
        value = spec.get(component)
        if value is None or (component == "predictor" and mesh):
            continue
        if shape.implementations(component, value) == 1:
            spec[component] = _with_implementation_defaults(component, value, config)
    labels = dict(labels_of(obj))
    uri = shape.storage_uri(predictor)
    _match_local_model(
        labels, annotations, uri, namespace_of(obj), config, lookup, recorded=annotations_of(obj)
    )
    if not config.auto_mount_service_account_token:
        for component in shape.COMPONENTS:
            value = spec.get(component)
            if value is not None and value.get("automountServiceAccountToken") is None:
                spec[component] = {**value, "automountServiceAccountToken": False}
    return _rebuilt(obj, labels, annotations, spec)


def _rebuilt(
    obj: Object, labels: dict[str, str], annotations: dict[str, str], spec: dict[str, Any]
) -> Object:
    metadata = dict(obj.get("metadata") or {})
    for field, value in (("labels", labels), ("annotations", annotations)):
        if value or field in metadata:
            metadata[field] = value
    result = {**obj, "metadata": metadata}
    if "spec" in obj:
        result["spec"] = spec
    return result


def _with_model(predictor: dict[str, Any]) -> dict[str, Any]:
    """Turn the first legacy framework field into `model`, and give v2 formats their protocol."""
    for field in shape.FRAMEWORKS:
        if predictor.get(field) is not None:
            legacy = predictor[field]
            predictor = {k: v for k, v in predictor.items() if k not in (field, "model")}
            predictor["model"] = {"modelFormat": {"name": field}, **legacy}
            if field in _V2_FRAMEWORKS and legacy.get("protocolVersion") is None:
                predictor["model"]["protocolVersion"] = "v2"
            break
    model = predictor.get("model")
    format_name = ((model or {}).get("modelFormat") or {}).get("name")
    if model is not None and format_name in _V2_FORMATS and model.get("protocolVersion") is None:
        predictor["model"] = {**model, "protocolVersion": "v2"}
    return predictor


def _with_implementation_defaults(
    kind: str, component: Mapping[str, Any], config: InferenceServiceConfig
) -> dict[str, Any]:
    if kind == "explainer" and component.get("art") is not None:
        art = {**component["art"], "name": names.PREDICTOR_CONTAINER}
        if not art.get("runtimeVersion"):
            art["runtimeVersion"] = config.art_version
        return {**component, "art": _with_resources(art, config.resource)}
    if kind == "predictor" and shape.framework_of(component) is not None:
        return dict(component)  # a model's resources come from its runtime
    containers = list(shape.containers_of(component))
    first = dict(containers[0])
    if kind != "predictor" or len(containers) == 1 or not first.get("name"):
        first["name"] = names.PREDICTOR_CONTAINER
    containers[0] = _with_resources(first, config.resource)
    return {**component, "containers": containers}


def _with_resources(container: dict[str, Any], defaults: ContainerResources) -> dict[str, Any]:
    """Fill in the cpu and memory requests and limits that the container leaves open."""
    own: dict[str, Any] = dict(container.get("resources") or {})
    for part, values in defaults.resources().items():
        merged = {**values, **(own.get(part) or {})}
        if merged:
            own[part] = merged
    return {**container, "resources": own} if own else container


def _match_local_model(
    labels: dict[str, str],
    annotations: dict[str, str],
    uri: str | None,
    namespace: str,
    config: InferenceServiceConfig,
    lookup: Lookup | None,
    *,
    recorded: Mapping[str, str],
) -> None:
    """Set or remove what ties a service to a local model cache (control-plane.md 7.8)."""
    found = None
    wanted = config.local_model.enabled and names.DISABLE_LOCAL_MODEL not in recorded
    if lookup is not None and uri is not None and wanted:
        found = _matching_cache(uri, namespace, annotations.get(names.NODE_GROUP), lookup)
    for key in (names.LOCAL_MODEL, names.LOCAL_MODEL_NAMESPACE):
        labels.pop(key, None)
    for key in (names.LOCAL_MODEL_SOURCE_URI, names.LOCAL_MODEL_PVC_NAME):
        annotations.pop(key, None)
    if found is None:
        return
    cache, group = found
    labels[names.LOCAL_MODEL] = name_of(cache)
    if namespace_of(cache):
        labels[names.LOCAL_MODEL_NAMESPACE] = namespace_of(cache)
    annotations[names.LOCAL_MODEL_SOURCE_URI] = cache["spec"]["sourceModelUri"]
    annotations[names.LOCAL_MODEL_PVC_NAME] = f"{name_of(cache)}-{group}"


def _matching_cache(
    uri: str, namespace: str, group: str | None, lookup: Lookup
) -> tuple[Object, str] | None:
    """Return the first cache that holds the URI, a namespaced one before a cluster one."""
    caches = [
        *lookup("localmodelnamespacecaches.serving.kserve.io", namespace),
        *lookup("localmodelcaches.serving.kserve.io", None),
    ]
    for cache in caches:
        spec = cache.get("spec") or {}
        source = str(spec.get("sourceModelUri") or "").rstrip("/")
        groups = spec.get("nodeGroups") or ()
        if not source or not groups or not (uri.rstrip("/") + "/").startswith(source + "/"):
            continue
        if group is None:
            return cache, groups[0]
        if group in groups:
            return cache, group
    return None


def local_model_key(source_model_uri: str) -> str:
    """Return the folder name that caches of this URI share: 16 hex digits of its SHA-256."""
    return hashlib.sha256(source_model_uri.encode()).hexdigest()[:16]


def _llm_inference_service(
    obj: Object, config: InferenceServiceConfig, lookup: Lookup | None
) -> Object:
    spec: dict[str, Any] = dict(obj.get("spec") or {})
    labels, annotations = dict(labels_of(obj)), dict(annotations_of(obj))
    model = spec.get("model")
    if model is not None and not model.get("name"):
        spec["model"] = {**model, "name": name_of(obj)}
    router = spec.get("router") or {}
    group = (router.get("route") or {}).get("group")
    if group:
        labels[names.ROUTING_GROUP] = group
    else:
        labels.pop(names.ROUTING_GROUP, None)
    for path in (
        ("template",),
        ("worker",),
        ("prefill", "template"),
        ("prefill", "worker"),
        ("router", "scheduler", "template"),
        ("router", "scheduler", "tokenizer", "template"),
    ):
        spec = _with_empty_containers(spec, path)
    uri = (spec.get("model") or {}).get("uri")
    _match_local_model(
        labels, annotations, uri, namespace_of(obj), config, lookup, recorded=annotations
    )
    return _rebuilt(obj, labels, annotations, spec)


def _with_empty_containers(spec: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """Return the spec with nil `containers` of the PodSpec at `path`, if there, made `[]`."""
    head, *rest = path
    inner = spec.get(head)
    if not isinstance(inner, dict):
        return spec
    if rest:
        return {**spec, head: _with_empty_containers(inner, tuple(rest))}
    return (
        spec if inner.get("containers") is not None else {**spec, head: {**inner, "containers": []}}
    )
