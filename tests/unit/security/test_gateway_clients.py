"""Clients that take as much of the gateway as they can: heads by the byte, answers never read."""

from __future__ import annotations

from typing import Any

import pytest

from kserve_local.gateway import http1
from kserve_local.gateway.errors import Answer
from kserve_local.gateway.head import parse_request
from kserve_local.gateway.proxy import Dataplane


class Transport:
    """What a transport does for a client that never reads."""

    def __init__(self, peer: str = "127.0.0.1") -> None:
        self.peer = peer
        self.written = b""
        self.closing = self.aborted = False

    def get_extra_info(self, name: str) -> Any:
        return (self.peer, 1) if name == "peername" else None

    def write(self, data: bytes) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return len(self.written)

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = self.aborted = True

    def can_write_eof(self) -> bool:
        return False


def connect(plane: Dataplane) -> tuple[http1.ClientConnection, Transport]:
    client = http1.ClientConnection(plane, lambda target: Answer(200, b"figures"))
    transport = Transport()
    client.connection_made(transport)  # type: ignore[arg-type]  # all that a client uses is there
    return client, transport


@pytest.fixture
async def plane() -> Dataplane:
    return Dataplane(poke=lambda _: None)


async def test_a_head_that_comes_byte_by_byte_has_one_time_limit(plane: Dataplane) -> None:
    client, transport = connect(plane)
    for second in range(int(http1.HEAD_TIMEOUT) + 5):
        client.data_received(b"GET / HTTP/1.1\r\nA: " if not second else b"a")
        client.check(100.0 + second)
    assert transport.closing


async def test_an_answer_that_nobody_reads_is_given_up(plane: Dataplane) -> None:
    client, transport = connect(plane)
    client.data_received(b"GET /-/healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert transport.closing
    client.check(100.0)
    client.check(101.0)
    transport.written = transport.written[1:]  # it reads a little: it may go on
    client.check(100.0 + http1.DROP_TIME)
    assert not transport.aborted
    client.check(100.0 + 2 * http1.DROP_TIME)
    client.check(101.0 + 2 * http1.DROP_TIME)
    assert transport.aborted


@pytest.mark.parametrize(
    ("host", "shown"),
    [("localhost:8080", True), ("127.0.0.1", True), ("[::1]:8080", True), ("evil.example", False)],
)
async def test_figures_are_not_for_web_pages_of_a_foreign_name(
    plane: Dataplane, host: str, shown: bool
) -> None:
    client, transport = connect(plane)
    client.data_received(f"GET /-/metrics HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert (b"figures" in transport.written) is shown


@pytest.mark.parametrize(
    "value", ["h2c", "H2C", "websocket, h2c", "h2c,websocket", "h2c/1", "foo,\th2c"]
)
def test_http2_does_not_get_into_a_tunnel(value: str) -> None:
    raw = f"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: {value}\r\n\r\n"
    head = parse_request(raw.encode())
    assert head.upgrade == b""
    assert b"Upgrade" not in head.lines
