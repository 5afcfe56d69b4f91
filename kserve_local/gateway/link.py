"""The Unix socket between supervisor and gateway: frames, and the gateway's end of it.

A frame is four bytes of length (big endian) and a JSON object with `type`. Supervisor to gateway:
`hello {token, want?, grace?}`, `table {table}`, `change {change}` (of the table before), `release
{pod}` (say when nothing runs there any more), `hold {pods}` (those at a breakpoint, each with the
Pods that wait for it; all others run; none stands once the supervisor is gone), `record {enabled,
keep, maxBytes, headers, fields}` (what to keep of calls, and to redact), `requests {number,
namespace, name, component, id, last, bodies}` (show what is kept). Gateway to supervisor: `hello
{pid, port, version}`, `applied {version, unbound}`, `released {pod}`, `stats {stats}`, `poke
{target}`, `woken {woken}` (who poked has its answer), `object {namespace, pod, uri, data}` (what a
logger stores), `requests {number, requests}` (the answer to the question of that number). The
socket is the gateway's, so it outlives any supervisor; the newest supervisor that knows the token
replaces the one before. A `hello` that wants something is a connection of its own and replaces
nobody: `sockets` gets the listening sockets back (SCM_RIGHTS), `stop` drains for `grace` seconds
and ends the gateway. Both ends import this module; nothing here knows about HTTP.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import socket
from collections.abc import Callable
from typing import Any

import orjson

logger = logging.getLogger(__name__)

MAX_FRAME = 256 * 1024 * 1024
SEND_TIMEOUT = 10.0

Frame = dict[str, Any]


class LinkError(Exception):
    """The other end spoke nonsense or went away."""


def encode_frame(frame: Frame) -> bytes:
    """Return the bytes of one frame; dataclasses become objects."""
    body = orjson.dumps(frame)
    return len(body).to_bytes(4, "big") + body


async def read_frame(reader: asyncio.StreamReader) -> Frame | None:
    """Return the next frame; None at the end.

    Raises:
        LinkError: Not a frame.
    """
    try:
        size = int.from_bytes(await reader.readexactly(4), "big")
        if size > MAX_FRAME:
            raise LinkError(f"a frame of {size} bytes")
        frame = orjson.loads(await reader.readexactly(size))
    except (asyncio.IncompleteReadError, OSError):
        return None
    except orjson.JSONDecodeError as error:
        raise LinkError("a frame that is no JSON") from error
    if not isinstance(frame, dict) or not isinstance(frame.get("type"), str):
        raise LinkError("a frame without a type")
    return frame


class SupervisorLink:
    """The gateway's end: takes tables, sends figures.

    Args:
        listener: The bound and listening Unix socket.
        token: What a supervisor must say.
        hello: What we answer it.
        on_frame: Called with each frame; a frame it returns is sent back.
        sockets: What is handed over on request.
    """

    def __init__(
        self,
        listener: socket.socket,
        *,
        token: str,
        hello: Callable[[], Frame],
        on_frame: Callable[[Frame], Frame | None],
        sockets: list[socket.socket],
    ) -> None:
        self._listener = listener
        self._token = token
        self._hello = hello
        self._on_frame = on_frame
        self._sockets = sockets
        self._writer: asyncio.StreamWriter | None = None

    @property
    def connected(self) -> bool:
        """Whether a supervisor listens."""
        return self._writer is not None

    def send(self, frame: Frame) -> bool:
        """Queue a frame for the supervisor; False: there is none, or it does not keep up."""
        writer = self._writer
        if writer is None or writer.is_closing():
            return False
        if writer.transport.get_write_buffer_size() > 1024 * 1024:
            return False
        writer.write(encode_frame(frame))
        return True

    async def serve(self) -> None:
        """Accept supervisors until cancelled."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            while True:
                connection, _ = await loop.sock_accept(self._listener)
                tasks.create_task(self._talk(connection), name="supervisor-link")

    async def _talk(self, connection: socket.socket) -> None:
        try:
            reader, writer = await asyncio.open_unix_connection(sock=connection)
        except OSError:
            connection.close()
            return
        try:
            async with asyncio.timeout(SEND_TIMEOUT):
                first = await read_frame(reader)
            if (
                first is None
                or first["type"] != "hello"
                or not hmac.compare_digest(str(first.get("token", "")), self._token)
            ):
                logger.warning("refused a link without the right token")
                return
            if first.get("want") == "sockets":
                self._hand_over(writer)
                return
            if first.get("want") == "stop":
                self._on_frame({"type": "stop", "grace": first.get("grace", 5.0)})
                writer.write(encode_frame(self._hello()))
                return
            old, self._writer = self._writer, writer
            if old is not None:
                old.close()
            writer.write(encode_frame(self._hello()))
            while (frame := await read_frame(reader)) is not None:
                reply = self._on_frame(frame)
                if reply is not None:
                    writer.write(encode_frame(reply))
        except (LinkError, OSError, TimeoutError) as error:
            logger.warning("link to the supervisor ended: %s", error or type(error).__name__)
        finally:
            if self._writer is writer:
                self._writer = None
                # Who held Pods at breakpoints is gone, and with it the debuggers' connections.
                self._on_frame({"type": "hold", "pods": {}})
            writer.close()

    def _hand_over(self, writer: asyncio.StreamWriter) -> None:
        raw = writer.get_extra_info("socket")
        with socket.socket(fileno=os.dup(raw.fileno())) as plain:
            socket.send_fds(plain, [b"sockets"], [s.fileno() for s in self._sockets])
