"""`StorageInitializer`: picks where a storageUri's content comes from and hands out a local folder.

Order: a mirror of `kserve-local.yaml`, then local paths, then `pvc://`, then remote schemes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kserve_local.errors import StorageError
from kserve_local.interfaces.backend import Progress
from kserve_local.interfaces.storage import Fetched, StorageRequest
from kserve_local.storage.local import as_folder, claim_path, local_path, mirrored


@dataclass(frozen=True, slots=True)
class Initializer:
    """The `StorageInitializer` of one project.

    Args:
        cache: Shared by all projects; holds `models/`.
        project: Where relative paths start when a request names no base.
        mirrors: URI prefix -> folder.
        claims: PersistentVolumeClaim -> folder.
        env: Credentials and settings below each request's own: the user's environment.
    """

    cache: Path
    project: Path
    mirrors: Mapping[str, Path] = field(default_factory=dict)
    claims: Mapping[str, Path] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    offline: bool = False

    async def fetch(self, request: StorageRequest, report: Callable[[Progress], None]) -> Fetched:
        """Return the local folder that holds the source's content; see `interfaces.storage`."""
        uri = request.uri
        mirror = mirrored(uri, self.mirrors)
        if mirror is not None:
            if not mirror.exists():
                prefix = uri.partition("://")[2].partition("/")[2] or uri
                raise StorageError(
                    f"Failed to fetch model. No model found in {prefix}.",
                    hint=f'the mirror has no "{mirror}"',
                )
            return Fetched(as_folder(mirror, self.cache), cached=True)
        path = local_path(uri, request.base or self.project)
        if path is None and uri.startswith("pvc://"):
            path = claim_path(uri, self.claims)
        if path is not None:
            if not path.exists():
                raise StorageError(f"Local path {uri} does not exist.", hint=f'looked for "{path}"')
            return Fetched(as_folder(path, self.cache), cached=True)
        raise StorageError(f'storageUri "{uri}" has no provider')
