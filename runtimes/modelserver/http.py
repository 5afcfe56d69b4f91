"""HTTP/1.1 on a raw asyncio protocol: heads in, bodies in, answers out; it knows no models.

A head is checked by httptools (llhttp) and by `parse_head`; bodies are framed here (length or
chunked), because the parser is slow at them. Clients that keep a connection alive send the same
head again and again, so checked heads are remembered by their bytes, with the route that was
resolved for them: the usual request costs one search and one dictionary lookup before its body is
handled. One request per connection is in work at a time; pipelined ones wait in the buffer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from email.utils import formatdate
from types import MappingProxyType
from typing import Any, Protocol
from urllib.parse import unquote

import httptools

logger = logging.getLogger(__name__)

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 256
# Unread input kept for a connection whose request is still in work.
MAX_PIPELINED_BYTES = 256 * 1024
_CACHED_HEADS = 512
_CACHED_HEAD_BYTES = 2048

JSON = b"application/json"

_REASONS = {
    100: "Continue",
    200: "OK",
    307: "Temporary Redirect",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    409: "Conflict",
    413: "Content Too Large",
    417: "Expectation Failed",
    418: "I'm a Teapot",
    422: "Unprocessable Content",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
}


class BadRequest(Exception):
    """The bytes are not HTTP/1.1 as we accept it; `status` is the answer before closing."""

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


class Head:
    """A checked request head.

    Args:
        path: Percent-decoded, without the query.
        raw_path: As sent, without the query.
        headers: Lower-case names; of repeated fields the last value.
        content_length: Body length; 0 without a body, -1 when chunked.
        route: What `App.route` returned for it.
    """

    __slots__ = (
        "content_length",
        "expect",
        "headers",
        "http10",
        "keep_alive",
        "method",
        "path",
        "query",
        "raw_path",
        "route",
    )

    method: str
    path: str
    raw_path: str
    query: str
    headers: Mapping[str, str]
    content_length: int
    keep_alive: bool
    http10: bool
    expect: bool
    route: Any


class App(Protocol):
    """What answers requests."""

    def route(self, head: Head) -> Any:
        """Resolve a head once; the result comes back in `head.route`. Must not depend on state."""

    def handle(self, connection: Connection, head: Head, body: bytes) -> None:
        """Answer now or later, through `connection.send` or `connection.start_task`."""


class _Fields:
    """The callbacks of one head's parser."""

    __slots__ = ("fields", "target")

    def __init__(self) -> None:
        self.target = b""
        self.fields: list[tuple[bytes, bytes]] = []

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value))


def parse_head(raw: bytes) -> Head:
    """Return the checked head, `route` unset.

    Raises:
        BadRequest: Not HTTP/1.x, ambiguous framing (two lengths, length beside transfer-encoding, a
            coding other than `chunked`), a bad Host, or too many fields.
    """
    seen = _Fields()
    parser = httptools.HttpRequestParser(seen)
    try:
        parser.feed_data(raw)
    except httptools.HttpParserUpgrade:
        # "Upgrade" is an offer the server may ignore; CONNECT has no meaning here.
        if parser.get_method() == b"CONNECT":
            raise BadRequest("CONNECT is not served", 405) from None
    except httptools.HttpParserError as error:
        raise BadRequest("Invalid HTTP request received.") from error
    if len(seen.fields) > MAX_HEADERS:
        raise BadRequest("Too many header fields", 431)
    head = Head()
    headers: dict[str, str] = {}
    counted = {b"host": 0, b"content-length": 0, b"transfer-encoding": 0}
    for raw_name, value in seen.fields:
        name = raw_name.lower()
        if name in counted:
            counted[name] += 1
        headers[name.decode("latin-1")] = value.decode("latin-1")
    version = parser.get_http_version()
    if any(count > 1 for count in counted.values()):
        raise BadRequest("Invalid HTTP request received.")
    if version not in ("1.0", "1.1") or (version == "1.1" and not counted[b"host"]):
        raise BadRequest("Invalid HTTP request received.")
    coding = headers.get("transfer-encoding")
    if coding is not None:
        if counted[b"content-length"] or coding.lower() != "chunked" or version == "1.0":
            raise BadRequest("Invalid HTTP request received.")
        head.content_length = -1
    else:
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            raise BadRequest("Invalid HTTP request received.")
        head.content_length = int(length)
    try:
        url = httptools.parse_url(seen.target)
        head.raw_path = (url.path or b"/").decode("ascii")
        head.query = (url.query or b"").decode("latin-1")
    except (httptools.HttpParserInvalidURLError, UnicodeDecodeError) as error:
        raise BadRequest("Invalid HTTP request received.") from error
    head.path = unquote(head.raw_path) if "%" in head.raw_path else head.raw_path
    head.method = parser.get_method().decode("ascii")
    # Read-only: remembered heads are shared between requests.
    head.headers = MappingProxyType(headers)
    head.http10 = version == "1.0"
    head.keep_alive = _keep_alive(headers.get("connection", ""), head.http10)
    head.expect = "expect" in headers
    if head.expect and headers["expect"].lower() != "100-continue":
        raise BadRequest("Expectation Failed", 417)
    head.route = None
    return head


def _keep_alive(connection: str, http10: bool) -> bool:
    options = {option.strip().lower() for option in connection.split(",")}
    return "keep-alive" in options if http10 else "close" not in options


class _Chunks:
    """Decoder of a chunked body: sizes and CRLFs strictly, extensions and trailers dropped."""

    __slots__ = ("_data", "_left", "_state", "body")

    def __init__(self) -> None:
        self.body = bytearray()
        self._data = bytearray()
        self._left = 0
        self._state = "size"

    def feed(self, data: bytes) -> bytes | None:
        """Take more input; returns None while the body goes on, else what follows the body.

        Raises:
            BadRequest: The framing is broken.
        """
        buf = self._data
        buf += data
        while True:
            if self._state == "data":
                take = min(self._left, len(buf))
                self.body += buf[:take]
                del buf[:take]
                self._left -= take
                if self._left:
                    return None
                self._state = "end"
            if self._state == "end":
                if len(buf) < 2:
                    return None
                if buf[:2] != b"\r\n":
                    raise BadRequest("Invalid HTTP request received.")
                del buf[:2]
                self._state = "size"
            end = buf.find(b"\r\n")
            if end < 0:
                if len(buf) > 4096:
                    raise BadRequest("Invalid HTTP request received.")
                return None
            line = bytes(buf[:end])
            del buf[: end + 2]
            if self._state == "trailer":
                if not line:
                    return bytes(buf)
                continue
            size = line.split(b";", 1)[0].rstrip(b" \t")
            if not size or len(size) > 15 or size.strip(b"0123456789abcdefABCDEF"):
                raise BadRequest("Invalid HTTP request received.")
            self._left = int(size, 16)
            self._state = "data" if self._left else "trailer"


class Connection(asyncio.Protocol):
    """One client connection."""

    __slots__ = (
        "_buffer",
        "_busy",
        "_chunks",
        "_drained",
        "_head",
        "_missing",
        "_parts",
        "_paused",
        "_server",
        "_streaming",
        "_task",
        "_transport",
        "closed",
        "idle_since",
    )

    def __init__(self, server: Server) -> None:
        self._server = server
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # set on connect
        self._buffer = b""
        self._busy = False
        self._chunks: _Chunks | None = None
        self._drained: asyncio.Future[None] | None = None
        self._head: Head | None = None
        self._missing = 0
        self._parts: list[bytes] = []
        self._paused = False
        self._streaming = False
        self._task: asyncio.Task[None] | None = None
        self.closed = False
        self.idle_since = 0.0

    # -- transport ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a TCP transport
        self.idle_since = self._server.now()
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._server.connections.discard(self)
        self._server.finished()
        if self._task is not None:
            self._task.cancel()
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def eof_received(self) -> bool:
        # A client may half-close after its request; what is in work is still answered.
        return self._busy

    def pause_writing(self) -> None:
        self._drained = self._server.loop.create_future()

    def resume_writing(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None

    def data_received(self, data: bytes) -> None:
        try:
            if self._busy:
                self._buffer += data
                if len(self._buffer) > MAX_PIPELINED_BYTES and not self._paused:
                    self._paused = True
                    self._transport.pause_reading()
            elif self._head is None:
                self._read_head(self._buffer + data if self._buffer else data)
            else:
                self._read_body(data)
        except BadRequest as error:
            self._refuse(error)

    # -- reading -----------------------------------------------------------------------------------

    def _read_head(self, data: bytes) -> None:
        if data[0] in b"\r\n":
            # Some clients end a body with a CRLF that no length counts.
            data = data.lstrip(b"\r\n")
        end = data.find(b"\r\n\r\n") + 4
        if end < 4:
            if len(data) > MAX_HEAD_BYTES:
                raise BadRequest("Request head is too large", 431)
            if b"\n\n" in data or b"\0" in data:
                raise BadRequest("Invalid HTTP request received.")
            self._buffer = data
            return
        raw = data[:end]
        server = self._server
        head = server.heads.get(raw)
        if head is None:
            if end > MAX_HEAD_BYTES:
                raise BadRequest("Request head is too large", 431)
            head = parse_head(raw)
            head.route = server.app.route(head)
            if end <= _CACHED_HEAD_BYTES:
                if len(server.heads) >= _CACHED_HEADS:
                    server.heads.clear()
                server.heads[raw] = head
        length = head.content_length
        have = len(data) - end
        if have == length:
            self._buffer = b""
            self._start(head, data[end:] if length else b"")
        elif length < 0:
            self._buffer = b""
            self._head = head
            self._chunks = _Chunks()
            self._continue(head, have)
            self._read_body(data[end:])
        elif have > length:
            self._buffer = data[end + length :]
            self._start(head, data[end : end + length])
        else:
            self._buffer = b""
            self._head = head
            self._continue(head, have)
            self._parts = [data[end:]]
            self._missing = length - have

    def _read_body(self, data: bytes) -> None:
        head = self._head
        assert head is not None
        if self._chunks is not None:
            rest = self._chunks.feed(data)
            if rest is None:
                return
            body = bytes(self._chunks.body)
            self._chunks = None
            self._buffer = rest
        else:
            self._missing -= len(data)
            if self._missing > 0:
                self._parts.append(data)
                return
            if self._missing < 0:
                self._buffer = data[self._missing :]
                data = data[: self._missing]
            self._parts.append(data)
            body = b"".join(self._parts)
            self._parts = []
        self._head = None
        self._start(head, body)

    def _continue(self, head: Head, have: int) -> None:
        if head.expect and not have:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _start(self, head: Head, body: bytes) -> None:
        self._busy = True
        self._head = head
        try:
            self._server.app.handle(self, head, body)
        except Exception:
            logger.exception("%s %s failed", head.method, head.raw_path)
            if self._busy and not self._streaming:
                self.send(500, b'{"error":"Internal Server Error"}')

    def _resume(self) -> None:
        if self.closed or self._busy:
            return
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        data, self._buffer = self._buffer, b""
        if data:
            self.data_received(data)

    def _refuse(self, error: BadRequest) -> None:
        """Answer bytes that are no request, and close: what follows cannot be framed."""
        text = str(error).encode()
        self._transport.write(
            _status_line(error.status) + b"content-type: text/plain; charset=utf-8\r\n"
            b"content-length: %d\r\nconnection: close\r\n\r\n" % len(text) + text
        )
        self._head = None
        self._busy = True
        self._transport.close()

    # -- answering ---------------------------------------------------------------------------------

    def send(
        self,
        status: int,
        body: bytes,
        content_type: bytes | None = JSON,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        """Send a whole answer and go on to the next request; nothing when the client is gone."""
        head = self._head
        if self.closed or head is None:
            return
        server = self._server
        if status == 200 and content_type is JSON and time.time() < server.ok_until:
            start = server.ok
        else:
            start = server.prefix(status, content_type)
        if headers or not head.keep_alive or head.http10 or server.draining:
            lines = b"".join(b"%b: %b\r\n" % pair for pair in headers)
            if not self._keeps(head):
                lines += b"connection: close\r\n"
            elif head.http10:
                lines += b"connection: keep-alive\r\n"
            start += lines
        if head.method == "HEAD":
            self._transport.write(b"%bcontent-length: %d\r\n\r\n" % (start, len(body)))
        elif len(body) < 65536:
            self._transport.write(b"%bcontent-length: %d\r\n\r\n%b" % (start, len(body), body))
        else:
            self._transport.writelines([b"%bcontent-length: %d\r\n\r\n" % (start, len(body)), body])
        self._end(head)

    def start_task(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work`, which answers this request; it is cancelled when the client goes away."""
        task = self._server.loop.create_task(work, name="request")
        self._task = task
        self._server.tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._server.tasks.discard(task)
        if self._task is task:
            self._task = None
        if task.cancelled():
            if not self.closed:
                self._transport.abort()
            return
        error = task.exception()
        if error is not None:
            logger.error("request failed", exc_info=error)
            # A stream that has begun has no status left to change: end the connection instead.
            if self._streaming:
                self._transport.abort()
            elif self._busy:
                self.send(500, b'{"error":"Internal Server Error"}')

    async def stream_start(
        self,
        status: int,
        content_type: bytes | None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        """Begin an answer of unknown length; then `stream_write` and `stream_end`."""
        head = self._head
        if self.closed or head is None:
            raise ConnectionResetError
        self._streaming = True
        lines = b"".join(b"%b: %b\r\n" % pair for pair in headers)
        if not head.http10:
            lines += b"transfer-encoding: chunked\r\n"
        if not self._keeps(head) or head.http10:
            lines += b"connection: close\r\n"
        self._transport.write(self._server.prefix(status, content_type) + lines + b"\r\n")

    async def stream_write(self, data: bytes) -> None:
        """Send a piece; waits while the client does not read.

        Raises:
            ConnectionResetError: The client is gone.
        """
        if self.closed or self._head is None:
            raise ConnectionResetError
        if data:
            chunk = data if self._head.http10 else b"%x\r\n%b\r\n" % (len(data), data)
            self._transport.write(chunk)
        if self._drained is not None:
            await self._drained

    def stream_end(self) -> None:
        """End the answer."""
        head = self._head
        if self.closed or head is None:
            return
        self._streaming = False
        if head.http10:
            # Without chunks only the end of the connection ends the answer.
            self._transport.close()
        else:
            self._transport.write(b"0\r\n\r\n")
        self._end(head)

    def _keeps(self, head: Head) -> bool:
        return head.keep_alive and not self._server.draining

    def _end(self, head: Head) -> None:
        self._busy = False
        self._head = None
        self.idle_since = self._server.now()
        if not self._keeps(head):
            self._transport.close()
        elif self._buffer or self._paused:
            self._server.loop.call_soon(self._resume)

    # -- shutting down -----------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """A request is being read or answered."""
        return self._busy or self._head is not None

    def close_idle(self) -> None:
        """Close unless a request is being read or answered."""
        if not self.busy:
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()


class Server:
    """The connections of one process, and what they share.

    Args:
        keep_alive: Seconds after which an idle connection is closed.
    """

    def __init__(
        self, app: App, loop: asyncio.AbstractEventLoop, *, keep_alive: float = 65.0
    ) -> None:
        self.app = app
        self.loop = loop
        self.keep_alive = keep_alive
        self.connections: set[Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.heads: dict[bytes, Head] = {}
        self.draining = False
        self.now: Callable[[], float] = loop.time
        self._prefixes: dict[tuple[int, bytes | None], bytes] = {}
        self._prefix_second = 0
        # The most common prefix, and until when (Unix time) its date is right.
        self.ok = b""
        self.ok_until = 0.0
        self._empty: asyncio.Future[None] | None = None
        self._sweep: asyncio.TimerHandle | None = None

    def protocol(self) -> Connection:
        """Return the protocol of a new connection (a factory for `create_server`)."""
        if self._sweep is None:
            self._sweep = self.loop.call_later(min(5.0, self.keep_alive), self._close_idle)
        return Connection(self)

    def prefix(self, status: int, content_type: bytes | None) -> bytes:
        """Return status line, server, date and content type; made once a second."""
        second = int(time.time())
        if second != self._prefix_second:
            self._prefixes.clear()
            self._prefix_second = second
        key = (status, content_type)
        made = self._prefixes.get(key)
        if made is None:
            made = _status_line(status) + b"date: %b\r\nserver: kserve-local\r\n" % (
                formatdate(second, usegmt=True).encode()
            )
            if content_type is not None:
                made += b"content-type: %b\r\n" % content_type
            self._prefixes[key] = made
            if key == (200, JSON):
                self.ok = made
                self.ok_until = second + 1.0
        return made

    def _close_idle(self) -> None:
        self._sweep = None
        oldest = self.now() - self.keep_alive
        for connection in list(self.connections):
            if connection.idle_since < oldest:
                connection.close_idle()
        if self.connections:
            self._sweep = self.loop.call_later(min(5.0, self.keep_alive), self._close_idle)

    def finished(self) -> None:
        """A connection ended; wakes `drain`."""
        if not self.connections and self._empty is not None and not self._empty.done():
            self._empty.set_result(None)

    async def drain(self, grace: float) -> None:
        """Let open requests finish for up to `grace` seconds, then close every connection."""
        self.draining = True
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for connection in list(self.connections):
            connection.close_idle()
        if self.connections:
            self._empty = self.loop.create_future()
            await asyncio.wait([self._empty], timeout=grace)
        for connection in list(self.connections):
            connection.abort()
        for task in list(self.tasks):
            task.cancel()
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=5)


def _status_line(status: int) -> bytes:
    return f"HTTP/1.1 {status} {_REASONS.get(status, 'Unknown')}\r\n".encode()
