"""KServe's agent of a Pod, inside the gateway: between the data plane and the Pod's replica.

On a cluster the agent is a container before the model server. Here each connection of the data
plane to a replica that has one passes an `AgentConnection`, over a pipe, so that
holding, limits, time and cancelling are as for every other replica, and requests for other
replicas never see it. gRPC calls have connections of their own, and `rpc_log` as their logger. It
reads bodies whole where the agent does (every request with the logger,
`:predict` with the batcher), and copies answers for the logger while they pass (traffic.md section
6; order: logger, batcher, replica).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import quote, unquote

from kserve_local.gateway import pipe
from kserve_local.gateway.agent_request import AgentRequest, AnswerCopy
from kserve_local.gateway.agent_settings import LoggerSettings, read_args
from kserve_local.gateway.batcher import (
    OFF_LOOP,
    PREDICT,
    Answer,
    BadBody,
    Batcher,
    read_instances,
)
from kserve_local.gateway.blobs import BlobBatches, Store
from kserve_local.gateway.chunked import ChunkError
from kserve_local.gateway.errors import PHRASES
from kserve_local.gateway.logger import Complaints, Delivery, PayloadLogger, is_storage
from kserve_local.gateway.outbound import Courier, OutboundError, Place
from kserve_local.gateway.payload import REQUEST, RESPONSE, Payload
from kserve_local.gateway.pipe import news_of
from kserve_local.gateway.upstream import CONNECT_TIMEOUT
from kserve_local.interfaces.routing import Endpoint

logger = logging.getLogger(__name__)

MEMORY = 1024 * 1024 * 1024
"""Bytes of bodies in all agents together; as much as one agent may use on a cluster."""
TOO_MUCH = b"more than %d MiB of bodies in agents at once\n" % (MEMORY // 2**20)
TEXT = "text/plain; charset=utf-8"

Key = tuple[str, str, int]
P = TypeVar("P", bound=asyncio.Protocol)


class TooMuch(Exception):
    """All that agents keep at this moment is too much."""


class AgentHost:
    """All agents of this gateway.

    Args:
        delivery: Delivers events over HTTP.
        store: Takes objects for a bucket.
        memory: Bytes of bodies that may be kept at once.
    """

    def __init__(self, delivery: Delivery, store: Store, *, memory: int = MEMORY) -> None:
        self.delivery = delivery
        self.store = store
        self._memory = memory
        self._kept = 0
        self._agents: dict[Key, Agent] = {}
        self._work: set[asyncio.Task[None]] = set()

    async def connect(self, endpoint: Endpoint, near: Callable[[], P]) -> P:
        """Return a new connection to a replica, by way of its agent.

        Args:
            near: Makes the protocol at our end.

        Raises:
            OSError, TimeoutError: The replica refuses.
        """
        connection = AgentConnection(self.agent_of(endpoint))
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: connection.replica, endpoint.address, endpoint.port)
        protocol = near()
        pipe.connect(protocol, connection)
        return protocol

    def agent_of(self, endpoint: Endpoint) -> Agent:
        """Return the agent of a replica that has one."""
        key = (endpoint.pod, endpoint.address, endpoint.port)
        agent = self._agents.get(key)
        if agent is None or tuple(agent.endpoint.agent) != tuple(endpoint.agent):
            agent = self._agents[key] = Agent(endpoint, self)
        return agent

    def keep_only(self, keys: Iterable[Key]) -> None:
        """Let the agents go whose replicas are not in the table any more."""
        if not self._agents:
            return
        for key in self._agents.keys() - set(keys):
            self._agents.pop(key).close()

    def keep(self, size: int) -> None:
        """Count bytes in.

        Raises:
            TooMuch: There is no room for them.
        """
        if self._kept + size > self._memory:
            raise TooMuch
        self._kept += size

    def let_go(self, size: int) -> None:
        """Count bytes out."""
        self._kept -= size

    def spawn(self, work: Awaitable[None], name: str) -> None:
        """Keep a piece of work until it ends."""
        task = asyncio.ensure_future(work)
        task.set_name(name)
        self._work.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._work.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("%s failed", task.get_name(), exc_info=error)

    async def drain(self, grace: float) -> None:
        """Deliver what waits, for at most `grace` seconds; the rest is lost."""
        for agent in self._agents.values():
            agent.close()
        if self._work:
            await asyncio.wait(self._work, timeout=grace)
        left = list(self._work)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


class Agent:
    """One Pod's agent.

    Attributes:
        logs: What is logged, None without a logger.
        batcher: None without one.
    """

    def __init__(self, endpoint: Endpoint, host: AgentHost) -> None:
        self.endpoint = endpoint
        self.host = host
        settings = read_args(endpoint.agent)
        self.logs: LoggerSettings | None = settings.logger
        self.batcher: Batcher | None = None
        self._events: PayloadLogger | None = None
        self._blobs: BlobBatches | None = None
        self._complaints = Complaints()
        if settings.batcher is not None:
            self._courier = courier = Courier()
            self.batcher = Batcher(
                settings.batcher, self._ask, host.spawn, courier.close, self._complain
            )
        if self.logs is not None and is_storage(self.logs.url):
            self._blobs = BlobBatches(self.logs, endpoint.pod, host.store, host.spawn)
        elif self.logs is not None:
            self._events = PayloadLogger(host.delivery.send, host.spawn)

    def wants(self, kind: str) -> bool:
        """Whether events of this kind (`REQUEST`, `RESPONSE`) are logged."""
        logs = self.logs
        return logs is not None and (logs.mode == "all" or kind.endswith(f".{logs.mode}"))

    def log(
        self,
        kind: str,
        id: str,
        content_type: str,
        body: bytes,
        metadata: Mapping[str, Sequence[str]],
        moment: datetime,
    ) -> None:
        """Queue an event if its kind is logged; never waits."""
        logs = self.logs
        if logs is None or not self.wants(kind):
            return
        payload = Payload(logs, kind, id, content_type, body, metadata, moment)
        if self._events is not None:
            self._events.put(payload)
        elif self._blobs is not None:
            self._blobs.put(payload)

    def close(self) -> None:
        """End what waits for more."""
        if self._blobs is not None:
            self._blobs.close()

    def _complain(self, text: str) -> None:
        self._complaints.tell(self.endpoint.pod, f"{self.endpoint.pod}: {text}")

    async def _ask(self, path: str, body: bytes) -> Answer:
        """Ask the model, as Go's test request asks it (`httptest.NewRequest`)."""
        endpoint = self.endpoint
        place = Place(endpoint.address, endpoint.port, "example.com")
        try:
            reply = await self._courier.post(place, path, [("X-Forwarded-For", "192.0.2.1")], body)
        except OutboundError as error:
            return Answer(502, f"{error}\n".encode())
        return Answer(reply.status, reply.body)


class _Replica(asyncio.Protocol):
    """The connection to the replica; what is written before there is one waits for it."""

    def __init__(self, owner: AgentConnection) -> None:
        self._owner: AgentConnection | None = owner
        self._waiting: list[bytes] = []
        self._news: Callable[[], object] | None = None
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # always a full transport here
        waiting, self._waiting = self._waiting, []
        if self._owner is None:
            self.abort()
        elif waiting:
            self.write(b"".join(waiting))

    def data_received(self, data: bytes) -> None:
        if self._owner is not None:
            self._owner.answered(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.replica_lost()

    def pause_writing(self) -> None:
        if self._owner is not None:
            self._owner.pause_reading()

    def resume_writing(self) -> None:
        if self._owner is not None:
            self._owner.resume_reading()

    def is_open(self) -> bool:
        """Nothing to read means that the replica has not closed."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return False
        if self._news is None:
            self._news = news_of(transport)
        return not self._news()

    def write(self, data: bytes) -> None:
        """Send bytes of a request."""
        if self.transport is None:
            self._waiting.append(data)
        elif not self.transport.is_closing():
            self.transport.write(data)

    def leave(self) -> None:
        """End the connection; its owner hears no more of it."""
        self._owner = None
        self.abort()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class AgentConnection(asyncio.Protocol):
    """One connection from the data plane, one request at a time."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self.replica = _Replica(self)
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._request: AgentRequest | None = None
        self._copy: AnswerCopy | None = None
        self._in_batch = False
        self._tunnel = False
        self._kept = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # always a full transport here

    def connection_lost(self, exc: Exception | None) -> None:
        """The caller left. What is in a batch stays in it."""
        self._transport = None
        self._let_go()
        self._copy = None
        self.replica.leave()

    # From the data plane

    def data_received(self, data: bytes) -> None:
        if self._tunnel:
            self.replica.write(data)
            return
        request = self._request
        if request is None or request.is_whole:
            self._buffer += data
            end = self._buffer.find(b"\r\n\r\n") + 4
            if end < 4:
                return
            head, data, self._buffer = self._buffer[:end], self._buffer[end:], b""
            request = self._request = self._begin(head)
        try:
            self._feed(request, data)
        except ChunkError:
            self.abort()
        except TooMuch:
            self._answer(request, 503, TOO_MUCH, close=True)

    def _begin(self, head: bytes) -> AgentRequest:
        agent = self._agent
        request = AgentRequest(head)
        request.logged = agent.logs is not None and not request.is_probe
        path = unquote(request.path).encode("utf-8", "replace")
        request.batched = agent.batcher is not None and path.endswith(PREDICT)
        if not request.is_kept:
            self._copy = AnswerCopy(is_head=request.is_head) if request.upgrades else None
            self._send(head)
        return request

    def _send(self, data: bytes) -> None:
        """Send the beginning of a request, over a new connection if the kept one has ended."""
        if not self.replica.is_open():
            self.replica.leave()
            self.replica = replica = _Replica(self)
            self._agent.host.spawn(self._dial(replica), "agent-dial")
        self.replica.write(data)

    async def _dial(self, replica: _Replica) -> None:
        endpoint = self._agent.endpoint
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await asyncio.get_running_loop().create_connection(
                    lambda: replica, endpoint.address, endpoint.port
                )
        except (OSError, TimeoutError):
            replica.connection_lost(None)

    def _feed(self, request: AgentRequest, data: bytes) -> None:
        size = request.feed(data)
        if not request.is_kept:
            if data:
                self.replica.write(data)
            return
        self._agent.host.keep(size)
        self._kept += size
        if request.is_whole:
            self._run(request)

    def _run(self, request: AgentRequest) -> None:
        """Log the request, and let the batch or the replica have it."""
        body = request.body()
        if request.logged:
            request.prepare(self._metadata_names())
            self._log(request, REQUEST, body, request.arrived)
        if request.batched:
            self._batch(request, body)
            return
        self._copy = AnswerCopy(is_head=request.is_head)
        self._send(request.framed())
        self._let_go()

    def _metadata_names(self) -> frozenset[str]:
        logs = self._agent.logs
        return logs.headers if logs is not None else frozenset()

    def _batch(self, request: AgentRequest, body: bytes) -> None:
        self._in_batch = True
        if len(body) > OFF_LOOP:
            self._agent.host.spawn(self._batch_large(request, body), "agent-batch")
            return
        try:
            self._put(request, read_instances(body), len(body))
        except BadBody as error:
            self._refuse(request, error)

    async def _batch_large(self, request: AgentRequest, body: bytes) -> None:
        try:
            instances = await asyncio.to_thread(read_instances, body)
        except BadBody as error:
            self._refuse(request, error)
        else:
            self._put(request, instances, len(body))

    def _refuse(self, request: AgentRequest, error: BadBody) -> None:
        self._in_batch = False
        self._answer(request, 400, f"{error}\n".encode(), refusal=True)

    def _put(self, request: AgentRequest, instances: list[Any], size: int) -> None:
        batcher = self._agent.batcher
        assert batcher is not None
        path = quote(unquote(request.path), safe="/:@!$&'()*+,;=~")
        # The batch keeps them, also for a client that leaves: a model that hangs frees nothing.
        kept, self._kept = self._kept, 0

        def done(answer: bytes) -> None:
            self._agent.host.let_go(kept)
            self._in_batch = False
            self._answer(request, 200, answer)

        batcher.put(path, instances, done, size=size)

    def _answer(
        self,
        request: AgentRequest,
        status: int,
        body: bytes,
        *,
        refusal: bool = False,
        close: bool = False,
    ) -> None:
        """Write an answer of the agent's own.

        Args:
            refusal: By Go's `http.Error`.
        """
        self._let_go()
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        lines = [
            b"HTTP/1.1 %d %b" % (status, PHRASES.get(status, b"Unknown")),
            b"Content-Type: %b" % TEXT.encode(),
            b"Content-Length: %d" % len(body),
        ]
        if refusal:
            lines.append(b"X-Content-Type-Options: nosniff")
        if close:
            lines.append(b"Connection: close")
        transport.write(b"\r\n".join(lines) + b"\r\n\r\n" + (b"" if request.is_head else body))
        if close:
            transport.close()

    # From the replica

    def answered(self, data: bytes) -> None:
        """Pass on a part of the replica's answer."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        copy, request = self._copy, self._request
        if copy is None or request is None:
            transport.write(data)
            return
        logged = request.logged
        data = copy.feed(data, collect=logged and self._agent.wants(RESPONSE))
        if copy.status == 101:
            if logged:
                # The logger's writer cannot be taken over: no WebSocket behind it, as upstream.
                self._copy = None
                self._answer(request, 502, _NO_UPGRADE, refusal=True, close=True)
                return
            self._tunnel = True
        if data:
            transport.write(data)
        if copy.is_done:
            self._finish(request, copy)

    def _finish(self, request: AgentRequest, copy: AnswerCopy) -> None:
        self._copy = None
        if not request.logged or copy.status != 200:
            return
        if copy.is_broken:
            logger.warning("event %s: the answer is too large to be logged", request.id)
            return
        self._log(request, RESPONSE, copy.body(), datetime.now(UTC))

    def _log(self, request: AgentRequest, kind: str, body: bytes, moment: datetime) -> None:
        self._agent.log(kind, request.id, request.content_type, body, request.metadata, moment)

    def replica_lost(self) -> None:
        """The replica's connection ended; an answer that lasts until then is whole."""
        copy, request = self._copy, self._request
        if request is not None and request.is_kept and not request.is_whole:
            # Nothing of it was sent yet; it gets a new connection.
            return
        if copy is not None and request is not None:
            rest = copy.end()
            if rest and self._transport is not None:
                self._transport.write(rest)
            if copy.is_done:
                self._finish(request, copy)
        # A request in a batch does not need this connection.
        if self._transport is not None and not self._in_batch:
            self._transport.close()

    # Flow control

    def pause_writing(self) -> None:
        """The client does not keep up."""
        transport = self.replica.transport
        if transport is not None and not transport.is_closing():
            transport.pause_reading()

    def resume_writing(self) -> None:
        """The client keeps up again."""
        transport = self.replica.transport
        if transport is not None and not transport.is_closing():
            transport.resume_reading()

    def pause_reading(self) -> None:
        """The replica does not keep up."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """The replica keeps up again."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def _let_go(self) -> None:
        self._agent.host.let_go(self._kept)
        self._kept = 0

    def abort(self) -> None:
        """End both connections at once."""
        self.replica.leave()
        if self._transport is not None:
            self._transport.abort()


_NO_UPGRADE = (
    b"can't switch protocols using non-Hijacker ResponseWriter type *logger.loggingResponseWriter\n"
)
