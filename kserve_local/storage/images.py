"""A model image: from the container engine of this machine if it has it, else from its registry.

Follows `imagePullPolicy`: what the engine has is taken, but for `latest` (Always) the registry is
asked first whether that is still the image. One that was built here, which no registry ever saw, is
taken at once. What cannot be asked now is told, and the engine's image is used.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kserve_local.errors import KServeLocalError, NotFound, StorageError
from kserve_local.interfaces.registries import pull_policy_of
from kserve_local.interfaces.storage import EngineImage, EngineImages, Fetched, StorageRequest
from kserve_local.storage import layers
from kserve_local.storage.archives import Bounds
from kserve_local.storage.cache import CacheEntry, Entry, remove
from kserve_local.storage.download import Meter
from kserve_local.storage.http import Broken, Refused, Stop
from kserve_local.storage.oci import FOLDER, OciSource, empty, image_of
from kserve_local.storage.remote import ANONYMOUS, Listing


def on_engine(
    request: StorageRequest,
    images: EngineImages | None,
    source: Callable[[], OciSource],
    *,
    offline: bool,
    note: Callable[[str], None],
) -> tuple[EngineImage | None, str]:
    """Return the engine's image to take, None if the registry's is to be; and a warning.

    Args:
        source: Opens the registry's side, to be asked once.
    """
    image = image_of(request.uri)
    found = images.find(image) if images is not None else None
    if found is None:
        return None, ""
    policy = request.pull or pull_policy_of(image)
    if offline or policy == "IfNotPresent" or not found.digests:
        return found, ""
    registry = source()
    try:
        current = registry.resolve(note)
    except (StorageError, Broken, Refused) as error:
        return found, (
            f"image {image}: the registry cannot tell whether it is the newest "
            f"({str(error).rstrip('.')}); using the one that the container engine has"
        )
    finally:
        registry.close()
    return (found, "") if current in found.digests else (None, "")


def from_engine(
    image: str,
    found: EngineImage,
    images: EngineImages,
    cache: Path,
    *,
    stop: Stop,
    meter: Meter,
    bounds: Bounds,
) -> Fetched:
    """Return the model of an engine's image, copied into the shared cache once.

    Raises:
        StorageError: It has none, or it cannot be copied.
        Stopped: Told to stop.
    """
    entry = CacheEntry(cache, f"oci://{image}", repr(("engine", image)))
    snapshot = found.id.rpartition(":")[2][:16]

    def waiting() -> None:
        meter.note(f"Waiting for another copy of image {image}")

    def count(size: int) -> None:
        stop.check()
        meter.add(size)

    with entry.locked(stop, waiting):
        known = entry.read()
        if known is not None and known.snapshot == snapshot:
            return Fetched(entry.content(snapshot), cached=True)
        if entry.content(snapshot).is_dir():
            entry.write(Entry(entry.uri, snapshot, {}, (ANONYMOUS,)))
            return Fetched(entry.content(snapshot), cached=True)
        files = entry.partial / "files"
        remove(entry.partial)
        files.mkdir(parents=True)
        meter.note(f"Copying /{FOLDER} of image {image} from the container engine")
        try:
            archive = files / "image.tar"
            images.export(found.id, FOLDER, archive, count)
            layers.unpack([archive], FOLDER, files, bounds, stop)
            path = entry.commit(files, snapshot, Listing((), unpack=True), ANONYMOUS)
        except NotFound as error:
            raise empty(image) from error
        except StorageError:
            raise
        except KServeLocalError as error:
            raise StorageError(
                f"Failed to fetch model. Image {image}: {error.message}", hint=error.hint
            ) from error
        except OSError as error:
            raise StorageError(
                f"Failed to fetch model. {entry.folder}: {error.strerror or error}",
                hint="free some space, or set storage.cacheDir to a larger disk",
            ) from error
        finally:
            remove(entry.partial)
        return Fetched(path, cached=False)
