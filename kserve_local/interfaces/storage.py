"""The seam between the node agent and model storage: one call that turns a storageUri into a local
directory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Protocol

from kserve_local.interfaces.backend import Login, Progress


@dataclass(frozen=True, slots=True)
class StorageRequest:
    """One source to fetch.

    Args:
        uri: As the Pod's storage initializer gets it: `gs://...`, a path, `pvc://claim/path`, ...
        env: What KServe would put into the init container (AWS_*, S3_*, HF_TOKEN,
            GOOGLE_APPLICATION_CREDENTIALS as a real file path, STORAGE_ALLOW_PATTERNS, ...), on
            top of the user's own environment credentials.
        base: Folder that relative paths start at: that of the YAML file.
        logins: What an image (`oci://`) may be pulled with, tried in order.
        pull: `imagePullPolicy` of an image; None: by its tag.
        holder: uid of the Pod; what it was given is kept for it.
    """

    uri: str
    env: Mapping[str, str] = field(default_factory=dict)
    base: Path | None = None
    logins: tuple[Login, ...] = ()
    pull: Literal["Always", "IfNotPresent"] | None = None
    holder: str = ""


@dataclass(frozen=True, slots=True)
class Fetched:
    """Where the content lies. `path` is read-only and shared: a cache, or a snapshot of a local
    source (or the user's own folder, where there is none).
    """

    path: Path
    cached: bool
    transferred_bytes: int = 0


class StorageInitializer(Protocol):
    """What the node agent calls for the `storage-initializer` container."""

    async def fetch(self, request: StorageRequest, report: Callable[[Progress], None]) -> Fetched:
        """Return the local directory that holds the source's content, fetched if needed.

        Raises:
            StorageError: In the words of KServe's storage initializer plus cause and next step;
            nothing is left
                half done.
        """


@dataclass(frozen=True, slots=True)
class StoredObject:
    """Something to write: logged payloads on their way from the gateway to a bucket.

    Args:
        pod: Whose credentials are used, those of its `agent` container.
        uri: `s3://bucket/key`, `gs://...`, `abfs://...`.
    """

    namespace: str
    pod: str
    uri: str
    data: bytes


@dataclass(frozen=True, slots=True)
class EngineImage:
    """An image that a container engine has.

    Args:
        id: Names its content.
        digests: `sha256:...` of its manifests in registries; empty: it was made here.
    """

    id: str
    digests: frozenset[str]


class EngineImages(Protocol):
    """The images of a container engine on this machine. All calls block."""

    def find(self, image: str) -> EngineImage | None:
        """Return the image of this name, None if the engine has none, or no engine answers."""

    def export(self, id: str, folder: str, into: Path, check: Callable[[int], None]) -> None:
        """Write a folder of an image, name and all, to the file `into`, as a tar archive.

        Args:
            folder: One name at the image's root, e.g. `models`.
            check: Called with the number of bytes of each part; what it raises ends the export.

        Raises:
            NotFound: The image has no such folder, or is gone.
            KServeLocalError: The engine fails.
        """


class StorageProvider(Protocol):
    """One kind of source. Entry point group `kserve_local.storage`."""

    schemes: ClassVar[frozenset[str]]

    async def fetch(
        self, uri: str, into: Path, env: Mapping[str, str], report: Callable[[Progress], None]
    ) -> int:
        """Put the content into the empty directory `into`, all or nothing; return the bytes
        transferred.
        """
