"""Cleartext HTTP/2 at a real gateway: REST as over HTTP/1.1, and what a peer must not do."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from kserve_local.gateway import h2_frames as f
from kserve_local.gateway import h2_headers
from kserve_local.gateway.h2_frames import Code
from tests.fakes.raw_upstream import (
    Client,
    Connection,
    Request,
    Upstream,
    answering,
    echo,
    response,
)
from tests.integration.gateway_world import World, iris, world

AUTHORITY = b"iris.default.example.com"
PATH = "/v2/models/iris/infer"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def gateway() -> AsyncIterator[tuple[World, Upstream]]:
    async with Upstream(echo) as upstream, world() as own:
        await own.publish(iris((upstream,)))
        yield own, upstream


pytestmark = pytest.mark.asyncio(loop_scope="module")


def client(own: World) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        http1=False,
        http2=True,
        base_url=f"http://127.0.0.1:{own.port}",
        headers={"host": AUTHORITY.decode()},
        timeout=30,
        trust_env=False,
    )


async def test_a_request_reaches_the_replica_as_http1(gateway: tuple[World, Upstream]):
    own, upstream = gateway
    async with client(own) as http:
        answer = await http.post(PATH, content=b'{"a": 1}', headers={"x-request-id": "r-1"})
    assert answer.http_version == "HTTP/2"
    assert answer.status_code == 200
    seen = upstream.requests[-1]
    assert (seen.method, seen.target, seen.body) == ("POST", PATH, b'{"a": 1}')
    assert seen.header("host") == AUTHORITY.decode()
    assert seen.header("x-request-id") == "r-1"
    assert seen.header("content-length") == "8"
    assert seen.header("x-forwarded-for") == "127.0.0.1"
    assert seen.header("kserve-isvc-name") == "iris"


async def test_a_body_without_a_length_is_chunked(gateway: tuple[World, Upstream]):
    own, upstream = gateway

    async def parts() -> AsyncIterator[bytes]:
        for n in range(50):
            yield b"%d" % n * 1000

    async with client(own) as http:
        answer = await http.post(PATH, content=parts())
    assert answer.status_code == 200
    assert upstream.requests[-1].header("transfer-encoding") == "chunked"
    assert upstream.requests[-1].body == b"".join(b"%d" % n * 1000 for n in range(50))


async def test_many_requests_share_the_connection(gateway: tuple[World, Upstream]):
    own, _ = gateway
    async with client(own) as http:
        bodies = [b"x" * (n * 997) for n in range(100)]
        answers = await asyncio.gather(*(http.post(PATH, content=b) for b in bodies))
    assert [a.status_code for a in answers] == [200] * 100


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
async def test_large_bodies_pass_both_ways(chunked: bool):
    data = b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(200_000))

    async def replica(connection: Connection) -> None:
        while True:
            request = await connection.request()
            assert request.body == data
            if chunked:
                head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                pieces = [data[n : n + 60_000] for n in range(0, len(data), 60_000)]
                framed = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces)
                await connection.send(head + framed + b"0\r\n\r\n")
            else:
                await connection.send(response(data))

    async with Upstream(replica) as upstream, world() as own:
        await own.publish(iris((upstream,)))
        async with client(own) as http:
            answer = await http.post(PATH, content=data)
        assert answer.content == data


async def test_early_hints_come_before_the_answer():
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    async with Upstream(answering(hints + response(b"ok"))) as upstream, world() as own:
        await own.publish(iris((upstream,)))
        async with Client(own.port) as raw:
            await raw.send(START + headers() + f.goaway(0, 0))
            found = [(k, p) for k, _, id, p in await frames_until_end(raw) if id == 1]
    assert [kind for kind, _ in found[:3]] == [f.HEADERS, f.HEADERS, f.DATA]
    lists = [h2_headers.HeaderReader().read(block) for _, block in found[:2]]
    assert lists[0] == [(b":status", b"103"), (b"link", b"</x>")]
    assert lists[1][0] == (b":status", b"200")


async def test_answers_of_the_gateway(gateway: tuple[World, Upstream]):
    own, _ = gateway
    async with client(own) as http:
        missing = await http.get("/", headers={"host": "no.default.example.com"})
        health = await http.get("/-/healthz", headers={"host": f"127.0.0.1:{own.port}"})
        short = await http.post(
            "/v1/models/iris:predict", content=b"{}", headers={"host": "localhost"}
        )
        head = await http.head(PATH)
    assert missing.status_code == 404
    assert (health.status_code, health.text) == (200, "ok\n")
    assert short.status_code == 200
    assert (head.status_code, head.content) == (200, b"")


async def test_openai_by_the_models_name(gateway: tuple[World, Upstream]):
    own, upstream = gateway
    async with Upstream(echo) as other:
        await own.publish(iris((upstream,)), iris((other,), name="wine"))
        async with client(own) as http:
            body = json.dumps({"messages": ["x" * 100_000], "model": "wine"}).encode()
            answer = await http.post(
                "/openai/v1/chat/completions", content=body, headers={"host": "localhost"}
            )
            nobody = await http.post(
                "/openai/v1/completions", content=b'{"model": "n"}', headers={"host": "localhost"}
            )
        assert answer.status_code == 200
        assert other.requests[-1].body == body
        assert nobody.status_code == 404
        await own.publish(iris((upstream,)))


async def test_a_replica_that_breaks_off_is_seen():
    async def replica(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")

    async with Upstream(replica) as upstream, world() as own:
        await own.publish(iris((upstream,)))
        async with client(own) as http:
            with pytest.raises(httpx.RemoteProtocolError):
                await http.post(PATH, content=b"x")


async def test_a_slow_reader_slows_the_replica():
    sent = 0
    full = asyncio.Event()

    async def replica(connection: Connection) -> None:
        nonlocal sent
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 200000000\r\n\r\n")
        for _ in range(200):
            await connection.send(b"x" * 1_000_000)
            sent += 1

    async def watch() -> None:
        before = -1
        while before != sent or not sent:
            before = sent
            await asyncio.sleep(0.5)
        full.set()

    async with Upstream(replica) as upstream, world() as own:
        await own.publish(iris((upstream,)))
        async with client(own) as http, http.stream("POST", PATH, content=b"x") as answer:
            await watch()
            # Neither in the gateway nor in the sockets is room for all of it.
            assert sent < 40
            size = 0
            async for part in answer.aiter_bytes():
                size += len(part)
        assert size == 200_000_000


# What no library sends.

START = f.PREFACE + f.settings({})


def headers(
    stream: int = 1, *more: tuple[bytes, bytes], end: bool = True, method: bytes = b"GET"
) -> bytes:
    block = h2_headers.write(
        [
            (b":method", method),
            (b":scheme", b"http"),
            (b":path", b"/v2/health/live"),
            (b":authority", AUTHORITY),
            *more,
        ]
    )
    return f.headers(stream, block, end=end, max_frame=16384)


BROKEN = {
    "no settings": (f.PREFACE + headers(), Code.PROTOCOL_ERROR),
    "no preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX" + f.settings({}), Code.PROTOCOL_ERROR),
    "even stream": (START + headers(2), Code.PROTOCOL_ERROR),
    "stream zero": (START + headers(0), Code.PROTOCOL_ERROR),
    "data of nothing": (START + f.frame(f.DATA, 0, 1, b"x"), Code.PROTOCOL_ERROR),
    "reset of nothing": (START + f.rst_stream(5, 8), Code.PROTOCOL_ERROR),
    "window of nothing": (START + f.window_update(5, 8), Code.PROTOCOL_ERROR),
    "zero window": (START + f.window_update(0, 0), Code.PROTOCOL_ERROR),
    "window overflow": (START + f.window_update(0, 2**31 - 1), Code.FLOW_CONTROL_ERROR),
    "huge frame": (START + f.frame_head(f.DATA, 0, 1, 2**20), Code.FRAME_SIZE_ERROR),
    "short ping": (START + f.frame(f.PING, 0, 0, b"1234"), Code.FRAME_SIZE_ERROR),
    "odd settings": (START + f.frame(f.SETTINGS, 0, 0, b"12345"), Code.FRAME_SIZE_ERROR),
    "settings on a stream": (START + f.frame(f.SETTINGS, 0, 1), Code.PROTOCOL_ERROR),
    "bad push": (START + f.settings({f.ENABLE_PUSH: 2}), Code.PROTOCOL_ERROR),
    "bad window": (START + f.settings({f.INITIAL_WINDOW_SIZE: 2**31}), Code.FLOW_CONTROL_ERROR),
    "bad frame size": (START + f.settings({f.MAX_FRAME_SIZE: 100}), Code.PROTOCOL_ERROR),
    "push promise": (START + f.frame(f.PUSH_PROMISE, 4, 1, b"\0\0\0\2"), Code.PROTOCOL_ERROR),
    "continuation of nothing": (
        START + f.frame(f.CONTINUATION, f.END_HEADERS, 1, b"\x82"),
        Code.PROTOCOL_ERROR,
    ),
    "frame inside headers": (
        START + f.frame(f.HEADERS, 0, 1, b"\x82") + f.frame(f.PING, 0, 0, b"12345678"),
        Code.PROTOCOL_ERROR,
    ),
    "headers without an end": (
        START
        + f.frame(f.HEADERS, 0, 1, b"\x00" * 16000)
        + f.frame(f.CONTINUATION, 0, 1, b"\x00" * 16000) * 5,
        Code.ENHANCE_YOUR_CALM,
    ),
    "tiny continuations": (
        START + f.frame(f.HEADERS, 0, 1) + f.frame(f.CONTINUATION, 0, 1) * 500,
        Code.ENHANCE_YOUR_CALM,
    ),
    "no hpack": (START + f.frame(f.HEADERS, 5, 1, b"\xff\xff\xff\xff\xff"), Code.COMPRESSION_ERROR),
    "a bomb of headers": (
        START
        + f.frame(f.HEADERS, 5, 1, b"\x40\x01a\x7f\xa1\x1e" + b"v" * 4000 + b"\xbe" * 12000),
        Code.ENHANCE_YOUR_CALM,
    ),
    "padding": (START + f.frame(f.HEADERS, 5 | f.PADDED, 1, b"\xff\x82"), Code.PROTOCOL_ERROR),
    "self dependency": (
        START + f.frame(f.HEADERS, 5 | f.HAS_PRIORITY, 1, b"\0\0\0\1\0\x82"),
        Code.PROTOCOL_ERROR,
    ),
    "priorities": (START + f.frame(f.PRIORITY, 0, 1, b"\0\0\0\0\1") * 1200, Code.ENHANCE_YOUR_CALM),
    "settings again and again": (START + f.settings({}) * 1200, Code.ENHANCE_YOUR_CALM),
    "rapid resets": (
        START + b"".join(headers(2 * n + 1) + f.rst_stream(2 * n + 1, 8) for n in range(1500)),
        Code.ENHANCE_YOUR_CALM,
    ),
    "empty data": (
        START + headers(1, end=False, method=b"POST") + f.frame(f.DATA, 0, 1) * 1200,
        Code.ENHANCE_YOUR_CALM,
    ),
    "too much data": (
        START + headers(1, end=False, method=b"POST") + f.frame(f.DATA, 0, 3, b"x"),
        Code.PROTOCOL_ERROR,
    ),
}  # fmt: skip


async def frames_until_end(client: Client) -> list[tuple[int, int, int, bytes]]:
    reader = f.FrameReader(f.MAX_FRAME)
    found = []
    async with asyncio.timeout(20):
        while data := await client.reader.read(65536):
            found += list(reader.feed(data))
    return found


@pytest.mark.parametrize(("data", "code"), BROKEN.values(), ids=BROKEN)
async def test_a_peer_that_breaks_the_protocol_is_told_and_left(
    gateway: tuple[World, Upstream], data: bytes, code: Code
):
    own, _ = gateway
    async with Client(own.port) as raw:
        await raw.send(data)
        ends = [p for kind, _, _, p in await frames_until_end(raw) if kind == f.GOAWAY]
    assert int.from_bytes(ends[-1][4:8], "big") == code, ends[-1][8:]
    async with client(own) as http:
        assert (await http.get("/")).status_code == 200


MALFORMED = {
    "upper case": ((b"X-Up", b"1"),),
    "connection": ((b"connection", b"close"),),
    "te": ((b"te", b"gzip"),),
    "transfer-encoding": ((b"transfer-encoding", b"chunked"),),
    "line feed": ((b"x", b"a\r\nb: c"),),
    "space first": ((b"x", b" a"),),
    "late pseudo": ((b"x", b"1"), (b":path", b"/other")),
    "second path": ((b":path", b"/other"),),
    "unknown pseudo": ((b":other", b"1"),),
    "two hosts": ((b"host", b"other.default.example.com"),),
    "no length": ((b"content-length", b"+5"),),
    "two lengths": ((b"content-length", b"0"), (b"content-length", b"0")),
    "length without a body": ((b"content-length", b"5"),),
    "empty name": ((b"", b"1"),),
}


@pytest.mark.parametrize("more", MALFORMED.values(), ids=MALFORMED)
async def test_a_malformed_request_ends_its_stream_only(
    gateway: tuple[World, Upstream], more: tuple[tuple[bytes, bytes], ...]
):
    own, upstream = gateway
    before = len(upstream.requests)
    async with Client(own.port) as raw:
        await raw.send(START + headers(1, *more) + headers(3) + f.goaway(0, 0))
        found = await frames_until_end(raw)
    resets = {id: int.from_bytes(p, "big") for kind, _, id, p in found if kind == f.RST_STREAM}
    assert resets == {1: Code.PROTOCOL_ERROR}
    assert [id for kind, _, id, _ in found if kind == f.HEADERS] == [3]
    assert len(upstream.requests) == before + 1


@pytest.mark.parametrize(
    ("declared", "sent"), [(b"3", b"four"), (b"5", b"four")], ids=["more", "less"]
)
async def test_a_body_of_another_length_than_declared_never_counts_as_whole(
    declared: bytes, sent: bytes
):
    whole: list[Request] = []

    async def replica(connection: Connection) -> None:
        while True:
            whole.append(await connection.request())
            await connection.send(response(b"ok"))

    async with Upstream(replica) as upstream, world() as own:
        await own.publish(iris((upstream,)))
        async with Client(own.port) as raw:
            begin = headers(1, (b"content-length", declared), end=False, method=b"POST")
            await raw.send(START + begin)
            await raw.send(f.frame(f.DATA, f.END_STREAM, 1, sent) + f.goaway(0, 0))
            found = await frames_until_end(raw)
        resets = [int.from_bytes(p, "big") for kind, _, _, p in found if kind == f.RST_STREAM]
        assert resets == [Code.PROTOCOL_ERROR]
        assert whole == []


async def test_a_window_that_was_never_given_is_not_used(gateway: tuple[World, Upstream]):
    """A client that takes 10 bytes at a time gets 10 bytes at a time."""
    async with Upstream(answering(response(b"0123456789" * 3))) as upstream, world() as own:
        await own.publish(iris((upstream,)))
        async with Client(own.port) as raw:
            small = f.settings({f.INITIAL_WINDOW_SIZE: 10})
            await raw.send(f.PREFACE + small + headers(1))
            reader = f.FrameReader(f.MAX_FRAME)
            got: list[bytes] = []
            async with asyncio.timeout(10):
                while sum(map(len, got)) < 30:
                    data = await raw.reader.read(65536)
                    assert data
                    for kind, _, id, payload in reader.feed(data):
                        if kind == f.DATA and id == 1:
                            assert len(payload) <= 10
                            got.append(payload)
                            await raw.send(f.window_update(1, max(1, len(payload))))
            assert b"".join(got) == b"0123456789" * 3
