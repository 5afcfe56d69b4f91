"""Snapshots of model files that lie on this machine: `<state>/models/<name>-<digest>/`. Blocking.

A trainer may be writing when a Pod starts, and may overwrite in place what a replica has mapped. So
a Pod gets a copy that nobody writes to: shared blocks where the file system can (reflink), bytes
up to `MAX_COPIED`; what is larger is used where it lies. A copy is good when the files were the
same before and after it and had been left alone for `QUIET`. Files that did not change are not
copied twice: the digest names the place and its listing.

A snapshot lasts as long as a Pod uses it; `collect` takes the others away.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from kserve_local.errors import StorageError
from kserve_local.storage.cache import is_full, remove
from kserve_local.storage.listings import MAX_FILES, Listing, digest_of, listing

logger = logging.getLogger(__name__)

MAX_COPIED = 256 << 20
"""Bytes of a source that are copied where blocks cannot be shared."""

QUIET = 0.2
"""Seconds without a write after which a model counts as written."""

PATIENCE = 60.0
"""Seconds until a source that is written to all the time is taken as it is."""

_FICLONE = 0x40049409  # _IOW(0x94, 9, int) of linux/fs.h
_NO_REFLINK = (
    errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM,
)  # fmt: skip
_PARTIAL = ".partial-"

Report = Callable[[str], None]


class _ChangedError(Exception):
    """A file went away or cannot be what it was while it was copied."""


class _TooLargeError(Exception):
    """Blocks cannot be shared, and there are too many bytes to copy."""


def name_of(source: Path, files: Listing) -> str:
    """Return the name of the folder with the snapshot of a source that lists like that.

    It begins as the source is called, for it is what servers write into their logs.
    """
    digest = hashlib.sha256(f"{source}\0{digest_of(files)}".encode(errors="surrogateescape"))
    return f"{source.name[:40]}-{digest.hexdigest()[:16]}"


@dataclass
class Snapshots:
    """The snapshots of one project.

    Args:
        root: `<state>/models`.
        patience: See `PATIENCE`.
    """

    root: Path
    patience: float = PATIENCE
    _held: dict[str, set[Path]] = field(default_factory=dict)
    _newest: dict[Path, Path] = field(default_factory=dict)
    _locks: dict[Path, threading.Lock] = field(default_factory=dict)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def take(self, source: Path, holder: str, report: Report, stop: threading.Event) -> Path | None:
        """Return a snapshot of `source`, the one there is if nothing changed since.

        A source that is one file becomes a folder with that file.

        Args:
            source: A folder or a file.
            holder: Who uses it: the uid of a Pod.
            report: Is told what a user should know.
            stop: Set when nobody waits for it any more.

        Returns:
            None where the source must be used where it lies; why was reported.

        Raises:
            StorageError: A file cannot be read, or the disk is full; nothing is left half done.
        """
        if self.root.is_relative_to(source) and ".kserve-local" not in self.root.parts:
            report(f'"{source}" holds the state of the project and is used where it lies')
            return None
        with self._lock(source):
            while True:
                try:
                    made = self._take(source, report, stop)
                except OSError as error:
                    raise _told(error, source) from error
                if made is None:
                    return None
                with self._guard:
                    # Nobody held it until now, so it may have been taken away again.
                    if made.is_dir():
                        self._newest[source] = made
                        self._held.setdefault(holder, set()).add(made)
                        return made

    def meet(self, holder: str, paths: Collection[Path]) -> None:
        """Take note that a Pod of an earlier supervisor uses some of these folders."""
        with self._guard:
            own = {p for p in paths if p.parent == self.root}
            if own:
                self._held.setdefault(holder, set()).update(own)

    def collect(self, alive: Collection[str], coming: Collection[str]) -> None:
        """Take away what no Pod uses.

        The newest snapshot of a source stays for a workload that may start again from zero.

        Args:
            alive: uids of the Pods there are.
            coming: uids of Pods, gone or not, whose workload may start another one.
        """
        with self._guard:
            used = set().union(*(p for uid, p in self._held.items() if uid in alive))
            newest = set(self._newest.values())
            for uid in [uid for uid in self._held if uid not in alive]:
                kept = self._held[uid] & newest if uid in coming else set()
                used |= kept
                if kept:
                    self._held[uid] = kept
                else:
                    del self._held[uid]
            gone = [p for p in self._folders() if p not in used]
            self._newest = {s: p for s, p in self._newest.items() if p not in gone}
            # Out of the way at once, so that nobody finds it half removed.
            aside = [self._set_aside(p) for p in gone]
        for path in filter(None, aside):
            remove(path)

    def clean(self) -> None:
        """Take away what a supervisor that was killed left half done; at start only."""
        with contextlib.suppress(OSError):
            for path in self.root.iterdir():
                if path.name.startswith(_PARTIAL):
                    remove(path)

    def _folders(self) -> list[Path]:
        with contextlib.suppress(OSError):
            return [p for p in self.root.iterdir() if not p.name.startswith(_PARTIAL)]
        return []

    def _set_aside(self, path: Path) -> Path | None:
        try:
            # Renaming a folder changes its `..`, which its own mode must permit.
            path.chmod(0o755)
            return path.rename(self._partial())
        except OSError as error:
            logger.warning('the snapshot "%s" cannot be removed: %s', path, error.strerror)
            return None

    def _partial(self) -> Path:
        return self.root / f"{_PARTIAL}{secrets.token_hex(8)}"

    @contextlib.contextmanager
    def _lock(self, source: Path) -> Iterator[None]:
        """Be the only one that copies a source: several replicas start together."""
        with self._guard:
            lock = self._locks.setdefault(source, threading.Lock())
        with lock:
            yield

    def _take(self, source: Path, report: Report, stop: threading.Event) -> Path | None:
        end, told = time.monotonic() + self.patience, False
        while True:
            if stop.is_set():
                raise StorageError(f'nobody waits for "{source}" any more')
            late = time.monotonic() >= end
            before = listing(source)
            if before is None:
                report(f'"{source}" has over {MAX_FILES} files and is used where it lies')
                return None
            if not late and not _is_quiet(before):
                stop.wait(QUIET)
                if listing(source) != before:
                    if not told:
                        report(f'"{source}" is being written to; waiting until it is complete')
                    told = True
                    continue
            target = self.root / name_of(source, before)
            if late:
                # It may be torn: nobody is to be given it for what it would be complete.
                target = target.with_name(f"{source.name[:40]}-{secrets.token_hex(8)}")
            if target.is_dir():
                return target
            try:
                copy = self._copied(source, before)
            except _TooLargeError:
                report(
                    f'"{source}" is larger than {MAX_COPIED >> 20} MiB, on a file system that '
                    f"shares no blocks, and is used where it lies: write a new model under "
                    f"another name and rename it"
                )
                return None
            except _ChangedError:
                stop.wait(QUIET)
                continue
            if late:
                report(
                    f'"{source}" was written to for {self.patience:g} s without a pause and was '
                    f"taken as it is; the model may be incomplete"
                )
            elif listing(source) != before:
                remove(copy)
                continue
            return self._commit(copy, target)

    def _commit(self, copy: Path, target: Path) -> Path:
        for place, _, names in os.walk(copy, topdown=False):
            for name in names:
                path = os.path.join(place, name)
                os.chmod(path, 0o555 if os.stat(path).st_mode & stat.S_IXUSR else 0o444)
            if place != str(copy):
                os.chmod(place, 0o555)
        copy.rename(target)
        target.chmod(0o555)
        return target

    def _copied(self, source: Path, files: Listing) -> Path:
        """Return a folder with the content of these files, of which nobody else knows.

        Raises:
            _TooLargeError: It is not made.
            _ChangedError: A file is not there any more.
        """
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = self._partial()
        folder.mkdir()
        size, shares = sum(f.size for f in files), True
        try:
            for file in files:
                # The name of a source that is one file.
                target = folder / (file.path or source.name)
                if file.is_folder:
                    target.mkdir()
                    continue
                with _opened(source / file.path) as there, target.open("xb") as here:
                    if file.size:
                        shares = shares and _shared(there.fileno(), here.fileno())
                    if file.size and not shares:
                        if size > MAX_COPIED:
                            raise _TooLargeError
                        shutil.copyfileobj(there, here, 1 << 20)
                    here.flush()
                    mode = os.fstat(there.fileno()).st_mode
                    os.fchmod(here.fileno(), 0o755 if mode & stat.S_IXUSR else 0o644)
                os.utime(target, ns=(file.mtime_ns, file.mtime_ns))
        except BaseException:
            remove(folder)
            raise
        return folder


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        raise _ChangedError from error


def _shared(source: int, target: int) -> bool:
    """Give an empty file the blocks of another one; return whether the file system can.

    A network's file system may say anything to a request that it does not know.
    """
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno in _NO_REFLINK:
            return False
        raise
    return True


def _is_quiet(files: Listing) -> bool:
    """Whether nobody wrote just now; not by the time stamps that `cp -p` and `rsync` set back."""
    newest = max((f.ctime_ns for f in files), default=0) / 1e9
    return newest + QUIET < time.time()


def _told(error: OSError, source: Path) -> StorageError:
    place = error.filename or source
    hint = "free some space" if is_full(error) else f"make it readable: chmod -R u+rX {source}"
    return StorageError(f'"{place}" cannot be copied: {error.strerror}', hint=hint)
