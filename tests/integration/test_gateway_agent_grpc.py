"""gRPC calls to a replica whose Pod has an agent: what a sink, a model and a client get.

The expectations are those of KServe's own handler between Go's reverse proxies, with real clients
and servers at its ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import grpc
import pytest
import pytest_asyncio

from kserve_local.interfaces.routing import Route
from tests.fakes.raw_upstream import Request, Upstream
from tests.fakes.rpc_upstream import SERVICE, RpcUpstream
from tests.integration.gateway_world import World, world
from tests.integration.test_gateway_agent import (
    REQUEST,
    RESPONSE,
    SINK,
    batching,
    by_type,
    logging,
    until,
    url_of,
)
from tests.integration.test_gateway_grpc import client, route, unary

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def gateway() -> AsyncIterator[World]:
    """One gateway for the module; each test publishes its own table."""
    async with world() as one:
        yield one


def with_agent(upstream: RpcUpstream, *args: str) -> Route:
    """Return the route of a service whose Pod has an agent with these arguments."""
    found = route(upstream)
    (target,) = found.targets
    (endpoint,) = target.endpoints
    return replace(found, targets=(replace(target, endpoints=(replace(endpoint, agent=args),)),))


def framed(*messages: bytes) -> bytes:
    """Return messages as gRPC frames them, not compressed."""
    return b"".join(b"\0" + len(m).to_bytes(4, "big") + m for m in messages)


async def ended(sink: Upstream, id: str) -> list[Request]:
    """Return the sink's events up to the one of a request that came after what is looked for."""
    async with asyncio.timeout(20):
        while not any(e.header("ce-id") == id for e in sink.requests):  # noqa: ASYNC110  # as above
            await asyncio.sleep(0.01)
    return sink.requests


async def test_both_events_of_a_call(gateway: World) -> None:
    """The frames as they are, the client's content type for both, metadata in Go's spelling."""
    async with RpcUpstream() as upstream, Upstream(SINK) as sink, client(gateway) as channel:
        args = logging(url_of(sink), "--metadata-headers", "X-Tenant")
        await gateway.publish(with_agent(upstream, *args))
        sent = (("ce-id", "mine"), ("x-tenant", "a"), ("x-tenant", "b"))
        assert await unary(channel, "Echo")(b"hello", metadata=sent, timeout=20) == b"hello"
        events = by_type(await until(sink, 2))
        for kind in (REQUEST, RESPONSE):
            event = events[kind]
            assert event.body == framed(b"hello")
            assert event.header("ce-id") == "mine"
            assert event.header("content-type") == "application/grpc"
            assert event.header("ce-metadata") == '{"X-Tenant":["a","b"]}'
            assert event.header("ce-inferenceservicename") == "iris"


async def test_trailers_and_an_error_pass_and_its_answer_is_logged_empty(gateway: World) -> None:
    async with RpcUpstream() as upstream, Upstream(SINK) as sink, client(gateway) as channel:
        await gateway.publish(with_agent(upstream, *logging(url_of(sink))))
        call = unary(channel, "Metadata")(b"", timeout=20)
        told = (await call).decode().splitlines()
        assert "kserve-isvc-name=iris" in told
        assert ("x-told", "yes") in tuple(await call.trailing_metadata())
        await until(sink, 2)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await unary(channel, "Fail")(b"shape", metadata=(("ce-id", "bad"),), timeout=20)
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert raised.value.details() == "no shape: ä"
        events = by_type((await until(sink, 4))[2:])
        assert events[REQUEST].body == framed(b"shape")
        assert events[RESPONSE].body == b""
        assert events[RESPONSE].header("ce-id") == "bad"


@pytest.mark.parametrize(("mode", "kinds"), [("request", [REQUEST]), ("response", [RESPONSE])])
async def test_one_side_alone(gateway: World, mode: str, kinds: list[str]) -> None:
    async with RpcUpstream() as upstream, Upstream(SINK) as sink, client(gateway) as channel:
        await gateway.publish(with_agent(upstream, *logging(url_of(sink), mode=mode)))
        for id in ("one", "two"):
            await unary(channel, "Echo")(b"x", metadata=(("ce-id", id),), timeout=20)
        assert [e.header("ce-type") for e in await until(sink, 2)] == kinds * 2


async def test_a_stream_is_one_event_a_side(gateway: World) -> None:
    """All that the client sends goes on at once; what the model sends passes as it comes."""
    async with RpcUpstream() as upstream, Upstream(SINK) as sink, client(gateway) as channel:
        await gateway.publish(with_agent(upstream, *logging(url_of(sink))))
        count = channel.stream_stream(f"/{SERVICE}/Count")
        answers = [a async for a in count(iter([b"a", b"bcd"]), timeout=20)]
        assert answers == [b"1", b"3"]
        events = by_type(await until(sink, 2))
        assert events[REQUEST].body == framed(b"a", b"bcd")
        assert events[RESPONSE].body == framed(b"1", b"3")
        repeat = channel.unary_stream(f"/{SERVICE}/Repeat")
        assert [a async for a in repeat(b"\3x", timeout=20)] == [b"\3x"] * 3
        events = by_type((await until(sink, 4))[2:])
        assert events[RESPONSE].body == framed(b"\3x", b"\3x", b"\3x")


async def test_a_client_that_waits_before_it_ends_its_side_waits_in_vain(gateway: World) -> None:
    """As on a cluster; nothing of the call reaches the model or the sink."""
    async with RpcUpstream() as upstream, Upstream(SINK) as sink, client(gateway) as channel:
        await gateway.publish(with_agent(upstream, *logging(url_of(sink))))
        call = channel.stream_stream(f"/{SERVICE}/Count")(timeout=1)
        await call.write(b"a")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call.read()
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await unary(channel, "Echo")(b"x", metadata=(("ce-id", "after"),), timeout=20)
        events = await ended(sink, "after")
        assert {e.header("ce-id") for e in events} == {"after"}


async def test_large_messages_one_after_the_other(gateway: World) -> None:
    """More than the windows of a connection, and each given back once."""
    async with RpcUpstream() as upstream, Upstream(SINK) as sink, client(gateway) as channel:
        await gateway.publish(with_agent(upstream, *logging(url_of(sink), mode="request")))
        message = bytes(range(256)) * 40_000
        for count in range(1, 5):
            assert await unary(channel, "Echo")(message, timeout=60) == message
            assert (await until(sink, count))[-1].body == framed(message)


async def test_a_cancelled_call_is_not_logged(gateway: World) -> None:
    """Neither one whose client's side has not ended, nor the answer of one that runs."""
    async with RpcUpstream() as upstream, Upstream(SINK) as sink, client(gateway) as channel:
        await gateway.publish(with_agent(upstream, *logging(url_of(sink))))
        half = channel.stream_stream(f"/{SERVICE}/Count")(metadata=(("ce-id", "half"),))
        await half.write(b"a" * 100_000)
        half.cancel()
        slow = unary(channel, "Slow")(b"x", metadata=(("ce-id", "slow"),))
        await upstream.has_begun(1)
        slow.cancel()
        async with asyncio.timeout(20):
            await upstream.ended.wait()
        await unary(channel, "Echo")(b"x", metadata=(("ce-id", "after"),), timeout=20)
        await until(sink, 3)
        found = [(e.header("ce-id"), e.header("ce-type")) for e in sink.requests]
        assert sorted(found) == [("after", REQUEST), ("after", RESPONSE), ("slow", REQUEST)]


async def test_the_kubelet_is_not_logged(gateway: World) -> None:
    async with RpcUpstream() as upstream, Upstream(SINK) as sink, client(gateway) as channel:
        await gateway.publish(with_agent(upstream, *logging(url_of(sink))))
        options = [
            ("grpc.primary_user_agent", "kube-probe/1.33"),
            ("grpc.default_authority", "iris.default.example.com"),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        address = f"127.0.0.1:{gateway.port}"
        async with grpc.aio.insecure_channel(address, options=options) as probing:
            assert await unary(probing, "Echo")(b"probe", timeout=20) == b"probe"
        await unary(channel, "Echo")(b"x", metadata=(("ce-id", "after"),), timeout=20)
        events = await ended(sink, "after")
        assert {e.header("ce-id") for e in events} == {"after"}


async def test_a_batcher_lets_calls_pass(gateway: World) -> None:
    async with RpcUpstream() as upstream, client(gateway) as channel:
        await gateway.publish(with_agent(upstream, *batching(2, 60_000)))
        assert await unary(channel, "Echo")(b"x", timeout=20) == b"x"


async def test_a_call_whose_replica_goes_while_it_is_read_gets_another(gateway: World) -> None:
    async with RpcUpstream() as gone, RpcUpstream() as other, Upstream(SINK) as sink:
        args = logging(url_of(sink))
        await gateway.publish(with_agent(gone, *args))
        async with client(gateway) as channel:
            call = channel.stream_stream(f"/{SERVICE}/Count")(timeout=20)
            await call.write(b"abc")
            await gateway.publish(with_agent(other, *args))
            await gone.server.stop(0)
            await call.done_writing()
            assert await call.read() == b"3"
            assert await call.read() is grpc.aio.EOF
        assert by_type(await until(sink, 2))[REQUEST].body == framed(b"abc")
