"""The predictor's pod: runtime and InferenceService merged into a PodSpec with its labels and
annotations.

Pure: reads an InferenceService, the selected runtime and the configuration; writes nothing. The
rules are KServe's (components/predictor.go, utils.go, container_merge.go; control-plane.md 3.4,
3.5, 4.5, 7.3): server-type defaults live only here, in memory, and show on pods alone.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kserve_local.api import inferenceservice, names, storage_uris, strategic_merge
from kserve_local.api.config import InferenceServiceConfig
from kserve_local.api.inferenceservice import (
    MODEL_FIELDS,
    Container,
    container_of,
    is_multi_model,
    storage_uri,
)
from kserve_local.api.meta import Object, annotations_of, labels_of, name_of
from kserve_local.api.runtime_selection import INVALID_PREDICTOR_SPEC, Selection, SelectionError
from kserve_local.controllers import placeholders, storage_volumes
from kserve_local.errors import BadRequest, Invalid

_RUNTIME_POD_FIELDS = (
    "nodeSelector",
    "affinity",
    "tolerations",
    "volumes",
    "imagePullSecrets",
    "schedulerName",
    "resourceClaims",
)
_MODEL_CLASSES = {
    "xgboost": "mlserver_xgboost.XGBoostModel",
    "lightgbm": "mlserver_lightgbm.LightGBMModel",
    "mlflow": "mlserver_mlflow.MLflowRuntime",
}
_TAG = re.compile(r":[\w.\-]*$")
_GPU_IMAGE_SERVERS = frozenset(("tensorflow-serving", "torchserve", "huggingfaceserver"))


@dataclass(frozen=True, slots=True)
class PodParts:
    """What a pod template of the component holds.

    Args:
        spec: The PodSpec, before pod mutators (storage initializer, agent) and API defaults.
        labels: Labels of the pod template; those on the disallowed list are left out.
        annotations: Annotations of the pod template, internal ones included.
        object_labels: Labels of the Knative Service or Deployment around it: also the disallowed
            ones, such as `networking.knative.dev/visibility`.
    """

    spec: dict[str, Any]
    labels: dict[str, str]
    annotations: dict[str, str]
    object_labels: dict[str, str]


def predictor_pod(
    isvc: Object,
    selection: Selection | None,
    *,
    config: InferenceServiceConfig,
    storage_containers: Sequence[Object] = (),
) -> PodParts:
    """Return the predictor's pod as KServe's controller builds it.

    Args:
        isvc: A defaulted InferenceService.
        selection: The runtime for `model`; None for custom containers.
        storage_containers: All ClusterStorageContainers.

    Raises:
        SelectionError: The runtime and the spec make no pod; belongs into modelStatus.
        Invalid: The storage cannot be used; an event only, modelStatus stays as it is.

    Source: control-plane.md 3.4, 3.5, 4.5, 7.1, 7.3.
    """
    predictor: Mapping[str, Any] = isvc["spec"]["predictor"]
    annotations = allowed_annotations(annotations_of(isvc), config)
    annotations |= logger_annotations(predictor.get("logger"))
    annotations |= batcher_annotations(predictor.get("batcher"))
    annotations |= storage_annotations(predictor, storage_containers, annotations)
    if is_multi_model(predictor):
        annotations |= {
            names.AGENT: "true",
            names.AGENT_CONFIG_VOLUME: f"modelconfig-{name_of(isvc)}-0",
            names.AGENT_CONFIG_PATH: names.CONFIG_DIR,
            names.AGENT_MODEL_DIR: names.MODEL_DIR,
        }
    annotations |= _confidential_annotations(predictor)
    labels = dict(labels_of(isvc))
    runtime_spec: Mapping[str, Any] = {}
    if selection is not None:
        runtime_spec = selection.runtime.get("spec") or {}
        model, labels = _with_server_defaults(isvc, selection, labels)
        metadata = {**isvc["metadata"], "labels": labels}
        spec = _merged_spec(predictor, model, metadata, selection)
    else:
        spec = copy.deepcopy(inferenceservice.pod_fields(predictor))
    for container in spec.get("containers") or ():
        set_env(container, names.ISVC_NAME_ENV, name_of(isvc))
    uris = predictor.get("storageUris") or ()
    if uris:
        storage_volumes.add(spec, uris, config=config, storage_containers=storage_containers)
    object_labels = {
        **(runtime_spec.get("labels") or {}),
        **labels,
        **(predictor.get("labels") or {}),
        names.ISVC_LABEL: name_of(isvc),
        names.COMPONENT_LABEL: "predictor",
    }
    return PodParts(
        spec=spec,
        labels={k: v for k, v in object_labels.items() if k not in config.labels_disallowed},
        annotations={
            **allowed_annotations(runtime_spec.get("annotations"), config),
            **annotations,
            **allowed_annotations(predictor.get("annotations"), config),
        },
        object_labels=object_labels,
    )


def merge_containers(runtime: Container, isvc: Mapping[str, Any]) -> Container:
    """Return the service's container over the runtime's; args are the runtime's, then its own.

    Raises:
        SelectionError: They cannot be merged.

    Source: control-plane.md 3.5.
    """
    patch = {key: value for key, value in isvc.items() if key != "name"}
    try:
        merged = strategic_merge.merge(runtime, patch, kind="Container")
    except BadRequest as error:
        text = f"failed to merge container. Detail: {error}"
        raise SelectionError(INVALID_PREDICTOR_SPEC, text) from error
    args = [*(runtime.get("args") or ()), *(isvc.get("args") or ())]
    merged.pop("args", None)
    if args:
        merged["args"] = args
    own = {entry.get("name"): entry for entry in isvc.get("env") or ()}
    if merged.get("env"):
        merged["env"] = [_one_source(e, own.get(e.get("name"))) for e in merged["env"]]
    return merged


def with_image_tag(
    container: Container, *, runtime_version: str | None, server_type: str
) -> Container:
    """Return the container with the image that the version or the device asks for.

    `runtimeVersion` replaces the tag. Otherwise a GPU limit adds `-gpu` to the tag of some servers
    and its absence `-cpu` to vLLM's repository; an image without a tag stays, as does a digest.

    Source: control-plane.md 3.5, `UpdateImageTag`.
    """
    image = str(container.get("image") or "")
    if "@sha256:" in image:
        return container
    tag = _TAG.search(image)
    if runtime_version is not None:
        base = image[: tag.start()] if tag else image
        return {**container, "image": f"{base}:{runtime_version}"}
    if tag is None:
        return container
    if has_gpu_limit(container):
        if server_type in _GPU_IMAGE_SERVERS and not image.endswith("-gpu"):
            return {**container, "image": f"{image}-gpu"}
        return container
    base = image[: tag.start()]
    if server_type == "vllmserver" and not base.endswith("-cpu"):
        return {**container, "image": f"{base}-cpu{tag.group()}"}
    return container


def has_gpu_limit(container: Mapping[str, Any]) -> bool:
    """Whether the container has a limit on `nvidia.com/gpu` or `nvidia.com/mig*`."""
    limits = (container.get("resources") or {}).get("limits") or {}
    return any(key == "nvidia.com/gpu" or key.startswith("nvidia.com/mig") for key in limits)


def logger_annotations(logger: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the pod annotations that ask for the logger (control-plane.md 4.5)."""
    if logger is None:
        return {}
    annotations = {names.LOGGER: "true"}
    if logger.get("url"):
        annotations[names.LOGGER_SINK_URL] = logger["url"]
    if logger.get("mode"):
        annotations[names.LOGGER_MODE] = logger["mode"]
    if logger.get("metadataHeaders"):
        annotations[names.LOGGER_METADATA_HEADERS] = ",".join(logger["metadataHeaders"])
    if logger.get("metadataAnnotations"):
        annotations[names.LOGGER_METADATA_ANNOTATIONS] = ",".join(logger["metadataAnnotations"])
    return annotations


def batcher_annotations(batcher: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the pod annotations that ask for the batcher."""
    if batcher is None:
        return {}
    annotations = {names.BATCHER: "true"}
    if batcher.get("maxBatchSize") is not None:
        annotations[names.BATCHER_MAX_BATCH_SIZE] = str(batcher["maxBatchSize"])
    if batcher.get("maxLatency") is not None:
        annotations[names.BATCHER_MAX_LATENCY] = str(batcher["maxLatency"])
    return annotations


def storage_annotations(
    predictor: Mapping[str, Any], containers: Sequence[Object], present: Mapping[str, str]
) -> dict[str, str]:
    """Return the pod annotations that name the single source.

    Args:
        containers: All ClusterStorageContainers.
        present: The Pod's other annotations.

    Raises:
        Invalid: The URI is not supported, or there are two sources.
    """
    annotations: dict[str, str] = {}
    storage = (predictor.get("model") or {}).get("storage")
    if storage is not None:
        annotations[names.STORAGE_SPEC] = "true"
        if storage.get("key") is not None:
            annotations[names.STORAGE_SPEC_KEY] = storage["key"]
        if storage.get("parameters") is not None:
            annotations[names.STORAGE_SPEC_PARAM] = json.dumps(
                storage["parameters"], separators=(",", ":"), sort_keys=True
            )
        if storage.get("path") is not None:
            path = str(storage["path"]).removeprefix("/")
            annotations[names.SOURCE_URI] = f"<scheme-placeholder>://{path}"
    uri = storage_uri(predictor)
    if uri is None:
        return annotations
    if names.SOURCE_URI in annotations or names.SOURCE_URI in present:
        raise Invalid("must provide only one of storageUri and storage.path")
    storage_uris.check(uri, containers)
    annotations[names.SOURCE_URI] = uri
    if predictor.get("storageContainerName"):
        annotations[names.STORAGE_CONTAINER_NAME] = predictor["storageContainerName"]
    return annotations


def _confidential_annotations(predictor: Mapping[str, Any]) -> dict[str, str]:
    confidential = (predictor.get("model") or {}).get("confidential") or {}
    if not confidential.get("enabled"):
        return {}
    annotations = {names.CONFIDENTIAL_ENABLED: "true"}
    if confidential.get("resourceId"):
        annotations[names.CONFIDENTIAL_RESOURCE_ID] = confidential["resourceId"]
    return annotations


def _with_server_defaults(
    isvc: Object, selection: Selection, labels: dict[str, str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the model and labels with what the server type adds (control-plane.md 3.4)."""
    model = dict(isvc["spec"]["predictor"]["model"])
    env = list(model.get("env") or ())
    stored = bool(model.get("storageUri") or model.get("storage"))
    if selection.server_type == "mlserver":
        wanted = (
            {"MLSERVER_MODEL_NAME": name_of(isvc), "MLSERVER_MODEL_URI": names.MODEL_DIR}
            if stored
            else {"MLSERVER_LOAD_MODELS_AT_STARTUP": "false"}
        )
        given = {e.get("name") for e in env}
        env += [{"name": k, "value": v} for k, v in wanted.items() if k not in given]
        fmt = str((model.get("modelFormat") or {}).get("name"))
        model_class = _MODEL_CLASSES.get(fmt, "mlserver_sklearn.SKLearnModel")
        labels = {**labels, names.MODEL_CLASS: model_class}
    elif selection.server_type == "torchserve":
        v2 = selection.protocol in ("v2", "grpc-v2")
        labels = {**labels, names.SERVICE_ENVELOPE: "kservev2" if v2 else "kserve"}
        env.append({"name": "PROTOCOL_VERSION", "value": selection.protocol})
    elif selection.server_type == "tritonserver" and not stored:
        model["args"] = [*(model.get("args") or ()), "--model-control-mode=explicit"]
    if env:
        model["env"] = env
    return model, labels


def _merged_spec(
    predictor: Mapping[str, Any],
    model: Mapping[str, Any],
    metadata: Mapping[str, Any],
    selection: Selection,
) -> dict[str, Any]:
    runtime_spec: Mapping[str, Any] = selection.runtime.get("spec") or {}
    theirs: Sequence[Container] = runtime_spec.get("containers") or ()
    if not theirs:
        raise SelectionError(
            INVALID_PREDICTOR_SPEC, "no container configuration found in selected serving runtime"
        )
    base = container_of(theirs, names.PREDICTOR_CONTAINER)
    if base is None:
        raise SelectionError(
            INVALID_PREDICTOR_SPEC,
            f"failed to find {names.PREDICTOR_CONTAINER} in ServingRuntime containers",
        )
    own = {k: v for k, v in model.items() if k not in MODEL_FIELDS}
    container = merge_containers(base, own)
    pod_fields = inferenceservice.pod_fields(predictor)
    ours: Sequence[Container] = pod_fields.pop("containers", None) or ()
    try:
        spec = strategic_merge.merge(
            {k: runtime_spec[k] for k in _RUNTIME_POD_FIELDS if runtime_spec.get(k) is not None},
            pod_fields,
            kind="PodSpec",
        )
    except BadRequest as error:
        text = f"failed to consolidate serving runtime PodSpecs. Detail: {error}"
        raise SelectionError(INVALID_PREDICTOR_SPEC, text) from error
    container = with_image_tag(
        _filled(container, metadata, selection),
        runtime_version=model.get("runtimeVersion"),
        server_type=selection.server_type,
    )
    containers = [container]
    their_transformer = container_of(theirs, names.TRANSFORMER_CONTAINER)
    our_transformer = container_of(ours, names.TRANSFORMER_CONTAINER)
    transformer = our_transformer or their_transformer
    if their_transformer is not None and our_transformer is not None:
        transformer = merge_containers(their_transformer, our_transformer)
    if transformer is not None:
        containers.append(_filled(transformer, metadata, selection))
    placed = (names.PREDICTOR_CONTAINER, names.TRANSFORMER_CONTAINER)
    containers += [c for c in theirs if c.get("name") not in placed]
    containers += [c for c in ours if c.get("name") != names.TRANSFORMER_CONTAINER]
    return copy.deepcopy({**spec, "containers": containers})


def _filled(container: Container, metadata: Mapping[str, Any], selection: Selection) -> Container:
    try:
        return placeholders.replace(container, metadata)
    except placeholders.TemplateError as error:
        text = (
            f"failed to replace placeholders in serving runtime {selection.name} "
            f"Container {container.get('name')}"
        )
        raise SelectionError(INVALID_PREDICTOR_SPEC, text, f"{text}: {error}") from error


def _one_source(entry: Mapping[str, Any], own: Mapping[str, Any] | None) -> dict[str, Any]:
    """Drop the runtime's kind of value where the service gave the other kind."""
    if own is None or entry.get("value") is None or entry.get("valueFrom") is None:
        return dict(entry)
    loser = "value" if own.get("valueFrom") is not None else "valueFrom"
    return {key: value for key, value in entry.items() if key != loser}


def set_env(container: Container, name: str, value: str) -> None:
    """Set a variable of a container that the caller has made."""
    env = container.setdefault("env", [])
    for entry in env:
        if entry.get("name") == name:
            entry["value"] = value
            return
    env.append({"name": name, "value": value})


def allowed_annotations(
    annotations: Mapping[str, str] | None, config: InferenceServiceConfig
) -> dict[str, str]:
    """Return the annotations that are passed on to pods."""
    return {k: v for k, v in (annotations or {}).items() if k not in config.annotations_disallowed}
