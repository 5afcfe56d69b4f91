"""End a container when the project's state folder vanishes: nobody could find it any more.

Python programs get one sleeping thread, started after the fork and not through `threading`, so
user code that counts its threads sees none; other commands get a small process beside them. Both
look every two seconds: a stat() costs a few microseconds.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import select
import signal
import time
from typing import Any

from podlauncher import procfs

PERIOD = 2.0
_GRACE = 10.0


def watch(launch: dict[str, Any]) -> None:
    """Watch from a thread of this process. Call it in the container's own process."""
    _thread.start_new_thread(_watch, (launch["state"], launch["token"], os.getpid()))


def _watch(state: str, token: str, pid: int) -> None:
    while os.path.isdir(state):
        time.sleep(PERIOD)
    end(pid, token)


def end(group: int, token: str) -> None:
    """SIGTERM everything of a container, give it ten seconds, then SIGKILL."""
    others = [p for p in procfs.marked(token) if p != os.getpid()]
    for number, wait in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, 0.0)):
        for pid in others:
            _signal(pid, number)
        if number == signal.SIGKILL or group != os.getpgrp():
            _signal(-group, number)
        else:
            os.kill(os.getpid(), number)
        time.sleep(wait)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(OSError):
        os.kill(pid, number)


def watch_from_outside(launch: dict[str, Any]) -> None:
    """Watch from a process of its own, for a program that is about to replace this one."""
    if not hasattr(os, "pidfd_open"):
        return
    pid = os.getpid()
    handle = os.pidfd_open(pid)
    helper = os.fork()
    if helper:
        os.close(handle)
        os.waitpid(helper, 0)
        return
    # Twice, so that the program does not inherit a child it knows nothing about.
    if os.fork():
        os._exit(0)
    os.setsid()
    try:
        while not select.select([handle], [], [], PERIOD)[0]:
            if not os.path.isdir(launch["state"]):
                end(pid, launch["token"])
                break
    finally:
        os._exit(0)
