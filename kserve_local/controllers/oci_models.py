"""What KServe puts into a Pod for a model in an image (`oci://`), in each of its three modes. Pure.

Changes the PodSpec it is given, which its caller has just built. `modelcar`: a sidecar holds the
image and links its `/models` to where the server looks, behind an init container that checks it;
`native`: an image volume; `fetch`: the storage initializer pulls it. Names, order and shapes are
KServe v0.20's (pkg/utils/storage.go, pkg/webhook/admission/pod/oci_fetch.go; control-plane.md 7.4).
"""

from __future__ import annotations

import posixpath
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from kserve_local.api import names
from kserve_local.api.config import InferenceServiceConfig
from kserve_local.api.config import parse as parse_config
from kserve_local.api.meta import Object
from kserve_local.errors import Invalid

MODELCAR, NATIVE, FETCH = "modelcar", "native", "fetch"
MODELCAR_INIT = "modelcar-init"
VOLUME = "kserve-provision-location"
FOLDER = "models"
MAX_SOURCES = 10
_DOCKER_CONFIG_VOLUME = "kserve-oci-fetch-docker-config"
_DOCKER_CONFIG_DIR = "/mnt/oci-fetch-auth"
_DOCKER_CONFIG_ENV = "KSERVE_OCI_DOCKER_CONFIG"
INSECURE_ENV = "KSERVE_OCI_INSECURE_REGISTRY"
_INIT_MODE_ENV = "MODEL_INIT_MODE"


def parse(uri: str) -> tuple[str, str]:
    """Return the mode that the scheme names (empty: the configured one) and the `oci://` URI.

    The URI is empty where it is no image.
    """
    if uri.startswith("oci://"):
        return "", uri
    scheme, colon, rest = uri.partition("://")
    if colon and scheme.startswith("oci+"):
        return scheme.removeprefix("oci+"), f"oci://{rest}"
    return "", ""


def mode_of(uri: str, config: InferenceServiceConfig) -> tuple[str, str]:
    """Return how an image is brought into the Pod, and its `oci://` URI; both empty where it is
    none, or left to the storage initializer like any other source.
    """
    mode, image = parse(uri)
    effective = mode or config.storage_initializer.oci_mode
    return (effective, image) if image and effective else ("", "")


def insecure_registries(config_map: Object | None) -> bool:
    """Return the `ociInsecureRegistry` of KServe's ConfigMap; no where there is none to read."""
    with suppress(Invalid):
        return (
            config_map is not None
            and parse_config(config_map).storage_initializer.oci_insecure_registry
        )
    return False


def check_paths(paths: Sequence[str], mode: str) -> None:
    """Refuse mount paths of several images that are in each other's way.

    Args:
        mode: The configured one, which upstream goes by.

    Raises:
        Invalid: In KServe's words.
    """
    if len(paths) > MAX_SOURCES:
        raise Invalid(f"too many OCI sources ({len(paths)}); maximum is {MAX_SOURCES} per pod")
    seen: dict[str, str] = {}
    for path in paths:
        parent = path if mode == NATIVE else posixpath.dirname(path) or "/"
        if parent not in seen:
            seen[parent] = path
        elif mode == NATIVE:
            raise Invalid(
                f'OCI mount path "{path}" is specified more than once; each native ImageVolume '
                "must have a unique mount path"
            )
        else:
            raise Invalid(
                f'OCI mount paths "{seen[parent]}" and "{path}" share parent directory '
                f'"{parent}", which would cause volume mount shadowing; use mount paths with '
                "distinct parent directories"
            )


def inject(
    spec: dict[str, Any],
    uri: str,
    path: str,
    mode: str,
    config: InferenceServiceConfig,
    *,
    number: int = 0,
) -> None:
    """Bring one image into the Pod.

    Args:
        uri: `oci://...`.
        path: Where the server looks for the model.
        number: How many images came before.

    Raises:
        Invalid: No container serves, or the path is taken.
    """
    for container in _targets(spec):
        if mode == NATIVE:
            _mount_image(spec, container, uri, path)
        elif mode == FETCH:
            _fetch(spec, container, uri, path, config)
        else:
            _add_modelcar(spec, container, uri, path, config, number)


def _targets(spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    containers = {c.get("name"): c for c in spec.get("containers") or ()}
    main = containers.get(names.PREDICTOR_CONTAINER) or containers.get(names.WORKER_CONTAINER)
    if main is None:
        raise Invalid(f"Invalid configuration: cannot find container: {names.PREDICTOR_CONTAINER}")
    beside = containers.get(names.TRANSFORMER_CONTAINER)
    return [main, beside] if beside is not None else [main]


def _put(owner: dict[str, Any], field: str, item: dict[str, Any]) -> None:
    """Append `item` unless one of its name is there."""
    items = owner.setdefault(field, [])
    if all(present.get("name") != item["name"] for present in items):
        items.append(item)


def _image(uri: str) -> str:
    return uri.removeprefix("oci://")


# -- modelcar -------------------------------------------------------------------------------------


def _add_modelcar(
    spec: dict[str, Any],
    target: dict[str, Any],
    uri: str,
    path: str,
    config: InferenceServiceConfig,
    number: int,
) -> None:
    settings = config.storage_initializer
    suffix = f"-{number}" if number else ""
    volume, image = f"{VOLUME}{suffix}", _image(uri)
    parent = posixpath.dirname(path) or "/"
    env = {"name": _INIT_MODE_ENV, "value": "async"}
    present = next((e for e in target.get("env") or () if e.get("name") == _INIT_MODE_ENV), None)
    if present is None:
        target.setdefault("env", []).append(env)
    else:
        present["value"] = "async"
    _put(spec, "volumes", {"name": volume, "emptyDir": {}})
    _put(target, "volumeMounts", {"name": volume, "mountPath": parent})
    if settings.modelcar_uid is not None:
        target["securityContext"] = {
            **(target.get("securityContext") or {}),
            "runAsUser": settings.modelcar_uid,
        }
    size = {"cpu": settings.modelcar_cpu, "memory": settings.modelcar_memory}
    common: dict[str, Any] = {
        "image": image,
        "resources": {"limits": dict(size), "requests": dict(size)},
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    sidecar = {
        "name": f"{MODELCAR}{suffix}",
        "args": ["sh", "-c", _link_command(path)],
        **common,
        "volumeMounts": [{"name": volume, "mountPath": parent}],
    }
    if settings.modelcar_uid is not None:
        sidecar["securityContext"] = {"runAsUser": settings.modelcar_uid}
    check = {"name": f"{MODELCAR_INIT}{suffix}", "args": ["sh", "-c", _check_command(image)]}
    if all(c.get("name") != sidecar["name"] for c in spec["containers"]):
        spec["containers"].append(sidecar)
        spec.setdefault("initContainers", []).append({**check, **common})
    spec["shareProcessNamespace"] = True


def _link_command(path: str) -> str:
    # Kubernetes turns `$$` into `$`: the shell sees its own process number.
    link = f"ln -sf /proc/$$$$/root/{FOLDER} {shlex.quote(path)} && sleep infinity"
    if path == names.MODEL_DIR:
        return link
    return f"mkdir -p {shlex.quote(posixpath.dirname(path))} && {link}"


def _check_command(image: str) -> str:
    return (
        f"echo {shlex.quote(f'checking model image {image}')}; "
        f'if [ -d /{FOLDER} ] && [ -n "$$(ls -A /{FOLDER})" ]; '
        f"then echo 'ok: /{FOLDER} holds files'; "
        f"else echo 'failed: /{FOLDER} is missing or empty'; exit 1; fi"
    )


# -- native ---------------------------------------------------------------------------------------


def _volume_name(path: str, default: str) -> str:
    return path.strip("/").replace("/", "-") or default


def _mount_image(spec: dict[str, Any], target: dict[str, Any], uri: str, path: str) -> None:
    volume = _volume_name(path, "oci-model")
    for mount in target.get("volumeMounts") or ():
        if mount.get("mountPath") == path and mount.get("name") != volume:
            raise Invalid(f'mountPath "{path}" already used by volume "{mount.get("name")}"')
    reference = {"reference": _image(uri), "pullPolicy": "IfNotPresent"}
    _put(spec, "volumes", {"name": volume, "image": reference})
    mount = {"name": volume, "mountPath": path, "readOnly": True, "subPath": FOLDER}
    _put(target, "volumeMounts", mount)


# -- fetch ----------------------------------------------------------------------------------------


def _fetch(
    spec: dict[str, Any],
    target: dict[str, Any],
    uri: str,
    path: str,
    config: InferenceServiceConfig,
) -> None:
    found = spec.setdefault("initContainers", [])
    initializer = next((c for c in found if c.get("name") == names.STORAGE_INITIALIZER), None)
    if initializer is None:
        initializer = _fetcher(spec, config)
        found.append(initializer)
    args: list[str] = initializer.setdefault("args", [])
    if (uri, path) not in zip(args[::2], args[1::2], strict=False):
        args += [uri, path]
    volume = _volume_name(path, "oci-fetch-model")
    _put(spec, "volumes", {"name": volume, "emptyDir": {}})
    for container in (initializer, target):
        _put(container, "volumeMounts", {"name": volume, "mountPath": path})


def _fetcher(spec: dict[str, Any], config: InferenceServiceConfig) -> dict[str, Any]:
    """Return the storage initializer, with the Pod's first pull secret as Docker configuration."""
    settings = config.storage_initializer.container
    container: dict[str, Any] = {
        "name": names.STORAGE_INITIALIZER,
        "image": settings.image,
        "resources": settings.resources(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    secrets = spec.get("imagePullSecrets") or ()
    if secrets:
        config_file = {"key": ".dockerconfigjson", "path": "config.json"}
        secret = {
            "secretName": secrets[0].get("name"),
            "defaultMode": 0o400,
            "items": [config_file],
        }
        _put(spec, "volumes", {"name": _DOCKER_CONFIG_VOLUME, "secret": secret})
        mount = {
            "name": _DOCKER_CONFIG_VOLUME,
            "mountPath": _DOCKER_CONFIG_DIR,
            "readOnly": True,
        }
        container["volumeMounts"] = [mount]
        place = f"{_DOCKER_CONFIG_DIR}/config.json"
        container["env"] = [{"name": _DOCKER_CONFIG_ENV, "value": place}]
    if config.storage_initializer.oci_insecure_registry:
        container.setdefault("env", []).append({"name": INSECURE_ENV, "value": "true"})
    return container
