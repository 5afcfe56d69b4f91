"""Sources that already lie on this machine: paths, `file://`, `pvc://`, and mirrors of remote ones.

A folder is used where it is; a single file is offered as a folder with one link; an archive that is
all there is gets unpacked into the cache.
Error texts are those of KServe's storage initializer where it has one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from kserve_local.errors import StorageError


def local_path(uri: str, base: Path) -> Path | None:
    """Return the path that a URI without scheme or with `file://` names, None for other schemes.

    Args:
        uri: `./model`, `/abs/model`, `file:///abs/model`, `file://./model`.
        base: Where relative paths start.
    """
    if uri.startswith("file://"):
        uri = uri.removeprefix("file://")
    elif "://" in uri:
        return None
    return Path(os.path.normpath(base / Path(uri).expanduser()))


def claim_path(uri: str, claims: Mapping[str, Path]) -> Path:
    """Return the folder behind `pvc://claim/sub/path`.

    Raises:
        StorageError: The claim has no folder, or the path leaves it.
    """
    claim, _, rest = uri.removeprefix("pvc://").partition("/")
    root = claims.get(claim)
    if root is None:
        known = f" (configured: {', '.join(sorted(claims))})" if claims else ""
        raise StorageError(
            f'persistentvolumeclaim "{claim}" not found{known}',
            hint=f"add to kserve-local.yaml:  storage: {{claims: {{{claim}: ./folder}}}}",
        )
    path = Path(os.path.normpath(root / rest))
    if path != root and root not in path.parents:
        raise StorageError(f'"{uri}" leaves its claim')
    return path


def mirrored(uri: str, mirrors: Mapping[str, Path]) -> Path | None:
    """Return where a mirror holds the content of `uri` (longest prefix wins), None without one.

    The path stays inside the mirror's folder whatever the URI says; it need not exist.
    """
    for prefix in sorted((p for p in mirrors if uri.startswith(p)), key=len, reverse=True):
        root = mirrors[prefix]
        path = Path(os.path.normpath(root / uri[len(prefix) :].lstrip("/")))
        return path if path == root or root in path.parents else None
    return None


def missing_model(uri: str, base: Path, mirrors: Mapping[str, Path]) -> str:
    """Return what is wrong with the local source that `uri` names, empty if nothing. Blocking.

    Args:
        base: Where relative paths start: the folder of the manifest.
        mirrors: URI prefix -> folder.
    """
    path = mirrored(uri, mirrors) or local_path(uri, base)
    if path is None:
        return ""
    if not path.exists():
        return f'storageUri {uri}: "{path}" does not exist'
    if is_empty(path):
        return f'storageUri {uri}: "{path}" holds no files'
    return ""


def is_empty(path: Path) -> bool:
    """Whether `path` is a folder without any file in it, however deep. Blocking."""
    return path.is_dir() and not any(files for _, _, files in os.walk(path, followlinks=True))


ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def only_archive(path: Path) -> Path | None:
    """Return the archive that `path` is, or that is all the folder `path` holds."""
    if path.is_dir():
        entries = list(path.iterdir())
        if len(entries) != 1:
            return None
        path = entries[0]
    return path if path.is_file() and path.name.lower().endswith(ARCHIVES) else None


def as_folder(path: Path, cache: Path) -> Path:
    """Return a folder that holds the content of `path`: itself, or one link for a single file."""
    if path.is_dir():
        return path
    folder = cache / "links" / hashlib.sha256(str(path).encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / path.name
    if not link.is_symlink():
        temporary = folder / f".{path.name}.{os.getpid()}"
        temporary.symlink_to(path)
        temporary.replace(link)
    return folder
