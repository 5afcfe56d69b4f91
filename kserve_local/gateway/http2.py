"""Cleartext HTTP/2 from clients: gRPC calls, and REST as over HTTP/1.1.

A connection of `http1` that begins with HTTP/2's preface becomes one of these. A stream is a gRPC
call (`rpc.Call`) or a request that is written anew as HTTP/1.1, with all of its checks, for the
replica. Both go to the data plane as any other request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, cast

from kserve_local.gateway import entry, errors, h2_headers, rpc, tracecontext
from kserve_local.gateway.chunked import LAST, encode
from kserve_local.gateway.h2_connection import H2Connection, Stream
from kserve_local.gateway.h2_frames import Code
from kserve_local.gateway.head import (
    TRACE_HEADER,
    HeadError,
    RequestHead,
    ResponseHead,
    host_name,
    parse_request,
)
from kserve_local.gateway.proxy import Dataplane, Exchange, TargetState
from kserve_local.gateway.table import (
    PEEK_LIMIT,
    CompiledRoute,
    Found,
    Missed,
    NeedsModel,
    model_of,
    rpc_model_of,
)
from kserve_local.gateway.trace import HTTP_LIMIT, trace_fields, trace_line

if TYPE_CHECKING:
    from kserve_local.gateway.http1 import ClientConnection

IDLE_TIMEOUT = 300.0
PREFACE_TIMEOUT = 10.0


class Http2Client(H2Connection):
    """One client that speaks HTTP/2.

    Args:
        plane: Where requests go.
        admin: Answers `/-/...` on hosts that are no route's; None for an unknown path.
        service: On a Service's own address: the host its requests are for.
    """

    def __init__(
        self,
        plane: Dataplane,
        admin: Callable[[bytes], errors.Answer | None],
        service: bytes = b"",
    ) -> None:
        super().__init__()
        self.plane = plane
        self.admin = admin
        self.service = service
        self.peer = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        peer = transport.get_extra_info("peername")
        self.peer = str(peer[0]) if isinstance(peer, tuple) else "127.0.0.1"
        super().connection_made(transport)
        self.plane.clients.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.plane.client_gone(self)

    # Streams

    def on_begin(self, stream: Stream, headers: list[tuple[bytes, bytes]], *, end: bool) -> None:
        try:
            fields = h2_headers.request(headers)
        except h2_headers.Malformed:
            self.plane.refusals += 1
            stream.reset(Code.PROTOCOL_ERROR)
            return
        if rpc.is_grpc(fields.content_type) and fields.method == b"POST":
            Calls(self).begin(stream, fields)
        else:
            RestStream(self, stream).begin(fields, end=end)

    def on_headers(self, stream: Stream, headers: list[tuple[bytes, bytes]], *, end: bool) -> None:
        try:
            h2_headers.trailers(headers)
            if not end:
                raise h2_headers.Malformed("headers within a request")
        except h2_headers.Malformed:
            self._refuse(stream, Code.PROTOCOL_ERROR)
            return
        self.on_data(stream, b"", end=True)

    def on_data(self, stream: Stream, data: bytes, *, end: bool) -> None:
        owner = stream.owner
        if owner is None:
            stream.consumed(len(data))
        else:
            cast("rpc.Call | RestStream | Peek", owner).data(data, end=end)

    def on_reset(self, stream: Stream, code: int) -> None:
        owner, stream.owner = stream.owner, None
        if owner is not None:
            cast("rpc.Call | RestStream | Peek", owner).reset()

    def on_sent(self, stream: Stream, size: int) -> None:
        owner = stream.owner
        if owner is not None:
            cast("rpc.Call | RestStream | Peek", owner).sent(size)

    def allows(self, fields: h2_headers.RequestFields) -> bool:
        """Whether a request carries the token, where one is demanded."""
        token = self.plane.token
        if not token or self.service:
            return True
        given = [value for name, value in fields.fields if name == b"authorization"]
        return len(given) == 1 and entry.bears(given[0], token)

    def find(self, host: bytes, target: bytes) -> Found | Missed | NeedsModel:
        """Return where a request goes; on a Service's address at the latest by its host."""
        return entry.find(self.plane.table, self.service, host, target)

    # What the gateway's clock and its end do

    def check(self, now: float) -> None:
        """Once a second: end what is idle."""
        if self.streams or self.transport.is_closing():
            return
        limit = IDLE_TIMEOUT if self.last_stream else PREFACE_TIMEOUT
        if self.plane.draining or now - self.active_at > limit:
            self.leave()

    def drain(self) -> None:
        """The gateway stops: begin nothing more."""
        self.leave()


class Calls:
    """Begins gRPC calls."""

    __slots__ = ("_client",)

    def __init__(self, client: Http2Client) -> None:
        self._client = client

    def begin(self, stream: Stream, fields: h2_headers.RequestFields) -> None:
        """Find the call's route, by its host, its path, or its message, and start it."""
        client = self._client
        call = rpc.Call(stream, fields.fields)
        if not client.allows(fields):
            self._refuse(stream, errors.unauthorized())
            return
        if client.plane.token and not client.service:
            # The token is for us, not for the model server.
            call.fields = [pair for pair in fields.fields if pair[0] != b"authorization"]
        found = client.find(host_name(fields.authority), fields.path)
        if isinstance(found, NeedsModel):
            stream.owner = Peek(self, call, fields)
        else:
            self.route(call, fields, found)

    def route(
        self, call: rpc.Call, fields: h2_headers.RequestFields, found: Found | Missed | NeedsModel
    ) -> None:
        """Start a call whose route is known, or say that there is none."""
        plane = self._client.plane
        if isinstance(found, Missed):
            path, _, _ = fields.path.partition(b"/inference.")
            where = path if path.startswith(b"/serving/") else fields.authority
            text = found.text or f"no service at {where.decode('latin-1')}"
            answer = errors.unknown_model(text, found.hint, openai=False, models=found.models)
            self._refuse(call.stream, answer)
            return
        assert isinstance(found, Found)
        target = plane.target_of(found.route)
        if target is None:
            self._refuse(call.stream, errors.no_upstream())
            return
        path = fields.path[found.cut :] if found.cut else fields.path
        exchange = rpc.Rpc(call, path, fields.authority, found.route, target)
        kept, told = _parted(call.fields)
        peer = self._client.peer
        call.fields = [
            *kept,
            *_ours(found.route, target, peer),
            *plane.traces.fields(exchange, kept, told, peer),
        ]
        call.stream.owner = call
        call.exchange = exchange
        target.start(exchange)

    def _refuse(self, stream: Stream, answer: errors.Answer) -> None:
        stream.owner = None
        stream.send_headers(rpc.status_trailers(answer), end=True)
        if not stream.peer_done:
            stream.reset(Code.NO_ERROR)


_SET_BY_US = frozenset(
    (
        b"kserve-isvc-name",
        b"kserve-isvc-namespace",
        b"knative-serving-revision",
        b"knative-serving-namespace",
        b"k-proxy-request",
        b"x-forwarded-proto",
        tracecontext.HEADER,
        tracecontext.STATE,
        TRACE_HEADER,
    )
)


def _parted(
    fields: list[tuple[bytes, bytes]],
) -> tuple[list[tuple[bytes, bytes]], list[tuple[bytes, bytes]]]:
    """Return what passes as it is, and what does not."""
    kept: list[tuple[bytes, bytes]] = []
    ours: list[tuple[bytes, bytes]] = []
    for pair in fields:
        (ours if pair[0] in _SET_BY_US else kept).append(pair)
    return kept, ours


def _ours(route: CompiledRoute, target: TargetState, peer: str) -> list[tuple[bytes, bytes]]:
    told = [*route.fields, (b"x-forwarded-for", peer.encode()), (b"x-forwarded-proto", b"http")]
    return told if target.spec.direct else [*told, (b"k-proxy-request", b"activator")]


class Peek:
    """A call whose route hangs on the model that its message names: what came of it so far."""

    __slots__ = ("_call", "_calls", "_done", "_fields", "_size")

    def __init__(self, calls: Calls, call: rpc.Call, fields: h2_headers.RequestFields) -> None:
        self._calls = calls
        self._call = call
        self._fields = fields
        self._size = 0

    def data(self, data: bytes, *, end: bool) -> None:
        """Take a part of the message and look whether it names the model now."""
        call = self._call
        call.pending.append(data)
        self._size += len(data)
        model = rpc_model_of(b"".join(call.pending))
        if model is None and not end and self._size < PEEK_LIMIT:
            return
        found = self._calls._client.plane.table.find_model(model or "")
        self._calls.route(call, self._fields, found)

    def reset(self) -> None:
        """The client gave up."""

    def sent(self, size: int) -> None:
        """Nothing was sent yet."""


class RestStream:
    """A request that is no gRPC call: HTTP/1.1 to the replica, HTTP/2 to the client."""

    plain = False
    wants_continue = False
    ended = False
    protocol = "HTTP/2"

    __slots__ = (
        "_chunked",
        "_client",
        "_head",
        "_left",
        "_looked",
        "_peek",
        "_peeked",
        "_unread",
        "exchange",
        "read_paused",
        "stream",
        "transport",
        "write_paused",
    )

    def __init__(self, client: Http2Client, stream: Stream) -> None:
        self._client = client
        self.stream = stream
        self.exchange: Exchange | None = None
        self.transport = self  # what the replica's connection writes the body to
        self.write_paused = False
        self.read_paused = False
        self._chunked = False
        self._left = -1
        self._unread = 0
        self._peek: list[bytes] | None = None
        self._peeked = 0
        self._looked = 0
        self._head: RequestHead | None = None

    @property
    def peer(self) -> str:
        """The client's address."""
        return self._client.peer

    def begin(self, fields: h2_headers.RequestFields, *, end: bool) -> None:
        """Take the request's headers."""
        client = self._client
        self.stream.owner = self
        if end and fields.length > 0:
            self.stream.reset(Code.PROTOCOL_ERROR)
            return
        self._left = fields.length
        self._chunked = not end and fields.length < 0
        try:
            head = self._head = parse_request(_raw(fields, chunked=self._chunked))
        except HeadError as error:
            client.plane.refusals += 1
            self._reply(errors.bad_request(str(error)))
            return
        if fields.method == b"CONNECT":
            self._reply(errors.Answer(405))
        elif not client.allows(fields):
            self._reply(errors.unauthorized())
        else:
            self._find(head, end=end)

    def _find(self, head: RequestHead, *, end: bool) -> None:
        client = self._client
        found = client.find(head.host, head.target)
        if isinstance(found, NeedsModel):
            if end:
                self._missed(head, client.plane.table.find_model(""))
            else:
                self._peek = []
        elif isinstance(found, Missed):
            self._missed(head, found)
        else:
            self._start(head, found, [], end=end)

    def _missed(self, head: RequestHead, missed: Found | Missed) -> None:
        client = self._client
        if isinstance(missed, Found):
            self._start(head, missed, [], end=True)
            return
        with_token = bool(client.plane.token)
        self._reply(entry.missed(head, missed, client.admin, with_token=with_token))

    def _start(self, head: RequestHead, found: Found, body: list[bytes], *, end: bool) -> None:
        plane = self._client.plane
        target = plane.target_of(found.route)
        if target is None:
            self._reply(errors.no_upstream())
            return
        without_token = bool(plane.token) and not self._client.service
        framed = self._framed(body, end=end)
        size = sum(map(len, framed))
        self._unread += sum(map(len, body))
        self.exchange = exchange = Exchange(
            cast("ClientConnection", self), head, found.route, target, b"", framed, size, end
        )
        exchange.fresh = b"%b%b%b%b\r\n" % (
            entry.beginning(head, found, without_token=without_token),
            target.mark,
            entry.forwarded(head, entry.forwarding(self.peer)),
            plane.traces.lines(exchange, head, b"", self.peer),
        )
        target.start(exchange)

    def _framed(self, pieces: list[bytes], *, end: bool) -> list[bytes]:
        if not self._chunked:
            return pieces
        return [*encode(pieces), *([LAST] if end else [])]

    # What its stream tells

    def data(self, data: bytes, *, end: bool) -> None:
        """Take a part of the body."""
        size = len(data)
        if self._left >= 0:
            self._left -= size
            if self._left < 0 or (end and self._left):
                # Not what was declared: the replica must not take it for whole.
                self._drop(Code.PROTOCOL_ERROR)
                return
        peek = self._peek
        if peek is not None:
            self._look(peek, data, end=end)
            return
        exchange = self.exchange
        if exchange is None:
            self.stream.consumed(size)
            return
        # With all that was declared it is whole; END_STREAM may come in a frame of its own.
        exchange.body_done = exchange.body_done or end or not self._left
        self._unread += size
        framed = self._framed([data] if data else [], end=end)
        if framed:
            exchange.send(framed)
        upstream = exchange.upstream
        if upstream is not None and not upstream.write_paused:
            self._give_back()

    def _look(self, peek: list[bytes], data: bytes, *, end: bool) -> None:
        peek.append(data)
        self._peeked += len(data)
        if not end and self._peeked < min(2 * self._looked, PEEK_LIMIT):
            # Looking again is worth it only when there is much more to see.
            return
        self._looked = self._peeked
        body = b"".join(peek)
        model = model_of(body)
        if model is None and not end and len(body) < PEEK_LIMIT:
            return
        head = self._head
        assert head is not None  # the body comes after it
        self._peek = None
        found = self._client.plane.table.find_model(model or "")
        if isinstance(found, Found):
            self._start(head, found, [body], end=end)
        else:
            self._missed(head, found)

    def _give_back(self) -> None:
        size, self._unread = self._unread, 0
        if size:
            self.stream.consumed(size)

    def _drop(self, code: Code) -> None:
        self.stream.owner = None
        self.stream.reset(code)
        self.reset()

    def reset(self) -> None:
        """The client gave up, or its connection is gone."""
        exchange, self.exchange = self.exchange, None
        if exchange is not None and not exchange.finished:
            self._client.plane.cancel(exchange)

    def sent(self, size: int) -> None:
        """Bytes of the answer that had waited are out."""
        if self.write_paused and not self.stream.waiting:
            self.write_paused = False
            exchange = self.exchange
            if exchange is not None and exchange.upstream is not None:
                exchange.upstream.resume_reading()

    # What the data plane and the replica's connection call

    def bound(self, exchange: Exchange) -> None:
        """The request has its connection."""
        self.read_paused = False
        self._give_back()

    def held(self, exchange: Exchange) -> None:
        """The request waits; what came of it stays within the stream's window."""
        self.read_paused = True

    def pause_reading(self) -> None:
        """The replica does not keep up: the window does the rest."""
        self.read_paused = True

    def resume_reading(self) -> None:
        """The replica keeps up again."""
        self.read_paused = False
        self._give_back()

    def interim(self, head: ResponseHead) -> None:
        """Send what comes before an answer."""
        self.stream.send_headers(_answer_headers(head))

    def send_head(self, exchange: Exchange, head: ResponseHead, *, length: int) -> None:
        """Send the answer's head; `length` 0: there is no body."""
        done = length == 0
        told = trace_fields(exchange, HTTP_LIMIT) if exchange.head.asks else []
        self.stream.send_headers([*_answer_headers(head), *told], end=done)

    def write(self, data: bytes) -> None:
        """Send a part of the answer's body."""
        if data:
            self.stream.send(data)
            self._slow_down()

    def send_body(self, exchange: Exchange, pieces: list[bytes], *, last: bool = False) -> None:
        """Send a part of an answer that has no declared length."""
        for data in pieces:
            self.stream.send(data)
        self._slow_down()

    def _slow_down(self) -> None:
        if self.stream.waiting and not self.write_paused:
            self.write_paused = True
            exchange = self.exchange
            if exchange is not None and exchange.upstream is not None:
                exchange.upstream.pause_reading()

    def response_done(self, exchange: Exchange) -> None:
        """The answer is out."""
        self.exchange = None
        self._end()

    def answer(self, answer: errors.Answer, exchange: Exchange) -> None:
        """Send a whole answer of our own."""
        self.exchange = None
        if exchange.head.asks:
            answer.headers += trace_line(exchange)
        self._reply(answer)

    def _reply(self, answer: errors.Answer) -> None:
        raw = answer.encode(close=False, head_only=True)
        fields = [
            (name.lower(), value)
            for name, _, value in (line.partition(b": ") for line in raw.split(b"\r\n")[1:])
            if name and name.lower() not in (b"connection", b"content-length")
        ]
        status = (b":status", b"%d" % answer.status)
        body = b"" if self._head is not None and self._head.is_head else answer.body
        self.stream.send_headers(
            [status, *fields, (b"content-length", b"%d" % len(answer.body))], end=not body
        )
        if body:
            self.stream.send(body, end=True)
        self._end()

    def _end(self) -> None:
        stream = self.stream
        if not stream.done:
            stream.send(b"", end=True)
        self._give_back()
        if not stream.peer_done and not stream.waiting and self._left:
            # The rest of the upload is of no use to anybody.
            stream.reset(Code.NO_ERROR)

    def cut(self, exchange: Exchange) -> None:
        """End an answer that cannot be completed."""
        self.close()

    def close(self) -> None:
        """End an answer that is cut short."""
        self.exchange = None
        self.stream.reset(Code.INTERNAL_ERROR)

    def tunnel(self, exchange: Exchange, head: ResponseHead, rest: bytes) -> None:
        """End the stream: no request of it asks for another protocol, so nobody may switch."""
        self.close()

    def half_close(self) -> None:
        """End nothing: there is no tunnel."""


def _raw(fields: h2_headers.RequestFields, *, chunked: bool) -> bytes:
    """Return the request's head as a client would write it in HTTP/1.1."""
    lines = [b"%b %b HTTP/1.1" % (fields.method, fields.path), b"Host: %b" % fields.authority]
    lines += [b"%b: %b" % pair for pair in fields.fields if pair[0] != b"te"]
    if chunked:
        lines.append(b"Transfer-Encoding: chunked")
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _answer_headers(head: ResponseHead) -> list[tuple[bytes, bytes]]:
    lines = head.head.split(b"\r\n")[1:]
    pairs = (line.partition(b": ") for line in lines if line)
    return [
        (b":status", b"%d" % head.status),
        *((name.lower(), value) for name, _, value in pairs),
    ]


def take_over(client: ClientConnection, data: bytes) -> None:
    """Make a client that begins with HTTP/2's preface one that speaks it."""
    transport = client.transport
    own = Http2Client(client.plane, client.admin, client.service)
    client.plane.clients.discard(client)
    transport.set_protocol(own)
    own.connection_made(transport)
    own.active_at = perf_counter()
    own.data_received(data)
