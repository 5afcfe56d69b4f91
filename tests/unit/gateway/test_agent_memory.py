"""What agents keep of bodies is counted until nobody has it any more."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from kserve_local.gateway.agent import AgentHost
from kserve_local.gateway.logger import Delivery
from kserve_local.gateway.payload_file import PayloadFile
from kserve_local.interfaces.routing import Endpoint
from tests.fakes.raw_upstream import Connection, Upstream, response


class Near(asyncio.Protocol):
    """A data plane's end of a connection."""

    transport: Any
    answer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.answered = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.answer += data
        self.answered.set()


def post(body: bytes) -> bytes:
    return b"POST /v1/models/m:predict HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


async def test_a_batch_of_a_client_that_left_is_kept_until_the_model_has_answered(tmp_path: Path):
    asked, goes_on = asyncio.Event(), asyncio.Event()

    async def slow(connection: Connection) -> None:
        await connection.request()
        asked.set()
        await goes_on.wait()
        await connection.send(response(b'{"predictions": [1]}'))

    async def store(*_: object) -> None: ...

    async def inside() -> Any: ...

    sink = PayloadFile(tmp_path)
    delivery = Delivery(knows=lambda host: False, inside=inside, sink=sink)
    host = AgentHost(delivery, store, memory=100)
    async with Upstream(slow) as upstream:
        agent = ("--enable-batcher", "--max-batchsize", "1", "--max-latency", "1")
        endpoint = Endpoint("pod-1", upstream.address, upstream.port, agent=agent)
        body = b'{"instances": ["' + b"x" * 40 + b'"]}'
        first = await host.connect(endpoint, Near)
        first.transport.write(post(body))
        await asyncio.wait_for(asked.wait(), 20)
        first.transport.abort()
        second = await host.connect(endpoint, Near)
        second.transport.write(post(body))
        await asyncio.wait_for(second.answered.wait(), 20)
        assert second.answer.startswith(b"HTTP/1.1 503 ")
        goes_on.set()
        await host.drain(20)
        third = await host.connect(endpoint, Near)
        third.transport.write(post(body))
        await asyncio.wait_for(third.answered.wait(), 20)
        assert third.answer.startswith(b"HTTP/1.1 200 ")
        for near in (second, third):
            near.transport.abort()
        await host.drain(20)
