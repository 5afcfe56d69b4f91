"""Two protocols of this process wired to each other: a pair of transports without sockets.

What is written at one end the event loop hands to the protocol at the other, in order and at most
`PIECE` bytes at a time. Flow control, half-closing and closing are those of asyncio's sockets, with
two differences: an end hears that the other is gone also while its reading is paused, and it is
always lost without an exception.
"""

from __future__ import annotations

import asyncio
import functools
import select
from collections import deque
from collections.abc import Callable, Iterable

PIECE = 256 * 1024
"""Bytes handed over at once, so that others have their turn between the parts of a large body."""
HIGH, LOW = 64 * 1024, 16 * 1024
"""Bytes not taken yet from which the writer pauses, and at which it goes on; asyncio's own."""


class PipeEnd(asyncio.Transport):
    """One end. Made by `connect`."""

    __slots__ = (
        "_closing",
        "_due",
        "_ended",
        "_heard_end",
        "_loop",
        "_lost",
        "_out",
        "_peer",
        "_protocol",
        "_reading",
        "_size",
        "_write_paused",
    )

    _peer: PipeEnd

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._loop = loop
        self._protocol = protocol
        # Written here, not taken by the other end yet.
        self._out: deque[bytes | memoryview] = deque()
        self._size = 0
        self._write_paused = False
        self._reading = True
        self._due = False  # `_deliver` will be called.
        self._ended = False  # Nothing more is written.
        self._heard_end = False
        self._closing = False
        self._lost = False

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol

    # Writing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._ended or not data:
            return
        peer = self._peer
        if peer._lost:
            # Nobody will ever read it.
            self.abort()
            return
        self._out.append(data if isinstance(data, bytes) else bytes(data))
        self._size += len(data)
        if not peer._due and peer._reading:
            peer._due = True
            self._loop.call_soon(peer._deliver)
        if self._size > HIGH and not self._write_paused:
            self._write_paused = True
            self._protocol.pause_writing()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        for data in list_of_data:
            self.write(data)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if not self._ended:
            self._ended = True
            self._peer._wake()

    def get_write_buffer_size(self) -> int:
        return self._size

    # Reading

    def is_reading(self) -> bool:
        return self._reading and not self._closing

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        if not self._reading:
            self._reading = True
            self._wake()

    def has_news(self) -> bool:
        """Whether the other end has said something that is not delivered yet, or has left."""
        peer = self._peer
        return bool(peer._out) or peer._ended

    def _wake(self) -> None:
        if not self._due:
            self._due = True
            self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        self._due = False
        peer = self._peer
        if self._closing:
            return
        if peer._out and self._reading:
            data = peer._take()
            try:
                self._protocol.data_received(data)
            except BaseException:
                # The event loop reports it.
                self.abort()
                raise
        if peer._out:
            if self._reading:
                self._wake()
        elif peer._ended and (self._reading or peer._lost):
            self._hear_end()

    def _hear_end(self) -> None:
        if self._heard_end or self._closing:
            return
        self._heard_end = True
        if not self._protocol.eof_received():
            self.close()

    def _take(self) -> bytes:
        """Return the next bytes for the other end."""
        out = self._out
        first = out.popleft()
        size = len(first)
        if size > PIECE:
            view = memoryview(first)
            out.appendleft(view[PIECE:])
            data = bytes(view[:PIECE])
        elif not out:
            data = bytes(first)
        else:
            pieces = [first]
            while out and size + len(out[0]) <= PIECE:
                size += len(out[0])
                pieces.append(out.popleft())
            data = b"".join(pieces)
        self._size -= len(data)
        if self._write_paused and self._size <= LOW:
            self._write_paused = False
            self._protocol.resume_writing()
        if self._closing and not out:
            self._loop.call_soon(self._lose)
        return data

    # Ends

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        """Close once the other end has taken what is written; what still comes is dropped."""
        if not self._closing:
            self._closing = self._ended = True
            if not self._out:
                self._loop.call_soon(self._lose)

    def abort(self) -> None:
        """Close at once; what is not taken is dropped."""
        self._drop()
        if not self._lost:
            self._closing = self._ended = True
            self._loop.call_soon(self._lose)

    def _drop(self) -> None:
        self._out.clear()
        self._size = 0

    def _lose(self) -> None:
        if self._lost:
            return
        self._lost = True
        self._protocol.connection_lost(None)
        peer = self._peer
        if peer._closing or peer._out:
            # What it has written, nobody will ever read.
            peer.abort()
        else:
            peer._wake()


def connect(near: asyncio.Protocol, far: asyncio.Protocol) -> PipeEnd:
    """Wire two protocols to each other; return the transport of `near`."""
    loop = asyncio.get_running_loop()
    here, there = PipeEnd(loop, near), PipeEnd(loop, far)
    here._peer, there._peer = there, here
    far.connection_made(there)
    near.connection_made(here)
    return here


def news_of(transport: asyncio.BaseTransport) -> Callable[[], object]:
    """Return what tells, without waiting, whether a connection's other end has spoken or left."""
    if isinstance(transport, PipeEnd):
        return transport.has_news
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
    return functools.partial(poll.poll, 0)
