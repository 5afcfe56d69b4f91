"""The agent's logger: events of requests and responses on their way to where they are wanted.

Copies what KServe's agent sends and when (pkg/logger; traffic.md section 6.1): five deliveries at a
time, each once, whatever the sink says. Not copied: that what cannot be delivered piles up without
end, and that a full queue holds requests up. Here events beyond `WAITING` are dropped, and the log
says how many.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from urllib.parse import urlsplit

from kserve_local.gateway import outbound
from kserve_local.gateway.agent_settings import LoggerSettings
from kserve_local.gateway.outbound import Courier, OutboundError, Place, UnknownHost
from kserve_local.gateway.payload import Payload, attributes, event_headers
from kserve_local.gateway.payload_file import PayloadFile

logger = logging.getLogger(__name__)

WORKERS = 5
WAITING = 1000
WAITING_BYTES = 64 * 1024 * 1024
DELIVERY_TIMEOUT = 30.0
TOLD_EVERY = 10.0

Spawn = Callable[[Awaitable[None], str], None]


def is_storage(url: str) -> bool:
    """Whether events for this URL are objects in a bucket."""
    return url.startswith(("s3", "gs", "abfs"))


def names_cluster(host: str, namespace: str) -> bool:
    """Whether a host can only mean something in a cluster: a Service's name.

    Args:
        namespace: Of the service whose requests are logged.
    """
    host = host.lower().rstrip(".")
    if "." not in host:
        return ":" not in host and host != "localhost"
    if host.endswith((".svc", ".cluster.local")):
        return True
    _, _, last = host.partition(".")
    return last in (namespace, "default", "kserve", "knative-eventing", "istio-system")


class Delivery:
    """Delivers events over HTTP, or to the built-in sink.

    Args:
        knows: Whether a host is one of the gateway's own routes.
        inside: Gives the near end of a new connection to this gateway.
        sink: Keeps what only a cluster could deliver.
        certificates: Where the CA bundle of the ConfigMap would be mounted, if anywhere.
    """

    def __init__(
        self,
        *,
        knows: Callable[[bytes], bool],
        inside: outbound.Open,
        sink: PayloadFile,
        certificates: Path | None = None,
    ) -> None:
        self._knows = knows
        self._inside = inside
        self._sink = sink
        self._certificates = certificates

    async def send(self, payload: Payload, courier: Courier) -> None:
        """Deliver one event. Whatever goes wrong is logged, and nothing is tried again."""
        settings = payload.settings
        url = urlsplit(settings.url)
        host = url.hostname or ""
        known = url.scheme == "http" and self._knows(host.lower().encode())
        if host and not known and names_cluster(host, settings.namespace):
            await self._keep(payload)
            return
        try:
            place = self._place(settings, known=known)
            target = (url.path or "/") + (f"?{url.query}" if url.query else "")
            headers = [
                ("User-Agent", "Go-http-client/1.1"),
                *event_headers(payload, datetime.now(UTC)),
            ]
            if any(c in value for _, value in headers for c in "\r\n\0"):
                raise OutboundError("net/http: invalid header field value")
            async with asyncio.timeout(DELIVERY_TIMEOUT):
                reply = await courier.post(place, target, headers, payload.body)
        except UnknownHost:
            await self._keep(payload)
        except (OutboundError, TimeoutError, ValueError) as error:
            why = str(error) or "no answer in time"
            logger.warning("event %s: %s: %s", payload.id, settings.url, why)
        else:
            level = logging.DEBUG if 200 <= reply.status < 300 else logging.WARNING
            logger.log(level, "event %s: %s: status %d", payload.id, settings.url, reply.status)

    def _place(self, settings: LoggerSettings, *, known: bool) -> Place:
        url = urlsplit(settings.url)
        authority = url.netloc.rpartition("@")[2]
        if known:
            return Place("", 0, authority, open=self._inside)
        if url.scheme not in ("http", "https"):
            raise OutboundError(f'unsupported protocol scheme "{url.scheme}"')
        secure = url.scheme == "https"
        context = self._tls(settings) if secure else None
        return Place(url.hostname or "", url.port or (443 if secure else 80), authority, context)

    def _tls(self, settings: LoggerSettings) -> ssl.SSLContext:
        try:
            folder = self._certificates or Path("/nonexistent")
            certificate = (folder / Path(settings.certificate).name).read_bytes()
        except OSError:
            # Without its certificate upstream takes the system's roots, and verifies in any case.
            return outbound.tls()
        return outbound.tls(certificate, verify=not settings.skip_verify)

    async def _keep(self, payload: Payload) -> None:
        now = datetime.now(UTC)
        try:
            await asyncio.to_thread(
                self._sink.add,
                payload.settings.url,
                attributes(payload, now),
                payload.content_type,
                payload.body,
            )
        except OSError as error:
            logger.warning("event %s: the built-in sink: %s", payload.id, error)


class PayloadLogger:
    """The events of one Pod.

    Args:
        deliver: Delivers one event and does not raise. Each worker brings a courier of its own.
        spawn: Keeps a piece of work until it ends.
        workers: Deliveries at a time.
    """

    def __init__(
        self,
        deliver: Callable[[Payload, Courier], Awaitable[None]],
        spawn: Spawn,
        *,
        workers: int = WORKERS,
    ) -> None:
        self._deliver = deliver
        self._spawn = spawn
        self._workers = workers
        self._waiting: deque[Payload] = deque()
        self._size = 0
        self._running = 0
        self._dropped = 0
        self._told = 0.0

    def put(self, payload: Payload) -> None:
        """Queue an event; never waits."""
        size = len(payload.body)
        full = len(self._waiting) >= WAITING or self._size + size > WAITING_BYTES
        if full and self._waiting:
            self._drop(payload)
            return
        self._waiting.append(payload)
        self._size += size
        if self._running < self._workers:
            self._running += 1
            self._spawn(self._work(), "logger")

    def _drop(self, payload: Payload) -> None:
        self._dropped += 1
        now = perf_counter()
        if now - self._told > TOLD_EVERY:
            self._told = now
            logger.warning(
                "%s/%s: the sink %s does not keep up: %d events dropped so far",
                payload.settings.namespace,
                payload.settings.service,
                payload.settings.url,
                self._dropped,
            )

    async def _work(self) -> None:
        courier = Courier()
        try:
            while self._waiting:
                payload = self._waiting.popleft()
                try:
                    await self._deliver(payload, courier)
                except Exception:
                    logger.exception("event %s could not be delivered", payload.id)
                finally:
                    self._size -= len(payload.body)
        finally:
            self._running -= 1
            courier.close()
