"""Calls of a graph's steps: POST to a URL, as Go's `http.Client` in KServe's router makes them.

A URL whose host is one of the table's goes to this gateway itself, so that a step at zero replicas
is woken and held for as every other caller's request; everything else goes out by TCP or TLS.
Connections are kept for the next call. Failures carry Go's words, which the router shows its
callers (control-plane.md 9.3).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import unquote, urljoin

from kserve_local.gateway.chunked import ChunkError
from kserve_local.gateway.graph import GraphError, without_password
from kserve_local.gateway.head import HeadError, header_of
from kserve_local.gateway.step_connection import CutShort, Reply, Silent, StepConnection, Take

Header = tuple[str, str]
_Key = tuple[str, str, int]

MAX_REDIRECTS = 10
IDLE = 60.0
"""Seconds an unused connection is kept."""
KEPT = 32
"""Unused connections kept to one address."""
DIAL = 30.0
"""Seconds to connect, as Go's default dialer."""

_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.\-]*):(.*)", re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_ESCAPE = re.compile(r"%(?![0-9a-fA-F]{2}).{0,2}", re.DOTALL)
_BAD_HOST = re.compile(r'[ "<>^`{|}\\]')
# The router's own, or the connection's: never copied from what is propagated.
_OWN = frozenset(
    {"host", "content-length", "transfer-encoding", "trailer", "connection", "keep-alive", "te"}
    | {"upgrade", "expect", "proxy-connection"}
)


_REDIRECTS = frozenset((301, 302, 303, 307, 308))
# The connections to this gateway are the same for all hosts.
_INSIDE: _Key = ("", "", 0)

# Not shown to another host that a redirect leads to, as by Go.
_PRIVATE = frozenset(("authorization", "www-authenticate", "cookie", "cookie2"))


@dataclass(frozen=True, slots=True)
class URL:
    """One parsed step URL.

    Args:
        name: The host as the table has it.
        may_be_inside: Plain HTTP, at the port where the gateway plays a cluster's.
    """

    text: str
    scheme: str
    host: str
    port: int
    authority: str
    target: str
    name: bytes
    may_be_inside: bool
    user: str = ""


def quoted(text: str) -> str:
    """Return `text` as Go's `%q`; the password of a URL stays out of it."""
    text = without_password(text)
    return json.dumps(text, ensure_ascii=False).replace("\\u00", "\\x")


@lru_cache(maxsize=256)
def parse_url(text: str) -> URL:
    """Return the URL that a step names.

    Raises:
        GraphError: Go's words for a URL that cannot be parsed or called.
    """

    def bad(why: str) -> GraphError:
        return GraphError(f"parse {quoted(text)}: {why}")

    if _CONTROL.search(text):
        raise bad("net/url: invalid control character in URL")
    rest = text.partition("#")[0]
    if rest.startswith(":"):
        raise bad("missing protocol scheme")
    match = _SCHEME.fullmatch(rest)
    scheme, rest = (match.group(1).lower(), match.group(2)) if match else ("", rest)
    if not match and ":" in rest.partition("/")[0].partition("?")[0]:
        raise bad("first path segment in URL cannot contain colon")
    authority = path = ""
    if rest.startswith("//"):
        end = next((i for i in range(2, len(rest)) if rest[i] in "/?"), len(rest))
        authority, path = rest[2:end], rest[end:]
    else:
        path = rest
    user, _, authority = authority.rpartition("@")
    host, port = _host_port(authority, bad)
    if escape := _ESCAPE.search(path.partition("?")[0]):
        raise bad(f"invalid URL escape {quoted(escape.group())}")
    if scheme not in ("http", "https"):
        raise GraphError(f'Post {quoted(text)}: unsupported protocol scheme "{scheme}"')
    if not host:
        raise GraphError(f"Post {quoted(text)}: http: no Host in request URL")
    if port > 65535:
        raise GraphError(f"Post {quoted(text)}: dial tcp: address {port}: invalid port")
    if path[:1] != "/":
        path = "/" + path
    target = "".join(c if "!" <= c <= "~" else _percent(c) for c in path)
    default = 443 if scheme == "https" else 80
    port = port or default
    name = host.lower()
    may_be_inside = scheme == "http" and (port == 80 or name.endswith(".localhost"))
    return URL(
        text,
        scheme,
        host,
        port,
        authority,
        target,
        name.encode("utf-8", "replace"),
        may_be_inside,
        unquote(user),
    )


def _percent(sign: str) -> str:
    return "".join(f"%{byte:02X}" for byte in sign.encode("utf-8", "replace"))


def _host_port(authority: str, bad: Callable[[str], GraphError]) -> tuple[str, int]:
    if wrong := _BAD_HOST.search(authority):
        raise bad(f"invalid character {quoted(wrong.group())} in host name")
    if authority.startswith("["):
        host, bracket, tail = authority[1:].partition("]")
        if not bracket:
            raise bad("missing ']' in host")
    else:
        host, colon, tail = authority.partition(":")
        tail = colon + tail
    if tail and not re.fullmatch(r":[0-9]*", tail):
        raise bad(f"invalid port {quoted(tail)} after host")
    return host, int(tail[1:] or 0) if tail else 0


@dataclass(slots=True)
class _Call:
    """One call on its way.

    Args:
        headers: Sent as they are.
        in_body: Of the last answer the head has come.
    """

    headers: Sequence[Header]
    take: Take
    in_body: bool = False


class StepClient:
    """Calls steps.

    Args:
        knows: Whether a host (lower case) is one of the table's.
        inside: Connects a protocol to this gateway itself.
    """

    def __init__(
        self,
        *,
        knows: Callable[[bytes], bool],
        inside: Callable[[asyncio.Protocol], asyncio.Transport],
    ) -> None:
        self._knows = knows
        self._inside = inside
        self._idle: dict[_Key, list[StepConnection]] = {}
        self._tls: ssl.SSLContext | None = None

    async def post(
        self, url: str, body: bytes, headers: Sequence[Header], *, limit: float, take: Take
    ) -> tuple[int, bytes]:
        """Return status and body of the answer.

        Args:
            headers: Sent as they are; Content-Type defaults to JSON.
            limit: Seconds for all of it; 0: none.
            take: Called with each number of bytes that is kept; may raise.

        Raises:
            GraphError: No answer, in Go's words.
        """
        parsed = parse_url(url)
        call = _Call(headers, take)
        if not limit:
            return await self._follow(parsed, body, call)
        try:
            async with asyncio.timeout(limit):
                return await self._follow(parsed, body, call)
        except TimeoutError as error:
            # After the head the router's own reading fails, and its error has no address.
            if call.in_body:
                raise GraphError(
                    "context deadline exceeded (Client.Timeout or context cancellation while "
                    "reading body)"
                ) from error
            raise GraphError(
                f"Post {quoted(url)}: context deadline exceeded (Client.Timeout exceeded while "
                "awaiting headers)"
            ) from error

    async def _follow(self, url: URL, body: bytes, call: _Call) -> tuple[int, bytes]:
        """Call, and follow redirects as Go does: 307 and 308 with the body, others by GET."""
        method, first, first_host = "POST", url.text, url.host.lower()
        for _ in range(MAX_REDIRECTS):
            head, answer = await self._once(method, url, body, call)
            if head.status not in _REDIRECTS or not (location := header_of(head, b"location")):
                return head.status, answer
            if head.status in (301, 302, 303):
                method, body = "GET", b""
            then = parse_url(urljoin(url.text, location.decode("latin-1")))
            if not f".{then.host.lower()}".endswith(f".{first_host}"):
                call.headers = [(n, v) for n, v in call.headers if n.lower() not in _PRIVATE]
            url = then
        raise GraphError(f"{method.capitalize()} {quoted(first)}: stopped after 10 redirects")

    async def _once(self, method: str, url: URL, body: bytes, call: _Call) -> Reply:
        head = _request(method, url, len(body), call.headers)
        while True:
            connection = self._rested(url) or await self._connect(method, url)
            call.in_body = False
            try:
                return await connection.ask(head, body, call.take)
            except Silent as error:
                # Our own gateway answers whatever it has read; this one it closed unread.
                if not (connection.used and connection.inside):
                    raise GraphError(f"{_what(method, url)}: EOF") from error
            except HeadError as error:
                raise GraphError(
                    f"{_what(method, url)}: net/http: HTTP/1.x transport connection broken: "
                    "malformed HTTP response"
                ) from error
            except (CutShort, ChunkError, OSError) as error:
                why = "unexpected EOF" if isinstance(error, CutShort) else _words(error, url)
                if not connection.in_body:
                    why = f"{_what(method, url)}: {why}"
                raise GraphError(why) from error
            finally:
                call.in_body = connection.in_body
                if connection.can_stay:
                    self._keep(url, connection)
                else:
                    connection.close()

    # Connections

    def _is_inside(self, url: URL) -> bool:
        return url.may_be_inside and self._knows(url.name)

    def _keep(self, url: URL, connection: StepConnection) -> None:
        connection.rest()
        key = _INSIDE if connection.inside else (url.scheme, url.host, url.port)
        idle = self._idle.setdefault(key, [])
        if len(idle) < KEPT:
            idle.append(connection)
        else:
            connection.close()

    def tidy(self, now: float) -> None:
        """Close what nobody has used for a while."""
        for key, idle in list(self._idle.items()):
            for connection in [c for c in idle if now - c.since > IDLE]:
                idle.remove(connection)
                connection.close()
            if not idle:
                del self._idle[key]

    def close(self) -> None:
        """Close all unused connections."""
        self.tidy(float("inf"))

    def _rested(self, url: URL) -> StepConnection | None:
        """Return a kept connection that is still open."""
        key = _INSIDE if self._is_inside(url) else (url.scheme, url.host, url.port)
        idle = self._idle.get(key, [])
        while idle:
            connection = idle.pop()
            if connection.is_open():
                return connection
            connection.close()
        return None

    async def _connect(self, method: str, url: URL) -> StepConnection:
        if self._is_inside(url):
            connection = StepConnection(inside=True)
            self._inside(connection)
            return connection
        try:
            async with asyncio.timeout(DIAL):
                return await self._dial(url)
        except TimeoutError as error:
            why = f"dial tcp {_where(url.host, url.port)}: i/o timeout"
            raise GraphError(f"{_what(method, url)}: {why}") from error
        except (OSError, ssl.SSLError, UnicodeError) as error:
            why = _words(error, url)
            raise GraphError(f"{_what(method, url)}: {why}") from error

    async def _dial(self, url: URL) -> StepConnection:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
        first: OSError | None = None
        for _, _, _, _, address in found:
            raw: socket.socket | None = None
            family = socket.AF_INET6 if ":" in str(address[0]) else socket.AF_INET
            try:
                raw = socket.socket(family, socket.SOCK_STREAM)
                raw.setblocking(False)
                await loop.sock_connect(raw, address)
            except OSError as error:
                if raw is not None:
                    raw.close()
                first = first or _Dial(error, str(address[0]), url.port)
                continue
            except BaseException:
                if raw is not None:
                    raw.close()
                raise
            with contextlib.suppress(OSError):
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            tls = self._context() if url.scheme == "https" else None
            _, connection = await loop.create_connection(
                StepConnection, sock=raw, ssl=tls, server_hostname=url.host if tls else None
            )
            return connection
        raise first or OSError("no address")

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls


class _Dial(OSError):
    """A connection that could not be made, and to where."""

    def __init__(self, error: OSError, address: str, port: int) -> None:
        super().__init__(error.errno, os.strerror(error.errno or 0))
        self.where = _where(address, port)


def _where(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _words(error: Exception, url: URL) -> str:
    """Return Go's words for a failed connection."""
    if isinstance(error, _Dial):
        return f"dial tcp {error.where}: connect: {os.strerror(error.errno or 0).lower()}"
    if isinstance(error, (socket.gaierror, UnicodeError)):
        return f"dial tcp: lookup {url.host}: no such host"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"tls: failed to verify certificate: x509: {_certificate(error, url.host)}"
    if isinstance(error, ssl.SSLError):
        if "WRONG_VERSION" in (error.reason or "") or "HTTP_REQUEST" in (error.reason or ""):
            return "http: server gave HTTP response to HTTPS client"
        return f"tls: {(error.reason or 'handshake failure').replace('_', ' ').lower()}"
    if isinstance(error, ConnectionResetError):
        return "read: connection reset by peer"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    return "EOF"


def _certificate(error: ssl.SSLCertVerificationError, host: str) -> str:
    if error.verify_code == 10:
        return "certificate has expired or is not yet valid"
    if error.verify_code in (62, 64):
        return f"certificate is not valid for {host}"
    return "certificate signed by unknown authority"


def _what(method: str, url: URL) -> str:
    """Return how Go's errors name a call."""
    return f"{method.capitalize()} {quoted(url.text)}"


def _request(method: str, url: URL, size: int, headers: Sequence[Header]) -> bytes:
    """Return the head of a request whose body has `size` bytes."""
    lines = [f"{method} {url.target} HTTP/1.1", f"Host: {url.authority}"]
    given = {name.lower() for name, _ in headers}
    if "user-agent" not in given:
        lines.append("User-Agent: Go-http-client/1.1")
    if method == "POST":
        lines.append(f"Content-Length: {size}")
    lines += [f"{name}: {value}" for name, value in headers if name.lower() not in _OWN]
    if "content-type" not in given:
        lines.append("Content-Type: application/json")
    if url.user and "authorization" not in given:
        lines.append(f"Authorization: Basic {base64.b64encode(url.user.encode()).decode()}")
    return "\r\n".join((*lines, "", "")).encode("latin-1", "replace")
