"""Logged payloads as objects in a bucket: batches, their content, and their way to the store.

Copies KServe's agent (pkg/logger/batch_*.go, marshaller_http.go, store.go): requests and responses
share one batch; it is flushed when it is full, or when its interval is over, which begins anew at
each flush; one object at a time. The upload itself is the supervisor's: it has the credentials.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import urlsplit

from kserve_local.gateway.agent_settings import MARSHALLER, LoggerSettings
from kserve_local.gateway.logger import PayloadLogger, Spawn, names_cluster
from kserve_local.gateway.outbound import Courier, OutboundError, Place
from kserve_local.gateway.parquet import parquet_document
from kserve_local.gateway.payload import (
    Payload,
    csv_document,
    json_document,
    json_objects,
    object_uri,
)

logger = logging.getLogger(__name__)

MARSHAL_TIMEOUT = 30.0

Store = Callable[[str, str, str, bytes], Awaitable[None]]
"""`store(namespace, pod, uri, data)`: hands on an object that this Pod's credentials may write;
waits while nobody takes it.
"""


class MarshalError(Exception):
    """The records became no object."""


class BlobBatches:
    """The batches of one Pod.

    Args:
        pod: Its name.
        store: Takes the objects.
        spawn: Keeps a piece of work until it ends.
    """

    def __init__(self, settings: LoggerSettings, pod: str, store: Store, spawn: Spawn) -> None:
        self._settings = settings
        self._pod = pod
        self._store = store
        self._spawn = spawn
        self._batch: list[Payload] = []
        self._timer: asyncio.TimerHandle | None = None
        self._writing = asyncio.Lock()
        # One at a time and in order; what waits for it is bounded as all events are.
        self._queue = PayloadLogger(self._take, spawn, workers=1)
        if self._is_timed:
            self._arm()

    @property
    def _is_timed(self) -> bool:
        return self._settings.batch_size > 1 and self._settings.batch_interval > 0

    def put(self, payload: Payload) -> None:
        """Take one record; never waits."""
        self._queue.put(payload)

    async def _take(self, payload: Payload, courier: Courier) -> None:
        self._batch.append(payload)
        if len(self._batch) >= self._settings.batch_size:
            await self._write(self._cut(), courier)

    def _cut(self) -> list[Payload]:
        batch, self._batch = self._batch, []
        if self._is_timed:
            self._arm()
        return batch

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._settings.batch_interval, self._due)

    def _due(self) -> None:
        # A store that does not keep up gets no more, smaller objects for it.
        if self._writing.locked():
            self._arm()
        elif batch := self._cut():
            self._spawn(self._alone(batch), "logger-batch")

    def close(self) -> None:
        """Let what there is become a last object."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch, self._batch = self._batch, []
        if batch:
            self._spawn(self._alone(batch), "logger-batch")

    async def _alone(self, batch: list[Payload]) -> None:
        courier = Courier()
        try:
            await self._write(batch, courier)
        finally:
            courier.close()

    async def _write(self, batch: Sequence[Payload], courier: Courier) -> None:
        async with self._writing:
            await self._store_one(batch, courier)

    async def _store_one(self, batch: Sequence[Payload], courier: Courier) -> None:
        settings = self._settings
        if not settings.store_path:
            logger.error("%s: Logger store not configured, cannot store batch", settings.url)
            return
        if not urlsplit(settings.url).netloc:
            logger.error("%s: no bucket specified in url", settings.url)
            return
        try:
            data, extension = await marshal(settings, batch, courier)
        except MarshalError as error:
            logger.error("%s: Failed to store batch: %s", settings.url, error)
            return
        await self._store(settings.namespace, self._pod, object_uri(batch[0], extension), data)


async def marshal(
    settings: LoggerSettings, batch: Sequence[Payload], courier: Courier
) -> tuple[bytes, str]:
    """Return an object's content and its name's extension.

    Raises:
        MarshalError: The service at `marshallerUrl` gave none.
    """
    if settings.marshaller != MARSHALLER:
        return await _asked(settings, batch, courier)
    if settings.store_format == "csv":
        return csv_document(batch), "csv"
    if settings.store_format == "parquet":
        return parquet_document(batch), "parquet"
    return json_document(batch), "json"


async def _asked(
    settings: LoggerSettings, batch: Sequence[Payload], courier: Courier
) -> tuple[bytes, str]:
    url = urlsplit(settings.marshaller)
    if url.scheme != "http" or not url.hostname:
        raise MarshalError(f'marshallerUrl "{settings.marshaller}": only http is called from here')
    if names_cluster(url.hostname, settings.namespace):
        raise MarshalError(
            f'marshallerUrl "{settings.marshaller}" exists in a cluster only; run the marshaller '
            "on this machine and name it by localhost"
        )
    place = Place(url.hostname, url.port or 80, url.netloc.rpartition("@")[2])
    target = (url.path or "/") + (f"?{url.query}" if url.query else "")
    headers = [("User-Agent", "Go-http-client/1.1"), ("Content-Type", "application/json")]
    try:
        async with asyncio.timeout(MARSHAL_TIMEOUT):
            reply = await courier.post(place, target, headers, json_objects(batch))
    except (OutboundError, TimeoutError) as error:
        raise MarshalError(f"failed to send HTTP request: {error or 'timeout'}") from error
    if not 200 <= reply.status < 300:
        text = reply.body.decode("utf-8", "replace")
        raise MarshalError(f"HTTP request failed with status {reply.status}: {text}")
    return reply.body, reply.extension or "json"
