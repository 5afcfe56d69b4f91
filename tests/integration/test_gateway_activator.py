"""Requests that find no replica, too few, or one that died: held, released, bounded, told why."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio

from kserve_local.interfaces.routing import Endpoint, Target
from tests.fakes.raw_upstream import (
    Answer,
    Client,
    Connection,
    Upstream,
    answering,
    ask,
    echo,
    response,
)
from tests.integration.gateway_world import HOST, REVISION, World, endpoints, iris, world

pytestmark = pytest.mark.asyncio(loop_scope="module")

GET = b"GET /v1/models HTTP/1.1\r\n" + HOST + b"\r\n"
BODY = b"x" * 1000
POST = b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1000\r\n\r\n" + BODY


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def gateway() -> AsyncIterator[World]:
    """One gateway for the module; each test publishes its own table."""
    async with world(max_held_requests=20) as one:
        yield one


async def held(world: World, count: int) -> None:
    """Return once the gateway holds `count` requests."""
    async with asyncio.timeout(20):
        while True:
            text = (
                await ask(world.port, b"GET /-/metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
            ).body.decode()
            found = [x for x in text.splitlines() if x.startswith("kserve_local_gateway_held{")]
            if sum(int(x.rsplit(" ", 1)[1]) for x in found) == count:
                return
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("state", ["zero", "starting", "ready"])
async def test_a_request_without_a_replica_waits_for_it(gateway: World, state: str) -> None:
    """Whatever the table calls it: no replica yet means held, and the supervisor is told."""
    gateway.figures.pokes.clear()
    await gateway.serve(state=state)
    async with Upstream(echo) as upstream:
        asked = [asyncio.create_task(ask(gateway.port, POST)) for _ in range(5)]
        await held(gateway, 5)
        await gateway.figures.until(lambda: REVISION in gateway.figures.pokes)
        await gateway.serve(upstream)
        answers = await asyncio.gather(*asked)
        assert [a.status for a in answers] == [200] * 5
        assert all(a.body.endswith(BODY) for a in answers)


async def test_held_requests_count_as_demand(gateway: World) -> None:
    """Their concurrency is what scales the revision up."""
    gateway.figures.stats.clear()
    await gateway.serve(state="zero")
    async with Upstream(echo) as upstream:
        asked = [asyncio.create_task(ask(gateway.port, GET)) for _ in range(3)]
        await gateway.figures.until(
            lambda: any(s.held == 3 and s.average_concurrency > 0 for s in gateway.figures.stats)
        )
        await gateway.serve(upstream)
        await asyncio.gather(*asked)


async def test_too_many_held_requests_are_refused_politely(gateway: World) -> None:
    await gateway.serve(state="zero")
    async with Upstream(echo) as upstream:
        asked = [asyncio.create_task(ask(gateway.port, GET)) for _ in range(20)]
        await held(gateway, 20)
        answer = await ask(gateway.port, GET)
        assert answer.status == 503
        assert answer.body == b"pending request queue full\n"
        assert answer.headers["retry-after"]
        await gateway.serve(upstream)
        assert [a.status for a in await asyncio.gather(*asked)] == [200] * 20


async def test_a_held_client_that_leaves_is_forgotten(gateway: World) -> None:
    await gateway.serve(state="zero")
    async with Upstream(echo) as upstream:
        async with Client(gateway.port) as client:
            await client.send(GET)
            await held(gateway, 1)
        await held(gateway, 0)
        await gateway.serve(upstream)
        await ask(gateway.port, GET)
        assert len(upstream.requests) == 1


async def test_a_held_uploader_that_leaves_is_noticed(gateway: World) -> None:
    """Its upload is not read any further, so its leaving has to be asked for."""
    await gateway.serve(state="zero")
    async with Client(gateway.port) as client:
        size = 1 << 20
        client.writer.write(b"POST / HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n" % (HOST, size))
        await client.send(b"x" * (300 * 1024))
        await held(gateway, 1)
        client.writer.transport.abort()
        await held(gateway, 0)


async def test_held_requests_are_released_in_order(gateway: World) -> None:
    """containerConcurrency 1: one at a time, first come first served."""
    await gateway.serve(state="zero", container_concurrency=1)
    async with Upstream(echo) as upstream:
        clients = [Client(gateway.port) for _ in range(10)]
        for number, client in enumerate(clients):
            await client.__aenter__()
            await client.send(b"GET /%d HTTP/1.1\r\n%b\r\n" % (number, HOST))
            await held(gateway, number + 1)
        await gateway.serve(upstream, container_concurrency=1)
        for client in clients:
            assert (await client.answer()).status == 200
            await client.__aexit__(None, None, None)
        assert [r.target for r in upstream.requests] == [f"/{n}" for n in range(10)]


async def test_no_replica_gets_more_than_its_concurrency(gateway: World) -> None:
    async def handler(connection: Connection) -> None:
        upstream = connection.upstream
        while True:
            await connection.request()
            upstream.running += 1
            upstream.most = max(upstream.most, upstream.running)
            await asyncio.sleep(0.005)
            upstream.running -= 1
            await connection.send(response(b"ok"))

    async with Upstream(handler) as one, Upstream(handler) as two:
        await gateway.serve(one, two, container_concurrency=2)
        answers = await asyncio.gather(*(ask(gateway.port, GET) for _ in range(60)))
        assert {a.status for a in answers} == {200}
        assert (one.most, two.most) == (2, 2)


async def test_a_failed_revision_answers_at_once_with_the_reason(gateway: World) -> None:
    reason = "ModelLoadFailed: model.joblib: not a joblib file"
    await gateway.serve(state="failed", reason=reason)
    answer = await ask(gateway.port, GET)
    assert answer.status == 503
    assert answer.body == b'{"error":"ModelLoadFailed: model.joblib: not a joblib file"}'
    raw = b"POST /openai/v1/completions HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\n\r\n{}"
    answer = await ask(gateway.port, raw)
    assert b'"message":"ModelLoadFailed' in answer.body
    assert b'"code":"503"' in answer.body


async def test_requests_held_for_a_revision_that_fails_are_told(gateway: World) -> None:
    await gateway.serve(state="starting")
    asked = asyncio.create_task(ask(gateway.port, GET))
    await held(gateway, 1)
    await gateway.serve(state="failed", reason="it broke")
    assert (await asked).status == 503


async def test_requests_held_for_a_revision_that_goes_are_told(gateway: World) -> None:
    await gateway.serve(state="starting")
    asked = asyncio.create_task(ask(gateway.port, GET))
    await held(gateway, 1)
    await gateway.publish()
    answer = await asked
    assert answer.status == 404
    assert answer.body == (
        b"Error getting active endpoint: revision.serving.knative.dev "
        b'"iris-predictor-00001" not found\n'
    )


@pytest.mark.parametrize("path", ["/", "/v1/models/iris:predict", "/serving/default/iris/x"])
async def test_requests_held_before_the_first_revision_wait_for_it(
    gateway: World, path: str
) -> None:
    """The service was just created: what stood in for its revision gives way to the revision."""
    async with Upstream(echo) as upstream:
        await gateway.serve(id="default/iris-predictor", state="starting")
        raw = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nbody"
        asked = asyncio.create_task(ask(gateway.port, raw % path.encode()))
        await held(gateway, 1)
        await gateway.serve(state="starting")
        await held(gateway, 1)
        await gateway.serve(upstream)
        answer = await asked
        assert answer.status == 200
        assert answer.body.endswith(b"\r\n\r\nbody")
        assert len(upstream.requests) == 1


async def test_waiting_counts_against_the_time_limit(gateway: World) -> None:
    await gateway.serve(state="zero", timeout=0.3)
    answer = await ask(gateway.port, GET)
    assert (answer.status, answer.body) == (504, b"activator request timeout")


async def test_a_slow_replica_is_cut_off_and_told(gateway: World) -> None:
    gone = asyncio.Event()

    async def handler(connection: Connection) -> None:
        await connection.request()
        await connection.gone()
        gone.set()

    async with Upstream(handler) as upstream:
        await gateway.serve(upstream, timeout=0.3)
        async with Client(gateway.port) as client:
            for _ in range(2):
                answer = await client.ask(GET)
                assert (answer.status, answer.body) == (504, b"activator request timeout")
        async with asyncio.timeout(10):
            await gone.wait()


async def test_a_late_time_limit_is_glued_to_the_stream(gateway: World) -> None:
    """Upstream's behaviour: the status stays, the text follows the last event, the end is clean."""

    async def handler(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\na\n\r\n")
        await connection.gone()

    async with Upstream(handler) as upstream:
        await gateway.serve(upstream, timeout=0.3)
        answer = await ask(gateway.port, GET)
        assert (answer.status, answer.body) == (200, b"a\nactivator request timeout")
        assert answer.whole


async def test_a_late_time_limit_cuts_a_declared_answer_short(gateway: World) -> None:
    async def handler(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart")
        await connection.gone()

    async with Upstream(handler) as upstream:
        await gateway.serve(upstream, timeout=0.3)
        answer = await ask(gateway.port, GET)
        assert (answer.body, answer.whole) == (b"part", False)


async def test_a_replica_that_refuses_is_passed_over(gateway: World) -> None:
    """Dead, but still in the table: nobody fails as long as another runs."""
    async with Upstream(echo) as dead:
        pass
    async with Upstream(echo) as alive:
        await gateway.serve(dead, alive)
        answers = await asyncio.gather(*(ask(gateway.port, POST) for _ in range(30)))
        assert {a.status for a in answers} == {200}
        assert len(alive.requests) == 30


async def test_requests_wait_for_a_replica_that_comes_back(gateway: World) -> None:
    """The only replica refuses: held, and released as soon as it listens, table or not."""
    gateway.figures.pokes.clear()
    async with Upstream(echo) as gone:
        port = gone.port
    await gateway.serve(gone)
    asked = [asyncio.create_task(ask(gateway.port, POST)) for _ in range(5)]
    await held(gateway, 5)
    await gateway.figures.until(lambda: REVISION in gateway.figures.pokes)
    async with Upstream(echo, port=port) as back:
        answers: list[Answer] = await asyncio.gather(*asked)
        assert [a.status for a in answers] == [200] * 5
        assert len(back.requests) == 5


async def test_requests_wait_for_the_replica_that_takes_over(gateway: World) -> None:
    """The only replica died; a new table names its successor."""
    async with Upstream(echo) as gone:
        pass
    await gateway.serve(gone)
    asked = asyncio.create_task(ask(gateway.port, POST))
    await held(gateway, 1)
    async with Upstream(echo) as successor:
        await gateway.serve(successor)
        assert (await asked).status == 200


async def test_running_requests_survive_a_new_table(gateway: World) -> None:
    """Taken out of the table means no new requests, nothing else."""
    begun, go = asyncio.Event(), asyncio.Event()

    async def handler(connection: Connection) -> None:
        await connection.request()
        begun.set()
        await go.wait()
        await connection.send(response(b"old"))

    async with Upstream(handler) as old, Upstream(answering(response(b"new"))) as new:
        await gateway.serve(old)
        running = asyncio.create_task(ask(gateway.port, GET))
        await begun.wait()
        await gateway.serve(new)
        assert (await ask(gateway.port, GET)).body == b"new"
        go.set()
        assert (await running).body == b"old"


async def test_a_canary_gets_its_share(gateway: World) -> None:
    """A draw per request, so the share of 1000 requests at 10 % lies within 71 to 129."""
    async with (
        Upstream(answering(response(b"old"))) as old,
        Upstream(answering(response(b"new"))) as new,
    ):
        route = replace(
            iris([old]),
            targets=(
                Target("default/iris-predictor-00002", 10, endpoints([new])),
                Target("default/iris-predictor-00001", 90, endpoints([old])),
            ),
        )
        tag = replace(
            iris([old]),
            hosts=("prev-iris-predictor.default.example.com",),
            path="",
            models=(),
        )
        await gateway.publish(route, tag)
        async with Client(gateway.port) as client:
            seen = [(await client.ask(GET)).body for _ in range(1000)]
            assert 71 <= seen.count(b"new") <= 129
            raw = b"GET / HTTP/1.1\r\nHost: prev-iris-predictor.default.example.com\r\n\r\n"
            assert {(await client.ask(raw)).body for _ in range(20)} == {b"old"}


async def test_a_service_address_is_listened_on_where_it_may_be(gateway: World) -> None:
    """Port 80 of a Service's own address; without the privilege the table applies all the same."""
    address = "127.91.7.3"
    async with Upstream(echo) as upstream:
        route = iris([upstream])
        listen = {address: "iris.default.example.com"}
        await gateway.publish(route, listen=listen)
        await gateway.publish(route, listen=listen)
        async with asyncio.timeout(10):
            while address not in gateway.process.unbound:
                try:
                    answer = await ask(
                        80, b"GET / HTTP/1.1\r\nHost: iris-predictor\r\n\r\n", address
                    )
                except OSError:
                    await gateway.publish(route, listen=listen)
                    continue
                assert answer.status == 200
                assert upstream.requests[-1].header("host") == "iris-predictor"
                break


async def test_endpoints_in_one_pod_order(gateway: World) -> None:
    """containerConcurrency 1: the first replica by address is filled first."""
    async with Upstream(echo, "127.0.0.10") as ten, Upstream(echo, "127.0.0.9") as nine:
        found = tuple(Endpoint(u.address, u.address, u.port) for u in (ten, nine))
        route = iris([])
        target = replace(route.targets[0], endpoints=found, container_concurrency=1)
        await gateway.publish(replace(route, targets=(target,)))
        async with Client(gateway.port) as client:
            for _ in range(5):
                await client.ask(GET)
        assert (len(nine.requests), len(ten.requests)) == (5, 0)
