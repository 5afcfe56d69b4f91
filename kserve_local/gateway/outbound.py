"""Requests that the gateway makes itself: events to their sink, batches to their replica.

One `Courier` makes one request at a time and keeps its last connection for the next one to the
same place. Bodies go and come whole, bounded. Answers are read as strictly as those of replicas.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kserve_local.gateway.chunked import ChunkDecoder, ChunkError
from kserve_local.gateway.head import MAX_HEAD, HeadError, ResponseHead, parse_response

CONNECT_TIMEOUT = 10.0
ANSWER_LIMIT = 256 * 1024 * 1024

Header = tuple[str, str]
Open = Callable[[asyncio.Protocol], asyncio.Transport]


class OutboundError(Exception):
    """No answer; the text is Go's where Go has one."""


class UnknownHost(OutboundError):
    """Nobody here knows an address of the host."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a request goes.

    Args:
        authority: What the Host header says.
        tls: For `https`.
        open: Connects a protocol instead of dialing; for the gateway itself.
    """

    host: str
    port: int
    authority: str
    tls: ssl.SSLContext | None = None
    open: Open | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer."""

    status: int
    body: bytes
    kind: str = ""
    extension: str = ""


class Courier:
    """Makes requests, one at a time."""

    def __init__(self) -> None:
        self._place: Place | None = None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def post(
        self, place: Place, target: str, headers: Sequence[Header], body: bytes
    ) -> Reply:
        """POST `body` and return the answer.

        Raises:
            UnknownHost: The host's name means nothing here.
            OutboundError: No answer.
        """
        kept = self._writer is not None and self._place == place and not self._is_stale()
        if not kept:
            self.close()
            await self._dial(place)
        try:
            return await self._exchange(place, target, headers, body)
        except _Silent as error:
            self.close()
            if not kept:
                raise OutboundError("EOF") from error
        # The other end had closed the kept connection meanwhile: nothing was answered on it.
        await self._dial(place)
        try:
            return await self._exchange(place, target, headers, body)
        except _Silent as error:
            self.close()
            raise OutboundError("EOF") from error

    def close(self) -> None:
        """Close the kept connection."""
        writer, self._writer, self._reader = self._writer, None, None
        if writer is not None:
            writer.transport.abort()

    def _is_stale(self) -> bool:
        reader, writer = self._reader, self._writer
        return reader is None or writer is None or reader.at_eof() or writer.is_closing()

    async def _dial(self, place: Place) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                if place.open is not None:
                    pair = _streams(place.open)
                else:
                    pair = await asyncio.open_connection(
                        place.host, place.port, ssl=place.tls, limit=MAX_HEAD
                    )
        except socket.gaierror as error:
            raise UnknownHost(f"lookup {place.host}: no such host") from error
        except TimeoutError as error:
            raise OutboundError(f"dial tcp {place.host}:{place.port}: i/o timeout") from error
        except ssl.SSLError as error:
            raise OutboundError(f"tls: {error.reason or error}") from error
        except OSError as error:
            why = os.strerror(error.errno or errno.ECONNREFUSED).lower()
            raise OutboundError(f"dial tcp {place.host}:{place.port}: connect: {why}") from error
        self._place = place
        self._reader, self._writer = pair

    async def _exchange(
        self, place: Place, target: str, headers: Sequence[Header], body: bytes
    ) -> Reply:
        reader, writer = self._reader, self._writer
        assert reader is not None
        assert writer is not None
        keep = False
        try:
            writer.write(_request(place, target, headers, body))
            head = await _head(reader)
            answer, keep = await _body(reader, head)
        except (HeadError, ChunkError, asyncio.LimitOverrunError) as error:
            raise OutboundError(
                "net/http: HTTP/1.x transport connection broken: malformed HTTP response"
            ) from error
        except asyncio.IncompleteReadError as error:
            raise OutboundError("unexpected EOF") from error
        except OSError as error:
            why = os.strerror(error.errno).lower() if error.errno else "EOF"
            raise OutboundError(f"read tcp {place.host}:{place.port}: read: {why}") from error
        finally:
            if not keep:
                self.close()
        return Reply(
            head.status,
            answer,
            _value(head, b"content-type"),
            _value(head, b"x-log-marshal-extension"),
        )


def _streams(connect: Open) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Return what `asyncio.open_connection` gives, over a connection of our own."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=MAX_HEAD, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    return reader, asyncio.StreamWriter(connect(protocol), protocol, reader, loop)


class _Silent(Exception):
    """The connection ended before it said anything."""


def _request(place: Place, target: str, headers: Sequence[Header], body: bytes) -> bytes:
    lines = [f"POST {target} HTTP/1.1", f"Host: {place.authority}"]
    lines += [f"{name}: {value}" for name, value in headers]
    lines.append(f"Content-Length: {len(body)}")
    text = "\r\n".join(lines) + "\r\n\r\n"
    return text.encode("utf-8", "surrogateescape") + body


async def _head(reader: asyncio.StreamReader) -> ResponseHead:
    while True:
        try:
            raw = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise
            raise _Silent from error
        except ConnectionResetError as error:
            raise _Silent from error
        head = parse_response(raw)
        if head.status >= 200:
            return head


async def _body(reader: asyncio.StreamReader, head: ResponseHead) -> tuple[bytes, bool]:
    """Return the body, and whether the connection can be used again."""
    if head.status in (204, 304):
        return b"", head.keep
    if head.length >= 0:
        if head.length > ANSWER_LIMIT:
            raise OutboundError(f"an answer of {head.length} bytes")
        return await reader.readexactly(head.length), head.keep
    pieces: list[bytes] = []
    size = 0
    decoder = ChunkDecoder() if head.chunked else None
    while decoder is None or not decoder.done:
        data = await reader.read(256 * 1024)
        if not data:
            if decoder is not None:
                raise asyncio.IncompleteReadError(b"", None)
            break
        found = decoder.feed(data) if decoder is not None else [data]
        size += sum(map(len, found))
        if size > ANSWER_LIMIT:
            raise OutboundError(f"an answer of more than {ANSWER_LIMIT} bytes")
        pieces += found
    return b"".join(pieces), decoder is not None and head.keep and not decoder.rest


def _value(head: ResponseHead, name: bytes) -> str:
    for line in head.head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.lower() == name:
            return value.strip().decode("latin-1")
    return ""


def tls(certificate: bytes = b"", *, verify: bool = True) -> ssl.SSLContext:
    """Return the TLS settings for a sink.

    Args:
        certificate: PEM that is trusted instead of the system's roots.
    """
    context = ssl.create_default_context(
        cadata=certificate.decode("ascii", "replace") if certificate else None
    )
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
