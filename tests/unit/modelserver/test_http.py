"""The HTTP protocol without a socket: framing, strictness, order, keep-alive, streams."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from modelserver.http import BadRequest, Connection, Head, Server, parse_head

POST = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"


class Transport:
    """Keeps what is written, as a TCP transport would send it."""

    def __init__(self) -> None:
        self.sent = b""
        self.closed = False
        self.reading = True

    def write(self, data: bytes) -> None:
        self.sent += data

    def writelines(self, parts: list[bytes]) -> None:
        self.sent += b"".join(parts)

    def close(self) -> None:
        self.closed = True

    abort = close

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Echo:
    """Answers with method, path and body; `/later` when told to, `/stream` in two pieces."""

    def __init__(self) -> None:
        self.routed = 0
        self.waiting: list[tuple[Connection, bytes]] = []

    def route(self, head: Head) -> Any:
        self.routed += 1
        return head.path

    def handle(self, connection: Connection, head: Head, body: bytes) -> None:
        if head.path == "/later":
            self.waiting.append((connection, body))
        elif head.path == "/stream":
            connection.start_task(self.stream(connection))
        elif head.path == "/error":
            raise RuntimeError("no")
        else:
            connection.send(200, f"{head.method} {head.path} ".encode() + body, b"text/plain")

    async def stream(self, connection: Connection) -> None:
        await connection.stream_start(200, None)
        await connection.stream_write(b"one")
        await connection.stream_write(b"two")
        connection.stream_end()


class World:
    """One connection to an `Echo`."""

    def __init__(self) -> None:
        self.app = Echo()
        self.server = Server(self.app, asyncio.get_running_loop())
        self.transport = Transport()
        self.connection = self.server.protocol()
        self.connection.connection_made(self.transport)  # type: ignore[arg-type]  # a fake

    def send(self, data: bytes) -> None:
        self.connection.data_received(data)

    def bodies(self) -> list[bytes]:
        """Return the bodies of the answers so far."""
        bodies = []
        rest = self.transport.sent
        while rest:
            head, _, rest = rest.partition(b"\r\n\r\n")
            length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0])
            bodies.append(rest[:length])
            rest = rest[length:]
        return bodies


@pytest.fixture
async def world() -> World:
    return World()


async def turn() -> None:
    """Let the event loop run what is due."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_request_is_answered_whatever_the_pieces_it_comes_in(world: World) -> None:
    """Network packets cut anywhere."""
    for cut in range(1, len(POST)):
        world.send(POST[:cut])
        world.send(POST[cut:])
    assert world.bodies() == [b"POST /echo hello"] * (len(POST) - 1)


async def test_byte_by_byte(world: World) -> None:
    """The slowest client is still served."""
    for i in range(len(POST)):
        world.send(POST[i : i + 1])
    assert world.bodies() == [b"POST /echo hello"]


async def test_pipelined_requests_are_answered_in_order(world: World) -> None:
    """The second waits until the first, slower one is answered."""
    world.send(POST.replace(b"/echo", b"/later") + POST + POST)
    await turn()
    assert world.bodies() == []
    connection, body = world.app.waiting.pop()
    connection.send(200, body)
    await turn()
    assert world.bodies() == [b"hello", b"POST /echo hello", b"POST /echo hello"]


async def test_a_client_that_pipelines_without_end_is_paused(world: World) -> None:
    """What waits behind a slow request is bounded, and read once it is answered."""
    world.send(POST.replace(b"/echo", b"/later"))
    for _ in range(6000):
        world.send(POST)
    assert not world.transport.reading
    world.app.waiting.pop()[0].send(200, b"")
    for _ in range(30_000):
        await asyncio.sleep(0)
        if len(world.transport.sent) and world.transport.sent.count(b"HTTP/1.1 200") == 6001:
            break
    assert world.transport.reading
    assert world.bodies()[1:] == [b"POST /echo hello"] * 6000


async def test_chunked_bodies_are_put_together(world: World) -> None:
    """Extensions and trailers are dropped; what follows is the next request."""
    chunked = (
        b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3;a=b\r\nhel\r\n2\r\nlo\r\n0\r\nX-Trailer: 1\r\n\r\n"
    )
    for cut in range(1, len(chunked)):
        world.send(chunked[:cut])
        world.send(chunked[cut:])
    world.send(chunked + POST)
    await turn()
    assert world.bodies() == [b"POST /echo hello"] * (len(chunked) + 1)


@pytest.mark.parametrize("size", [b"", b"-1", b"+1", b"0x1", b"g", b"1 1", b"f" * 16])
async def test_bad_chunk_sizes_end_the_connection(world: World, size: bytes) -> None:
    """A size that two parsers could read differently is a way to smuggle requests."""
    world.send(
        b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + size + b"\r\n"
    )
    assert world.transport.sent.startswith(b"HTTP/1.1 400 ")
    assert world.transport.closed


REFUSED = {
    "bare line feeds": b"GET / HTTP/1.1\nHost: x\n\n",
    "two lengths": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
    "length and chunked": (
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
    ),
    "another coding": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    "signed length": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\nAccept: x\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    "folded field": b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
    "blank before colon": b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
    "no version": b"GET /\r\nHost: x\r\n\r\n",
    "version 2": b"GET / HTTP/2.0\r\nHost: x\r\n\r\n",
    "not HTTP": b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
    "chunked in 1.0": b"POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
    "CONNECT": b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n",
    "other expectations": b"POST / HTTP/1.1\r\nHost: x\r\nExpect: magic\r\n\r\n",
    "too many fields": b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 300 + b"\r\n",
}


@pytest.mark.parametrize("raw", REFUSED.values(), ids=REFUSED.keys())
async def test_ambiguous_heads_are_refused_and_the_connection_closed(
    world: World, raw: bytes
) -> None:
    """Nothing of them reaches the application."""
    world.send(raw)
    assert world.transport.sent.startswith(b"HTTP/1.1 4")
    assert world.transport.closed
    assert world.app.routed == 0


async def test_a_head_without_end_is_refused(world: World) -> None:
    """The buffer for heads is bounded."""
    world.send(b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 70_000)
    assert world.transport.sent.startswith(b"HTTP/1.1 431 ")


async def test_expect_continue_is_answered_before_the_body(world: World) -> None:
    """curl waits for it with large bodies."""
    head, _, body = POST.partition(b"\r\n\r\n")
    world.send(head + b"\r\nExpect: 100-continue\r\n\r\n")
    assert world.transport.sent == b"HTTP/1.1 100 Continue\r\n\r\n"
    world.transport.sent = b""
    world.send(body)
    assert world.bodies() == [b"POST /echo hello"]


async def test_equal_heads_are_parsed_once(world: World) -> None:
    """The usual client sends the same head again and again."""
    for _ in range(10):
        world.send(POST)
    assert world.app.routed == 1


async def test_head_answers_have_a_length_and_no_body(world: World) -> None:
    """HEAD promises what GET would send."""
    world.send(b"HEAD /echo HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"content-length: 11\r\n" in world.transport.sent
    assert world.transport.sent.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("raw", "closes"),
    [
        (b"GET /echo HTTP/1.1\r\nHost: x\r\n\r\n", False),
        (b"GET /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", True),
        (b"GET /echo HTTP/1.0\r\n\r\n", True),
        (b"GET /echo HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", False),
    ],
)
async def test_the_client_says_whether_the_connection_stays(
    world: World, raw: bytes, closes: bool
) -> None:
    """1.1 stays unless told otherwise, 1.0 the other way round."""
    world.send(raw)
    assert world.transport.closed is closes


async def test_streams_are_chunked(world: World) -> None:
    """An answer of unknown length."""
    world.send(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
    await turn()
    head, _, body = world.transport.sent.partition(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head
    assert body == b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
    world.send(POST)
    assert b"POST /echo hello" in world.transport.sent


async def test_streams_to_old_clients_end_with_the_connection(world: World) -> None:
    """HTTP/1.0 knows no chunks; and the remembered head stays good for the next client."""
    raw = b"GET /stream HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    world.send(raw)
    await turn()
    assert world.transport.sent.endswith(b"\r\n\r\nonetwo")
    assert world.transport.closed
    assert world.server.heads[raw].keep_alive


async def test_a_bug_in_a_handler_is_a_500(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The connection goes on."""
    world.send(POST.replace(b"/echo", b"/error"))
    world.send(POST)
    assert world.transport.sent.startswith(b"HTTP/1.1 500 ")
    assert world.bodies()[1] == b"POST /echo hello"
    assert "RuntimeError: no" in caplog.text


async def test_draining_closes_idle_connections_and_waits_for_busy_ones(world: World) -> None:
    """A request in work is answered, with the word that the connection ends."""
    idle, idle_transport = world.server.protocol(), Transport()
    idle.connection_made(idle_transport)  # type: ignore[arg-type]  # a fake
    world.send(POST.replace(b"/echo", b"/later"))
    drained = asyncio.ensure_future(world.server.drain(30))
    await turn()
    assert idle_transport.closed
    idle.connection_lost(None)
    assert not drained.done()
    connection, body = world.app.waiting.pop()
    connection.send(200, body)
    assert b"connection: close" in world.transport.sent
    assert world.transport.closed
    world.connection.connection_lost(None)
    await drained


async def test_draining_gives_up_after_its_grace(world: World) -> None:
    """A request that never ends does not keep the process."""
    world.send(POST.replace(b"/echo", b"/later"))
    await world.server.drain(0.01)
    assert world.transport.closed


def test_paths_are_decoded_and_queries_kept_apart() -> None:
    """Routing sees the decoded path, redirects the raw one."""
    head = parse_head(b"GET /v2/models/a%20b?x=%20 HTTP/1.1\r\nHost: x\r\nX-Long: a\r\n\r\n")
    assert (head.path, head.raw_path, head.query) == ("/v2/models/a b", "/v2/models/a%20b", "x=%20")
    assert dict(head.headers) == {"host": "x", "x-long": "a"}


def test_absolute_targets_are_reduced_to_their_path() -> None:
    """Clients of proxies send them."""
    assert parse_head(b"GET http://x/a?b HTTP/1.1\r\nHost: x\r\n\r\n").path == "/a"


def test_paths_that_are_not_ascii_are_refused() -> None:
    """They have to be percent-encoded."""
    with pytest.raises(BadRequest):
        parse_head("GET /é HTTP/1.1\r\nHost: x\r\n\r\n".encode())
