"""TorchServe's model archives: a `.mar` (zip), `.tar.gz` or plain folder with
`MAR-INF/MANIFEST.json`.

Unpacks one into a folder of its own, refusing whatever would land outside it, and reads the
manifest. Folders of servers that were killed are removed by the next one that unpacks. Source:
TorchServe, torch-model-archiver's "Artifact Details".
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from modelserver.errors import LoadError

MANIFEST = "MAR-INF/MANIFEST.json"
_PREFIX = "torchserver-"
_LOCK = ".lock"


@dataclass(frozen=True, slots=True)
class Archive:
    """An unpacked archive: `folder` holds its files flat, `manifest` is its JSON object."""

    source: str
    folder: Path
    manifest: dict[str, Any]

    def entry(self, key: str) -> str:
        """Return a text of the manifest's `model` object, empty if it is not there."""
        value = self.manifest["model"].get(key)
        return value if isinstance(value, str) else ""

    def file(self, key: str) -> Path | None:
        """Return the file that an entry names, None if it names none.

        Raises:
            LoadError: The archive does not hold it.
        """
        name = self.entry(key)
        if not name:
            return None
        # The archiver keeps file names only, whatever path the entry was made from.
        for path in (self.folder / name, self.folder / PurePosixPath(name).name):
            if path.is_file() and path.resolve().is_relative_to(self.folder.resolve()):
                return path
        raise LoadError(f"{self.source}: the manifest's {key} '{name}' is not in the archive")


class Unpacked:
    """Temporary folders of this process, removed with `close` or by a later process."""

    def __init__(self, parent: Path | None = None) -> None:
        self._parent = parent or Path(tempfile.gettempdir())
        self._folder: Path | None = None
        self._lock = -1
        self._count = 0

    def folder(self) -> Path:
        """Make an empty folder."""
        if self._folder is None:
            _remove_abandoned(self._parent)
            self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=self._parent))
            self._lock = os.open(self._folder / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._count += 1
        made = self._folder / str(self._count)
        made.mkdir(mode=0o700)
        return made

    def close(self) -> None:
        """Remove all folders."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            os.close(self._lock)
            self._folder = None


def _remove_abandoned(parent: Path) -> None:
    """Remove folders whose owner no longer holds its lock; those of other users stay."""
    for folder in parent.glob(f"{_PREFIX}*"):
        try:
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            number = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue
        finally:
            os.close(number)


def open_archive(path: Path, unpacked: Unpacked) -> Archive:
    """Unpack an archive, or take a folder as it is.

    Raises:
        LoadError: It is no archive, is damaged, has members that point outside, or no manifest.
    """
    if path.is_dir():
        return Archive(path.name, path, _manifest(path, path.name))
    folder = unpacked.folder()
    try:
        if zipfile.is_zipfile(path):
            _unzip(path, folder)
        elif path.name.endswith((".tar.gz", ".tgz")):
            _untar(path, folder)
        else:
            raise LoadError(
                f"{path.name} is no TorchServe model archive (a zip file made by "
                "torch-model-archiver), or it is truncated"
            )
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, RuntimeError, OSError) as error:
        raise LoadError(f"{path.name} cannot be unpacked: {error}") from error
    return Archive(path.name, folder, _manifest(folder, path.name))


def _unzip(path: Path, folder: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        _check_names(path.name, (m.filename for m in members))
        for member in members:
            if (member.external_attr >> 16) & 0o170000 == 0o120000:
                raise LoadError(f"{path.name}: member '{member.filename}' is a link")
        _check_room(path.name, sum(m.file_size for m in members), folder)
        archive.extractall(folder)


def _untar(path: Path, folder: Path) -> None:
    with tarfile.open(path, "r:gz") as archive:
        members = archive.getmembers()
        _check_names(path.name, (m.name for m in members))
        _check_room(path.name, sum(m.size for m in members), folder)
        # By hand: tarfile's own filter of what is safe is not in every Python 3.11.
        for member in members:
            target = folder / member.name
            if member.isdir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            content = archive.extractfile(member) if member.isreg() else None
            if content is None:
                raise LoadError(f"{path.name}: member '{member.name}' is no file and no folder")
            target.parent.mkdir(parents=True, exist_ok=True)
            with content, target.open("wb") as file:
                shutil.copyfileobj(content, file)
    inner = [p for p in folder.iterdir() if p.is_dir()]
    if len(inner) == 1 and not (folder / MANIFEST).exists() and (inner[0] / MANIFEST).exists():
        # `--archive-format tgz` puts everything below a folder of the model's name.
        for child in inner[0].iterdir():
            child.rename(folder / child.name)


def _check_names(source: str, members: Iterable[str]) -> None:
    for name in members:
        parts = PurePosixPath(name.replace("\\", "/")).parts
        if ".." in parts or (parts and (parts[0][0] == "/" or ":" in parts[0])):
            raise LoadError(f"{source}: member '{name}' points outside the archive")


def _check_room(source: str, size: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise LoadError(f"{source} needs {size} bytes unpacked; {folder.parent} has {free} free")


def _manifest(folder: Path, source: str) -> dict[str, Any]:
    try:
        content = json.loads((folder / MANIFEST).read_text("utf-8"))
    except FileNotFoundError:
        raise LoadError(f"{source} is no TorchServe model archive: no {MANIFEST} in it") from None
    except (OSError, ValueError) as error:
        raise LoadError(f"{source}: {MANIFEST} cannot be read: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise LoadError(f'{source}: {MANIFEST} has no object "model"')
    return content
