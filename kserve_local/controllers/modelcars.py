"""Modelcars and image volumes of a Pod, as the node agent plays them. Pure.

On a node a modelcar is a sidecar that keeps an image's files alive, and its init container checks
them. Here the storage initializer brings the image's `/models` into the shared cache and the server
sees it where the sidecar would link it, so neither needs a process: the init container ends when
the model is there, and the sidecar runs from then on. They are known by KServe's names and shapes
(`oci_models`), also where a user's client wrote them.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kserve_local.api.meta import Object
from kserve_local.api.names import STORAGE_INITIALIZER
from kserve_local.controllers.oci_models import FOLDER, MODELCAR, MODELCAR_INIT

_INIT = re.compile(rf"{MODELCAR_INIT}(-\d+)?")
_LINK = ["ln", "-sf", f"/proc/$$$$/root/{FOLDER}"]


@dataclass(frozen=True, slots=True)
class Modelcar:
    """One image that a sidecar and its init container stand for.

    Args:
        init, sidecar: Names of the two containers.
        target: Where the server looks for the image's `/models`.
        container: The init container.
    """

    init: str
    sidecar: str
    image: str
    target: str
    container: Mapping[str, Any]

    @property
    def uri(self) -> str:
        """The image as a storageUri."""
        return f"oci://{self.image}"


@dataclass(frozen=True, slots=True)
class ImageVolume:
    """A volume that is an image's content (`oci+native://`)."""

    name: str
    image: str
    pull: str

    @property
    def key(self) -> str:
        """Names it among what init containers fetched; no container has such a name."""
        return f"volume:{self.name}"


def modelcars(pod: Object) -> tuple[Modelcar, ...]:
    """Return the Pod's modelcars, in order."""
    spec = pod.get("spec") or {}
    sidecars = {c.get("name"): c for c in spec.get("containers") or ()}
    found = []
    for init in spec.get("initContainers") or ():
        match = _INIT.fullmatch(str(init.get("name") or ""))
        sidecar = sidecars.get(f"{MODELCAR}{match[1] or ''}") if match else None
        target = _target(sidecar) if sidecar is not None else ""
        if sidecar is not None and target and sidecar.get("image") == init.get("image"):
            image = str(init.get("image") or "")
            found.append(
                Modelcar(str(init["name"]), str(sidecar["name"]), image, target, container=init)
            )
    return tuple(found)


def modelcar_of(pod: Object, init: str) -> Modelcar | None:
    """Return the modelcar that an init container checks, None if it does something else."""
    return next((car for car in modelcars(pod) if car.init == init), None)


def sources_of(pod: Object, init: Mapping[str, Any]) -> list[str]:
    """Return what one of KServe's init containers fetches, in order; nothing of a user's own."""
    car = modelcar_of(pod, str(init.get("name")))
    if car is not None:
        return [car.uri]
    if init.get("name") != STORAGE_INITIALIZER:
        return []
    # Pairs of source and target.
    return [str(arg) for arg in (init.get("args") or ())[::2]]


def _target(sidecar: Mapping[str, Any]) -> str:
    """Return where a sidecar links its files, empty if it does not."""
    args = [str(arg) for arg in sidecar.get("args") or ()]
    try:
        words = shlex.split(args[2]) if args[:2] == ["sh", "-c"] else []
    except (IndexError, ValueError):
        return ""
    for at in range(len(words) - len(_LINK)):
        if words[at : at + len(_LINK)] == _LINK:
            return words[at + len(_LINK)]
    return ""


def image_volumes(pod: Object) -> tuple[ImageVolume, ...]:
    """Return the Pod's volumes that are images, in order."""
    return tuple(
        ImageVolume(
            str(volume.get("name") or ""),
            str(volume["image"].get("reference") or ""),
            str(volume["image"].get("pullPolicy") or ""),
        )
        for volume in (pod.get("spec") or {}).get("volumes") or ()
        if volume.get("image")
    )


def has_images(pod: Object) -> bool:
    """Whether a model of the Pod is an image that the node agent brings."""
    return bool(modelcars(pod) or image_volumes(pod))
