"""Unpacks one folder of a container image from its layers, so that nothing leaves that folder.

Follows the OCI image specification's changesets: layers lie upon each other in order, `.wh.NAME`
hides what lower layers have under that name, `.wh..wh..opq` all that they have in its folder. What
a layer says is first put together in memory, with file contents under numbers; names of an image
reach the disk once, into folders that are all new.
"""

from __future__ import annotations

import importlib
import io
import os
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

from kserve_local.errors import StorageError
from kserve_local.storage.archives import Bounds, Guarded, Target, Unsafe, decompressed, translated
from kserve_local.storage.http import Stop

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_BOOKKEEPING = ".wh..wh."
_MAX_DEPTH = 200
_ZSTD = b"\x28\xb5\x2f\xfd"


@dataclass(slots=True)
class _File:
    """Content `number`; hard links share one."""

    number: int


@dataclass(slots=True)
class _Link:
    target: str


@dataclass(slots=True)
class _Folder:
    """A folder; in a layer also what it hides of the layers below."""

    entries: dict[str, _Node] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    opaque: bool = False


_Node = _File | _Link | _Folder


def unpack(layers: Sequence[Path], folder: str, into: Path, bounds: Bounds, stop: Stop) -> None:
    """Put what `layers` have in the image's `/folder` into the folder `into`; remove the layers.

    Args:
        layers: Tar archives, plain or compressed, the lowest first.
        folder: One name, e.g. `models`.

    Raises:
        StorageError: A layer cannot be read or is refused; nothing is put into `into`.
        Stopped: Told to stop.
    """
    size = max(bounds.size_bytes, bounds.ratio * sum(p.stat().st_size for p in layers))
    place = Path(tempfile.mkdtemp(prefix=".unpack-", dir=into.parent))
    contents = Target(place / "contents", bounds.files, size, stop)
    model = Target(place / "model", bounds.files, size, stop)
    hint = f"build the image again, with plain files and relative links only in /{folder}"
    try:
        contents.root.mkdir()
        model.root.mkdir()
        image = _Image(folder, contents, stop)
        for number, layer in enumerate(layers, 1):
            name = f"layer {number} of {len(layers)} of the image"
            with translated(name, hint):
                image.apply(layer)
            layer.unlink()
        with translated("the image", hint):
            image.write(model)
        for entry in sorted(model.root.iterdir()):
            entry.rename(into / entry.name)
    finally:
        shutil.rmtree(place, ignore_errors=True)


class _Image:
    """One folder of an image, as far as its layers are applied."""

    def __init__(self, folder: str, contents: Target, stop: Stop) -> None:
        self._folder = folder
        self._contents = contents
        self._stop = stop
        self._count = 0
        self._root = _Folder()

    def apply(self, layer: Path) -> None:
        """Lay a layer upon the others."""
        changes = _Folder()
        with _opened(layer) as raw:
            # All of the image is read, and only one folder of it is kept.
            guarded = cast("BinaryIO", Guarded(raw, self._contents.size_left * 4))
            with tarfile.open(fileobj=guarded, mode="r:", encoding="utf-8") as tar:
                for member in tar:
                    self._stop.check()
                    self._take(changes, member, tar)
                    # tarfile keeps every member for lookups by name, which nobody does here.
                    tar.members = []  # type: ignore[attr-defined]  # not in typeshed
        _merge(self._root, changes)

    def _take(self, changes: _Folder, member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
        *above, name = _parts(member.name) or [""]
        inside = bool(above) and above[0] == self._folder
        if name == _OPAQUE and (inside or not above):
            _folder_at(changes, above).opaque = True
        elif name.startswith(_BOOKKEEPING):
            return
        elif name.startswith(_WHITEOUT) and (inside or not above):
            _folder_at(changes, above).gone.add(name.removeprefix(_WHITEOUT))
        elif inside or (not above and name == self._folder):
            self._contents.count()
            holder = _folder_at(changes, above)
            node = self._node(changes, member, tar)
            former = holder.entries.get(name)
            if not (isinstance(node, _Folder) and isinstance(former, _Folder)):
                holder.entries[name] = node

    def _node(self, changes: _Folder, member: tarfile.TarInfo, tar: tarfile.TarFile) -> _Node:
        if member.isdir():
            return _Folder()
        if member.issym():
            return _Link(member.linkname)
        if member.islnk():
            parts = _parts(member.linkname)
            found = _find(changes, parts) or _find(self._root, parts)
            if not isinstance(found, _File):
                raise Unsafe(f'"{member.name}" is a link to what is not in /{self._folder}')
            return found
        if not member.isreg():
            raise Unsafe(f'"{member.name}" is a device or a pipe')
        self._count += 1
        content = tar.extractfile(member)
        assert content is not None  # it is a regular file
        path = self._contents.root / str(self._count)
        with content:
            self._contents.file(path, content, executable=bool(member.mode & stat.S_IXUSR))
        return _File(self._count)

    def write(self, into: Target) -> None:
        """Make the folder's files, then its links."""
        top = self._root.entries.get(self._folder, _Folder())
        if not isinstance(top, _Folder):
            raise Unsafe(f"/{self._folder} is no folder")
        written: dict[int, Path] = {}
        for path, node in _walk(into.root, top):
            if isinstance(node, _Folder):
                into.folder(path)
            elif isinstance(node, _Link):
                into.symbolic_link(path, node.target)
            elif node.number in written:
                os.link(written[node.number], path)
            else:
                os.rename(self._contents.root / str(node.number), path)
                written[node.number] = path
        into.finish()


def _parts(name: str) -> list[str]:
    """Return the parts of a member's name, from the image's root on."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in name or len(parts) > _MAX_DEPTH:
        raise Unsafe(f'"{name[:200]}" is no name of a file')
    return parts


def _folder_at(root: _Folder, parts: Sequence[str]) -> _Folder:
    """Return a folder of a layer, made where the layer does not name it."""
    for part in parts:
        below = root.entries.setdefault(part, _Folder())
        if not isinstance(below, _Folder):
            raise Unsafe(f'"{"/".join(parts)}" goes through a file or a link')
        root = below
    return root


def _find(root: _Folder, parts: Sequence[str]) -> _Node | None:
    node: _Node | None = root
    for part in parts:
        if not isinstance(node, _Folder):
            return None
        node = node.entries.get(part)
    return node


def _merge(lower: _Folder, upper: _Folder) -> None:
    """Lay a layer's folder upon what lower layers have at its place."""
    if upper.opaque:
        lower.entries.clear()
    for name in upper.gone:
        lower.entries.pop(name, None)
    for name, node in upper.entries.items():
        below = lower.entries.get(name)
        if isinstance(node, _Folder):
            if not isinstance(below, _Folder):
                lower.entries[name] = below = _Folder()
            _merge(below, node)
        else:
            lower.entries[name] = node


def _walk(path: Path, folder: _Folder) -> Iterator[tuple[Path, _Node]]:
    for name, node in sorted(folder.entries.items()):
        yield path / name, node
        if isinstance(node, _Folder):
            yield from _walk(path / name, node)


def _opened(layer: Path) -> BinaryIO:
    """Open a layer, which is compressed as its first bytes say.

    Raises:
        StorageError: With zstd, which this Python has not.
    """
    with layer.open("rb") as file:
        start = file.read(4)
    if start != _ZSTD:
        return cast("BinaryIO", decompressed(layer))
    try:
        zstd = importlib.import_module("compression.zstd")  # Python 3.14 and later
    except ModuleNotFoundError as error:
        raise StorageError(
            "Failed to fetch model. The image has a layer that is compressed with zstd, which only "
            "Python 3.14 and later can read.",
            hint="let a Docker engine have it (docker pull), or push it with gzip: "
            "docker buildx build --output type=image,push=true,compression=gzip,"
            "force-compression=true",
        ) from error
    opened: io.BufferedIOBase = zstd.open(layer, "rb")
    return cast("BinaryIO", opened)
