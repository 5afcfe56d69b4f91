"""The shared model cache: `cache/models/<name>/`, one entry for what a URI means at its endpoint.

    entry.json          which snapshot is current, its files' tags, who may read it
    snapshots/<id>/     content, read-only, never changed once it is there
    partial/            a download on its way; survives a kill and is resumed
    .lock               flock: one download a URI, over tasks and processes

A snapshot is renamed into place when it is complete and verified, so a reader sees all of it or
nothing. Files whose tags did not change are hard links into the former snapshot. Whoever asks with
credentials that have not proved to read an entry does not get it unproved.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kserve_local.storage import archives
from kserve_local.storage.http import Stop
from kserve_local.storage.remote import ANONYMOUS, Listing, RemoteFile

_LOCK_POLL = 0.1


@dataclass(frozen=True, slots=True)
class Entry:
    """What `entry.json` says. `tags`: path -> tag of the current snapshot's files."""

    uri: str
    snapshot: str
    tags: dict[str, str]
    readers: tuple[str, ...]

    def readable_by(self, reader: str) -> bool:
        """Return whether these credentials have read it before (or anybody may)."""
        return reader in self.readers or ANONYMOUS in self.readers


def snapshot_of(listing: Listing) -> str:
    """Return the id of a listing's content, empty when a file has no tag to tell it by."""
    if not all(file.tag for file in listing.files):
        return ""
    lines = [f"{f.path}\0{f.size}\0{f.tag}\0{f.gunzip}" for f in listing.files]
    text = "\n".join([str(listing.unpack), *sorted(lines)])
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]


class CacheEntry:
    """One folder of the cache."""

    def __init__(self, root: Path, uri: str, place: str) -> None:
        readable = re.sub(r"[^A-Za-z0-9.]+", "-", uri.partition("?")[0]).strip("-")[:48]
        key = hashlib.sha256(place.encode()).hexdigest()[:16]
        self.uri = uri
        self.folder = root / f"{readable}-{key}"
        self.partial = self.folder / "partial"

    @contextlib.contextmanager
    def locked(self, stop: Stop, waiting: Callable[[], None]) -> Iterator[None]:
        """Be the only one that changes this entry; wait for another download to end."""
        self.folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    waiting()
                    stop.wait(_LOCK_POLL)
            yield
        finally:
            os.close(handle)

    def read(self) -> Entry | None:
        """Return the entry, None when there is none or its content has vanished."""
        try:
            data = json.loads((self.folder / "entry.json").read_text(encoding="utf-8"))
            entry = Entry(
                uri=str(data["uri"]),
                snapshot=str(data["snapshot"]),
                tags={str(k): str(v) for k, v in data["tags"].items()},
                readers=tuple(str(reader) for reader in data["readers"]),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return entry if self.content(entry.snapshot).is_dir() else None

    def namesakes(self) -> list[Path]:
        """Return the entries of the same URI at other places: another endpoint, other filters."""
        readable = self.folder.name.rpartition("-")[0]
        found = (e for e in self.folder.parent.glob(f"{readable}-*/entry.json"))
        return [
            e.parent
            for e in found
            if e.parent != self.folder and f'"uri": {json.dumps(self.uri)}' in e.read_text("utf-8")
        ]

    def content(self, snapshot: str) -> Path:
        """Return the folder of a snapshot."""
        return self.folder / "snapshots" / snapshot

    def write(self, entry: Entry) -> None:
        """Replace `entry.json`."""
        temporary = self.folder / "entry.json.new"
        data = {
            "uri": entry.uri,
            "snapshot": entry.snapshot,
            "tags": entry.tags,
            "readers": list(entry.readers),
        }
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(data, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.folder / "entry.json")

    def reuse(self, entry: Entry | None, file: RemoteFile, target: Path) -> bool:
        """Link an unchanged file of the current snapshot to `target`; return whether it was."""
        if entry is None or not file.tag or entry.tags.get(file.path) != file.tag:
            return False
        old = self.content(entry.snapshot) / file.path
        try:
            if not stat.S_ISREG(old.lstat().st_mode):
                return False
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(old, target)
        except OSError:
            return False
        return True

    def commit(self, complete: Path, snapshot: str, listing: Listing, reader: str) -> Path:
        """Make a complete folder the current snapshot; return where it lies."""
        _protect(complete)
        target = self.content(snapshot)
        target.parent.mkdir(exist_ok=True)
        if target.is_dir():
            remove(complete)
        else:
            # Renaming a folder changes its `..`, which its own mode must permit.
            complete.chmod(0o755)
            complete.rename(target)
            target.chmod(0o555)
        former = self.read()
        readers = former.readers if former and former.snapshot == snapshot else ()
        tags = {} if listing.unpack else {f.path: f.tag for f in listing.files if f.tag}
        self.write(Entry(self.uri, snapshot, tags, tuple(sorted({*readers, reader}))))
        remove(self.partial)
        return target

    def allow(self, entry: Entry, reader: str) -> None:
        """Note that these credentials have proved to read the current snapshot."""
        readers = tuple(sorted({*entry.readers, reader}))
        self.write(Entry(entry.uri, entry.snapshot, entry.tags, readers))


def unpacked(archive: Path, root: Path, uri: str, bounds: archives.Bounds) -> Path:
    """Return the content of an archive that lies on this machine, unpacked once. Blocking.

    Raises:
        StorageError: It cannot be unpacked.
    """
    at = archive.stat()
    tag = f"{at.st_dev}/{at.st_ino}/{at.st_mtime_ns}"
    listing = Listing((RemoteFile(archive.name, "", at.st_size, tag),), unpack=True)
    snapshot = snapshot_of(listing)
    entry = CacheEntry(root, uri, repr(("file", str(archive))))
    stop = Stop()
    with entry.locked(stop, lambda: None):
        known = entry.read()
        if known is None or known.snapshot != snapshot:
            files = entry.partial / "files"
            remove(entry.partial)
            files.mkdir(parents=True)
            shutil.copyfile(archive, files / archive.name)
            try:
                archives.unpack(files / archive.name, files, bounds, stop)
                entry.commit(files, snapshot, listing, ANONYMOUS)
            finally:
                remove(entry.partial)
    return entry.content(snapshot)


def _protect(folder: Path) -> None:
    """Make content read-only: it is shared by every replica and project."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            path = os.path.join(place, name)
            if not os.path.islink(path):
                os.chmod(path, 0o555 if os.stat(path).st_mode & stat.S_IXUSR else 0o444)
        os.chmod(place, 0o555)


def remove(folder: Path) -> None:
    """Remove a folder, also a read-only one; one that does not exist is fine."""
    if not folder.exists():
        return
    for place, _, _ in os.walk(folder):
        os.chmod(place, 0o755)
    shutil.rmtree(folder, ignore_errors=True)


def is_full(error: OSError) -> bool:
    """Return whether the disk, or what we may use of it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
