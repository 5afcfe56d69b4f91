"""The images of this machine's Docker engine, for storage: is one there, and a folder of it.

Reads through a container that is made and never started. Blocking, since downloads run in threads;
the SDK is imported when the first image is asked for.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from kserve_local.errors import KServeLocalError
from kserve_local.interfaces.storage import EngineImage, EngineImages
from kserve_local.settings import Settings

logger = logging.getLogger(__name__)

_NOTHING = "/"
_LONGEST = 86_400.0
_LABEL = "kserve-local.dev/reads-image"


def engine_images(settings: Settings, environ: Mapping[str, str]) -> EngineImages | None:
    """Return the images that a project may use; None: it does without an engine."""
    return None if settings.backend == "process" else DockerImages(environ)


class DockerImages:
    """See `EngineImages`.

    Args:
        environ: Where `DOCKER_HOST` and its like are looked up.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def find(self, image: str) -> EngineImage | None:
        """See `EngineImages.find`."""
        from kserve_local.backends.docker_engine import blocking

        try:
            with blocking(self._environ) as call:
                found = call("inspect_image")(image)
        except KServeLocalError as error:
            # What is no image name for the engine is none for a registry either, which says so.
            logger.debug("image %s is not taken from the engine: %s", image, error)
            return None
        digests = (str(d).rpartition("@")[2] for d in found.get("RepoDigests") or ())
        return EngineImage(str(found["Id"]), frozenset(digests))

    def export(self, id: str, folder: str, into: Path, check: Callable[[int], None]) -> None:
        """See `EngineImages.export`."""
        from kserve_local.backends.docker_engine import blocking, translated_items

        with blocking(self._environ) as call:
            for left in call("containers")(all=True, filters={"label": [_LABEL]}):
                # Of a reader that was killed; nobody reads that long.
                if time.time() - float(left["Created"]) > _LONGEST:
                    call("remove_container")(left["Id"], force=True, v=True)
            # An image may name no program; this one is never started.
            made = call("create_container")(id, command=[_NOTHING], labels={_LABEL: id})
            try:
                parts, _ = call("get_archive")(made["Id"], f"/{folder}")
                with into.open("xb") as file:
                    for part in translated_items(iter(parts)):
                        check(len(part))
                        file.write(part)
            finally:
                call("remove_container")(made["Id"], force=True, v=True)
