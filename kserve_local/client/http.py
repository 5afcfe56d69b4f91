"""HTTP/1.1 over TLS for our own API client: asyncio streams, keep-alive, quick to import.

Not a general client: one server, JSON in both directions, no redirects, no proxies, no compression.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from kserve_local.errors import ServiceUnavailable

if TYPE_CHECKING:
    import ssl

_MAX_LINE = 1 << 16
_IDLE = 8


@dataclass(slots=True)
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    used: bool = False


class Reply:
    """The head of an answer, and its body, to be read once."""

    def __init__(
        self, connection: _Connection, status: int, headers: list[tuple[str, str]]
    ) -> None:
        self.status = status
        self.headers = headers
        self.finished = False
        self._connection = connection

    def header(self, name: str) -> str:
        """Return the first header of that (lower-case) name, empty if there is none."""
        return next((value for key, value in self.headers if key == name), "")

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives."""
        reader = self._connection.reader
        if self.status in (204, 304):
            self.finished = True
            return
        if self.header("transfer-encoding").lower() == "chunked":
            while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
                yield await reader.readexactly(size)
                await reader.readexactly(2)
            await reader.readuntil(b"\r\n")
            self.finished = True
        elif length := self.header("content-length"):
            left = int(length)
            while left:
                piece = await reader.read(min(left, 1 << 16))
                if not piece:
                    raise ConnectionError("the answer ended early")
                left -= len(piece)
                yield piece
            self.finished = True
        else:
            while piece := await reader.read(1 << 16):
                yield piece

    async def body(self) -> bytes:
        """Return the whole body."""
        return b"".join([chunk async for chunk in self.chunks()])


class Http:
    """Talks to one server.

    Args:
        server: `https://127.0.0.1:8089`, or `http://...`.
        ca: PEM of the CA that signs for an https server.
        headers: Sent with every request.
    """

    def __init__(self, server: str, *, ca: str, headers: dict[str, str]) -> None:
        url = urlsplit(server)
        self._server = server
        self._host = url.hostname or "localhost"
        self._port = url.port or (443 if url.scheme == "https" else 80)
        self._ca = ca if url.scheme == "https" else None
        self._tls: ssl.SSLContext | None = None
        self._head = "".join(f"{k}: {v}\r\n" for k, v in {"Host": url.netloc, **headers}.items())
        self._idle: list[_Connection] = []

    async def close(self) -> None:
        """Close all idle connections."""
        while self._idle:
            await _close(self._idle.pop())

    @contextlib.asynccontextmanager
    async def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes = b"",
        media_type: str = "application/json",
        accept: str = "application/json",
    ) -> AsyncIterator[Reply]:
        """Send a request and yield its answer; the connection is kept if the body was read.

        Raises:
            ServiceUnavailable: Nobody answers at that address.
        """
        head = f"{method} {path} HTTP/1.1\r\n{self._head}Accept: {accept}\r\n"
        head += f"Content-Length: {len(body)}\r\n"
        if body:
            head += f"Content-Type: {media_type}\r\n"
        data = f"{head}\r\n".encode("latin-1") + body
        try:
            connection, reply = await self._exchange(data, again=method == "GET")
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise self._silent(error) from error
        try:
            yield reply
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            raise self._silent(error) from error
        finally:
            connection.used = True
            # Also where the answer was an error that the caller raises: it has been read.
            keep = reply.finished and reply.header("connection").lower() != "close"
            if keep and len(self._idle) < _IDLE:
                self._idle.append(connection)
            else:
                await _close(connection)

    def _silent(self, error: BaseException) -> ServiceUnavailable:
        return ServiceUnavailable(
            f"the API server at {self._server} does not answer: {error or type(error).__name__}",
            hint="kserve-local status",
        )

    async def _exchange(self, data: bytes, *, again: bool) -> tuple[_Connection, Reply]:
        connection = await self._connection()
        try:
            connection.writer.write(data)
            await connection.writer.drain()
            return connection, await _read_head(connection)
        except (ConnectionError, asyncio.IncompleteReadError):
            used = connection.used
            await _close(connection)
            if not (used and again):
                raise
            # The server closed an idle connection just then: a read may be sent once more.
            return await self._exchange(data, again=True)
        except BaseException:
            await _close(connection)
            raise

    async def _connection(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.reader.at_eof() and not connection.writer.is_closing():
                return connection
            await _close(connection)
        if self._ca is not None and self._tls is None:
            import ssl

            self._tls = ssl.create_default_context(cadata=self._ca)
            self._tls.verify_flags |= ssl.VERIFY_X509_STRICT
        reader, writer = await asyncio.open_connection(
            self._host, self._port, ssl=self._tls, limit=_MAX_LINE
        )
        return _Connection(reader, writer)


async def send(
    server: str, method: str, path: str, *, headers: Sequence[tuple[str, str]], body: bytes
) -> tuple[int, list[tuple[str, str]], bytes]:
    """Send one request to any server, on a connection of its own; return the whole answer.

    Args:
        headers: As they go, but for length and `Connection`; without `Host` it is the server's.

    Raises:
        OSError, EOFError, ValueError, asyncio.LimitOverrunError: There is no answer, or it is none.
    """
    url = urlsplit(server)
    tls = None
    if url.scheme == "https":
        import ssl

        tls = ssl.create_default_context()
    named = {name.lower() for name, _ in headers}
    ours = [] if "host" in named else [("Host", url.netloc)]
    ours += [("Content-Length", str(len(body))), ("Connection", "close")]
    lines = "".join(f"{name}: {value}\r\n" for name, value in (*headers, *ours))
    reader, writer = await asyncio.open_connection(
        url.hostname or "localhost", url.port or (443 if tls else 80), ssl=tls, limit=_MAX_LINE
    )
    connection = _Connection(reader, writer)
    try:
        writer.write(f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + body)
        await writer.drain()
        reply = await _read_head(connection)
        while reply.status < 200:
            reply = await _read_head(connection)
        return reply.status, reply.headers, await reply.body()
    finally:
        await _close(connection)


async def _read_head(connection: _Connection) -> Reply:
    reader = connection.reader
    status = (await reader.readuntil(b"\r\n")).split(b" ", 2)
    if len(status) < 2 or not status[1].isdigit():
        raise ConnectionError("not an HTTP answer")
    headers: list[tuple[str, str]] = []
    while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
        name, _, value = line.decode("latin-1").partition(":")
        headers.append((name.strip().lower(), value.strip()))
    return Reply(connection, int(status[1]), headers)


async def _close(connection: _Connection) -> None:
    connection.writer.close()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(1):
            await connection.writer.wait_closed()
