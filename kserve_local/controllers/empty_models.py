"""Models without a file that their server loads: found when a Pod's containers are made, told once
for its service.

A server that loads nothing at start becomes Ready without a model, on a cluster too. Reads the
folders that a Pod mounts; the Pod's annotation `kserve-local.dev/empty-model` carries the outcome:
the URI of one model a line, and behind a tab the server to which the files there say nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from kserve_local.api import names
from kserve_local.api.meta import Object, annotations_of
from kserve_local.api.storage_uris import without_secrets
from kserve_local.controllers.modelcars import sources_of
from kserve_local.controllers.pod_containers import init_containers
from kserve_local.controllers.pod_volumes import Content
from kserve_local.interfaces.backend import ContainerSpec

REASON = "EmptyModel"
"""Reason (ours) of the Warning about the InferenceService."""

_EXTENSIONS: Mapping[str, tuple[str, ...]] = {
    "sklearnserver": (".joblib", ".pkl", ".pickle"),
    "xgbserver": (".bst", ".json", ".ubj"),
    "lgbserver": (".bst",),
}
"""What KServe's servers load (data-plane.md 7); by nothing else do they know a model."""


def empty_models(
    pod: Object, contents: Mapping[str, Sequence[Content]], specs: Iterable[ContainerSpec]
) -> tuple[str, ...]:
    """Return the lines about the Pod's models that are none. Blocking.

    Args:
        contents: What each init container fetched.
        specs: The Pod's containers.
    """
    found = []
    for container in init_containers(pod):
        fetched = contents.get(str(container.get("name")), ())
        for uri, content in zip(sources_of(pod, container), fetched, strict=False):
            if not _has_files(content.path):
                found.append(without_secrets(uri))
            elif len(fetched) == 1 and content.target == names.MODEL_DIR:
                found += [f"{without_secrets(uri)}\t{s}" for s in _strangers(content.path, specs)]
    # A claim is mounted as it is, by no init container (control-plane.md 7.4).
    claim = _claim(pod)
    if claim:
        mounts = [m for spec in specs for m in spec.mounts if m.path == names.MODEL_DIR]
        found += [claim for m in mounts[:1] if not _has_files(m.source)]
    return tuple(found)


def _strangers(folder: Path, specs: Iterable[ContainerSpec]) -> list[str]:
    """Return the servers that find no model in a folder with files.

    A folder in it may be a model of its own, which the server decides; so nothing is said then.
    """
    try:
        entries = list(folder.iterdir())
    except OSError:
        return []
    if any(entry.is_dir() for entry in entries):
        return []
    suffixes = {entry.suffix for entry in entries}
    return [
        server
        for server, argv in map(_server_of, specs)
        if f"--model_dir={names.MODEL_DIR}" in argv
        and not suffixes & {*_EXTENSIONS.get(server, suffixes)}
    ]


def _server_of(spec: ContainerSpec) -> tuple[str, Sequence[str]]:
    """Return which of our servers a container runs, as a process or as an image, and its words."""
    if spec.program is not None and spec.program.kind == "runtime":
        return spec.program.runtime, spec.program.argv
    return (spec.build.server, spec.argv) if spec.build is not None else ("", ())


def _has_files(path: Path) -> bool:
    return not path.is_dir() or any(files for _, _, files in os.walk(path, followlinks=True))


def _claim(pod: Object) -> str:
    """Return the `pvc://` source that is mounted as the model, empty if it is no claim."""
    source = annotations_of(pod).get(names.SOURCE_URI, "")
    return source if source.startswith("pvc://") else ""


def sentence(line: str) -> str:
    """Return what is told about one line of `empty_models`."""
    uri, _, server = line.partition("\t")
    if server:
        *most, last = _EXTENSIONS[server]
        kinds = f"{', '.join(most)} or {last}" if most else last
        return (
            f"storageUri {uri} holds no {kinds} file, and {server} loads nothing else: it serves "
            "no model; correct modelFormat or the URI"
        )
    return (
        f"storageUri {uri} holds no files: there is no model to serve; put it there or correct the "
        "URI"
    )


def told_by(pods: Iterable[Object]) -> list[str]:
    """Return one sentence for each empty model of these Pods, for `kserve-local status`. Pure."""
    lines = {
        line: None
        for pod in pods
        for line in annotations_of(pod).get(names.EMPTY_MODEL, "").splitlines()
        if not pod["metadata"].get("deletionTimestamp")
    }
    return [sentence(line) for line in lines]
