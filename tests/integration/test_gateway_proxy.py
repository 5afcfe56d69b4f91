"""A real gateway in front of real replicas: what passes, in which form, and who notices what."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.fakes.raw_upstream import (
    Client,
    Connection,
    Request,
    Upstream,
    answering,
    ask,
    echo,
    response,
)
from tests.integration.gateway_world import HOST, World, iris, world

MEBIBYTE = 1 << 20
GET = b"GET /v1/models HTTP/1.1\r\n" + HOST + b"\r\n"


def post(body: bytes, extra: bytes = b"", path: bytes = b"/v2/models/iris/infer") -> bytes:
    """Return a POST with a length."""
    return b"POST %b HTTP/1.1\r\n%bContent-Length: %d\r\n%b\r\n%b" % (
        path,
        HOST,
        len(body),
        extra,
        body,
    )


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def gateway() -> AsyncIterator[World]:
    """One gateway for the module; each test publishes its own table."""
    async with world() as one:
        yield one


pytestmark = pytest.mark.asyncio(loop_scope="module")


# What passes


async def test_the_request_arrives_written_anew(gateway: World) -> None:
    """Hop-by-hop and reserved headers go, ours come, Host and all others stay."""
    async with Upstream(echo) as upstream:
        await gateway.serve(upstream)
        answer = await ask(
            gateway.port,
            b"POST /v1/models/iris:predict?x=%20y HTTP/1.1\r\n"
            b"hOST: IRIS.default.example.com:8080\r\nConnection: keep-alive, X-Mine\r\n"
            b"Keep-Alive: 5\r\nX-Mine: 1\r\nTE: trailers\r\nX-Forwarded-For: 10.1.1.1\r\n"
            b"X-Forwarded-Proto: https\r\nKServe-Isvc-Name: spoof\r\nX-Other:   kept  \r\n"
            b"Content-Length: 2\r\n\r\nhi",
        )
        assert answer.status == 200
        (seen,) = upstream.requests
        assert (seen.method, seen.target, seen.body) == (
            "POST",
            "/v1/models/iris:predict?x=%20y",
            b"hi",
        )
        assert seen.header("host") == "IRIS.default.example.com:8080"
        assert seen.header("x-forwarded-host") == "IRIS.default.example.com:8080"
        assert seen.header("x-forwarded-for") == "10.1.1.1, 127.0.0.1"
        assert seen.header("x-forwarded-proto") == "http"
        assert seen.header("kserve-isvc-name") == "iris"
        assert seen.header("kserve-isvc-namespace") == "default"
        assert seen.header("x-other") == "kept"
        for gone in ("connection", "keep-alive", "x-mine", "te"):
            assert gone not in seen.headers


async def test_a_request_id_is_passed_on_and_never_made_up(gateway: World) -> None:
    """A model that shows its headers must answer through the gateway as it does without."""
    async with Upstream(echo) as upstream:
        await gateway.serve(upstream)
        await ask(gateway.port, GET)
        await ask(gateway.port, GET[:-2] + b"X-Request-Id: mine\r\n\r\n")
        assert [r.header("x-request-id") for r in upstream.requests] == ["", "mine"]


async def test_each_request_of_a_client_keeps_its_own_ids(gateway: World) -> None:
    """Heads that differ in nothing else are read once; the ids are each request's."""
    async with Upstream(echo) as upstream:
        await gateway.serve(upstream)
        async with Client(gateway.port) as client:
            await client.ask(post(b"x"))
            for number in range(1, 4):
                ids = b"X-Request-Id: %d\r\ntraceparent: 00-%032x-%016x-01\r\n" % ((number,) * 3)
                await client.ask(post(b"x", ids))
        first, *others = upstream.requests
        assert first.header("x-request-id") == ""
        assert [r.header("x-request-id") for r in others] == ["1", "2", "3"]
        assert [r.header("traceparent")[:35] for r in others] == [f"00-{n:032x}" for n in (1, 2, 3)]


async def test_connections_are_kept_on_both_sides(gateway: World) -> None:
    async with Upstream(echo) as upstream:
        await gateway.serve(upstream)
        async with Client(gateway.port) as client:
            for number in range(20):
                answer = await client.ask(post(b"%d" % number))
                assert answer.body.endswith(b"\r\n\r\n%d" % number)
        assert upstream.connections == 1


async def test_an_http_1_0_client_is_served_and_closed(gateway: World) -> None:
    async with Upstream(echo) as upstream:
        await gateway.serve(upstream)
        async with Client(gateway.port) as client:
            answer = await client.ask(b"GET / HTTP/1.0\r\n" + HOST + b"\r\n")
            assert answer.headers["connection"] == "close"
            assert await client.at_end()


async def test_an_absolute_url_names_the_host(gateway: World) -> None:
    """What a client sends that takes the gateway for its proxy (RFC 9112 section 3.2.2)."""
    async with Upstream(echo) as upstream:
        await gateway.serve(upstream)
        raw = b"GET http://iris.default.example.com/v1/models?a=b HTTP/1.1\r\nHost: other\r\n\r\n"
        assert (await ask(gateway.port, raw)).status == 200
        assert upstream.requests[0].target == "/v1/models?a=b"
        assert upstream.requests[0].header("host") == "iris.default.example.com"


async def test_a_chunked_upload_arrives_whole(gateway: World) -> None:
    """Chunk by chunk, split anywhere; extensions and trailers end at the gateway."""
    async with Upstream(echo) as upstream:
        await gateway.serve(upstream)
        raw = (
            b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
            b"5;x=y\r\nhello\r\nA\r\n, world!!!\r\n0\r\nX-Trailer: t\r\n\r\n"
        )
        async with Client(gateway.port) as client:
            for at in range(0, len(raw), 3):
                await client.send(raw[at : at + 3])
                await asyncio.sleep(0)
            answer = await client.answer()
            assert answer.status == 200
            assert upstream.requests[0].body == b"hello, world!!!"
            assert "x-trailer" not in upstream.requests[0].headers
            assert (await client.ask(GET)).status == 200


@pytest.mark.parametrize(
    ("raw", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", b"abc"),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabc", b"abc"),
        (b"HTTP/1.0 200 OK\r\n\r\nabc", b"abc"),
        (b"HTTP/1.1 404 \r\nContent-Length: 3\r\n\r\nabc", b"abc"),
        (b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" + response(b"abc"), b"abc"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + response(b"abc"), b"abc"),
    ],
    ids=["chunked", "until-close", "http-1.0", "no-phrase", "early-hints", "stray-continue"],
)
async def test_every_framing_of_an_answer_arrives(gateway: World, raw: bytes, body: bytes) -> None:
    async def handler(connection: Connection) -> None:
        await connection.request()
        for at in range(0, len(raw), 7):
            await connection.send(raw[at : at + 7])
            await asyncio.sleep(0)

    async with Upstream(handler) as upstream:
        await gateway.serve(upstream)
        async with Client(gateway.port) as client:
            answer = await client.ask(GET)
            if answer.status == 103:
                answer = await client.answer()
            assert answer.body == body
            assert answer.whole
            # Whatever the replica did, the client's own connection goes on.
            await gateway.publish()
            assert (await client.ask(GET)).status == 404


@pytest.mark.parametrize(
    ("request_line", "raw"),
    [
        (b"HEAD / HTTP/1.1", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"),
        (b"GET / HTTP/1.1", b"HTTP/1.1 204 No Content\r\n\r\n"),
        (b"GET / HTTP/1.1", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n"),
    ],
    ids=["head", "204", "304"],
)
async def test_answers_without_body_end_with_their_head(
    gateway: World, request_line: bytes, raw: bytes
) -> None:
    async with Upstream(answering(raw)) as upstream:
        await gateway.serve(upstream)
        async with Client(gateway.port) as client:
            for _ in range(2):
                await client.send(request_line + b"\r\n" + HOST + b"\r\n")
                answer = await client.answer(to_head=True)
                assert answer.head == raw
        assert upstream.connections == 1


async def test_pipelined_requests_are_answered_in_order(gateway: World) -> None:
    async with Upstream(echo) as upstream:
        await gateway.serve(upstream)
        async with Client(gateway.port) as client:
            await client.send(b"".join(post(b"%04d" % n) for n in range(200)))
            for number in range(200):
                assert (await client.answer()).body.endswith(b"%04d" % number)


async def test_many_pipelined_misses_do_not_pile_up(gateway: World) -> None:
    """Answers of our own come at once; a thousand in a row must not nest."""
    await gateway.publish()
    async with Client(gateway.port) as client:
        await client.send(b"GET / HTTP/1.1\r\nHost: a.b\r\n\r\n" * 2000)
        for _ in range(2000):
            assert (await client.answer()).status == 404


async def test_expect_continue_is_answered_when_a_replica_is_there(gateway: World) -> None:
    async with Upstream(echo) as upstream:
        await gateway.serve(upstream)
        async with Client(gateway.port) as client:
            raw = post(b"body!", b"Expect: 100-continue\r\n")
            await client.send(raw[:-5])
            assert (await client.head()).startswith(b"HTTP/1.1 100 Continue\r\n")
            await client.send(b"body!")
            assert (await client.answer()).status == 200
            assert "expect" not in upstream.requests[0].headers
            assert upstream.requests[0].body == b"body!"


async def test_events_pass_as_they_come(gateway: World) -> None:
    """A stream's first event is with the client before the second exists."""
    more = asyncio.Event()

    async def handler(connection: Connection) -> None:
        await connection.request()
        await connection.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n"
        )
        await more.wait()
        await connection.send(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n")

    async with Upstream(handler) as upstream:
        await gateway.serve(upstream)
        async with Client(gateway.port) as client:
            await client.send(GET)
            head = await client.head()
            assert b"text/event-stream" in head
            assert await client.reader.readexactly(14) == b"9\r\ndata: 1\n\n\r\n"
            more.set()
            assert await client.reader.readexactly(19) == b"9\r\ndata: 2\n\n\r\n0\r\n\r\n"


async def test_a_websocket_passes_both_ways_and_closes_both_ways(gateway: World) -> None:
    async def handler(connection: Connection) -> None:
        request = await connection.request()
        assert request.header("upgrade") == "websocket"
        assert request.header("connection").lower() == "upgrade"
        await connection.send(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
            b"Upgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\nwelcome"
        )
        while data := await connection.reader.read(65536):
            await connection.send(data)

    async with Upstream(handler) as upstream:
        await gateway.serve(upstream)
        async with Client(gateway.port) as client:
            await client.send(
                GET[:-2] + b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Key: k\r\n\r\n"
            )
            head = await client.head()
            assert head.startswith(b"HTTP/1.1 101 ")
            assert b"Upgrade: websocket" in head
            assert await client.reader.readexactly(7) == b"welcome"
            blob = bytes(range(256)) * 4096
            await client.send(blob)
            assert await client.reader.readexactly(len(blob)) == blob
            client.writer.write_eof()
            assert await client.at_end()
            async with asyncio.timeout(10):
                while await open_connections(gateway) > 1:  # noqa: ASYNC110  # another process's
                    await asyncio.sleep(0.02)


async def open_connections(gateway: World) -> int:
    """Return how many clients the gateway sees, this question included."""
    raw = b"GET /-/metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    text = (await ask(gateway.port, raw)).body.decode()
    (line,) = (
        x for x in text.splitlines() if x.startswith("kserve_local_gateway_client_connections ")
    )
    return int(line.split()[1])


async def test_an_upgrade_to_http2_is_not_passed_on(gateway: World) -> None:
    """A replica that took it would speak HTTP/2 past the gateway's eyes."""
    async with Upstream(echo) as upstream:
        await gateway.serve(upstream)
        raw = (
            GET[:-2]
            + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: A\r\n\r\n"
        )
        assert (await ask(gateway.port, raw)).status == 200
        assert "upgrade" not in upstream.requests[0].headers
        assert "http2-settings" not in upstream.requests[0].headers


# Large bodies


def memory_kib(pid: int) -> int:
    """Return the most memory the process ever had resident."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


async def test_a_hundred_megabytes_pass_both_ways_in_flat_memory(gateway: World) -> None:
    size = 100 * MEBIBYTE
    block = bytes(range(256)) * 1024
    expected = hashlib.sha256(block * (size // len(block))).hexdigest()

    async def handler(connection: Connection) -> None:
        head = await connection.head()
        left, digest = size, hashlib.sha256()
        while left:
            data = await connection.reader.read(MEBIBYTE)
            left -= len(data)
            digest.update(data)
        connection.upstream.requests.append(Request(head, digest.hexdigest().encode()))
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size // len(block)):
            await connection.send(block)

    async with Upstream(handler) as upstream:
        await gateway.serve(upstream)
        async with Client(gateway.port) as client:
            before = memory_kib(gateway.process.pid)
            await client.send(b"POST / HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n" % (HOST, size))
            for _ in range(size // len(block)):
                await client.send(block)
            await client.head()
            left, digest = size, hashlib.sha256()
            while left:
                data = await client.reader.read(MEBIBYTE)
                left -= len(data)
                digest.update(data)
            assert digest.hexdigest() == expected
            assert upstream.requests[0].body.decode() == expected
            assert memory_kib(gateway.process.pid) - before < 16 * 1024


async def test_a_client_that_does_not_read_slows_the_replica_down(gateway: World) -> None:
    """The gateway holds a few hundred KiB for it, not the answer."""
    sent = 0
    stuck = asyncio.Event()

    async def handler(connection: Connection) -> None:
        nonlocal sent
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (64 * MEBIBYTE))
        for _ in range(64):
            try:
                async with asyncio.timeout(1.0):
                    await connection.send(b"x" * MEBIBYTE)
            except TimeoutError:
                stuck.set()
                await connection.writer.drain()
            sent += 1

    async with Upstream(handler) as upstream:
        await gateway.serve(upstream)
        async with Client(gateway.port) as client:
            before = memory_kib(gateway.process.pid)
            await client.send(GET)
            async with asyncio.timeout(20):
                await stuck.wait()
            assert sent < 48
            assert memory_kib(gateway.process.pid) - before < 16 * 1024
            assert len((await client.answer()).body) == 64 * MEBIBYTE


async def test_a_replica_that_does_not_read_slows_the_client_down(gateway: World) -> None:
    read = asyncio.Event()

    async def handler(connection: Connection) -> None:
        await connection.head()
        await read.wait()
        await connection.reader.readexactly(64 * MEBIBYTE)
        await connection.send(response(b"all"))

    async with Upstream(handler) as upstream:
        await gateway.serve(upstream)
        async with Client(gateway.port) as client:
            before = memory_kib(gateway.process.pid)
            client.writer.write(
                b"POST / HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n" % (HOST, 64 * MEBIBYTE)
            )
            client.writer.write(b"x" * (64 * MEBIBYTE))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1.0):
                    await client.writer.drain()
            assert memory_kib(gateway.process.pid) - before < 16 * 1024
            read.set()
            assert (await client.answer()).body == b"all"


# Ends that are not as they should be


async def test_an_answer_before_the_upload_ends_the_upload_not_the_client(gateway: World) -> None:
    """The replica's connection is out of step and never reused; the client's goes on."""

    async def handler(connection: Connection) -> None:
        head = await connection.head()
        connection.upstream.requests.append(Request(head, b""))
        await connection.send(response(b"early", status="413 Payload Too Large"))
        await connection.gone()

    async with Upstream(handler) as upstream:
        await gateway.serve(upstream)
        async with Client(gateway.port) as client:
            for number in range(3):
                await client.send(
                    b"POST / HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n" % (HOST, 4 * MEBIBYTE)
                )
                await client.send(b"x" * 1000)
                answer = await client.answer()
                assert (answer.status, answer.body) == (413, b"early")
                await client.send(b"x" * (4 * MEBIBYTE - 1000))
                assert upstream.connections == number + 1


async def test_an_early_answer_with_a_reset_still_reaches_the_client(gateway: World) -> None:
    """The replica answers and closes with the upload unread, so that our writing fails."""

    async def handler(connection: Connection) -> None:
        await connection.head()
        await connection.send(
            response(b"no", status="401 Unauthorized", extra="Connection: close\r\n")
        )

    async with Upstream(handler) as upstream:
        await gateway.serve(upstream)
        for _ in range(5):
            async with Client(gateway.port) as client:
                body = b"x" * (8 * MEBIBYTE)
                client.writer.write(post(body))
                answer = await client.answer()
                assert (answer.status, answer.body) == (401, b"no")


@pytest.mark.parametrize(
    "raw",
    [
        b"garbage that is no HTTP at all\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA : b\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
    ],
)
async def test_an_ambiguous_answer_becomes_envoys_502(gateway: World, raw: bytes) -> None:
    async with Upstream(answering(raw)) as upstream:
        await gateway.serve(upstream)
        answer = await ask(gateway.port, GET)
        assert answer.status == 502
        assert answer.body == (
            b"upstream connect error or disconnect/reset before headers. "
            b"reset reason: protocol error"
        )


async def test_bytes_after_an_answer_reach_nobody(gateway: World) -> None:
    """A second, unasked answer must not become the next client's."""
    async with Upstream(answering(response(b"one") + response(b"two"))) as upstream:
        await gateway.serve(upstream)
        async with Client(gateway.port) as client:
            for _ in range(3):
                assert (await client.ask(GET)).body == b"one"
        assert upstream.connections == 3


async def test_a_replica_that_ends_before_answering_is_a_502_in_gos_words(gateway: World) -> None:
    async def handler(connection: Connection) -> None:
        await connection.request()

    async with Upstream(handler) as upstream:
        await gateway.serve(upstream)
        answer = await ask(gateway.port, post(b"x"))
        assert (answer.status, answer.body) == (502, b"EOF\n")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert upstream.connections == 1


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_replica_that_dies_mid_answer_cuts_it_visibly(gateway: World, framing: str) -> None:
    async def handler(connection: Connection) -> None:
        await connection.request()
        if framing == "length":
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart")
        else:
            await connection.send(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n"
            )
        connection.reset() if framing == "length" else None

    async with Upstream(handler) as upstream:
        await gateway.serve(upstream)
        answer = await ask(gateway.port, GET)
        assert answer.status == 200
        assert not answer.whole


async def test_a_client_that_leaves_cancels_its_request(gateway: World) -> None:
    """The model server sees the disconnect and can stop computing."""
    begun, gone = asyncio.Event(), asyncio.Event()

    async def handler(connection: Connection) -> None:
        await connection.request()
        begun.set()
        await connection.gone()
        gone.set()

    async with Upstream(handler) as upstream:
        await gateway.serve(upstream)
        async with Client(gateway.port) as client:
            await client.send(GET)
            await begun.wait()
        async with asyncio.timeout(10):
            await gone.wait()


async def test_a_rested_connection_that_closed_costs_no_request(gateway: World) -> None:
    """Closed by the replica while it rested: the next request takes a new one, POST or not."""
    closed = asyncio.Event()

    async def handler(connection: Connection) -> None:
        await connection.request()
        await connection.send(response(b"ok"))
        connection.writer.close()
        await connection.writer.wait_closed()
        closed.set()

    async with Upstream(handler) as upstream:
        await gateway.serve(upstream)
        async with Client(gateway.port) as client:
            for number in range(10):
                assert (await client.ask(post(b"x"))).body == b"ok"
                await closed.wait()
                closed.clear()
                assert upstream.connections == number + 1


async def test_a_connection_that_carried_a_500_is_not_used_again(gateway: World) -> None:
    """KServe's server closes it after an unexpected error, unannounced and a moment later."""
    async with Upstream(
        answering(response(b"boom", status="500 Internal Server Error"))
    ) as upstream:
        await gateway.serve(upstream)
        async with Client(gateway.port) as client:
            for number in range(3):
                assert (await client.ask(post(b"x"))).status == 500
                assert upstream.connections == number + 1


async def test_stopping_lets_running_requests_finish() -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def handler(connection: Connection) -> None:
        await connection.request()
        begun.set()
        await go.wait()
        await connection.send(response(b"done"))

    async with Upstream(handler) as upstream, world() as own:
        await own.serve(upstream)
        async with Client(own.port) as client, Client(own.port) as idle:
            await client.send(GET)
            await begun.wait()
            stopping = asyncio.create_task(own.process.stop(10.0))
            assert await idle.at_end()
            go.set()
            assert (await client.answer()).body == b"done"
            assert await client.at_end()
            await stopping
        assert not own.process.run_file.exists()


async def test_two_services_are_told_apart(gateway: World) -> None:
    async with (
        Upstream(answering(response(b"a"))) as one,
        Upstream(answering(response(b"b"))) as two,
    ):
        await gateway.publish(iris([one]), iris([two], "wine"))
        async with Client(gateway.port) as client:
            for raw, body in [
                (b"GET / HTTP/1.1\r\nHost: iris.default.example.com:8080\r\n\r\n", b"a"),
                (b"GET / HTTP/1.1\r\nHost: Wine.Default.example.com\r\n\r\n", b"b"),
                (b"GET / HTTP/1.1\r\nHost: wine.default.localhost:8080\r\n\r\n", b"b"),
                (b"GET /serving/default/wine/v2 HTTP/1.1\r\nHost: localhost\r\n\r\n", b"b"),
                (b"GET /v1/models/wine HTTP/1.1\r\nHost: localhost:80\r\n\r\n", b"b"),
                (b"GET /v2/models/iris/ready HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"a"),
            ]:
                assert (await client.ask(raw)).body == body
            for path in (b"/openai/v1/chat/completions", b"/v1/completions"):
                for model, body in ((b"iris", b"a"), (b"wine", b"b")):
                    text = b'{"messages":[{"model":"x"}],"model":"%b","stream":true}' % model
                    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
                    await client.send(head % (path, len(text)) + text[:20])
                    await client.send(text[20:])
                    assert (await client.answer()).body == body


async def test_an_unknown_host_is_a_404_with_a_hint(gateway: World) -> None:
    async with Upstream(echo) as upstream:
        await gateway.serve(upstream)
        answer = await ask(
            gateway.port, b"GET / HTTP/1.1\r\nHost: irsi.default.example.com\r\n\r\n"
        )
        assert (answer.status, answer.body) == (404, b"")
        assert "iris.default.example.com" in answer.headers["x-kserve-local-hint"]
        answer = await ask(
            gateway.port, b"GET /v1/models/x HTTP/1.1\r\nHost: a.example.com\r\n\r\n"
        )
        assert (answer.status, answer.body) == (404, b"")
        assert not upstream.requests


async def test_an_unknown_model_in_the_short_form_is_answered_as_a_server_would(
    gateway: World,
) -> None:
    async with Upstream(echo) as upstream:
        await gateway.publish(iris([upstream]), iris([upstream], "wine"))
        answer = await ask(gateway.port, b"GET /v1/models/nope HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert answer.status == 404
        assert answer.body == b'{"error":"Model with name nope does not exist."}'
        assert answer.headers["x-kserve-local-models"] == "iris, wine"
        text = b'{"model":"nope"}'
        answer = await ask(
            gateway.port,
            b"POST /openai/v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(text), text),
        )
        assert answer.status == 404
        assert b'"type":"NotFoundError"' in answer.body
        assert answer.headers["x-kserve-local-models"] == "iris, wine"


async def test_figures_are_there_for_prometheus(gateway: World) -> None:
    async with Upstream(
        answering(response(b"bad", status="500 Internal Server Error"))
    ) as upstream:
        route = iris([upstream], "counted")
        await gateway.publish(route)
        raw = b"GET / HTTP/1.1\r\nHost: counted.default.example.com\r\n\r\n"
        assert (await ask(gateway.port, raw)).status == 500
        text = (await ask(gateway.port, b"GET /-/metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")).body
        labels = 'namespace="default",revision="counted-predictor-00001"'
        assert f'kserve_local_gateway_requests_total{{{labels},code="500"}} 1'.encode() in text
        assert f'_seconds_bucket{{{labels},le="+Inf"}} 1'.encode() in text
        await gateway.figures.until(
            lambda: any(
                s.target == "default/counted-predictor-00001" and s.errors == 1 and s.requests == 1
                for s in gateway.figures.stats
            )
        )
