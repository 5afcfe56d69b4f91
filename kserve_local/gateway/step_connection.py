"""One HTTP/1.1 connection to a step of a graph, the calling side: one request at a time.

Bodies go and come whole, and every byte that is kept is told of before it is kept. Answers are
read as strictly as those of replicas.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter

from kserve_local.gateway.chunked import ChunkDecoder, ChunkError
from kserve_local.gateway.graph import GraphError
from kserve_local.gateway.head import MAX_HEAD, HeadError, ResponseHead, read_response
from kserve_local.gateway.pipe import news_of

Take = Callable[[int], None]
Reply = tuple[ResponseHead, bytes]

TOGETHER = 16 * 1024
"""Bytes up to which a body travels with its head: one buffer, one write."""


class Silent(Exception):
    """The connection ended before it said anything."""


class CutShort(Exception):
    """The connection ended within an answer."""


class StepConnection(asyncio.Protocol):
    """One connection.

    Attributes:
        inside: To this gateway itself.
        used: Has carried a request before.
        since: When it was kept, on the clock of `perf_counter`.
        in_body: The answer's head has come.
        can_stay: The last answer was whole, and another request may follow.
    """

    __slots__ = (
        "_answer",
        "_buffer",
        "_decoder",
        "_head",
        "_left",
        "_news",
        "_pieces",
        "_take",
        "can_stay",
        "in_body",
        "inside",
        "since",
        "transport",
        "used",
    )

    transport: asyncio.Transport

    def __init__(self, *, inside: bool = False) -> None:
        self.inside = inside
        self.used = False
        self.since = 0.0
        self.in_body = False
        self.can_stay = False
        self._news: Callable[[], object] | None = None
        self._answer: asyncio.Future[Reply] | None = None
        self._take: Take | None = None
        self._buffer = b""
        self._head: ResponseHead | None = None
        self._left = 0
        self._decoder: ChunkDecoder | None = None
        self._pieces: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # always a full transport here

    def is_open(self) -> bool:
        """Nothing to read and not closed: the other side still waits for a request."""
        if self.transport.is_closing():
            return False
        if self._news is None:
            self._news = news_of(self.transport)
        return not self._news()

    async def ask(self, head: bytes, body: bytes, take: Take) -> Reply:
        """Send a request and return the answer's head and body.

        Args:
            take: Called with each number of bytes that is kept; may raise a GraphError.

        Raises:
            Silent, CutShort, OSError: The connection ended too early.
            HeadError, ChunkError: The answer is no HTTP.
        """
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._answer = answer
        self._take = take
        self.in_body = self.can_stay = False
        if len(body) < TOGETHER:
            self.transport.write(head + body)
        else:
            self.transport.writelines((head, body))
        return await answer

    def rest(self) -> None:
        """Wait for the next request."""
        self.used = True
        self.since = perf_counter()

    def close(self) -> None:
        """End the connection at once."""
        self.transport.abort()

    # The answer

    def data_received(self, data: bytes) -> None:
        if self._answer is None:
            # Nobody asked: the connection is out of step.
            self.close()
            return
        try:
            if self._head is not None:
                self._read_body(self._head, data)
            else:
                self._read_head(self._buffer + data if self._buffer else data)
        except (HeadError, ChunkError, GraphError) as error:
            self._fail(error)

    def _read_head(self, data: bytes) -> None:
        while True:
            end = data.find(b"\r\n\r\n") + 4
            if end > MAX_HEAD or (end < 4 and len(data) > MAX_HEAD):
                raise HeadError(f"a head of more than {MAX_HEAD // 1024} KiB")
            if end < 4:
                self._buffer = data
                return
            head = read_response(data[:end])
            data = data[end:]
            if head.status >= 200:
                break
        self._buffer = b""
        self._head = head
        self.in_body = True
        self._left = 0
        if head.status in (204, 304):
            pass
        elif head.chunked:
            self._decoder = ChunkDecoder()
        else:
            self._left = head.length
            self._keep(max(0, head.length))
        self._read_body(head, data)

    def _read_body(self, head: ResponseHead, data: bytes) -> None:
        decoder = self._decoder
        if decoder is not None:
            pieces = decoder.feed(data)
            self._keep(sum(map(len, pieces)))
            self._pieces += pieces
            if decoder.done:
                self._finish(head, keep=not decoder.rest)
        elif self._left < 0:
            # Until the connection ends.
            self._keep(len(data))
            self._pieces.append(data)
        else:
            rest = self._left - len(data)
            self._pieces.append(data if rest >= 0 else data[:rest])
            self._left = max(0, rest)
            if rest <= 0:
                self._finish(head, keep=rest == 0)

    def _keep(self, size: int) -> None:
        if size and self._take is not None:
            self._take(size)

    def _finish(self, head: ResponseHead, *, keep: bool) -> None:
        pieces = self._pieces
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        answer = self._forget()
        self.can_stay = keep and head.keep
        if answer is not None and not answer.done():
            answer.set_result((head, body))

    def _fail(self, error: Exception) -> None:
        answer = self._forget()
        self.close()
        if answer is not None and not answer.done():
            answer.set_exception(error)

    def _forget(self) -> asyncio.Future[Reply] | None:
        answer, self._answer = self._answer, None
        self._take = self._head = self._decoder = None
        self._buffer, self._pieces = b"", []
        return answer

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is None:
            return
        head = self._head
        if exc is not None:
            self._fail(exc)
        elif head is None:
            self._fail(CutShort() if self._buffer else Silent())
        elif self._decoder is None and self._left < 0:
            self._finish(head, keep=False)
        else:
            self._fail(CutShort())
