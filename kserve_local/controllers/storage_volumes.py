"""`storageUris`: several sources in one pod, each at a mount path of its own.

Pure; changes the PodSpec it is given, which its caller has just built. Entries that are no claims
share one `storage-initializer` init container and one emptyDir at the common parent of their
paths; a claim is mounted whole at its path, a sub-path in the URI is ignored, and an image comes in
as `oci_models` says, as upstream does (pkg/utils/storage.go; control-plane.md 7.2, 7.3, 7.4).
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

from kserve_local.api import names, storage_uris
from kserve_local.api.config import InferenceServiceConfig
from kserve_local.api.meta import Object, name_of
from kserve_local.controllers import oci_models
from kserve_local.errors import Invalid

INITIALIZER_ENV = (
    ("HF_HUB_ENABLE_HF_TRANSFER", "1"),
    ("HF_XET_HIGH_PERFORMANCE", "1"),
    ("HF_XET_NUM_CONCURRENT_RANGE_GETS", "8"),
)
_TARGETS = (names.PREDICTOR_CONTAINER, names.TRANSFORMER_CONTAINER)


def add(
    spec: dict[str, Any],
    uris: Sequence[Mapping[str, Any]],
    *,
    config: InferenceServiceConfig,
    storage_containers: Sequence[Object] = (),
) -> None:
    """Put volumes, mounts and the init container for `storageUris` into the PodSpec.

    Raises:
        Invalid: A URI is not supported, too many OCI sources, or a storage container that takes
            one source only.
    """
    claims = [u for u in uris if u["uri"].startswith("pvc://")]
    images = [u for u in uris if oci_models.mode_of(u["uri"], config)[0]]
    others = [u for u in uris if u not in claims and u not in images]
    for entry in (*images, *others):
        storage_uris.check(entry["uri"], storage_containers)
    paths = [mount_path(u) for u in uris if oci_models.parse(u["uri"])[1]]
    oci_models.check_paths(paths, config.storage_initializer.oci_mode)
    for number, entry in enumerate(images):
        mode, uri = oci_models.mode_of(entry["uri"], config)
        oci_models.inject(spec, uri, mount_path(entry), mode, config, number=number)
    for entry in others:
        found = storage_uris.matching_container(entry["uri"], storage_containers)
        if found is not None and not (found.get("spec") or {}).get("supportsMultiModelDownload"):
            raise Invalid(
                f'storage container "{name_of(found)}" does not support multi-model download; use '
                "the default kserve storage initializer or a compatible storage container"
            )
    for number, entry in enumerate(claims):
        claim = entry["uri"].removeprefix("pvc://").split("/", 1)[0]
        volume = f"{claim}-{number}" if number else claim
        _volume(spec, {"name": volume, "persistentVolumeClaim": {"claimName": claim}})
        _mount(spec, volume, mount_path(entry), read_only=True)
    fetching = any(
        c.get("name") == names.STORAGE_INITIALIZER for c in spec.get("initContainers") or ()
    )
    # Beside an image that is fetched nothing else is: upstream finds the init container there.
    if others and not fetching:
        _add_initializer(spec, others, config)


def mount_path(entry: Mapping[str, Any]) -> str:
    """Return the entry's mount path, `/mnt/models` unless given."""
    return str(entry.get("mountPath") or names.MODEL_DIR)


def common_parent(paths: Sequence[str]) -> str:
    """Return the deepest directory that is, or is above, all the absolute paths."""
    return posixpath.commonpath(list(paths))


def _add_initializer(
    spec: dict[str, Any], entries: Sequence[Mapping[str, Any]], config: InferenceServiceConfig
) -> None:
    parent = common_parent([mount_path(e) for e in entries])
    volume = parent.strip("/").replace("/", "-")
    _volume(spec, {"name": volume, "emptyDir": {}})
    _mount(spec, volume, parent, read_only=True)
    initializer = config.storage_initializer.container
    spec.setdefault("initContainers", []).append(
        {
            "name": names.STORAGE_INITIALIZER,
            "image": initializer.image,
            "args": [part for e in entries for part in (e["uri"], mount_path(e))],
            "env": [{"name": key, "value": value} for key, value in INITIALIZER_ENV],
            "resources": initializer.resources(),
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "volumeMounts": [{"name": volume, "mountPath": parent}],
        }
    )


def _volume(spec: dict[str, Any], volume: dict[str, Any]) -> None:
    volumes = spec.setdefault("volumes", [])
    if all(present.get("name") != volume["name"] for present in volumes):
        volumes.append(volume)


def _mount(spec: dict[str, Any], volume: str, path: str, *, read_only: bool) -> None:
    for container in spec.get("containers") or ():
        if container.get("name") in _TARGETS:
            container.setdefault("volumeMounts", []).append(
                {"name": volume, "mountPath": path, "readOnly": read_only}
            )
