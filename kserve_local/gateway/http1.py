"""HTTP/1.1 from clients: one connection, one request at a time, bodies as they come.

The head is read whole and strictly (`head`), the body is framed by its length without being
looked at, or decoded when chunked. A request that has begun is an `Exchange` of the data plane;
this side only writes what comes back and slows down whoever is too fast. What a client sends
beyond its request waits (bounded) until the answer is out.
"""

from __future__ import annotations

import asyncio
import select
from typing import TYPE_CHECKING

from kserve_local.gateway import entry, errors, tracecontext
from kserve_local.gateway.chunked import LAST, ChunkDecoder, ChunkError, encode
from kserve_local.gateway.head import (
    MAX_HEAD,
    PREFACE,
    HeadError,
    RequestHead,
    ResponseHead,
    parse_request,
    part_ids,
    refuse_early,
)
from kserve_local.gateway.pipe import PipeEnd
from kserve_local.gateway.proxy import Dataplane, Exchange
from kserve_local.gateway.table import (
    PEEK_LIMIT,
    CompiledRoute,
    Found,
    Missed,
    NeedsModel,
    model_of,
)
from kserve_local.gateway.trace import trace_line

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD_TIMEOUT = 60.0
IDLE_TIMEOUT = 300.0
LINGER = 3.0
DROP_TIME = 30.0
DROP_LIMIT = 256 * 1024 * 1024
AHEAD = 64 * 1024
PENDING = 256 * 1024
TOGETHER = 16 * 1024

_HEAD, _BODY, _CHUNKS, _WAIT, _LINGER, _TUNNEL = range(6)

# Clients repeat themselves, so readings of heads that are equal but for their ids are kept. Each
# Service's own address has its own: where an equal head leads to depends on it.
_KNOWN: dict[bytes, dict[bytes, RequestHead]] = {}
_KNOWN_LIMIT = 1024
_KNOWN_SIZE = 2048


class _Peek:
    """A request whose route hangs on its body: what came of it so far."""

    __slots__ = ("body", "head", "looked", "pending", "size")

    def __init__(self, head: RequestHead) -> None:
        self.head = head
        self.body: list[bytes] = []
        self.pending: list[bytes] = []
        self.size = 0
        self.looked = 0


class ClientConnection(asyncio.Protocol):
    """One client.

    Args:
        plane: Where requests go.
        admin: Answers `/-/...` on hosts that are no route's; None for an unknown path.
        service: On a Service's own address: the host its requests are for.

    Attributes:
        ended: In a tunnel: the client has nothing more to say.
        plain: The answer needs no change for this client: HTTP/1.1, kept alive.
    """

    __slots__ = (
        "_ahead",
        "_buffer",
        "_close",
        "_decoder",
        "_dropped",
        "_ids",
        "_known",
        "_left",
        "_out_chunked",
        "_peek",
        "_poll",
        "_request_head",
        "_seen",
        "_since",
        "_state",
        "_suffix",
        "admin",
        "ended",
        "exchange",
        "peer",
        "plain",
        "plane",
        "read_paused",
        "requests",
        "service",
        "transport",
        "wants_continue",
        "write_paused",
    )

    transport: asyncio.Transport
    protocol = "HTTP/1.1"

    def __init__(
        self,
        plane: Dataplane,
        admin: Callable[[bytes], errors.Answer | None],
        service: bytes = b"",
    ) -> None:
        self.plane = plane
        self.admin = admin
        self.service = service
        self.exchange: Exchange | None = None
        self.requests = 0
        self.plain = True
        self.ended = False
        self.write_paused = False
        self.peer = ""
        self._state = _HEAD
        self._buffer = b""
        self._ahead = False
        self._left = 0
        self._decoder: ChunkDecoder | None = None
        self._peek: _Peek | None = None
        self.read_paused = False
        self._close = False
        self._out_chunked = False
        self.wants_continue = False
        self._request_head: RequestHead | None = None
        self._dropped = 0
        self._seen = (-1, 0)
        self._since = 0.0
        self._poll: select.poll | None = None
        self._suffix = b""
        # Lines of the request that are not in its head: they are its own.
        self._ids = b""
        self._known = _KNOWN.setdefault(service, {})

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # always a full transport here
        peer = transport.get_extra_info("peername")
        self.peer = str(peer[0]) if isinstance(peer, tuple) else "127.0.0.1"
        self._suffix = entry.forwarding(self.peer)
        self.plane.clients.add(self)
        self.plane.connections += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.plane.client_gone(self)
        exchange, self.exchange = self.exchange, None
        self._peek = None
        if exchange is not None and not exchange.finished:
            self.plane.cancel(exchange)

    # Reading

    def data_received(self, data: bytes) -> None:
        state = self._state
        if state == _HEAD:
            self._read_head(self._buffer + data if self._buffer else data)
        elif state == _BODY:
            left = self._left - len(data)
            if left < 0:
                self._buffer = data[left:]
                data = data[:left]
            if left > 0:
                self._left = left
                exchange = self.exchange
                if exchange is not None and exchange.upstream is not None:
                    exchange.pass_on([data])
                    exchange.upstream.transport.write(data)
                else:
                    self._body([data], [data])
                return
            self._left = 0
            self._state = _WAIT
            self._body([data], [data], done=True)
        elif state == _CHUNKS:
            self._read_chunks(data)
        elif state == _WAIT:
            self._buffer += data
            if len(self._buffer) > AHEAD:
                self.pause_reading()
        elif state == _TUNNEL:
            exchange = self.exchange
            if exchange is not None and exchange.upstream is not None:
                exchange.upstream.transport.write(data)

    def _read_head(self, data: bytes) -> None:
        end = data.find(b"\r\n\r\n") + 4
        if end < 4 or end > MAX_HEAD or data[:2] == b"\r\n":
            self._odd_head(data, end)
            return
        self._buffer = b""
        raw = data if end == len(data) else data[:end]
        known = self._known
        head = known.get(raw)
        self._ids = b""
        if head is None:
            raw, self._ids = part_ids(raw)
            head = known.get(raw)
        if head is None:
            try:
                head = parse_request(raw)
            except HeadError as error:
                self._refuse(data, str(error))
                return
            if len(raw) <= _KNOWN_SIZE and not head.has_id:
                if len(known) >= _KNOWN_LIMIT:
                    known.clear()
                known[raw] = head
        self._request(head, data[end:])

    def _odd_head(self, data: bytes, end: int) -> None:
        if data[:2] == b"\r\n" and not self._ahead:
            # One empty line before a request is tolerated (RFC 9112 section 2.2).
            self._ahead = True
            self._buffer = b""
            if len(data) > 2:
                self._read_head(data[2:])
            return
        if not self.requests and PREFACE.startswith(data):
            self._buffer = data
            return
        if data[:2] == b"\r\n":
            why = "empty lines before the request"
        elif end > MAX_HEAD:
            why = f"a head of more than {MAX_HEAD // 1024} KiB"
        else:
            why = refuse_early(data)
        if why:
            self._refuse(data, why)
        else:
            self._buffer = data

    def _refuse(self, data: bytes, why: str) -> None:
        """Answer 400 and end the connection: nothing that follows can be trusted."""
        if data.startswith(PREFACE) and not self.requests:
            from kserve_local.gateway import http2

            http2.take_over(self, data)
            return
        self.plane.refusals += 1
        self.transport.write(errors.bad_request(why).encode(close=True, head_only=False))
        self._buffer = b""
        self._linger()

    def _request(self, head: RequestHead, rest: bytes) -> None:
        self.requests += 1
        self._ahead = False
        self._request_head = head
        self._close = not head.keep_alive or self.plane.draining
        self.plain = not self._close and head.minor == 1
        pieces: list[bytes] = []
        pending: list[bytes] = []
        done = True
        if head.chunked:
            self._decoder = decoder = ChunkDecoder()
            try:
                pieces = decoder.feed(rest)
            except ChunkError as error:
                self._refuse(b"", str(error))
                return
            pending = encode(pieces)
            if decoder.done:
                pending.append(LAST)
                self._buffer = decoder.rest
                self._decoder = None
                self._state = _WAIT
            else:
                done = False
                self._state = _CHUNKS
        elif length := head.length:
            size = len(rest)
            if size >= length:
                if size > length:
                    self._buffer = rest[length:]
                    rest = rest[:length]
                self._state = _WAIT
            else:
                done = False
                self._left = length - size
                self._state = _BODY
            if rest:
                pending = pieces = [rest]
        else:
            self._buffer = rest
            self._state = _WAIT
        self.wants_continue = head.expect and not pieces and not done
        if head.table is self.plane.table:
            self._start(head, head.route, head.fresh, pending, done)
        else:
            self._find(head, pieces, pending, done)

    def _find(
        self, head: RequestHead, pieces: list[bytes], pending: list[bytes], done: bool
    ) -> None:
        if head.method == b"CONNECT":
            self._reply(errors.Answer(405, close=True))
            return
        plane = self.plane
        if plane.token and not self.service and not entry.bears(head.authorization, plane.token):
            self._reply(errors.unauthorized())
            return
        table = plane.table
        found = entry.find(table, self.service, head.host, head.target)
        if isinstance(found, Found):
            self._found(head, found, pending, done)
        elif isinstance(found, NeedsModel):
            self._peek = _Peek(head)
            if self.wants_continue:
                self.wants_continue = False
                self.transport.write(errors.CONTINUE)
            self._body(pieces, pending, done=done)
        else:
            self._missed(head, found)

    def _found(self, head: RequestHead, found: Found, pending: list[bytes], done: bool) -> None:
        without_token = bool(self.plane.token) and not self.service
        fresh = entry.beginning(head, found, without_token=without_token)
        if self._peek is None:
            head.table, head.route, head.fresh = self.plane.table, found.route, fresh
        self._peek = None
        self._start(head, found.route, fresh, pending, done)

    def _missed(self, head: RequestHead, missed: Missed) -> None:
        self._reply(entry.missed(head, missed, self.admin, with_token=bool(self.plane.token)))

    def _start(
        self,
        head: RequestHead,
        route: CompiledRoute | None,
        fresh: bytes,
        pending: list[bytes],
        done: bool,
    ) -> None:
        plane = self.plane
        target = plane.target_of(route) if route is not None else None
        if route is None or target is None:
            self._reply(errors.no_upstream())
            return
        suffix = entry.forwarded(head, self._suffix) if head.forwarded_for else self._suffix
        # A small body travels with its head: one buffer, one write.
        body, size = b"", 0
        if pending:
            size = len(pending[0]) if len(pending) == 1 else sum(map(len, pending))
            if size < TOGETHER:
                body, pending, size = b"".join(pending), [], 0
        self.exchange = exchange = Exchange(self, head, route, target, b"", pending, size, done)
        ids = self._ids
        if ids or head.asks or head.context is not None or plane.traces.active:
            lines = plane.traces.lines(exchange, head, ids, self.peer)
            self.plain = self.plain and not head.asks
        else:
            lines = tracecontext.begun()
        exchange.fresh = b"%b%b%b%b\r\n%b" % (fresh, suffix, target.mark, lines, body)
        target.start(exchange)

    def _read_chunks(self, data: bytes) -> None:
        decoder = self._decoder
        assert decoder is not None
        try:
            pieces = decoder.feed(data)
        except ChunkError as error:
            self._bad_body(str(error))
            return
        out = encode(pieces)
        if decoder.done:
            out.append(LAST)
            self._buffer = decoder.rest
            self._decoder = None
            self._state = _WAIT
            self._body(pieces, out, done=True)
        elif out:
            self._body(pieces, out)

    def _bad_body(self, why: str) -> None:
        """The body broke after its head was passed on: the replica must not take it for whole."""
        exchange, self.exchange = self.exchange, None
        answered = exchange.status != 0 if exchange is not None else self._peek is None
        self._peek = None
        if exchange is not None and not exchange.finished:
            exchange.status = exchange.status or 400
            self.plane.cancel(exchange)
        if answered:
            self._linger()
        else:
            self._refuse(b"", why)

    def _body(self, pieces: list[bytes], framed: list[bytes], *, done: bool = False) -> None:
        """Take a part of the body: `pieces` as it is, `framed` as it is passed on."""
        self.wants_continue = False if framed else self.wants_continue
        exchange = self.exchange
        if exchange is not None:
            exchange.body_done = exchange.body_done or done
            if framed:
                exchange.send(framed)
            if exchange.upstream is None and exchange.pending_size > PENDING:
                self.pause_reading()
            return
        peek = self._peek
        if peek is not None:
            self._look(peek, pieces, framed, done)
            return
        # The answer is already out: drop the rest of the upload, within reason.
        self._dropped += sum(map(len, pieces))
        if self._dropped > DROP_LIMIT:
            self.transport.abort()
        elif done:
            self._turn()

    def _look(self, peek: _Peek, pieces: list[bytes], framed: list[bytes], done: bool) -> None:
        peek.body += pieces
        peek.pending += framed
        peek.size += sum(map(len, pieces))
        if not done and peek.size < min(2 * peek.looked, PEEK_LIMIT):
            # Looking again is worth it only when there is much more to see.
            return
        peek.looked = peek.size
        model = model_of(b"".join(peek.body))
        if model is None and not done and peek.size < PEEK_LIMIT:
            return
        head = peek.head
        found = (
            self.plane.table.find_model(model)
            if model
            else Missed(
                self.plane.table.hint(),
                "",
                f'no "model" within the first {PEEK_LIMIT // 1024} KiB of the body',
            )
        )
        if isinstance(found, Found):
            self._found(head, found, peek.pending, done)
        else:
            self._peek = None
            self._missed(head, found)

    # What the data plane calls

    def bound(self, exchange: Exchange) -> None:
        """The request has its connection: let the rest of the body come."""
        if self.wants_continue:
            self.wants_continue = False
            self.transport.write(errors.CONTINUE)
        if self.read_paused and not (exchange.upstream and exchange.upstream.write_paused):
            self.resume_reading()

    def held(self, exchange: Exchange) -> None:
        """The request waits; what has come of its body waits with it."""
        if exchange.pending_size > PENDING:
            self.pause_reading()

    def interim(self, head: ResponseHead) -> None:
        """Write what comes before an answer."""
        self.transport.write(head.whole)

    def send_head(self, exchange: Exchange, head: ResponseHead, *, length: int) -> None:
        """Write the answer's head; `length` -1: its end is marked by chunks, or by closing."""
        extra = b""
        self._out_chunked = False
        request = exchange.head
        if length < 0:
            if request.minor:
                self._out_chunked = True
                extra = b"Transfer-Encoding: chunked\r\n"
            else:
                self._close = True
        if self._close:
            extra += b"Connection: close\r\n"
        elif not request.minor:
            extra += b"Connection: keep-alive\r\n"
        if request.asks:
            extra += trace_line(exchange)
        self.transport.write(b"%b%b\r\n" % (head.head, extra))

    def send_body(self, exchange: Exchange, pieces: list[bytes], *, last: bool = False) -> None:
        """Write a part of the answer that has no declared length."""
        if self._out_chunked:
            pieces = encode(pieces)
            if last:
                pieces.append(LAST)
        if pieces:
            self.transport.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    def response_done(self, exchange: Exchange) -> None:
        """The answer is out; turn to the next request, or to what is left of this one."""
        if exchange is self.exchange:
            self.exchange = None
        if (
            self.plain
            and self._state == _WAIT
            and not self._buffer
            and not self.read_paused
            and not self.plane.draining
        ):
            self._state = _HEAD
        else:
            self._turn()

    def answer(self, answer: errors.Answer, exchange: Exchange) -> None:
        """Write a whole answer of our own."""
        if exchange is self.exchange:
            self.exchange = None
        if exchange.head.asks:
            answer.headers += trace_line(exchange)
        self._reply(answer)

    def cut(self, exchange: Exchange) -> None:
        """End an answer that cannot be completed, so that the client sees that it is not."""
        self.exchange = None
        if self._out_chunked or exchange.declared:
            self.transport.close()
        else:
            self.transport.abort()

    def tunnel(self, exchange: Exchange, head: ResponseHead, rest: bytes) -> None:
        """The protocol switches: from here on bytes pass both ways unread."""
        self._state = _TUNNEL
        self.transport.write(
            b"%bConnection: Upgrade\r\nUpgrade: %b\r\n\r\n%b"
            % (head.head, head.upgrade or exchange.head.upgrade, rest)
        )
        early, self._buffer = self._buffer, b""
        if early and exchange.upstream is not None:
            exchange.upstream.transport.write(early)
        self.resume_reading()

    def half_close(self) -> None:
        """The other end of a tunnel has nothing more to say."""
        if not self.transport.is_closing() and self.transport.can_write_eof():
            self.transport.write_eof()

    def close(self) -> None:
        """Close after what is written has gone out."""
        self.exchange = None
        self.transport.close()

    # Between requests

    def _reply(self, answer: errors.Answer) -> None:
        head = self._request_head
        if answer.close:
            self._close = True
        self.transport.write(
            answer.encode(close=self._close, head_only=head is not None and head.is_head)
        )
        self._turn()

    def _turn(self) -> None:
        """Go on after an answer: close, drop the rest of the upload, or take what waits."""
        state = self._state
        if self._close or self.plane.draining:
            if state in (_BODY, _CHUNKS):
                self._linger()
            else:
                self.transport.close()
            return
        if state == _WAIT:
            self._state = _HEAD
            if self._buffer:
                asyncio.get_running_loop().call_soon(self._next)
            elif self.read_paused:
                self.resume_reading()
        else:
            self._dropped = 0
            self._since = 0.0
            self.resume_reading()

    def _next(self) -> None:
        if self._state != _HEAD or self.write_paused or self.transport.is_closing():
            return
        data, self._buffer = self._buffer, b""
        if data:
            self._read_head(data)
        if self.read_paused and len(self._buffer) <= AHEAD:
            self.resume_reading()

    def _linger(self) -> None:
        """Close so that the client can read the answer although it is still sending."""
        self._state = _LINGER
        self._since = 0.0
        self.exchange = None
        if not self.transport.is_closing():
            if self.transport.can_write_eof():
                self.transport.write_eof()
            self.resume_reading()

    def check(self, now: float) -> None:
        """Once a second: end what is idle, stuck, or gone without our reading it."""
        if self.transport.is_closing():
            # What is written goes out first, but not to a client that has stopped reading.
            size = self.transport.get_write_buffer_size()
            if (-1, size) != self._seen:
                self._seen = (-1, size)
                self._since = now
            elif now - self._since > DROP_TIME:
                self.transport.abort()
            return
        exchange = self.exchange
        if exchange is not None:
            if self.read_paused and self._is_gone():
                self.transport.abort()
            return
        # Not how much of a head is there: one that comes byte by byte has no more time.
        seen = (self.requests, bool(self._buffer))
        if seen != self._seen or not self._since:
            self._seen = seen
            self._since = now
            return
        idle = now - self._since
        if self._state == _HEAD:
            if self.plane.draining or idle > (HEAD_TIMEOUT if self._buffer else IDLE_TIMEOUT):
                self.transport.close()
        elif idle > (LINGER if self._state == _LINGER else DROP_TIME):
            self.transport.abort()

    def drain(self) -> None:
        """The gateway stops: end the connection if nothing runs on it."""
        if self._state == _HEAD and not self._buffer:
            self.transport.close()

    def _is_gone(self) -> bool:
        # Reading is paused, so the end of the connection has to be asked for.
        if isinstance(self.transport, PipeEnd):
            return False  # that one tells
        poll = self._poll
        if poll is None:
            poll = self._poll = select.poll()
            gone = getattr(select, "POLLRDHUP", 0)
            poll.register(self.transport.get_extra_info("socket").fileno(), gone)
        return bool(poll.poll(0))

    def eof_received(self) -> bool:
        exchange = self.exchange
        if self._state == _TUNNEL and exchange is not None and exchange.upstream is not None:
            self.ended = True
            upstream = exchange.upstream.transport
            if exchange.upstream.ended:
                exchange.upstream.close()
            elif not upstream.is_closing() and upstream.can_write_eof():
                upstream.write_eof()
            return True
        return False

    # Flow control

    def pause_writing(self) -> None:
        self.write_paused = True
        if self.exchange is not None and self.exchange.upstream is not None:
            self.exchange.upstream.pause_reading()

    def resume_writing(self) -> None:
        self.write_paused = False
        if self.exchange is not None:
            if self.exchange.upstream is not None:
                self.exchange.upstream.resume_reading()
        elif self._buffer:
            self._next()

    def pause_reading(self) -> None:
        """Whoever takes the body does not keep up."""
        if not self.read_paused and not self.transport.is_closing():
            self.read_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """There is room again."""
        if self.read_paused and not self.transport.is_closing():
            self.read_paused = False
            self.transport.resume_reading()
