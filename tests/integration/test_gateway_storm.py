"""Many clients and replicas that misbehave at random, seeded: afterwards nothing is left over.

A request that is never counted out, a place never freed or a descriptor never closed shows only
under such a mixture, and would starve a revision hours later.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.fakes.raw_upstream import Client, Connection, Upstream, ask, response
from tests.integration.gateway_world import HOST, World, iris, world

SEED = 20260


def flaky(draw: random.Random) -> Upstream:
    """Return a replica that answers well most of the time."""

    async def handler(connection: Connection) -> None:
        while True:
            fate = draw.random()
            if fate < 0.05:
                await connection.head()
                connection.reset()
                return
            if fate < 0.15:
                # Early: the upload is still on its way.
                await connection.head()
                await connection.send(response(b"early", status="413 Payload Too Large"))
                return
            await connection.request()
            if fate < 0.25:
                await connection.send(
                    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
                )
                if draw.random() < 0.3:
                    return
                await connection.send(b"0\r\n\r\n")
            elif fate < 0.3:
                await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\nhello")
                return
            elif fate < 0.35:
                await connection.send(b"nonsense\r\n\r\n")
                return
            elif fate < 0.4:
                await connection.send(response(b"x" * 300_000))
            else:
                await connection.send(response(b"ok"))

    return Upstream(handler)


async def one_client(port: int, draw: random.Random) -> int:
    """Do something a client might do; return how many answers were whole."""
    whole = 0
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        async with Client(port) as client:
            for _ in range(draw.randrange(1, 6)):
                body = b"b" * draw.choice((0, 10, 1000, 100_000, 700_000))
                if draw.random() < 0.3:
                    raw = b"POST / HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\n\r\n" % HOST
                    raw += (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"
                else:
                    path = b"/v1/models/iris:predict" if draw.random() < 0.3 else b"/"
                    if path != b"/":
                        body = b'{"instances": [%b]}' % b",".join([b"1"] * (1 + len(body) // 9))
                    raw = b"POST %b HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n%b" % (
                        path,
                        HOST,
                        len(body),
                        body,
                    )
                fate = draw.random()
                if fate < 0.1:
                    client.writer.write(raw[: draw.randrange(len(raw))])
                    client.writer.transport.abort()
                    return whole
                client.writer.write(raw)
                if fate < 0.2:
                    await asyncio.sleep(draw.random() / 100)
                    client.writer.transport.abort()
                    return whole
                answer = await client.answer()
                whole += answer.whole
                if not answer.whole:
                    return whole
    return whole


async def gauges(one: World) -> dict[str, float]:
    """Return the gateway's own gauges."""
    raw = b"GET /-/metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    text = (await ask(one.port, raw)).body.decode()
    return {
        line.split(" ")[0].split("{")[0].removeprefix("kserve_local_gateway_"): float(
            line.rsplit(" ", 1)[1]
        )
        for line in text.splitlines()
        if line.startswith("kserve_local_gateway_")
    }


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


AGENT = (
    *("--enable-batcher", "--max-batchsize", "3", "--max-latency", "20"),
    *("--log-url", "http://sink.default", "--inference-service", "iris", "--namespace", "default"),
)


async def serve(
    one: World, upstreams: Sequence[Upstream], agent: Sequence[str], **fields: object
) -> None:
    """Publish the service; its Pods have an agent with these arguments, if any."""
    route = iris(upstreams, **fields)
    (target,) = route.targets
    endpoints = tuple(replace(endpoint, agent=tuple(agent)) for endpoint in target.endpoints)
    await one.publish(replace(route, targets=(replace(target, endpoints=endpoints),)))


@pytest.mark.parametrize(
    ("concurrency", "agent"),
    [(0, ()), (2, ()), (0, AGENT), (2, AGENT)],
    ids=["free", "limited", "free-agent", "limited-agent"],
)
async def test_a_storm_leaves_nothing_behind(concurrency: int, agent: tuple[str, ...]) -> None:
    draw = random.Random(SEED + concurrency)
    async with world(max_held_requests=1000) as one:
        await one.publish()
        before = descriptors(one.process.pid)
        async with flaky(draw) as first, flaky(draw) as second:
            await serve(one, (first, second), agent, container_concurrency=concurrency)
            answered = 0
            for _ in range(8):
                answered += sum(
                    await asyncio.gather(*(one_client(one.port, draw) for _ in range(40)))
                )
                # The table changes under it, as it does all the time.
                shown = draw.choice(((first, second), (first,), (second,), (second, first)))
                await serve(one, shown, agent, container_concurrency=concurrency)
            assert answered > 200
            await one.publish()
        async with asyncio.timeout(30):
            while True:
                seen = await gauges(one)
                left = descriptors(one.process.pid)
                if not seen.get("in_flight") and not seen.get("held") and left <= before + 1:
                    break
                await asyncio.sleep(0.05)
        assert seen["client_connections"] == 1
        assert "Traceback" not in one.log()
        assert one.process.restarts == 0
