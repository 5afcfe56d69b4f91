"""gRPC calls on their way: from a client's stream to a stream of the replica's connection and back.

Messages pass as they come, unread; headers and trailers are written anew. A replica has few
connections, shared by all calls to it. Errors of our own are what Envoy gives a gRPC client for the
same HTTP answer: trailers with the status that gRPC's table names and the answer's text.

Source: gRPC over HTTP/2 (PROTOCOL-HTTP2.md), http-grpc-status-mapping.md; RFC 9113 section 8.7.
"""

from __future__ import annotations

import contextlib
from time import perf_counter
from typing import TYPE_CHECKING, cast
from urllib.parse import quote

import orjson

from kserve_local.gateway import errors, failures, h2_headers
from kserve_local.gateway.agent import TOO_MUCH, TooMuch
from kserve_local.gateway.h2_connection import H2Connection, Stream
from kserve_local.gateway.h2_frames import Code
from kserve_local.gateway.proxy import Exchange, TargetState
from kserve_local.gateway.rpc_log import RpcLog
from kserve_local.gateway.table import CompiledRoute
from kserve_local.gateway.trace import GRPC_LIMIT, trace_fields

if TYPE_CHECKING:
    from kserve_local.gateway.agent import AgentHost
    from kserve_local.gateway.http1 import ClientConnection
    from kserve_local.gateway.upstream import EndpointState
    from kserve_local.interfaces.routing import Endpoint

CONTENT_TYPE = b"application/grpc"
_REPLAY = 64 * 1024
"""Bytes of a request that are kept until its answer begins: a replica may not have looked at it."""
_TRIES = 3

INTERNAL, PERMISSION_DENIED, UNAUTHENTICATED, UNIMPLEMENTED, UNAVAILABLE, UNKNOWN = (
    13, 7, 16, 12, 14, 2,
)  # fmt: skip
_STATUS = {
    400: INTERNAL,
    401: UNAUTHENTICATED,
    403: PERMISSION_DENIED,
    404: UNIMPLEMENTED,
    429: UNAVAILABLE,
    502: UNAVAILABLE,
    503: UNAVAILABLE,
    504: UNAVAILABLE,
}


def is_grpc(content_type: bytes) -> bool:
    """Whether a request of this type is a gRPC call."""
    return content_type.startswith(CONTENT_TYPE) and content_type[16:17] in (b"", b"+", b";")


def status_trailers(answer: errors.Answer) -> list[tuple[bytes, bytes]]:
    """Return the headers of an answer that consists of trailers only."""
    text = _text_of(answer.body)
    found = [
        (b":status", b"200"),
        (b"content-type", CONTENT_TYPE),
        (b"grpc-status", b"%d" % _STATUS.get(answer.status, UNKNOWN)),
        (b"grpc-message", quote(text[:1000], safe=" !#$&'()*+,/:;=?@[]\"{}<>|^`").encode()),
    ]
    for line in answer.headers.split(b"\r\n"):
        name, _, value = line.partition(b": ")
        if name.startswith(b"x-kserve-local"):
            found.append((name, value))
    return found


def _text_of(body: bytes) -> str:
    """Return an answer's text; of KServe's JSON errors what they say."""
    text = body.decode(errors="replace").strip()
    if text[:1] == "{":
        with contextlib.suppress(ValueError):
            found = orjson.loads(body)
            if isinstance(found, dict) and isinstance(found.get("error"), str):
                return str(found["error"])
    return text


class CallHead:
    """What the data plane asks of a request's head."""

    __slots__ = ("asks", "method", "target")

    is_head = False
    idempotent = False
    upgrade = b""
    minor = 1

    def __init__(self, target: bytes) -> None:
        self.asks = False
        self.method = b"POST"
        self.target = target


class Call:
    """One call's client side: what owns the client's stream."""

    __slots__ = ("exchange", "fields", "pending", "stream")

    def __init__(self, stream: Stream, fields: list[tuple[bytes, bytes]]) -> None:
        self.stream = stream
        self.fields = fields
        self.exchange: Rpc | None = None
        self.pending: list[bytes] = []

    @property
    def peer(self) -> str:
        """The client's address."""
        return cast("ClientConnection", self.stream.connection).peer

    # What its stream tells

    def data(self, data: bytes, *, end: bool) -> None:
        """Take a part of the request."""
        exchange = self.exchange
        if exchange is None or exchange.finished:
            self.stream.consumed(len(data))
            return
        exchange.body_done = exchange.body_done or end
        exchange.keep(data)
        leg = exchange.leg
        if leg is not None:
            self.stream.consumed(leg.stream.send(data, end=end))
            return
        self.pending.append(data)
        if exchange.log is not None:
            exchange.read(len(data))

    def reset(self) -> None:
        """The client gave up, or its connection is gone."""
        exchange, self.exchange = self.exchange, None
        if exchange is not None and not exchange.finished:
            exchange.unlog()
            exchange.target.plane.cancel(exchange)

    def sent(self, size: int) -> None:
        """Bytes of the answer that had waited are out."""
        exchange = self.exchange
        if exchange is not None and exchange.leg is not None:
            exchange.leg.stream.consumed(size)

    # What the data plane calls

    def held(self, exchange: Exchange) -> None:
        """The call waits; what came of it stays within the stream's window."""

    def answer(self, answer: errors.Answer, exchange: Exchange) -> None:
        """End the call with an answer of our own."""
        cast("Rpc", exchange).unlog()
        self.exchange = None
        told = trace_fields(exchange, GRPC_LIMIT) if exchange.head.asks else []
        self.stream.send_headers([*status_trailers(answer), *told], end=True)
        self._over()

    def cut(self, exchange: Exchange) -> None:
        """End an answer that cannot be completed."""
        self.exchange = None
        self.stream.reset(Code.INTERNAL_ERROR)

    def close(self) -> None:
        """End an answer whose time is up."""
        self.exchange = None
        self.stream.reset(Code.CANCEL)

    def response_done(self, exchange: Exchange) -> None:
        """The answer is out."""
        self.exchange = None
        self._over()

    def _over(self) -> None:
        self.pending.clear()
        stream = self.stream
        if not stream.peer_done and not stream.waiting:
            # The rest of the request is of no use to anybody.
            stream.reset(Code.NO_ERROR)


class Rpc(Exchange):
    """A gRPC call as an exchange of the data plane.

    Attributes:
        leg: The replica's stream, once there is one.
        log: The logger of the replica's agent, from when it begins to read the call.
    """

    __slots__ = ("_kept", "_kept_size", "authority", "leg", "log")

    rpc = True

    def __init__(
        self, call: Call, target: bytes, authority: bytes, route: CompiledRoute, to: TargetState
    ) -> None:
        super().__init__(
            cast("ClientConnection", call), cast("h2_headers.RequestFields", CallHead(target)),  # type: ignore[arg-type]  # what is used of it
            route, to, b"", [], 0, call.stream.peer_done,
        )  # fmt: skip
        self.authority = authority
        self.leg: Leg | None = None
        self.log: RpcLog | None = None
        self.declared = True
        self._kept: list[bytes] | None = []
        self._kept_size = 0
        for data in call.pending:
            self.keep(data)  # what was read to find the route

    @property
    def call(self) -> Call:
        """The client's side."""
        return cast("Call", self.client)

    def refusal(self, answer: errors.Answer) -> str:
        return failures.code_name(b"%d" % _STATUS.get(answer.status, UNKNOWN))

    def keep(self, data: bytes) -> None:
        """Keep a small request as long as it may have to be sent again."""
        if self._kept is not None and not self.status:
            self._kept_size += len(data)
            if self._kept_size > _REPLAY:
                self._kept = None
            else:
                self._kept.append(data)

    # The logger of the replica's agent

    def is_read(self, agents: AgentHost, endpoint: Endpoint) -> bool:
        """Whether the call may go on to the replica: a logger before it reads all of it first."""
        call, log = self.call, self.log
        if log is None:
            log = self.log = RpcLog.of(agents.agent_of(endpoint), call.fields)
            if log is None:
                return True
            if not self._keep_read(log, sum(map(len, call.pending))):
                return False
        if not self.body_done:
            return False
        log.request(call.pending)
        return True

    def read(self, size: int) -> None:
        """Take note of bytes that the logger waits for; with the last of them the call goes on."""
        assert self.log is not None  # nobody else waits for them
        place = self.place
        if not self._keep_read(self.log, size) or not self.body_done or place is None:
            return
        if place.retired:
            self.give_back()
        else:
            self.target.plane.call(self, place)

    def _keep_read(self, log: RpcLog, size: int) -> bool:
        """Let the client send as much again; False: there is no room, and the call has ended."""
        self.call.stream.consumed(size)
        try:
            log.keep(size)
        except TooMuch:
            self.target.plane.answer(self, errors.Answer(503, TOO_MUCH))
            return False
        return True

    def went_on(self, size: int) -> None:
        """Bytes are on their way to the replica: the client may send as many."""
        # What a logger has read was given back to the client then.
        if self.log is None:
            self.call.stream.consumed(size)

    def unlog(self) -> None:
        """Keep nothing for the logger any more."""
        if self.log is not None:
            self.log.let_go()

    def give_back(self) -> None:
        """Let another replica have the call."""
        if self.place is not None:
            self.target.left(self, self.place)
        self.target.breaker.give_back(self)
        self.target.settle()

    def rewind(self) -> bool:
        """Make the call as new for another connection; False: too much of it is gone."""
        if self._kept is None or self.status or self.tries >= _TRIES:
            return False
        self.tries += 1
        call = self.call
        # What waited in the lost stream was not given back to the client yet; now it is sent anew.
        call.pending = list(self._kept)
        self.leg = None
        self.upstream = None
        return True


class Leg:
    """The replica's side of a call: `upstream` of its exchange."""

    __slots__ = ("exchange", "stream")

    def __init__(self, exchange: Rpc, stream: Stream) -> None:
        self.exchange = exchange
        self.stream = stream

    def detach(self) -> None:
        """Nobody waits for the answer any more."""
        self.exchange.leg = None
        self.exchange.upstream = None
        self.stream.owner = None
        self.stream.reset(Code.CANCEL)


class RpcConnection(H2Connection):
    """A connection to a replica's gRPC port, for any number of calls."""

    client = True
    shared = True

    def __init__(self, place: EndpointState) -> None:
        super().__init__()
        self.place = place
        self.ready = False
        self._next = 1

    def on_ready(self) -> None:
        self.ready = True

    def end(self, code: Code, text: str = "") -> None:
        self.broken = self.broken or b""
        super().end(code, text)

    @property
    def has_room(self) -> bool:
        """Whether one more call may begin."""
        return (
            not self.going_away
            and len(self.streams) < self.peer_streams
            and self._next < 2**31 - 1
            and not self.transport.is_closing()
        )

    def begin(self, exchange: Rpc) -> None:
        """Send a call: its headers and what came of its message."""
        stream = self.streams[self._next] = Stream(self, self._next)
        self.last_stream = self._next
        self._next += 2
        leg = stream.owner = exchange.leg = Leg(exchange, stream)
        exchange.upstream = leg  # type: ignore[assignment]  # what the data plane calls of it
        call = exchange.call
        head = exchange.head
        headers = [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", head.target),
            (b":authority", exchange.authority),
            *call.fields,
        ]
        pending, call.pending = call.pending, []
        done = exchange.body_done
        stream.send_headers(headers, end=done and not pending)
        for n, data in enumerate(pending, 1):
            exchange.went_on(stream.send(data, end=done and n == len(pending)))
        exchange.unlog()

    # The answer

    def on_headers(self, stream: Stream, headers: list[tuple[bytes, bytes]], *, end: bool) -> None:
        leg = stream.owner
        if not isinstance(leg, Leg):
            return
        exchange = leg.exchange
        call = exchange.call
        try:
            if exchange.status:
                if not end:
                    raise h2_headers.Malformed("headers within an answer")
                fields = h2_headers.trailers(headers)
                self._note(exchange, fields)
                if exchange.head.asks:
                    fields = [*fields, *trace_fields(exchange, GRPC_LIMIT)]
                call.stream.send_headers(fields, end=True)
            else:
                status, fields = h2_headers.answer(headers)
                if status < 200:
                    return
                exchange.status = status
                if end:
                    self._note(exchange, fields)
                    if exchange.head.asks:
                        fields = [*fields, *trace_fields(exchange, GRPC_LIMIT)]
                call.stream.send_headers([(b":status", b"%d" % status), *fields], end=end)
        except h2_headers.Malformed:
            leg.detach()
            exchange.target.plane.upstream_broken(exchange, "headers that are none")
            return
        if end:
            self._finish(leg)

    def _note(self, exchange: Rpc, trailers: list[tuple[bytes, bytes]]) -> None:
        """Keep what a call failed with, for whoever asks which hop it was."""
        if (b"grpc-status", b"0") not in trailers:
            failure = failures.of_rpc(exchange.head, trailers, inner=exchange.route.inner)
            if failure:
                exchange.target.figures.failure = failure
        if exchange.hop is not None:
            exchange.hop.status, exchange.hop.error = failures.ended_with(dict(trailers))

    def on_data(self, stream: Stream, data: bytes, *, end: bool) -> None:
        leg = stream.owner
        if not isinstance(leg, Leg) or not leg.exchange.status:
            stream.consumed(len(data))
            if isinstance(leg, Leg):
                leg.detach()
                leg.exchange.target.plane.upstream_broken(leg.exchange, "data before headers")
            return
        if leg.exchange.log is not None:
            leg.exchange.log.answer(data)
        stream.consumed(leg.exchange.call.stream.send(data, end=end))
        if end:
            self._finish(leg)

    def _finish(self, leg: Leg) -> None:
        exchange = leg.exchange
        stream = leg.stream
        stream.owner = None
        exchange.upstream = None
        if not stream.closed:
            stream.reset(Code.NO_ERROR)
        if exchange.log is not None:
            exchange.log.finish(exchange.status)
        exchange.target.finished(exchange, perf_counter())
        exchange.client.response_done(exchange)

    def on_sent(self, stream: Stream, size: int) -> None:
        leg = stream.owner
        if isinstance(leg, Leg):
            leg.exchange.went_on(size)

    # Ends

    def on_reset(self, stream: Stream, code: int) -> None:
        leg = stream.owner
        if not isinstance(leg, Leg):
            return
        stream.owner = None
        exchange = leg.exchange
        exchange.leg = None
        exchange.upstream = None
        if exchange.finished:
            return
        if code == Code.REFUSED_STREAM and self._again(exchange):
            return
        if exchange.status or not (self.broken is not None or self.transport.is_closing()):
            # As the replica ended it: gRPC reads the reason from the code.
            name = Code(code).name if code in _CODES else str(code)
            exchange.ended_with(f"reset: {name}")
            exchange.target.finished(exchange, perf_counter())
            exchange.target.figures.failure = failures.reset(exchange.head, name)
            exchange.call.exchange = None
            exchange.call.stream.reset(Code(code) if code in _CODES else Code.INTERNAL_ERROR)
        else:
            self._lost(exchange)

    def _lost(self, exchange: Rpc) -> None:
        """End a call whose connection ended before its answer began."""
        plane, why = exchange.target.plane, ""
        if not self.ready:
            endpoint = self.place.endpoint
            port = endpoint.grpc_port or endpoint.port
            other = failures.spoken(self.broken or b"", wanted="gRPC")
            why = f"port {port} of Pod {endpoint.pod} does not speak HTTP/2, which gRPC needs"
            why += f": {other}" if other else ""
        if self.broken is None:
            plane.upstream_lost(exchange, None, reused=False, why=why)
        else:
            plane.upstream_broken(exchange, why or "no frames of HTTP/2")

    def on_goaway(self, last: int) -> None:
        self.place.rpc.forget(self)
        for id, stream in list(self.streams.items()):
            leg = stream.owner
            if id > last and isinstance(leg, Leg):
                stream.owner = None
                stream.close()
                leg.exchange.leg = None
                leg.exchange.upstream = None
                if not self._again(leg.exchange):
                    plane = leg.exchange.target.plane
                    plane.upstream_lost(leg.exchange, None, reused=False)

    def _again(self, exchange: Rpc) -> bool:
        """Let a call that the replica did not look at go again."""
        if exchange.place is None or not exchange.rewind():
            return False
        exchange.give_back()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.place.rpc.forget(self)
        super().connection_lost(exc)


_CODES = frozenset(int(code) for code in Code)
