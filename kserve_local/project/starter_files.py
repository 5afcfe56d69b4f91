"""Writes the files of a new project: all of them or none, and over nobody's.

Each is made under a temporary name in its folder and renamed when all are there. A model that also
has to lie elsewhere is hard-linked there, so that it takes no more room; copied where that fails.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from kserve_local.errors import UsageError
from kserve_local.project.starter_predictors import Starter

_TEMPORARY = ".kserve-local-"


def write(starter: Starter, folder: Path, *, force: bool = False) -> list[str]:
    """Write the project; return what was written, relative to the folder. Blocking.

    Args:
        force: Replace files that are there.

    Raises:
        UsageError: A file is there already, or cannot be written; nothing was changed.
    """
    links = {t: s for t, s in starter.links.items() if not _is_same(folder / t, s)}
    targets = [*starter.files, *links]
    there = [t for t in targets if os.path.lexists(folder / t)]
    folders = [t for t in there if (folder / t).is_dir() and not (folder / t).is_symlink()]
    if there and (folders or not force):
        raise UsageError(
            f"{', '.join(there)} {'is' if len(there) == 1 else 'are'} there already in {folder}; "
            "nothing was written",
            hint=f"move {folders[0]} away" if folders else "to replace: kserve-local init --force",
        )
    made: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for target in targets:
            _make_folders(folder / target, folder, made)
            temporary = _temporary(folder / target)
            made.append(temporary)
            if target in links:
                _link(links[target], temporary)
            else:
                temporary.write_text(starter.files[target], encoding="utf-8")
        for target in targets:
            os.replace(_temporary(folder / target), folder / target)
            if target not in there:
                made.append(folder / target)
    except OSError as error:
        _undo(made)
        raise UsageError(f"the project cannot be written into {folder}: {error}") from error
    except BaseException:
        _undo(made)
        raise
    return targets


def _is_same(target: Path, source: Path) -> bool:
    try:
        return target.is_file() and target.samefile(source)
    except OSError:
        return False


def _temporary(target: Path) -> Path:
    return target.parent / f"{_TEMPORARY}{target.name}~"


def _make_folders(target: Path, folder: Path, made: list[Path]) -> None:
    missing = [p for p in target.parents if folder in p.parents and not p.exists()]
    for path in reversed(missing):
        path.mkdir()
        made.append(path)


def _link(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, copy_function=_link_file)
    else:
        _link_file(source, target)


def _link_file(source: str | Path, target: str | Path) -> None:
    """Link a file, the one behind a symbolic link; copy it where the file system has no links."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copyfile(source, target)


def _undo(made: Sequence[Path]) -> None:
    for path in reversed(made):
        with suppress(OSError):
            if path.is_dir() and not path.name.startswith(_TEMPORARY):
                path.rmdir()
            elif path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
