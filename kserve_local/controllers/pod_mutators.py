"""KServe's pod webhook: puts storage initializer, agent, their credentials and mounts into a Pod.
Pure.

Reads the Pod's annotations, the ConfigMap and objects found through `lookup`; gives a new Pod, the
one given stays as it is. Names, order and shapes are KServe v0.20's
(pkg/webhook/admission/pod/storage_initializer_injector.go; control-plane.md section 7), so that
`kubectl get pod -o yaml` shows what it shows on a cluster. The node agent carries it out.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kserve_local.api import names, runtime_selection, scheme, storage_uris, strategic_merge
from kserve_local.api.config import InferenceServiceConfig
from kserve_local.api.meta import Object, annotations_of, labels_of, name_of, namespace_of
from kserve_local.controllers import agent_injector, oci_models
from kserve_local.controllers.credentials import (
    SCHEME_PLACEHOLDER,
    Credentials,
    StorageSpec,
    from_service_account,
    from_storage_spec,
)
from kserve_local.controllers.pod_containers import RUNTIME_ANNOTATION
from kserve_local.controllers.storage_volumes import INITIALIZER_ENV
from kserve_local.errors import Forbidden, Invalid, KServeLocalError

Lookup = Callable[[str, str | None], Sequence[Object]]
"""`lookup(resource, namespace)`: the objects of that resource in the namespace."""

PROVISION_VOLUME = "kserve-provision-location"
PVC_VOLUME = "kserve-pvc-source"
CA_BUNDLE_VOLUME = "cabundle-cert"
GLOBAL_CA_BUNDLE = "global-ca-bundle"
_TARGETS = (names.PREDICTOR_CONTAINER, names.TRANSFORMER_CONTAINER)
_WEBHOOK = "inferenceservice.kserve-webhook-server.pod-mutator"


def mutate(pod: Object, *, config: InferenceServiceConfig, lookup: Lookup) -> Object:
    """Return the Pod as KServe's webhook would admit it.

    Raises:
        Forbidden: The webhook refuses, with the API server's words around KServe's.
    """
    if names.ISVC_LABEL not in labels_of(pod):
        return pod
    new: Object = copy.deepcopy(pod)
    service = _service_of(new, lookup)
    runtime = _runtime_of(new, service, lookup)
    if runtime:
        new["metadata"]["annotations"] = {**annotations_of(new), RUNTIME_ANNOTATION: runtime}
    try:
        _inject_storage(new, config, lookup)
        agent_injector.inject(
            new, service, config, lambda account: _of_account(new, account, config, lookup)
        )
    except KServeLocalError as error:
        raise Forbidden(
            f'admission webhook "{_WEBHOOK}" denied the request: {error.message}', hint=error.hint
        ) from error
    return new


def _service_of(pod: Object, lookup: Lookup) -> Object | None:
    """Return the InferenceService that the Pod belongs to, None when it is gone."""
    services = lookup(scheme.INFERENCE_SERVICE.id, namespace_of(pod) or "default")
    return next((s for s in services if name_of(s) == labels_of(pod)[names.ISVC_LABEL]), None)


def _runtime_of(pod: Object, service: Object | None, lookup: Lookup) -> str:
    """Return the (Cluster)ServingRuntime of the Pod's predictor; empty: it has none.

    Ours, not KServe's: `runtimes:` in kserve-local.yaml is keyed by runtime, and nothing else in a
    Pod names it.
    """
    if service is None or labels_of(pod).get(names.COMPONENT_LABEL) != "predictor":
        return ""
    # Not what the status says where it can be told: it is written after this, once every component
    # has its Knative Service, and until then says nothing, or what was before.
    if runtime_selection.model_of(service):
        with contextlib.suppress(runtime_selection.SelectionError):
            return runtime_selection.select(
                service,
                runtimes=lookup(scheme.SERVING_RUNTIME.id, namespace_of(service)),
                cluster_runtimes=lookup(scheme.CLUSTER_SERVING_RUNTIME.id, None),
            ).name
    status = service.get("status") or {}
    return str(status.get("servingRuntimeName") or status.get("clusterServingRuntimeName") or "")


def _inject_storage(pod: Object, config: InferenceServiceConfig, lookup: Lookup) -> None:
    spec: dict[str, Any] = pod["spec"]
    present = _named(spec.get("initContainers") or (), names.STORAGE_INITIALIZER)
    if present is not None:
        # storageUris: the controller has made it already; only the credentials are missing.
        _apply(spec, present, _credentials(pod, "", config, lookup)[1])
        _add_ca_bundle(spec, present, config)
        return
    annotations = annotations_of(pod)
    source = annotations.get(names.SOURCE_URI)
    if not source:
        return
    mode, image = oci_models.mode_of(source, config)
    if mode:
        # STORAGE_URI of a custom container stays what it is, as upstream.
        oci_models.inject(spec, image, names.MODEL_DIR, mode, config)
        fetcher = _named(spec.get("initContainers") or (), names.STORAGE_INITIALIZER)
        if fetcher is not None:
            _add_ca_bundle(spec, fetcher, config)
        return
    source, credentials = _credentials(pod, source, config, lookup)
    read_only = annotations.get(names.STORAGE_READONLY, "true").lower() != "false"
    if source.startswith("pvc://"):
        _mount_claim(spec, source, read_only=read_only)
    else:
        _put(spec, "volumes", {"name": PROVISION_VOLUME, "emptyDir": {}}, key="name")
        _mount_models(spec, {"name": PROVISION_VOLUME}, read_only=read_only)
        initializer = _initializer(source, pod, config, lookup)
        spec.setdefault("initContainers", []).append(initializer)
        _apply(spec, initializer, credentials)
        _add_ca_bundle(spec, initializer, config)
    _redirect_storage_uri(spec)


def _named(containers: Sequence[dict[str, Any]], name: str) -> dict[str, Any] | None:
    return next((c for c in containers if c.get("name") == name), None)


def _put(owner: dict[str, Any], field: str, item: dict[str, Any], *, key: str) -> None:
    """Append `item` unless one of the same key is there."""
    items = owner.setdefault(field, [])
    if all(present.get(key) != item[key] for present in items):
        items.append(item)


def _credentials(
    pod: Object, source: str, config: InferenceServiceConfig, lookup: Lookup
) -> tuple[str, Credentials]:
    """Return the final source and what the init container gets to reach it."""
    namespace = namespace_of(pod) or "default"
    annotations = annotations_of(pod)
    settings = config.credentials
    secrets = {name_of(s): s for s in lookup(scheme.SECRET.id, namespace)}
    secret_name = annotations.get(settings.storage_secret_annotation, "")
    if annotations.get(names.STORAGE_SPEC) == "true" or source.startswith(SCHEME_PLACEHOLDER):
        spec = StorageSpec(
            key=annotations.get(names.STORAGE_SPEC_KEY, ""),
            parameters=_parameters(annotations.get(names.STORAGE_SPEC_PARAM, "")),
        )
        return from_storage_spec(spec, source, secrets, settings, secret_name=secret_name)
    account_name = str((pod.get("spec") or {}).get("serviceAccountName") or "default")
    return source, _of_account(pod, account_name, config, lookup)


def _of_account(
    pod: Object, name: str, config: InferenceServiceConfig, lookup: Lookup
) -> Credentials:
    """Return what a service account of the Pod's namespace gives."""
    namespace = namespace_of(pod) or "default"
    settings = config.credentials
    secrets = {name_of(s): s for s in lookup(scheme.SECRET.id, namespace)}
    accounts = lookup(scheme.SERVICE_ACCOUNT.id, namespace)
    account = next((a for a in accounts if name_of(a) == name), None)
    only = annotations_of(pod).get(settings.storage_secret_annotation, "")
    return from_service_account(account, secrets, settings, only_secret=only)


def _parameters(text: str) -> Mapping[str, str]:
    if not text:
        return {}
    try:
        found = json.loads(text)
    except ValueError as error:
        raise Invalid(
            f"annotation {names.STORAGE_SPEC_PARAM} holds no JSON object: {error}"
        ) from error
    if not isinstance(found, dict):
        raise Invalid(f"annotation {names.STORAGE_SPEC_PARAM} holds no JSON object")
    return {str(k): str(v) for k, v in found.items()}


def _initializer(
    source: str, pod: Object, config: InferenceServiceConfig, lookup: Lookup
) -> dict[str, Any]:
    """Return the init container, a matching ClusterStorageContainer merged over it."""
    settings = config.storage_initializer.container
    container: dict[str, Any] = {
        "name": names.STORAGE_INITIALIZER,
        "image": settings.image,
        "args": [source, names.MODEL_DIR],
        "env": [{"name": name, "value": value} for name, value in INITIALIZER_ENV],
        "resources": settings.resources(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{"name": PROVISION_VOLUME, "mountPath": names.MODEL_DIR}],
    }
    available = lookup(scheme.CLUSTER_STORAGE_CONTAINER.id, None)
    wanted = annotations_of(pod).get(names.STORAGE_CONTAINER_NAME, "")
    if wanted:
        found: Object | None = storage_uris.named_container(wanted, source, available)
    else:
        found = storage_uris.matching_container(source, available)
    if found is None:
        return container
    over = (found.get("spec") or {}).get("container") or {}
    merged = strategic_merge.merge(container, over, kind="Container")
    merged["name"] = names.STORAGE_INITIALIZER
    return merged


def _mount_models(spec: dict[str, Any], mount: dict[str, Any], *, read_only: bool) -> None:
    for container in spec.get("containers") or ():
        if container.get("name") in _TARGETS:
            full = {**mount, "mountPath": names.MODEL_DIR, "readOnly": read_only}
            _put(container, "volumeMounts", full, key="mountPath")


def _mount_claim(spec: dict[str, Any], source: str, *, read_only: bool) -> None:
    """Mount `pvc://claim/path` directly: volume `kserve-pvc-source`, sub-path `path`."""
    claim, _, path = source.removeprefix("pvc://").partition("/")
    if not claim:
        raise Invalid(f"Invalid PVC URI [{source}]: expected pvc://<claim>/<path>")
    volume = {
        "name": PVC_VOLUME,
        "persistentVolumeClaim": {"claimName": claim, "readOnly": False},
    }
    _put(spec, "volumes", volume, key="name")
    mount: dict[str, Any] = {"name": PVC_VOLUME}
    if path:
        mount["subPath"] = path
    _mount_models(spec, mount, read_only=read_only)


def _apply(spec: dict[str, Any], initializer: dict[str, Any], credentials: Credentials) -> None:
    """Put credentials into the init container; variables it has already stay."""
    for entry in credentials.env:
        _put(initializer, "env", dict(entry), key="name")
    for volume in credentials.volumes:
        _put(spec, "volumes", dict(volume), key="name")
    for mount in credentials.mounts:
        _put(initializer, "volumeMounts", dict(mount), key="mountPath")


def _add_ca_bundle(
    spec: dict[str, Any], initializer: dict[str, Any], config: InferenceServiceConfig
) -> None:
    """Mount the CA bundle: the credentials' own ConfigMap, else the global one (7.6)."""
    env = {e.get("name"): e.get("value") for e in initializer.get("env") or ()}
    config_map = env.get("AWS_CA_BUNDLE_CONFIGMAP") or (
        GLOBAL_CA_BUNDLE if config.storage_initializer.ca_bundle_config_map else ""
    )
    if not config_map:
        return
    path = config.storage_initializer.ca_bundle_mount_path
    _put(initializer, "env", {"name": "CA_BUNDLE_CONFIGMAP_NAME", "value": config_map}, key="name")
    mount_env = {"name": "CA_BUNDLE_VOLUME_MOUNT_POINT", "value": path}
    _put(initializer, "env", mount_env, key="name")
    volume = {"name": CA_BUNDLE_VOLUME, "configMap": {"name": config_map}}
    _put(spec, "volumes", volume, key="name")
    mount = {"name": CA_BUNDLE_VOLUME, "mountPath": path, "readOnly": True}
    _put(initializer, "volumeMounts", mount, key="mountPath")


def _redirect_storage_uri(spec: dict[str, Any]) -> None:
    """Let a custom predictor's STORAGE_URI point at where the model lies."""
    for container in spec.get("containers") or ():
        if container.get("name") != names.PREDICTOR_CONTAINER:
            continue
        for entry in container.get("env") or ():
            if entry.get("name") == names.STORAGE_URI_ENV:
                entry["value"] = names.MODEL_DIR
                entry.pop("valueFrom", None)
