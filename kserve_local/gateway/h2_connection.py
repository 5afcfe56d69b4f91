"""One HTTP/2 connection, either end of it: streams, flow control, settings, and what ends it.

Who owns the connection gets headers, data and ends of streams by the methods that begin with `on_`;
data that cannot go out yet waits in its stream. Bytes that came are given back to the peer's
windows only when the owner says `consumed`, so a slow reader slows the sender, with bounded memory.
What a stream leaves unread goes back to the connection's window with its end.

Source: RFC 9113 sections 3.4, 5, 6.
"""

from __future__ import annotations

import asyncio
from collections import deque
from time import perf_counter

from kserve_local.gateway import h2_frames as f
from kserve_local.gateway import h2_headers
from kserve_local.gateway.h2_frames import Code, ConnectionBroken

STREAM_WINDOW = 1024 * 1024
"""Bytes of one stream that may be on their way to us or wait here."""
CONNECTION_WINDOW = 16 * 1024 * 1024
FRAME = 64 * 1024
"""Bytes of payload that we take; what we send is bounded by the peer's word, and by this."""
MAX_STREAMS = 1024
MAX_BLOCK = 64 * 1024
UNREAD = 4 * 1024 * 1024
"""Bytes of headers and the like that may wait for a peer that does not read; data waits apart."""
_CALM = 1000
"""Frames that cost us and do nothing, or streams that are reset, in `_CALM_TIME` seconds."""
_CALM_TIME = 10.0
_ACK_SETTINGS = f.frame(f.SETTINGS, f.ACK, 0)


class Stream:
    """One stream of a connection.

    Attributes:
        peer_done: The peer has said END_STREAM.
        done: We have said END_STREAM, or it waits behind data.
        waiting: Bytes that wait for windows or for the transport.
        unread: Bytes that came and that nobody has consumed yet.
        owner: What the stream is for its connection's owner.
    """

    __slots__ = (
        "_credit",
        "_end",
        "_out",
        "closed",
        "connection",
        "done",
        "id",
        "owner",
        "peer_done",
        "receive_window",
        "send_window",
        "unread",
        "waiting",
    )

    def __init__(self, connection: H2Connection, id: int) -> None:
        self.connection = connection
        self.id = id
        self.owner: object | None = None
        self.send_window = connection.peer_window
        self.receive_window = STREAM_WINDOW
        self.peer_done = False
        self.done = False
        self.closed = False
        self.waiting = 0
        self.unread = 0
        self._out: deque[bytes] = deque()
        self._end: bytes | None = None
        self._credit = 0

    def send(self, data: bytes, *, end: bool = False) -> int:
        """Send data as far as windows allow; the rest waits. Returns the bytes that went out."""
        if self.closed or self.done:
            return 0
        if data:
            self._out.append(data)
            self.waiting += len(data)
        if end:
            self.done = True
            self._end = b""
        return self.flush()

    def send_headers(self, headers: h2_headers.Headers, *, end: bool = False) -> None:
        """Send headers now, or trailers behind the data that waits."""
        if self.closed or self.done:
            return
        block = f.headers(
            self.id, h2_headers.write(headers), end=end, max_frame=self.connection.peer_frame
        )
        if not self._out:
            self.connection.write(block)
            if end:
                self.done = True
                self._maybe_close()
        else:
            self.done = True
            self._end = block

    def flush(self) -> int:
        """Send what waits as far as windows allow. Returns the bytes that went out."""
        connection, out = self.connection, self._out
        sent = 0
        while out and not connection.write_paused:
            room = min(self.send_window, connection.send_window, connection.send_frame)
            data = out[0]
            if room <= 0:
                break
            if len(data) > room:
                out[0] = data[room:]
                data = data[:room]
            else:
                out.popleft()
            size = len(data)
            last = not out and self._end == b""
            head = f.frame_head(f.DATA, f.END_STREAM if last else 0, self.id, size)
            connection.write(head + data)
            self.send_window -= size
            connection.send_window -= size
            sent += size
            if last:
                self._end = None
                self.waiting -= sent
                self._maybe_close()
                return sent
        self.waiting -= sent
        if out:
            connection.waiting[self] = None
        elif self._end is not None:
            end, self._end = self._end, None
            connection.write(end or f.frame(f.DATA, f.END_STREAM, self.id))
            self._maybe_close()
        return sent

    def consumed(self, size: int) -> None:
        """Let the peer send as much again; of a closed stream all was given back then."""
        connection = self.connection
        size = min(size, self.unread)
        self.unread -= size
        if not connection.shared:
            connection.consumed(size)
        if self.peer_done or self.closed:
            return
        self._credit += size
        if self._credit * 2 >= STREAM_WINDOW:
            self.receive_window += self._credit
            connection.write(f.window_update(self.id, self._credit))
            self._credit = 0

    def reset(self, code: Code) -> None:
        """End the stream at once, on both sides."""
        if not self.closed:
            self.connection.write(f.rst_stream(self.id, code))
            self.close()

    def close(self) -> None:
        """Forget the stream."""
        if not self.closed:
            self.closed = True
            self._out.clear()
            self.waiting = 0
            # The connection's window outlives the stream: what nobody will consume comes back now.
            self.consumed(self.unread)
            self.connection.forget(self)

    def _maybe_close(self) -> None:
        if self.peer_done and self._end is None:
            self.close()

    def peer_has_ended(self) -> None:
        """Note the peer's END_STREAM."""
        self.peer_done = True
        if self.done and self._end is None and not self._out:
            self.close()


class H2Connection(asyncio.Protocol):
    """Common to both ends. Subclasses say what streams are for.

    Attributes:
        write_paused: The transport's buffer is full.
        going_away: No new stream may begin: one of both sides said so.
        broken: What the peer sent when it broke the protocol.
    """

    client = False
    """Whether this end begins the streams."""
    shared = False
    """Whether streams are for several clients: then none may use up the window of the others."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.streams: dict[int, Stream] = {}
        self.waiting: dict[Stream, None] = {}
        self.send_window = f.DEFAULT_WINDOW
        self.receive_window = f.DEFAULT_WINDOW
        self.peer_window = f.DEFAULT_WINDOW
        self.peer_frame = f.DEFAULT_FRAME
        self.send_frame = f.DEFAULT_FRAME
        self.peer_streams = 2**31
        self.write_paused = False
        self.going_away = False
        self.broken: bytes | None = None
        self.last_stream = 0
        self.active_at = perf_counter()
        self._reader = f.FrameReader(FRAME)
        self._headers = h2_headers.HeaderReader()
        self._block: tuple[int, int, list[bytes], int] | None = None
        self._credit = 0
        self._preface = b"" if self.client else f.PREFACE
        self._settled = False
        self._odd = 0
        self._odd_since = 0.0
        self._ending = False

    # What owners do

    def on_begin(self, stream: Stream, headers: list[tuple[bytes, bytes]], *, end: bool) -> None:
        """Take a new stream's headers; only where the peer begins streams."""
        raise NotImplementedError

    def on_headers(self, stream: Stream, headers: list[tuple[bytes, bytes]], *, end: bool) -> None:
        """Take the answer's headers (at the end that began), or trailers."""
        raise NotImplementedError

    def on_data(self, stream: Stream, data: bytes, *, end: bool) -> None:
        """Take data; `stream.consumed` is to be called for it sooner or later."""
        raise NotImplementedError

    def on_reset(self, stream: Stream, code: int) -> None:
        """The peer ended the stream; it is closed already."""
        raise NotImplementedError

    def on_sent(self, stream: Stream, size: int) -> None:
        """Bytes that had waited have gone out."""

    def on_goaway(self, last: int) -> None:
        """Take note that streams above `last` were not looked at."""

    def on_ready(self) -> None:
        """Take note that the peer's first settings are here."""

    # The connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # always a full transport here
        values = {
            f.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
            f.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
            f.MAX_FRAME_SIZE: FRAME,
            f.MAX_HEADER_LIST_SIZE: h2_headers.MAX_LIST,
        }
        if self.client:
            values = {f.ENABLE_PUSH: 0, **values}
        more = CONNECTION_WINDOW - f.DEFAULT_WINDOW
        self.receive_window += more
        preface = f.PREFACE if self.client else b""
        self.write(preface + f.settings(values) + f.window_update(0, more))

    def write(self, data: bytes) -> None:
        """Write frames; after the connection's end nothing."""
        transport = self.transport
        if transport.is_closing():
            return
        if self.write_paused and transport.get_write_buffer_size() > UNREAD:
            # It asks, over and over, and takes no answer.
            transport.abort()
            return
        transport.write(data)

    def data_received(self, data: bytes) -> None:
        self.active_at = perf_counter()
        if self._ending:
            return
        if self._preface:
            data = self._match_preface(data)
            if not data:
                return
        try:
            for kind, flags, id, payload in self._reader.feed(data):
                if self._block is not None and kind != f.CONTINUATION:
                    raise ConnectionBroken(Code.PROTOCOL_ERROR, "a frame inside of headers")
                if not self._settled and kind != f.SETTINGS:
                    raise ConnectionBroken(Code.PROTOCOL_ERROR, "no settings first")
                self._frame(kind, flags, id, payload)
                if self._ending:
                    return
        except ConnectionBroken as error:
            self.broken = data
            self.end(error.code, str(error))

    def _match_preface(self, data: bytes) -> bytes:
        preface = self._preface
        size = min(len(preface), len(data))
        if data[:size] != preface[:size]:
            self.end(Code.PROTOCOL_ERROR, "no preface")
            return b""
        self._preface = preface[size:]
        return data[size:]

    def _frame(self, kind: int, flags: int, id: int, payload: bytes) -> None:
        if kind == f.DATA:
            self._data(flags, id, payload)
        elif kind == f.HEADERS:
            self._begin_block(flags, id, payload)
        elif kind == f.CONTINUATION:
            self._go_on_block(flags, id, payload)
        elif kind == f.WINDOW_UPDATE:
            self._window(id, payload)
        elif kind == f.RST_STREAM:
            self._reset(id, payload)
        elif kind == f.SETTINGS:
            self._settings(flags, payload)
        elif kind == f.PING:
            if not flags & f.ACK:
                # Go's gRPC asks once a round trip, which here is thousands of times a second.
                if self.write_paused:
                    self._odd_frame()
                self.write(f.frame(f.PING, f.ACK, 0, payload))
        elif kind == f.GOAWAY:
            self._goaway(payload)
        elif kind == f.PUSH_PROMISE:
            raise ConnectionBroken(Code.PROTOCOL_ERROR, "a push that was not allowed")
        else:
            self._odd_frame()  # priorities, and what nobody here knows

    def _odd_frame(self) -> None:
        """Count what costs us and does nothing: too much of it is an attack."""
        now = perf_counter()
        if now - self._odd_since > _CALM_TIME:
            self._odd_since, self._odd = now, 0
        self._odd += 1
        if self._odd > _CALM:
            raise ConnectionBroken(Code.ENHANCE_YOUR_CALM, "too many frames that do nothing")

    # Frames

    def _data(self, flags: int, id: int, payload: bytes) -> None:
        padding = self._reader.padding
        size = len(payload) + padding
        self.receive_window -= size
        if self.receive_window < 0:
            raise ConnectionBroken(Code.FLOW_CONTROL_ERROR, "more data than the window")
        stream = self.streams.get(id)
        if stream is None or stream.peer_done:
            if stream is None and self._is_idle(id):
                raise ConnectionBroken(Code.PROTOCOL_ERROR, "data of a stream that never was")
            if stream is not None:
                self._refuse(stream, Code.STREAM_CLOSED)
            self.consumed(size)
            return
        stream.receive_window -= size
        if stream.receive_window < 0:
            self.consumed(size)
            self._refuse(stream, Code.FLOW_CONTROL_ERROR)
            return
        end = bool(flags & f.END_STREAM)
        stream.unread += size
        if self.shared:
            self.consumed(size)
        if padding:
            stream.consumed(padding)
        if not payload and not end:
            self._odd_frame()
            return
        if end:
            stream.peer_has_ended()
        self.on_data(stream, payload, end=end)

    def _is_idle(self, id: int) -> bool:
        """Whether a stream of that number has not begun yet."""
        return id > self.last_stream or not id & 1

    def _refuse(self, stream: Stream, code: Code) -> None:
        """End a stream by our own will; its owner hears of it."""
        self._odd_frame()
        stream.reset(code)
        self.on_reset(stream, code)

    def _begin_block(self, flags: int, id: int, payload: bytes) -> None:
        if flags & f.END_HEADERS:
            self._whole_block(flags, id, payload)
        elif len(payload) > MAX_BLOCK:
            raise ConnectionBroken(Code.ENHANCE_YOUR_CALM, "headers without an end")
        else:
            self._block = (id, flags, [payload], len(payload))

    def _go_on_block(self, flags: int, id: int, payload: bytes) -> None:
        if self._block is None or self._block[0] != id:
            raise ConnectionBroken(Code.PROTOCOL_ERROR, "headers go on that have not begun")
        _, begun, pieces, size = self._block
        pieces.append(payload)
        size += len(payload)
        if size > MAX_BLOCK or len(pieces) > MAX_BLOCK // 256:
            raise ConnectionBroken(Code.ENHANCE_YOUR_CALM, "headers without an end")
        if flags & f.END_HEADERS:
            self._block = None
            self._whole_block(begun, id, b"".join(pieces))
        else:
            self._block = (id, begun, pieces, size)

    def _whole_block(self, flags: int, id: int, block: bytes) -> None:
        headers = self._headers.read(block)
        end = bool(flags & f.END_STREAM)
        stream = self.streams.get(id)
        if stream is not None:
            if stream.peer_done:
                self._refuse(stream, Code.STREAM_CLOSED)
                return
            if end:
                stream.peer_has_ended()
            self.on_headers(stream, headers, end=end)
        elif not self._is_idle(id):
            self._odd_frame()  # of a stream that was reset: read for the table's sake only
        elif self.client or not id & 1:
            raise ConnectionBroken(Code.PROTOCOL_ERROR, "a stream that the peer may not begin")
        else:
            self.last_stream = id
            self._new_stream(id, headers, end=end)

    def _new_stream(self, id: int, headers: list[tuple[bytes, bytes]], *, end: bool) -> None:
        if self.going_away or len(self.streams) >= MAX_STREAMS:
            self._odd_frame()
            self.write(f.rst_stream(id, Code.REFUSED_STREAM))
            return
        stream = self.streams[id] = Stream(self, id)
        stream.peer_done = end
        self.on_begin(stream, headers, end=end)

    def _window(self, id: int, payload: bytes) -> None:
        size = int.from_bytes(payload, "big") & f.MAX_WINDOW
        if not id:
            self.send_window += size
            if not size or self.send_window > f.MAX_WINDOW:
                code = Code.FLOW_CONTROL_ERROR if size else Code.PROTOCOL_ERROR
                raise ConnectionBroken(code, "a window update that is not allowed")
            self.flush()
            return
        stream = self.streams.get(id)
        if stream is None:
            if self._is_idle(id):
                raise ConnectionBroken(Code.PROTOCOL_ERROR, "a window of a stream that never was")
            return
        stream.send_window += size
        if not size or stream.send_window > f.MAX_WINDOW:
            self._refuse(stream, Code.FLOW_CONTROL_ERROR if size else Code.PROTOCOL_ERROR)
        elif stream.waiting:
            self._flush(stream)

    def _reset(self, id: int, payload: bytes) -> None:
        stream = self.streams.get(id)
        if stream is None:
            if self._is_idle(id):
                raise ConnectionBroken(Code.PROTOCOL_ERROR, "the end of a stream that never was")
            return
        if not self.client:
            # Begun and reset, over and over: each costs a request, and frees its place at once.
            self._odd_frame()
        stream.close()
        self.on_reset(stream, int.from_bytes(payload, "big"))

    def _settings(self, flags: int, payload: bytes) -> None:
        if flags & f.ACK:
            if payload:
                raise ConnectionBroken(Code.FRAME_SIZE_ERROR, "an acknowledgement with a payload")
            return
        self._odd_frame()
        for name, value in f.read_settings(payload):
            if name == f.INITIAL_WINDOW_SIZE:
                change, self.peer_window = value - self.peer_window, value
                for stream in self.streams.values():
                    stream.send_window += change
                    if stream.send_window > f.MAX_WINDOW:
                        raise ConnectionBroken(Code.FLOW_CONTROL_ERROR, "a window too large")
                    if stream.waiting:
                        self.waiting[stream] = None
            elif name == f.MAX_FRAME_SIZE:
                self.peer_frame = value
                self.send_frame = min(value, FRAME)
            elif name == f.MAX_CONCURRENT_STREAMS:
                self.peer_streams = value
        self.write(_ACK_SETTINGS)
        if not self._settled:
            self._settled = True
            self.on_ready()
        self.flush()

    def _goaway(self, payload: bytes) -> None:
        self.going_away = True
        self.on_goaway(int.from_bytes(payload[:4], "big") & f.MAX_WINDOW)
        self._close_if_done()

    # Flow control

    def consumed(self, size: int) -> None:
        """Let the peer send as much again on the connection."""
        self._credit += size
        if self._credit * 4 >= CONNECTION_WINDOW:
            self.receive_window += self._credit
            self.write(f.window_update(0, self._credit))
            self._credit = 0

    def flush(self) -> None:
        """Send what waits, each stream a frame's worth of its turn at least."""
        while self.waiting and not self.write_paused and self.send_window > 0:
            stream = next(iter(self.waiting))
            del self.waiting[stream]
            if not self._flush(stream) and stream in self.waiting:
                # Its own window is closed: it comes back by itself.
                del self.waiting[stream]

    def _flush(self, stream: Stream) -> int:
        if stream.closed:
            return 0
        sent = stream.flush()
        if sent:
            self.on_sent(stream, sent)
        return sent

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False
        self.flush()

    # Ends

    def forget(self, stream: Stream) -> None:
        """Take a closed stream out; called by it."""
        self.streams.pop(stream.id, None)
        self.waiting.pop(stream, None)
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self.going_away and not self.streams and not self.transport.is_closing():
            self.transport.close()

    def leave(self) -> None:
        """Begin no more streams; close once those that run have ended."""
        if not self.going_away:
            self.going_away = True
            self.write(f.goaway(self.last_stream if not self.client else 0, Code.NO_ERROR))
        self._close_if_done()

    def end(self, code: Code, text: str = "") -> None:
        """End the connection and all of its streams."""
        if self._ending:
            return
        self._ending = self.going_away = True
        self.write(f.goaway(self.last_stream if not self.client else 0, code, text))
        if not self.transport.is_closing():
            self.transport.close()
        self._drop_all(code)

    def _drop_all(self, code: int) -> None:
        for stream in list(self.streams.values()):
            stream.closed = True
            self.on_reset(stream, code)
        self.streams.clear()
        self.waiting.clear()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ending = self.going_away = True
        self._drop_all(Code.INTERNAL_ERROR)
