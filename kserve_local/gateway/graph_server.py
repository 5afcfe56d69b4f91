"""The gateway's inside of a router Pod: an HTTP/1.1 server at the other end of a pipe.

To the data plane a graph's router is one more replica, with holding, limits, counting and
cancelling as for every other; only the connection to it does not leave the process. Copies the
server side of KServe's router: every path and method enters the root node, `/readyz` says 200, a
request that comes too slowly is taken as far as it came, an answer that took longer than
`serverWrite` is lost with its connection (net/http's WriteTimeout).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import TypeVar

from kserve_local.gateway import failures, pipe
from kserve_local.gateway.chunked import ChunkDecoder
from kserve_local.gateway.errors import PHRASES
from kserve_local.gateway.graph import (
    GraphError,
    content_type,
    error_body,
    read_graph,
)
from kserve_local.gateway.graph_client import Header, StepClient
from kserve_local.gateway.graph_router import GraphRouter, canonical, context_of, off_loop
from kserve_local.gateway.trace import Hop
from kserve_local.gateway.tracecontext import Context
from kserve_local.interfaces.routing import Target

logger = logging.getLogger(__name__)

NAMED = 3
"""Steps that are named where a request failed."""
MEMORY = 1024 * 1024 * 1024
"""Bytes of bodies in all routers together; as much as one router Pod may use on a cluster."""

_PHRASES: Mapping[int, bytes] = PHRASES | {
    201: b"Created",
    202: b"Accepted",
    204: b"No Content",
    422: b"Unprocessable Entity",
    429: b"Too Many Requests",
}

P = TypeVar("P", bound=asyncio.Protocol)


class TooMuch(GraphError):
    """All that routers keep at this moment is too much."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"more than {limit // 2**20} MiB of bodies in graphs at once", 503)


class GraphHost:
    """All routers of this gateway.

    Args:
        client: Calls the steps of all graphs.
        point: Draws 0 to 99 for Splitters.
        hop: Finds the request of a context in its trace, if it is in one that is recorded.
        failed: Told of a request that failed: the id of the target, and which steps it was.
        memory: Bytes of bodies that may be kept at once.
    """

    def __init__(
        self,
        client: StepClient,
        *,
        point: Callable[[], int],
        hop: Callable[[Context | None], Hop | None] = lambda context: None,
        failed: Callable[[str, str], None] = lambda target, why: None,
        memory: int = MEMORY,
    ) -> None:
        self.client = client
        self.hop = hop
        self.failed = failed
        self._point = point
        self._memory = memory
        self._kept = 0

    def router(self, target: Target) -> GraphRouter:
        """Return the router of a target that has a graph."""
        graph = read_graph(target.graph or {}, target.propagate)
        return GraphRouter(graph, self.client, point=self._point)

    def connect(self, target: Callable[[], Target], near: Callable[[], P]) -> P:
        """Return a new connection to a graph's router.

        Args:
            target: What the table of the moment says; asked for each request.
            near: Makes the protocol at our end.
        """
        protocol = near()
        pipe.connect(protocol, GraphConnection(self, target))
        return protocol

    def keep(self, size: int) -> None:
        """Count bytes in.

        Raises:
            TooMuch: There is no room for them.
        """
        if self._kept + size > self._memory:
            raise TooMuch(self._memory)
        self._kept += size

    def let_go(self, size: int) -> None:
        """Count bytes out."""
        self._kept -= size


class GraphConnection(asyncio.Protocol):
    """One connection from the data plane, one request at a time."""

    def __init__(self, host: GraphHost, target: Callable[[], Target]) -> None:
        self._host = host
        self._target = target
        self._of = target()
        self._router = host.router(self._of)
        self._buffer = b""
        self._request: _Request | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # always a full transport here

    def connection_lost(self, exc: Exception | None) -> None:
        """The caller left: whatever runs for it ends."""
        self._stop_timer()
        if self._task is not None:
            self._task.cancel()
        elif self._request is not None:
            self._host.let_go(self._request.kept)
        self._request = None
        self._transport = None

    def data_received(self, data: bytes) -> None:
        if self._task is not None:
            return
        request = self._request
        if request is None:
            self._buffer += data
            end = self._buffer.find(b"\r\n\r\n") + 4
            if end < 4:
                return
            head, data, self._buffer = self._buffer[:end], self._buffer[end:], b""
            request = self._request = _Request(head)
            if (now := self._target()) is not self._of:
                self._of, self._router = now, self._host.router(now)
            limit = self._router.graph.read
            if limit and not request.is_whole:
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(limit, self._begin)
        try:
            size = request.feed(data)
            self._host.keep(size)
            request.kept += size
        except TooMuch as error:
            self._refuse(request, error)
            return
        if request.is_whole:
            self._begin()

    def _refuse(self, request: _Request, error: GraphError) -> None:
        self._stop_timer()
        body = error_body(error)
        self._answer(request, error.status, body, content_type(body), close=True)
        self._host.let_go(request.kept)
        self._request = None

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _begin(self) -> None:
        self._stop_timer()
        if self._request is not None and self._task is None:
            loop = asyncio.get_running_loop()
            self._task = loop.create_task(self._serve(self._request), name="graph")

    async def _serve(self, request: _Request) -> None:
        def take(size: int) -> None:
            self._host.keep(size)
            request.kept += size

        try:
            status, body = await self._route(request, take)
            kind = await off_loop(len(body), content_type, body)
            late = self._router.graph.write
            if not status or (late and perf_counter() - request.started > late):
                self._abort()
                return
            self._answer(request, status, body, kind, close=not request.is_whole)
        except Exception:
            logger.exception("a graph's router failed")
            self._abort()
        finally:
            self._host.let_go(request.kept)
            self._request = self._task = None

    async def _route(self, request: _Request, take: Callable[[int], None]) -> tuple[int, bytes]:
        if request.path == "/readyz":
            return 200, b""
        steps: list[str] = []
        try:
            body, status = await self._router.route(
                request.body(),
                request.headers,
                take=take,
                hop=self._host.hop(context_of(request.headers)),
                failed=steps.append,
            )
        except GraphError as error:
            steps = steps or [str(error)]
            status, body = error.status, error_body(error)
        if status >= 400 and steps:
            what = f"{request.method} {request.path}: {'; '.join(steps[:NAMED])}"
            self._host.failed(self._of.id, what[: failures.LONGEST])
        return status, body

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _answer(
        self,
        request: _Request,
        status: int,
        body: bytes,
        kind: bytes,
        *,
        close: bool,
    ) -> None:
        transport = self._transport
        if transport is None:
            return
        head = b"HTTP/1.1 %d %b\r\n" % (status, _PHRASES.get(status, b"status code %d" % status))
        if status in (204, 304):
            body = b""
        else:
            if kind:
                head += b"Content-Type: %b\r\n" % kind
            head += b"Content-Length: %d\r\n" % len(body)
        if close:
            head += b"Connection: close\r\n"
        transport.write(head + b"\r\n" + (b"" if request.method == "HEAD" else body))
        if close:
            transport.close()


class _Request:
    """One request as the data plane wrote it, so its framing is to be trusted."""

    def __init__(self, head: bytes) -> None:
        self.started = perf_counter()
        self.kept = 0
        line, *lines = head[:-4].decode("latin-1").split("\r\n")
        self.method, target, _ = line.split(" ", 2)
        self.path = target.partition("?")[0]
        self.headers: list[Header] = []
        self._left = 0
        self._decoder: ChunkDecoder | None = None
        self._pieces: list[bytes] = []
        for each in lines:
            name, _, value = each.partition(":")
            name, value = canonical(name), value.strip()
            if name == "Content-Length":
                self._left = int(value)
            elif name == "Transfer-Encoding":
                self._decoder = ChunkDecoder()
            elif name != "Host":
                self.headers.append((name, value))

    @property
    def is_whole(self) -> bool:
        """Whether all of the body has come."""
        return self._decoder.done if self._decoder is not None else self._left <= 0

    def feed(self, data: bytes) -> int:
        """Take what came of the body; return how many bytes of it that is."""
        if self._decoder is None:
            self._pieces.append(data)
            self._left -= len(data)
            return len(data)
        pieces = self._decoder.feed(data)
        self._pieces += pieces
        return sum(map(len, pieces))

    def body(self) -> bytes:
        """Return what has come of the body."""
        whole = b"".join(self._pieces)
        self._pieces = [whole]
        return whole
