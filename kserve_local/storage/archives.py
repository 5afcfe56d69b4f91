"""Unpacks model archives (zip, tar, compressed tar) so that nothing leaves the target folder.

Copies from KServe's storage initializer what counts as an archive and the error text. Refused as a
whole: absolute names, `..`, links that lead out, devices, pipes, two members in each other's way,
and archives that grow beyond `Bounds`. On failure nothing of the archive is left.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

from kserve_local.errors import StorageError
from kserve_local.storage.http import Stop
from kserve_local.storage.local import ARCHIVES

_CHUNK = 1024 * 1024
# A tar header (with its extensions) or the target of a link is never larger.
_MAX_HEADER = 1024 * 1024
_MAX_LINK = 4096
_INVALID = "Failed to unpack archive file. The file format is not valid."


@dataclass(frozen=True, slots=True)
class Bounds:
    """How far an archive may grow.

    Args:
        files: Members of any kind.
        size_bytes: Unpacked size that is always fine ...
        ratio: ... beyond it, so many times the archive's own size.
    """

    files: int = 100_000
    size_bytes: int = 4 * 2**30
    ratio: int = 100


class Unsafe(Exception):
    """A member that must not be unpacked; the text says why."""


def kind_of(name: str) -> str:
    """Return `tar`, `zip` or nothing for a file name."""
    lower = name.lower()
    if lower.endswith(".zip"):
        return "zip"
    return "tar" if lower.endswith(ARCHIVES) else ""


def unpack(archive: Path, into: Path, bounds: Bounds, stop: Stop) -> None:
    """Unpack `archive` into the folder `into` and remove it.

    Raises:
        StorageError: Not an archive, or one that is refused; `into` is as it was before.
        Stopped: Told to stop.
    """
    limit = max(bounds.size_bytes, bounds.ratio * archive.stat().st_size)
    place = Path(tempfile.mkdtemp(prefix=".unpack-", dir=into.parent))
    try:
        with translated(
            archive.name, "pack the model again, with plain files and relative names only"
        ):
            target = Target(place, bounds.files, limit, stop)
            (_unpack_zip if kind_of(archive.name) == "zip" else _unpack_tar)(archive, target)
            target.finish()
        archive.unlink()
        for entry in sorted(place.iterdir()):
            entry.rename(into / entry.name)
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextlib.contextmanager
def translated(name: str, hint: str) -> Iterator[None]:
    """Tell what is wrong with an archive of this name as a StorageError.

    Args:
        hint: What helps where a member must not be unpacked.
    """
    try:
        yield
    except Unsafe as error:
        raise StorageError(f"{_INVALID} {name}: {error}", hint=hint) from error
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        # zipfile: encrypted members, unknown compression; tarfile: broken numbers and names.
        RuntimeError,
        NotImplementedError,
        ValueError,
    ) as error:
        raise StorageError(f"{_INVALID} {name}: {error}") from error
    except OSError as error:
        # gzip and bz2 report broken data as an OSError without a number.
        if error.errno is not None:
            raise
        raise StorageError(f"{_INVALID} {name}: {error}") from error


class Target:
    """The folder that members are written to, with what they may still take."""

    def __init__(self, root: Path, files: int, size_bytes: int, stop: Stop) -> None:
        self.root = root
        self.size_left = size_bytes
        self._size = size_bytes
        self._files = files
        self._members = 0
        self._stop = stop
        self._links: list[tuple[Path, str]] = []

    def path(self, name: str) -> Path | None:
        """Return where a member goes, None for the root itself."""
        self.count()
        if name.startswith("/") or "\0" in name:
            raise Unsafe(f'"{name}" is no relative name')
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise Unsafe(f'"{name}" leaves the folder')
        return self.root.joinpath(*parts) if parts else None

    def count(self) -> None:
        """Count a member."""
        self._members += 1
        if self._members > self._files:
            raise Unsafe(f"more than {self._files} members")

    def folder(self, path: Path) -> None:
        """Make a folder, also one that is there already."""
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise Unsafe(f'"{path.relative_to(self.root)}" is a file and a folder') from error

    def file(self, path: Path, content: IO[bytes], *, executable: bool) -> None:
        """Write a file, replacing one of the same name, within what is left."""
        self.folder(path.parent)
        if path.is_dir():
            raise Unsafe(f'"{path.relative_to(self.root)}" is a file and a folder')
        path.unlink(missing_ok=True)
        with path.open("xb") as file:
            while chunk := content.read(_CHUNK):
                self._stop.check()
                self.take(len(chunk))
                file.write(chunk)
        path.chmod(0o755 if executable else 0o644)

    def take(self, size: int) -> None:
        """Count unpacked bytes."""
        self.size_left -= size
        if self.size_left < 0:
            raise Unsafe(f"it unpacks to more than {self._size / 2**30:.1f} GiB")

    def hard_link(self, path: Path, source: Path | None) -> None:
        """Make `path` the same file as a member that came before."""
        if source is None or source.is_symlink() or not source.is_file():
            raise Unsafe(f'"{path.relative_to(self.root)}" links to what is not in the archive')
        self.folder(path.parent)
        if path == source:
            return
        if path.is_dir():
            raise Unsafe(f'"{path.relative_to(self.root)}" is a file and a folder')
        path.unlink(missing_ok=True)
        os.link(source, path)

    def symbolic_link(self, path: Path, target: str) -> None:
        """Remember a link; it is made when every file is written, so that none goes through it."""
        if target.startswith("/") or "\0" in target or not target or len(target) > _MAX_LINK:
            raise Unsafe(f'the link "{path.relative_to(self.root)}" leads out of the folder')
        self._links.append((path, target))

    def finish(self) -> None:
        """Make the links, then look where each really leads."""
        for path, target in self._links:
            inside = path.relative_to(self.root)
            # A link made before may have been bent by one made since, or lead to itself.
            if any((self.root / parent).is_symlink() for parent in list(inside.parents)[:-1]):
                raise Unsafe(f'"{inside}" goes through a link')
            self.folder(path.parent)
            if path.is_symlink():
                path.unlink()
            if path.exists():
                raise Unsafe(f'"{path.relative_to(self.root)}" is a link and something else')
            path.symlink_to(target)
        for path, _ in self._links:
            self._inside(path)

    def _inside(self, path: Path) -> None:
        root = os.path.realpath(self.root)
        try:
            real = os.path.realpath(path)
        except OSError as error:
            raise Unsafe(f'the link "{path.relative_to(self.root)}" leads nowhere') from error
        if real != root and not real.startswith(root + os.sep):
            raise Unsafe(f'the link "{path.relative_to(self.root)}" leads out of the folder')


class Guarded(io.RawIOBase):
    """A decompressed tar stream that refuses huge headers and counts what it gives."""

    def __init__(
        self, raw: gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile | BinaryIO, limit: int
    ) -> None:
        self._raw = raw
        # Headers and padding come on top of the members' own bytes.
        self._limit = limit * 2 + _MAX_HEADER

    def read(self, size: int = -1, /) -> bytes:
        if size < 0 or size > _MAX_HEADER:
            raise Unsafe("a header is too large")
        data = self._raw.read(size)
        if self._raw.tell() > self._limit:
            raise Unsafe("it unpacks to too much")
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()


def decompressed(archive: Path) -> gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile | BinaryIO:
    """Open an archive to read what is in it, decompressed as its first bytes say."""
    with archive.open("rb") as file:
        start = file.read(6)
    if start.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(archive)
    if start.startswith(b"BZh"):
        return bz2.BZ2File(archive)
    if start.startswith(b"\xfd7zXZ\x00"):
        return lzma.LZMAFile(archive)
    return archive.open("rb")


def _unpack_tar(archive: Path, target: Target) -> None:
    with decompressed(archive) as raw:
        guarded: BinaryIO = Guarded(raw, target.size_left)  # type: ignore[assignment]  # all that tarfile uses is there
        # Not streaming ("r|"): its reads come in blocks, which hides what a header asks for.
        with tarfile.open(fileobj=guarded, mode="r:", encoding="utf-8") as tar:
            for member in tar:
                path = target.path(member.name)
                if path is None:
                    continue
                if member.isdir():
                    target.folder(path)
                elif member.isreg():
                    content = tar.extractfile(member)
                    assert content is not None
                    with content:
                        target.file(path, content, executable=bool(member.mode & stat.S_IXUSR))
                elif member.islnk():
                    target.hard_link(path, target.path(member.linkname))
                elif member.issym():
                    target.symbolic_link(path, member.linkname)
                else:
                    raise Unsafe(f'"{member.name}" is a device or a pipe')
                # tarfile keeps every member for lookups by name, which nobody does here.
                tar.members = []  # type: ignore[attr-defined]  # not in typeshed


def _unpack_zip(archive: Path, target: Target) -> None:
    with zipfile.ZipFile(archive) as packed:
        for info in packed.infolist():
            path = target.path(info.filename)
            if path is None:
                continue
            mode = info.external_attr >> 16
            kind = stat.S_IFMT(mode)
            if info.is_dir():
                target.folder(path)
            elif kind == stat.S_IFLNK:
                with packed.open(info) as content:
                    link = content.read(_MAX_LINK + 1)
                target.symbolic_link(path, os.fsdecode(link))
            elif kind in (0, stat.S_IFREG):
                with packed.open(info) as content:
                    target.file(path, content, executable=bool(mode & stat.S_IXUSR))
            else:
                raise Unsafe(f'"{info.filename}" is a device or a pipe')
