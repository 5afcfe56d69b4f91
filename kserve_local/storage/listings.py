"""What lies in a folder of model files, without reading them. Blocking.

Two listings are equal when nobody wrote in between: size, time stamp and inode of each file tell of
a write in place as well as of a rename. The dev loop asks with it whether a model changed, and a
snapshot is good when the listings before and after it are equal.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAX_FILES = 20_000
"""Files of one source; a folder with more is no model that somebody writes at a desk."""

SKIPPED = frozenset({".kserve-local", ".git", "__pycache__", ".ipynb_checkpoints"})
"""Folders that are no part of a model, which may share a folder with a project."""


@dataclass(frozen=True, slots=True)
class Listed:
    """One file or folder.

    Args:
        path: Relative to the source; "" for a source that is one file, `a/` for a folder.
        inode, mtime_ns, size: 0 for a folder: its files tell of changes.
        ctime_ns: When anything about it changed last, which nobody can set back; no part of a
            digest.
    """

    path: str
    size: int = 0
    mtime_ns: int = 0
    inode: int = 0
    ctime_ns: int = 0

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return self.path.endswith("/")


Listing = tuple[Listed, ...]


def listing(path: Path) -> Listing | None:
    """Return the files and folders at `path`, in order; None if there are more than `MAX_FILES`.

    Links are followed, each folder once on its way down; what is neither file nor folder, leads
    nowhere or vanishes meanwhile is left out.

    Raises:
        OSError: A folder cannot be read, or nothing is there; it names the place.
    """
    if not stat.S_ISDIR(path.stat().st_mode):
        return (_listed("", path.stat()),)
    found: list[Listed] = []
    for entry in _walk(str(path), "", ()):
        if len(found) == MAX_FILES:
            return None
        found.append(entry)
    return tuple(found)


def digest_of(listing: Listing) -> str:
    """Return 16 hex digits for a listing."""
    lines = "\n".join(f"{f.path}\0{f.size}\0{f.mtime_ns}\0{f.inode}" for f in listing)
    return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()[:16]


def _listed(path: str, info: os.stat_result) -> Listed:
    return Listed(path, info.st_size, info.st_mtime_ns, info.st_ino, info.st_ctime_ns)


def _walk(folder: str, above: str, on_the_way: tuple[tuple[int, int], ...]) -> Iterator[Listed]:
    try:
        entries = sorted(os.scandir(folder), key=lambda e: e.name)
        here = os.stat(folder)
    except FileNotFoundError:
        if not above:
            raise
        return
    identity = (here.st_dev, here.st_ino)
    if identity in on_the_way:
        return
    if above:
        yield Listed(above)
    for entry in entries:
        try:
            info = entry.stat()
        except OSError:
            continue
        if stat.S_ISREG(info.st_mode):
            yield _listed(above + entry.name, info)
        elif stat.S_ISDIR(info.st_mode) and entry.name not in SKIPPED:
            yield from _walk(entry.path, f"{above}{entry.name}/", (*on_the_way, identity))
