"""Targets of Standard mode: nothing is held, and what goes wrong is told in Envoy's words."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio

from kserve_local.interfaces.routing import Endpoint
from tests.fakes.raw_upstream import Client, Connection, Upstream, answering, ask, echo, response
from tests.integration.gateway_world import HOST, World, iris, world

pytestmark = pytest.mark.asyncio(loop_scope="module")

GET = b"GET /v1/models HTTP/1.1\r\n" + HOST + b"\r\n"
RESET = b"upstream connect error or disconnect/reset before headers. reset reason: "


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def gateway() -> AsyncIterator[World]:
    """One gateway for the module; each test publishes its own table."""
    async with world() as one:
        yield one


async def serve(gateway: World, *upstreams: Upstream, limit: float = 60.0) -> None:
    """Publish `iris` at these replicas with a time limit on the route."""
    await gateway.publish(replace(iris(upstreams, plain=True), timeout=limit))


@pytest.mark.parametrize("state", ["starting", "failed", "ready"])
async def test_without_a_replica_a_request_is_refused_at_once(gateway: World, state: str) -> None:
    gateway.figures.pokes.clear()
    route = iris([], plain=True, state=state, reason="ModelLoadFailed: no such file")
    await gateway.publish(route)
    answer = await ask(gateway.port, GET)
    assert (answer.status, answer.body) == (503, b"no healthy upstream")
    assert b"x-kserve-local-hint: ModelLoadFailed: no such file" in answer.head
    assert gateway.figures.pokes == []


async def test_the_limit_is_the_routes(gateway: World) -> None:
    """Not the target's 300 s, and in other words than Knative's."""

    async def silent(connection: Connection) -> None:
        await connection.request()
        await connection.gone()

    async with Upstream(silent) as upstream:
        await serve(gateway, upstream, limit=0.3)
        async with Client(gateway.port) as client:
            for _ in range(2):
                answer = await client.ask(GET)
                assert (answer.status, answer.body) == (504, b"upstream request timeout")


async def test_a_late_limit_cuts_the_answer_short(gateway: World) -> None:
    async def handler(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\na\n\r\n")
        await connection.gone()

    async with Upstream(handler) as upstream:
        await serve(gateway, upstream, limit=0.3)
        answer = await ask(gateway.port, GET)
        assert (answer.status, answer.body, answer.whole) == (200, b"a\n", False)


async def test_no_limit_is_longer_than_the_targets(gateway: World) -> None:
    """As through an Ingress or a Service."""
    first = asyncio.Event()

    async def handler(connection: Connection) -> None:
        await connection.request()
        first.set()
        await asyncio.sleep(0.4)
        await connection.send(response(b"late"))

    async with Upstream(handler) as upstream:
        route = replace(iris([upstream], plain=True, timeout=0.1), timeout=0.0)
        await gateway.publish(route)
        answer = await ask(gateway.port, GET)
        assert (answer.status, answer.body) == (200, b"late")


async def test_a_replica_that_refuses_is_tried_elsewhere_and_again(gateway: World) -> None:
    nobody = Endpoint("pod-9", "127.0.0.1", 9)
    await gateway.publish(iris([], plain=True, endpoints=(nobody,)))
    for _ in range(2):
        answer = await ask(gateway.port, GET)
        assert answer.status == 503
        assert answer.body.startswith(RESET + b"remote connection failure")
    async with Upstream(echo) as upstream:
        living = Endpoint("pod-1", upstream.address, upstream.port)
        await gateway.publish(iris([], plain=True, endpoints=(nobody, living)))
        assert {(await ask(gateway.port, GET)).status for _ in range(10)} == {200}


async def test_a_replica_that_hangs_up_is_told_of(gateway: World) -> None:
    async def rude(connection: Connection) -> None:
        await connection.request()

    async with Upstream(rude) as upstream:
        await serve(gateway, upstream)
        post = b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\n\r\nx"
        answer = await ask(gateway.port, post)
        assert (answer.status, answer.body) == (503, RESET + b"connection termination")


async def test_explain_has_a_limit_of_its_own(gateway: World) -> None:
    async def silent(connection: Connection) -> None:
        await connection.request()
        await connection.gone()

    async with Upstream(silent) as slow, Upstream(answering(response(b"ok"))) as quick:
        route = replace(
            iris([quick], plain=True),
            timeout=30.0,
            explain=iris([slow], "other", plain=True).targets,
            explain_timeout=0.2,
        )
        await gateway.publish(route)
        explain = b"POST /v1/models/iris:explain HTTP/1.1\r\n" + HOST + b"Content-Length: 0\r\n\r\n"
        assert (await ask(gateway.port, explain)).status == 504
        assert (await ask(gateway.port, GET)).body == b"ok"


async def test_a_services_own_address_leads_to_it(gateway: World) -> None:
    """By the address alone, and by the name that it has within its namespace."""
    async with Upstream(answering(response(b"stable"))) as upstream:
        route = replace(iris([upstream], plain=True), hosts=("iris-predictor.default",), path="")
        other = iris([], "other", plain=True)
        address = "127.65.254.7"
        await gateway.publish(other, route, listen={address: "iris-predictor.default"})
        for host in (address, "iris-predictor", "anything.else"):
            data = f"GET /v1/models/other HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
            assert (await _at(address, data)).body == b"stable"


async def _at(address: str, data: bytes) -> object:
    async with asyncio.timeout(20):
        while True:
            for port in (80, 61080):
                try:
                    return await ask(port, data, address)
                except OSError:
                    continue
            await asyncio.sleep(0.02)
