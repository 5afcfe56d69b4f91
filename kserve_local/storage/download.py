"""One download: list, fetch what is missing in parallel, verify, unpack, hand over to the cache.

Blocking; runs in a worker thread while the event loop reads its `Meter`. A file on its way lies in
the entry's `partial/` with its tag beside it, so that a later try, also of another process,
continues with a Range request. Nothing is taken for complete before its size, and its digest where
the source tells one, are right.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import gzip
import hashlib
import json
import os
import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path

from kserve_local.errors import StorageError
from kserve_local.interfaces.storage import Fetched
from kserve_local.storage import archives, layers
from kserve_local.storage.cache import CacheEntry, Entry, is_full, remove, snapshot_of
from kserve_local.storage.http import Broken, HttpClient, Refused, Response, Stop
from kserve_local.storage.remote import (
    Listing,
    RemoteFile,
    Source,
    SourceChanged,
    unreachable,
)

_CHUNK = 1024 * 1024
_BUFFER = 256 * 1024
# How often a source may change under a download, or serve wrong bytes, before it is given up.
_RESTARTS = 3
# Left free on the disk beside what is downloaded.
_SPARE = 64 * 1024 * 1024


@dataclass(slots=True)
class Meter:
    """What a download is at, for progress lines. Written by workers, read by the event loop."""

    message: str = ""
    warning: str = ""
    done: int = 0
    total: int | None = None
    transferred: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, done: int, transferred: int = 0) -> None:
        """Count bytes that are there, and those that came over the network."""
        with self._lock:
            self.done += done
            self.transferred += transferred

    def note(self, text: str) -> None:
        """Say what is going on."""
        self.message = text


class Download:
    """One `fetch` of a remote source.

    Args:
        workers: Shared by all downloads; bounds the files on their way.
        offline: Take the cached content without asking the source.
    """

    def __init__(
        self,
        source: Source,
        entry: CacheEntry,
        stop: Stop,
        workers: concurrent.futures.Executor,
        meter: Meter,
        *,
        offline: bool = False,
        unpacking: archives.Bounds | None = None,
    ) -> None:
        self._source = source
        self._entry = entry
        self._http = source.http
        self._stop = stop
        self._workers = workers
        self._meter = meter
        self._offline = offline
        self._unpacking = unpacking or archives.Bounds()

    def run(self) -> Fetched:
        """Return the content.

        Raises:
            StorageError: As `StorageInitializer.fetch`.
            Stopped: The stop was set.
        """
        uri = self._entry.uri
        self._meter.note(f"Checking {uri}")

        def waiting() -> None:
            self._meter.note(f"Waiting for another download of {uri}")

        try:
            with self._entry.locked(self._stop, waiting):
                return self._locked()
        except OSError as error:
            raise self._disk(error) from error
        finally:
            self._source.close()

    def _locked(self) -> Fetched:
        uri = self._entry.uri
        for restart in range(_RESTARTS):
            known = self._entry.read()
            if self._offline:
                return self._cached_offline(known)
            try:
                listing = self._source.listing(self._meter.note)
            except (Broken, Refused) as error:
                if known is not None and known.readable_by(self._source.reader):
                    self._meter.warning = (
                        f"{uri} cannot be reached ({error}); using the cached copy, unchecked"
                    )
                    return Fetched(self._entry.content(known.snapshot), cached=True)
                raise unreachable(uri, error) from error
            snapshot = snapshot_of(listing)
            try:
                if known is not None and snapshot and known.snapshot == snapshot:
                    self._prove(known, listing)
                    return Fetched(self._entry.content(snapshot), cached=True)
                return self._fetch(listing, snapshot, known)
            except SourceChanged:
                if restart == _RESTARTS - 1:
                    break
                self._meter.note(f"{uri} changed while it was being downloaded; starting again")
        raise StorageError(
            f"Failed to fetch model. {uri} keeps changing while it is being downloaded.",
            hint="wait until the upload is complete",
        )

    def _cached_offline(self, known: Entry | None) -> Fetched:
        uri = self._entry.uri
        if known is None:
            raise StorageError(
                f"Failed to fetch model. {uri} is not cached{self._elsewhere()}, and offline mode "
                "is on.",
                hint="run once without storage.offline, or name a folder in storage.mirrors",
            )
        if not known.readable_by(self._source.reader):
            raise StorageError(
                f"Failed to fetch model. {uri} is cached, but these credentials have never read "
                "it, and offline mode is on.",
                hint="run once without storage.offline with these credentials",
            )
        return Fetched(self._entry.content(known.snapshot), cached=True)

    def _elsewhere(self) -> str:
        """Return which endpoint is meant where the cache has the same URI of another one."""
        endpoint = self._source.endpoint
        if not endpoint or not self._entry.namesakes():
            return ""
        return f" from {endpoint} (but from another endpoint, or with other filters)"

    def _prove(self, known: Entry, listing: Listing) -> None:
        """Let credentials that are new to an entry read one byte of each file that has one."""
        reader = self._source.reader
        if known.readable_by(reader):
            return
        for file in listing.files:
            if file.size == 0:
                continue
            try:
                self._http.retried(
                    lambda file=file: self._source.open(file, 0, 0),  # type: ignore[misc]  # mypy infers no default argument
                    self._meter.note,
                ).close()
            except Refused as error:
                raise self._source.refused(error, file) from error
            except Broken as error:
                raise unreachable(self._entry.uri, error) from error
        self._entry.allow(known, reader)

    def _fetch(self, listing: Listing, snapshot: str, known: Entry | None) -> Fetched:
        self._meter.done = 0
        partial = self._entry.partial
        files = partial / "files"
        parts = partial / "parts"
        parts.mkdir(parents=True, exist_ok=True)
        # Built anew from what is complete, so that nothing of an older listing stays in it.
        remove(files)
        files.mkdir()
        sizes = [file.size for file in listing.files]
        self._meter.total = None if None in sizes else sum(size or 0 for size in sizes)
        missing = [
            file
            for file in listing.files
            if not self._entry.reuse(known, file, self._target(files, file))
        ]
        for file in listing.files:
            if file not in missing:
                self._meter.add(file.size or 0)
        jobs = [_FileJob(self._source, self._http, self._meter, file, parts) for file in missing]
        self._room(jobs, partial)
        before = self._meter.transferred
        self._meter.note(f"Downloading {self._entry.uri}")
        try:
            self._transfer(jobs)
        except StorageError:
            if not any(job.present() for job in jobs):
                remove(partial)
            raise
        for job in jobs:
            target = self._target(files, job.file)
            target.parent.mkdir(parents=True, exist_ok=True)
            job.place(target)
        if not snapshot:
            snapshot = _digest_of(files)
        if listing.folder:
            self._meter.note(f"Unpacking /{listing.folder} of the image")
            packed = [files / file.path for file in listing.files]
            layers.unpack(packed, listing.folder, files, self._unpacking, self._stop)
        elif listing.unpack:
            self._meter.note(f"Unpacking {listing.files[0].path}")
            archives.unpack(files / listing.files[0].path, files, self._unpacking, self._stop)
        content = self._entry.commit(files, snapshot, listing, self._source.reader)
        return Fetched(content, cached=False, transferred_bytes=self._meter.transferred - before)

    @staticmethod
    def _target(files: Path, file: RemoteFile) -> Path:
        return files / file.path

    def _transfer(self, jobs: list[_FileJob]) -> None:
        """Run all file jobs; the first failure ends the others."""
        ended = threading.Event()
        futures = [self._workers.submit(job.run, ended) for job in jobs]
        try:
            for future in concurrent.futures.as_completed(futures):
                future.result()
        except BaseException:
            ended.set()
            for future in futures:
                future.cancel()
            concurrent.futures.wait(futures)
            raise

    def _room(self, jobs: list[_FileJob], partial: Path) -> None:
        """Refuse early what cannot fit."""
        needed = sum(max(0, (job.file.size or 0) - job.present()) for job in jobs)
        free = shutil.disk_usage(partial).free
        if needed and needed + _SPARE > free:
            raise StorageError(
                f"Failed to fetch model. No space left on device: {self._entry.uri} needs "
                f"{needed / 2**30:.2f} GiB, {free / 2**30:.2f} GiB are free at {partial}.",
                hint="free some space, or set storage.cacheDir to a larger disk",
            )

    def _disk(self, error: OSError) -> StorageError:
        if is_full(error):
            # Whatever else runs on this machine needs the space more than a half download.
            remove(self._entry.partial)
            return StorageError(
                f"Failed to fetch model. No space left on device while downloading "
                f"{self._entry.uri} to {self._entry.folder}.",
                hint="free some space, or set storage.cacheDir to a larger disk",
            )
        return StorageError(f"Failed to fetch model. {self._entry.folder}: {error}")


def _digest_of(folder: Path) -> str:
    """Return the snapshot id of content that has no tags: by the bytes."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        total.update(str(path.relative_to(folder)).encode(errors="surrogateescape"))
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:16]


class _FileJob:
    """One file on its way, in `parts/<hash of its path>` with `.json` beside it."""

    def __init__(
        self, source: Source, http: HttpClient, meter: Meter, file: RemoteFile, parts: Path
    ) -> None:
        self.file = file
        self._source = source
        self._http = http
        self._meter = meter
        name = hashlib.sha256(file.path.encode(errors="surrogateescape")).hexdigest()[:24]
        self._part = parts / name
        self._about = parts / f"{name}.json"
        self._counted = 0

    def present(self) -> int:
        """Return how many bytes of this very content are already here."""
        try:
            about = json.loads(self._about.read_text(encoding="utf-8"))
            size = self._part.stat().st_size
        except (OSError, ValueError):
            return 0
        same = self.file.tag and about == self._identity()
        if not same or (self.file.size is not None and size > self.file.size):
            return 0
        return size

    def _identity(self) -> dict[str, object]:
        return {"path": self.file.path, "tag": self.file.tag, "size": self.file.size}

    def run(self, ended: threading.Event) -> None:
        """Transfer until complete and right.

        Raises:
            StorageError, SourceChanged, Stopped, OSError
        """
        stop = self._http.stop
        start = self.present()
        if not start:
            self._part.unlink(missing_ok=True)
            self._about.write_text(json.dumps(self._identity()), encoding="utf-8")
        failed = wrong = 0
        while True:
            if ended.is_set():
                return
            stop.check()
            start = self._part.stat().st_size if self._part.exists() else 0
            self._count(start)
            try:
                if self._complete(start) and start:
                    right = self._right(self.file.digest)
                else:
                    right = self._read(start, ended)
            except Refused as error:
                if error.status in (412, 416):
                    self._drop()
                    if error.status == 412:
                        raise SourceChanged from error
                failed += 1
                try:
                    self._http.pause(error, failed, self._meter.note)
                except Refused:
                    raise self._source.refused(error, self.file) from error
                continue
            except Broken as error:
                now = self._part.stat().st_size if self._part.exists() else 0
                failed = 1 if now > start else failed + 1
                try:
                    self._http.pause(error, failed, self._meter.note)
                except Broken:
                    raise unreachable(self.file.url.partition("?")[0], error) from error
                continue
            if ended.is_set():
                return
            if right:
                return
            self._drop()
            wrong += 1
            if wrong == _RESTARTS:
                raise StorageError(
                    f"Failed to fetch model. {self.file.path} arrives with another checksum than "
                    f"its source says ({self.file.digest or 'size'}).",
                    hint="a proxy or a broken disk changes it on the way",
                )

    def place(self, target: Path) -> None:
        """Move the complete file to where it belongs."""
        if self.file.gunzip:
            with gzip.open(self._part) as packed, target.open("wb") as file:
                shutil.copyfileobj(packed, file, _CHUNK)
            self._part.unlink()
        else:
            os.replace(self._part, target)
        target.chmod(0o644)

    def _complete(self, size: int) -> bool:
        return self.file.size is not None and size == self.file.size

    def _count(self, size: int) -> None:
        self._meter.add(size - self._counted)
        self._counted = size

    def _drop(self) -> None:
        self._part.unlink(missing_ok=True)
        self._count(0)

    def _read(self, start: int, ended: threading.Event) -> bool:
        """Read from `start` on; return whether the file is right. Broken reads keep their bytes."""
        response = self._source.open(self.file, start)
        try:
            if start and not _continues(response, start):
                self._drop()
                start = 0
            digest = self._source.digest(self.file, response)
            self._append(response, start, ended)
        finally:
            response.close()
        return ended.is_set() or self._right(digest)

    def _append(self, response: Response, start: int, ended: threading.Event) -> None:
        buffer = memoryview(bytearray(_BUFFER))
        limit = self.file.size
        with self._part.open("r+b" if start else "wb") as file:
            file.seek(start)
            file.truncate()
            at = start
            while not ended.is_set():
                count = response.readinto(buffer)
                if not count:
                    break
                if limit is not None and at + count > limit:
                    raise SourceChanged
                file.write(buffer[:count])
                file.flush()  # A kill loses what only we have.
                at += count
                self._counted = at
                self._meter.add(count, count)
            file.flush()
            os.fsync(file.fileno())
        if limit is not None and at < limit and not ended.is_set():
            raise Broken(f"the body ended {limit - at} bytes early")

    def _right(self, digest: str) -> bool:
        size = self._part.stat().st_size
        if self.file.size is not None and size != self.file.size:
            return False
        kind, _, expected = digest.partition(":")
        if not expected:
            return True
        with self._part.open("rb") as file:
            if kind == "git":
                blob = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
                while chunk := file.read(_CHUNK):
                    blob.update(chunk)
                return blob.hexdigest() == expected
            return hashlib.file_digest(file, kind).hexdigest() == expected


def _continues(response: Response, start: int) -> bool:
    """Return whether an answer carries on where we are."""
    if response.status != 206:
        return False
    unit, _, rest = response.headers.get("content-range").partition(" ")
    with contextlib.suppress(ValueError):
        return unit == "bytes" and int(rest.partition("-")[0]) == start
    return False
