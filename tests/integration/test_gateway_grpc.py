"""gRPC through a real gateway process, with real clients and servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
import pytest

from kserve_local.gateway import h2_frames as f
from kserve_local.gateway import h2_headers
from kserve_local.interfaces.routing import Endpoint, Route
from tests.fakes.raw_upstream import Client, Connection, Upstream
from tests.fakes.rpc_upstream import LARGE, SERVICE, RpcUpstream
from tests.integration.gateway_world import REVISION, World, iris, world

HOST = "iris.default.example.com"


def route(*upstreams: RpcUpstream, name: str = "iris", **fields: Any) -> Route:
    """Return a service's route whose replicas speak gRPC on a port of their own."""
    places = tuple(Endpoint(f"pod-{u.port}", u.address, 1, grpc_port=u.port) for u in upstreams)
    return iris((), name=name, endpoints=places, **fields)


@asynccontextmanager
async def client(own: World, authority: str = HOST) -> AsyncIterator[grpc.aio.Channel]:
    """Give a channel to the gateway under a service's host name."""
    options = [
        ("grpc.max_receive_message_length", LARGE),
        ("grpc.max_send_message_length", LARGE),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if authority:
        options.append(("grpc.default_authority", authority))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{own.port}", options=options) as channel:
        yield channel


def unary(channel: grpc.aio.Channel, method: str, service: str = SERVICE) -> Any:
    return channel.unary_unary(f"/{service}/{method}")


@pytest.mark.parametrize("size", [0, 1, 1000, 16384, 70_000, 1_000_000, 20_000_000])
async def test_messages_of_any_size_pass_unchanged(size: int):
    message = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    async with world() as own, RpcUpstream() as upstream, client(own) as channel:
        await own.publish(route(upstream))
        assert await unary(channel, "Echo")(message, timeout=60) == message


async def test_large_answers_use_up_no_window():
    """What still waits for the client when the replica has ended comes back, too."""
    async with world() as own, RpcUpstream() as upstream, client(own) as channel:
        await own.publish(route(upstream))
        message = b"m" * 5_000_000
        for _ in range(60):
            assert await unary(channel, "Echo")(message, timeout=60) == message


@asynccontextmanager
async def calls_unread(own: World, count: int) -> AsyncIterator[Client]:
    """Begin calls with large answers, of which the client takes no more than ten bytes."""
    head = h2_headers.write(
        [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", f"/{SERVICE}/Repeat".encode()),
            (b":authority", HOST.encode()),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
        ]
    )
    message = b"\x03" + b"m" * 1_000_000
    data = b"\0" + len(message).to_bytes(4, "big") + message
    pieces = [data[n : n + 16384] for n in range(0, len(data), 16384)]
    async with Client(own.port) as raw:
        await raw.send(f.PREFACE + f.settings({f.INITIAL_WINDOW_SIZE: 10}))
        answered = 0
        reader = f.FrameReader(f.MAX_FRAME)
        for n in range(count):
            await raw.send(f.headers(2 * n + 1, head, end=False, max_frame=16384))
            frames = [f.frame(f.DATA, 0, 2 * n + 1, piece) for piece in pieces]
            await raw.send(b"".join(frames) + f.frame(f.DATA, f.END_STREAM, 2 * n + 1))
            async with asyncio.timeout(20):
                while answered <= n:
                    for kind, _, _, _ in reader.feed(await raw.reader.read(65536)):
                        answered += kind == f.DATA
        yield raw


async def test_answers_that_nobody_waits_for_use_up_no_window():
    async with world() as own, RpcUpstream() as upstream, client(own) as channel:
        await own.publish(route(upstream))
        for _ in range(3):
            async with calls_unread(own, 10):
                pass
        message = b"m" * 1_000_000
        assert await unary(channel, "Echo")(message, timeout=60) == message


async def test_a_client_that_does_not_read_holds_up_no_others():
    async with world() as own, RpcUpstream() as upstream, client(own) as channel:
        await own.publish(route(upstream))
        async with calls_unread(own, 24):
            message = b"m" * 1_000_000
            assert await unary(channel, "Echo")(message, timeout=60) == message


async def test_messages_that_are_never_passed_on_use_up_no_window():
    async with world() as own, RpcUpstream() as upstream, client(own) as channel:
        await own.publish(route(state="zero", timeout=0.1))
        message = b"m" * 900_000
        for _ in range(25):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await unary(channel, "Echo")(message, timeout=60)
            assert raised.value.details() == "activator request timeout"
        await own.publish(route(upstream))
        assert await unary(channel, "Echo")(message, timeout=60) == message


async def test_metadata_and_trailers_pass_both_ways():
    async with world() as own, RpcUpstream() as upstream, client(own) as channel:
        await own.publish(route(upstream))
        sent = (("x-one", "1"), ("x-one", "2"), ("x-raw-bin", b"\x00\x01"))
        call = unary(channel, "Metadata")(b"", metadata=sent, timeout=20)
        told = (await call).decode().splitlines()
        assert [line for line in told if line.startswith(("x-one", "x-raw"))] == [
            "x-one=1",
            "x-one=2",
            "x-raw-bin=0001",
        ]
        assert "kserve-isvc-name=iris" in told
        assert "x-forwarded-for=127.0.0.1" in told
        assert ("x-first", "1") in tuple(await call.initial_metadata())
        assert ("x-told", "yes") in tuple(await call.trailing_metadata())


async def test_an_error_has_its_code_details_and_metadata():
    async with world() as own, RpcUpstream() as upstream, client(own) as channel:
        await own.publish(route(upstream))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await unary(channel, "Fail")(b"shape", timeout=20)
        error = raised.value
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert error.details() == "no shape: ä"
        assert dict(error.trailing_metadata() or ()) == {
            "x-why": "because",
            "x-raw-bin": b"\x00\xff",
        }
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await unary(channel, "Missing")(b"", timeout=20)
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_deadline_ends_the_call_at_the_replica_too():
    async with world() as own, RpcUpstream() as upstream, client(own) as channel:
        await own.publish(route(upstream))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await unary(channel, "Slow")(b"", timeout=0.5)
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await asyncio.wait_for(upstream.ended.wait(), 10)


async def test_a_cancelled_call_is_cancelled_at_the_replica():
    async with world() as own, RpcUpstream() as upstream, client(own) as channel:
        await own.publish(route(upstream))
        call = unary(channel, "Slow")(b"")
        await upstream.has_begun(1)
        call.cancel()
        await asyncio.wait_for(upstream.ended.wait(), 10)
        await own.figures.until(lambda: any(s.requests for s in own.figures.stats))


async def test_streams_go_both_ways():
    async with world() as own, RpcUpstream() as upstream, client(own) as channel:
        await own.publish(route(upstream))
        call = channel.stream_stream(f"/{SERVICE}/Count")(timeout=30)
        for size in (5, 300_000, 0):
            await call.write(b"x" * size)
            assert await call.read() == str(size).encode()
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        message = b"\x20" + b"m" * 1_000_000
        answers = [m async for m in channel.unary_stream(f"/{SERVICE}/Repeat")(message, timeout=60)]
        assert answers == [message] * 32


async def test_many_calls_share_a_connection():
    async with world() as own, RpcUpstream() as upstream, client(own) as channel:
        await own.publish(route(upstream))
        echo = unary(channel, "Echo")
        messages = [f"m{n}".encode() * (n % 50 + 1) for n in range(500)]
        assert await asyncio.gather(*(echo(m, timeout=60) for m in messages)) == messages


async def test_calls_are_held_until_a_replica_is_there():
    async with world() as own, RpcUpstream() as upstream, client(own) as channel:
        await own.publish(route(state="zero"))
        calls = [asyncio.ensure_future(unary(channel, "Echo")(b"x", timeout=60)) for _ in range(20)]
        await own.figures.until(lambda: REVISION in own.figures.pokes)
        await own.publish(route(upstream))
        assert await asyncio.gather(*calls) == [b"x"] * 20


async def test_a_concurrency_limit_holds_calls_back():
    async with world() as own, RpcUpstream() as upstream, client(own) as channel:
        await own.publish(route(upstream, container_concurrency=2))
        slow = [asyncio.ensure_future(unary(channel, "Slow")(b"", timeout=30)) for _ in range(4)]
        await upstream.has_begun(2)
        await asyncio.sleep(0.3)
        assert upstream.begun == 2
        for call in slow:
            call.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        assert await unary(channel, "Echo")(b"now", timeout=30) == b"now"


async def test_a_canary_gets_its_share_of_calls():
    async with world() as own, RpcUpstream() as one, RpcUpstream() as two, client(own) as channel:
        base = route(one)
        stable = replace(base.targets[0], percent=75)
        canary = replace(route(two).targets[0], id="default/iris-predictor-00002", percent=25)
        await own.publish(replace(base, targets=(stable, canary)))
        echo = unary(channel, "Echo")
        await asyncio.gather(*(echo(b"x", timeout=60) for _ in range(400)))
        assert one.begun + two.begun == 400
        assert 60 <= two.begun <= 140


@pytest.mark.parametrize(
    ("fields", "host", "code", "words"),
    [
        (
            {"state": "failed", "reason": "RevisionFailed: it broke"},
            HOST,
            grpc.StatusCode.UNAVAILABLE,
            "it broke",
        ),
        ({}, "other.default.example.com", grpc.StatusCode.UNIMPLEMENTED, "no service at other"),
    ],
    ids=["failed", "unknown"],
)
async def test_errors_of_the_gateway_are_statuses(
    fields: dict[str, Any], host: str, code: grpc.StatusCode, words: str
):
    async with world() as own, client(own, host) as channel:
        await own.publish(route(**fields))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await unary(channel, "Echo")(b"x", timeout=20)
        assert raised.value.code() is code
        assert words in (raised.value.details() or "")


async def test_a_replica_that_speaks_no_grpc_is_told():
    async with world() as own, client(own) as channel:
        gone = RpcUpstream()
        async with gone:
            pass
        await own.publish(route(gone))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await unary(channel, "Echo")(b"x", timeout=20)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        assert f"dial tcp 127.0.0.1:{gone.port}: connect: connection refused" in (
            raised.value.details() or ""
        )


async def test_a_call_to_a_replica_that_died_is_held_for_the_next():
    """The table may be behind: a refused connection is not an answer yet, as for REST."""
    async with world() as own, RpcUpstream() as upstream, client(own) as channel:
        async with RpcUpstream() as first:
            await own.publish(route(first))
            assert await unary(channel, "Echo")(b"x", timeout=60) == b"x"
        call = asyncio.ensure_future(unary(channel, "Echo")(b"y", timeout=60))
        await own.figures.until(lambda: REVISION in own.figures.pokes)
        await own.publish(route(state="starting"))
        await own.publish(route(upstream))
        assert await call == b"y"


async def test_a_grpc_port_may_listen_a_little_later():
    async with world() as own, client(own) as channel:
        upstream = RpcUpstream()
        async with upstream:
            pass
        await own.publish(route(upstream))
        call = asyncio.ensure_future(unary(channel, "Echo")(b"y", timeout=60))
        await own.figures.until(lambda: REVISION in own.figures.pokes)
        async with upstream:
            assert await call == b"y"


@pytest.mark.parametrize("says", [b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", b""])
async def test_a_port_that_speaks_another_protocol_is_told(says: bytes):
    async def replica(connection: Connection) -> None:
        await connection.head()
        await connection.send(says)

    async with Upstream(replica) as upstream, world() as own, client(own) as channel:
        place = Endpoint("pod-1", upstream.address, 1, grpc_port=upstream.port)
        await own.publish(iris((), endpoints=(place,)))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await unary(channel, "ModelInfer", "inference.GRPCInferenceService")(b"x", timeout=20)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        assert ("protocol error" in (raised.value.details() or "")) is bool(says)
        await own.figures.until(lambda: any(s.failure for s in own.figures.stats))
        failure = next(s.failure for s in own.figures.stats if s.failure)
        assert failure.startswith("ModelInfer: 502, ")
        assert f"(port {upstream.port} of Pod pod-1 does not speak HTTP/2" in failure


async def test_a_replica_that_stops_hands_its_calls_to_nobody_and_new_ones_to_the_next():
    async with world() as own, RpcUpstream() as second, client(own) as channel:
        first = RpcUpstream()
        await first.__aenter__()
        await own.publish(route(first))
        echo = unary(channel, "Echo")
        assert await echo(b"1", timeout=20) == b"1"
        await own.publish(route(second))
        await first.server.stop(None)
        assert await echo(b"2", timeout=20) == b"2"
        assert second.begun == 1


async def test_without_a_host_the_message_says_which_model():
    async with (
        world() as own,
        RpcUpstream() as one,
        RpcUpstream() as two,
        client(own, authority="") as channel,
    ):
        await own.publish(route(one), route(two, name="wine"))
        infer = unary(channel, "ModelInfer", "inference.GRPCInferenceService")
        # ModelInferRequest: model_name is field 1, id field 3.
        for name, count in (("wine", 3), ("iris", 2)):
            message = b"\x0a" + bytes((len(name),)) + name.encode() + b"\x1a\x01x" + b"y" * 100_000
            for _ in range(count):
                assert await infer(message, timeout=20) == message
        assert (one.begun, two.begun) == (2, 3)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await infer(b"\x0a\x04nope", timeout=20)
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "Model with name nope does not exist." in (raised.value.details() or "")
        told = tuple(raised.value.trailing_metadata() or ())
        assert ("x-kserve-local-models", "iris, wine") in told


async def test_a_token_is_demanded_of_calls_too():
    open_to_all = {"gateway_host": "0.0.0.0", "auth_token": "secret"}
    async with world(**open_to_all) as own, RpcUpstream() as upstream, client(own) as channel:
        await own.publish(route(upstream))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await unary(channel, "Metadata")(b"", timeout=20)
        assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
        passing = (("authorization", "Bearer secret"),)
        told = await unary(channel, "Metadata")(b"", metadata=passing, timeout=20)
        assert b"authorization" not in told


@pytest.mark.parametrize("limit", [0.4, 100.0], ids=["out of time", "cancelled"])
async def test_held_calls_that_end_leave_their_room_to_others(limit: float):
    """What came of their messages is given back to the connection, though nobody read it."""
    async with world() as own, RpcUpstream() as upstream, client(own) as channel:
        await own.publish(iris((), timeout=limit))
        message = b"x" * 900_000
        for _ in range(2):
            calls = [unary(channel, "Echo")(message, timeout=1.0) for _ in range(15)]
            failed = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(error, grpc.aio.AioRpcError) for error in failed)
        await own.publish(route(upstream))
        assert await unary(channel, "Echo")(message, timeout=60) == message
