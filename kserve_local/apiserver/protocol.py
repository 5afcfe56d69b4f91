"""uvicorn's HTTP/1.1 with bounds on what comes before anybody has shown a token.

The parser takes heads of any size for any time; piling one up costs memory and, since the pieces
are joined, time that grows with its square. `Guard` sees a request only after its head.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024
HEAD_TIMEOUT = 30.0
"""Seconds from connecting, or from the first byte of a later request, to the end of the head."""


class BoundedHttp(HttpToolsProtocol):
    """One connection of the API server."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unread = 0
        self._in_head = True
        self._progress = False
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_here()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head and self._late is None:
            self._expect_head()
        self._progress = False
        super().data_received(data)
        # Heads, trailers and chunk extensions alike: bytes that the parser keeps to itself.
        self._unread = 0 if self._progress else self._unread + len(data)
        if self._unread > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("Request header fields too large.")

    def on_headers_complete(self) -> None:
        self._head_is_here()
        self._in_head = False
        self._progress = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._progress = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_head = True
        self._progress = True
        super().on_message_complete()

    def _expect_head(self) -> None:
        self._late = self.loop.call_later(HEAD_TIMEOUT, self.transport.abort)

    def _head_is_here(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
