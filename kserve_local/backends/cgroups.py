"""Memory limits by the kernel, where a cgroup v2 folder has been delegated to us.

That is the case under `systemd-run --user --scope -p Delegate=yes kserve-local up`: systemd marks
the folder with an extended attribute and leaves what is below to us. The supervisor moves into a
leaf of its own (a folder with processes may not pass controllers on), each container with a limit
gets another; its processes join it before user code runs. Sampling goes on beside it, for a
container that could not join.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)

_ROOT = Path("/sys/fs/cgroup")
_SELF = Path("/proc/self/cgroup")
_PREFIX = "kserve-local-"


def delegated(root: Path = _ROOT, own: Path = _SELF) -> Path | None:
    """Return this process's cgroup folder if it is v2, delegated to us and limits memory."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return None
    if len(lines) != 1 or not lines[0].startswith("0::/"):
        return None
    folder = root / lines[0].removeprefix("0::/")
    if folder.name == f"{_PREFIX}supervisor":
        # An earlier backend of this process has moved it already.
        folder = folder.parent
    with contextlib.suppress(OSError):
        controllers = (folder / "cgroup.controllers").read_text().split()
        mine = os.access(folder / "cgroup.procs", os.W_OK) and os.access(folder, os.W_OK)
        if "memory" in controllers and mine and _is_marked(folder):
            return folder
    return None


def _is_marked(folder: Path) -> bool:
    getxattr = getattr(os, "getxattr", None)
    if getxattr is None:
        return False
    for name in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            if getxattr(folder, name) == b"1":
                return True
    return False


class Cgroups:
    """One delegated folder, prepared for containers; `Cgroups(None)` makes none."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder if folder is not None and self._prepare(folder) else None

    def _prepare(self, folder: Path) -> bool:
        """Pass the memory controller on to the folders below."""
        try:
            leaf = folder / f"{_PREFIX}supervisor"
            leaf.mkdir(exist_ok=True)
            for pid in (folder / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    (leaf / "cgroup.procs").write_text(pid)
            (folder / "cgroup.subtree_control").write_text("+memory")
        except OSError as error:
            log.info("cgroup %s cannot be used: %s", folder, error)
            return False
        return True

    def make(self, token: str, limit_bytes: int | None) -> Path | None:
        """Return a new folder for a container with this memory limit; None: there is none."""
        if self.folder is None or limit_bytes is None:
            return None
        path = self.folder / f"{_PREFIX}{token}"
        try:
            path.mkdir(exist_ok=True)
            (path / "memory.max").write_text(str(limit_bytes))
            for name, value in (("memory.swap.max", "0"), ("memory.oom.group", "1")):
                with contextlib.suppress(OSError):
                    (path / name).write_text(value)
        except OSError as error:
            log.info("cgroup %s cannot be made: %s", path, error)
            return None
        return path


def was_oom_killed(path: Path) -> bool:
    """Return whether the kernel killed something in that cgroup for want of memory."""
    try:
        lines = (path / "memory.events").read_text().splitlines()
    except OSError:
        return False
    counts = dict(line.split()[:2] for line in lines if len(line.split()) >= 2)
    return int(counts.get("oom_kill", "0")) > 0


def remove(path: Path) -> None:
    """Remove a container's folder once nothing is left in it."""
    with contextlib.suppress(OSError):
        path.rmdir()
