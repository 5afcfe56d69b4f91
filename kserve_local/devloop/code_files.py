"""The Python files of a folder, and which of them a program imports. Blocking; text only.

What a program imports is found in its text, beginning at its entry file: imports at any depth, and
strings that name a module, as `importlib` is given them. Files that nobody imports (a training
script, tests) do not count as code of the service.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from kserve_local.devloop.watcher import SKIPPED, is_passing

MAX_FILES = 3000
_LONGEST_NAME = 200
MAX_BYTES = 2 << 20
"""Of one file; a larger one is no source that somebody writes."""


@dataclass
class CodeFolder:
    """Reads a folder again and again; unchanged files are not read twice."""

    root: Path
    _known: dict[Path, tuple[tuple[int, int, int], str]] = field(default_factory=dict)

    def read(self) -> dict[str, str]:
        """Return relative path -> text of each Python file; one that is not UTF-8 is left out."""
        found: dict[str, str] = {}
        known: dict[Path, tuple[tuple[int, int, int], str]] = {}
        for path in self._paths():
            try:
                about = path.stat()
                stamp = (about.st_mtime_ns, about.st_size, about.st_ino)
                before = self._known.get(path)
                if before is not None and before[0] == stamp:
                    text = before[1]
                elif about.st_size > MAX_BYTES:
                    continue
                else:
                    text = path.read_bytes().decode("utf-8-sig")
            except (OSError, UnicodeDecodeError):
                continue
            known[path] = (stamp, text)
            found[path.relative_to(self.root).as_posix()] = text
        self._known = known
        return found

    def _paths(self) -> list[Path]:
        paths: list[Path] = []
        for folder, below, files in os.walk(self.root):
            here = Path(folder)
            below[:] = [
                b
                for b in sorted(below)
                if b not in SKIPPED
                and not b.startswith(".")
                and not (here / b / "pyvenv.cfg").exists()
            ]
            paths += [here / f for f in sorted(files) if f.endswith(".py") and not is_passing(f)]
            if len(paths) > MAX_FILES:
                break
        return paths[:MAX_FILES]


def entry_of(argv: Sequence[str], files: Mapping[str, str]) -> str | None:
    """Return the file that a Python program begins with, None if none of these. Pure.

    Args:
        argv: What follows the interpreter, e.g. `("model.py", "--model_name", "x")`, `("-m",
            "pkg.serve")`.
    """
    words = [word for word in argv if word != "-u"]
    if words[:1] == ["-m"] and len(words) > 1:
        place = words[1].replace(".", "/")
        names = [f"{place}.py", f"{place}/__main__.py"]
    elif words and not words[0].startswith("-"):
        names = [os.path.normpath(words[0])]
    else:
        return None
    return next((name for name in names if name in files), None)


def imported(entry: str | None, files: Mapping[str, str]) -> set[str]:
    """Return the files that a program is made of, its entry file among them. Pure.

    All files, if the entry is not known: better one reload too many.
    """
    if entry is None:
        return set(files)
    found: set[str] = set()
    waiting = [entry]
    # A module's folder is on the path where the entry lies; packages are looked for at the root.
    bases = {os.path.dirname(entry), ""}
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found.add(file)
        for name in _mentions(files[file]):
            waiting += _files_of(name, file, bases, files)
    return found


@lru_cache(maxsize=4096)
def _mentions(text: str) -> frozenset[tuple[int, str]]:
    """Return (level, dotted name) of what a text imports, or may import by a string."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return frozenset()
    found: set[tuple[int, str]] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {(0, alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            found.add((node.level, module))
            found |= {(node.level, f"{module}.{a.name}".strip(".")) for a in node.names}
        elif isinstance(node, ast.Constant) and _may_name_module(node.value):
            found.add((0, str(node.value)))
    return frozenset(found)


def _may_name_module(value: object) -> bool:
    return (
        isinstance(value, str)
        and len(value) < _LONGEST_NAME
        and all(part.isidentifier() for part in value.split("."))
    )


def _files_of(
    mention: tuple[int, str], file: str, bases: set[str], files: Mapping[str, str]
) -> list[str]:
    level, name = mention
    parts = [part for part in name.split(".") if part]
    if level:
        at = file
        for _ in range(level):
            at = os.path.dirname(at)
        starts = [at]
    else:
        starts = sorted(bases)
    found = []
    for start in starts:
        for count in range(1, len(parts) + 1):
            place = os.path.normpath(os.path.join(start, *parts[:count]))
            found += [f for f in (f"{place}.py", f"{place}/__init__.py") if f in files]
    return found
