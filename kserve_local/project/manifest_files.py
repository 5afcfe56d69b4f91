"""Finds and reads manifest files: files as named, folders walked for what is meant for us.

In a folder only YAML and JSON files count that hold an object of a known kind; Helm values, CI
configuration and other people's manifests lie around there, too. A file named by the user always
counts. Hidden folders and virtual environments are left alone.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from kserve_local.api import scheme
from kserve_local.api.manifest import Document, ManifestError, load
from kserve_local.api.review import is_known, lacks_version
from kserve_local.errors import UsageError

SUFFIXES = (".yaml", ".yml", ".json")
STDIN = "-"
_SKIPPED = frozenset(("node_modules", "venv", "site-packages", "__pycache__"))
_MAX_BYTES = 8 * 1024 * 1024
_OURS = re.compile(
    r"""["']?apiVersion["']?\s*:\s*["']?("""
    + "|".join(sorted({re.escape(r.group) for r in scheme.ALL if "." in r.group}))
    + ")/"
)


class Unreadable(UsageError):
    """A file or folder is there, and may not be read."""

    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(f'"{path}" cannot be read: {error.strerror}')
        self.path = path


def read_all(
    paths: Sequence[str], skips: Callable[[Path], bool] = lambda path: False
) -> dict[str, list[Document]]:
    """Return path -> documents, in the order of the arguments, folders sorted.

    Args:
        skips: Whether a file or folder that lies in one of the folders is to be left alone.

    Raises:
        UsageError: A path does not exist or cannot be read.
    """
    found: dict[str, list[Document]] = {}
    for name in paths:
        path = Path(name)
        if name == STDIN:
            found[name] = _loaded(sys.stdin.buffer.read(), name)
        elif path.is_dir():
            for file in _walk(path, skips):
                documents = _read(file)
                meant = any(is_known(d) or lacks_version(d) for d in documents)
                if meant or _is_broken_one_of_ours(file, documents):
                    found.setdefault(str(file), documents)
        elif path.exists():
            found[name] = _read(path)
        else:
            raise UsageError(f'"{name}" does not exist')
    return found


def _walk(folder: Path, skips: Callable[[Path], bool]) -> list[Path]:
    files: list[Path] = []
    try:
        for entry in sorted(folder.iterdir()):
            if entry.name.startswith(".") or entry.name in _SKIPPED or skips(entry):
                continue
            if entry.is_dir():
                if not entry.is_symlink():
                    files.extend(_walk(entry, skips))
            elif entry.suffix.lower() in SUFFIXES and entry.is_file():
                files.append(entry)
    except OSError as error:
        raise Unreadable(folder, error) from error
    return files


def _read(path: Path) -> list[Document]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            problem = ManifestError(f"larger than {_MAX_BYTES // 1024**2} MiB: not a manifest")
            return [Document(str(path), None, problem)]
        return _loaded(path.read_bytes(), str(path))
    except OSError as error:
        raise Unreadable(path, error) from error


def _loaded(content: bytes, name: str) -> list[Document]:
    try:
        text = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
        return load(text, name)
    except UnicodeDecodeError as error:
        problem = ManifestError(f"not UTF-8 text: {error.reason} at byte {error.start}")
        return [Document(name, None, problem)]


def _is_broken_one_of_ours(path: Path, documents: Sequence[Document]) -> bool:
    if all(document.error is None for document in documents):
        return False
    text = path.read_bytes()[:_MAX_BYTES].decode("utf-8", "replace")
    # Templates are YAML only after they have been filled in.
    return "{{" not in text and _OURS.search(text) is not None
