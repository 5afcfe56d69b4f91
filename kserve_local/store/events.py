"""Kubernetes Events: recorded with counts, coalesced, expired.

A repeated Event raises `count` and `lastTimestamp` of the first one instead of making another;
bursts of repeats are written at most once a second. Events live one hour, as on a cluster, and
there are at most `MAX_EVENTS` of them.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from kserve_local.api import scheme
from kserve_local.api.meta import Key, Object, name_of, namespace_of, timestamp, uid_of
from kserve_local.errors import KServeLocalError, NotFound

if TYPE_CHECKING:
    from kserve_local.store.store import Store

logger = logging.getLogger(__name__)

TTL = 3600.0
MAX_EVENTS = 5000
_COALESCE = 1.0
_EXPIRY_PERIOD = 60.0


@dataclass(slots=True)
class _Series:
    key: Key
    count: int
    written: float
    flushing: bool = False


class EventRecorder:
    """Writes Events about objects of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._series: dict[tuple[str, ...], _Series] = {}
        self._lock = asyncio.Lock()

    async def event(
        self,
        obj: Object,
        type_: Literal["Normal", "Warning"],
        reason: str,
        message: str,
        *,
        component: str = "",
    ) -> None:
        """Record that something happened to `obj`; a repeat raises the count of the first Event.

        An Event that cannot be written is logged, never raised: it must not stop a reconcile.
        """
        try:
            # One at a time, so that two first occurrences cannot become two Events.
            async with self._lock:
                await self._record(obj, type_, reason, message, component)
        except KServeLocalError as error:
            logger.warning("Event %s of %s was not written: %s", reason, name_of(obj), error)

    async def _record(
        self, obj: Object, type_: str, reason: str, message: str, component: str
    ) -> None:
        now = asyncio.get_running_loop().time()
        identity = (uid_of(obj), namespace_of(obj), name_of(obj), type_, reason, message, component)
        series = self._series.get(identity)
        if series is not None and self._store.find(series.key) is not None:
            series.count += 1
            wait = series.written + _COALESCE - now
            if wait <= 0:
                await self._write(series)
            elif not series.flushing:
                series.flushing = True
                self._store.keep_running(self._flush(series, wait), name="event-flush")
            return
        created = await self._store.create(_new(obj, type_, reason, message, component))
        if len(self._series) >= MAX_EVENTS:
            # The older half in one go: looking for expired ones each time would make every new
            # Event cost as much as all of them. A repeat of a forgotten one begins a new Event.
            for old in list(self._series)[: MAX_EVENTS // 2]:
                del self._series[old]
        self._series[identity] = _Series(scheme.key_of(created), 1, now)

    async def _flush(self, series: _Series, wait: float) -> None:
        try:
            await asyncio.sleep(wait)
        finally:
            series.flushing = False
        try:
            await self._write(series)
        except KServeLocalError as error:
            logger.warning("count of Event %s was not written: %s", series.key.name, error)

    async def _write(self, series: _Series) -> None:
        event = self._store.find(series.key)
        if event is None or event.get("count") == series.count:
            return
        series.written = asyncio.get_running_loop().time()
        metadata = {k: v for k, v in event["metadata"].items() if k != "resourceVersion"}
        await self._store.update(
            {**event, "metadata": metadata, "count": series.count, "lastTimestamp": timestamp()}
        )


def _new(obj: Object, type_: str, reason: str, message: str, component: str) -> Object:
    now = datetime.now(UTC)
    namespace = namespace_of(obj) or "default"
    involved: dict[str, Any] = {
        "apiVersion": obj["apiVersion"],
        "kind": obj["kind"],
        "name": name_of(obj),
        "uid": uid_of(obj),
    }
    if namespace_of(obj):
        involved["namespace"] = namespace
    if obj["metadata"].get("resourceVersion"):
        involved["resourceVersion"] = obj["metadata"]["resourceVersion"]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        # client-go names Events `<object>.<time in hexadecimal>`.
        "metadata": {
            "name": f"{name_of(obj)[:200]}.{int(now.timestamp() * 1e9):x}",
            "namespace": namespace,
        },
        "involvedObject": involved,
        "type": type_,
        "reason": reason,
        "message": message,
        "count": 1,
        "firstTimestamp": timestamp(now),
        "lastTimestamp": timestamp(now),
        "source": {"component": component} if component else {},
        "reportingComponent": component,
        "reportingInstance": "",
    }


def expired(events: list[Object], *, now: datetime) -> list[Object]:
    """Return which Events to delete: older than `TTL`, and the oldest above the bound."""
    oldest_first = sorted(events, key=_last_seen)
    limit = timestamp(now - timedelta(seconds=TTL))
    surplus = max(0, len(oldest_first) - MAX_EVENTS)
    return [e for i, e in enumerate(oldest_first) if i < surplus or _last_seen(e) < limit]


def _last_seen(event: Object) -> str:
    return str(
        event.get("lastTimestamp")
        or (event.get("eventTime") or "")[:19]
        or event["metadata"]["creationTimestamp"]
    )


async def expire(store: Store) -> None:
    """Delete expired Events, now and every minute, for ever."""
    while True:
        for event in expired(store.list(scheme.EVENT.id), now=datetime.now(UTC)):
            try:
                await store.delete(scheme.key_of(event), uid=uid_of(event))
            except NotFound:
                continue
            except KServeLocalError as error:
                logger.warning("expired Events stay for now: %s", error)
                break
        await asyncio.sleep(_EXPIRY_PERIOD)
