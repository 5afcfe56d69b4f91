"""Images that were built here: what an engine has of them, which are up to date, which can go.

Images are known by their label; nothing else is ever removed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from kserve_local.backends.docker_engine import Engine, filters
from kserve_local.backends.docker_images import BUILDER, LABEL
from kserve_local.errors import Conflict, NotFound


@dataclass(frozen=True, slots=True)
class Found:
    """One image that was built here.

    Args:
        label: The server, or the image of kserve-local.yaml.
        name: Repository and tag; empty: a later build has taken the tag.
        size: Bytes, layers that other images share included.
        created: Unix time.
        used_by: Containers, running or not.
    """

    id: str
    label: str
    name: str
    size: int
    created: float
    used_by: int


async def inventory(engine: Engine) -> list[Found]:
    """Return the images that were built here, newest first."""
    images = await engine.call("images", filters=filters([LABEL]))
    containers = await engine.call("containers", all=True)
    uses: dict[str, int] = {}
    for container in containers:
        uses[container["ImageID"]] = uses.get(container["ImageID"], 0) + 1
    found = [_found(image, name, uses) for image in images for name in _names(image)]
    return sorted(found, key=lambda image: (-image.created, image.name))


def _names(image: Mapping[str, Any]) -> list[str]:
    # Podman tells names in full.
    names = [name.removeprefix("docker.io/") for name in image.get("RepoTags") or ()]
    return [name for name in names if name != "<none>:<none>"] or [""]


def _found(image: Mapping[str, Any], name: str, uses: Mapping[str, int]) -> Found:
    return Found(
        id=str(image["Id"]),
        label=str((image.get("Labels") or {}).get(LABEL) or ""),
        name=name,
        size=int(image.get("Size") or 0),
        created=float(image.get("Created") or 0),
        used_by=uses.get(image["Id"], 0),
    )


async def prune(engine: Engine, *, keep: Collection[str]) -> tuple[list[Found], int]:
    """Remove images that were built here and that no container uses, and the builds' own layers.

    Args:
        keep: Names of images that stay.

    Returns:
        What was removed, and the bytes that this freed.
    """
    removed = []
    for image in await inventory(engine):
        if image.used_by or image.name in keep:
            continue
        with contextlib.suppress(NotFound, Conflict):
            await engine.call("remove_image", image.name or image.id)
            removed.append(image)
    # What the first stages of a build leave has no name, and the labels of none of ours.
    layers = await engine.call("prune_images", filters={"dangling": True, "label": [BUILDER]})
    freed = int(layers.get("SpaceReclaimed") or 0) + sum(image.size for image in removed)
    return removed, freed
