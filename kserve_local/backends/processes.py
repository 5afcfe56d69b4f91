"""Facts about processes: who is alive, who belongs to whom, what they use.

From /proc on Linux, from psutil elsewhere. A process is named by (pid, start time); pids come
around again. `MARK` is the environment variable that every process of a container carries, its
value the token of that container start: it finds descendants that left the process group.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MARK = "KSERVE_LOCAL_PROCESS"
_LINUX = Path("/proc/self/stat").exists()
_SMALL = 4096
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")
_POLL = 0.2
_LOOKS = 5
_KERNEL_THREAD = 0x00200000


def _psutil(pid: int) -> Any:
    import psutil

    try:
        return psutil.Process(pid)
    except psutil.Error:
        return None


def _stat(pid: int) -> list[bytes]:
    """Return /proc/<pid>/stat from field 3 (state) on, empty if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()
    except OSError:
        return []


def start_time(pid: int) -> int | None:
    """Return when `pid` started: clock ticks since boot on Linux, Unix milliseconds elsewhere."""
    if _LINUX:
        fields = _stat(pid)
        return int(fields[19]) if fields else None
    process = _psutil(pid)
    return None if process is None else int(process.create_time() * 1000)


def parent_of(pid: int) -> int | None:
    """Return the parent's pid; None: no such process."""
    if _LINUX:
        fields = _stat(pid)
        return int(fields[1]) if fields else None
    process = _psutil(pid)
    return None if process is None else int(process.ppid())


def is_alive(pid: int, start: int | None) -> bool:
    """Return whether exactly that process still runs; a zombie does not."""
    if _LINUX:
        fields = _stat(pid)
        return (
            bool(fields)
            and fields[0] not in (b"Z", b"X")
            and (start is None or int(fields[19]) == start)
        )
    process = _psutil(pid)
    if process is None or process.status() == "zombie":
        return False
    return start is None or int(process.create_time() * 1000) == start


def mark_of(pid: int) -> str:
    """Return the token that `pid` carries, empty if none or not readable."""
    if not _LINUX:
        import psutil

        try:
            return str(psutil.Process(pid).environ().get(MARK, ""))
        except psutil.Error:
            return ""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            block = file.read()
    except OSError:
        return ""
    prefix = f"{MARK}=".encode()
    at = 0 if block.startswith(prefix) else block.find(b"\0" + prefix) + 1
    if not block.startswith(prefix, at):
        return ""
    return block[at + len(prefix) : block.find(b"\0", at)].decode(errors="replace")


def marked() -> dict[str, list[int]]:
    """Return the live processes of this user that carry a mark, by token. A few ms; any thread."""
    if _LINUX:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    else:
        import psutil

        pids = psutil.pids()
    found: dict[str, list[int]] = {}
    for look in range(_LOOKS):
        unsure = []
        for pid in pids:
            token = mark_of(pid)
            if token and is_alive(pid, None):
                found.setdefault(token, []).append(pid)
            elif not token and _is_between_programs(pid):
                unsure.append(pid)
        if not unsure or look == _LOOKS - 1:
            break
        pids = unsure
        time.sleep(0.002)
    return found


def _is_between_programs(pid: int) -> bool:
    """Return whether `pid` is in the middle of an exec: for an instant it has no environment."""
    if not _LINUX:
        return False
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            if file.read(1):
                return False
    except OSError:
        return False
    fields = _stat(pid)
    return bool(fields) and fields[0] not in (b"Z", b"X") and not int(fields[6]) & _KERNEL_THREAD


class MarkScanner:
    """Shares one scan of the process table among all that ask before it begins."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._begun = float("-inf")
        self._found: dict[str, list[int]] = {}

    async def find(self, tokens: Iterable[str]) -> list[int]:
        """Return the live processes that carry one of `tokens`, as of now."""
        loop = asyncio.get_running_loop()
        asked = loop.time()
        async with self._lock:
            if self._begun < asked:
                self._begun = loop.time()
                self._found = await asyncio.to_thread(marked)
            return [pid for token in tokens for pid in self._found.get(token, ())]


def descendants(pid: int) -> list[int]:
    """Return `pid` and everything below it in the process tree, parents first."""
    if not _LINUX:
        process = _psutil(pid)
        return [] if process is None else [pid, *(p.pid for p in process.children(recursive=True))]
    found = [pid]
    for parent in found:
        try:
            threads = os.listdir(f"/proc/{parent}/task")
        except OSError:
            continue
        for thread in threads:
            try:
                found.extend(map(int, _content(f"/proc/{parent}/task/{thread}/children").split()))
            except OSError:
                continue
    return found


def newest() -> bytes:
    """Return the process or thread that was made last, as the kernel names it; empty: unknown.

    While it stays the same nobody has a new child, so a tree that was walked need not be again.
    Source: Linux, proc(5), /proc/loadavg.
    """
    try:
        return _content("/proc/loadavg").split()[-1]
    except (OSError, IndexError):
        return b""


def _content(path: str) -> bytes:
    """Return a small file of /proc. A hundred replicas have a thousand threads: a file object for
    each costs several times what the reading does.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        content = part = os.read(descriptor, _SMALL)
        while len(part) == _SMALL:
            part = os.read(descriptor, _SMALL)
            content += part
        return content
    finally:
        os.close(descriptor)


def rss(pids: Iterable[int]) -> int:
    """Return resident bytes, shared pages counted once per process: never less than the PSS."""
    total = 0
    for pid in pids:
        if not _LINUX:
            process = _psutil(pid)
            total += process.memory_info().rss if process is not None else 0
            continue
        try:
            total += int(_content(f"/proc/{pid}/statm").split()[1]) * _PAGE
        except (OSError, IndexError):
            continue
    return total


def pss(pids: Iterable[int]) -> int:
    """Return proportional set size in bytes; RSS where the kernel does not tell."""
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
                total += next(
                    int(line.split()[1]) * 1024 for line in file if line.startswith(b"Pss:")
                )
        except (OSError, StopIteration):
            total += rss((pid,))
    return total


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return CPU time of these processes and of their children that have ended."""
    total = 0.0
    for pid in pids:
        if _LINUX:
            fields = _stat(pid)
            total += sum(int(field) for field in fields[11:15]) / _TICKS
        elif (process := _psutil(pid)) is not None:
            total += sum(process.cpu_times()[:4])
    return total


def send(pid: int, number: int) -> None:
    """Signal a process, or with a negative pid a group; one that is gone is no error.

    0, 1 and -1 are nobody of ours: they stand for our own group, init, and everybody.
    """
    if -1 <= pid <= 1:
        return
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
    except PermissionError:
        # macOS answers this for a group of zombies; on Linux a setuid program of the user's.
        pass


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended: `code` is 128 + `signal` when a signal did it."""

    code: int
    signal: int


def reap(pid: int) -> Exit | None:
    """Collect our own child `pid` if it has ended; None if it has not or is somebody else's."""
    try:
        done, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return None
    if done == 0:
        return None
    if os.WIFSIGNALED(status):
        return Exit(128 + os.WTERMSIG(status), os.WTERMSIG(status))
    return Exit(os.WEXITSTATUS(status), 0)


async def _poll_until_gone(pid: int, start: int | None) -> None:
    alive = is_alive(pid, start)
    while alive:
        await asyncio.sleep(_POLL)
        alive = is_alive(pid, start)


async def wait_gone(pid: int, start: int | None) -> None:
    """Return when that process has ended: by pidfd, kqueue, or else looking five times a second."""
    handle = _exit_handle(pid)
    if handle is None:
        await _poll_until_gone(pid, start)
        return
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    try:
        if not is_alive(pid, start):
            return
        loop.add_reader(handle.fileno(), gone.set)
        try:
            await gone.wait()
        finally:
            loop.remove_reader(handle.fileno())
    finally:
        handle.close()


class _Pidfd:
    def __init__(self, number: int) -> None:
        self._number = number

    def fileno(self) -> int:
        return self._number

    def close(self) -> None:
        os.close(self._number)


def _exit_handle(pid: int) -> Any:
    """Return something whose `fileno()` becomes readable when `pid` ends; None if impossible."""
    if hasattr(os, "pidfd_open"):
        try:
            return _Pidfd(os.pidfd_open(pid))
        except OSError:
            return None
    kqueue: Any = getattr(select, "kqueue", None)
    if kqueue is None:
        return None
    queue = kqueue()
    event = select.kevent(  # type: ignore[attr-defined]  # macOS and BSD only
        pid,
        filter=select.KQ_FILTER_PROC,  # type: ignore[attr-defined]  # macOS and BSD only
        flags=select.KQ_EV_ADD | select.KQ_EV_ONESHOT,  # type: ignore[attr-defined]  # as above
        fflags=select.KQ_NOTE_EXIT,  # type: ignore[attr-defined]  # as above
    )
    try:
        queue.control([event], 0)
    except OSError:
        queue.close()
        return None
    return queue


def spawn(argv: list[str], env: dict[str, str], *, log: Path, listener: int | None = None) -> int:
    """Start `argv` in a session of its own and return its pid.

    Args:
        log: Receives stdout and stderr, appended; stdin is /dev/null.
        listener: A descriptor that the child gets as number 3.

    Raises:
        OSError: `argv[0]` cannot be run.
    """
    actions: list[tuple[Any, ...]] = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    copy = -1
    try:
        if listener is not None:
            import fcntl

            # dup2 onto itself would keep close-on-exec set.
            copy = fcntl.fcntl(listener, fcntl.F_DUPFD_CLOEXEC, 10)
            actions.append((os.POSIX_SPAWN_DUP2, copy, 3))
        return os.posix_spawn(
            argv[0],
            argv,
            env,
            file_actions=actions,
            setsid=True,
            setsigmask=(),
            setsigdef=(
                signal.SIGINT,
                signal.SIGTERM,
                signal.SIGPIPE,
                signal.SIGCHLD,
                signal.SIGHUP,
            ),
        )
    finally:
        if copy >= 0:
            os.close(copy)
