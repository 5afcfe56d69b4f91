"""Log files of containers: bounded in size, and the previous container's kept.

Children hold their log open, so a full one is copied aside and truncated in place (they append, so
they go on at its start); a line written in that instant can be lost. `NAME.log.1` is the newest
copy. A restarted container begins a new file, its predecessor's becomes `NAME.previous.log`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path


def previous(log: Path) -> Path:
    """Return where the log of the container's run before this one is."""
    return log.with_name(f"{log.stem}.previous{log.suffix}")


def keep_previous(log: Path) -> None:
    """Put the log of a run that has ended aside."""
    with contextlib.suppress(FileNotFoundError):
        log.replace(previous(log))


def rotate(log: Path, *, max_bytes: int, files: int) -> bool:
    """Move the content of a log over `max_bytes` to `.1`, keeping `files` copies; tell if done."""
    try:
        if log.stat().st_size <= max_bytes:
            return False
    except FileNotFoundError:
        return False
    for number in range(files - 1, 0, -1):
        with contextlib.suppress(FileNotFoundError):
            log.with_name(f"{log.name}.{number}").replace(log.with_name(f"{log.name}.{number + 1}"))
    log.with_name(f"{log.name}.{files + 1}").unlink(missing_ok=True)
    if files < 1:
        os.truncate(log, 0)
        return True
    with log.open("r+b") as source, log.with_name(f"{log.name}.1").open("wb") as target:
        os.fchmod(target.fileno(), 0o600)
        shutil.copyfileobj(source, target, 1 << 20)
        # Written meanwhile: what came since the last read, then cut at once.
        shutil.copyfileobj(source, target)
        source.truncate(0)
    return True


def tail(log: Path, *, lines: int, max_bytes: int = 1 << 20) -> list[str]:
    """Return the last `lines` lines, reading at most `max_bytes`; empty if there is no log."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - max_bytes))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    return text.splitlines()[-lines:] if lines > 0 else []
