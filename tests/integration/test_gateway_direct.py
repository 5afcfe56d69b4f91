"""The activator in and out of the path: who queues where, what the replica and the client see."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.fakes.raw_upstream import Client, Connection, Upstream, ask, echo, response
from tests.integration.gateway_world import HOST, World, world

pytestmark = pytest.mark.asyncio(loop_scope="module")

GET = b"GET /v1/models HTTP/1.1\r\n" + HOST + b"\r\n"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def gateway() -> AsyncIterator[World]:
    """One gateway for the module; each test publishes its own table."""
    async with world(max_held_requests=20) as one:
        yield one


@pytest.mark.parametrize("direct", [False, True])
async def test_13_a_replica_sees_whether_the_activator_is_in_the_path(
    gateway: World, direct: bool
) -> None:
    async with Upstream(echo) as upstream:
        await gateway.serve(upstream, direct=direct)
        forged = GET.replace(HOST, HOST + b"K-Proxy-Request: forged\r\n")
        await ask(gateway.port, GET)
        await ask(gateway.port, forged)
        expected = "" if direct else "activator"
        assert [r.header("k-proxy-request") for r in upstream.requests] == [expected] * 2


async def test_6_the_text_of_a_time_limit_on_the_direct_path(gateway: World) -> None:
    async def handler(connection: Connection) -> None:
        await connection.request()
        await connection.gone()

    async with Upstream(handler) as upstream:
        await gateway.serve(upstream, direct=True, timeout=0.3)
        answer = await ask(gateway.port, GET)
        assert (answer.status, answer.body) == (504, b"request timeout")


class Gate:
    """A replica that answers when it is told to."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def __call__(self, connection: Connection) -> None:
        upstream = connection.upstream
        while True:
            await connection.request()
            upstream.running += 1
            upstream.most = max(upstream.most, upstream.running)
            await self.open.wait()
            upstream.running -= 1
            await connection.send(response(b"ok"))


async def _queued(gateway: World, count: int) -> None:
    """Return once `count` requests are in flight."""
    async with asyncio.timeout(20):
        while True:
            text = (
                await ask(gateway.port, b"GET /-/metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
            ).body.decode()
            start = "kserve_local_gateway_in_flight{"
            found = [x for x in text.splitlines() if x.startswith(start)]
            if sum(int(x.rsplit(" ", 1)[1]) for x in found) == count:
                return
            await asyncio.sleep(0.02)


async def test_7_one_runs_ten_wait_and_the_twelfth_is_refused(gateway: World) -> None:
    gate = Gate()
    async with Upstream(gate) as upstream:
        await gateway.serve(upstream, direct=True, container_concurrency=1)
        asked = [asyncio.create_task(ask(gateway.port, GET)) for _ in range(11)]
        await _queued(gateway, 11)
        refused = await ask(gateway.port, GET)
        assert (refused.status, refused.body) == (503, b"pending request queue full\n")
        gate.open.set()
        assert [a.status for a in await asyncio.gather(*asked)] == [200] * 11
        assert upstream.most == 1


async def test_7_with_the_activator_in_the_path_none_is_refused(gateway: World) -> None:
    gate = Gate()
    async with Upstream(gate) as upstream:
        await gateway.serve(upstream, container_concurrency=1)
        asked = [asyncio.create_task(ask(gateway.port, GET)) for _ in range(40)]
        await _queued(gateway, 40)
        gate.open.set()
        assert [a.status for a in await asyncio.gather(*asked)] == [200] * 40
        assert upstream.most == 1


async def test_who_leaves_a_replicas_queue_frees_its_place(gateway: World) -> None:
    gate = Gate()
    async with Upstream(gate) as upstream:
        await gateway.serve(upstream, direct=True, container_concurrency=1)
        running = asyncio.create_task(ask(gateway.port, GET))
        await _queued(gateway, 1)
        leaving = [Client(gateway.port) for _ in range(10)]
        for client in leaving:
            await client.__aenter__()
            await client.send(GET)
        await _queued(gateway, 11)
        for client in leaving:
            await client.__aexit__(None, None, None)
        await _queued(gateway, 1)
        more = [asyncio.create_task(ask(gateway.port, GET)) for _ in range(10)]
        await _queued(gateway, 11)
        gate.open.set()
        assert [a.status for a in await asyncio.gather(running, *more)] == [200] * 11
        # Those who left never reached it.
        assert len(upstream.requests) == 11


async def test_who_waits_in_a_queue_is_served_when_the_activator_comes_back(
    gateway: World,
) -> None:
    gate = Gate()
    async with Upstream(gate) as upstream:
        await gateway.serve(upstream, direct=True, container_concurrency=1)
        asked = [asyncio.create_task(ask(gateway.port, GET)) for _ in range(5)]
        await _queued(gateway, 5)
        await gateway.serve(upstream, container_concurrency=1)
        asked += [asyncio.create_task(ask(gateway.port, GET)) for _ in range(5)]
        await _queued(gateway, 10)
        gate.open.set()
        assert [a.status for a in await asyncio.gather(*asked)] == [200] * 10
        assert upstream.most == 1


async def test_who_waits_at_a_replica_that_goes_is_served_by_it(gateway: World) -> None:
    """As queue-proxy, which serves on while it drains."""
    gate = Gate()
    async with Upstream(gate) as old, Upstream(echo) as new:
        await gateway.serve(old, direct=True, container_concurrency=1)
        asked = [asyncio.create_task(ask(gateway.port, GET)) for _ in range(4)]
        await _queued(gateway, 4)
        await gateway.serve(new, direct=True, container_concurrency=1)
        assert (await ask(gateway.port, GET)).status == 200
        gate.open.set()
        assert [a.status for a in await asyncio.gather(*asked)] == [200] * 4
        assert (len(old.requests), len(new.requests)) == (4, 1)


async def test_a_time_limit_in_a_queue_ends_the_wait(gateway: World) -> None:
    gate = Gate()
    async with Upstream(gate) as upstream:
        await gateway.serve(upstream, direct=True, container_concurrency=1, timeout=0.5)
        answers = await asyncio.gather(*(ask(gateway.port, GET) for _ in range(3)))
        assert {(a.status, a.body) for a in answers} == {(504, b"request timeout")}
        await _queued(gateway, 0)
        gate.open.set()


@pytest.mark.parametrize(
    ("limit", "picked"),
    [(1, [0] * 6), (3, [0] * 6), (4, [0, 1, 2] * 2)],
)
async def test_8_who_is_picked_hangs_on_the_limit(
    gateway: World, limit: int, picked: list[int]
) -> None:
    """Through the activator: up to 3 the first in order, from 4 on one after the other."""
    async with (
        Upstream(echo, "127.0.0.2") as one,
        Upstream(echo, "127.0.0.3") as two,
        Upstream(echo, "127.0.0.4") as three,
    ):
        await gateway.serve(three, one, two, container_concurrency=limit)
        found = []
        for _ in range(6):
            before = [len(u.requests) for u in (one, two, three)]
            await ask(gateway.port, GET)
            after = [len(u.requests) for u in (one, two, three)]
            found.append([b != a for b, a in zip(before, after, strict=True)].index(True))
        assert found == picked


async def test_8_without_a_limit_the_busier_of_two_is_never_picked(gateway: World) -> None:
    gate = Gate()
    async with Upstream(gate) as busy, Upstream(echo) as free:
        await gateway.serve(busy, free)
        asked: list[asyncio.Task[object]] = []
        while not busy.requests:
            asked.append(asyncio.create_task(ask(gateway.port, GET)))
            await asyncio.sleep(0.01)
        before = len(busy.requests)
        answers = Counter([(await ask(gateway.port, GET)).status for _ in range(20)])
        assert answers == {200: 20}
        assert len(busy.requests) == before
        gate.open.set()
        await asyncio.gather(*asked)
