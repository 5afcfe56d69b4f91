"""A replica on raw sockets whose every byte a test decides, and a client that reads exactly.

`Upstream` runs a handler per connection and keeps what it saw; the handlers below are the
misbehaviours the gateway must stand. `Client` speaks HTTP/1.1 without a library's good manners,
so that a test may also send what no library would.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable
from types import TracebackType


class Request:
    """One request as it came in."""

    def __init__(self, head: bytes, body: bytes) -> None:
        self.head = head
        self.body = body
        line, _, rest = head.partition(b"\r\n")
        self.method, self.target, _ = line.decode().split(" ", 2)
        self.headers: dict[str, list[str]] = {}
        for part in rest.split(b"\r\n"):
            if part:
                name, _, value = part.decode("latin-1").partition(":")
                self.headers.setdefault(name.lower(), []).append(value.strip())

    def header(self, name: str) -> str:
        """Return the one value of a header; empty without."""
        values = self.headers.get(name, [])
        assert len(values) <= 1, f"{name} came {len(values)} times"
        return values[0] if values else ""


class Connection:
    """One accepted connection."""

    def __init__(
        self, upstream: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.upstream = upstream
        self.reader = reader
        self.writer = writer

    async def head(self) -> bytes:
        """Return the next request head; `EOFError` at the end."""
        try:
            return await self.reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            raise EOFError from error

    async def request(self) -> Request:
        """Return the next request with its whole body."""
        request = Request(await self.head(), b"")
        self.upstream.begun.set()
        if request.header("transfer-encoding") == "chunked":
            request.body = await self.chunked()
        elif length := request.header("content-length"):
            request.body = await self.reader.readexactly(int(length))
        self.upstream.requests.append(request)
        return request

    async def chunked(self) -> bytes:
        """Return a chunked body, decoded."""
        body = b""
        while True:
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            body += await self.reader.readexactly(size)
            assert await self.reader.readexactly(2) == b"\r\n"
            if not size:
                return body

    async def send(self, data: bytes) -> None:
        """Write, and wait until the other side keeps up."""
        self.writer.write(data)
        await self.writer.drain()

    async def gone(self) -> None:
        """Return when the other side has left."""
        with contextlib.suppress(OSError):
            while await self.reader.read(65536):
                pass

    def reset(self) -> None:
        """End with RST instead of FIN."""
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Handler = Callable[[Connection], Awaitable[None]]


class Upstream:
    """A listening replica.

    Args:
        handler: Runs once a connection; its return closes it.
        address / port: Where to listen; port 0 picks one.
    """

    def __init__(self, handler: Handler, address: str = "127.0.0.1", port: int = 0) -> None:
        self._handler = handler
        self.address = address
        self.port = port
        self.connections = 0
        self.requests: list[Request] = []
        self.running = 0
        self.most = 0
        self.left = asyncio.Event()
        self.begun = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Upstream:
        self._server = await asyncio.start_server(self._accept, self.address, self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            await self._handler(Connection(self, reader, writer))
        except (EOFError, OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            self.left.set()
        finally:
            writer.close()
            self._tasks.discard(task)


def response(body: bytes, *, status: str = "200 OK", extra: str = "") -> bytes:
    """Return a complete answer with a length."""
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{extra}\r\n".encode() + body


async def echo(connection: Connection) -> None:
    """Answer each request with its own head and body."""
    while True:
        request = await connection.request()
        await connection.send(response(request.head + request.body))


def answering(data: bytes) -> Handler:
    """Return a handler that answers each whole request with these bytes."""

    async def handler(connection: Connection) -> None:
        while True:
            await connection.request()
            await connection.send(data)

    return handler


class Answer:
    """One response as a client reads it."""

    def __init__(self, head: bytes, body: bytes, whole: bool) -> None:
        self.head = head
        self.body = body
        self.whole = whole
        line, _, rest = head.partition(b"\r\n")
        self.status = int(line.split(b" ")[1])
        self.headers: dict[str, str] = {}
        for part in rest.split(b"\r\n"):
            if part:
                name, _, value = part.decode("latin-1").partition(":")
                assert name.lower() not in self.headers, f"{name} twice"
                self.headers[name.lower()] = value.strip()


class Client:
    """One client connection."""

    def __init__(self, port: int, address: str = "127.0.0.1") -> None:
        self._port = port
        self._address = address

    async def __aenter__(self) -> Client:
        self.reader, self.writer = await asyncio.open_connection(self._address, self._port)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    async def send(self, data: bytes) -> None:
        """Write raw bytes."""
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> bytes:
        """Return the next response head."""
        async with asyncio.timeout(20):
            return await self.reader.readuntil(b"\r\n\r\n")

    async def answer(self, *, to_head: bool = False) -> Answer:
        """Return the next response; `whole` is False when it was cut short."""
        async with asyncio.timeout(30):
            head = await self.reader.readuntil(b"\r\n\r\n")
            found = Answer(head, b"", True)
            if to_head or found.status in (204, 304) or found.status < 200:
                return found
            if found.headers.get("transfer-encoding") == "chunked":
                return await self._chunked(found)
            if (length := found.headers.get("content-length")) is not None:
                try:
                    found.body = await self.reader.readexactly(int(length))
                except asyncio.IncompleteReadError as error:
                    found.body, found.whole = error.partial, False
                return found
            found.body = await self.reader.read()
            return found

    async def _chunked(self, found: Answer) -> Answer:
        try:
            while True:
                size = int(await self.reader.readuntil(b"\r\n"), 16)
                found.body += await self.reader.readexactly(size)
                assert await self.reader.readexactly(2) == b"\r\n"
                if not size:
                    return found
        except (asyncio.IncompleteReadError, OSError):
            found.whole = False
            return found

    async def at_end(self) -> bool:
        """Return whether the connection is closed now, reading nothing but the end."""
        async with asyncio.timeout(20):
            try:
                return await self.reader.read(1) == b""
            except OSError:
                return True

    async def ask(self, data: bytes) -> Answer:
        """Send and return the answer."""
        await self.send(data)
        return await self.answer()


async def ask(port: int, data: bytes, address: str = "127.0.0.1") -> Answer:
    """Send one request on a connection of its own."""
    async with Client(port, address) as client:
        return await client.ask(data)
