"""The TCP sockets of this machine that listen, asked of the kernel directly. Linux only.

/proc/net/tcp lists every connection, those that are only remembered too: on a busy machine reading
it takes tens of milliseconds. The kernel's own question (sock_diag) can be about listening sockets
alone, and takes a fraction of one, however many connections there are.

Source: Linux, sock_diag(7), netlink(7), include/uapi/linux/inet_diag.h.
"""

from __future__ import annotations

import socket
import struct

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_REQUEST, _DUMP = 0x001, 0x300
_ERROR, _DONE = 2, 3
_LISTEN = 10
_TIMEOUT = 1.0

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port id
_QUESTION = struct.Struct("=BBBBI48s")  # family, protocol, extensions, padding, states, socket id
_PORT_AT = _HEADER.size + 4  # after family, state, timer, retransmits
_ADDRESS_AT = _HEADER.size + 4 + 4  # after family, state, timer, retransmits, and both ports


def listening() -> frozenset[tuple[int, int]]:
    """Return the IPv4 addresses, as integers, and ports that anybody on this machine listens on.

    Raises:
        OSError: The kernel does not answer such questions (a sandbox, not Linux).
    """
    family = getattr(socket, "AF_NETLINK", None)
    if family is None:
        raise OSError("no netlink here")
    question = _QUESTION.pack(socket.AF_INET, socket.IPPROTO_TCP, 0, 0, 1 << _LISTEN, bytes(48))
    size = _HEADER.size + len(question)
    header = _HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, _REQUEST | _DUMP, 1, 0)
    found: set[tuple[int, int]] = set()
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as ask:
        ask.settimeout(_TIMEOUT)
        ask.send(header + question)
        while True:
            answer = ask.recv(65536)
            while len(answer) >= _HEADER.size:
                length, kind, *_ = _HEADER.unpack_from(answer)
                if kind == _DONE:
                    return frozenset(found)
                if kind == _ERROR or length < _ADDRESS_AT + 4:
                    raise OSError("the kernel refused to list sockets")
                address = int.from_bytes(answer[_ADDRESS_AT : _ADDRESS_AT + 4], "big")
                found.add((address, int.from_bytes(answer[_PORT_AT : _PORT_AT + 2], "big")))
                answer = answer[(length + 3) & ~3 :]
