"""A pair of transports without sockets behaves as one of sockets does where the gateway looks.

The claims that asyncio makes of every transport run over both: a pipe and a pair of sockets.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest

from kserve_local.gateway import pipe
from kserve_local.gateway.pipe import HIGH, PIECE, news_of

Pair = tuple["End", "End"]
Wire = Callable[["End", "End"], Awaitable[None]]


class End(asyncio.Protocol):
    """One end, which notes what it hears."""

    def __init__(self, *, stays: bool = False) -> None:
        self.stays = stays
        self.heard: list[str] = []
        self.got = b""
        self.largest = 0
        self.errors: list[Exception | None] = []
        self._change = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.got += data
        self.largest = max(self.largest, len(data))
        self._change.set()

    def eof_received(self) -> bool:
        self._note("eof")
        return self.stays

    def pause_writing(self) -> None:
        self._note("pause")

    def resume_writing(self) -> None:
        self._note("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.errors.append(exc)
        self._note("lost")

    def _note(self, word: str) -> None:
        self.heard.append(word)
        self._change.set()

    async def until(self, claim: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not claim():
                self._change.clear()
                await self._change.wait()


async def piped(one: End, two: End) -> None:
    pipe.connect(one, two)


async def by_sockets(one: End, two: End) -> None:
    loop = asyncio.get_running_loop()
    for end, raw in zip((one, two), socket.socketpair(), strict=True):
        raw.setblocking(False)
        await loop.create_unix_connection(lambda end=end: end, sock=raw)


@pytest.fixture(params=[piped, by_sockets], ids=["pipe", "sockets"])
def wire(request: pytest.FixtureRequest) -> Wire:
    made: Wire = request.param
    return made


async def test_bytes_arrive_in_order_both_ways(wire: Wire) -> None:
    """And not before the writer has returned to the loop."""
    one, two = End(), End()
    await wire(one, two)
    one.transport.writelines([b"a", b"bc"])
    one.transport.write(b"d")
    two.transport.write(b"e")
    assert (one.got, two.got) == (b"", b"")
    await two.until(lambda: two.got == b"abcd")
    await one.until(lambda: one.got == b"e")
    one.transport.abort()
    await two.until(lambda: "lost" in two.heard)


async def test_a_writer_pauses_while_nobody_reads(wire: Wire) -> None:
    """Nothing is lost, and it goes on when the reader does."""
    one, two = End(), End()
    await wire(one, two)
    two.transport.pause_reading()
    body = bytes(range(256)) * 8192
    one.transport.write(body)
    await one.until(lambda: one.heard == ["pause"])
    assert one.transport.get_write_buffer_size() > HIGH
    assert len(two.got) <= PIECE
    two.transport.resume_reading()
    await two.until(lambda: len(two.got) == len(body))
    await one.until(lambda: one.heard == ["pause", "resume"])
    assert two.got == body
    assert two.largest <= PIECE
    one.transport.abort()
    await two.until(lambda: "lost" in two.heard)


async def test_closing_waits_for_what_is_written(wire: Wire) -> None:
    """The reader gets all of it, then the end."""
    one, two = End(), End()
    await wire(one, two)
    body = b"x" * (3 * PIECE + 1)
    one.transport.write(body)
    one.transport.close()
    assert one.transport.is_closing()
    await two.until(lambda: "lost" in two.heard)
    assert two.got == body
    assert two.heard == ["eof", "lost"]
    await one.until(lambda: "lost" in one.heard)
    assert one.errors == two.errors == [None]


async def test_an_abort_ends_both(wire: Wire) -> None:
    """Each protocol is told once."""
    one, two = End(), End()
    await wire(one, two)
    one.transport.abort()
    one.transport.abort()
    one.transport.close()
    await two.until(lambda: "lost" in two.heard)
    await one.until(lambda: "lost" in one.heard)
    assert (one.heard, two.heard) == (["lost"], ["eof", "lost"])


async def test_one_side_may_end_before_the_other(wire: Wire) -> None:
    """A tunnel's ends close one after the other."""
    one, two = End(stays=True), End(stays=True)
    await wire(one, two)
    one.transport.write(b"last")
    one.transport.write_eof()
    await two.until(lambda: two.heard == ["eof"])
    assert two.got == b"last"
    two.transport.write(b"answer")
    await one.until(lambda: one.got == b"answer")
    two.transport.write_eof()
    await one.until(lambda: one.heard == ["eof"])
    one.transport.close()
    two.transport.close()
    await two.until(lambda: "lost" in two.heard)


async def test_news_are_bytes_or_the_end(wire: Wire) -> None:
    """What a pool asks of a connection that rests."""
    one, two = End(), End()
    await wire(one, two)
    news = news_of(one.transport)
    assert not news()
    one.transport.pause_reading()
    two.transport.write(b"x")
    assert news()
    one.transport.resume_reading()
    await one.until(lambda: one.got == b"x")
    assert not news()
    one.transport.pause_reading()
    two.transport.close()
    assert not isinstance(one.transport, pipe.PipeEnd) or news()
    await two.until(lambda: "lost" in two.heard)
    one.transport.abort()
    await one.until(lambda: "lost" in one.heard)


async def test_who_does_not_read_hears_the_end_all_the_same() -> None:
    """Unlike a socket's: so a client that leaves is noticed while its upload is held up."""
    one, two = End(), End()
    pipe.connect(one, two)
    two.transport.pause_reading()
    one.transport.write(b"never read")
    one.transport.abort()
    await two.until(lambda: "lost" in two.heard)
    assert (two.got, two.heard) == (b"", ["eof", "lost"])


async def test_what_nobody_will_read_ends_the_writer() -> None:
    """Also one that stays after the other has said its last word."""
    one, two = End(), End(stays=True)
    pipe.connect(one, two)
    one.transport.close()
    await two.until(lambda: two.heard == ["eof"])
    two.transport.write(b"x")
    await two.until(lambda: "lost" in two.heard)
    three, four = End(), End(stays=True)
    pipe.connect(three, four)
    three.transport.pause_reading()
    four.transport.write(b"x" * 2 * HIGH)
    three.transport.close()
    await four.until(lambda: "lost" in four.heard)
    assert four.heard == ["pause", "lost"]


async def test_a_protocol_that_fails_ends_its_connection() -> None:
    """The loop reports it; the other end is not left waiting."""

    class Broken(End):
        def data_received(self, data: bytes) -> None:
            raise ValueError(data)

    reported: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: reported.append(context["exception"]))
    one, two = End(), Broken()
    pipe.connect(one, two)
    one.transport.write(b"x")
    await one.until(lambda: "lost" in one.heard)
    assert [type(error) for error in reported] == [ValueError]
