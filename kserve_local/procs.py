"""Which process is which: a pid alone is reused, a pid with its start time is not.

Run files hold `Identity` values; every signal to a process that another run of ours started goes
through `alive` first, so a recycled pid is never hit.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Identity:
    """One process, once and for all.

    Args:
        pid: Process id.
        started: Kernel start time: clock ticks since boot on Linux, Unix time elsewhere.
    """

    pid: int
    started: float


def start_time(pid: int) -> float | None:
    """Return the process's start time, None if it is gone. A zombie counts as gone."""
    if sys.platform.startswith("linux"):
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
        except (OSError, ValueError):
            return None
        # The command in parentheses may hold blanks and parentheses itself; fields follow the last.
        fields = stat[stat.rindex(b")") + 2 :].split()
        return None if fields[0] in (b"Z", b"X") else float(fields[19])
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def identify(pid: int) -> Identity | None:
    """Return the identity of a live process, None if it is gone."""
    started = start_time(pid)
    return None if started is None else Identity(pid, started)


def alive(identity: Identity) -> bool:
    """Whether exactly that process still runs."""
    return start_time(identity.pid) == identity.started


def send_signal(identity: Identity, signal: int, *, group: bool = False) -> bool:
    """Signal that process (or its group); False if it is gone."""
    if not alive(identity):
        return False
    try:
        if group:
            os.killpg(identity.pid, signal)
        else:
            os.kill(identity.pid, signal)
    except ProcessLookupError:
        return False
    return True
