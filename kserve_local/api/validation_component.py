"""What every component of an InferenceService must satisfy: exactly one implementation, sane
replicas, concurrency and logger.

Pure (pkg/apis/serving/v1beta1/component.go and *_custom.go; control-plane.md 2.5 row 9).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kserve_local.api import inferenceservice as shape
from kserve_local.api import names
from kserve_local.errors import Forbidden

# Upstream lists the Go struct's fields and always drops the last one.
_EXACTLY_ONE = {
    "predictor": (
        "Name, SKLearn, XGBoost, Tensorflow, PyTorch, Triton, ONNX, HuggingFace, PMML, LightGBM, "
        "Paddle, Model, StorageUris, StorageContainerName, WorkerSpec, PodSpec",
        "PredictorSpec",
    ),
    "transformer": ("PodSpec, ComponentExtensionSpec", "TransformerSpec"),
    "explainer": ("ART, PodSpec, ComponentExtensionSpec", "ExplainerSpec"),
}
_STORAGE_SPEC_PREFIXES = ("s3://", "hdfs://", "webhdfs://")
_LOGGER_MODES = ("all", "request", "response")


def check(kind: str, component: Mapping[str, Any]) -> None:
    """Check one component apart from its autoscaling.

    Raises:
        Forbidden: The first rule that it breaks.
    """
    if shape.implementations(kind, component) != 1:
        fields, struct = _EXACTLY_ONE[kind]
        raise Forbidden(f"exactly one of [{fields}] must be specified in {struct}")
    _check_implementation(kind, component)
    concurrency = component.get("containerConcurrency")
    if concurrency is not None and concurrency < 0:
        raise Forbidden("parallelism cannot be less than 0")
    _check_replicas(component)
    _check_logger(component.get("logger"))


def _check_implementation(kind: str, component: Mapping[str, Any]) -> None:
    if kind == "predictor" and shape.framework_of(component) is None:
        for entry in shape.containers_of(component)[0].get("env") or ():
            if entry.get("name") == names.PROTOCOL_ENV:
                value = entry.get("value") or ""
                if value not in ("v1", "v2"):
                    # The two arguments are swapped upstream.
                    raise Forbidden(f"invalid protocol v1, v2. Must be one of [{value}]")
                break
    art = component.get("art")
    if kind == "explainer" and art is not None:
        _check_storage_spec(art)
    huggingface = component.get("huggingface")
    if kind == "predictor" and huggingface is not None:
        _check_storage_spec(huggingface)


def _check_storage_spec(implementation: Mapping[str, Any]) -> None:
    """Refuse `storage` beside a storageUri, or of a type, that it cannot be used with."""
    storage = implementation.get("storage")
    if storage is None:
        return
    uri = implementation.get("storageUri")
    listed = ", ".join(_STORAGE_SPEC_PREFIXES)
    if uri:
        if not uri.startswith(_STORAGE_SPEC_PREFIXES):
            raise Forbidden(
                f"storageUri, must be one of: [{listed}] or match "
                "https://{}.blob.core.windows.net/{}/{} or be an absolute or relative local path. "
                f"StorageUri [{uri}] is not supported"
            )
        return
    type_ = (storage.get("parameters") or {}).get("type")
    if type_ is not None and f"{type_}://" not in _STORAGE_SPEC_PREFIXES:
        raise Forbidden(
            f"storage.spec.type, must be one of: [{listed}]. storage.spec.type [{type_}] is not "
            "supported"
        )


def _check_replicas(component: Mapping[str, Any]) -> None:
    least = component.get("minReplicas")
    least = 1 if least is None else least
    most = component.get("maxReplicas") or 0
    if least < 0:
        raise Forbidden("'MinReplicas' cannot be less than 0")
    if most < 0:
        raise Forbidden("'MaxReplicas' cannot be less than 0")
    if most != 0 and least > most:
        raise Forbidden("'MinReplicas' cannot be greater than MaxReplicas")


def _check_logger(logger: Mapping[str, Any] | None) -> None:
    if logger is None:
        return
    if logger.get("mode") not in _LOGGER_MODES:
        raise Forbidden("invalid logger type")
    storage = logger.get("storage")
    if storage is not None:
        given = (storage.get(field) for field in ("path", "parameters", "key"))
        if any(value is None for value in given):
            raise Forbidden("invalid logger storage configuration")
