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
from kserve_local.gateway.payload_file import Event, PayloadFile

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
        inside: Makes a new connection to this gateway.
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
        self._complaints = Complaints()
        self._unwritten: list[Event] = []
        self._writing = asyncio.Lock()

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
            text = f"event {payload.id}: {settings.url}: {why}"
            self._complaints.tell(settings.url, text)
        else:
            text = f"event {payload.id}: {settings.url}: status {reply.status}"
            if 200 <= reply.status < 300:
                logger.debug("%s", text)
            else:
                self._complaints.tell(settings.url, text)

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
        url = payload.settings.url
        event = Event(url, attributes(payload, now), payload.content_type, payload.body)
        self._unwritten.append(event)
        # Whoever comes first writes what the others brought meanwhile.
        async with self._writing:
            events, self._unwritten = self._unwritten, []
            if not events:
                return
            try:
                await asyncio.to_thread(self._sink.add, events)
            except OSError as error:
                self._complaints.tell("the built-in sink", f"the built-in sink: {error}")


class Complaints:
    """Warnings that come with every event: of each kind one in a while, with their number."""

    def __init__(self) -> None:
        self._told: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def tell(self, about: str, text: str) -> None:
        """Log the text, or count it."""
        count = self._counts[about] = self._counts.get(about, 0) + 1
        now = perf_counter()
        if about not in self._told or now - self._told[about] > TOLD_EVERY:
            self._told[about] = now
            self._counts[about] = 0
            logger.warning("%s%s", text, f" ({count} times)" if count > 1 else "")


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
        self._complaints = Complaints()

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
        settings = payload.settings
        self._complaints.tell(
            settings.url,
            f"{settings.namespace}/{settings.service}: the sink {settings.url} does not keep up: "
            "an event is dropped",
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
