"""The calling side of a step, over a pipe to whatever the test says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from kserve_local.gateway import pipe
from kserve_local.gateway.chunked import ChunkError
from kserve_local.gateway.graph import GraphError
from kserve_local.gateway.head import MAX_HEAD, HeadError
from kserve_local.gateway.step_connection import TOGETHER, CutShort, Silent, StepConnection

OK = b"HTTP/1.1 200 OK\r\n"


class Server(asyncio.Protocol):
    """Answers a request, once it is whole, with bytes; `ends`: and closes."""

    def __init__(self, *answers: bytes, size: int = 0, ends: bool = False, step: int = 0) -> None:
        self.answers = list(answers)
        self.size = size
        self.ends = ends
        self.step = step
        self.got = b""
        self.gone = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.got += data
        _, end, body = self.got.partition(b"\r\n\r\n")
        if end and len(body) >= self.size:
            answer = self.answers.pop(0)
            step = self.step or len(answer) or 1
            loop = asyncio.get_running_loop()
            for at in range(0, len(answer), step):
                # A turn of the loop for each: they arrive apart.
                loop.call_later(0, self.transport.write, answer[at : at + step])
            if self.ends:
                loop.call_later(0, self.transport.close)
            self.got = b""

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.set()


def connected(server: Server) -> StepConnection:
    connection = StepConnection()
    pipe.connect(connection, server)
    return connection


async def ask(
    connection: StepConnection, body: bytes = b"", taken: Callable[[int], None] = lambda size: None
) -> tuple[int, bytes]:
    async with asyncio.timeout(10):
        head, answer = await connection.ask(b"POST / HTTP/1.1\r\n\r\n", body, taken)
    return head.status, answer


@pytest.mark.parametrize("step", [0, 1, 7])
@pytest.mark.parametrize(
    ("raw", "want", "stays"),
    [
        (OK + b"Content-Length: 5\r\n\r\nhello", (200, b"hello"), True),
        (OK + b"Content-Length: 0\r\n\r\n", (200, b""), True),
        (b"HTTP/1.1 204 No\r\n\r\n", (204, b""), True),
        (b"HTTP/1.1 304 No\r\nContent-Length: 9\r\n\r\n", (304, b""), True),
        (OK + b"Content-Length: 2\r\nConnection: close\r\n\r\nhi", (200, b"hi"), False),
        (b"HTTP/1.1 103 Hint\r\n\r\n" + OK + b"Content-Length: 2\r\n\r\nhi", (200, b"hi"), True),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
         (200, b"hello"), True),
    ],
)  # fmt: skip
async def test_answers_of_every_framing(
    raw: bytes, want: tuple[int, bytes], stays: bool, step: int
) -> None:
    """In whatever pieces they come; and the connection carries another call where it can."""
    server = Server(raw, raw, step=step)
    connection = connected(server)
    taken: list[int] = []
    assert await ask(connection, taken=taken.append) == want
    assert sum(taken) == len(want[1])
    assert connection.can_stay is stays
    if stays:
        connection.rest()
        assert connection.is_open()
        assert await ask(connection) == want
    connection.close()
    await server.gone.wait()


async def test_an_answer_may_last_until_the_connection_ends() -> None:
    connection = connected(Server(OK + b"\r\nhello", ends=True, step=3))
    assert await ask(connection) == (200, b"hello")
    assert not connection.can_stay


@pytest.mark.parametrize("extra", [b"x", OK + b"Content-Length: 0\r\n\r\n"])
async def test_bytes_beyond_an_answer_end_the_connection(extra: bytes) -> None:
    """What nobody asked for is no answer to the next request."""
    connection = connected(Server(OK + b"Content-Length: 2\r\n\r\nhi" + extra))
    assert await ask(connection) == (200, b"hi")
    assert not connection.can_stay
    server = Server(OK + b"Content-Length: 2\r\n\r\nhi")
    connection = connected(server)
    assert await ask(connection) == (200, b"hi")
    connection.rest()
    server.transport.write(extra)
    assert not connection.is_open()
    async with asyncio.timeout(10):
        await server.gone.wait()


@pytest.mark.parametrize(
    ("raw", "error", "in_body"),
    [
        (b"", Silent, False),
        (b"HTTP/1.1 200", CutShort, False),
        (b"SSH-2.0\r\n\r\n", HeadError, False),
        (b"HTTP/1.1 200 OK\r\nA: " + b"x" * MAX_HEAD, HeadError, False),
        (OK + b"Content-Length: 9\r\n\r\nhi", CutShort, True),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n", CutShort, True),
        (OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", ChunkError, True),
    ],
)
async def test_answers_that_are_none(raw: bytes, error: type[Exception], in_body: bool) -> None:
    """Each is told apart, and the connection is not used again."""
    connection = connected(Server(raw, ends=True))
    with pytest.raises(error):
        await ask(connection)
    assert connection.in_body is in_body
    assert not connection.can_stay
    assert connection.transport.is_closing()


@pytest.mark.parametrize("framing", [b"Content-Length: 9\r\n\r\n", b"\r\n",
                                     b"Transfer-Encoding: chunked\r\n\r\n9\r\n"])  # fmt: skip
async def test_an_answer_too_large_to_keep_is_refused_at_once(framing: bytes) -> None:
    """By its length where it has one: its bytes are not waited for."""

    def full(size: int) -> None:
        raise GraphError("too much")

    rest = b"" if framing.startswith(b"Content-Length") else b"123456789"
    server = Server(OK + framing + rest)
    with pytest.raises(GraphError, match="too much"):
        await ask(connected(server), taken=full)
    async with asyncio.timeout(10):
        await server.gone.wait()


@pytest.mark.parametrize("size", [10, TOGETHER, 3_000_000])
async def test_bodies_of_every_size_go_out(size: int) -> None:
    server = Server(OK + b"Content-Length: 2\r\n\r\nhi", size=size)
    assert await ask(connected(server), b"x" * size) == (200, b"hi")


async def test_a_caller_that_leaves_ends_the_connection() -> None:
    """The step sees it, and a late answer disturbs nobody."""
    server = Server(b"")
    connection = connected(server)
    call = asyncio.create_task(connection.ask(b"POST / HTTP/1.1\r\n\r\n", b"", lambda size: None))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    server.transport.write(OK + b"Content-Length: 0\r\n\r\n")
    connection.close()
    async with asyncio.timeout(10):
        await server.gone.wait()
