"""Listening sockets of the supervisor, and who holds a port that is taken.

A port never shifts silently: a number that is taken is an error which names the holder; only
`auto` picks a free one.
"""

from __future__ import annotations

import errno
import socket
from datetime import datetime

from kserve_local.errors import PortTaken


def listen(
    host: str, port: int | None, *, what: str, flag: str, command: str = "up"
) -> socket.socket:
    """Return a listening TCP socket.

    Args:
        host: Address or name to bind.
        port: None picks a free port.
        what: Setting named in the error, e.g. `gateway.port`.
        flag: Command line flag named in the error, e.g. `--port`.
        command: The command that takes the flag.

    Raises:
        PortTaken: The port is held by somebody else, or may not be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port or 0))
        sock.listen(2048)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE and port:
            raise taken(port, what=what, flag=flag, command=command) from error
        if error.errno == errno.EACCES:
            raise PortTaken(
                f"port {port} needs more rights than you have",
                hint=f"do one    kserve-local {command} {flag} 8080   ·   "
                f"set {what} in kserve-local.yaml",
            ) from error
        raise PortTaken(f'cannot listen on "{host}": {error.strerror} ({what})') from error
    sock.setblocking(False)
    return sock


def taken(port: int, *, what: str, flag: str, command: str = "up") -> PortTaken:
    """Return the error for a port that somebody else holds: who, and the ways out."""
    pid, line = _holder(port)
    ways = [f"kserve-local {command} {flag} {port + 1}", f"set {what} in kserve-local.yaml"]
    if pid is not None:
        ways.insert(0, f"kill {pid}")
    return PortTaken(f"port {port} is in use", hint=f"{line}\ndo one    {'   ·   '.join(ways)}")


def holder(port: int) -> str:
    """Return a line on the process that listens on a TCP port, as far as the system tells."""
    return _holder(port)[1]


def _holder(port: int) -> tuple[int | None, str]:
    import psutil

    try:
        found = [
            c.pid
            for c in psutil.net_connections("tcp")
            if c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port and c.pid
        ]
    except psutil.Error:
        found = []
    for pid in found:
        try:
            process = psutil.Process(pid)
            command = " ".join(process.cmdline())[:100] or process.name()
            since = datetime.fromtimestamp(process.create_time()).strftime("%H:%M")
            user = process.username()
            return pid, f"held by   pid {pid}  {command}   (user {user}, since {since})"
        except psutil.Error:
            continue
    return None, "held by   a process of another user (try: sudo ss -ltnp)"
