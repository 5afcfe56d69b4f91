"""The file of a container's termination message (`terminationMessagePath`). Blocking.

Made anew for each run, so that nothing an earlier one said counts; any user may write to it.
"""

from __future__ import annotations

import os
from pathlib import Path

MAX_BYTES = 4096
"""What of it is read, from its end; the kubelet's limit."""


def make(path: Path) -> None:
    """Make an empty file that any user of a container can write."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(fd, 0o666)
    finally:
        os.close(fd)


def read(path: Path) -> str:
    """Return the end of what was written; empty if nothing was."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            size = os.fstat(fd).st_size
            file.seek(max(0, size - MAX_BYTES))
            return file.read(MAX_BYTES).decode(errors="replace")
    except OSError:
        return ""
