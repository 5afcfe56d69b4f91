"""A warm parent: imports done once, replicas forked in milliseconds.

Reads a JSON file: `preload` (module names, or `module:function` to call as well), `home` (folder
with podlauncher and our servers), `home_first`, `state`, `token`. Descriptor 3 is a listening Unix
socket that the backend bound; one JSON message a line in both directions:

    -> {"id": 1, "fork": RUN_FILE}
    <- {"hello": pid, "threads": n, "error": ""}                     on connecting
    <- {"id": 1, "pid": n, "start_time": t} | {"id": 1, "error": why}
    <- {"exited": pid, "start_time": t, "code": c, "signal": s}

Single-threaded by design and checked before each fork: forking a process whose threads hold locks
makes children that hang now and then. It holds no event loop, no server and no session. While idle
it wakes every two seconds to see whether the state folder is still there.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import traceback
from typing import Any

from podlauncher import child, guard, procfs, shadow

LISTENER = 3
_ONE_THREAD = (
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)

thread_pools: Any = None
"""threadpoolctl's controller over what the preload brought, if it brought threadpoolctl."""


class _Child:
    def __init__(self, pid: int, start: int | None, launch: dict[str, Any]) -> None:
        self.pid = pid
        self.start = start
        self.launch = launch


class _Zygote:
    def __init__(self, config: dict[str, Any], error: str) -> None:
        self.config = config
        self.error = error
        self.children: dict[int, _Child] = {}
        self.connections: dict[int, tuple[socket.socket, bytearray]] = {}
        self.listener = socket.socket(fileno=LISTENER)
        self.listener.setblocking(False)
        self.wake_read, self.wake_write = os.pipe()
        for end in (self.wake_read, self.wake_write):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self.wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.poll = select.poll()
        self.poll.register(self.listener, select.POLLIN)
        self.poll.register(self.wake_read, select.POLLIN)

    def serve(self) -> tuple[str, dict[str, Any]]:
        """Answer until forked; returns, in the child only, the run file and its content."""
        while True:
            for number, _ in self.poll.poll(guard.PERIOD * 1000):
                if number == self.listener.fileno():
                    self._accept()
                elif number == self.wake_read:
                    self._drain()
                elif number in self.connections:
                    job = self._receive(number)
                    if job is not None:
                        return job
            self._reap()
            if not os.path.isdir(self.config["state"]):
                # The replicas' own guards see it too; this one does not wait for them.
                os._exit(0)

    def _drain(self) -> None:
        try:
            while os.read(self.wake_read, 4096):
                pass
        except BlockingIOError:
            pass

    def _accept(self) -> None:
        try:
            connection, _ = self.listener.accept()
        except OSError:
            return
        connection.setblocking(True)
        self.connections[connection.fileno()] = (connection, bytearray())
        self.poll.register(connection, select.POLLIN)
        self._send(
            connection.fileno(),
            {"hello": os.getpid(), "threads": procfs.threads(), "error": self.error},
        )

    def _close(self, number: int) -> None:
        connection, _ = self.connections.pop(number)
        self.poll.unregister(number)
        connection.close()

    def _send(self, number: int, message: dict[str, Any]) -> None:
        try:
            self.connections[number][0].sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            self._close(number)

    def _receive(self, number: int) -> tuple[str, dict[str, Any]] | None:
        connection, buffer = self.connections[number]
        try:
            data = connection.recv(65536)
        except OSError:
            data = b""
        if not data:
            self._close(number)
            return None
        buffer += data
        while (end := buffer.find(b"\n")) >= 0:
            line = bytes(buffer[:end])
            del buffer[: end + 1]
            job = self._answer(number, json.loads(line))
            if job is not None:
                return job
            if number not in self.connections:
                break
        return None

    def _answer(self, number: int, request: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
        path = request["fork"]
        try:
            launch = child.read(path)
            why_not = self.error or _why_not(launch)
        except (OSError, ValueError) as error:
            launch, why_not = {}, f"run file: {error}"
        if why_not:
            self._send(number, {"id": request["id"], "error": why_not})
            return None
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            self._forget()
            return path, launch
        # Read before the child can be reaped: the pair names the process for good.
        start = procfs.start_time(pid)
        self.children[pid] = _Child(pid, start, launch)
        self._send(number, {"id": request["id"], "pid": pid, "start_time": start})
        return None

    def _forget(self) -> None:
        """Close, in the child, everything that belongs to the zygote."""
        signal.set_wakeup_fd(-1)
        for connection, _ in self.connections.values():
            connection.close()
        self.listener.close()
        os.close(self.wake_read)
        os.close(self.wake_write)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            gone = self.children.pop(pid, None)
            if gone is None:
                continue
            signum = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
            code = 128 + signum if signum else os.WEXITSTATUS(status)
            message = {"exited": pid, "start_time": gone.start, "code": code, "signal": signum}
            if code != child.CANNOT_RUN:
                child.write_exit(gone.launch, pid, gone.start, code, signum)
            for number in list(self.connections):
                self._send(number, message)


def _why_not(launch: dict[str, Any]) -> str:
    """Say why a fork now would not equal a plain start; empty: it would."""
    count = procfs.threads()
    if count != 1:
        return f"the zygote has {count} threads"
    argv = launch["argv"]
    if not argv or (argv[0].startswith("-") and argv[0] not in ("-m", "-c", "-u")):
        return "interpreter options need an interpreter of their own"
    if launch["home_first"]:
        return ""
    if argv[0] == "-u":
        argv = argv[1:]
    folder = shadow.first_folder(argv, launch["cwd"])
    own = shadow.shadowed(folder, sys.modules)
    return f"{folder} has its own {', '.join(own)}" if own else ""


def _preload(config: dict[str, Any]) -> str:
    """Import and warm up; returns what went wrong, empty if nothing did."""
    for item in config["preload"]:
        module, _, function = item.partition(":")
        try:
            loaded = importlib.import_module(module)
            if function:
                getattr(loaded, function)()
        except BaseException as error:
            traceback.print_exc()
            return f"{item}: {type(error).__name__}: {error}"
    return ""


def main(path: str) -> None:
    """Warm up and serve forks until ended; in a fork, become the container."""
    os.closerange(LISTENER + 1, 4096)
    config = child.read(path)
    asked = {name: os.environ.get(name) for name in _ONE_THREAD}
    for name in _ONE_THREAD:
        os.environ[name] = "1"
    child.record(path, config)
    import ctypes  # noqa: F401 - procfs uses it in every fork
    import random  # noqa: F401 - reseeded in every fork
    import threading  # noqa: F401 - shut down in every fork

    if not config["home_first"]:
        home = config["home"]
        sys.path[:] = [*(p for p in sys.path if p != home), home]
    error = _preload(config)
    _find_pools()
    for name, value in asked.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
    zygote = _Zygote(config, error)
    gc.collect()
    gc.disable()
    gc.freeze()
    run_file, launch = zygote.serve()
    gc.enable()
    child.enter_fork(run_file, launch)
    child.run(run_file, launch, forked=True)


def _find_pools() -> None:
    global thread_pools
    module = sys.modules.get("threadpoolctl")
    if module is not None:
        thread_pools = module.ThreadpoolController()
