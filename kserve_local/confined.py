"""Paths below a folder that others can write, and that must not lead out of it by a link.

A volume belongs to the containers that mount it: any name in it may be a link to anywhere, and may
become one at any moment. Links that stay inside are followed, once; what is then used is the real
path, and it is walked from the folder without following any. Copies the rules of the kubelet's
`subpath` package (CVE-2021-25741).
"""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath

# Enough to walk on from, without the right to list; macOS has no such thing.
_FOLDER = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | getattr(os, "O_PATH", os.O_RDONLY)


class LeadsOut(Exception):
    """A link on the way leads out of the folder, in kubelet's words."""


def real_path(root: Path, relative: str | PurePosixPath, *, make: bool = False) -> Path:
    """Return `root/relative` with all links followed.

    Args:
        relative: Without `..`.
        make: Make folders that are missing, with the modes of `root`, as the kubelet does.

    Raises:
        LeadsOut: It is not below `root`.
        OSError: A file is where a folder is needed, or the path cannot be searched.
    """
    root = root.resolve()
    found = (root / relative).resolve()
    if not found.is_relative_to(root):
        raise LeadsOut(f'subpath "{found}" not within volume path "{root}"')
    if make and not root.is_dir():
        return found
    if not _walk(root, found, make=make):
        raise LeadsOut(f'subpath "{found}" changed while it was looked at')
    return found


def is_real(root: Path, path: Path) -> bool:
    """Whether `path`, which `real_path` gave, still lies below `root` without a link on the way."""
    return path.is_relative_to(root) and _walk(root, path, make=False)


def _walk(root: Path, path: Path, *, make: bool) -> bool:
    """Walk from `root` to `path` and tell if there was no link; what is missing is none."""
    parts = path.relative_to(root).parts
    if not root.is_dir():
        return not root.is_symlink()
    here = os.open(root, _FOLDER)
    mode = stat.S_IMODE(os.fstat(here).st_mode)
    try:
        for number, part in enumerate(parts):
            try:
                found = os.stat(part, dir_fd=here, follow_symlinks=False)
            except FileNotFoundError:
                if not make:
                    return True
                os.mkdir(part, dir_fd=here)
                found = os.stat(part, dir_fd=here, follow_symlinks=False)
                _set_mode(part, mode, dir_fd=here)
            if stat.S_ISLNK(found.st_mode):
                return False
            if number == len(parts) - 1 and not stat.S_ISDIR(found.st_mode):
                return True
            try:
                below = os.open(part, _FOLDER, dir_fd=here)
            except OSError:
                # It was a folder a moment ago: a link since then?
                now = os.stat(part, dir_fd=here, follow_symlinks=False)
                if stat.S_ISLNK(now.st_mode):
                    return False
                raise
            os.close(here)
            here = below
        return True
    finally:
        os.close(here)


def _set_mode(name: str, mode: int, *, dir_fd: int | None = None) -> None:
    how = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(name, how, dir_fd=dir_fd)
    try:
        # What a container's user made has that user's modes.
        if os.fstat(fd).st_uid == os.geteuid():
            os.fchmod(fd, mode)
    finally:
        os.close(fd)


def open_up(folder: Path) -> None:
    """Let everybody write in a folder and read all in it: folders 0777, files readable.

    No link is followed, also where one takes a name's place meanwhile.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for _, folders, files, here in os.fwalk(".", dir_fd=fd, follow_symlinks=False):
            own = os.fstat(here)
            if own.st_uid == os.geteuid():
                os.fchmod(here, 0o777)
            for name in files:
                found = os.stat(name, dir_fd=here, follow_symlinks=False)
                if stat.S_ISREG(found.st_mode):
                    _set_mode(name, 0o644 | (found.st_mode & 0o111), dir_fd=here)
            folders.sort()
    finally:
        os.close(fd)
