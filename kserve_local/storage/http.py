"""Blocking HTTP requests for downloads, and a few uploads: redirects, proxies from the environment,
TLS, kept connections.

Reads the proxy variables of the environment it is given; writes nothing. Runs in worker threads;
`Stop` ends a read that waits. Failures come as three kinds that callers treat differently: the
source said no (`Refused`), could not be reached or broke off (`Broken`), or we were told to stop.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import http.client
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

from kserve_local.errors import StorageError

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS = 10
_BODY_SHOWN = 64 * 1024
# What a later try may well answer; the rest is an answer.
TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Limits:
    """How long and how often a source is tried. Durations are seconds.

    Args:
        stall: Longest silence of a connection before it is broken off and resumed.
        attempts: Tries in a row that bring nothing before giving up.
        longest_wait: A `Retry-After` beyond this is not waited for.
        parallel: Files on their way at a time, over all downloads.
    """

    connect: float = 10.0
    stall: float = 30.0
    attempts: int = 5
    first_wait: float = 0.5
    longest_wait: float = 30.0
    parallel: int = 8


class Refused(Exception):
    """The source answered with another status than asked for."""

    def __init__(self, url: str, status: int, reason: str, headers: Headers, body: bytes) -> None:
        super().__init__(f"{status} {reason}")
        self.url = url
        self.status = status
        self.reason = reason
        self.headers = headers
        self.body = body

    @property
    def retry_after(self) -> float | None:
        """Seconds that the source asks to wait."""
        value = self.headers.get("retry-after", "").strip()
        if value.isdigit():
            return float(value)
        with contextlib.suppress(ValueError, TypeError):
            return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
        return None


class Broken(Exception):
    """The source could not be reached, went silent, or broke off."""


class Stopped(Exception):
    """The download was cancelled."""


class Stop:
    """Tells worker threads to end, also those that wait for the network."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()

    def __bool__(self) -> bool:
        return self._event.is_set()

    def set(self) -> None:
        """End all work; safe from any thread."""
        self._event.set()
        with self._lock:
            for sock in self._sockets:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def check(self) -> None:
        """Raise `Stopped` once told to stop."""
        if self._event.is_set():
            raise Stopped

    def wait(self, duration: float) -> None:
        """Wait that many seconds, or raise `Stopped`."""
        if self._event.wait(duration):
            raise Stopped

    @contextlib.contextmanager
    def closing(self, sock: socket.socket | None) -> Iterator[None]:
        """Break this socket off when told to stop within the block."""
        if sock is None:
            yield
            return
        with self._lock:
            self._sockets.add(sock)
        try:
            self.check()
            yield
        finally:
            with self._lock:
                self._sockets.discard(sock)


class Headers:
    """Response headers, looked up without regard to case."""

    def __init__(self, items: Mapping[str, str] | list[tuple[str, str]]) -> None:
        pairs = items.items() if isinstance(items, Mapping) else items
        self._items = {name.lower(): value for name, value in pairs}

    def get(self, name: str, default: str = "") -> str:
        """Return the header's value."""
        return self._items.get(name.lower(), default)


@dataclass(slots=True)
class Response:
    """An answer whose body is still to be read. Close it in any case."""

    url: str
    status: int
    headers: Headers
    _raw: http.client.HTTPResponse
    _connection: http.client.HTTPConnection
    # http.client lets go of it when the answer ends with the connection.
    _socket: socket.socket | None
    _release: Callable[[http.client.HTTPConnection], None]
    _stop: Stop
    _left: int | None = field(default=None)
    _done: bool = False

    def __post_init__(self) -> None:
        # None for chunked bodies, whose end http.client checks, and for those that end with the
        # connection, whose end nobody can check.
        self._left = self._raw.length

    @property
    def length(self) -> int | None:
        """Bytes of the body that are still to come, None when unknown."""
        return self._left

    def readinto(self, buffer: memoryview) -> int:
        """Read the next bytes; 0 at the end of a complete body.

        Raises:
            Broken: Silence, a broken connection, or fewer bytes than announced.
            Stopped: Told to stop.
        """
        self._stop.check()
        most = len(buffer) if self._left is None else min(len(buffer), self._left)
        try:
            with self._stop.closing(self._socket):
                # What has come, not a full buffer: a broken connection loses nothing of it. With
                # the length reached nothing is read, which `read1` leaves to its caller.
                data = self._raw.read1(most) if most else b""
        except TimeoutError as error:
            raise Broken("no data came for too long") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._stop.check()
            raise Broken(_words(error)) from error
        if data:
            buffer[: len(data)] = data
            if self._left is not None:
                self._left -= len(data)
            return len(data)
        self._stop.check()
        if self._left:
            raise Broken(f"the connection ended {self._left} bytes early")
        self._done = True
        return 0

    def read(self, most: int) -> bytes:
        """Return the whole body, cut off at `most` bytes."""
        found = bytearray()
        buffer = memoryview(bytearray(min(most, 64 * 1024)))
        while len(found) < most:
            count = self.readinto(buffer[: most - len(found)])
            if not count:
                break
            found += buffer[:count]
        return bytes(found)

    def close(self) -> None:
        """Keep the connection for another request when the body was read, else close it."""
        if self._done and not self._raw.will_close:
            self._raw.close()
            self._release(self._connection)
        else:
            self._raw.close()
            self._connection.close()


def _words(error: BaseException) -> str:
    """Return an error in words that a user understands."""
    if isinstance(error, socket.gaierror):
        return f"the host name cannot be resolved ({error.strerror})"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is not trusted ({error.verify_message})"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, http.client.RemoteDisconnected):
        return "the connection was closed without an answer"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def tls_context(ca_bundle: str = "", *, verify: bool = True) -> ssl.SSLContext:
    """Return the TLS settings of one source.

    Raises:
        StorageError: The bundle does not exist or holds no certificate.
    """
    if ca_bundle and verify and not Path(ca_bundle).exists():
        raise StorageError(f"Failed to find ca bundle file({ca_bundle}).")
    try:
        path = Path(ca_bundle) if ca_bundle and verify else None
        context = ssl.create_default_context(
            cafile=str(path) if path and path.is_file() else None,
            capath=str(path) if path and path.is_dir() else None,
        )
    except ssl.SSLError as error:
        raise StorageError(f"ca bundle file({ca_bundle}) holds no certificate: {error}") from error
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class HttpClient:
    """GETs for one download. Thread-safe.

    Args:
        env: Where `http_proxy`, `https_proxy`, `all_proxy` and `no_proxy` are looked up.
    """

    def __init__(
        self, limits: Limits, stop: Stop, env: Mapping[str, str], tls: ssl.SSLContext | None = None
    ) -> None:
        self.limits = limits
        self.stop = stop
        self._env = env
        self._tls = tls
        self._lock = threading.Lock()
        self._idle: dict[tuple[str, str], list[http.client.HTTPConnection]] = {}

    def close(self) -> None:
        """Close the kept connections."""
        with self._lock:
            kept = [c for connections in self._idle.values() for c in connections]
            self._idle.clear()
        for connection in kept:
            connection.close()

    def get(
        self,
        url: str,
        headers: Callable[[str], Mapping[str, str]],
        *,
        expect: tuple[int, ...] = (200,),
        follow: bool = True,
        body: bytes | None = None,
        method: str = "",
    ) -> Response:
        """Send one request, follow its redirects, and return the answer with its body unread.

        Args:
            headers: Gives the headers for each URL on the way, so that secrets stay with the host
                they are for.
            body: Sends a POST of this form instead of a GET.
            method: Another one than these two.

        Raises:
            Refused: Another status than expected.
            Broken: No answer.
            Stopped: Told to stop.
        """
        for _ in range(_MAX_REDIRECTS + 1):
            response = self._once(url, headers(url), body, method)
            target = response.headers.get("location")
            if not (follow and response.status in _REDIRECTS and target):
                break
            response.close()
            url = urljoin(url, target)
            if urlsplit(url).scheme not in ("http", "https"):
                raise Broken(f"redirected to {urlsplit(url).scheme}://, which is not followed")
        else:
            raise Broken(f"more than {_MAX_REDIRECTS} redirects")
        if response.status in expect:
            return response
        try:
            shown = response.read(_BODY_SHOWN)
        except Broken:
            shown = b""
        finally:
            response.close()
        reason = response._raw.reason or http.client.responses.get(response.status, "")
        raise Refused(url, response.status, reason, response.headers, shown)

    def retried(self, what: Callable[[], Response], note: Callable[[str], None]) -> Response:
        """Return the answer of `what()`, tried again while trying again may help.

        Raises:
            Refused, Broken: The last failure.
        """
        attempt = 0
        while True:
            try:
                return what()
            except (Refused, Broken) as error:
                attempt += 1
                self.pause(error, attempt, note)

    def pause(self, error: Refused | Broken, attempt: int, note: Callable[[str], None]) -> None:
        """Wait before the next try, or raise the error when there is to be none.

        Args:
            attempt: Tries in a row that failed, this one included.
            note: Takes what is waited for, for the progress line.
        """
        wait = min(self.limits.first_wait * 2.0 ** (attempt - 1), self.limits.longest_wait)
        if isinstance(error, Refused):
            if error.status not in TRANSIENT:
                raise error
            asked = error.retry_after
            if asked is not None:
                if asked > self.limits.longest_wait:
                    raise error
                wait = asked
        if attempt >= self.limits.attempts:
            raise error
        note(f"{error}; next try in {wait:.1f} s")
        self.stop.wait(wait)

    def _once(
        self, url: str, headers: Mapping[str, str], body: bytes | None, method: str
    ) -> Response:
        parts = urlsplit(url)
        key = (parts.scheme, parts.netloc.rpartition("@")[2])
        target = parts.path or "/"
        if parts.query:
            target += f"?{parts.query}"
        send = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "kserve-local"}
        if parts.username is not None:
            login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            send["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
        send.update(headers)
        proxy = self._proxy(parts.scheme, parts.hostname or "")
        if proxy and parts.scheme == "http":
            target = f"http://{key[1]}{target}"
            send.update(_proxy_login(proxy))
        while True:
            self.stop.check()
            with self._lock:
                kept = self._idle.get(key)
                connection = kept.pop() if kept else None
            reused = connection is not None
            try:
                if connection is None:
                    connection = self._connect(parts.scheme, key[1], proxy)
                sock = connection.sock
                with self.stop.closing(sock):
                    method = method or ("GET" if body is None else "POST")
                    connection.request(method, target, body, send)
                    raw = connection.getresponse()
            except (OSError, http.client.HTTPException, ValueError) as error:
                if connection is not None:
                    connection.close()
                self.stop.check()
                if reused:
                    continue  # It was closed while it was idle; that says nothing of the source.
                raise Broken(_words(error)) from error
            return Response(
                url,
                raw.status,
                Headers(raw.getheaders()),
                raw,
                connection,
                sock,
                lambda c: self._keep(key, c),
                self.stop,
            )

    def _keep(self, key: tuple[str, str], connection: http.client.HTTPConnection) -> None:
        with self._lock:
            self._idle.setdefault(key, []).append(connection)

    def _connect(self, scheme: str, netloc: str, proxy: str) -> http.client.HTTPConnection:
        at = urlsplit(proxy) if proxy else urlsplit(f"//{netloc}")
        host, port = at.hostname or "", at.port
        timeout = self.limits.connect
        connection: http.client.HTTPConnection
        if scheme == "https":
            self._tls = self._tls or tls_context()
            connection = http.client.HTTPSConnection(host, port, timeout=timeout, context=self._tls)
            if proxy:
                final = urlsplit(f"//{netloc}")
                connection.set_tunnel(
                    final.hostname or "", final.port or 443, headers=_proxy_login(proxy)
                )
        else:
            connection = http.client.HTTPConnection(host, port, timeout=timeout)
        connection.connect()
        if connection.sock is not None:
            connection.sock.settimeout(self.limits.stall)
        return connection

    def _proxy(self, scheme: str, host: str) -> str:
        def variable(name: str) -> str:
            return self._env.get(name) or self._env.get(name.upper()) or ""

        skip = urllib.request.proxy_bypass_environment(host, {"no": variable("no_proxy")})  # type: ignore[attr-defined]  # not in typeshed
        if skip:
            return ""
        # HTTP_PROXY in capitals is what a CGI caller's `Proxy:` header becomes; this is no CGI.
        proxy = variable(f"{scheme}_proxy") or variable("all_proxy")
        return proxy if not proxy or "://" in proxy else f"http://{proxy}"


def _proxy_login(proxy: str) -> dict[str, str]:
    at = urlsplit(proxy)
    if at.username is None:
        return {}
    login = f"{unquote(at.username)}:{unquote(at.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}
