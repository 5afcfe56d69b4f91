"""Models without a single file: found when a Pod's containers are made, told once for its service.

A server that loads nothing at start becomes Ready without a model, on a cluster too. Reads the
folders that a Pod mounts; the Pod's annotation `kserve-local.dev/empty-model` carries the outcome.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from kserve_local.api import names
from kserve_local.api.meta import Object, annotations_of
from kserve_local.api.storage_uris import without_secrets
from kserve_local.controllers.pod_containers import init_containers
from kserve_local.controllers.pod_volumes import Content
from kserve_local.interfaces.backend import ContainerSpec

REASON = "EmptyModel"
"""Reason (ours) of the Warning about the InferenceService."""


def empty_models(
    pod: Object, contents: Mapping[str, Sequence[Content]], specs: Iterable[ContainerSpec]
) -> tuple[str, ...]:
    """Return the URIs of the Pod's models that hold no file. Blocking.

    Args:
        contents: What each init container fetched.
        specs: The Pod's containers.
    """
    found = []
    for container in init_containers(pod):
        fetched = contents.get(str(container.get("name")), ())
        # Pairs of source and target, fetched in this order.
        sources = [str(a) for a in (container.get("args") or ())[::2]]
        found += [u for u, c in zip(sources, fetched, strict=False) if not _has_files(c.path)]
    # A claim is mounted as it is, by no init container (control-plane.md 7.4).
    claim = _claim(pod)
    if claim:
        mounts = [m for spec in specs for m in spec.mounts if m.path == names.MODEL_DIR]
        found += [claim for m in mounts[:1] if not _has_files(m.source)]
    return tuple(without_secrets(uri) for uri in found)


def _has_files(path: Path) -> bool:
    return not path.is_dir() or any(files for _, _, files in os.walk(path, followlinks=True))


def _claim(pod: Object) -> str:
    """Return the `pvc://` source that is mounted as the model, empty if it is no claim."""
    source = annotations_of(pod).get(names.SOURCE_URI, "")
    return source if source.startswith("pvc://") else ""


def sentence(uri: str) -> str:
    """Return what is told about one empty model."""
    return (
        f"storageUri {uri} holds no files: there is no model to serve; put it there or correct the "
        "URI"
    )


def told_by(pods: Iterable[Object]) -> list[str]:
    """Return one sentence for each empty model of these Pods, for `kserve-local status`. Pure."""
    uris = {
        uri: None
        for pod in pods
        for uri in annotations_of(pod).get(names.EMPTY_MODEL, "").splitlines()
        if not pod["metadata"].get("deletionTimestamp")
    }
    return [sentence(uri) for uri in uris]
