"""A reverse proxy that passes requests on to a real server, and breaks the answers it is told to.

Stands between a download and moto's S3 server, a GCS emulator or a web server. Counts requests and
body bytes, so that tests can say what was transferred.
"""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive", "date", "server"}


@dataclass
class Fault:
    """What happens to the next `times` answers whose path holds `match`.

    Args:
        status: Answer this instead of asking the server; 0 passes the request on.
        cut: Send so many bytes of the body, then close.
        stall: Send so many bytes of the body, then nothing until the proxy ends.
        flip: Change one byte of the body.
    """

    match: str = ""
    times: int = 1
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut: int | None = None
    stall: int | None = None
    flip: bool = False


@dataclass
class Seen:
    """One request: path with query, its headers in lower case, and what was answered."""

    path: str
    headers: dict[str, str]
    status: int = 0
    sent: int = 0


class FaultProxy:
    """The proxy; `url` is what clients use."""

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream)
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.ended = threading.Event()
        self._lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                proxy.answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Clients that go away are part of the game."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        """End it, stalled answers too."""
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def sent(self) -> int:
        """Body bytes sent so far."""
        return sum(seen.sent for seen in self.seen)

    def paths(self, match: str = "") -> list[str]:
        """Return the paths asked for that hold `match`, in order."""
        return [seen.path for seen in self.seen if match in seen.path]

    def forget(self) -> None:
        """Count from here."""
        self.seen.clear()

    def _fault(self, path: str) -> Fault:
        with self._lock:
            for fault in self.faults:
                if fault.times and fault.match in path:
                    fault.times -= 1
                    return fault
        return Fault()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Handle one GET."""
        fault = self._fault(request.path)
        seen = Seen(request.path, {k.lower(): v for k, v in request.headers.items()})
        with self._lock:
            self.seen.append(seen)
        if fault.status:
            status, headers, body = fault.status, dict(fault.headers), fault.body
        else:
            status, headers, body = self._ask(request)
        seen.status = status
        if fault.flip and body:
            body = bytes([body[0] ^ 1]) + body[1:]
        request.send_response(status)
        for name, value in headers.items():
            if name.lower() not in _HOP:
                request.send_header(name, value)
        if status != 304:
            request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        limit = fault.cut if fault.cut is not None else fault.stall
        part = body if limit is None else body[:limit]
        with suppress(OSError):
            request.wfile.write(part)
            request.wfile.flush()
            seen.sent = len(part)
        if fault.stall is not None:
            self.ended.wait()
        if limit is not None:
            request.close_connection = True
            with suppress(OSError):
                request.connection.shutdown(socket.SHUT_RDWR)

    def _ask(self, request: BaseHTTPRequestHandler) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(
            str(self.upstream.hostname), self.upstream.port, timeout=30
        )
        try:
            headers = {k: v for k, v in request.headers.items() if k.lower() != "connection"}
            connection.request("GET", request.path, headers=headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()


@contextmanager
def fault_proxy(upstream: str) -> Iterator[FaultProxy]:
    """Give a proxy before `upstream`."""
    proxy = FaultProxy(upstream)
    try:
        yield proxy
    finally:
        proxy.close()
