"""Where a Python program failed, from its last log lines. Pure.

Reads what the interpreter prints: tracebacks, also those of exception groups, of code that does not
compile, and those whose beginning is no longer in the log.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

_BEGIN = re.compile(r"(?:Exception Group )?Traceback \(most recent call last\):")
_FRAME = re.compile(r'  File "([^"]+)", line (\d+)')
_GROUPED = re.compile(r"^ *(?:\| ?|\+[-+ ].*$)")
"""What stands before each line of an exception group, and between its exceptions."""
_LIBRARY = re.compile(r"/(?:site|dist)-packages/|/lib(?:64)?/python3[^/]*/|^<")
_ERROR = re.compile(r"[A-Za-z_][\w.]*(?::.*)?")


@dataclass(frozen=True, slots=True)
class Place:
    """Where an exception came from.

    Args:
        file: Relative to the folder that was asked about where it lies in it.
        line: From 1.
        error: The exception and what it says, in one line: `ValueError: bad weights`.
    """

    file: str
    line: int
    error: str

    def told(self) -> str:
        """Return `model.py:12: ValueError: bad weights`."""
        return f"{self.file}:{self.line}: {self.error}"


def traceback_of(lines: Sequence[str], folder: PurePath | None = None) -> Place | None:
    """Return where the last traceback among these lines ends, None if there is none.

    Args:
        folder: The innermost frame that lies in it is meant, not the library that it calls; without
            one in it the innermost that is no library's, then the innermost.
    """
    plain = [_GROUPED.sub("", line.rstrip()) for line in lines]
    found, frames, inside = None, list[tuple[str, int]](), False
    for line in plain:
        if _BEGIN.fullmatch(line.strip()):
            frames, inside = [], True
        elif match := _FRAME.match(line):
            frames.append((match[1], int(match[2])))
            inside = True
        elif not inside or not line or line.startswith(" "):
            continue
        else:
            if frames and _ERROR.fullmatch(line):
                found = _place(frames, line, folder)
            frames, inside = [], False
    return found


def _place(frames: Sequence[tuple[str, int]], error: str, folder: PurePath | None) -> Place:
    inner = list(reversed(frames))
    # A program that is started by a relative path has it in its frames, too.
    own = [f for f in inner if not _is_elsewhere(f[0], folder)]
    users = [f for f in own or inner if not _LIBRARY.search(_below(f[0], folder))]
    file, line = (users or own or inner)[0]
    return Place(_below(file, folder), line, error)


def _is_elsewhere(file: str, folder: PurePath | None) -> bool:
    if not PurePath(file).is_absolute():
        return file.startswith("<")
    return folder is None or not PurePath(file).is_relative_to(folder)


def _below(file: str, folder: PurePath | None) -> str:
    """Return a file relative to the folder, as it is where it lies elsewhere."""
    if folder is not None and PurePath(file).is_relative_to(folder):
        return str(PurePath(file).relative_to(folder))
    return file
