"""The control socket: tells whoever asks what this process runs, and where it is just now.

Every Python process of a container that runs the user's own code listens on a Unix socket named
after its pid, in the folder that `KSERVE_LOCAL_CONTROL` names; forks get one of their own. One JSON
message a line:

    -> {"id": 1, "do": "describe"}
    <- {"id": 1, "pid": n, "parent": n, "python": "3.11.2", "argv": [...], "source": DIR,
        "modules": {NAME: FILE, ...},                                  those below `source`
        "threads": [{"name": "MainThread", "main": true,
                     "frames": [{"file": f, "line": n, "function": name}, ...]}]}   innermost last
    -> {"id": 1, "do": "check", "change": {"id": ID, "before": {FILE: TEXT, ...}, "after": {...}}}
    -> {"id": 1, "do": "commit", "change": {...}}                  the same; checked again
    <- {"id": 1, "pid": n, "refused": why, "functions": n}         `swap`; "" if it can be, or is
    -> {"id": 2, "do": "debug", "path": [DIR, ...], "host": ADDRESS}   let a debugger in (`debug`)
    <- {"id": 2, "port": n}
    -> {"id": 3, "do": "undebug"}
    <- {"id": 3}
    <- {"id": 1, "error": why}

Answered by a thread that was not started through `threading`, so user code that counts its threads
sees none. Only who may enter the folder may ask, and of those, who is this process's user, or root,
or outside of its container, may change code.
"""

from __future__ import annotations

import _thread
import contextlib
import json
import os
import select
import socket
import struct
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from podlauncher.swap import Change

FOLDER = "KSERVE_LOCAL_CONTROL"
SOURCE = "KSERVE_LOCAL_SOURCE"
"""The folder of the user's code, as this process sees it."""
_MAX_REQUEST = 8 * 2**20
_PIECE = 65536
_MAX_FRAMES = 100
_CHANGES = ("check", "commit", "debug", "undebug")
"""What only they may ask who may change this process by other means."""

_running: _Control | None = None


def start() -> None:
    """Listen if this process is to be asked; a second call does nothing."""
    global _running
    folder = os.environ.get(FOLDER)
    if not folder or _running is not None:
        return
    try:
        _running = _Control(folder, os.environ.get(SOURCE) or os.getcwd())
    except OSError as error:
        # The program runs all the same; only nobody can ask it.
        sys.stderr.write(f"kserve-local: no control socket in {folder}: {error.strerror}\n")
        return
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_running.after_fork)


class _Control:
    def __init__(self, folder: str, source: str) -> None:
        self.folder = folder
        self.source = os.path.realpath(source)
        self._clients: dict[int, tuple[socket.socket, bytearray]] = {}
        self._change: Change | None = None
        self._listen()

    def _listen(self) -> None:
        self._main = _thread.get_ident()
        # A name that is seen is one that answers.
        hidden = os.path.join(self.folder, f".{os.getpid()}")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(hidden)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.bind(hidden)
            # In a container this user is not the one who asks; the folder keeps others out.
            os.chmod(hidden, 0o666)
            self._listener.listen(8)
            os.rename(hidden, os.path.join(self.folder, f"{os.getpid()}.sock"))
        except OSError:
            self._listener.close()
            raise
        _thread.start_new_thread(self._serve, (self._listener,))

    def after_fork(self) -> None:
        """Give a fork a socket of its own, and leave its parent's alone."""
        self._listener.close()
        for client, _ in self._clients.values():
            client.close()
        self._clients = {}
        with contextlib.suppress(OSError):
            self._listen()
        debug = sys.modules.get("podlauncher.debug")
        if debug is not None:
            debug.after_fork()

    def _serve(self, listener: socket.socket) -> None:
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        while True:
            for number, _ in poll.poll():
                if number == listener.fileno():
                    with contextlib.suppress(OSError):
                        client, _ = listener.accept()
                        client.settimeout(1.0)
                        self._clients[client.fileno()] = (client, bytearray())
                        poll.register(client, select.POLLIN)
                elif not self._receive(number):
                    poll.unregister(number)
                    self._clients.pop(number)[0].close()

    def _receive(self, number: int) -> bool:
        """Answer what a client has sent; False: it is done."""
        client, buffer = self._clients[number]
        try:
            data = client.recv(_PIECE)
            known = len(buffer)
            buffer += data
            while (end := buffer.find(b"\n", known)) >= 0:
                line = bytes(buffer[:end])
                del buffer[: end + 1]
                known = 0
                answer = self._answer(line, _may_change(client))
                client.sendall(json.dumps(answer).encode() + b"\n")
        except OSError:
            return False
        return bool(data) and len(buffer) <= _MAX_REQUEST

    def _answer(self, line: bytes, may_change: bool) -> dict[str, Any]:
        number = None
        try:
            request = json.loads(line)
            number = request.get("id")
            what = request.get("do")
            if what == "describe":
                return {"id": number, **self._describe()}
            if what in ("debug", "undebug") and may_change:
                return {"id": number, **_debug(request)}
            if what in ("check", "commit") and may_change:
                return {"id": number, "pid": os.getpid(), **self._swap(what, request["change"])}
            why = "not yours to ask" if what in _CHANGES else "unknown request"
            return {"id": number, "error": f"{why} {what!r}"}
        except Exception as error:
            return {"id": number, "error": f"{type(error).__name__}: {error}"}

    def _swap(self, what: str, asked: dict[str, Any]) -> dict[str, Any]:
        """Check or make a change of code; what was compiled for a check serves its commit."""
        # Only a process whose code is changed needs it.
        from podlauncher import code_pairs, swap

        change = self._change
        if change is None or change.id != asked["id"]:
            texts = asked["before"], asked["after"]
            change = swap.Change(asked["id"], *texts, source=self.source)
        self._change = change if what == "check" else None
        try:
            functions = change.check() if what == "check" else change.commit()
        except code_pairs.Refused as why:
            self._change = None
            return {"refused": str(why), "functions": 0}
        return {"refused": "", "functions": functions}

    def _describe(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "parent": os.getppid(),
            "python": ".".join(map(str, sys.version_info[:3])),
            "argv": list(getattr(sys, "orig_argv", sys.argv)),
            "source": self.source,
            "modules": self._modules(),
            "threads": _threads(self._main),
        }

    def _modules(self) -> dict[str, str]:
        """Return the modules that come from the user's folder."""
        found = {}
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            if isinstance(file, str):
                real = os.path.realpath(file)
                if real.startswith(os.path.join(self.source, "")):
                    found[name] = real
        return found


def _may_change(client: socket.socket) -> bool:
    """Whether who asks may as well change this process by other means.

    A process outside of this one's container has no number here: 0.
    """
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return True  # the folder is private
    pid, user, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, option, 12))
    return pid == 0 or user in (0, os.getuid())


def _debug(request: dict[str, Any]) -> dict[str, Any]:
    """Let a debugger in or out; debugpy is imported only then."""
    from podlauncher import debug

    if request["do"] == "undebug":
        debug.detach()
        return {}
    try:
        host = str(request.get("host") or "127.0.0.1")
        return {"port": debug.attach([str(p) for p in request.get("path") or ()], host)}
    except debug.Unavailable as error:
        return {"error": str(error)}


def _threads(main: int) -> list[dict[str, Any]]:
    """Return where every thread that the program knows is, the main thread first."""
    threading = sys.modules.get("threading")
    known = {t.ident: t.name for t in threading.enumerate()} if threading is not None else {}
    known.setdefault(main, "MainThread")
    found = [
        {"name": known[ident], "main": ident == main, "frames": _frames(frame)}
        for ident, frame in sys._current_frames().items()
        if ident in known
    ]
    return sorted(found, key=lambda t: not t["main"])


def _frames(frame: Any) -> list[dict[str, Any]]:
    frames: list[dict[str, Any]] = []
    while frame is not None and len(frames) < _MAX_FRAMES:
        code = frame.f_code
        frames.append({"file": code.co_filename, "line": frame.f_lineno, "function": code.co_name})
        frame = frame.f_back
    return frames[::-1]
