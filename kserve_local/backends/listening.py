"""Where processes listen for TCP, and what a refused probe means in the light of it.

From /proc on Linux, from psutil elsewhere. Blocking; meant for messages, so what cannot be read is
left out.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from collections.abc import Iterable, Sequence

from kserve_local.interfaces.routing import SERVICE_PORT, UNPRIVILEGED_PORT

_LISTEN = "0A"  # include/net/tcp_states.h
_ANY = frozenset({"0.0.0.0", "::"})
_SHOWN = 5
_ENGINES_RESOLVER = "127.0.0.11"
"""Docker's DNS in every network of its users: no process of the Pod."""


def service_port() -> int:
    """Return where the gateway listens for port 80 of Services: it may do what this process may."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            # Whether it may is asked before whether the port is free.
            probe.bind(("127.0.0.1", SERVICE_PORT))
        except PermissionError:
            return UNPRIVILEGED_PORT
        except OSError:
            return SERVICE_PORT
    return SERVICE_PORT


def addresses(pids: Iterable[int]) -> list[tuple[str, int]]:
    """Return the (address, port) pairs that these processes listen on, sorted by port."""
    if not sys.platform.startswith("linux"):
        return sorted(_from_psutil(pids), key=lambda found: (found[1], found[0]))
    inodes = {inode for pid in pids for inode in _sockets(pid)}
    found = {
        place
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for inode, place in listeners(table)
        if inode in inodes
    }
    return sorted(found, key=lambda place: (place[1], place[0]))


def in_network_of(pid: int) -> list[tuple[str, int]] | None:
    """Return the (address, port) pairs that anything listens on in a process's network, by port.

    None: this machine does not let us see.
    """
    tables = (f"/proc/{pid}/net/tcp", f"/proc/{pid}/net/tcp6")
    if not os.access(tables[0], os.R_OK):
        return None
    found = {place for table in tables for _, place in listeners(table)}
    found = {place for place in found if place[0] != _ENGINES_RESOLVER}
    return sorted(found, key=lambda place: (place[1], place[0]))


def _sockets(pid: int) -> list[str]:
    """Return the inodes of the sockets that a process holds."""
    found = []
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            target = os.readlink(f"/proc/{pid}/fd/{name}")
            if target.startswith("socket:["):
                found.append(target[len("socket:[") : -1])
    except OSError:
        pass  # it has ended, or closed a descriptor meanwhile
    return found


def listeners(table: str) -> list[tuple[str, tuple[str, int]]]:
    """Return inode and place of each listening socket in a file like /proc/net/tcp."""
    try:
        with open(table) as file:
            lines = file.readlines()[1:]
    except OSError:
        return []
    # Source: Linux, Documentation/networking/proc_net_tcp.rst: local address, state, inode.
    rows = (line.split() for line in lines)
    return [(row[9], _place(row[1])) for row in rows if row[3] == _LISTEN]


def _place(text: str) -> tuple[str, int]:
    """Return address and port of `0100007F:1F90`: 32-bit words in the machine's byte order."""
    address, _, port = text.partition(":")
    raw = bytes.fromhex(address)
    if sys.byteorder == "little":
        raw = b"".join(raw[i : i + 4][::-1] for i in range(0, len(raw), 4))
    parsed = ipaddress.ip_address(raw)
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return str(mapped or parsed), int(port, 16)


def _from_psutil(pids: Iterable[int]) -> set[tuple[str, int]]:
    import psutil

    found = set()
    for pid in pids:
        try:
            # `connections` until 5, `net_connections` from 6 on.
            process = psutil.Process(pid)
            connections = getattr(process, "net_connections", process.connections)("tcp")
        except psutil.Error:
            continue
        for connection in connections:
            if connection.status == psutil.CONN_LISTEN and connection.laddr:
                found.add((str(connection.laddr.ip), int(connection.laddr.port)))
    return found


def why_refused(host: str, port: int, listening: Sequence[tuple[str, int]]) -> str:
    """Return what keeps (host, port) from answering and the next step; empty if nothing does. Pure.

    Args:
        listening: Where the container's processes listen.
    """
    here = [address for address, number in listening if number == port]
    if any(address == host or address in _ANY for address in here):
        return ""  # it has begun to listen meanwhile
    if here:
        return (
            f"The process listens on {here[0]}:{port}, not on the Pod's address {host}.\n"
            "Next step: let the server listen on 0.0.0.0"
        )
    others = list(dict.fromkeys(number for _, number in listening))
    if not others:
        return (
            "The process listens on no port yet; it may still load.\n"
            "Next step: read its log (kserve-local logs) if this takes longer than loading should"
        )
    shown = ", ".join(map(str, others[:_SHOWN])) + (", ..." if len(others) > _SHOWN else "")
    return (
        f"Nothing listens on port {port}; the process listens on {shown}.\n"
        f"Next step: let the server listen on port {port}, or name its own port in the container's "
        f"ports, e.g. ports: [{{containerPort: {others[0]}}}]"
    )
