"""Replicas that a debugger has stopped: their requests outlive every limit, others are as ever."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from kserve_local.interfaces.routing import Endpoint
from tests.fakes.raw_upstream import Connection, Upstream, answering, ask, response
from tests.integration.gateway_world import HOST, World, world

pytestmark = pytest.mark.asyncio(loop_scope="module")

GET = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"
LIMIT = 0.6
"""Seconds that a request may take here."""
LONGER = 1.5


class Breakpoint:
    """A replica that answers once it is let go on."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.reached = asyncio.Event()

    async def __call__(self, connection: Connection) -> None:
        await connection.request()
        self.reached.set()
        await self.go_on.wait()
        await connection.send(response(b"at last"))


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def gateway() -> AsyncIterator[World]:
    async with world() as one:
        yield one


async def test_a_request_at_a_stopped_replica_outlives_its_time_limit(gateway: World) -> None:
    stop = Breakpoint()
    async with Upstream(stop) as upstream:
        await gateway.serve(upstream, timeout=LIMIT)
        asked = asyncio.create_task(ask(gateway.port, GET))
        await stop.reached.wait()
        gateway.process.hold({"default/pod-0": []})
        done, _ = await asyncio.wait([asked], timeout=LONGER)
        assert not done
        gateway.process.hold({})
        stop.go_on.set()
        assert (await asked).body == b"at last"


async def test_the_limit_runs_on_once_the_replica_does(gateway: World) -> None:
    """What was left of it when the debugger stopped the replica is left, no more."""
    stop = Breakpoint()
    async with Upstream(stop) as upstream:
        await gateway.serve(upstream, timeout=LIMIT)
        asked = asyncio.create_task(ask(gateway.port, GET))
        await stop.reached.wait()
        gateway.process.hold({"default/pod-0": []})
        await asyncio.wait([asked], timeout=LONGER)
        gateway.process.hold({})
        assert (await asked).status == 504
        stop.go_on.set()


async def test_new_requests_go_to_the_others(gateway: World) -> None:
    stop = Breakpoint()
    async with Upstream(stop) as stopped, Upstream(answering(response(b"other"))) as other:
        await gateway.serve(stopped, other, timeout=LIMIT)
        gateway.process.hold({"default/pod-0": []})
        answers = [await ask(gateway.port, GET) for _ in range(20)]
        assert {a.body for a in answers} == {b"other"}
        assert not stopped.requests
        gateway.process.hold({})


async def test_without_others_they_wait_and_outlive_the_limit(gateway: World) -> None:
    async with Upstream(answering(response(b"here"))) as upstream:
        await gateway.serve(upstream, timeout=LIMIT)
        gateway.process.hold({"default/pod-0": []})
        asked = [asyncio.create_task(ask(gateway.port, GET)) for _ in range(3)]
        done, _ = await asyncio.wait(asked, timeout=LONGER)
        assert not done
        assert not upstream.requests
        gateway.process.hold({})
        assert [(await a).body for a in asked] == [b"here"] * 3


async def test_a_request_at_who_calls_a_stopped_replica_outlives_it_too(gateway: World) -> None:
    """A transformer waits for the predictor that stands."""
    stop = Breakpoint()
    async with Upstream(stop) as transformer:
        await gateway.serve(transformer, timeout=LIMIT)
        asked = asyncio.create_task(ask(gateway.port, GET))
        await stop.reached.wait()
        gateway.process.hold({"default/predictor-pod": ["default/pod-0"]})
        done, _ = await asyncio.wait([asked], timeout=LONGER)
        assert not done
        gateway.process.hold({})
        stop.go_on.set()
        assert (await asked).body == b"at last"


async def test_another_services_limit_runs(gateway: World) -> None:
    stop = Breakpoint()
    async with Upstream(stop) as upstream:
        await gateway.serve(upstream, timeout=LIMIT)
        gateway.process.hold({"other/pod-0": []})
        assert (await ask(gateway.port, GET)).status == 504
        stop.go_on.set()
        gateway.process.hold({})


async def test_a_new_gateway_is_told_what_stands(gateway: World) -> None:
    """It takes the place of one that crashed in the middle of a session."""
    async with Upstream(answering(response(b"other"))) as other:
        stopped = Endpoint("stopped", other.address, 1)
        listed = Endpoint("pod-0", other.address, other.port)
        await gateway.serve(endpoints=(stopped, listed), timeout=LIMIT)
        gateway.process.hold({"default/stopped": []})
        before = gateway.process.pid
        os.kill(before, signal.SIGKILL)
        async with asyncio.timeout(20):
            while gateway.process.pid in (0, before):  # noqa: ASYNC110  # nothing tells of it
                await asyncio.sleep(0.02)
        answers = [await ask(gateway.port, GET) for _ in range(10)]
        assert {a.body for a in answers} == {b"other"}
        gateway.process.hold({})
