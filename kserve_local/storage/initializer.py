"""`StorageInitializer`: picks where a storageUri's content comes from and hands out a local folder.

Order: a mirror of `kserve-local.yaml`, then local paths, then `pvc://`, then remote schemes by the
shared cache. Remote work runs in threads; progress is sampled on the event loop.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kserve_local.api.storage_uris import without_secrets
from kserve_local.errors import StorageError
from kserve_local.interfaces.backend import Progress
from kserve_local.interfaces.storage import EngineImages, Fetched, StorageRequest
from kserve_local.settings import Settings
from kserve_local.storage.local import (
    as_folder,
    claim_path,
    is_empty,
    local_path,
    mirrored,
    only_archive,
)

if TYPE_CHECKING:
    from kserve_local.storage.archives import Bounds
    from kserve_local.storage.download import Meter
    from kserve_local.storage.http import Limits, Stop
    from kserve_local.storage.remote import Source
    from kserve_local.storage.snapshots import Snapshots

logger = logging.getLogger(__name__)

_SAMPLE = 0.25
_RATE_WINDOW = 12
# Fetches at a time; more wait. Files at a time: `Limits.parallel`.
_MAX_FETCHES = 16
# How long a cancelled fetch is waited for; its thread ends by itself a little later at worst.
_STOP_WAIT = 2.0


class Initializer:
    """The `StorageInitializer` of one project.

    Args:
        cache: Shared by all projects; holds `models/`.
        project: Where relative paths start when a request names no base.
        mirrors: URI prefix -> folder.
        claims: PersistentVolumeClaim -> folder.
        env: Credentials and settings below each request's own: the user's environment.
        offline: Nothing is asked of any remote source; what is not cached is an error.
        limits: Timeouts and tries; the defaults of `http.Limits`.
        unpacking: How far archives may grow; the defaults of `archives.Bounds`.
        images: The images of a container engine; None: there is none.
        snapshots: Of sources that lie on this machine; None: they are used where they lie.
    """

    def __init__(
        self,
        *,
        cache: Path,
        project: Path,
        mirrors: Mapping[str, Path] | None = None,
        claims: Mapping[str, Path] | None = None,
        env: Mapping[str, str] | None = None,
        offline: bool = False,
        limits: Limits | None = None,
        unpacking: Bounds | None = None,
        images: EngineImages | None = None,
        snapshots: Snapshots | None = None,
    ) -> None:
        self.cache = cache
        self.project = project
        self.mirrors = mirrors or {}
        self.claims = claims or {}
        self.env = env or {}
        self.offline = offline
        self._limits = limits
        self._unpacking = unpacking
        self._images = images
        self._snapshots = snapshots
        self._fetches = concurrent.futures.ThreadPoolExecutor(_MAX_FETCHES, "storage-fetch")
        self._files: concurrent.futures.ThreadPoolExecutor | None = None

    @classmethod
    def of(
        cls,
        settings: Settings,
        environ: Mapping[str, str],
        *,
        limits: Limits | None = None,
        images: EngineImages | None = None,
        snapshots: Snapshots | None = None,
    ) -> Initializer:
        """Return the initializer of a project as it is configured.

        Args:
            environ: The user's environment; the project's own `storage` settings go before it.
            images: The images of a container engine that the project may use.
            snapshots: Of sources that lie on this machine.
        """
        return cls(
            cache=settings.cache,
            project=settings.project,
            mirrors=settings.mirrors,
            claims=settings.claims,
            env={**environ, **settings.storage_env},
            offline=settings.offline,
            limits=limits,
            images=images,
            snapshots=snapshots,
        )

    async def fetch(self, request: StorageRequest, report: Callable[[Progress], None]) -> Fetched:
        """Return the local folder that holds the source's content; see `interfaces.storage`."""
        path = self._here(request)
        if path is None:
            return await self._remote(request, report)
        # A cluster mounts a claim as it is, without a storage initializer.
        if request.uri.startswith("pvc://") and mirrored(request.uri, self.mirrors) is None:
            return Fetched(as_folder(path, self.cache), cached=True)
        loop, stop = asyncio.get_running_loop(), threading.Event()

        def told(line: str) -> None:
            logger.warning("%s", line)
            progress = Progress(phase="Downloading", message=line)
            loop.call_soon_threadsafe(report, progress)

        work = functools.partial(self._local, request, path, told, stop)
        future = loop.run_in_executor(self._fetches, work)
        try:
            await asyncio.wait({future})
            return future.result()
        finally:
            await _ended(future, stop)

    async def check(self, request: StorageRequest) -> bool:
        """Ask whether the source can be read and holds a file; downloads and writes nothing.

        Returns:
            False if it was not asked: it is remote, and offline mode is on.

        Raises:
            StorageError: It cannot be reached, in the words of `fetch`, or holds no file.
        """
        path = self._here(request)
        if path is not None:
            if await asyncio.to_thread(is_empty, path):
                raise StorageError(f'"{path}" holds no files.', hint="put the model there")
            return True
        from kserve_local.storage.http import Stop

        stop = Stop()
        work = functools.partial(self._reach, request, stop)
        future = asyncio.get_running_loop().run_in_executor(self._fetches, work)
        try:
            await asyncio.wait({future})
            return future.result()
        finally:
            await _ended(future, stop)

    def _reach(self, request: StorageRequest, stop: Stop) -> bool:
        from kserve_local.storage.http import Broken, Limits, Refused
        from kserve_local.storage.oci import image_of
        from kserve_local.storage.remote import unreachable

        image = image_of(request.uri)
        if image and self._images is not None and self._images.find(image) is not None:
            return True
        source, offline = self._source(request, self._limits or Limits(), stop)
        try:
            if not offline:
                source.reach(lambda _: None)
            return not offline
        except (Broken, Refused) as error:
            raise unreachable(without_secrets(request.uri), error) from error
        finally:
            source.close()

    def _here(self, request: StorageRequest) -> Path | None:
        """Return where the source lies on this machine, None if it is remote.

        Raises:
            StorageError: It should, and is not there.
        """
        uri = request.uri
        mirror = mirrored(uri, self.mirrors)
        if mirror is not None:
            if not mirror.exists():
                prefix = uri.partition("://")[2].partition("/")[2] or uri
                raise StorageError(
                    f"Failed to fetch model. No model found in {prefix}.",
                    hint=f'the mirror has no "{mirror}"',
                )
            return mirror
        path = local_path(uri, request.base or self.project)
        if path is None and uri.startswith("pvc://"):
            path = claim_path(uri, self.claims)
        if path is not None and not path.exists():
            raise StorageError(f"Local path {uri} does not exist.", hint=f'looked for "{path}"')
        return path

    def _local(
        self,
        request: StorageRequest,
        path: Path,
        told: Callable[[str], None],
        stop: threading.Event,
    ) -> Fetched:
        archive = only_archive(path)
        if archive is None:
            snapshot = None
            if self._snapshots is not None:
                snapshot = self._snapshots.take(path, request.holder, told, stop)
            return Fetched(snapshot or as_folder(path, self.cache), cached=True)
        from kserve_local.storage.archives import Bounds
        from kserve_local.storage.cache import unpacked

        bounds = self._unpacking or Bounds()
        return Fetched(unpacked(archive, self.cache / "models", request.uri, bounds), cached=True)

    async def _remote(self, request: StorageRequest, report: Callable[[Progress], None]) -> Fetched:
        from kserve_local.storage.download import Meter
        from kserve_local.storage.http import Limits, Stop

        limits = self._limits or Limits()
        if self._files is None:
            self._files = concurrent.futures.ThreadPoolExecutor(limits.parallel, "storage-file")
        stop, meter = Stop(), Meter()
        work = functools.partial(self._download, request, limits, stop, meter, self._files)
        future = asyncio.get_running_loop().run_in_executor(self._fetches, work)
        samples: deque[tuple[float, int]] = deque(maxlen=_RATE_WINDOW)
        try:
            while not (await asyncio.wait({future}, timeout=_SAMPLE))[0]:
                report(_progress(meter, samples))
            if not future.exception() and meter.warning:
                logger.warning("%s", meter.warning)
                report(Progress(phase="Downloading", message=meter.warning))
            return await future
        finally:
            await _ended(future, stop)

    def _download(
        self,
        request: StorageRequest,
        limits: Limits,
        stop: Stop,
        meter: Meter,
        files: concurrent.futures.Executor,
    ) -> Fetched:
        from kserve_local.storage.cache import CacheEntry
        from kserve_local.storage.download import Download
        from kserve_local.storage.oci import empty, image_of

        image = image_of(request.uri)
        fetched = self._on_engine(request, limits, stop, meter) if image else None
        if fetched is None:
            source, offline = self._source(request, limits, stop)
            # What names the entry is written down and shown; logins and signatures must not be.
            shown = without_secrets(request.uri)
            entry = CacheEntry(self.cache / "models", shown, source.place)
            fetched = Download(
                source, entry, stop, files, meter, offline=offline, unpacking=self._unpacking
            ).run()
        # Cached as well, so that trying again costs nothing.
        if image and is_empty(fetched.path):
            raise empty(image)
        return fetched

    def _on_engine(
        self,
        request: StorageRequest,
        limits: Limits,
        stop: Stop,
        meter: Meter,
    ) -> Fetched | None:
        """Return the content of an image that the container engine has, None if it is not it."""
        if self._images is None:
            return None
        from kserve_local.storage.archives import Bounds
        from kserve_local.storage.images import from_engine, on_engine
        from kserve_local.storage.oci import OciSource, image_of

        def registry() -> OciSource:
            # There is another way, so one try is enough.
            source, _ = self._source(request, replace(limits, attempts=1), stop)
            assert isinstance(source, OciSource)
            return source

        found, meter.warning = on_engine(
            request, self._images, registry, offline=self.offline, note=meter.note
        )
        if found is None:
            return None
        return from_engine(
            image_of(request.uri),
            found,
            self._images,
            self.cache / "models",
            stop=stop,
            meter=meter,
            bounds=self._unpacking or Bounds(),
        )

    def _source(self, request: StorageRequest, limits: Limits, stop: Stop) -> tuple[Source, bool]:
        """Return the remote source, and whether it must not be asked."""
        from kserve_local.storage.aws_credentials import request_env
        from kserve_local.storage.huggingface import is_offline
        from kserve_local.storage.sources import source_of

        env = request_env(self.env, request.env)
        source = source_of(request.uri, env, limits, stop, request.logins)
        return source, self.offline or (request.uri.startswith("hf://") and is_offline(env))


async def _ended(future: asyncio.Future[Any], stop: Stop | threading.Event) -> None:
    """Tell a thread to stop unless it is done, and wait a little for that."""
    if not future.done():
        stop.set()
        await asyncio.wait({future}, timeout=_STOP_WAIT)
        if future.done() and not future.cancelled():
            future.exception()


def _progress(meter: Meter, samples: deque[tuple[float, int]]) -> Progress:
    """Return what a download is at; the rate is that of the last few samples."""
    samples.append((time.monotonic(), meter.transferred))
    (first_at, first), (last_at, last) = samples[0], samples[-1]
    rate = (last - first) / (last_at - first_at) if last > first else None
    moving = meter.done > 0
    return Progress(
        phase="Downloading",
        message=meter.message,
        done=meter.done if moving else None,
        total=meter.total if moving else None,
        rate=rate,
    )
