"""The pods of a transformer and an explainer: the user's container told where the predictor is.

Pure, like `podspec`. What is appended to the arguments, and where upstream is uneven about it, is
control-plane.md 4.4 (transformer_custom.go, explainer_custom.go, explainer_art.go, components/).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from kserve_local.api import inferenceservice as shape
from kserve_local.api import names, storage_uris
from kserve_local.api.config import InferenceServiceConfig
from kserve_local.api.meta import Object, annotations_of, labels_of, name_of, namespace_of
from kserve_local.controllers import podspec, storage_volumes
from kserve_local.controllers.podspec import PodParts

Container = dict[str, Any]


def transformer_pod(
    isvc: Object, *, config: InferenceServiceConfig, storage_containers: Sequence[Object] = ()
) -> PodParts:
    """Return the transformer's pod.

    Args:
        isvc: A defaulted InferenceService with a `transformer`.
        storage_containers: All ClusterStorageContainers.

    Raises:
        Invalid: Its storage cannot be used.
    """
    component: Mapping[str, Any] = isvc["spec"]["transformer"]
    spec = copy.deepcopy(shape.pod_fields(component))
    container = spec["containers"][0]
    uri = _env(container, names.STORAGE_URI_ENV)
    _append(container, "--model_name", name_of(isvc))
    _append(container, "--predictor_host", predictor_host(isvc))
    _append(container, "--http_port", str(names.DEFAULT_PORT))
    _append_workers(container, component)
    podspec.set_env(container, names.ISVC_NAME_ENV, name_of(isvc))
    annotations = podspec.batcher_annotations(component.get("batcher"))
    return _parts(isvc, "transformer", spec, uri, annotations, config, storage_containers)


def explainer_pod(
    isvc: Object, *, config: InferenceServiceConfig, storage_containers: Sequence[Object] = ()
) -> PodParts:
    """Return the explainer's pod, a custom container's or ART's.

    Args:
        isvc: A defaulted InferenceService with an `explainer`.
        storage_containers: All ClusterStorageContainers.

    Raises:
        Invalid: Its storage cannot be used.
    """
    component: Mapping[str, Any] = isvc["spec"]["explainer"]
    spec = copy.deepcopy(shape.pod_fields(component))
    art = component.get("art")
    if art is not None:
        uri = art.get("storageUri") or None
        spec["containers"] = [_art_container(isvc, component, config)]
    else:
        container = spec["containers"][0]
        uri = _env(container, names.STORAGE_URI_ENV)
        _append(container, "--model_name", name_of(isvc))
        _append(container, "--predictor_host", predictor_host(isvc))
        # Unconditionally, even where the user gave a port: as upstream.
        container["args"] = [*container["args"], "--http_port", str(names.DEFAULT_PORT)]
        _append_workers(container, component)
    return _parts(isvc, "explainer", spec, uri, {}, config, storage_containers)


def predictor_host(isvc: Object) -> str:
    """Return `<predictor service>.<namespace>`; an explainer gets it too, past any transformer."""
    predictor = isvc["spec"]["predictor"]
    service = names.predictor_name(name_of(isvc), predictor.get("name") or "")
    return f"{service}.{namespace_of(isvc)}"


def _parts(
    isvc: Object,
    kind: str,
    spec: dict[str, Any],
    uri: str | None,
    extra: Mapping[str, str],
    config: InferenceServiceConfig,
    storage_containers: Sequence[Object],
) -> PodParts:
    component: Mapping[str, Any] = isvc["spec"][kind]
    annotations = podspec.allowed_annotations(annotations_of(isvc), config)
    if uri is not None:
        storage_uris.check(uri, storage_containers)
        annotations[names.SOURCE_URI] = uri
    annotations |= podspec.logger_annotations(component.get("logger"))
    annotations |= extra
    uris = component.get("storageUris") or ()
    if uris:
        storage_volumes.add(spec, uris, config=config, storage_containers=storage_containers)
    object_labels = {
        **labels_of(isvc),
        **(component.get("labels") or {}),
        names.ISVC_LABEL: name_of(isvc),
        names.COMPONENT_LABEL: kind,
    }
    own = podspec.allowed_annotations(component.get("annotations"), config)
    return PodParts(
        spec=spec,
        labels={k: v for k, v in object_labels.items() if k not in config.labels_disallowed},
        annotations={**annotations, **own},
        object_labels=object_labels,
    )


def _art_container(
    isvc: Object, component: Mapping[str, Any], config: InferenceServiceConfig
) -> Container:
    art: Mapping[str, Any] = component["art"]
    own = {"type", "config", "storageUri", "runtimeVersion", "storage"}
    container = {key: copy.deepcopy(value) for key, value in art.items() if key not in own}
    user: list[str] = list(container.get("args") or ())
    args = ["--model_name", name_of(isvc), "--http_port", str(names.DEFAULT_PORT)]
    if not _has(user, "--predictor_host"):
        args += ["--predictor_host", predictor_host(isvc)]
    concurrency = component.get("containerConcurrency")
    if concurrency is not None and not _has(user, "--workers"):
        args += ["--workers", str(concurrency)]
    if art.get("storageUri"):
        args += ["--storage_uri", names.MODEL_DIR]
    args += ["--adversary_type", str(art.get("type") or "")]
    for key in sorted(art.get("config") or ()):
        args += [f"--{key}", str(art["config"][key])]
    # The user's arguments come twice: as upstream.
    container["args"] = [*args, *user, *user]
    if not container.get("image"):
        version = art.get("runtimeVersion") or config.art_version
        container["image"] = f"{config.art_image}:{version}"
    container["name"] = names.PREDICTOR_CONTAINER
    return container


def _has(args: Sequence[str], flag: str) -> bool:
    return any(arg.startswith(flag) for arg in args)


def _append(container: Container, flag: str, value: str) -> None:
    """Append flag and value as two arguments, unless some argument starts with the flag."""
    args = container.setdefault("args", [])
    if not _has(args, flag):
        container["args"] = [*args, flag, value]


def _append_workers(container: Container, component: Mapping[str, Any]) -> None:
    concurrency = component.get("containerConcurrency")
    if concurrency is not None:
        _append(container, "--workers", str(concurrency))


def _env(container: Container, name: str) -> str | None:
    found = (e.get("value") or "" for e in container.get("env") or () if e.get("name") == name)
    return next(found, None)
