"""The validating webhook of InferenceService, rule by rule in KServe's order.

Pure; the first failure wins. Rows and texts are control-plane.md 2.5
(pkg/apis/serving/v1beta1/{inference_service_validation,component}.go).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from kserve_local.api import inferenceservice as shape
from kserve_local.api import names, validation_autoscaling, validation_canary, validation_component
from kserve_local.api.config import InferenceServiceConfig, normal_mode
from kserve_local.api.field_errors import FieldError, invalid, joined
from kserve_local.api.meta import Object, annotations_of, name_of
from kserve_local.api.validation_containers import blocked_env, has_env, has_unknown_gpu
from kserve_local.errors import Forbidden

NAME_FORMAT = "[a-z]([-a-z0-9]*[a-z0-9])?"
_NAME = re.compile(NAME_FORMAT)
_KBS = re.compile(r"kbs:///[a-zA-Z0-9_.-]+/[a-zA-Z0-9_.-]+/[a-zA-Z0-9_.-]+")
_AUTOSCALERS = ("hpa", "external", "keda", "none")
_PARALLEL_SIZES = (
    ("pipelineParallelSize", "PipelineParallelSize"),
    ("tensorParallelSize", "TensorParallelSize"),
)
PARALLEL_ENV = ("PIPELINE_PARALLEL_SIZE", "TENSOR_PARALLEL_SIZE")


def check(obj: Object, *, old: Object | None, config: InferenceServiceConfig) -> list[str]:
    """Return the warnings for an InferenceService that may be stored.

    Raises:
        Forbidden: The first rule that it breaks, in KServe's words without the webhook's name.
    """
    spec: Mapping[str, Any] = obj.get("spec") or {}
    predictor: Mapping[str, Any] = spec.get("predictor") or {}
    if old is not None:
        _check_update(obj, old)
    _check_name(name_of(obj))
    _check_autoscaler_class(annotations_of(obj))
    _check_env(obj, spec)
    if predictor.get("workerSpec") is not None:
        _check_multi_node(obj, predictor, config)
    _check_collocation(predictor)
    _check_no_container_name(predictor)
    for kind in ("transformer", "explainer", "predictor"):
        if spec.get(kind) is not None:
            _check_storage_uris(kind, spec[kind])
    warnings = _check_confidential(predictor)
    for kind in shape.COMPONENTS:
        component = spec.get(kind)
        if component is None and kind != "predictor":
            continue
        validation_component.check(kind, component or {})
        validation_autoscaling.check(component or {}, annotations_of(obj))
    validation_canary.check(obj)
    return warnings


def _check_update(obj: Object, old: Object) -> None:
    recorded = (old.get("status") or {}).get("deploymentMode") or ""
    wanted = annotations_of(obj).get(names.DEPLOYMENT_MODE)
    if recorded and wanted is not None and wanted != normal_mode(recorded):
        raise Forbidden(
            "update rejected: deploymentMode cannot be changed from "
            f"'{normal_mode(recorded)}' to '{wanted}'"
        )
    before: Mapping[str, Any] = (old.get("spec") or {}).get("predictor") or {}
    after: Mapping[str, Any] = (obj.get("spec") or {}).get("predictor") or {}
    renamed = (before.get("name") or "") != (after.get("name") or "")
    if renamed and (shape.storage_uri(before) or "") == (shape.storage_uri(after) or ""):
        raise Forbidden("predictor.name change requires a model change (e.g. storageUri)")


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise Forbidden(
            f'the InferenceService "{name}" is invalid: a InferenceService name must consist of '
            "lower case alphanumeric characters or '-', and must start with alphabetical "
            'character. (e.g. "my-name" or "abc-123", regex used for validation is '
            f"'{NAME_FORMAT}')"
        )


def _check_autoscaler_class(annotations: Mapping[str, str]) -> None:
    value = annotations.get(names.AUTOSCALER_CLASS)
    if value is not None and value not in _AUTOSCALERS:
        raise Forbidden(f"[{value}] is not a supported autoscaler class type")


def _check_env(obj: Object, spec: Mapping[str, Any]) -> None:
    predictor: Mapping[str, Any] = spec.get("predictor") or {}
    groups = [predictor.get("containers"), predictor.get("initContainers")]
    model = shape.framework_of(predictor)
    if model is not None:
        groups.append([model[1]])
    for part in (predictor.get("workerSpec"), spec.get("transformer"), spec.get("explainer")):
        if part is not None:
            groups += [part.get("containers"), part.get("initContainers")]
    art = (spec.get("explainer") or {}).get("art")
    if art is not None:
        groups.append([art])
    for group in groups:
        problem = blocked_env(group)
        if problem is not None:
            raise Forbidden(f'the InferenceService "{name_of(obj)}" is invalid: {problem}')


def _check_multi_node(
    obj: Object, predictor: Mapping[str, Any], config: InferenceServiceConfig
) -> None:
    worker: Mapping[str, Any] = predictor["workerSpec"]
    annotations = annotations_of(obj)

    def refuse(what: str) -> Forbidden:
        return Forbidden(f'the InferenceService "{name_of(obj)}" is invalid: {what}')

    unknown_gpu = refuse(
        "Unknown GPU resource type. Set 'serving.kserve.io/gpu-resource-types' annotation to use "
        "custom gpu resource type"
    )
    containers: Sequence[Mapping[str, Any]] = worker.get("containers") or ()
    if len(containers) > 1:
        raise refuse("setting multiple containers in workerSpec is not allowed")
    model = predictor.get("model")
    if model is not None:
        for name in PARALLEL_ENV:
            if has_env(model, name):
                raise refuse(f"setting {name} in environment variables is not allowed")
        if has_unknown_gpu(model, annotations, config.gpu_resource_types):
            raise unknown_gpu
        uri = model.get("storageUri")
        if uri is None:
            raise refuse("StorageURI must be set for multinode enabled")
        scheme = str(uri).split("://", 1)[0]
        if scheme not in ("pvc", "oci"):
            raise refuse(f"Multinode only supports 'pvc' and 'oci' Storage Protocol({scheme})")
        autoscaler = annotations.get(names.AUTOSCALER_CLASS, "")
        if autoscaler != "none":
            raise refuse(f"Multinode only supports 'none' autoscaler({autoscaler})")
    for field, title in _PARALLEL_SIZES:
        size = worker.get(field)
        if size is not None and size < 1:
            raise refuse(f"WorkerSpec.{title} cannot be less than 1({size})")
    for container in containers:
        if has_unknown_gpu(container, annotations, config.gpu_resource_types):
            raise unknown_gpu


def _check_collocation(predictor: Mapping[str, Any]) -> None:
    containers = shape.containers_of(predictor)
    transformer = shape.container_of(containers, names.TRANSFORMER_CONTAINER)
    if transformer is not None and has_env(transformer, names.STORAGE_URI_ENV):
        raise Forbidden("storage uri should not be specified in transformer container")


def _check_no_container_name(predictor: Mapping[str, Any]) -> None:
    for field in (*shape.FRAMEWORKS, "model"):
        if (predictor.get(field) or {}).get("name"):
            raise Forbidden("the 'name' field is not allowed in standard predictor")


def _check_storage_uris(kind: str, component: Mapping[str, Any]) -> None:
    uris: Sequence[Mapping[str, Any]] | None = component.get("storageUris")
    if uris is None:
        return
    if _single_uri(kind, component) is not None:
        raise Forbidden("Setting both StorageURI and StorageURIs is not supported.")
    for entry in uris:
        _check_storage_entry(entry)
    claims = [_path(e) for e in uris if str(e.get("uri")).startswith("pvc://")]
    others = [_path(e) for e in uris if not str(e.get("uri")).startswith("pvc://")]
    if len(others) <= 1:
        return
    if len(claims) != len(set(claims)):
        raise Forbidden("PVC storage paths must be unique")
    first_parts = {path.strip("/").split("/")[0] for path in others}
    if len(first_parts) > 1:
        raise Forbidden(
            "storage paths must have a common parent directory. Current paths: "
            f"[{' '.join(others)}] have no common parent beyond root"
        )


def _check_storage_entry(entry: Mapping[str, Any]) -> None:
    path = _path(entry)
    if not entry.get("uri"):
        raise Forbidden("storage URI cannot be empty")
    if path == "/":
        raise Forbidden("storage path cannot be empty")
    if not path.startswith("/"):
        raise Forbidden(f"storage path must be absolute: {path}")
    if ".." in path:
        raise Forbidden(f"storage path cannot contain '..' for security reasons: {path}")


def _path(entry: Mapping[str, Any]) -> str:
    """Return the mount path; the schema's default stands in for a missing one."""
    path = entry.get("mountPath")
    return names.MODEL_DIR if path is None else str(path)


def _single_uri(kind: str, component: Mapping[str, Any]) -> str | None:
    """Return the component's storageUri: its model's, its ART's, or its container's env."""
    if kind == "predictor":
        return shape.storage_uri(component)
    art = component.get("art")
    if kind == "explainer" and art is not None:
        return art.get("storageUri") or None
    for container in shape.containers_of(component)[:1]:
        for entry in container.get("env") or ():
            if entry.get("name") == names.STORAGE_URI_ENV:
                return str(entry.get("value") or "")
    return None


def _check_confidential(predictor: Mapping[str, Any]) -> list[str]:
    model = shape.framework_of(predictor)
    confidential = (model[1].get("confidential") if model is not None else None) or {}
    if not confidential.get("enabled"):
        return []
    uri = shape.storage_uri(predictor)
    if not uri:
        raise Forbidden("confidential model serving requires storageUri to be set")
    errors, warnings = confidential_findings(confidential, uri, "spec.predictor")
    if errors:
        raise Forbidden(joined(errors))
    return warnings


def confidential_findings(
    confidential: Mapping[str, Any], uri: str, path: str
) -> tuple[list[FieldError], list[str]]:
    """Return errors and warnings about `confidential` below `path`; shared with LLM services."""
    if not confidential.get("enabled"):
        return [], []
    warnings = []
    if uri.startswith("oci://"):
        warnings.append(
            "confidential has no effect with OCI URIs; OCI image decryption is handled by the "
            "container runtime via runtimeClassName"
        )
    if uri.startswith("pvc://"):
        warnings.append(
            "confidential has no effect with PVC URIs; the storage-initializer is not injected "
            "for PVC volumes"
        )
    resource = confidential.get("resourceId")
    if resource and not _KBS.fullmatch(resource):
        detail = "must be in the format kbs:///<repo>/<type>/<tag>"
        return [invalid(f"{path}.confidential.resourceId", resource, detail)], warnings
    return [], warnings
