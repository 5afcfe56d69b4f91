"""Facts about processes from /proc, as the launcher needs them; empty answers where there is no
/proc.

`MARK` is the environment variable that every process of a container carries; its value is the
container start's token. A forked process keeps the environment block of the zygote's exec, so
`remark` writes the token into that block: then /proc/<pid>/environ tells the truth.
"""

from __future__ import annotations

import os

MARK = "KSERVE_LOCAL_PROCESS"


def start_time(pid: int) -> int | None:
    """Return the start time of `pid` in clock ticks since boot; None: no such process, no /proc."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def _stat(pid: int) -> list[bytes]:
    """Return /proc/<pid>/stat from field 3 (state) on; the name before may hold anything."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()
    except OSError:
        return []


def threads() -> int:
    """Return how many threads this process has; 1 where it cannot be told."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return 1


def marked(token: str) -> list[int]:
    """Return the pids of live processes that carry `token`."""
    want = f"{MARK}={token}".encode()
    found = []
    try:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []
    for pid in pids:
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                if want in file.read().split(b"\0"):
                    found.append(pid)
        except OSError:
            continue
    return found


def remark(token: str) -> bool:
    """Write `token` over the value of MARK in this process's environment block.

    Both have the same length, so nothing else moves. Returns whether /proc now shows it.
    """
    fields = _stat(os.getpid())
    if len(fields) < 49 or not _overwrite(
        int(fields[47]), int(fields[48]), f"{MARK}=".encode(), token.encode()
    ):
        return False
    with open("/proc/self/environ", "rb") as file:
        return f"{MARK}={token}".encode() in file.read().split(b"\0")


def _overwrite(start: int, end: int, prefix: bytes, value: bytes) -> bool:
    import ctypes

    if not 0 < start < end:
        return False
    block = ctypes.string_at(start, end - start)
    at = 0 if block.startswith(prefix) else block.find(b"\0" + prefix) + 1
    at += len(prefix)
    if not block[:at].endswith(prefix) or block.find(b"\0", at) != at + len(value):
        return False
    ctypes.memmove(start + at, value, len(value))
    return True


def retitle(argv: list[str]) -> None:
    """Show `argv` as this process's command line, cut to the room that the zygote's own has."""
    fields = _stat(os.getpid())
    if len(fields) < 47:
        return
    start, end = int(fields[45]), int(fields[46])
    room = end - start - 1
    if not 0 < start < end or room <= 0:
        return
    import ctypes

    text = "\0".join(argv).encode(errors="replace")[:room]
    ctypes.memmove(start, text + b"\0" * (end - start - len(text)), end - start)
    try:
        with open("/proc/self/comm", "w") as file:
            file.write(os.path.basename(argv[0])[:15])
    except OSError:
        pass
