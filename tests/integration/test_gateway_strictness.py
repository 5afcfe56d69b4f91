"""Requests that two parsers could read differently, sent to a real gateway.

Each must be refused with 400 and the connection closed, and no replica may see a byte of it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.fakes.raw_upstream import Client, Upstream, ask, echo
from tests.integration.gateway_world import HOST, World, world

pytestmark = pytest.mark.asyncio(loop_scope="module")

NEXT = b"GET /smuggled HTTP/1.1\r\nHost: iris.default.example.com\r\n\r\n"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def gateway() -> AsyncIterator[tuple[World, Upstream]]:
    """A gateway in front of one replica."""
    async with Upstream(echo) as upstream, world() as one:
        await one.serve(upstream)
        yield one, upstream


def post(*lines: bytes, body: bytes = b"") -> bytes:
    return b"POST / HTTP/1.1\r\n" + HOST + b"".join(x + b"\r\n" for x in lines) + b"\r\n" + body


SMUGGLING = {
    "two lengths": post(b"Content-Length: 5", b"Content-Length: 5", body=b"12345"),
    "two different lengths": post(b"Content-Length: 0", b"Content-Length: 5", body=b"12345"),
    "length list": post(b"Content-Length: 5, 5", body=b"12345"),
    "length and coding": post(
        b"Content-Length: 5", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n" + NEXT
    ),
    "coding and length": post(
        b"Transfer-Encoding: chunked", b"Content-Length: 5", body=b"0\r\n\r\n" + NEXT
    ),
    "length with plus": post(b"Content-Length: +5", body=b"12345"),
    "negative length": post(b"Content-Length: -5"),
    "hex length": post(b"Content-Length: 0x5", body=b"12345"),
    "length with blank inside": post(b"Content-Length: 1 0", body=b"1234567890"),
    "empty length": post(b"Content-Length:", body=b""),
    "huge length": post(b"Content-Length: 99999999999999999999"),
    "underscored length": post(b"Content-Length: 1_0", body=b"1234567890"),
    "two codings": post(
        b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"
    ),
    "identity": post(b"Transfer-Encoding: identity", b"Content-Length: 0"),
    "gzip, chunked": post(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"),
    "chunked, chunked": post(b"Transfer-Encoding: chunked, chunked", body=b"0\r\n\r\n"),
    "xchunked": post(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n"),
    "vertical tab before chunked": post(b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n"),
    "quoted chunked": post(b'Transfer-Encoding: "chunked"', body=b"0\r\n\r\n"),
    "coding in 1.0": post(b"Transfer-Encoding: chunked", body=b"0\r\n\r\n").replace(
        b"HTTP/1.1", b"HTTP/1.0"
    ),
    "blank before colon": post(b"Content-Length : 5", body=b"12345"),
    "blank before coding's colon": post(b"Transfer-Encoding : chunked", body=b"0\r\n\r\n"),
    "blank at line start": post(b" Content-Length: 5", body=b"12345"),
    "folded line": post(b"X-A: b", b" c"),
    "folded coding": post(b"Transfer-Encoding:", b" chunked", body=b"0\r\n\r\n"),
    "line without colon": post(b"garbage"),
    "empty name": post(b": value"),
    "name with blank": post(b"X A: b"),
    "name with umlaut": post(b"X-\xc4: b"),
    "nul in value": post(b"X-A: b\x00c"),
    "bare cr in value": post(b"X-A: b\rContent-Length: 5", body=b"12345"),
    "bare lf in value": post(b"X-A: b\nContent-Length: 5", body=b"12345"),
    "delete in value": post(b"X-A: b\x7f"),
    "bare lf line ends": b"GET / HTTP/1.1\nHost: iris.default.example.com\n\n",
    "bare lf at the end": b"GET / HTTP/1.1\r\nHost: iris.default.example.com\r\n\n",
    "bare lf after the line": b"GET / HTTP/1.1\nHost: iris.default.example.com\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\n" + HOST + b"Host: other\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\nX-A: b\r\n\r\n",
    "host list": b"GET / HTTP/1.1\r\nHost: iris.default.example.com, b\r\n\r\n",
    "host with path": b"GET / HTTP/1.1\r\nHost: iris.default.example.com/x\r\n\r\n",
    "host with user": b"GET / HTTP/1.1\r\nHost: a@iris.default.example.com\r\n\r\n",
    "host with odd port": b"GET / HTTP/1.1\r\nHost: iris.default.example.com:80x\r\n\r\n",
    "absolute url with user": b"GET http://a@b/ HTTP/1.1\r\n" + HOST + b"\r\n",
    "other scheme": b"GET ftp://iris.default.example.com/ HTTP/1.1\r\n" + HOST + b"\r\n",
    "target without slash": b"GET v1/models HTTP/1.1\r\n" + HOST + b"\r\n",
    "target with fragment": b"GET /a#b HTTP/1.1\r\n" + HOST + b"\r\n",
    "two blanks": b"GET  / HTTP/1.1\r\n" + HOST + b"\r\n",
    "tab as blank": b"GET\t/ HTTP/1.1\r\n" + HOST + b"\r\n",
    "blank after version": b"GET / HTTP/1.1 \r\n" + HOST + b"\r\n",
    "no version": b"GET /\r\n" + HOST + b"\r\n",
    "version 1.2": b"GET / HTTP/1.2\r\n" + HOST + b"\r\n",
    "version 2.0": b"GET / HTTP/2.0\r\n" + HOST + b"\r\n",
    "version 11": b"GET / HTTP/1.10\r\n" + HOST + b"\r\n",
    "lower case method": b"get / HTTP/1.1\r\n" + HOST + b"\r\n",
    "unknown method": b"FROB / HTTP/1.1\r\n" + HOST + b"\r\n",
    "blank before method": b" GET / HTTP/1.1\r\n" + HOST + b"\r\n",
    "star with get": b"GET * HTTP/1.1\r\n" + HOST + b"\r\n",
    "two empty lines first": b"\r\n\r\nGET / HTTP/1.1\r\n" + HOST + b"\r\n",
    "other expectation": post(b"Expect: 200-ok"),
    "bad chunk size": post(b"Transfer-Encoding: chunked", body=b"zz\r\n"),
    "negative chunk size": post(b"Transfer-Encoding: chunked", body=b"-1\r\n"),
    "chunk size with 0x": post(b"Transfer-Encoding: chunked", body=b"0x1\r\na\r\n0\r\n\r\n"),
    "huge chunk size": post(b"Transfer-Encoding: chunked", body=b"fffffffffffffffff\r\n"),
    "chunk line with bare lf": post(b"Transfer-Encoding: chunked", body=b"1\na\r\n0\r\n\r\n"),
    "chunk longer than said": post(b"Transfer-Encoding: chunked", body=b"1\r\nab\r\n0\r\n\r\n"),
    "chunk without line end": post(b"Transfer-Encoding: chunked", body=b"1\r\naX0\r\n\r\n"),
    "folded trailer": post(b"Transfer-Encoding: chunked", body=b"0\r\nA: b\r\n c\r\n\r\n"),
    "cr in chunk extension": post(b"Transfer-Encoding: chunked", body=b"1;a\rb\r\na\r\n0\r\n\r\n"),
    "too many headers": post(*(b"X-%d: a" % n for n in range(101))),
    "too large a head": post(b"X-A: " + b"a" * 70_000),
    "too large, never complete": b"GET / HTTP/1.1\r\nX-A: " + b"a" * 70_000,
    "tls to a plain port": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 20,
}


@pytest.mark.parametrize("name", SMUGGLING)
async def test_an_ambiguous_request_reaches_no_replica(
    gateway: tuple[World, Upstream], name: str
) -> None:
    one, upstream = gateway
    before = len(upstream.requests)
    async with Client(one.port) as client:
        await client.send(SMUGGLING[name])
        answer = await client.answer()
        assert answer.status == 400
        assert answer.body == b"Bad Request"
        assert answer.headers["connection"] == "close"
        assert answer.headers["x-kserve-local-hint"]
        assert await client.at_end()
    assert len(upstream.requests) == before


async def test_a_smuggled_request_is_only_body(gateway: tuple[World, Upstream]) -> None:
    """What a length covers is body, whatever it looks like."""
    one, upstream = gateway
    before = len(upstream.requests)
    async with Client(one.port) as client:
        await client.send(post(b"Content-Length: %d" % len(NEXT), body=NEXT) + NEXT)
        await client.answer()
        await client.answer()
    assert [r.target for r in upstream.requests[before:]] == ["/", "/smuggled"]


async def test_connection_cannot_take_away_what_frames_the_message(
    gateway: tuple[World, Upstream],
) -> None:
    one, upstream = gateway
    raw = post(b"Connection: Content-Length, Host, Content-Type", b"Content-Length: 2", body=b"hi")
    assert (await ask(one.port, raw)).status == 200
    assert upstream.requests[-1].body == b"hi"


async def test_a_body_that_breaks_midway_ends_both_connections(
    gateway: tuple[World, Upstream],
) -> None:
    """The replica must not take the part for the whole; the client still gets its 400."""
    one, upstream = gateway
    before = len(upstream.requests)
    upstream.left.clear()
    upstream.begun.clear()
    async with Client(one.port) as client:
        await client.send(post(b"Transfer-Encoding: chunked", body=b"5\r\nhello\r\n"))
        await upstream.begun.wait()
        await client.send(b"zz\r\n")
        assert (await client.answer()).status == 400
        assert await client.at_end()
    async with asyncio.timeout(10):
        await upstream.left.wait()
    assert len(upstream.requests) == before


async def test_connect_is_not_served(gateway: tuple[World, Upstream]) -> None:
    one, _ = gateway
    answer = await ask(one.port, b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n")
    assert answer.status in (400, 405)


async def test_a_head_may_come_byte_by_byte(gateway: tuple[World, Upstream]) -> None:
    one, _ = gateway
    async with Client(one.port) as client:
        client.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"\r\nGET / HTTP/1.1\r\n" + HOST + b"\r\n":
            await client.send(bytes([byte]))
            await asyncio.sleep(0)
        assert (await client.answer()).status == 200


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (b"", 401),
        (b"Authorization: Bearer nope\r\n", 401),
        (b"Authorization: bearer s3cret\r\n", 200),
    ],
)
async def test_beyond_loopback_a_token_is_needed(given: bytes, status: int) -> None:
    """The token is the gateway's own: the model server never sees it."""
    async with (
        Upstream(echo) as upstream,
        world(gateway_host="0.0.0.0", auth_token="s3cret") as own,
    ):
        await own.serve(upstream)
        for _ in range(2):
            answer = await ask(own.port, b"GET / HTTP/1.1\r\n" + HOST + given + b"\r\n")
            assert answer.status == status
        assert all("authorization" not in r.headers for r in upstream.requests)
