"""Whether a model was saved by another scikit-learn than the one that will load it."""

from __future__ import annotations

import re
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from kserve_local.modelfiles import pickles
from kserve_local.modelfiles.compressed import Compressed
from kserve_local.modelfiles.recognise import PICKLES

_PINNED = re.compile(r"^\s*scikit[-_.]learn\s*===?\s*([^\s;,#*]+)\s*(?:[;#].*)?$", re.I | re.M)
_MOST_FILES = 64


def runtime_version(requirements: Path | None = None) -> str:
    """Return the scikit-learn of the environment that serves, empty if that is not known yet.

    Args:
        requirements: What that environment is made from; None: it is this interpreter's, if it has
            scikit-learn, else one to be made.
    """
    if requirements is not None:
        try:
            found = _PINNED.search(requirements.read_text(encoding="utf-8", errors="replace"))
        except OSError:
            return ""
        return found[1] if found else ""
    try:
        return metadata.version("scikit-learn")
    except metadata.PackageNotFoundError:
        return ""


def saved_by(path: Path) -> str:
    """Return the scikit-learn that saved a file, empty if it does not say. Blocking."""
    try:
        state = path.stat()
    except OSError:
        return ""
    return _saved_by(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=256)
def _saved_by(path: Path, changed: int, size: int) -> str:
    try:
        return next(iter(pickles.read(path).versions), "")
    except (pickles.NotAPickle, Compressed, OSError):
        return ""


def warning(path: Path, runtime: str) -> str:
    """Return what is to be said of the models at `path`, a file or folder, empty if nothing.

    scikit-learn itself warns at any other version: what it saved is only meant for the same one.
    """
    if not runtime:
        return ""
    said = [
        f"{file.name} was saved with scikit-learn {version}; runtime has {runtime}"
        for file in _files(path)
        if (version := saved_by(file)) and version != runtime
    ]
    return "; ".join(said)


def _files(path: Path) -> list[Path]:
    """Return the pickles that a server would find: in the folder, or in one of several models."""
    if path.is_file():
        return [path] if path.suffix.lower() in PICKLES else []
    found: list[Path] = []
    for pattern in ("*", "*/*"):
        try:
            there = [p for p in path.glob(pattern) if p.suffix.lower() in PICKLES and p.is_file()]
        except OSError:
            return found
        if there:
            return sorted(there)[:_MOST_FILES]
    return found
