"""Connections to replicas: one pool an endpoint, one request at a time on a connection.

Reads response heads strictly, frames bodies by length without looking at them, decodes and
re-frames chunked ones, and stops reading when the client does not keep up. A connection returns
to its pool only when both messages ended where they should; in every other case it is closed.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING

from kserve_local.gateway.chunked import ChunkDecoder, ChunkError
from kserve_local.gateway.failures import Heard, spoken
from kserve_local.gateway.head import MAX_HEAD, HeadError, ResponseHead, read_response
from kserve_local.gateway.pipe import news_of
from kserve_local.gateway.recorder import Pieces
from kserve_local.gateway.rpc_pool import RpcPool

if TYPE_CHECKING:
    from kserve_local.gateway.proxy import Exchange, TargetState
    from kserve_local.interfaces.routing import Endpoint

CONNECT_TIMEOUT = 5.0
IDLE_CLOSE = 30.0

_HEAD, _LENGTH, _CHUNKED, _CLOSE, _TUNNEL = range(5)


class EndpointState:
    """One replica as the gateway sees it: what runs there and what rests there.

    Attributes:
        in_flight: Requests on their way to or at the replica, or in its queue.
        queue: Requests that wait at this replica, as in its queue-proxy; longest wait first.
        refused: The last connection attempt failed; not picked until one succeeds.
        retry_at: When to try again, on the clock of `perf_counter`.
    """

    __slots__ = (
        "attempts",
        "connecting",
        "endpoint",
        "error",
        "idle",
        "in_flight",
        "queue",
        "refused",
        "retired",
        "retry_at",
        "rpc",
        "target",
    )

    def __init__(self, endpoint: Endpoint, target: TargetState) -> None:
        self.endpoint = endpoint
        self.target = target
        self.idle: list[UpstreamConnection] = []
        self.in_flight = 0
        self.queue: dict[Exchange, None] = {}
        self.refused = False
        self.retired = False
        self.connecting = False
        self.attempts = 0
        self.retry_at = 0.0
        self.rpc = RpcPool()
        self.error = ""

    @property
    def name(self) -> str:
        """`namespace/name` of the Pod."""
        return f"{self.target.spec.id.partition('/')[0]}/{self.endpoint.pod}"

    @property
    def running(self) -> int:
        """Requests that the replica itself has."""
        return self.in_flight - len(self.queue)

    def take(self) -> UpstreamConnection | None:
        """Return a pooled connection that is still open, or None."""
        idle = self.idle
        while idle:
            connection = idle.pop()
            if connection.is_open():
                return connection
            connection.close()
        return None

    def close_idle(self, before: float) -> None:
        """Close connections that rest since before `before`."""
        self.rpc.close_idle(before)
        keep = [c for c in self.idle if c.since >= before]
        if len(keep) != len(self.idle):
            gone = [c for c in self.idle if c.since < before]
            self.idle[:] = keep
            for connection in gone:
                connection.close()

    def retire(self) -> None:
        """Leave the table: requests that run may finish, nothing is pooled any more."""
        self.retired = True
        self.rpc.retire()
        self.close_idle(float("inf"))


class UpstreamConnection(asyncio.Protocol):
    """One connection to one replica."""

    __slots__ = (
        "_buffer",
        "_decoder",
        "_keep",
        "_left",
        "_news",
        "_reading",
        "_state",
        "ended",
        "exchange",
        "failed",
        "place",
        "since",
        "transport",
        "used",
        "write_paused",
    )

    transport: asyncio.Transport

    def __init__(self, place: EndpointState) -> None:
        self.place = place
        self.exchange: Exchange | None = None
        self.used = 0
        self.since = 0.0
        self.write_paused = False
        self.failed = False
        self.ended = False
        self._state = _HEAD
        self._buffer = b""
        self._left = 0
        self._decoder: ChunkDecoder | None = None
        self._keep = True
        self._reading = True
        self._news: Callable[[], object] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # always a full transport here

    def is_open(self) -> bool:
        """Nothing to read means that the peer neither closed nor spoke."""
        if self.transport.is_closing():
            return False
        news = self._news
        if news is None:
            news = self._news = news_of(self.transport)
        return not news()

    def begin(self, exchange: Exchange) -> None:
        """Send the request: its head and what came of its body."""
        self.exchange = exchange
        exchange.upstream = self
        self.used += 1
        self._state = _HEAD
        transport = self.transport
        client = exchange.client
        if client.write_paused:
            self.pause_reading()
        if not exchange.pending:
            transport.write(exchange.fresh)
        else:
            transport.writelines([exchange.fresh, *exchange.pending])
            exchange.pass_on(exchange.pending)
            exchange.pending = []
            exchange.pending_size = 0
        if client.wants_continue or client.read_paused:
            client.bound(exchange)

    # Reading

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None:
            # Nobody asked: the connection is out of step.
            self.close()
            return
        state = self._state
        if state == _LENGTH:
            left = self._left - len(data)
            client = exchange.client
            if exchange.heard is not None:
                exchange.heard.take(data)
            if left < 0:
                self._keep = False
                data = data[:left]
            said = exchange.said
            if isinstance(said, Pieces):
                said.take((data,))
            client.transport.write(data)
            if left > 0:
                self._left = left
            else:
                self._finish(exchange)
        elif state == _HEAD:
            self._head(exchange, self._buffer + data if self._buffer else data)
        elif state == _CHUNKED:
            self._chunks(exchange, data)
        elif state == _CLOSE:
            self._pass(exchange, [data])
        else:
            exchange.client.transport.write(data)

    def _head(self, exchange: Exchange, data: bytes) -> None:
        end = data.find(b"\r\n\r\n") + 4
        if end < 4:
            if len(data) > MAX_HEAD or not b"HTTP/1."[: len(data)].startswith(data[:7]):
                self._broken(exchange, data)
                return
            self._buffer = data
            return
        self._buffer = b""
        raw = data if end == len(data) else data[:end]
        try:
            head = read_response(raw)
        except HeadError as error:
            self._broken(exchange, data, str(error))
            return
        status = head.status
        if status < 200:
            self._interim(exchange, head, data[end:])
            return
        client = exchange.client
        exchange.status = status
        if status >= 400 or exchange.route.inner:
            exchange.heard = Heard(head, b"" if head.chunked else data[end:])
        self._keep = head.keep
        if exchange.head.is_head or status == 204 or status == 304:
            exchange.answer = head
            client.send_head(exchange, head, length=0)
            if len(data) > end:
                self._keep = False
            self._finish(exchange)
        elif (length := head.length) >= 0:
            size = len(data) - end
            if size < length:
                self._left = length - size
                self._state = _LENGTH
                exchange.declared = True
                exchange.answers(head, [data[end:]] if size else [])
                if head.same and client.plain:
                    client.transport.write(data)
                else:
                    client.send_head(exchange, head, length=length)
                    if size:
                        client.transport.write(data[end:])
                return
            if size > length:
                # More than was promised: what follows belongs to nothing we asked for.
                self._keep = False
                data = data[: end + length]
            exchange.answer, exchange.said = head, data
            if client.plain:
                client.transport.write(data if head.same else head.whole + data[end:])
            else:
                client.send_head(exchange, head, length=length)
                client.transport.write(data[end:])
            self._finish(exchange)
        elif head.chunked:
            self._state = _CHUNKED
            self._decoder = ChunkDecoder()
            # Broken at once: nothing has been answered yet, so the client can still be told.
            try:
                pieces = self._decoder.feed(data[end:])
            except ChunkError:
                exchange.status = 0
                self._broken(exchange, data, "chunks that are none")
                return
            client.send_head(exchange, head, length=-1)
            exchange.answers(head, [])
            self._payload(exchange, pieces)
        else:
            self._state = _CLOSE
            self._keep = False
            client.send_head(exchange, head, length=-1)
            exchange.answers(head, [])
            if len(data) > end:
                self._pass(exchange, [data[end:]])

    def _interim(self, exchange: Exchange, head: ResponseHead, rest: bytes) -> None:
        if head.status == 101:
            if not exchange.head.upgrade:
                self._broken(exchange, rest, "another protocol that nobody asked for")
                return
            self._state = _TUNNEL
            exchange.status = 101
            exchange.client.tunnel(exchange, head, rest)
            return
        # 100 was answered by the gateway itself; others (103) are the client's to see.
        if head.status != 100 and exchange.head.minor:
            exchange.client.interim(head)
        if rest:
            self._head(exchange, rest)

    def _chunks(self, exchange: Exchange, data: bytes) -> None:
        decoder = self._decoder
        assert decoder is not None
        try:
            pieces = decoder.feed(data)
        except ChunkError:
            self._broken(exchange, data)
            return
        self._payload(exchange, pieces)

    def _payload(self, exchange: Exchange, pieces: list[bytes]) -> None:
        decoder = self._decoder
        assert decoder is not None
        if exchange.heard is not None:
            exchange.heard.take(b"".join(pieces))
        if decoder.done:
            self._decoder = None
            if decoder.rest:
                self._keep = False
            self._pass(exchange, pieces, last=True)
            self._finish(exchange)
        elif pieces:
            self._pass(exchange, pieces)

    def _pass(self, exchange: Exchange, pieces: list[bytes], *, last: bool = False) -> None:
        """Pass on a part of an answer that has no declared length."""
        said = exchange.said
        if isinstance(said, Pieces):
            said.take(pieces)
        exchange.client.send_body(exchange, pieces, last=last)

    # Ends

    def _finish(self, exchange: Exchange) -> None:
        self.exchange = None
        exchange.upstream = None
        transport = self.transport
        if (
            exchange.body_done
            and self._keep
            # KServe's server closes after an unexpected error without saying so in the answer.
            and exchange.status < 500
            and not self.write_paused
            and not self.failed
            and not self.place.retired
            and not (exchange.streamed and transport.get_write_buffer_size())
        ):
            if not self._reading:
                self._reading = True
                transport.resume_reading()
            self.since = now = perf_counter()
            self.place.idle.append(self)
        else:
            now = perf_counter()
            # What is left of an upload goes nowhere: the answer is already here.
            if exchange.body_done:
                self.close()
            else:
                self.abort()
        exchange.target.finished(exchange, now)
        exchange.client.response_done(exchange)

    def _broken(self, exchange: Exchange, data: bytes, why: str = "no HTTP") -> None:
        """Give up on an answer that is malformed or ambiguous."""
        self.detach()
        exchange.target.plane.upstream_broken(exchange, spoken(data, wanted="HTTP/1.1") or why)

    def detach(self) -> None:
        """Forget the request and close: the connection is not to be used again."""
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.upstream = None
        self._decoder = None
        self.abort()

    def close(self) -> None:
        """Close after what is written has gone out; answers that still come are dropped."""
        if not self.transport.is_closing():
            self.transport.close()

    def abort(self) -> None:
        """Close at once: the replica sees that nobody waits any more."""
        if not self.transport.is_closing():
            self.transport.abort()

    def eof_received(self) -> bool:
        exchange = self.exchange
        if exchange is not None and self._state == _TUNNEL:
            self.ended = True
            if exchange.client.ended:
                # Both sides have said all: what is left is to end the connections.
                return False
            exchange.client.half_close()
            return True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        exchange = self.exchange
        if exchange is None:
            if self in self.place.idle:
                self.place.idle.remove(self)
            return
        if exc is not None and self._state != _TUNNEL:
            # It closed while we were still sending, perhaps after an answer: look what came.
            self._salvage()
            exchange = self.exchange
            if exchange is None:
                return
        self.exchange = None
        exchange.upstream = None
        if self._state == _CLOSE and exc is None:
            exchange.client.send_body(exchange, [], last=True)
            exchange.target.finished(exchange, perf_counter())
            exchange.client.response_done(exchange)
        elif self._state == _TUNNEL:
            exchange.target.finished(exchange, perf_counter())
            exchange.client.close()
        else:
            exchange.target.plane.upstream_lost(exchange, exc, reused=self.used > 1)

    def _salvage(self) -> None:
        self.failed = True
        fd = self.transport.get_extra_info("socket").fileno()
        if fd < 0:
            return
        while self.exchange is not None:
            try:
                data = os.read(fd, 65536)
            except OSError:
                return
            if not data:
                return
            self.data_received(data)

    # Flow control

    def pause_writing(self) -> None:
        self.write_paused = True
        if self.exchange is not None:
            self.exchange.client.pause_reading()

    def resume_writing(self) -> None:
        self.write_paused = False
        if self.exchange is not None:
            self.exchange.client.resume_reading()

    def pause_reading(self) -> None:
        """The client does not keep up."""
        if self._reading and not self.transport.is_closing():
            self._reading = False
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """The client keeps up again."""
        if not self._reading and not self.transport.is_closing():
            self._reading = True
            self.transport.resume_reading()
